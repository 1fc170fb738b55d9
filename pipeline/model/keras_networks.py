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
from pipeline.errors import ConfigError
from pipeline.image_size import sides_of, write_image_size
from pipeline.model.graph import copy_layers, find_producer
from pipeline.model.layers import PixelNormalization
from pipeline.model.network_row import NetworkRow
from pipeline.model.weight_sources import UNREADABLE, PretrainedFile, describe_damage
from pipeline.random_streams import derive_layer_seed

if TYPE_CHECKING:
    from pipeline.arrays import Array, Network

# Applications with these layers scale pixels themselves, and some cannot be told not to.
_PREPROCESSING = (keras.layers.Rescaling, keras.layers.Normalization)
_NORMALIZATIONS = (keras.layers.BatchNormalization, keras.layers.LayerNormalization)
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
    pixels = (channel_mean, std)
    network = _connect(row, config, application, num_classes, pixels, config.seed)
    if not any(isinstance(layer, _NORMALIZATIONS) for layer in network.layers):
        _start_with_he(network, config.seed)
    return network


def build_with_imagenet_weights(
    row: NetworkRow,
    config: ModelConfig,
    *,
    num_classes: int,
    keeps_classifier: bool,
    files: Sequence[PretrainedFile] = (),
) -> Network:
    """Return the network with the weights that Keras publishes.

    Where they come from is for the caller to arrange (`keras_weights_found_here`).

    Args:
        row: the network.
        config: the settings.
        num_classes: number of logits.
        keeps_classifier: with ImageNet's classifier, whose classes are 1,000, and the hidden layers
            that VGG and MobileNetV3 have below it; else with a fresh one.
        files: that Keras has asked for by the time it reads them.

    Raises:
        ConfigError: Keras has the classifier for another size of the images.
        CheckpointError: the file holds no weights of this network.
    """
    if row.pixel_mean is None or row.pixel_std is None:
        raise ValueError(f"The row of {row.name} says nothing of its pixels.")
    pixels = (row.pixel_mean, row.pixel_std)
    if keeps_classifier and config.image_size != row.image_size:
        raise ConfigError(
            f"ImageNet's classifier of {row.name} is for images of {row.image_size} pixels",
            received=f"model.image_size={write_image_size(config.image_size)}",
            hint="Leave --image-size out, or add --set model.classifier=fresh",
        )
    try:
        application = _make_application(row, config, weights="imagenet", top=keeps_classifier)
    except UNREADABLE as error:
        if not files:
            raise
        raise describe_damage(files[-1].path, error) from error
    classifier: list[Array] = []
    if keeps_classifier:
        application, classifier = _cut_classifier(application)
    network = _connect(row, config, application, num_classes, pixels, None)
    if classifier:
        network.layers[-1].set_weights(classifier)
    if row.bgr:
        first = next(layer for layer in network.layers if hasattr(layer, "kernel"))
        kernel, *others = first.get_weights()
        first.set_weights([kernel[:, :, ::-1], *others])
    return network


def describe_family_start(
    row: NetworkRow,  # noqa: ARG001 - nothing can be chosen
    config: ModelConfig,  # noqa: ARG001
) -> dict[str, str]:
    """Return what decides whether a signal passes through fresh weights: nothing to choose."""
    return {}


def _make_application(
    row: NetworkRow, config: ModelConfig, *, weights: str | None, top: bool = False
) -> Network:
    """Return the application as Keras makes it, up to its features, or with its classifier."""
    make = getattr(keras.applications, row.name.partition("/")[2])
    end = {"classifier_activation": None} if top else {"pooling": "avg"}
    application: Network = make(
        include_top=top, weights=weights, input_shape=(*sides_of(config.image_size), 3), **end
    )
    return application


def _start_with_he(network: Network, seed: int) -> None:
    """Give convolutions He's initial weights, seeded by their names.

    VGG has no normalization, and Keras's own (Glorot's) halve the signal at each of its layers:
    its authors trained shallow networks first (Simonyan, Zisserman, 2014, section 3.1).
    """
    for layer in network.layers[:-1]:
        if hasattr(layer, "kernel"):
            start = keras.initializers.HeNormal(seed=derive_layer_seed(seed, layer.name))
            layer.kernel.assign(start(layer.kernel.shape))


def _cut_classifier(application: Network) -> tuple[Network, list[Array]]:
    """Return an application up to its features, and kernel [features, classes] and bias.

    MobileNets have a convolution of maps of one position, which they flatten, in place of a Dense.
    """
    layer = find_producer(application, application.outputs[0])
    while not hasattr(layer, "kernel"):
        layer = find_producer(application, layer.input)
    features = layer.input
    if len(features.shape) == 4:
        features = keras.layers.Flatten(name="features")(features)
    kernel, bias = layer.get_weights()
    return keras.Model(application.inputs, features), [kernel.reshape(-1, kernel.shape[-1]), bias]


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
