"""The table of a network's layers: shapes, parameters and work of each."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.artifacts import LayerRecord

if TYPE_CHECKING:
    from pipeline.arrays import Layer, Network

_CONVOLUTIONS = {"Conv2D": "", "DepthwiseConv2D": "depthwise ", "SeparableConv2D": "separable "}


def describe_layers(network: Network) -> tuple[LayerRecord, ...]:
    """Return one record per layer, in order.

    `output` is its shape without the batch, `parameters` are trainable; `macs`, multiplications
    with a weight, and `bytes`, which its output takes in float32, are those of one image.
    """
    return tuple(_describe_layer(layer) for layer in network.layers)


def _describe_layer(layer: Layer) -> LayerRecord:
    output = tuple(layer.output.shape[1:])
    kernels = [
        kernel.shape
        for name in ("kernel", "depthwise_kernel", "pointwise_kernel")
        if (kernel := getattr(layer, name, None)) is not None
    ]
    positions = output[0] * output[1] if len(output) == 3 else 1
    return LayerRecord(
        layer=layer.name,
        kind=_kind_of(layer),
        output=output,
        parameters=sum(math.prod(variable.shape) for variable in layer.trainable_variables),
        macs=positions * sum(map(math.prod, kernels)),
        bytes=math.prod(output) * (1 if layer.output.dtype == "uint8" else 4),
    )


def _kind_of(layer: Layer) -> str:
    """Return the kind of a layer, with its window and stride, for people."""
    name = type(layer).__name__
    if name == "TwoTowerConv2D":
        return f"convolution {layer.kernel_size} x {layer.kernel_size}, two towers"
    if name in _CONVOLUTIONS:
        stride = f" / {layer.strides[0]}" if layer.strides[0] > 1 else ""
        window = f"{layer.kernel_size[0]} x {layer.kernel_size[1]}"
        return f"{_CONVOLUTIONS[name]}convolution {window}{stride}"
    if name.startswith("Global"):
        return f"{name[6:9].lower()} of each map"
    if name.endswith("Pooling2D"):
        return (
            f"{name[:3].lower()} pool {layer.pool_size[0]} x {layer.pool_size[1]} /"
            f" {layer.strides[0]}"
        )
    details = {
        "InputLayer": "uint8 pixels",
        "PixelNormalization": "mean and scale",
        "ZeroPadding2D": "border",
        "LocalResponseNormalization": (
            "LRN" + (", each tower" if getattr(layer, "towers", 1) > 1 else "")
        ),
        "SpatialResponseNormalization": "LRN over 5 x 5 positions",
        "BatchNormalization": "batch normalization",
        "Dense": "fully connected",
        "Dropout": f"dropout {getattr(layer, 'rate', 0):g}",
        "Add": "sum",
        "ReLU": "ReLU6" if getattr(layer, "max_value", None) == 6 else "ReLU",
        "Activation": getattr(getattr(layer, "activation", None), "__name__", ""),
    }
    return details.get(name, name.lower())
