"""The files that a command line names: files, folders and patterns, in the order of the arguments.

Names are text, not Path objects: a million of them, which a caller lists to know how many are left,
take some 100 MB, twice that where several arguments may name the same file, and a folder of a
million files 400 MB for the moment in which it is sorted.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pipeline.data.folder_scan import IMAGE_SUFFIXES, scan_folder
from pipeline.data.names import natural_sort_key, to_printable
from pipeline.data.reference import expand_home
from pipeline.errors import ConfigError

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_MAGIC = re.compile(r"[*?\[]")


def expand_paths(arguments: Sequence[str]) -> Iterator[str]:
    """Return the files that arguments name, each once.

    Every argument is looked up at once; folders are read while files are taken.

    Args:
        arguments: files, which are always tried; folders, of which all is taken that ingest would
            read, in natural order; and patterns with `*`, `?`, `[...]` and `**`, which match what
            they match in a shell, in natural order.

    Raises:
        ConfigError: an argument is an address on the network, or nothing exists for it.
    """
    named = [(argument, _find_roots(argument)) for argument in arguments]
    files = itertools.chain.from_iterable(itertools.starmap(_list_named_files, named))
    return files if sum(len(roots) for _, roots in named) == 1 else _skip_repeated(files)


def _find_roots(argument: str) -> list[str]:
    """Return the files and folders that an argument names, at least one."""
    if _URL.match(argument):
        raise ConfigError(
            f"{format_path(argument)} is an address on the network",
            expected="files, folders or patterns on this machine",
            received="a URL, and nothing is downloaded here",
            hint="Download it first, and name the file",
        )
    if not argument:  # to pathlib it is the current folder
        raise _make_missing_error(argument, "an empty name")
    path = expand_home(argument)
    if _exists(path):
        return [os.fspath(path)]
    if found := _match_pattern(path) if _MAGIC.search(argument) else []:
        return found
    raise _make_missing_error(
        argument,
        "a pattern that nothing matches"
        if _MAGIC.search(argument)
        else "a path that does not exist",
    )


def _make_missing_error(argument: str, received: str) -> ConfigError:
    return ConfigError(
        f"There is nothing to classify at '{format_path(argument)}'",
        expected="an image file, a folder with some, or a pattern such as 'photos/**/*.jpg'",
        received=received,
        hint="Check its spelling",
    )


def _exists(path: Path) -> bool:
    """Return whether a path names something; a broken link or a path without access counts."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        return True
    return True


def _match_pattern(pattern: Path) -> list[str]:
    """Return what matches a pattern, in natural order.

    A hidden name must be written out, and `**` does not follow links, so that it ends.
    """
    written = set(pattern.parts)
    try:
        found = Path(pattern.anchor).glob(os.fspath(pattern.relative_to(pattern.anchor)))
        seen = [
            os.fspath(path)
            for path in found
            if not any(part.startswith(".") for part in set(path.parts) - written)
        ]
    except ValueError as error:
        raise ConfigError(
            f"{format_path(pattern)} is not a valid pattern",
            expected="`**` alone between slashes, as in 'photos/**/*.jpg'",
            received=str(error),
            hint="Correct the pattern",
        ) from error
    return sorted(seen, key=natural_sort_key)


def _list_named_files(argument: str, roots: Sequence[str]) -> Iterator[str]:
    """Yield the files that an argument names, folder by folder."""
    found = False
    for root in roots:
        for file in _list_files_below(root) if os.path.isdir(root) else (root,):  # noqa: PTH112 - pathlib's raises without access
            found = True
            yield file
    if not found:
        raise _make_missing_error(argument, "a folder without images")


def _list_files_below(root: str) -> Iterator[str]:
    """Yield what ingest would read in a folder: its files, then those of the folders in it.

    Both are in natural order. As in `data.folder_scan`, a link to a folder is followed unless it
    leads to a folder above it or to one that a link led to before. Broken links, and folders that
    cannot be read, are yielded as they are, so that each is reported.
    """
    linked: set[tuple[int, int]] = set()
    waiting: list[tuple[str, bool, tuple[tuple[int, int], ...]]] = [(root, False, ())]
    while waiting:
        folder, is_link, above = waiting.pop()
        try:
            info, found = os.stat(folder), scan_folder(folder)  # noqa: PTH116 - as in data.listing
        except OSError:
            yield folder
            continue
        here = (info.st_dev, info.st_ino)
        if is_link and (here in above or here in linked):
            continue
        if is_link:
            linked.add(here)
        usable = (
            name
            for name in found.files
            if found.problems.get(name) in (None, "broken links") and _is_image_name(name)
        )
        yield from (os.path.join(folder, name) for name in sorted(usable, key=natural_sort_key))  # noqa: PTH118 - a million times
        below = sorted(found.folders, key=natural_sort_key, reverse=True)
        waiting += [
            (os.path.join(folder, name), found.folders[name], (*above, here))  # noqa: PTH118
            for name in below
        ]


def _is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - a million times


def _skip_repeated(files: Iterable[str]) -> Iterator[str]:
    """Yield each file the first time it is named; two links to a file are two files."""
    seen: set[str] = set()
    for file in files:
        path = os.path.abspath(file)  # noqa: PTH100 - a million times
        if path not in seen:
            seen.add(path)
            yield file


def format_path(path: Path | str) -> str:
    """Return a file's name for a terminal: on one line, in UTF-8, control characters escaped."""
    return format_on_one_line(to_printable(path))


def format_on_one_line(text: str) -> str:
    """Return a text with every character that cannot be printed escaped."""
    return "".join(
        mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text
    )
