"""The work directory: one process at a time works in it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import BusyError, ConfigError
from pipeline.files import write_text


@contextlib.contextmanager
def work_directory(path: Path, *, wait: bool = False) -> Iterator[Path]:
    """Hold a work directory, made if it is not there, so that no other process works in it.

    Raises:
        ConfigError: the folder cannot be made or written.
        BusyError: another process holds it, and `wait` is False.
    """
    made = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / ".lock", mode=0o644)
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=-1 if wait else 0)
    except OSError as error:
        if made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise unwritable(path, error) from error
    owner = path / "owner.json"
    if not lock.is_locked:
        raise BusyError(
            f"Another process is working in {path}: {_owner_text(owner)}",
            hint="Wait until it has finished, or type the command with --wait",
        )
    try:
        write_text(
            owner,
            json.dumps(
                {
                    "pid": os.getpid(),
                    "host": os.uname().nodename,
                    "command": " ".join(sys.argv)[:200],
                    "since": time.time(),
                }
            ),
        )
        yield path
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def disk_is_full(error: BaseException | None) -> bool:
    """Return whether an exception, or one that caused it, means that a disk is full.

    `OSError` has a number for it. TensorFlow, HDF5 and SQLite have none and are recognized by their
    texts.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        text = str(error)
        if "No space left" in text or "ResourceExhaustedError: Failed to finalize" in text:
            return True
        error = error.__cause__ or error.__context__
    return False


def unwritable(path: Path, error: OSError) -> ConfigError:
    """Return the error for a work directory that cannot be made or written."""
    return ConfigError(
        f"The work directory {path} cannot be written ({error.strerror})",
        expected="a folder of your own",
        hint="Name another with --workdir",
    )


def is_held(owner: Path) -> bool:
    """Return whether the process that wrote its name still lives.

    A process on another host is believed to.
    """
    with contextlib.suppress(OSError, ValueError, KeyError):
        who = json.loads(owner.read_text(encoding="utf-8"))
        return who["host"] != os.uname().nodename or Path(f"/proc/{who['pid']}").exists()
    return False


def _owner_text(owner: Path) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError):
        who = json.loads(owner.read_text(encoding="utf-8"))
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(who["since"]))
        return f"process {who['pid']} on {who['host']}, since {since} (`{who['command']}`)"
    return "its owner has not written its name yet"
