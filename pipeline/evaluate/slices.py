"""Slices: the error among images that have something in common, such as a folder or darkness."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from pipeline.evaluate.intervals import compute_wilson_interval

if TYPE_CHECKING:
    from pipeline.arrays import Booleans, Floats, Integers

    # A value for each image: names, or numbers that are cut at their quartiles.
    AttributeValues: TypeAlias = Sequence[str] | Floats

_QUARTERS = 4  # a number is cut at its quartiles
_MIN_NUMBERS = 10  # a column with fewer different numbers is taken as names, such as 0 and 1
_MAX_NUMBER = 1e300  # the mean of two larger numbers may be infinite
_MIN_IMAGES = 5  # on average in a slice; names that differ from image to image show nothing


@dataclass(frozen=True)
class ErrorSlice:
    """Images that have one value of an attribute.

    Their number, the fraction answered wrong with its 95 % interval, and that of all others.
    """

    attribute: str
    value: str
    images: int
    top1_error: float
    interval: tuple[float, float]
    others_top1_error: float


def find_slices(wrong: Booleans, attributes: Mapping[str, AttributeValues]) -> list[ErrorSlice]:
    """Return the slices of every attribute, the worst first.

    They are ordered by the lower end of the interval, so that a few unlucky images do not come
    first.

    Args:
        wrong: bool [images], whose first guess is wrong.
        attributes: a value for each image by name: text, or an array of numbers, which are cut at
            their quartiles. An attribute with one value, or with nearly as many values as images,
            is left out.
    """
    found = [
        item
        for name, values in attributes.items()
        for item in _slice_by_attribute(name, values, np.asarray(wrong))
    ]
    return sorted(
        found,
        key=lambda item: (
            -item.interval[0],
            -item.top1_error,
            -item.images,
            item.attribute,
            item.value,
        ),
    )


def _slice_by_attribute(
    name: str, values: AttributeValues, wrong: Booleans
) -> Iterable[ErrorSlice]:
    names, indices = _name_values(values)
    images = np.bincount(indices, minlength=len(names))
    errors = np.bincount(indices, weights=wrong, minlength=len(names)).astype(int)
    if np.count_nonzero(images) < 2 or len(wrong) < _MIN_IMAGES * len(names):
        return
    for value, count, bad in zip(names, images.tolist(), errors.tolist(), strict=True):
        if count:
            others = (int(errors.sum()) - bad) / max(1, len(wrong) - count)
            interval = compute_wilson_interval(bad, count)
            yield ErrorSlice(name, value, count, bad / count, interval, others)


def _name_values(values: AttributeValues) -> tuple[list[str], Integers]:
    """Return the names of the values, and the index of each image's name, int [images]."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "iuf":
        finite = values[np.isfinite(values)]
        edges = np.unique(np.quantile(finite, np.arange(1, _QUARTERS) / _QUARTERS))
        indices = np.where(
            np.isfinite(values), np.searchsorted(edges, values, side="left"), len(edges) + 1
        )
        quarters = [values[indices == quarter] for quarter in range(len(edges) + 1)]
        return [*_name_ranges(quarters), "(empty)"], indices
    names, indices = np.unique(np.asarray(values, dtype=object), return_inverse=True)
    return [str(name) or "(empty)" for name in names], indices


def _name_ranges(quarters: Sequence[Floats]) -> list[str]:
    """Return the names of some ranges, with as many digits as tell them apart."""
    for digits in (4, 7, 17):
        names = [
            f"{part.min():.{digits}g} to {part.max():.{digits}g}" if len(part) else "none"
            for part in quarters
        ]
        if len(set(names)) == len(names):
            break
    return names


def parse_number_column(texts: Sequence[str]) -> AttributeValues:
    """Return a column of text as numbers, if it holds finite ones of which many differ.

    They are float64 [images], NaN where the text is empty. Any other column is returned as it is.
    """
    try:
        numbers = np.asarray([text or "nan" for text in texts], np.float64)
    except ValueError:
        return texts
    finite = numbers[np.isfinite(numbers)]
    all_finite = len(finite) == sum(bool(text) for text in texts)
    return (
        numbers
        if all_finite
        and len(np.unique(finite)) >= _MIN_NUMBERS
        and np.abs(finite).max() < _MAX_NUMBER
        else texts
    )


def list_parent_folders(keys: Sequence[str]) -> list[str]:
    """Return the folder in the name of each image; `.` for a name without one."""
    return [str(PurePosixPath(key).parent) for key in keys]
