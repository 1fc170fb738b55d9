"""How many images a network takes at once, so that its largest layer fits into memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import keras

if TYPE_CHECKING:
    from pipeline.arrays import Network

_MAX_OUTPUT_BYTES = 1 << 30


def limit_batch(model: Network, wanted: int) -> int:
    """Return how many images a network takes at once, `wanted` or fewer.

    The largest output of a layer takes at most 1 GiB then, in float32; about two of them are in
    memory at a time. Networks of 224 pixels take between 80 images (VGG16) and 900 (AlexNet).
    """
    tensors = [
        tensor
        for operation in model.operations
        for tensor in keras.tree.flatten(operation.output)
        if tensor.shape[0] is None and None not in tensor.shape[1:]
    ]
    largest = max(4 * math.prod(tensor.shape[1:]) for tensor in tensors)
    return max(1, min(wanted, _MAX_OUTPUT_BYTES // largest))
