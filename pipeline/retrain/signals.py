"""The signals: what the triggers read when a scheduled run comes.

    changes       contents that came, went or have another label since the champion's data
    drift         new contents compared with images that the champion was not trained on (drift.py)
    new_errors    the champion's on images that were labeled since, and that it was not trained on
    test_errors   the champion's on its own test images, as counted at its release
    age           since the champion was released

`measurement.py` measures them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.retrain.drift import Drift

if TYPE_CHECKING:
    from pipeline.arrays import Integers, Labels


@dataclass(frozen=True)
class ImageIndex:
    """The images of all splits: files' SHA-256, S32 [images], and labels, int [images]."""

    sha256: NDArray[np.bytes_]
    labels: Labels


@dataclass(frozen=True)
class DatasetChanges:
    """The differences from the champion's data: images of each class, by content.

    Files of equal content and label count once.

    Attributes:
        before: of the champion's data.
        new: of a new content.
        removed: whose content is gone, or lost this label and got no other.
        relabeled: of an earlier content that now has this label, and had not before.
    """

    before: tuple[int, ...]
    new: tuple[int, ...]
    removed: tuple[int, ...]
    relabeled: tuple[int, ...]

    @property
    def images(self) -> int:
        """The number of different images; a replaced one is new and removed, and counts once."""
        return max(sum(self.new), sum(self.removed)) + sum(self.relabeled)

    @property
    def fraction(self) -> float:
        """The different images as a fraction of the champion's, at least 0."""
        return self.images / max(sum(self.before), 1)

    @property
    def of_unknown_classes(self) -> int:
        """The number of new images of classes without an image in the champion's data."""
        return sum(new for new, before in zip(self.new, self.before, strict=True) if not before)


@dataclass(frozen=True)
class ErrorCount:
    """Misclassified images of the champion; an image of a class that it does not know is one."""

    wrong: int
    images: int

    @property
    def error(self) -> float:
        """Top-1 error, in [0, 1]."""
        return self.wrong / self.images


@dataclass(frozen=True)
class Signals:
    """What the triggers read; None where it is unknown.

    Attributes:
        has_champion: whether there is a model to keep.
        changes: since the champion's data.
        drift: of new images.
        new_errors: the champion's, on images labeled since that it was not trained on.
        test_errors: the champion's, on its test images.
        champion_age_days: since the champion was trained.
    """

    has_champion: bool
    changes: DatasetChanges | None = None
    drift: Drift | None = None
    new_errors: ErrorCount | None = None
    test_errors: ErrorCount | None = None
    champion_age_days: float | None = None


def compare_datasets(old: ImageIndex, new: ImageIndex, classes: int) -> DatasetChanges:
    """Compare two datasets by the contents of their images; a million images take some seconds.

    Args:
        old: the champion's data.
        new: the data as they are now.
        classes: the number of classes in both; labels are in [0, classes), the same in both.
    """
    contents = np.concatenate([np.asarray(index.sha256, "S32") for index in (old, new)])
    _, content = np.unique(contents, return_inverse=True)
    pairs = content * classes + np.concatenate(
        [np.asarray(index.labels, np.int64) for index in (old, new)]
    )
    before, now = np.unique(pairs[: len(old.labels)]), np.unique(pairs[len(old.labels) :])
    gone, come = (
        np.setdiff1d(before, now, assume_unique=True),
        np.setdiff1d(now, before, assume_unique=True),
    )
    known = np.isin(come // classes, before // classes)
    replaced = np.isin(gone // classes, come[known] // classes)  # by another label

    def count_by_class(some: Integers) -> tuple[int, ...]:
        return tuple(np.bincount(some % classes, minlength=classes).tolist())

    return DatasetChanges(
        count_by_class(before),
        count_by_class(come[~known]),
        count_by_class(gone[~replaced]),
        count_by_class(come[known]),
    )
