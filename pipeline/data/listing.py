"""The image files that a source names, and those that are left out."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.checked import ImageFile
from pipeline.data.names import to_printable
from pipeline.errors import DatasetError

SPLIT_NAMES = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class FileListing:
    """Every file below a folder or named by a manifest.

    Images, and how many were left out for which reason.

    `examples` names the first few files of each reason, and `empty` the folders of classes without
    an image.
    """

    entries: tuple[ImageFile, ...]
    excluded: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, Sequence[str]] = field(default_factory=dict)
    empty: tuple[str, ...] = ()

    @property
    def found(self) -> int:
        """Return how many files were found; a hidden folder counts as one."""
        return len(self.entries) + sum(self.excluded.values())

    @property
    def empty_folders(self) -> int:
        """Return how many classes have a folder and no image."""
        return len(self.empty)


def require_distinct_classes(where: Path, names: Iterable[str]) -> None:
    """Refuse `Cat` beside `cat`: nearly always one class by mistake, and one folder on another system."""
    alike: dict[str, list[str]] = {}
    for name in sorted(names):
        alike.setdefault(
            unicodedata.normalize("NFC", to_printable(name).strip().casefold()), []
        ).append(name)
    clashing = [several for several in alike.values() if len(several) > 1]
    if clashing:
        shown = ", ".join(repr(to_printable(name)) for name in clashing[0])
        raise DatasetError(
            f"Classes of {to_printable(where)} differ only by case, blanks or the way an accent is"
            f" written. Expected names that differ on every system. Received {shown:.200}. Put"
            " their images together, or rename one, such as `A` to `A_upper`."
        )
