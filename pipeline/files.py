"""Atomic and durable writing of files and folders: the one place that knows fsync.

A file or folder is written beside its final place under another name, flushed to the disk and then
renamed, so that its name holds the old content or the new one and nothing between, whatever killed
the process or the power. Everything here raises OSError as the system says it.

    write_text, write_bytes     a small file at once
    writing                     a file that a library writes by itself
    publish_folder              a folder that is complete
    recover_folder              the earlier folder, where a kill came between two renames
    flush                       a file or folder that is not renamed
    remove_folder               a folder or file, at once
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

REMOVED_PREFIX = ".removed-"  # of a name: the file or folder is being removed


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 so that it is either the old one or the new one."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it is either the old one or the new one."""
    with writing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def writing(path: Path, *, keep_previous_as: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path in the same folder; what is written there replaces `path` at the end.

    An exception inside leaves `path` as it was and removes the temporary file.

    Args:
        path: the final name.
        keep_previous_as: a name for the file that is replaced; removed without one.
    """
    # The suffix stays, as some libraries choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        flush(temporary)
        if keep_previous_as is not None and path.exists():
            _keep_file(path, keep_previous_as)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)


def _keep_file(path: Path, kept: Path) -> None:
    """Give a file another name besides its own, so that both are there at every moment."""
    kept.unlink(missing_ok=True)
    try:
        os.link(path, kept)
    except OSError:  # a file system without hard links
        shutil.copy2(path, kept)
        flush(kept)


def publish_folder(partial: Path, folder: Path) -> None:
    """Flush every file of a complete folder and rename it to `folder`.

    An earlier folder of that name is removed only then; `<folder>.old` holds it meanwhile.
    """
    for parent, _, names in os.walk(partial):
        for name in names:
            flush(Path(parent, name))
        flush(Path(parent))
    recover_folder(folder)
    old = _old_name(folder)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder, or a file, so that a kill leaves no half of it under its name.

    What a kill leaves begins with REMOVED_PREFIX; the same call on that removes it.
    """
    doomed = folder
    if not folder.name.startswith(REMOVED_PREFIX):
        doomed = folder.with_name(f"{REMOVED_PREFIX}{folder.name}")
    with contextlib.suppress(FileNotFoundError):
        if doomed != folder and doomed.exists():
            remove_folder(doomed)
        folder.rename(doomed)
        if doomed.is_dir() and not doomed.is_symlink():
            shutil.rmtree(doomed)
        else:
            doomed.unlink()


def recover_folder(folder: Path) -> None:
    """Put an earlier folder back that a killed `publish_folder` had moved away."""
    old = _old_name(folder)
    if old.exists() and not folder.exists():
        old.rename(folder)


def _old_name(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")


def flush(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    if path.is_symlink():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
