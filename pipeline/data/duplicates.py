"""Images that are there more than once.

Equal pixels, or the same image encoded again, resized or mirrored.

An image's look is the sign and size of its 8 x 8 lowest frequencies (a discrete cosine transform of
64 x 64 luminances, as in the perceptual hash), each frequency weighted so that fine structure
counts as much as coarse. Mirroring changes the sign of every odd horizontal frequency and nothing
else. Candidates share sixteen of the signs; a pair is near when the weighted frequencies correlate.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

THUMBNAIL_SIDE = 64
_FREQUENCIES = 8
# Tuned on CIFAR-10 and synthetic images (docs/results.md): nearly every re-encoded copy is above,
# nearly no other pair.
MIN_CORRELATION = 0.95
MAX_SIGNS_APART = 14
MAX_COLOR_APART = 16  # levels of the mean color, 0-255
# Less spread of luminance than this, in levels, and only noise is left to compare.
MIN_CONTRAST = 2.0
# Each band is sixteen of the signs; sought are pairs that agree in all signs of at least one.
_BANDS, _BAND_BITS = 12, 16
# In a crowd of equal bands each is compared with this many neighbors.
_MAX_NEIGHBORS = 32
_CHUNK = 1 << 16
_BITS = np.uint64(1) << np.arange(64, dtype=np.uint64)


# How an image looks, 79 bytes. `signs`: one bit a frequency. `frequencies`: weighted and scaled to
# equal length. `color`: mean RGB in [0, 255]. `contrast`: standard deviation of luminance in
# levels.
DESCRIPTOR = np.dtype(
    [("signs", "<u8"), ("frequencies", "i1", 64), ("color", "u1", 3), ("contrast", "<f4")]
)


def describe_images(thumbnails: Any) -> Any:
    """Return how images look, DESCRIPTOR [n].

    Args:
        thumbnails: uint8 [n, 64, 64, 3] in [0, 255], each image squeezed to a square.
    """
    pixels = thumbnails.astype(np.float32)
    luminance = pixels @ np.asarray([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
    cosines, weights = _cosines(), _weights()
    frequencies = (cosines @ luminance @ cosines.T * weights).reshape(len(pixels), _FREQUENCIES**2)
    length = np.maximum(np.linalg.norm(frequencies, axis=1, keepdims=True), 1e-6)
    looks = np.zeros(len(pixels), DESCRIPTOR)
    looks["signs"] = (frequencies > 0) @ _BITS
    looks["frequencies"] = np.clip(np.rint(frequencies / length * 254), -127, 127)
    looks["color"] = np.rint(pixels.mean((1, 2)))
    looks["contrast"] = luminance.std((1, 2))
    return looks


def _cosines() -> Any:
    """Return the lowest basis functions of the cosine transform, float32 [8, 64]."""
    places = (np.arange(THUMBNAIL_SIDE) + 0.5) * np.pi / THUMBNAIL_SIDE
    return np.cos(np.arange(_FREQUENCIES)[:, None] * places).astype(np.float32)


def _weights() -> Any:
    """Return each frequency's weight, float32 [8, 8]: amplitudes of photographs fall as 1/f.

    Brightness itself does not count.
    """
    return np.hypot(*np.indices((_FREQUENCIES, _FREQUENCIES))).astype(np.float32)


def _mirror() -> Any:
    """Return what mirroring multiplies each frequency with, int8 [64]."""
    return np.tile(np.where(np.arange(_FREQUENCIES) % 2, -1, 1), _FREQUENCIES).astype(np.int8)


def group_duplicates(looks: Any, pixels: Any) -> Any:
    """Return int64 [n]: each image's group, named by its first member; an image alone is its own.

    Args:
        looks: DESCRIPTOR [n], of the images.
        pixels: uint64 [n], a fingerprint of each image's pixels; equal ones are in one group.
    """
    leaders = np.arange(len(pixels))
    _, first, inverse = np.unique(pixels, return_index=True, return_inverse=True)
    for left, right in itertools.chain([(first[inverse], leaders.copy())], find_near_pairs(looks)):
        for one, other in zip(left.tolist(), right.tolist(), strict=True):
            if one != other:
                _join(leaders, one, other)
    return np.asarray([_leader(leaders, index) for index in range(len(leaders))], np.int64)


def _leader(leaders: Any, index: int) -> int:
    while leaders[index] != index:
        leaders[index] = leaders[leaders[index]]
        index = int(leaders[index])
    return index


def _join(leaders: Any, one: int, other: int) -> None:
    first, second = sorted((_leader(leaders, one), _leader(leaders, other)))
    leaders[second] = first


def find_near_pairs(looks: Any) -> Iterator[tuple[Any, Any]]:
    """Yield arrays of pairs that look the same, also mirrored.

    The work grows with the number of images, not with its square.
    """
    seen = np.flatnonzero(looks["contrast"] >= MIN_CONTRAST)
    mirrored_signs = looks["signs"][seen] ^ _mirrored_bits()
    # Places from len(seen) on are the mirrored images.
    signs = np.concatenate([looks["signs"][seen], mirrored_signs])
    for band in _bands():
        keys = _gathered_bits(signs, band)
        order = np.lexsort((signs, keys))  # in a crowd, the most alike are neighbors
        ordered = keys[order]
        for distance in range(1, _MAX_NEIGHBORS + 1):
            same = np.flatnonzero(ordered[distance:] == ordered[:-distance])
            if len(same) == 0:
                break
            left, right = order[same], order[same + distance]
            # Both mirrored is the same pair as neither.
            apart = (np.minimum(left, right) < len(seen)) & (left % len(seen) != right % len(seen))
            close = apart & (np.bitwise_count(signs[left] ^ signs[right]) <= MAX_SIGNS_APART)
            yield from _verified(looks, seen, left[close], right[close])


def _verified(looks: Any, seen: Any, left: Any, right: Any) -> Iterator[tuple[Any, Any]]:
    """Keep the pairs whose frequencies correlate and whose colors are alike.

    Places from len(seen) on are mirrored.
    """
    for start in range(0, len(left), _CHUNK):
        first, second = left[start : start + _CHUNK], right[start : start + _CHUNK]
        mirrored = (first >= len(seen)) != (second >= len(seen))
        first, second = seen[first % len(seen)], seen[second % len(seen)]
        one, other = (
            looks["frequencies"][first].astype(np.float32),
            looks["frequencies"][second].astype(np.float32),
        )
        other = np.where(mirrored[:, None], other * _mirror(), other)
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        alike = (one * other).sum(1) >= MIN_CORRELATION * np.maximum(lengths, 1e-6)
        colors = (
            np.abs(looks["color"][first].astype(np.int16) - looks["color"][second]).max(1)
            <= MAX_COLOR_APART
        )
        contrast = np.abs(np.log(looks["contrast"][first] / looks["contrast"][second])) <= np.log(
            1.6
        )
        near = alike & colors & contrast
        yield first[near], second[near]


def _mirrored_bits() -> Any:
    """Return uint64 with a bit at each frequency whose sign mirroring changes."""
    return ((_mirror() < 0) @ _BITS).astype(np.uint64)


def _bands() -> list[Any]:
    """Return which signs each band looks at.

    Drawn from the 40 lowest frequencies, whose signs noise changes least.
    """
    lowest = np.argsort(_weights().reshape(-1), kind="stable")[1:41]
    rng = np.random.default_rng(0)
    return [rng.choice(lowest, _BAND_BITS, replace=False) for _ in range(_BANDS)]


def _gathered_bits(signs: Any, bits: Any) -> Any:
    """Return the chosen bits as one number each, uint32 [n]."""
    keys = np.zeros(len(signs), np.uint32)
    for place, bit in enumerate(bits.tolist()):
        keys |= ((signs >> np.uint64(bit)) & np.uint64(1)).astype(np.uint32) << np.uint32(place)
    return keys


def choose_excluded_duplicates(found: Any, splits: Any, given: Any) -> Any:
    """Return bool [n]: which images to set aside so that no group is in two splits.

    Nobody is moved.

    Kept are the members in one split: of splits that the source names, the test before the
    validation; else the split that holds most of the group, the training split if it is a draw.

    Args:
        found: int [n], each image's group.
        splits: int [n], 0 for training, 1 for validation, 2 for test.
        given: bool [n], whether the source names the image for validation or test.
    """
    aside = np.zeros(len(found), np.bool_)
    members: dict[int, list[int]] = defaultdict(list)
    _, inverse, sizes = np.unique(found, return_inverse=True, return_counts=True)
    for index in np.flatnonzero(sizes[inverse] > 1).tolist():
        members[int(found[index])].append(index)
    for indices in members.values():
        where = splits[indices]
        named = where[given[indices]]
        kept = named.max() if len(named) else np.bincount(where).argmax()
        aside[indices] = where != kept
    return aside


def find_label_conflicts(pixels: Any, labels: Sequence[str]) -> list[list[int]]:
    """Return the places of equal images that have different labels, a list for each image.

    Args:
        pixels: uint64 [n], a fingerprint of each image's pixels.
        labels: [n].
    """
    return [
        indices for indices in _repeated(pixels) if len({labels[index] for index in indices}) > 1
    ]


def _repeated(pixels: Any) -> Iterable[list[int]]:
    """Return the places of each value that is there more than once."""
    members: dict[int, list[int]] = defaultdict(list)
    _, inverse, sizes = np.unique(pixels, return_inverse=True, return_counts=True)
    for index in np.flatnonzero(sizes[inverse] > 1).tolist():
        members[int(inverse[index])].append(index)
    return members.values()
