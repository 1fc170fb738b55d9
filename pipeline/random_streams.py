"""The streams of random numbers, by number: those that training draws from, and initial weights.

A stream of training is `numpy.random.default_rng([seed, epoch, number])`: the training's seed, the
epoch counted from 0, and the number of what is drawn. NumPy hashes the three (`SeedSequence`), so
streams are independent of each other: switching one option off does not change what the others
draw, and nothing depends on the order in which streams are opened. Everything of an epoch is drawn
at once, one row per position in the epoch's order.

Dropout alone draws inside the compiled step, from TensorFlow's stateless generator, which is a
family of its own: its key is (`dropout_key`, step).

A number is part of the result: give a new purpose a new number and never reuse one.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# Dropout layers of a network whose keys are neighbors; those of further layers lie above the keys
# of every seed, so that the keys of two layers never meet.
_LAYERS_PER_SEED = 64
_SEEDS = 2**31


class RandomStream(IntEnum):
    """What is drawn; the value is the stream's number."""

    IMAGE_ORDER = 0
    CROP_TOP = 1
    CROP_LEFT = 2
    MIRRORING = 3
    COLOR_NOISE = 4
    RESIZED_CROP = 5
    RANDAUGMENT = 6
    ERASED_BOX = 7
    # Which images are erased, apart from where: another fraction moves no rectangle.
    ERASED_IMAGES = 8
    MIXTURE = 9
    INITIAL_WEIGHTS = 10
    HEAD_FOLDS = 11


def open_stream(stream: RandomStream, *, seed: int, epoch: int) -> np.random.Generator:
    """Return the generator of a stream, at its beginning.

    Args:
        stream: what is drawn.
        seed: of the training.
        epoch: counted from 0.
    """
    import numpy as np

    return np.random.default_rng([seed, epoch, int(stream)])


def derive_layer_seed(seed: int, layer: str) -> int:
    """Return the seed of a layer's initial weights, in [0, 2**31).

    The first 31 bits of the SHA-256 of `<stream> <seed> <layer>`, in ASCII digits and UTF-8. It
    depends on the layer's name and on no other layer, so that leaving one out changes no other's
    weights.

    Args:
        seed: `model.seed`.
        layer: name of the layer, such as `conv1`.
    """
    text = f"{int(RandomStream.INITIAL_WEIGHTS)} {seed} {layer}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def dropout_key(*, seed: int, layer: int) -> int:
    """Return the first half of the key of a random layer's numbers; the second is the step.

    Args:
        seed: of the training, below 2**31.
        layer: index of the layer among the network's random layers, such as dropout, below 2**32,
            so that no two layers of any two seeds share a key and each key is below 2**63.
    """
    block, index = divmod(layer, _LAYERS_PER_SEED)
    return (block * _SEEDS + seed) * _LAYERS_PER_SEED + index
