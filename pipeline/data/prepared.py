"""The record of a dataset in shards, before its images are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.arrays import Image


@dataclass(frozen=True)
class PreparedDataset:
    """A dataset in shards, not measured yet.

    `found` = images in the shards + quarantined + excluded_duplicates (another split holds a
    duplicate of these) + the sum of excluded. `duplicate_groups` names the images of each group of
    equal or nearly equal ones, `label_conflicts` equal ones under different labels;
    `duplicate_thumbnails` are uint8 [64, 64, 3], of the first two of some groups. `quarantined`
    holds (key, reason). `groups` numbers the images that belong together, as duplicates or by the
    source's groups: key -> group, of groups with several images in a split.
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
    duplicate_thumbnails: Sequence[Sequence[Image]] = ()
    groups: Mapping[str, int] = field(default_factory=dict)
