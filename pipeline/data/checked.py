"""The records that listing, audit, splits and shards share."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.data.names import to_printable

SPLITS = ("train", "validation", "test")

# Called with the units done, the units in all, and what is being done.
IngestProgress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image file that was found; some 150 bytes, so that a million fit.

    `name` is the path below `root`. `split` is `train`, `validation`, `test`, or empty where the
    source names none; `group` is the manifest's name for images that must stay in one split, or
    empty.
    """

    root: str
    name: str
    label: str
    split: str
    group: str = ""

    @property
    def path(self) -> str:
        """The path of the file; bytes outside UTF-8 are kept as Python's surrogates."""
        # A million Path objects take longer than the walk.
        return os.path.join(self.root, self.name)  # noqa: PTH118

    @property
    def key(self) -> str:
        """The name as printable text."""
        return to_printable(self.name)


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What the audit found in a file's bytes.

    `sha256` is that of the bytes; `pixel_hash` a 64-bit hash of the decoded image and its shape.
    `height` and `width` are those of the upright image in pixels, `orientation` is EXIF's, 1-8.
    `problem` says why the file cannot be used, or is empty. `descriptor` holds the bytes of one
    `duplicates.DESCRIPTOR`.
    """

    sha256: bytes = b""
    pixel_hash: int = 0
    height: int = 0
    width: int = 0
    orientation: int = 1
    problem: str = ""
    descriptor: bytes = b""


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """An image file with the facts that the audit found."""

    file: ImageFile
    facts: ImageFacts

    @property
    def problem(self) -> str:
        """Why the file cannot be used, or an empty text."""
        return self.facts.problem
