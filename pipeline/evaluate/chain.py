"""The layers of a network that can be explained: which there are, and which pixels they see.

Such a network is a chain of layers with square windows, as pipeline.model.alexnet builds it, from
uint8 [batch, size, size, 3] in [0, 255] to logits.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import keras
import numpy as np

from pipeline.model.layers import (
    LocalResponseNormalization,
    PixelNormalization,
    SpatialResponseNormalization,
    TwoTowerConv2D,
)

if TYPE_CHECKING:
    from pipeline.arrays import Floats, Layer, Network

_CONVOLUTIONS = (keras.layers.Conv2D, TwoTowerConv2D)
_POOLS = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)
# Layers between them in a network that can be explained: they move nothing, or by a known border.
_BETWEEN = (
    "InputLayer",
    "ZeroPadding2D",
    "Rescaling",
    "BatchNormalization",
    "Activation",
    "ReLU",
    "Dropout",
    "Flatten",
    "Dense",
    "Softmax",
)
_OWN_LAYERS = (PixelNormalization, LocalResponseNormalization, SpatialResponseNormalization)
_KNOWN = (
    *_CONVOLUTIONS,
    *_POOLS,
    *_OWN_LAYERS,
    *(getattr(keras.layers, name) for name in _BETWEEN),
)


@dataclass(frozen=True)
class ReceptiveField:
    """The pixels that the units of a layer see, along either side.

    Unit `p` sees the pixels from `start + stride * p` on, `size` of them.

    It may begin before the image and end behind it, where a layer saw its border.
    """

    start: int
    stride: int
    size: int


def can_explain(model: Network) -> bool:
    """Return whether a network can be explained.

    Its layers must be one chain of known layers, with a convolution that sees three channels.
    """
    if not all(isinstance(layer, _KNOWN) and _is_plain(layer) for layer in model.layers):
        return False
    convolutions = [layer for layer in model.layers if isinstance(layer, _CONVOLUTIONS)]
    chained = all(
        after.input is before.output for before, after in itertools.pairwise(model.layers)
    )
    first_dense = next(
        (
            index
            for index, layer in enumerate(model.layers)
            if isinstance(layer, keras.layers.Dense)
        ),
        len(model.layers),
    )
    within = all(model.layers.index(layer) < first_dense for layer in convolutions)
    return chained and bool(convolutions) and within and convolutions[0].input.shape[-1] == 3


def _is_plain(layer: Layer) -> bool:
    """Return whether a layer's window is square and without gaps."""
    shapes = [
        getattr(layer, name, 1) for name in ("kernel_size", "pool_size", "strides", "dilation_rate")
    ]
    square = all(not isinstance(shape, tuple) or len(set(shape)) == 1 for shape in shapes)
    return (
        square
        and getattr(layer, "dilation_rate", 1) in (1, (1, 1))
        and getattr(layer, "data_format", "channels_last") == "channels_last"
    )


def list_depth_layers(model: Network) -> list[str]:
    """Return, for each convolution in order, the layer that gives its activated output.

    That is the convolution if the activation is part of it, else the activation that follows,
    behind whatever lies between.
    """
    names: list[str] = []
    waiting = False
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dense):
            break
        if isinstance(layer, _CONVOLUTIONS):
            names.append(layer.name)
            waiting = layer.activation is keras.activations.linear
        elif waiting and isinstance(layer, keras.layers.Activation):
            names[-1], waiting = layer.name, False
    return names


def find_feature_layer(model: Network) -> str:
    """Return `fc7`, or without one the last layer before the logits, dropout aside."""
    names = [
        layer.name for layer in model.layers[:-1] if not isinstance(layer, keras.layers.Dropout)
    ]
    return "fc7" if "fc7" in names else names[-1]


def read_first_filters(model: Network) -> tuple[Floats, int]:
    """Return the filters that see the pixels, and the number of towers that share them.

    The filters are float32 [height, width, 3, filters]. With 2 towers, the next layer reads the
    first half of the filters in the first tower and the second half in the second.
    """
    first, *others = (layer for layer in model.layers if isinstance(layer, _CONVOLUTIONS))
    towers = 2 if others and isinstance(others[0], TwoTowerConv2D) else 1
    return np.asarray(first.kernel, np.float32), towers


def compute_receptive_field(model: Network, layer: str) -> ReceptiveField:
    """Return the pixels that a unit of a layer can see.

    Normalization over neighboring positions counts; the mean over a batch does not, as it is a
    constant by now.
    """
    start, stride, size = 0, 1, 1
    for step in model.layers:
        window, apart, before = _find_window(step)
        start, size, stride = start - before * stride, size + (window - 1) * stride, stride * apart
        if step.name == layer:
            break
    return ReceptiveField(start, stride, size)


def _find_window(layer: Layer) -> tuple[int, int, int]:
    """Return the size, the stride and the padding before the input of a layer's windows.

    TensorFlow's `same` makes an output for every `stride` inputs, and puts the smaller half of the
    border before the first.
    """
    if isinstance(layer, keras.layers.ZeroPadding2D):
        return 1, 1, layer.padding[0][0]
    if isinstance(layer, _CONVOLUTIONS):
        size = layer.kernel.shape[0]
    elif isinstance(layer, _POOLS):
        size = layer.pool_size[0]
    elif isinstance(layer, SpatialResponseNormalization):
        size = layer.size
    else:
        return 1, 1, 0
    stride = layer.strides[0] if hasattr(layer, "strides") else 1
    if getattr(layer, "padding", "same") == "valid":
        return size, stride, 0
    inputs = layer.input.shape[1]
    return size, stride, max((-(-inputs // stride) - 1) * stride + size - inputs, 0) // 2
