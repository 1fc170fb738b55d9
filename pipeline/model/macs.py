"""MACs: multiplications with a weight that a layer makes for one image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.arrays import Layer


def count_macs(layer: Layer) -> int:
    """Return a layer's multiplications with weights of two dimensions or more, for one image.

    Frozen weights count, too. Scaling by a normalization counts nothing, as in published numbers,
    nor does work that depends on values alone, such as the products of an attention.
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
