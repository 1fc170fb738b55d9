"""Class ids: the number of each class stays the same from one ingest to the next."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.data.checked import SPLITS
from pipeline.data.names import natural_sort_key
from pipeline.errors import DatasetError
from pipeline.files import write_text


def order_classes(
    present: set[str], known: Sequence[str], renamed: Mapping[str, str]
) -> tuple[str, ...]:
    """Return the class names in the order of their class ids.

    Known classes keep their order, new ones follow in natural order, so an id keeps its meaning
    from one training to the next.

    Args:
        present: the classes that have a usable image.
        known: those of the last ingest of this source, in the order of their ids.
        renamed: old name -> new name; an empty new name drops the class.

    Raises:
        DatasetError: a known class has no image any more and is not mapped, or an unknown class was
            renamed.
    """
    # Once an ingest has taken the new names over, the setting may stay.
    if unknown := sorted(
        old for old, new in renamed.items() if new and old not in known and new not in known
    ):
        raise DatasetError(
            f"data.renamed_classes names {unknown[0]!r}",
            expected="a class of an earlier ingest",
            received=f"as known classes: {', '.join(map(repr, known[:20])) or 'none'}",
            hint="Correct or remove the setting",
        )
    kept = list(dict.fromkeys(name for name in (renamed.get(name, name) for name in known) if name))
    new = sorted(present - set(kept), key=natural_sort_key)
    if gone := [name for name in kept if name not in present]:
        raise DatasetError(
            f"{len(gone)} classes of the last ingest have no usable image any more:"
            f" {_shorten_list(gone)}",
            expected="every known class, because trained models answer with its number",
            received=f"as new classes: {_shorten_list(new) or 'none'}",
            hint=(
                f"Type --set data.renamed_classes={gone[0]}={new[0] if new else 'NEWNAME'} for a"
                f" renamed class, or --set data.renamed_classes={gone[0]}= to drop it, which moves"
                " the numbers of later classes"
            ),
        )
    return (*kept, *new)


def _shorten_list(names: Sequence[str]) -> str:
    return f"{', '.join(map(repr, names[:5])):.300}"


def read_known_classes(path: Path) -> tuple[str, ...]:
    """Return the class names that the last ingest of a source wrote, or none.

    Raises:
        DatasetError: the file cannot be read.
    """
    try:
        return tuple(str(name) for name in json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError) as error:
        raise DatasetError(
            f"The list of known classes {path} cannot be read ({error})",
            expected="the file that an earlier ingest wrote",
            hint="Remove the file to number the classes anew",
        ) from error


def write_known_classes(path: Path, class_names: Sequence[str]) -> None:
    """Write the class names for later ingests."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(list(class_names)))


def require_trainable_classes(
    class_names: Sequence[str], class_counts: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise a DatasetError for fewer than two classes, an empty split or an untrained class."""
    if len(class_names) < 2:
        raise DatasetError(
            "A classifier needs at least two classes",
            expected="two folders or labels",
            received=f"{len(class_names)}: {', '.join(map(repr, class_names)):.200}",
            hint="Add images of another class",
        )
    if empty := [split for split in SPLITS if not sum(class_counts[split])]:
        raise DatasetError(
            f"The {' and the '.join(empty)} split would be empty",
            expected="at least one image in each",
            received=", ".join(f"{split} {sum(class_counts[split])}" for split in SPLITS),
            hint="Add images, or raise data.validation_fraction or data.test_fraction",
        )
    if without := [
        name for name, count in zip(class_names, class_counts["train"], strict=True) if not count
    ]:
        raise DatasetError(
            f"{len(without)} of {len(class_names)} classes have no training image:"
            f" {_shorten_list(without)}",
            expected="at least one for each",
            received="none",
            hint="Add images of them, or remove their folders",
        )
