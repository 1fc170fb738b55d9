"""Assign images to splits by their content, so that new files never change existing assignments."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pipeline.config.data import DataConfig
from pipeline.data.checked import SPLITS, CheckedFile
from pipeline.data.duplicates import (
    DESCRIPTOR,
    choose_excluded_duplicates,
    find_label_conflicts,
    group_duplicates,
    join_named_groups,
)

if TYPE_CHECKING:
    from pipeline.arrays import Integers


@dataclass(frozen=True)
class DuplicateReport:
    """What was found of images that are there more than once, exactly or nearly.

    `groups` holds the indices of each group's images among the usable ones, `in_several_splits`
    counts the groups that were in several splits, and `conflicts` holds the indices of equal images
    under different labels. `together`, int64 [images], is the same number for images that are
    duplicates or of one group of the source; empty where nothing was looked for.
    """

    groups: Sequence[Sequence[int]] = ()
    in_several_splits: int = 0
    conflicts: Sequence[Sequence[int]] = ()
    together: Integers = field(default_factory=lambda: np.zeros(0, np.int64))


def assign_splits(
    usable: Sequence[CheckedFile], config: DataConfig
) -> tuple[list[str], DuplicateReport]:
    """Return the split of each usable image, empty for an excluded duplicate, and the duplicates.

    Args:
        usable: the images, in listed order.
        config: the fractions, and whether duplicates are excluded.
    """
    named = frozenset(item.file.split for item in usable)
    splits = [_assign_file(item, named, config) for item in usable]
    pixel_hashes = np.asarray([item.facts.pixel_hash for item in usable], np.uint64)
    descriptors = np.frombuffer(b"".join(item.facts.descriptor for item in usable), DESCRIPTOR)
    groups = group_duplicates(descriptors, pixel_hashes)
    fixed = np.asarray([item.file.split not in ("", "train") for item in usable])
    split_numbers = np.asarray([SPLITS.index(split) for split in splits])
    excluded = choose_excluded_duplicates(groups, split_numbers, fixed)
    report = DuplicateReport(
        groups=list(_collect_groups(groups.tolist())),
        in_several_splits=len(np.unique(groups[excluded])),
        conflicts=find_label_conflicts(pixel_hashes, [item.file.label for item in usable]),
        together=join_named_groups(groups, [item.file.group for item in usable]),
    )
    if config.duplicates == "exclude":
        splits = ["" if out else split for split, out in zip(splits, excluded, strict=True)]
    return splits, report


def _assign_file(item: CheckedFile, named: frozenset[str], config: DataConfig) -> str:
    """Return an image's split; images of one group have the split of the group's name."""
    group = item.file.group
    content = (
        hashlib.sha256(group.encode("utf-8", "surrogateescape")).digest()
        if group
        else item.facts.sha256
    )
    return assign_split(content, item.file.split, named, config)


def _collect_groups(groups: Iterable[int]) -> Iterator[list[int]]:
    """Yield the indices of the members of each group of more than one."""
    members: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    return (indices for indices in members.values() if len(indices) > 1)


def assign_split(
    content: bytes, named_split: str, named: frozenset[str], config: DataConfig
) -> str:
    """Return the split of an image, by its content and the splits that the source names.

    Other files can come and go without moving it, and duplicates of one image stay together.

    Args:
        content: SHA-256 of the image's bytes, or of its group's name.
        named_split: the split that the source names for it, or empty.
        named: the splits that the source names anywhere; only missing ones are cut from the
            training images.
        config: the fractions.
    """
    if named_split not in ("", "train"):
        return named_split
    # Separate bits, so that the fraction of the test does not change the validation.
    if "test" not in named and _to_fraction(content[:8]) < config.test_fraction:
        return "test"
    if "validation" not in named and _to_fraction(content[8:16]) < config.validation_fraction:
        return "validation"
    return "train"


def _to_fraction(content: bytes) -> float:
    """Return 8 bytes as a number in [0, 1)."""
    return (int.from_bytes(content, "big") >> 11) / 2**53
