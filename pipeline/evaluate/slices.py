"""Where a network is worse: the error among images that have something in common, such as dark ones or those of one folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from pipeline.evaluate.metrics import wilson_interval

_PARTS = 4  # a number is cut at its quartiles
_MIN_NUMBERS = 10  # a column with fewer different numbers is taken as names, such as 0 and 1
_LARGEST = 1e300  # the mean of two larger numbers may be none
_MIN_IMAGES = 5  # on average in a slice; names that differ from image to image say nothing


@dataclass(frozen=True)
class Slice:
    """Images that have one value of an attribute.

    How many, the share answered wrong with its 95 % interval, and that of all others.
    """

    attribute: str
    value: str
    images: int
    top1_error: float
    interval: tuple[float, float]
    others: float

    @property
    def clearly_worse(self) -> bool:
        """Whether the whole interval lies above the error of the other images."""
        return self.interval[0] > self.others


def slices_of(wrong: Any, attributes: Mapping[str, Sequence[Any]]) -> list[Slice]:
    """Return the slices of every attribute, the worst first.

    By the lower end of the interval, so that no few come first by chance.

    Args:
        wrong: bool [images], whose first guess is wrong.
        attributes: for each name a value an image: text, or an array of numbers, which are cut at
            their quartiles. An attribute with one value, or with nearly as many values as images,
            is left out.
    """
    found = [
        item
        for name, values in attributes.items()
        for item in _slices(name, values, np.asarray(wrong))
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


def _slices(name: str, values: Sequence[Any], wrong: Any) -> Iterable[Slice]:
    words, place = _names_and_places(values)
    images = np.bincount(place, minlength=len(words))
    errors = np.bincount(place, weights=wrong, minlength=len(words)).astype(int)
    if np.count_nonzero(images) < 2 or len(wrong) < _MIN_IMAGES * len(words):
        return
    for word, count, bad in zip(words, images.tolist(), errors.tolist(), strict=True):
        if count:
            others = (int(errors.sum()) - bad) / max(1, len(wrong) - count)
            yield Slice(name, word, count, bad / count, wilson_interval(bad, count), others)


def _names_and_places(values: Sequence[Any]) -> tuple[list[str], Any]:
    """Return what the values are called, and int [images], which of them each image has."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "iuf":
        there = values[np.isfinite(values)]
        edges = np.unique(np.quantile(there, np.arange(1, _PARTS) / _PARTS))
        place = np.where(
            np.isfinite(values), np.searchsorted(edges, values, side="left"), len(edges) + 1
        )
        return [
            *_ranges([values[place == part] for part in range(len(edges) + 1)]),
            "(empty)",
        ], place
    words, place = np.unique(np.asarray(values, dtype=object), return_inverse=True)
    return [str(word) or "(empty)" for word in words], place


def _ranges(parts: Sequence[Any]) -> list[str]:
    """Return what each part of some numbers is called, with as many digits as tell them apart."""
    for digits in (4, 7, 17):
        words = [
            f"{part.min():.{digits}g} to {part.max():.{digits}g}" if len(part) else "none"
            for part in parts
        ]
        if len(set(words)) == len(words):
            break
    return words


def numbers_where_they_are(texts: Sequence[str]) -> Any:
    """Return a column of text as float64 [images], NaN where empty, if it holds finite numbers of which many differ; else as it is."""
    try:
        numbers = np.asarray([text or "nan" for text in texts], np.float64)
    except ValueError:
        return texts
    there = numbers[np.isfinite(numbers)]
    as_told = len(there) == sum(bool(text) for text in texts)
    return (
        numbers
        if as_told and len(np.unique(there)) >= _MIN_NUMBERS and np.abs(there).max() < _LARGEST
        else texts
    )


def folders_of(keys: Sequence[str]) -> list[str]:
    """Return the folder that each image's name says it is in; `.` where it says none."""
    return [str(PurePosixPath(key).parent) for key in keys]
