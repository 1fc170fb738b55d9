"""One scheduler at a time in a work directory: a lock file, and its holder's name beside it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.engine.workdir import unwritable
from pipeline.errors import BusyError
from pipeline.files import write_text
from pipeline.schedule.owners import describe_owner, identify_this_process
from pipeline.schedule.waiting import wait_for_stop

LOCK_POLL_SECONDS = 0.5
_OWNER_FILE = "schedule.owner"


@contextlib.contextmanager
def try_scheduler_lock(workdir: Path) -> Iterator[bool]:
    """Hold the scheduler lock of a work directory; yield False where another process holds it."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(workdir / "schedule.lock", mode=0o644)
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
    except OSError as error:
        raise unwritable(workdir, error) from error
    if not lock.is_locked:
        yield False
        return
    owner = workdir / _OWNER_FILE
    try:
        write_text(owner, identify_this_process())
        yield True
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def hold_scheduler_lock(
    workdir: Path, show_line: Callable[[str], None], stop: threading.Event, *, wait: bool
) -> Iterator[bool]:
    """Hold the scheduler lock of a work directory; yield False where `stop` came first.

    Args:
        workdir: the work directory.
        show_line: shows a line to a person.
        stop: ends the wait.
        wait: for another process to release the lock.

    Raises:
        BusyError: another process holds the lock, and `wait` is False.
    """
    shown = False
    while not stop.is_set():
        with try_scheduler_lock(workdir) as held:
            if held:
                yield True
                return
        holder = describe_holder(workdir)
        if not wait:
            raise BusyError(
                f"Another scheduler is at work in {workdir}: {holder}",
                expected="one at a time",
                hint="Stop that one, or type the command with --wait to stand by",
            )
        if not shown:
            show_line(f"Standing by: {holder} is at work in {workdir}.")
            shown = True
        wait_for_stop(stop, LOCK_POLL_SECONDS)
    yield False


def describe_holder(workdir: Path) -> str:
    """Return the holder of the lock, such as `process 123 on host`."""
    with contextlib.suppress(OSError):
        return describe_owner((workdir / _OWNER_FILE).read_text(encoding="utf-8"))
    return "a process that has not written its name yet"
