"""The table of a network's layers: shapes, parameters and work of each, and the block it is in."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import LayerRecord
from pipeline.model.graph import list_blocks

if TYPE_CHECKING:
    from pipeline.arrays import Layer, Network

# Kinds by Keras's name, where that says less.
_WORDS = {
    "PixelNormalization": "mean and scale",
    "ZeroPadding2D": "border",
    "SpatialResponseNormalization": "LRN over 5 x 5 positions",
    "BatchNormalization": "batch normalization",
    "LayerNormalization": "layer normalization",
    "GlobalAveragePooling2D": "mean of each map",
    "GlobalMaxPooling2D": "maximum of each map",
    "Dense": "fully connected",
    "Add": "sum",
    "Multiply": "product",
    "Concatenate": "concatenation",
    "LayerScale": "scale of each map",
    "StochasticDepth": "stochastic depth",
}


def describe_layers(network: Network) -> tuple[LayerRecord, ...]:
    """Return one record per layer, in order.

    `output` is its shape without the batch, `parameters` are trainable; `macs`, multiplications
    with a weight, and `bytes`, which its output takes in float32, are those of one image. `block`
    is the last layer of the block that it belongs to, the classifier's its own name.
    """
    ends = iter((*list_blocks(network), network.layers[-1].name))
    records, block = [], next(ends)
    for layer in network.layers:
        records.append(_describe_layer(layer, block))
        if layer.name == block:
            block = next(ends, block)
    return tuple(records)


def count_macs(layer: Layer) -> int:
    """Return a layer's multiplications with weights of two dimensions or more, for one image.

    Frozen weights count, too.
    Scaling by a normalization counts nothing, as in published numbers. Work that depends on values
    alone, such as the products of an attention, counts nothing either.
    """
    if parts := [part for part in _parts_of(layer) if part is not None]:
        return sum(_position_count(layer) * _kernel_size(part) for part in parts)
    if equation := getattr(layer, "equation", ""):
        return _einsum_macs(layer, equation)
    kernels = [weight for weight in layer.weights if len(weight.shape) > 1]
    return sum(_position_count(layer) * math.prod(kernel.shape) for kernel in kernels)


def _parts_of(layer: Layer) -> list[Any]:
    """Return the layers that an attention projects with; none for other layers."""
    names = ("query_dense", "key_dense", "value_dense", "output_dense")
    return [getattr(layer, name, None) for name in names]


def _kernel_size(layer: Layer) -> int:
    return math.prod(layer.kernel.shape)


def _position_count(layer: Layer) -> int:
    """Return at how many positions a layer applies its kernels.

    Those of the output: 1 after Dense of features, height x width of maps; those of the input for a
    transposed convolution.
    """
    tensor = layer.input if "Transpose" in type(layer).__name__ else layer.output
    return math.prod(side or 1 for side in tensor.shape[1:-1])


def _einsum_macs(layer: Layer, equation: str) -> int:
    """Return the MACs of an equation such as `abc,cd->abd`: numbers out x terms of each sum."""
    inputs, _, output = equation.partition("->")
    letters = inputs.rpartition(",")[2]
    summed = [
        size
        for letter, size in zip(letters, layer.kernel.shape, strict=True)
        if letter not in output
    ]
    return math.prod(side or 1 for side in layer.output.shape[1:]) * math.prod(summed)


def _describe_layer(layer: Layer, block: str) -> LayerRecord:
    output = tuple(side or 0 for side in layer.output.shape[1:])
    return LayerRecord(
        layer=layer.name,
        kind=_kind_of(layer),
        output=output,
        parameters=sum(math.prod(variable.shape) for variable in layer.trainable_variables),
        macs=count_macs(layer),
        bytes=math.prod(output) * (1 if layer.output.dtype == "uint8" else 4),
        block=block,
    )


def _kind_of(layer: Layer) -> str:
    """Return the kind of a layer, with its window and stride, for people."""
    name = type(layer).__name__
    if name == "TwoTowerConv2D":
        return f"convolution {layer.kernel_size} x {layer.kernel_size}, two towers"
    if name.endswith("Conv2D"):
        kind = name.removesuffix("Conv2D").lower()
        groups = getattr(layer, "groups", 1)
        grouped = f", {groups} groups" if groups > 1 else ""
        return f"{kind} convolution {_window_of(layer)}{grouped}".lstrip()
    if name in ("MaxPooling2D", "AveragePooling2D"):
        sides = " x ".join(str(side) for side in layer.pool_size)
        return f"{name[:3].lower()} pool {sides} / {layer.strides[0]}"
    if name.endswith("Dropout"):
        return f"{name.lower()} {layer.rate:g}"
    details = {
        "InputLayer": f"{layer.output.dtype} pixels",
        "Activation": getattr(getattr(layer, "activation", None), "__name__", ""),
        "ReLU": "relu6" if getattr(layer, "max_value", None) == 6 else "relu",
        "LocalResponseNormalization": (
            "LRN" + (", each tower" if getattr(layer, "towers", 1) > 1 else "")
        ),
    }
    return str({**_WORDS, **details}.get(name, name.lower()))


def _window_of(layer: Layer) -> str:
    """Return a convolution's window and stride, such as `3 x 3 / 2`."""
    stride = f" / {layer.strides[0]}" if layer.strides[0] > 1 else ""
    return " x ".join(str(side) for side in layer.kernel_size) + stride
