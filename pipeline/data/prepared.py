"""The record of a dataset in shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class PreparedDataset:
    """A dataset in shards, not measured yet.

    `found` = images in the shards + quarantined + aside (copies left out because another split has
    their group) + the sum of excluded. `copies` names the images of each group of equal or nearly
    equal ones, `conflicts` equal ones under different labels; `thumbnails` are uint8 [64, 64, 3],
    of the first two of some groups.
    """

    name: str
    builder_directory: Path
    class_names: tuple[str, ...]
    reads: Mapping[str, str]
    image_key: str
    label_key: str
    found: int | None = None
    quarantined: Sequence[tuple[str, str]] = ()
    excluded: Mapping[str, int] = field(default_factory=dict)
    empty_folders: int = 0
    how_split: str = ""
    excluded_duplicates: Sequence[str] = ()
    duplicate_groups: Sequence[tuple[str, ...]] = ()
    groups_in_several_splits: int = 0
    label_conflicts: Sequence[tuple[str, ...]] = ()
    duplicate_thumbnails: Sequence[Sequence[Any]] = ()
