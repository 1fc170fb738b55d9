"""The frozen test set: the images that a candidate and the champion are judged on.

They are those of the test split that the champion was released by. A test that follows the data can
be passed by changing the data: wrong labels that came with new images are in the test split as
well, and a model that has learned them does well there. So the champion's test images stay, with
the labels that they had, also those that are no longer in the data. Images are added by a rule and
not by choice: those of classes of which the champion's test split has none. Once a candidate is
promoted, its own test split, with whatever was new in it, is what the next one is judged on.

An image of the champion's test split that the candidate may have been trained on, because it was
moved there, is left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pyarrow import parquet

from pipeline.artifacts import DatasetArtifact

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.arrays import Integers, Labels


@dataclass(frozen=True)
class FrozenTest:
    """The images that count, with their labels in the candidate's class numbers.

    Attributes:
        own: int64 [own], indices into the candidate's test split.
        own_labels: int64 [own].
        gone: int64 [gone], indices into the champion's test split, of the images that the
            candidate's does not have.
        gone_labels: int64 [gone].
        earlier: the champion's dataset. None: the candidate's whole test split is what counts.
        text: what was chosen, in a sentence.
    """

    own: Integers
    own_labels: Labels
    gone: Integers
    gone_labels: Labels
    earlier: DatasetArtifact | None = None
    text: str = ""

    @property
    def labels(self) -> Labels:
        """The right classes, int64 [own + gone]."""
        return np.concatenate([self.own_labels, self.gone_labels])


def use_current_test(labels: Labels, text: str = "") -> FrozenTest:
    """Return the whole test split of a candidate, int64 [images] labels."""
    nothing = np.zeros(0, np.int64)
    return FrozenTest(np.arange(len(labels)), labels, nothing, nothing, text=text)


def freeze_test(
    dataset: DatasetArtifact, earlier: DatasetArtifact, renamed: Mapping[str, str] | None = None
) -> FrozenTest:
    """Return the images that count for a candidate of a later dataset than the champion's.

    Args:
        dataset: the candidate's.
        earlier: the champion's.
        renamed: old name -> new name of classes.
    """
    contents, labels = read_index(earlier, "test")
    classes = map_class_indices(earlier.class_names, dataset.class_names, renamed or {})
    own_contents, own_labels = read_index(dataset, "test")
    trained = np.concatenate([read_index(dataset, split)[0] for split in ("train", "validation")])
    counts = (classes[labels] >= 0) & ~np.isin(contents, trained)
    contents, frozen = contents[counts], classes[labels[counts]]
    distinct, first = np.unique(own_contents, return_index=True)
    there = np.isin(contents, distinct)
    kept = first[np.searchsorted(distinct, contents[there])]
    added = np.flatnonzero(~np.isin(own_labels, classes[np.unique(labels)]))
    relabeled = int(np.sum(own_labels[kept] != frozen[there]))
    return FrozenTest(
        own=np.concatenate([kept, added]),
        own_labels=np.concatenate([frozen[there], own_labels[added]]),
        gone=np.flatnonzero(counts)[~there],
        gone_labels=frozen[~there],
        earlier=earlier,
        text=_describe_frozen_test(
            frozen=len(frozen),
            gone=int(np.sum(~there)),
            relabeled=relabeled,
            left_out=int(np.sum(~counts)),
            added=len(added),
            waiting=len(np.setdiff1d(np.arange(len(own_labels)), [*kept, *added])),
        ),
    )


def _describe_frozen_test(
    *, frozen: int, gone: int, relabeled: int, left_out: int, added: int, waiting: int
) -> str:
    """Return which images count, in sentences."""
    details = [f"{gone:,} of them are no longer in the data"] if gone else []
    details += [f"{relabeled:,} have another label now"] if relabeled else []
    sentence = (
        f"What counts is the champion's test split: {frozen:,} images with the labels that they had"
    )
    sentence += f" ({', '.join(details)})" if details else ""
    sentence += f", and {added:,} of classes that it had none of." if added else "."
    if left_out:
        sentence += (
            f" {left_out:,} of its images are left out: they are in the training split now, or"
            " their class does not exist any more."
        )
    if waiting:
        sentence += (
            f" {waiting:,} new test images do not count before a candidate made with them is"
            " promoted."
        )
    return sentence


def map_class_indices(
    names: Sequence[str], among: Sequence[str], renamed: Mapping[str, str]
) -> Integers:
    """Return the indices of class names among others, int64 [names]; -1 for one that is missing."""
    now = [renamed.get(name, name) for name in names]
    return np.asarray([among.index(name) if name in among else -1 for name in now], np.int64)


def find_dataset(digest: str, workdir: Path) -> DatasetArtifact | None:
    """Return the prepared dataset with a digest, the newest of several, or None.

    One whose files are not complete does not count.
    """
    # Not those that end in .partial or .old.
    finished = (folder for folder in workdir.glob("stages/ingest-*") if not folder.suffix)
    for folder in (
        sorted(finished, key=lambda folder: folder.stat().st_mtime, reverse=True) if digest else ()
    ):
        with contextlib.suppress(OSError, ValueError):
            dataset = DatasetArtifact.read(folder)
            if dataset.digest == digest and all(path.exists() for path in dataset.promised_files()):
                return dataset
    return None


def read_index(dataset: DatasetArtifact, split: str) -> tuple[NDArray[np.bytes_], Labels]:
    """Return the contents' SHA-256 and the class numbers of a split, in stored order.

    Returns:
        S32 [images] and int64 [images].
    """
    table = parquet.read_table(
        dataset.directory / "index" / f"{split}.parquet", columns=["label", "sha256"]
    )
    contents = (
        np.frombuffer(b"".join(table["sha256"].to_pylist()), "S32")
        if len(table)
        else np.zeros(0, "S32")
    )
    return contents, table["label"].to_numpy().astype(np.int64)
