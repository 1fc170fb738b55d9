"""Find duplicates: equal pixels, or the same image encoded again, resized or mirrored.

An image's descriptor is the sign and size of its 8 x 8 lowest frequencies (a discrete cosine
transform of 64 x 64 luminances, as in the perceptual hash), each frequency weighted so that fine
structure counts as much as coarse. Mirroring changes the sign of every odd horizontal frequency and
nothing else. Candidates agree in sixteen of the signs; a pair is near when the weighted frequencies
correlate.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipeline.arrays import Array, Booleans, Floats, Images, Integers

THUMBNAIL_SIDE = 64
_FREQUENCIES = 8
# Tuned on CIFAR-10 and synthetic images (docs/results.md): nearly every re-encoded duplicate is
# above, and nearly no other pair.
MIN_CORRELATION = 0.95
MAX_SIGNS_APART = 14
MAX_COLOR_APART = 16  # levels of the mean color, 0-255
# With less spread of luminance than this, in levels, only noise would be compared.
MIN_CONTRAST = 2.0
# Each band is sixteen of the signs; candidates agree in all signs of at least one band.
_BANDS, _BAND_BITS = 12, 16
# Among many equal bands each is compared with this many neighbors.
_MAX_NEIGHBORS = 32
_CHUNK = 1 << 16
_BITS = np.uint64(1) << np.arange(64, dtype=np.uint64)


# The descriptor of an image, 79 bytes. `signs`: one bit per frequency. `frequencies`: weighted and
# scaled to equal length. `color`: mean RGB in [0, 255]. `contrast`: standard deviation of luminance
# in levels.
DESCRIPTOR = np.dtype(
    [("signs", "<u8"), ("frequencies", "i1", 64), ("color", "u1", 3), ("contrast", "<f4")]
)


def describe_images(thumbnails: Images) -> Array:
    """Return the descriptors of images, DESCRIPTOR [n].

    Args:
        thumbnails: uint8 [n, 64, 64, 3] in [0, 255], each image squeezed to a square.
    """
    pixels = thumbnails.astype(np.float32)
    luminance = pixels @ np.asarray([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
    cosines, weights = _cosine_basis(), _frequency_weights()
    frequencies = (cosines @ luminance @ cosines.T * weights).reshape(len(pixels), _FREQUENCIES**2)
    length = np.maximum(np.linalg.norm(frequencies, axis=1, keepdims=True), 1e-6)
    descriptors = np.zeros(len(pixels), DESCRIPTOR)
    descriptors["signs"] = (frequencies > 0) @ _BITS
    descriptors["frequencies"] = np.clip(np.rint(frequencies / length * 254), -127, 127)
    descriptors["color"] = np.rint(pixels.mean((1, 2)))
    descriptors["contrast"] = luminance.std((1, 2))
    return descriptors


def _cosine_basis() -> Floats:
    """Return the lowest basis functions of the cosine transform, float32 [8, 64]."""
    angles = (np.arange(THUMBNAIL_SIDE) + 0.5) * np.pi / THUMBNAIL_SIDE
    return np.cos(np.arange(_FREQUENCIES)[:, None] * angles).astype(np.float32)


def _frequency_weights() -> Floats:
    """Return the weight of each frequency, float32 [8, 8]: amplitudes of photographs fall as 1/f.

    Brightness itself has none.
    """
    return np.hypot(*np.indices((_FREQUENCIES, _FREQUENCIES))).astype(np.float32)


def _mirror_signs() -> Integers:
    """Return the factor of each frequency under mirroring, int8 [64]."""
    return np.tile(np.where(np.arange(_FREQUENCIES) % 2, -1, 1), _FREQUENCIES).astype(np.int8)


def group_duplicates(descriptors: Array, pixel_hashes: Integers) -> Integers:
    """Return the group of each image, int64 [n]: the index of its first member, or its own.

    Args:
        descriptors: DESCRIPTOR [n], of the images.
        pixel_hashes: uint64 [n], of each image's pixels; equal ones are in one group.
    """
    leaders = np.arange(len(pixel_hashes))
    _, first, inverse = np.unique(pixel_hashes, return_index=True, return_inverse=True)
    for left, right in itertools.chain(
        [(first[inverse], leaders.copy())], find_near_pairs(descriptors)
    ):
        for one, other in zip(left.tolist(), right.tolist(), strict=True):
            if one != other:
                _join_groups(leaders, one, other)
    return np.asarray([_find_leader(leaders, index) for index in range(len(leaders))], np.int64)


def join_named_groups(groups: Integers, names: Sequence[str]) -> Integers:
    """Return groups of duplicates in which all images of a name are in one group, too.

    Args:
        groups: of `group_duplicates`, int64 [n].
        names: [n], empty for images that have none.
    """
    leaders, firsts = groups.copy(), dict[str, int]()
    for index, name in enumerate(names):
        if name and (first := firsts.setdefault(name, index)) != index:
            _join_groups(leaders, first, index)
    return np.asarray([_find_leader(leaders, index) for index in range(len(leaders))], np.int64)


def _find_leader(leaders: Integers, index: int) -> int:
    while leaders[index] != index:
        leaders[index] = leaders[leaders[index]]
        index = int(leaders[index])
    return index


def _join_groups(leaders: Integers, one: int, other: int) -> None:
    first, second = sorted((_find_leader(leaders, one), _find_leader(leaders, other)))
    leaders[second] = first


def find_near_pairs(descriptors: Array) -> Iterator[tuple[Integers, Integers]]:
    """Yield the indices of pairs that look the same, also mirrored, as two arrays.

    The work grows with the number of images, not with its square.
    """
    seen = np.flatnonzero(descriptors["contrast"] >= MIN_CONTRAST)
    mirrored_signs = descriptors["signs"][seen] ^ _mirrored_bits()
    # Positions from len(seen) on are the mirrored images.
    signs = np.concatenate([descriptors["signs"][seen], mirrored_signs])
    for band in _draw_bands():
        keys = _gather_bits(signs, band)
        order = np.lexsort((signs, keys))  # among equal bands, the most alike are neighbors
        ordered = keys[order]
        for distance in range(1, _MAX_NEIGHBORS + 1):
            same = np.flatnonzero(ordered[distance:] == ordered[:-distance])
            if len(same) == 0:
                break
            left, right = order[same], order[same + distance]
            # Both mirrored is the same pair as neither.
            apart = (np.minimum(left, right) < len(seen)) & (left % len(seen) != right % len(seen))
            close = apart & (np.bitwise_count(signs[left] ^ signs[right]) <= MAX_SIGNS_APART)
            yield from _verify_pairs(descriptors, seen, left[close], right[close])


def _verify_pairs(
    descriptors: Array, seen: Integers, left: Integers, right: Integers
) -> Iterator[tuple[Integers, Integers]]:
    """Yield the pairs whose frequencies correlate and whose colors are alike.

    Positions from len(seen) on are mirrored.
    """
    for start in range(0, len(left), _CHUNK):
        first, second = left[start : start + _CHUNK], right[start : start + _CHUNK]
        mirrored = (first >= len(seen)) != (second >= len(seen))
        first, second = seen[first % len(seen)], seen[second % len(seen)]
        one, other = (
            descriptors["frequencies"][first].astype(np.float32),
            descriptors["frequencies"][second].astype(np.float32),
        )
        other = np.where(mirrored[:, None], other * _mirror_signs(), other)
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        alike = (one * other).sum(1) >= MIN_CORRELATION * np.maximum(lengths, 1e-6)
        color, contrast = descriptors["color"], descriptors["contrast"]
        colors_apart = np.abs(color[first].astype(np.int16) - color[second]).max(1)
        contrast_apart = np.abs(np.log(contrast[first] / contrast[second]))
        same_tone = (colors_apart <= MAX_COLOR_APART) & (contrast_apart <= np.log(1.6))
        near = alike & same_tone
        yield first[near], second[near]


def _mirrored_bits() -> np.uint64:
    """Return uint64 with a bit at each frequency whose sign mirroring changes."""
    return np.uint64((_mirror_signs() < 0) @ _BITS)


def _draw_bands() -> list[Integers]:
    """Return the indices of the signs of each band.

    Drawn from the 40 lowest frequencies, whose signs noise changes least.
    """
    lowest = np.argsort(_frequency_weights().reshape(-1), kind="stable")[1:41]
    rng = np.random.default_rng(0)
    return [rng.choice(lowest, _BAND_BITS, replace=False) for _ in range(_BANDS)]


def _gather_bits(signs: Integers, bits: Integers) -> Integers:
    """Return the chosen bits of each image as one number, uint32 [n]."""
    keys = np.zeros(len(signs), np.uint32)
    for position, bit in enumerate(bits.tolist()):
        keys |= ((signs >> np.uint64(bit)) & np.uint64(1)).astype(np.uint32) << np.uint32(position)
    return keys


def choose_excluded_duplicates(groups: Integers, splits: Integers, fixed: Booleans) -> Booleans:
    """Return the images to exclude so that no group is in two splits, bool [n].

    No image changes its split. Kept are the members in one split: of splits that the source names,
    the test before the validation; else the split that holds most of the group, the training split
    if it is a draw.

    Args:
        groups: int [n], each image's group.
        splits: int [n], 0 for training, 1 for validation, 2 for test.
        fixed: bool [n], whether the source names the image for validation or test.
    """
    excluded = np.zeros(len(groups), np.bool_)
    for indices in _find_repeated(groups):
        own = splits[indices]
        named = own[fixed[indices]]
        kept = named.max() if len(named) else np.bincount(own).argmax()
        excluded[indices] = own != kept
    return excluded


def find_label_conflicts(pixel_hashes: Integers, labels: Sequence[str]) -> list[list[int]]:
    """Return the indices of equal images that have different labels, a list for each image.

    Args:
        pixel_hashes: uint64 [n], of each image's pixels.
        labels: [n].
    """
    return [
        indices
        for indices in _find_repeated(pixel_hashes)
        if len({labels[index] for index in indices}) > 1
    ]


def _find_repeated(values: Integers) -> Iterable[list[int]]:
    """Return the indices of each value that is there more than once."""
    members: dict[int, list[int]] = defaultdict(list)
    _, inverse, sizes = np.unique(values, return_inverse=True, return_counts=True)
    for index in np.flatnonzero(sizes[inverse] > 1).tolist():
        members[int(inverse[index])].append(index)
    return members.values()
