"""The child process that executes a scheduled run: started, watched and ended, and how it ended.

It dies with the scheduler that started it, as it calls `die_with_parent` first. Where even that
fails, a note in its folder says which process it is, so that the next scheduler can wait for its
end.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.config.resolution import ENVIRONMENT_PREFIX
from pipeline.config.retrain import RetrainConfig
from pipeline.errors import BusyError, LostWorkerError
from pipeline.files import write_text
from pipeline.schedule.owners import describe_owner, identify_process, is_owner_alive

TICK_SECONDS = 1.0
_PARENT = "ALEXNET_PARENT"
_GRACE_SECONDS = 60.0  # for a child that was asked to stop to save its state
_POLL_SECONDS = 0.1
_OUTPUT_TAIL_BYTES = 65_536
_OUTPUT_FILE, _NOTE_FILE = "output.log", "child"
# Exit codes that are retryable: those of errors, and of shells for a child that a signal ended
_RETRYABLE_CODES = (
    BusyError.exit_code,
    LostWorkerError.exit_code,
    128 + signal.SIGINT,
    128 + signal.SIGKILL,
    128 + signal.SIGTERM,
)

EndKind = Literal["ended", "too long", "stopped", "lost"]


@dataclass(frozen=True)
class ChildEnd:
    """How one child ended.

    Attributes:
        how: by itself; or ended here, because it took too long, because the scheduler is to stop,
            or because another owner has the scheduled run now.
        retryable: whether the same command may succeed later without any change by a person.
        why: one sentence.
    """

    how: EndKind
    retryable: bool = False
    why: str = ""


def run_child_process(
    arguments: Sequence[str],
    folder: Path,
    config: RetrainConfig,
    stop: threading.Event,
    tick: Callable[[], bool],
) -> ChildEnd:
    """Run a command once, in a process and a session of its own, and end every process it leaves.

    Args:
        arguments: its command line.
        folder: for its output.
        config: how long it may take, and how long it may go on after `stop`.
        stop: set when it is to stop.
        tick: called every second; returns False where another owner has the scheduled run.
    """
    output_file, note = folder / _OUTPUT_FILE, folder / _NOTE_FILE
    # The schedule's settings are in the arguments: those of this shell's environment do not apply.
    kept = {
        name: value
        for name, value in os.environ.items()
        if not (name.startswith(ENVIRONMENT_PREFIX) and "__" in name)
    }
    environment = {**kept, _PARENT: str(os.getpid())}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with output_file.open("ab") as output:
            offset = output.tell()
            child = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
    except OSError as error:
        return ChildEnd("ended", retryable=True, why=f"it could not be started: {error}.")
    try:
        with contextlib.suppress(OSError):  # the note is for the next scheduler alone
            write_text(note, identify_process(child.pid))
        how = _watch(child, config, stop, tick)
    finally:
        end_child(child)
        note.unlink(missing_ok=True)
    retryable, why = _explain_end(output_file, offset, child.returncode)
    return ChildEnd(how, retryable, why)


def _watch(
    child: subprocess.Popen[bytes],
    config: RetrainConfig,
    stop: threading.Event,
    tick: Callable[[], bool],
) -> EndKind:
    """Wait for the end of a child, or for a reason to end it."""
    begin = ticked = time.monotonic()
    drained: float | None = None
    while not _has_ended(child):
        now = time.monotonic()
        if now - begin > config.timeout_hours * 3600:
            return "too long"
        if stop.is_set():
            drained = drained or now + config.drain_seconds
            if now >= drained:
                return "stopped"
        if now - ticked > TICK_SECONDS:
            ticked = now
            if not tick():
                return "lost"
        time.sleep(_POLL_SECONDS)
    return "ended"


def _has_ended(child: subprocess.Popen[bytes]) -> bool:
    """Return whether a child has ended; it stays unreaped, so that its id is still its group's."""
    if child.returncode is not None:
        return True
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def end_child(child: subprocess.Popen[bytes], grace_seconds: float = _GRACE_SECONDS) -> None:
    """End a child, with time to save its state, and kill every process left of its group."""
    try:
        if not _has_ended(child):
            os.kill(child.pid, signal.SIGTERM)
        until = time.monotonic() + grace_seconds
        while not _has_ended(child) and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def end_orphan(folder: Path, log: Callable[[str], None]) -> None:
    """End the child of a killed scheduler: wait for the end that it was asked for, then kill it."""
    note = folder / _NOTE_FILE
    with contextlib.suppress(OSError):
        owner = note.read_text(encoding="utf-8")
        pid = int(owner.split("/")[1]) if is_owner_alive(owner) else 0
        if pid:
            log(
                f"{folder.parent.name}/{folder.name}: {describe_owner(owner)} still works on"
                " it, and is asked to stop."
            )
            os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + _GRACE_SECONDS
        while is_owner_alive(owner):
            if time.monotonic() > until:
                os.killpg(pid, signal.SIGKILL)
            time.sleep(_POLL_SECONDS)
        note.unlink()


def _explain_end(output_file: Path, offset: int, code: int) -> tuple[bool, str]:
    """Return whether a child's end is retryable, and a sentence on it.

    Args:
        output_file: of the child.
        offset: where the output of this start begins, in bytes.
        code: its exit code, negative for a signal.
    """
    lines = _read_last_lines(output_file, offset)
    for line in reversed(lines):
        with contextlib.suppress(ValueError, AttributeError, TypeError):
            error = json.loads(line).get("error")
            if error:
                return bool(error.get("retryable")), str(error["message"])
    last = f": {lines[-1][:300]}" if lines else ""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return True, f"it was ended by {name}{last}."
    if code == 0:
        return False, f"it ended without a result{last}."
    return code in _RETRYABLE_CODES, f"it ended with exit code {code}{last}."


def _read_last_lines(output_file: Path, offset: int) -> list[str]:
    with contextlib.suppress(OSError), output_file.open("rb") as file:
        file.seek(max(offset, file.seek(0, os.SEEK_END) - _OUTPUT_TAIL_BYTES))
        return [
            line
            for line in file.read(_OUTPUT_TAIL_BYTES).decode("utf-8", errors="replace").splitlines()
            if line.strip()
        ]
    return []


def die_with_parent() -> None:
    """Have the kernel send this process SIGTERM when the scheduler that started it ends.

    Without such a scheduler it does nothing. `alexnet retrain` calls it first; a scheduler that
    ended before the call is noticed too.
    """
    parent = os.environ.pop(_PARENT, "")
    if not parent.isdecimal():
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG, of Linux
    if os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGTERM)
