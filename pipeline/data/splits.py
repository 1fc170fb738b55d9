"""Who belongs to which split and to which class.

Decided by content, so that other files move nobody.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.data import DataConfig
from pipeline.data.listing import natural
from pipeline.errors import DatasetError

if TYPE_CHECKING:
    from pipeline.data.audit import Checked

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Copies:
    """What was found of images that are there more than once, exactly or nearly.

    `groups` holds the places of each group's images among the usable ones, `straddling` says how
    many groups were in several splits, and `conflicts` holds the places of equal images under
    different labels.
    """

    groups: Sequence[Sequence[int]] = ()
    straddling: int = 0
    conflicts: Sequence[Sequence[int]] = ()


def split_images(good: Sequence[Checked], config: DataConfig) -> tuple[list[str], Copies]:
    """Return the split of each usable image, empty for a copy that is set aside, and what was found of copies.

    Args:
        good: the images, in listed order.
        config: fractions, and what becomes of copies.
    """
    import numpy as np

    from pipeline.data.duplicates import LOOK, conflicts, groups, settle

    present = frozenset(item.entry.split for item in good)
    placed = [_placed(item, present, config) for item in good]
    pixels = np.asarray([item.facts.pixels for item in good], np.uint64)
    found = groups(np.frombuffer(b"".join(item.facts.look for item in good), LOOK), pixels)
    given = np.asarray([item.entry.split not in ("", "train") for item in good])
    aside = settle(found, np.asarray([SPLITS.index(split) for split in placed]), given)
    copies = Copies(
        groups=list(_members(found)),
        straddling=len(np.unique(found[aside])),
        conflicts=conflicts(pixels, [item.entry.label for item in good]),
    )
    if config.duplicates == "excluded_duplicates":
        placed = ["" if left else split for split, left in zip(placed, aside, strict=True)]
    return placed, copies


def _placed(item: Checked, present: frozenset[str], config: DataConfig) -> str:
    """Return an image's split; those of one group share that of the group's name."""
    group = item.entry.group
    content = (
        hashlib.sha256(group.encode("utf-8", "surrogateescape")).digest()
        if group
        else item.facts.sha256
    )
    return deal(content, item.entry.split, present, config)


def _members(found: Iterable[int]) -> Iterator[list[int]]:
    """Yield the members of each group of more than one."""
    members: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(found):
        members[int(group)].append(index)
    return (indices for indices in members.values() if len(indices) > 1)


def deal(content: bytes, given: str, present: frozenset[str], config: DataConfig) -> str:
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


def class_order(
    present: set[str], known: Sequence[str], renamed: Mapping[str, str]
) -> tuple[str, ...]:
    """Return the names in the order of their class ids.

    Known ones as they were, new ones after them in natural order.

    So an id never changes its meaning from one training to the next.

    Args:
        present: the classes that have a usable image.
        known: those of the last ingest of this source, in the order of their ids.
        renamed: old name -> new name; an empty new name drops the class.

    Raises:
        DatasetError: a known class has no image any more and is not mapped, or a class was renamed
            that nobody knew.
    """
    # Once an ingest has taken the new names over, the setting may stay.
    if strangers := sorted(
        old for old, new in renamed.items() if new and old not in known and new not in known
    ):
        raise DatasetError(
            f"data.renamed_classes names {strangers[0]!r}. Expected a class of an earlier ingest."
            f" Received as known classes: {', '.join(map(repr, known[:20])) or 'none'}. Correct or"
            " remove the setting."
        )
    kept = list(dict.fromkeys(name for name in (renamed.get(name, name) for name in known) if name))
    new = sorted(present - set(kept), key=natural)
    if gone := [name for name in kept if name not in present]:
        raise DatasetError(
            f"{len(gone)} classes of the last ingest have no usable image any more:"
            f" {_some(gone)}. Expected every known class, because trained models answer with its"
            f" number. Received as new classes: {_some(new) or 'none'}. For a renamed class type"
            f" --set data.renamed_classes={gone[0]}={new[0] if new else 'NEWNAME'}; to drop it,"
            f" which moves the numbers of later classes, --set data.renamed_classes={gone[0]}="
        )
    return (*kept, *new)


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(map(repr, names[:5])):.300}"


def known_classes(path: Path) -> tuple[str, ...]:
    """Return what the last ingest of a source remembered, or nothing.

    Raises:
        DatasetError: the file cannot be read.
    """
    try:
        return tuple(str(name) for name in json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError) as error:
        raise DatasetError(
            f"The list of known classes {path} cannot be read ({error}). Expected what an earlier"
            " ingest wrote. Remove the file to number the classes anew."
        ) from error


def remember_classes(path: Path, class_names: Sequence[str]) -> None:
    """Write the names down for later ingests; complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(list(class_names)), encoding="utf-8")
    temporary.replace(path)


def require_classes(
    class_names: Sequence[str], class_counts: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise a DatasetError unless there are two classes, each with a training image, and no split is empty."""
    if len(class_names) < 2:
        raise DatasetError(
            "A classifier needs at least two classes. Expected two folders or labels. Received"
            f" {len(class_names)}: {', '.join(map(repr, class_names)):.200}. Add images of"
            " another class."
        )
    if empty := [split for split in SPLITS if not sum(class_counts[split])]:
        sizes = ", ".join(f"{split} {sum(class_counts[split])}" for split in SPLITS)
        raise DatasetError(
            f"The {' and the '.join(empty)} split would be empty. Expected at least one image in"
            f" each. Received {sizes}. Add images, or raise data.validation_fraction or"
            " data.test_fraction."
        )
    if without := [
        name for name, count in zip(class_names, class_counts["train"], strict=True) if not count
    ]:
        raise DatasetError(
            f"{len(without)} of {len(class_names)} classes have no training image:"
            f" {', '.join(map(repr, without[:5])):.300}. Expected at least one for each. Received"
            " none. Add images of them, or remove their folders."
        )
