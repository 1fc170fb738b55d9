"""The records that listing, audit, splits and shards share."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.data.names import to_printable

SPLITS = ("train", "validation", "test")

# Called with what is done, what there is in all, and what is going on.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image file that was found; some 150 bytes, so that a million fit.

    `name` is the path below `root`. `split` is `train`, `validation`, `test`, or empty where the
    source names none; `group` is what a manifest says must stay in one split, or empty.
    """

    root: str
    name: str
    label: str
    split: str
    group: str = ""

    @property
    def path(self) -> str:
        """Where the file is; bytes that are no UTF-8 are kept as Python's surrogates."""
        return os.path.join(self.root, self.name)  # noqa: PTH118 - a million Path objects take longer than the walk

    @property
    def key(self) -> str:
        """The name as printable text."""
        return to_printable(self.name)


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What one look at a file's bytes says.

    `sha256` is that of the bytes; `pixels` a 64-bit fingerprint of the decoded image and its shape.
    `height` and `width` are those of the upright image, `orientation` is EXIF's. `problem` says why
    the file cannot be used, or nothing. `look` is a `duplicates.DESCRIPTOR` as bytes.
    """

    sha256: bytes = b""
    pixels: int = 0
    height: int = 0
    width: int = 0
    orientation: int = 1
    problem: str = ""
    look: bytes = b""


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """One file and what was found."""

    entry: ImageFile
    facts: ImageFacts

    @property
    def problem(self) -> str:
        """Why the file cannot be used, or nothing."""
        return self.facts.problem
