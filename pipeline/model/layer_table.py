"""The table of a network's layers: shapes, parameters and work of each, and the block it is in."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.artifacts import LayerRecord
from pipeline.model.graph import list_blocks
from pipeline.model.macs import count_macs

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
