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

_EXAMPLES_PER_REASON = 3


def list_folder(folder: Path) -> FileListing:
    """List `<class>/<images>` or `train|val|validation|test/<class>/<images>`.

    Each folder's files come in the order of their names. Files in folders below a class belong to
    the class. Links are followed, each target once.

    Raises:
        DatasetError: the folder is missing, cannot be read, or has classes that differ by case or
            blanks alone.
    """
    if not folder.is_dir():
        raise missing_folder_error(folder)
    try:
        return _list_class_folders(folder)
    except OSError as error:
        raise DatasetError(
            f"{to_printable(error.filename or folder)} cannot be read ({error.strerror})",
            expected="a folder of images that you may read",
            hint="Check its permissions",
        ) from error


def _list_class_folders(folder: Path) -> FileListing:
    in_splits = _has_split_folders(folder)
    label_part = 1 if in_splits else 0
    root = os.fspath(folder)
    files: list[ImageFile] = []
    labels: dict[str, str] = {}
    used: set[tuple[str, ...]] = set()
    excluded: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for name, problem in walk_files(root):
        parts = name.split("/")
        if (
            reason := problem
            or _explain_location(parts, label_part, in_splits)
            or _explain_suffix(parts[-1])
        ):
            excluded[reason] += 1
            if excluded[reason] <= _EXAMPLES_PER_REASON:
                examples.setdefault(reason, []).append(to_printable(name))
            continue
        label = labels.get(parts[label_part]) or labels.setdefault(
            parts[label_part], _strip_blanks(to_printable(parts[label_part]))
        )
        files.append(ImageFile(root, name, label, SPLIT_NAMES[parts[0]] if in_splits else ""))
        used.add(tuple(parts[: label_part + 1]))
    require_distinct_classes(folder, labels)
    unused = _find_class_folders(folder, in_splits) - used
    empty = sorted((to_printable("/".join(parts)) for parts in unused), key=natural_sort_key)
    return FileListing(
        tuple(files), dict(sorted(excluded.items())), dict(sorted(examples.items())), tuple(empty)
    )


def _explain_location(parts: Sequence[str], label_part: int, in_splits: bool) -> str:
    """Return why a file belongs to no class, or an empty text."""
    outside = len(parts) < label_part + 2 or (in_splits and parts[0] not in SPLIT_NAMES)
    return "outside the class folders" if outside else ""


def _explain_suffix(name: str) -> str:
    """Return why a file's suffix excludes it, or an empty text."""
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - called a million times
    return "" if suffix in IMAGE_SUFFIXES else "other extension"


def _strip_blanks(name: str) -> str:
    """Return a class name without blanks around it; one of blanks alone stays."""
    return name.strip() or name


def _has_split_folders(folder: Path) -> bool:
    """Return whether the folder holds `train/<class>/`.

    A class that is called `train` has images in it, not folders.
    """
    train = folder / "train"
    return train.is_dir() and bool(scan_folder(os.fspath(train)).folders)


def _find_class_folders(folder: Path, in_splits: bool) -> set[tuple[str, ...]]:
    """Return the relative parts of every folder that stands for a class."""
    above = [(name,) for name in SPLIT_NAMES if (folder / name).is_dir()] if in_splits else [()]
    return {
        (*parts, name)
        for parts in above
        for name in scan_folder(os.fspath(folder.joinpath(*parts))).folders
    }


def walk_files(root: str) -> Iterator[tuple[str, str]]:
    """Yield (path below root, why it cannot be used or empty) of every file.

    The order is the same on every system. A link to a folder is followed unless it leads to a
    folder above it or to one that a link led to before, so that the walk ends.
    """
    linked: set[tuple[int, int]] = set()
    waiting: list[tuple[str, bool, tuple[tuple[int, int], ...]]] = [("", False, ())]
    while waiting:
        below, is_link, above = waiting.pop()
        path = os.path.join(root, below)  # noqa: PTH118
        info = os.stat(path)  # noqa: PTH116
        here = (info.st_dev, info.st_ino)
        if is_link and (here in above or here in linked):
            yield below, "links in a loop" if here in above else "folders linked twice"
            continue
        if is_link:
            linked.add(here)
        start = f"{below}/" if below else ""
        found = scan_folder(path)
        for name in sorted(found.files):
            yield start + name, found.problems.get(name, "")
        waiting += [
            (start + name, found.folders[name], (*above, here))
            for name in sorted(found.folders, reverse=True)
        ]
