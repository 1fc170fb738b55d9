"""The images of a dataset to be opened: new, held out by the champion, newly labeled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import DatasetArtifact
from pipeline.config.retrain import RetrainConfig
from pipeline.release.frozen_test import read_index
from pipeline.retrain.drift import MIN_IMAGES, sample_images

if TYPE_CHECKING:
    from pipeline.arrays import Array, Integers

MAX_SCORED = 5000  # an error of 5 % is known to 0.6 points then, 19 times in 20


@dataclass(frozen=True)
class DatasetImages:
    """The images of a dataset, its splits one after the other.

    Attributes:
        dataset: whose.
        sizes: images in each split.
        sha256: of the files, S32 [images].
        labels: int64 [images], indices in `names`.
        names: of the classes of both datasets, the champion's first.
    """

    dataset: DatasetArtifact
    sizes: dict[str, int]
    sha256: NDArray[np.bytes_]
    labels: Integers
    names: tuple[str, ...]

    def iterate_splits(self, rows: Integers) -> Iterator[tuple[str, Integers]]:
        """Yield each split, and which of the given images are in it.

        Args:
            rows: int64 [rows], ascending.

        Yields:
            The split's name, and indices in its stored order, int64, ascending.
        """
        start = 0
        for split, size in self.sizes.items():
            yield split, rows[(rows >= start) & (rows < start + size)] - start
            start += size

    def training_contents(self) -> NDArray[np.bytes_]:
        """Return the SHA-256 of the training split's files, S32 [images]."""
        split = np.repeat(np.arange(len(self.sizes)), list(self.sizes.values()))
        return self.sha256[split == list(self.sizes).index("train")]


def read_images(dataset: DatasetArtifact, names: tuple[str, ...]) -> DatasetImages:
    """Read a dataset's index; labels become indices in `names`."""
    contents, labels = zip(*(read_index(dataset, split) for split in dataset.reads), strict=True)
    numbers = map_class_names(dataset.class_names, names)
    sizes = {split: len(own) for split, own in zip(dataset.reads, labels, strict=True)}
    return DatasetImages(
        dataset, sizes, np.concatenate(contents), numbers[np.concatenate(labels)], names
    )


def map_class_names(own: tuple[str, ...], names: tuple[str, ...]) -> Integers:
    """Return the index in `names` of each class name, int64; -1 for one that is missing."""
    indices = {name: index for index, name in enumerate(names)}
    return np.asarray([indices.get(name, -1) for name in own], np.int64)


def _find_new(old: DatasetImages, new: DatasetImages) -> Integers:
    """Return rows of new contents, each once, ascending."""
    rows = _find_first_of_each(new.sha256)
    return rows[~np.isin(new.sha256[rows], old.sha256)]


def _find_held_out(old: DatasetImages) -> Integers:
    """Return rows of contents that no network was trained on, each once, ascending."""
    rows = _find_first_of_each(old.sha256)
    return rows[~np.isin(old.sha256[rows], old.training_contents())]


def _find_newly_labeled(old: DatasetImages, new: DatasetImages) -> Integers:
    """Return rows of contents with a label that they had not before, ascending.

    Without those of the earlier training split; each content once a label.
    """
    _, content = np.unique(np.concatenate([old.sha256, new.sha256]), return_inverse=True)
    pairs = content * len(new.names) + np.concatenate([old.labels, new.labels])
    before, now = pairs[: len(old.labels)], pairs[len(old.labels) :]
    rows = _find_first_of_each(now)
    return rows[~np.isin(now[rows], before) & ~np.isin(new.sha256[rows], old.training_contents())]


def _find_first_of_each(values: Array) -> Integers:
    """Return the index of the first of equal values, int64, ascending."""
    return np.sort(np.unique(values, return_index=True)[1])


@dataclass(frozen=True)
class ImageSelection:
    """Images to be opened: `new` and `reference` for drift, `scored` for the champion's error.

    All are rows, int64, ascending; `reference` are rows of the champion's data.
    """

    new: Integers
    reference: Integers
    scored: Integers
    seed: int

    @property
    def opened(self) -> Integers:
        """The rows of the new data, each once."""
        return np.union1d(self.new, self.scored)


def select_images(
    old: DatasetImages, new: DatasetImages, config: RetrainConfig
) -> tuple[ImageSelection, tuple[str, ...]]:
    """Select the images that the triggers need; return them and notes on what is left out.

    Equal data give the same selection.
    """
    nothing, seed = np.zeros(0, np.int64), int(new.dataset.digest[:8], 16)
    selection, notes = ImageSelection(nothing, nothing, nothing, seed), list[str]()
    if "drift" in config.triggers:
        candidates, references = _find_new(old, new), _find_held_out(old)
        if chosen := sample_images(len(candidates), len(references), seed):
            selection = replace(
                selection, new=candidates[chosen[0]], reference=references[chosen[1]]
            )
        else:
            notes.append(
                f"Drift was not measured: {len(candidates):,} images are new, and"
                f" {len(references):,} can be compared with; it takes {MIN_IMAGES} and"
                f" {2 * MIN_IMAGES}."
            )
    if "degraded_champion" in config.triggers:
        rows, more = _select_scored(old, new, seed)
        selection, notes = replace(selection, scored=rows), [*notes, *more]
    return selection, tuple(notes)


def _select_scored(old: DatasetImages, new: DatasetImages, seed: int) -> tuple[Integers, list[str]]:
    """Return rows of newly labeled images of the champion's classes, at most 5,000, and notes."""
    rows, notes = _find_newly_labeled(old, new), list[str]()
    known = rows[new.labels[rows] < len(set(old.dataset.class_names))]
    if len(known) < len(rows):
        notes.append(
            f"The champion does not know the classes of {len(rows) - len(known):,} newly labeled"
            " images: they are not scored."
        )
    if not len(known):
        notes.append(
            "The champion was not scored: no image of its classes was labeled since that it was"
            " not trained on."
        )
    if len(known) > MAX_SCORED:
        notes.append(
            f"The champion was scored on {MAX_SCORED:,} of {len(known):,} newly labeled images,"
            " chosen at random."
        )
        known = np.sort(np.random.default_rng(seed).choice(known, MAX_SCORED, replace=False))
    return known, notes
