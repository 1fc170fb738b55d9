"""Which class has which number, from one ingest to the next."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.data.checked import SPLITS
from pipeline.data.names import natural_sort_key
from pipeline.errors import DatasetError


def order_classes(
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
    new = sorted(present - set(kept), key=natural_sort_key)
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


def read_known_classes(path: Path) -> tuple[str, ...]:
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


def write_known_classes(path: Path, class_names: Sequence[str]) -> None:
    """Write the names down for later ingests; complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(list(class_names)), encoding="utf-8")
    temporary.replace(path)


def require_trainable_classes(
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
