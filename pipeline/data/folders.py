"""The images of a folder of class folders, found with the standard library and never opened."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.data.checked import ImageFile
from pipeline.data.folder_scan import IMAGE_SUFFIXES, scan_folder
from pipeline.data.listing import SPLIT_NAMES, FileListing, require_distinct_classes
from pipeline.data.names import natural_sort_key, to_printable
from pipeline.data.reference import missing_folder_error
from pipeline.errors import DatasetError

_EXAMPLES = 3


def list_folder(folder: Path) -> FileListing:
    """List `<class>/<images>` or `train|val|validation|test/<class>/<images>`, each folder's files in the order of their names.

    What lies in folders below a class belongs to the class. Links are followed, each target once.

    Raises:
        DatasetError: the folder is not there, cannot be read, or has classes that differ by case or
            blanks alone.
    """
    if not folder.is_dir():
        raise missing_folder_error(folder)
    try:
        return _list_folder(folder)
    except OSError as error:
        raise DatasetError(
            f"{to_printable(error.filename or folder)} cannot be read ({error.strerror}). Expected a"
            " folder of images that you may read. Check its permissions."
        ) from error


def _list_folder(folder: Path) -> FileListing:
    in_splits = _has_split_folders(folder)
    label_at = 1 if in_splits else 0
    root = os.fspath(folder)
    entries: list[ImageFile] = []
    labels: dict[str, str] = {}
    used: set[tuple[str, ...]] = set()
    excluded: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for name, reason in walk_files(root):
        parts = name.split("/")
        if (
            why := reason
            or _out_of_place(parts, label_at, in_splits)
            or _other_extension(parts[-1])
        ):
            excluded[why] += 1
            if excluded[why] <= _EXAMPLES:
                examples.setdefault(why, []).append(to_printable(name))
            continue
        label = labels.get(parts[label_at]) or labels.setdefault(
            parts[label_at], _without_blanks(to_printable(parts[label_at]))
        )
        entries.append(ImageFile(root, name, label, SPLIT_NAMES[parts[0]] if in_splits else ""))
        used.add(tuple(parts[: label_at + 1]))
    require_distinct_classes(folder, labels)
    empty = sorted(
        (to_printable("/".join(parts)) for parts in _class_folders(folder, in_splits) - used),
        key=natural_sort_key,
    )
    return FileListing(
        tuple(entries), dict(sorted(excluded.items())), dict(sorted(examples.items())), tuple(empty)
    )


def _out_of_place(parts: Sequence[str], label_at: int, in_splits: bool) -> str:
    """Return why a file belongs to no class, or nothing."""
    outside = len(parts) < label_at + 2 or (in_splits and parts[0] not in SPLIT_NAMES)
    return "outside the class folders" if outside else ""


def _other_extension(name: str) -> str:
    return "" if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES else "other extension"  # noqa: PTH122 - a million times


def _without_blanks(name: str) -> str:
    """Return a class name without blanks around it, which nobody can see.

    One of blanks alone stays.
    """
    return name.strip() or name


def _has_split_folders(folder: Path) -> bool:
    """Say whether the folder holds `train/<class>/`.

    A class that is called `train` has images in it, not folders.
    """
    train = folder / "train"
    return train.is_dir() and bool(scan_folder(os.fspath(train)).folders)


def _class_folders(folder: Path, in_splits: bool) -> set[tuple[str, ...]]:
    """Return the relative parts of every folder that stands for a class."""
    above = [(name,) for name in SPLIT_NAMES if (folder / name).is_dir()] if in_splits else [()]
    return {
        (*parts, name)
        for parts in above
        for name in scan_folder(os.fspath(folder.joinpath(*parts))).folders
    }


def walk_files(root: str) -> Iterator[tuple[str, str]]:
    """Yield every file as (path below root, why it cannot be used or nothing), the same order on every system.

    A link to a folder is followed unless it leads to a folder above it or to one that a link led to
    before, so that the walk ends.
    """
    linked: set[tuple[int, int]] = set()
    waiting: list[tuple[str, bool, tuple[tuple[int, int], ...]]] = [("", False, ())]
    while waiting:
        below, is_link, above = waiting.pop()
        where = os.path.join(root, below)  # noqa: PTH118
        info = os.stat(where)  # noqa: PTH116
        here = (info.st_dev, info.st_ino)
        if is_link and (here in above or here in linked):
            yield below, "links in a loop" if here in above else "folders linked twice"
            continue
        if is_link:
            linked.add(here)
        start = f"{below}/" if below else ""
        found = scan_folder(where)
        for name in sorted(found.files):
            yield start + name, found.odd.get(name, "")
        waiting += [
            (start + name, found.folders[name], (*above, here))
            for name in sorted(found.folders, reverse=True)
        ]
