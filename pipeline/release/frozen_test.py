"""The images that a candidate and the champion are judged by.

Those of the test split that the champion was released by.

A test that follows the data can be passed by changing the data: wrong labels that came with new
images are in the test split as well, and a model that has learned them does well there. So the
champion's test images stay, with the labels that they had, also those that are gone from the data.
What is added is a rule and nobody's choice: images of classes of which the champion's test split
has none. Once a candidate is promoted, its own test split, with whatever was new in it, is what the
next one is judged by.

An image of the champion's test that the candidate may have been trained on, because somebody moved
it there, is left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pyarrow import parquet

from pipeline.artifacts import DatasetArtifact

if TYPE_CHECKING:
    from pipeline.arrays import Integers


@dataclass(frozen=True)
class Exam:
    """Which images count, and with which labels, in the candidate's class numbers.

    Attributes:
        own: int64 [own], places in the candidate's test split.
        own_labels: int64 [own].
        gone: int64 [gone], places in the champion's test split of images that the candidate's has
            not.
        gone_labels: int64 [gone].
        earlier: the champion's dataset. None: the candidate's own test split is what counts, whole.
        text: what was chosen, for people.
    """

    own: Integers
    own_labels: Integers
    gone: Integers
    gone_labels: Integers
    earlier: DatasetArtifact | None = None
    text: str = ""

    @property
    def labels(self) -> Integers:
        """The right classes, int64 [own + gone]."""
        return np.concatenate([self.own_labels, self.gone_labels])


def own_exam(labels: Integers, text: str = "") -> Exam:
    """Return the whole test split of a candidate, int64 [images] labels."""
    nothing = np.zeros(0, np.int64)
    return Exam(np.arange(len(labels)), labels, nothing, nothing, text=text)


def frozen_exam(
    dataset: DatasetArtifact, earlier: DatasetArtifact, renamed: Mapping[str, str] | None = None
) -> Exam:
    """Return the images that count for a candidate of one dataset, where the champion was released by the test split of another.

    Args:
        dataset: the candidate's.
        earlier: the champion's.
        renamed: old name -> new name of classes.
    """
    contents, labels = read_index(earlier, "test")
    classes = places_of(earlier.class_names, dataset.class_names, renamed or {})
    own_contents, own_labels = read_index(dataset, "test")
    trained = np.concatenate([read_index(dataset, split)[0] for split in ("train", "validation")])
    counts = (classes[labels] >= 0) & ~np.isin(contents, trained)
    contents, frozen = contents[counts], classes[labels[counts]]
    distinct, first = np.unique(own_contents, return_index=True)
    there = np.isin(contents, distinct)
    kept = first[np.searchsorted(distinct, contents[there])]
    added = np.flatnonzero(~np.isin(own_labels, classes[np.unique(labels)]))
    relabeled = int(np.sum(own_labels[kept] != frozen[there]))
    return Exam(
        own=np.concatenate([kept, added]),
        own_labels=np.concatenate([frozen[there], own_labels[added]]),
        gone=np.flatnonzero(counts)[~there],
        gone_labels=frozen[~there],
        earlier=earlier,
        text=_text(
            frozen=len(frozen),
            gone=int(np.sum(~there)),
            relabeled=relabeled,
            left_out=int(np.sum(~counts)),
            added=len(added),
            waiting=len(np.setdiff1d(np.arange(len(own_labels)), [*kept, *added])),
        ),
    )


def _text(
    *, frozen: int, gone: int, relabeled: int, left_out: int, added: int, waiting: int
) -> str:
    """Say which images count."""
    parts = [
        f"What counts is the champion's test split: {frozen:,} images with the labels that they had"
    ]
    details = [f"{gone:,} of them are gone from the data since"] if gone else []
    details += [f"{relabeled:,} are labeled otherwise now"] if relabeled else []
    parts += [f" ({', '.join(details)})"] if details else []
    parts += [f", and {added:,} of classes that it had none of"] if added else []
    parts += (
        [
            f". {left_out:,} of its images are left out: they are in the training now, or their"
            " class is gone"
        ]
        if left_out
        else []
    )
    parts += (
        [
            f". {waiting:,} new test images do not count before a candidate made with them is"
            " promoted"
        ]
        if waiting
        else []
    )
    return "".join(parts) + "."


def places_of(names: Sequence[str], among: Sequence[str], renamed: Mapping[str, str]) -> Integers:
    """Return the places of class names among others, int64 [names], -1 for one that is not there."""
    now = [renamed.get(name, name) for name in names]
    return np.asarray([among.index(name) if name in among else -1 for name in now], np.int64)


def dataset_of(digest: str, workdir: Path) -> DatasetArtifact | None:
    """Return the prepared dataset with this digest in a work directory, the newest of several, or None where it is not, or not whole."""
    finished = (
        folder for folder in workdir.glob("stages/ingest-*") if not folder.suffix
    )  # .partial, .old
    for folder in (
        sorted(finished, key=lambda folder: folder.stat().st_mtime, reverse=True) if digest else ()
    ):
        with contextlib.suppress(OSError, ValueError):
            dataset = DatasetArtifact.read(folder)
            if dataset.digest == digest and all(path.exists() for path in dataset.promised_files()):
                return dataset
    return None


def read_index(dataset: DatasetArtifact, split: str) -> tuple[NDArray[np.bytes_], Integers]:
    """Return the contents' SHA-256, S32 [images], and class numbers, int64 [images], of a split in stored order."""
    table = parquet.read_table(
        dataset.directory / "index" / f"{split}.parquet", columns=["label", "sha256"]
    )
    contents = (
        np.frombuffer(b"".join(table["sha256"].to_pylist()), "S32")
        if len(table)
        else np.zeros(0, "S32")
    )
    return contents, table["label"].to_numpy().astype(np.int64)
