"""The content of one folder, found without opening a file."""

from __future__ import annotations

import os
from typing import NamedTuple

# What a file is, its first bytes decide; the name only says whether to look. The second line is
# looked at to say what cannot be used.
IMAGE_SUFFIXES = frozenset(
    {"", ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp"}
) | frozenset(
    {
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
    }
)


# Left by file managers, and the pipeline's own results when the dataset is the current folder:
# never images of the user's.
_LITTER = frozenset({"__macosx", "thumbs.db", "desktop.ini", "icon\r", "mlruns"})


class FolderContents(NamedTuple):
    """What a folder holds: names of files, why some of them cannot be used, and folders, true for those that are links."""

    files: list[str]
    odd: dict[str, str]
    folders: dict[str, bool]


def scan_folder(folder: str) -> FolderContents:
    """Look at one folder; only names are kept, so that a million files in it fit."""
    found = FolderContents([], {}, {})
    with os.scandir(folder) as children:
        for child in children:
            kind = _kind_of_file(child)
            if kind == "folder":
                found.folders[child.name] = child.is_symlink()
                continue
            found.files.append(child.name)
            if kind:
                found.odd[child.name] = kind
    return found


def _kind_of_file(child: os.DirEntry[str]) -> str:
    """Return `folder`, why a file cannot be used, or nothing.

    Files are neither opened nor, where the system tells, looked up.
    """
    if child.name.startswith(".") or child.name.lower() in _LITTER:
        return "hidden"
    try:
        if child.is_file():
            return ""
        if child.is_dir():
            return "folder"
        child.stat()
    except OSError:  # a link to nothing, to itself, or to where we may not look
        return "broken links"
    return "not a file"
