"""Assign images to splits by their content, so that other files move none of them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.config.data import DataConfig
from pipeline.data.checked import SPLITS, CheckedFile
from pipeline.data.duplicates import (
    DESCRIPTOR,
    choose_excluded_duplicates,
    find_label_conflicts,
    group_duplicates,
)


@dataclass(frozen=True)
class DuplicateReport:
    """What was found of images that are there more than once, exactly or nearly.

    `groups` holds the places of each group's images among the usable ones, `straddling` says how
    many groups were in several splits, and `conflicts` holds the places of equal images under
    different labels.
    """

    groups: Sequence[Sequence[int]] = ()
    straddling: int = 0
    conflicts: Sequence[Sequence[int]] = ()


def assign_splits(
    good: Sequence[CheckedFile], config: DataConfig
) -> tuple[list[str], DuplicateReport]:
    """Return the split of each usable image, empty for a copy that is set aside, and what was found of copies.

    Args:
        good: the images, in listed order.
        config: fractions, and what becomes of copies.
    """
    present = frozenset(item.entry.split for item in good)
    placed = [_placed(item, present, config) for item in good]
    pixels = np.asarray([item.facts.pixels for item in good], np.uint64)
    found = group_duplicates(
        np.frombuffer(b"".join(item.facts.look for item in good), DESCRIPTOR), pixels
    )
    given = np.asarray([item.entry.split not in ("", "train") for item in good])
    aside = choose_excluded_duplicates(
        found, np.asarray([SPLITS.index(split) for split in placed]), given
    )
    copies = DuplicateReport(
        groups=list(_members(found)),
        straddling=len(np.unique(found[aside])),
        conflicts=find_label_conflicts(pixels, [item.entry.label for item in good]),
    )
    if config.duplicates == "exclude":
        placed = ["" if left else split for split, left in zip(placed, aside, strict=True)]
    return placed, copies


def _placed(item: CheckedFile, present: frozenset[str], config: DataConfig) -> str:
    """Return an image's split; those of one group share that of the group's name."""
    group = item.entry.group
    content = (
        hashlib.sha256(group.encode("utf-8", "surrogateescape")).digest()
        if group
        else item.facts.sha256
    )
    return assign_split(content, item.entry.split, present, config)


def _members(found: Iterable[int]) -> Iterator[list[int]]:
    """Yield the members of each group of more than one."""
    members: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(found):
        members[int(group)].append(index)
    return (indices for indices in members.values() if len(indices) > 1)


def assign_split(content: bytes, given: str, present: frozenset[str], config: DataConfig) -> str:
    """Return the split of an image.

    Nothing but its content and the splits that the source names decide.

    Other files can come and go without moving it, and copies of one image stay together.

    Args:
        content: SHA-256 of the image's bytes, or of its group's name.
        given: the split that the source names, or empty.
        present: the splits that the source names anywhere; only missing ones are cut from the
            training images.
        config: the fractions.
    """
    if given not in ("", "train"):
        return given
    # Separate bits, so that the share for the test does not change who is in the validation.
    if "test" not in present and _fraction(content[:8]) < config.test_fraction:
        return "test"
    if "validation" not in present and _fraction(content[8:16]) < config.validation_fraction:
        return "validation"
    return "train"


def _fraction(content: bytes) -> float:
    """Return 8 bytes as a number in [0, 1)."""
    return (int.from_bytes(content, "big") >> 11) / 2**53
