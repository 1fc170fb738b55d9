"""Building what keras.applications has, as the networks of this project are built.

    pixels less their mean, divided by their standard deviation
    the application's layers, without its own preprocessing and classifier
    global mean: the features
    dropout, logits

Fresh weights take the dataset's mean and standard deviation, ImageNet's weights those that they
were trained with. The weights of VGG and ResNet were trained on blue, green and red: the first
kernel is turned around, and the pixels stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import keras

from pipeline.config.model import ModelConfig
from pipeline.model.graph import copy_layers
from pipeline.model.layers import PixelNormalization
from pipeline.model.network_row import NetworkRow
from pipeline.random_streams import derive_layer_seed

if TYPE_CHECKING:
    from pipeline.arrays import Array, Network

# Applications with these layers scale pixels themselves, and some cannot be told not to.
_PREPROCESSING = (keras.layers.Rescaling, keras.layers.Normalization)
_OWN_NAMES = ("image", "normalize", "dropout", "logits")


def build_family_network(
    row: NetworkRow,
    config: ModelConfig,
    *,
    num_classes: int,
    channel_mean: Sequence[float],
    channel_std: Sequence[float],
    weights_layout: str = "",  # noqa: ARG001 - there is one
) -> Network:
    """Return an uncompiled network with fresh weights; arguments as of `build_network`."""
    std = [max(value, 1.0) for value in channel_std]  # black images have a std of 0
    application = _make_application(row, config, weights=None)
    return _connect(row, config, application, num_classes, (channel_mean, std), config.seed)


def build_with_imagenet_weights(
    row: NetworkRow, config: ModelConfig, *, num_classes: int, keeps_classifier: bool
) -> Network:
    """Return the network with the weights that Keras publishes.

    Where they come from is for the caller to arrange (`keras_weights_found_here`).

    Args:
        row: the network.
        config: the settings.
        num_classes: number of logits.
        keeps_classifier: with ImageNet's classifier, whose classes are 1,000; else a fresh one.
    """
    if row.pixel_mean is None or row.pixel_std is None:
        raise ValueError(f"The row of {row.name} says nothing of its pixels.")
    application = _make_application(row, config, weights="imagenet")
    pixels = (row.pixel_mean, row.pixel_std)
    network = _connect(row, config, application, num_classes, pixels, None)
    if row.bgr:
        first = next(layer for layer in network.layers if hasattr(layer, "kernel"))
        kernel, *others = first.get_weights()
        first.set_weights([kernel[:, :, ::-1], *others])
    if keeps_classifier:
        kernel, bias = _read_classifier(row)
        network.layers[-1].set_weights([kernel, bias])
    return network


def describe_family_start(
    row: NetworkRow,  # noqa: ARG001 - nothing can be chosen
    config: ModelConfig,  # noqa: ARG001
) -> dict[str, str]:
    """Return what decides whether a signal passes through fresh weights: nothing to choose."""
    return {}


def _make_application(row: NetworkRow, config: ModelConfig, *, weights: str | None) -> Network:
    """Return the application as Keras makes it, up to its features."""
    make = getattr(keras.applications, row.name.partition("/")[2])
    size = config.image_size
    application: Network = make(
        include_top=False, weights=weights, input_shape=(size, size, 3), pooling="avg"
    )
    return application


def _connect(
    row: NetworkRow,
    config: ModelConfig,
    application: Network,
    num_classes: int,
    pixels: tuple[Sequence[float], Sequence[float]],
    seed: int | None,
) -> Network:
    """Return an application between pixels and logits; without a seed it keeps its weights."""
    image = keras.Input(application.input_shape[1:], dtype="uint8", name="image")
    normalized = PixelNormalization(*pixels, name="normalize")(image)
    features = copy_layers(
        application, normalized, seed=seed, leave_out=_PREPROCESSING, taken=_OWN_NAMES
    )
    dropped = keras.layers.Dropout(config.dropout, seed=0, name="dropout")(features)
    start = keras.initializers.GlorotUniform(seed=derive_layer_seed(config.seed, "logits"))
    logits = keras.layers.Dense(num_classes, kernel_initializer=start, name="logits")(dropped)
    return keras.Model(image, logits, name=row.name.replace("/", "_"))


def _read_classifier(row: NetworkRow) -> list[Array]:
    """Return kernel [features, 1000] and bias [1000] of the published classifier."""
    make = getattr(keras.applications, row.name.partition("/")[2])
    application: Network = make(weights="imagenet", classifier_activation=None)
    layers = [layer for layer in application.layers if hasattr(layer, "kernel")]
    kernel, bias = layers[-1].get_weights()
    # MobileNets have a convolution of 1 x 1 in its place.
    return [kernel.reshape(-1, kernel.shape[-1]), bias]
