"""Building AlexNet: one function reads from the pixels to the logits, after the numbers of a row.

The networks of the family and their numbers are rows of networks.py; docs/model.md compares them.

Every network takes uint8 [batch, height, width, 3] RGB in [0, 255] and gives float32
logits [batch, classes]: the mean is subtracted inside, so a file needs no other preparation of its
input than the cut.

Initial weights and input scale are a pair, because a mismatch does not learn: Gaussians of fixed
standard deviation take mean-subtracted pixels on the 0-255 scale, He's initialization takes unit
variance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras

from pipeline.config.model import ModelConfig
from pipeline.image_size import sides_of
from pipeline.model.alexnet_rows import AlexNetLayers, AlexNetRow, Convolution
from pipeline.model.layers import (
    LocalResponseNormalization,
    PixelNormalization,
    SpatialResponseNormalization,
    TwoTowerConv2D,
)
from pipeline.random_streams import derive_layer_seed

if TYPE_CHECKING:
    from pipeline.arrays import Network, Tensor

# What follows the first convolution, the second, and each other one; a pool only where it has one.
_ORDERS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "code": (("norm", "pool", "act"), ("act", "norm", "spatial", "pool"), ("act", "pool")),
    "paper": (("act", "norm", "pool"), ("act", "norm", "spatial", "pool"), ("act", "pool")),
    "caffe": (("act", "pool", "norm"), ("act", "pool", "norm", "spatial"), ("act", "pool")),
    "cifar": (("pool", "act", "norm"), ("act", "pool", "norm"), ("act", "pool")),
}
_ORDER_WITH_BATCH_NORMALIZATION = (("norm", "act", "pool"),) * 3
# What layers that are not Gaussians of fixed size start with.
_SCALED = {"he": "HeNormal", "glorot": "GlorotUniform"}
# Positive biases; with 1 Caffe's AlexNet "gave flat loss".
_BIASES = {"code": 1.0, "paper": 1.0, "caffe": 0.1, "caffenet": 1.0}
# The settings that replace a row's number unless they are `auto`.
_CHOICES = (
    "normalization",
    "lrn_alpha",
    "lrn_across",
    "layer_order",
    "spatial_norm",
    "initialization",
    "input_scale",
)


def decide_layers(
    row: AlexNetRow, config: ModelConfig, *, weights_layout: str = ""
) -> AlexNetLayers:
    """Return the numbers of the network that the settings ask for, each `auto` decided.

    Args:
        row: the network.
        config: the settings.
        weights_layout: where the weights are foreign ones, their layout, such as `caffe`: it
            decides in place of the fidelity.
    """
    settings = config.alexnet
    changed = (
        row.weights_layouts[weights_layout]
        if weights_layout
        else row.fidelities.get(settings.fidelity, {})
    )
    chosen = {name: value for name in _CHOICES if (value := getattr(settings, name)) != "auto"}
    layers = dataclasses.replace(row.layers, **{**changed, **chosen})
    changes: dict[str, Any] = {}
    if layers.normalization != "lrn" and layers.layer_order != "cifar":
        # Without normalization the orders are one network, as a pool of maxima commutes with rising
        # activations.
        changes |= {
            "spatial_norm": chosen.get("spatial_norm", False),
            "layer_order": chosen.get("layer_order", "paper"),
        }
    if layers.input_scale == "auto":
        changes["input_scale"] = "unit" if layers.initialization in _SCALED else "levels"
    return dataclasses.replace(layers, **changes)


def build_family_network(
    row: AlexNetRow,
    config: ModelConfig,
    *,
    num_classes: int,
    channel_mean: Sequence[float],
    channel_std: Sequence[float],
    weights_layout: str = "",
) -> Network:
    """Return an uncompiled AlexNet with fresh weights; arguments as of `build_network`."""
    layers = decide_layers(row, config, weights_layout=weights_layout)
    mean, std = _pixel_constants(layers.input_scale, channel_mean, channel_std)
    image = keras.Input((*sides_of(config.image_size), 3), dtype="uint8", name="image")
    pixels = PixelNormalization(mean, std, name="normalize")(image)
    logits = _connect(pixels, _Draft(config, layers), num_classes)
    return keras.Model(image, logits, name=f"alexnet_{row.name}")


def describe_family_start(row: AlexNetRow, config: ModelConfig) -> dict[str, str]:
    """Return the settings that decide whether a signal passes through fresh weights."""
    layers = decide_layers(row, config)
    return {
        "model.alexnet.initialization": layers.initialization,
        "model.alexnet.input_scale": layers.input_scale,
        "model.alexnet.activation": config.alexnet.activation,
        "model.alexnet.normalization": layers.normalization,
    }


def _pixel_constants(
    scale: str, channel_mean: Sequence[float], channel_std: Sequence[float]
) -> tuple[Sequence[float], Sequence[float]]:
    """Return what is subtracted from pixels, and what they are divided by, in levels of 0-255."""
    if scale == "fraction":
        return (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)
    spread = [max(value, 1.0) for value in channel_std]  # black images have a std of 0
    return channel_mean, (spread if scale == "unit" else (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class _Draft:
    """What the functions below share while a network is connected."""

    config: ModelConfig
    layers: AlexNetLayers

    def scale_width(self, width: int) -> int:
        """Return a layer's width, a multiple of 8 so that two towers can halve it."""
        return max(8, round(width * self.config.alexnet.width_multiplier / 8) * 8)

    def initializers(
        self,
        name: str,
        *,
        code_std: float = 0.01,
        caffe_std: float = 0.01,
        positive: bool = False,
    ) -> dict[str, Any]:
        """Return the initializers of one layer, seeded by its name.

        Args:
            name: of the layer.
            code_std: standard deviation of its weights in the code of 2012.
            caffe_std: the same in Caffe's networks.
            positive: biases start above zero.
        """
        seed, start = derive_layer_seed(self.config.seed, name), self.layers.initialization
        if start in _SCALED:
            return {"kernel_initializer": getattr(keras.initializers, _SCALED[start])(seed=seed)}
        std = {"code": code_std, "paper": 0.01}.get(start, caffe_std)
        return {
            "kernel_initializer": keras.initializers.RandomNormal(stddev=std, seed=seed),
            "bias_initializer": keras.initializers.Constant(_BIASES[start] if positive else 0.0),
        }


def _connect(x: Tensor, draft: _Draft, num_classes: int) -> Tensor:
    """Connect convolutions with pools, hidden layers with dropout, and the logits.

    Sizes are those of `paper` at 224 pixels.
    """
    config, layers = draft.config, draft.layers
    orders = (
        _ORDER_WITH_BATCH_NORMALIZATION
        if layers.normalization == "batch"
        else _ORDERS[layers.layer_order]
    )
    # 55 x 55 x 96, pooled to 27 x 27; 27 x 27 x 256, pooled to 13 x 13; 13 x 13 x 384, twice;
    # 13 x 13 x 256, pooled to 6 x 6.
    for number, convolution in enumerate(layers.convolutions, start=1):
        x = _add_block(x, draft, number, convolution, orders[min(number, 3) - 1])
    if config.alexnet.sixth_layer:  # 6 x 6 x 256, which sees both towers
        sixth = Convolution(layers.convolutions[-1].filters, 3, positive_bias=True, code_std=0.03)
        x = _add_block(x, draft, len(layers.convolutions) + 1, sixth, orders[2])
    x = keras.layers.Flatten(name="flatten")(x)  # 9216
    number = len(layers.convolutions) + 1
    for index, units in enumerate(layers.hidden):  # 4096, twice
        drop = keras.layers.Dropout(config.dropout, seed=index, name=f"drop{number}")
        x = drop(x) if config.alexnet.dropout_position == "before" else x
        x = keras.layers.Dense(
            draft.scale_width(units),
            activation=config.alexnet.activation,
            name=f"fc{number}",
            **draft.initializers(f"fc{number}", caffe_std=0.005, positive=True),
        )(x)
        x = drop(x) if config.alexnet.dropout_position == "after" else x
        number += 1
    name = f"fc{number}"
    return keras.layers.Dense(num_classes, name=name, **draft.initializers(name))(x)


def _add_block(
    x: Tensor, draft: _Draft, number: int, convolution: Convolution, order: Sequence[str]
) -> Tensor:
    """Add a convolution and what follows it in that order; one that is left out leaves its pool."""
    settings, steps = draft.config.alexnet, list(order)
    if settings.remove_layer == f"conv{number}":
        steps = [step for step in steps if step == "pool"]
    else:
        fused = steps[0] == "act"
        x = _convolve(x, draft, number, convolution, settings.activation if fused else None)
        steps = steps[1:] if fused else steps
    for step in steps:
        layer = _make_step(step, draft, number, convolution)
        x = x if layer is None else layer(x)
    return x


def _convolve(
    x: Tensor, draft: _Draft, number: int, convolution: Convolution, activation: str | None
) -> Tensor:
    """Apply a convolution, in one tower or in two, after its border."""
    name, window = f"conv{number}", convolution.window
    arguments: dict[str, Any] = {
        "activation": activation,
        "name": name,
        **draft.initializers(
            name, code_std=convolution.code_std, positive=convolution.positive_bias
        ),
    }
    width = draft.scale_width(convolution.filters)
    if convolution.in_towers and draft.layers.towers == 2:
        return TwoTowerConv2D(width, window, **arguments)(x)
    # A shorter side needs its positions for the pools.
    least = min(sides_of(draft.config.image_size))
    longer = convolution.double_stride_from and least >= convolution.double_stride_from
    stride = convolution.stride * (2 if longer else 1)
    padding = "same"
    if convolution.border != "same":
        missing = tuple((0, (window - side) % stride) for side in x.shape[1:3])
        border = missing if convolution.border == "edge" else convolution.border
        edge = "edge" if number == 1 else f"edge{number}"
        x, padding = keras.layers.ZeroPadding2D(border, name=edge)(x), "valid"  # 227 x 227 x 3
    return keras.layers.Conv2D(width, window, strides=stride, padding=padding, **arguments)(x)


def _make_step(
    step: str, draft: _Draft, number: int, convolution: Convolution
) -> keras.layers.Layer | None:
    """Return the layer for one step after a convolution, None where the network has none."""
    settings, layers = draft.config.alexnet, draft.layers
    if step == "act":
        return keras.layers.Activation(settings.activation, name=f"{settings.activation}{number}")
    if step == "pool" and convolution.pool:
        kind = "MaxPooling2D" if convolution.pool == "max" else "AveragePooling2D"
        window = 3 if settings.overlapping_pooling else 2
        return getattr(keras.layers, kind)(
            window, 2, padding=layers.pool_padding, name=f"pool{number}"
        )
    if step == "spatial" and layers.spatial_norm:
        return SpatialResponseNormalization(name=f"spatial{number}")
    if step == "norm" and layers.normalization == "batch":
        # Over all replicas: otherwise each keeps statistics of its own, and those of the first are
        # saved.
        return keras.layers.BatchNormalization(synchronized=True, name=f"norm{number}")
    if step == "norm" and layers.normalization == "lrn":
        return LocalResponseNormalization(
            bias=layers.lrn_bias,
            alpha=layers.lrn_alpha,
            towers=layers.towers if layers.lrn_across == "tower" else 1,
            name=f"norm{number}",
        )
    return None
