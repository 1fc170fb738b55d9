"""The record of the image files that a source names, and of the files that are left out."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.checked import ImageFile
from pipeline.data.names import to_printable
from pipeline.errors import DatasetError

# Accepted names of splits, in folders and in manifests.
SPLIT_NAMES = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class FileListing:
    """The image files below a folder or in a manifest, and the files that are left out.

    `excluded` counts the files that are left out for each reason, `examples` names the first few of
    each reason, and `empty_classes` names the class folders without an image.
    """

    files: tuple[ImageFile, ...]
    excluded: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, Sequence[str]] = field(default_factory=dict)
    empty_classes: tuple[str, ...] = ()

    @property
    def found(self) -> int:
        """The number of files that were found; a hidden folder counts as one."""
        return len(self.files) + sum(self.excluded.values())


def require_distinct_classes(source: Path, names: Iterable[str]) -> None:
    """Raise a DatasetError for `Cat` beside `cat`.

    That is nearly always one class by mistake, and one folder on another system.
    """
    alike: dict[str, list[str]] = {}
    for name in sorted(names):
        normal = unicodedata.normalize("NFC", to_printable(name).strip().casefold())
        alike.setdefault(normal, []).append(name)
    clashing = [several for several in alike.values() if len(several) > 1]
    if clashing:
        shown = ", ".join(repr(to_printable(name)) for name in clashing[0])
        raise DatasetError(
            f"Classes of {to_printable(source)} differ only by case, blanks or the way an accent is"
            " written",
            expected="names that differ on every system",
            received=f"{shown:.200}",
            hint="Put their images together, or rename one, such as `A` to `A_upper`",
        )
