"""The content of one folder, found without opening a file."""

from __future__ import annotations

import os
from typing import NamedTuple

# The first bytes decide what a file is; the suffix only whether it is opened. The second set names
# image formats that are opened to report that they cannot be used.
_ACCEPTED = frozenset(
    {"", ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp"}
)
_REPORTED = frozenset(
    [
        ".tif",
        ".tiff",
        ".avif",
        ".heic",
        ".heif",
        ".jp2",
        ".svg",
        ".ico",
        ".psd",
        ".ppm",
        ".pgm",
        ".tga",
        ".jxl",
    ]
)
IMAGE_SUFFIXES = _ACCEPTED | _REPORTED
# Left by file managers, and the pipeline's own results when the dataset is the current folder:
# never images of the user's.
_LITTER = frozenset({"__macosx", "thumbs.db", "desktop.ini", "icon\r", "mlruns"})


class FolderContents(NamedTuple):
    """The content of a folder: files, why some cannot be used, and folders (true for a link)."""

    files: list[str]
    problems: dict[str, str]
    folders: dict[str, bool]


def scan_folder(folder: str) -> FolderContents:
    """Return the content of one folder; only names are kept, so that a million files fit."""
    found = FolderContents([], {}, {})
    with os.scandir(folder) as children:
        for child in children:
            kind = _classify_entry(child)
            if kind == "folder":
                found.folders[child.name] = child.is_symlink()
                continue
            found.files.append(child.name)
            if kind:
                found.problems[child.name] = kind
    return found


def _classify_entry(child: os.DirEntry[str]) -> str:
    """Return `folder`, why a file cannot be used, or an empty text.

    Files are neither opened nor, where the system allows it, looked up.
    """
    if child.name.startswith(".") or child.name.lower() in _LITTER:
        return "hidden"
    try:
        if child.is_file():
            return ""
        if child.is_dir():
            return "folder"
        child.stat()
    except OSError:  # a link to nothing, to itself, or to a folder without permission
        return "broken links"
    return "not a file"
