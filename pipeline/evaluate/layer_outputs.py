"""Outputs of a network's layers for many images, a few images at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf

if TYPE_CHECKING:
    from pipeline.arrays import Array, Images, Network, Tensor

IMAGES_AT_ONCE = 64  # the outputs of the 2012 network's convolutions take 2.6 MB an image


def get_output(model: Network, name: str) -> keras.KerasTensor:
    """Return the symbolic output of a layer, or of an operation such as `x + y`."""
    return next(operation.output for operation in model.operations if operation.name == name)


def build_outputs(
    model: Network, layers: Sequence[str]
) -> Callable[[Images | Tensor], list[Tensor]]:
    """Return a function from pixels to the output of each layer or operation, in float32."""
    part = keras.Model(model.input, [get_output(model, name) for name in layers])
    # A model gives a list of one as its only element.
    return lambda pixels: [
        tf.cast(values, tf.float32) for values in keras.tree.flatten(part(pixels, training=False))
    ]


def run_in_batches(compute: Callable[..., list[Tensor]], *columns: Array) -> list[Array]:
    """Return the results of a function for all rows of some columns, a few rows at a time."""
    parts = run_by_size(tf.function(compute), min(IMAGES_AT_ONCE, len(columns[0])), *columns)
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def run_by_size(
    program: Callable[..., list[Tensor]], size: int, *columns: Array
) -> list[list[Array]]:
    """Return the results of a program for every `size` rows.

    The last rows are repeated to fill that up, so that the program is compiled only once.
    """
    parts = []
    for start in range(0, len(columns[0]), size):
        rows = [column[start : start + size] for column in columns]
        full = [tf.constant(np.resize(part, (size, *part.shape[1:]))) for part in rows]
        parts.append([array.numpy()[: len(rows[0])] for array in program(*full)])
    return parts
