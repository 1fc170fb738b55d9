"""Receptive fields: which pixels of the image the units of a layer see, followed along the graph.

Where paths meet, a unit sees what the longest of them shows it. What is one number for a whole map
does not count: the gates of squeeze and excitation, the statistics of a normalization.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import keras

from pipeline.model.layers import SpatialResponseNormalization, TwoTowerConv2D

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from keras import Operation

    from pipeline.arrays import Network

# Layers and operations that move nothing, by name: some have no public name in Keras.
_POINTWISE_LAYERS = (
    "InputLayer Identity PixelNormalization LocalResponseNormalization BatchNormalization"
    " LayerNormalization GroupNormalization UnitNormalization RMSNormalization Rescaling"
    " Normalization LayerScale StochasticDepth CustomScaleLayer Dense EinsumDense Activation ReLU"
    " LeakyReLU PReLU ELU Softmax Dropout SpatialDropout2D GaussianDropout AlphaDropout"
    " GaussianNoise ActivityRegularization Add Subtract Multiply Average Maximum Minimum"
    " Concatenate"
)
_POINTWISE_OPERATIONS = (
    "Divide TrueDivide Negative Absolute Square Sqrt Power Clip Exp Tanh Cast Relu Relu6 Sigmoid"
    " HardSigmoid Silu HardSilu Gelu LeakyRelu Softplus Elu"
)
_POINTWISE = frozenset(f"{_POINTWISE_LAYERS} {_POINTWISE_OPERATIONS}".split())
_WINDOWED = (
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv2D,
    keras.layers.MaxPooling2D,
    keras.layers.AveragePooling2D,
    TwoTowerConv2D,
    SpatialResponseNormalization,
)


@dataclass(frozen=True)
class ReceptiveField:
    """The pixels that the units of a layer see, along one side of the image.

    Unit `p` sees the pixels from `start + stride * p` on, `size` of them.

    It may begin before the image and end behind it, where a layer saw its border.
    """

    start: float
    stride: float
    size: float


Field: TypeAlias = tuple[ReceptiveField, ReceptiveField]  # along the rows, along the columns
# "map": one number for a whole map; "unknown": nothing can be said.
_Reach: TypeAlias = Field | Literal["map", "unknown"]


def compute_receptive_field(network: Network, layer: str) -> Field | None:
    """Return the pixels that a unit of a layer can see, along the rows and along the columns.

    Normalization over neighboring positions counts; the mean over a batch does not, as it is a
    constant by now. None where it is not defined: behind attention, enlarged maps, or paths that
    meet at different strides.
    """
    pixel = ReceptiveField(0, 1, 1)
    reach: dict[int, _Reach] = {
        id(tensor): (pixel, pixel) for tensor in keras.tree.flatten(network.inputs)
    }
    for operation in network.operations:
        if not isinstance(operation, keras.layers.InputLayer):
            inputs = [reach[id(tensor)] for tensor in keras.tree.flatten(operation.input)]
            seen = _follow(operation, _join(inputs))
            reach |= {id(tensor): seen for tensor in keras.tree.flatten(operation.output)}
        if operation.name == layer:
            break
    (output,) = keras.tree.flatten(network.get_layer(layer).output)
    found = reach[id(output)]
    return None if isinstance(found, str) else found


def spread_evenly(pixels: int, units: int) -> ReceptiveField:
    """Return the field of units that share the pixels of a side evenly, in order."""
    return ReceptiveField(0, pixels / units, pixels / units)


def _join(inputs: Sequence[_Reach]) -> _Reach:
    """Return what a unit sees that reads several maps at one position."""
    if "unknown" in inputs:
        return "unknown"
    fields = [reach for reach in inputs if not isinstance(reach, str)]
    if not fields:
        return "map"
    rows, columns = (_unite([field[side] for field in fields]) for side in range(2))
    return "unknown" if rows is None or columns is None else (rows, columns)


def _unite(fields: Sequence[ReceptiveField]) -> ReceptiveField | None:
    if len({field.stride for field in fields}) > 1:
        return None
    start = min(field.start for field in fields)
    end = max(field.start + field.size for field in fields)
    return ReceptiveField(start, fields[0].stride, end - start)


def _follow(operation: Operation, seen: _Reach) -> _Reach:
    """Return what the units of an operation's output see, given what those of its input see."""
    if isinstance(seen, str):
        return seen
    if isinstance(operation, keras.layers.GlobalAveragePooling2D | keras.layers.GlobalMaxPooling2D):
        return "map"
    if getattr(operation, "data_format", "channels_last") != "channels_last":
        return "unknown"
    if isinstance(operation, keras.layers.Concatenate) and operation.axis not in (-1, 3):
        return "unknown"
    windows = list(_list_windows(operation))
    if not windows:
        return "unknown"
    rows, columns = (
        ReceptiveField(
            field.start - before * field.stride,
            field.stride * apart,
            field.size + (window - 1) * field.stride,
        )
        for field, (window, apart, before) in zip(seen, windows, strict=True)
    )
    return rows, columns


def _list_windows(operation: Operation) -> Iterator[tuple[int, int, int]]:
    """Yield, for rows and columns, size, stride and padding before the input of the windows.

    Nothing for an operation that is not known. TensorFlow's `same` makes an output for every
    `stride` inputs, and puts the smaller half of the border before the first.
    """
    for side in range(2):
        if isinstance(operation, keras.layers.ZeroPadding2D):
            yield 1, 1, operation.padding[side][0]
        elif isinstance(operation, keras.layers.Cropping2D):
            yield 1, 1, -operation.cropping[side][0]
        elif isinstance(operation, _WINDOWED):
            gaps = _along(operation, "dilation_rate", side)
            size = (_find_window(operation, side) - 1) * gaps + 1
            stride = _along(operation, "strides", side)
            inputs, before = operation.input.shape[1 + side], 0
            if getattr(operation, "padding", "same") == "same":
                before = max((-(-inputs // stride) - 1) * stride + size - inputs, 0) // 2
            yield size, stride, before
        elif type(operation).__name__ in _POINTWISE:
            yield 1, 1, 0


def _find_window(operation: Operation, side: int) -> int:
    if isinstance(operation, SpatialResponseNormalization):
        return operation.size
    name = "pool_size" if hasattr(operation, "pool_size") else "kernel_size"
    return _along(operation, name, side)


def _along(operation: Operation, attribute: str, side: int) -> int:
    """Return a layer's number for rows (side 0) or columns; 1 where it has none."""
    value = getattr(operation, attribute, 1)
    return int(value[side] if isinstance(value, tuple | list) else value)
