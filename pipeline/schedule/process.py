"""One process that does the work of a scheduled run: started, watched, ended.

And what it said of how it ended.

It dies with the scheduler that started it, as it calls `die_with_parent` first. Where even that did
not come about, a note in its folder says who it is, so that the next scheduler can wait for its
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
from pipeline.files import write_text
from pipeline.schedule.owners import describe_owner, identify_process, is_owner_alive

HEARTBEAT_SECONDS = 60.0
_PARENT = "ALEXNET_PARENT"
_GRACE_SECONDS = 60.0  # for a child that was asked to end to save where it is
_POLL_SECONDS = 0.1
_TAIL_BYTES = 65_536
_BY_EXIT_CODE = {
    75: "BusyError",
    76: "LostWorkerError",
    128 + signal.SIGINT: "signal",
    128 + signal.SIGKILL: "signal",
    128 + signal.SIGTERM: "signal",
}


@dataclass(frozen=True)
class Run:
    """How one start of a child ended.

    Attributes:
        how: by itself, or because it took too long, was asked to stop, or the scheduled run is another's
            now.
        cause: the name of its error, or "signal"; empty where it is not known.
        why: a sentence.
    """

    how: Literal["ended", "too long", "stopped", "lost"]
    cause: str = ""
    why: str = ""


def run_child_process(
    arguments: Sequence[str],
    folder: Path,
    config: RetrainConfig,
    stop: threading.Event,
    heartbeat: Callable[[], bool],
) -> Run:
    """Run the work of a scheduled run once, in a process and a session of its own, and end whatever it leaves behind.

    Args:
        arguments: of its command line.
        folder: for its output.
        config: how long it may take, and how long it may go on when it is to stop.
        stop: set where it is to stop.
        heartbeat: called every minute; returns whether the scheduled run is ours still.
    """
    log, note = folder / "output.log", folder / "child"
    # What the schedule wants is in the words; settings of this shell are none of its.
    kept = {
        name: value
        for name, value in os.environ.items()
        if not (name.startswith(ENVIRONMENT_PREFIX) and "__" in name)
    }
    environment = {**kept, _PARENT: str(os.getpid())}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            place = output.tell()
            child = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
    except OSError as error:
        return Run("ended", "OSError", f"it could not be started: {error}.")
    try:
        with contextlib.suppress(OSError):  # the note is for the next scheduler alone
            write_text(note, identify_process(child.pid))
        how = _watch(child, config, stop, heartbeat)
    finally:
        end_child(child)
        note.unlink(missing_ok=True)
    cause, why = _cause(log, place, child.returncode)
    return Run(how, cause, why)


def _watch(
    child: subprocess.Popen[bytes],
    config: RetrainConfig,
    stop: threading.Event,
    heartbeat: Callable[[], bool],
) -> Literal["ended", "too long", "stopped", "lost"]:
    """Wait for the end of a child, or for a reason to end it."""
    begin = beaten = time.monotonic()
    drained: float | None = None
    while not _has_ended(child):
        now = time.monotonic()
        if now - begin > config.timeout_hours * 3600:
            return "too long"
        if stop.is_set():
            drained = drained or now + config.drain_seconds
            if now >= drained:
                return "stopped"
        if now - beaten > HEARTBEAT_SECONDS:
            beaten = now
            if not heartbeat():
                return "lost"
        time.sleep(_POLL_SECONDS)
    return "ended"


def _has_ended(child: subprocess.Popen[bytes]) -> bool:
    """Return whether a child has ended.

    It stays unreaped, so that its number is still that of its group.
    """
    if child.returncode is not None:
        return True
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def end_child(child: subprocess.Popen[bytes], grace_seconds: float = _GRACE_SECONDS) -> None:
    """End a child that has not ended, with time to save where it is.

    Then all that is left of its group.
    """
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
    """Wait for the end of a child whose scheduler was killed, which it was told of, and end it where that takes long."""
    note = folder / "child"
    with contextlib.suppress(OSError):
        owner = note.read_text(encoding="utf-8")
        pid = int(owner.split("/")[1]) if is_owner_alive(owner) else 0
        if pid:
            log(
                f"{folder.parent.name}/{folder.name}: {describe_owner(owner)} still works on it, and is"
                " asked to end."
            )
            os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + _GRACE_SECONDS
        while is_owner_alive(owner):
            if time.monotonic() > until:
                os.killpg(pid, signal.SIGKILL)
            time.sleep(_POLL_SECONDS)
        note.unlink()


def _cause(log: Path, place: int, code: int) -> tuple[str, str]:
    """Return the name of a child's error, and a sentence on how it ended.

    Args:
        log: the file of its output.
        place: where this start's output begins.
        code: of its exit, below zero for a signal.
    """
    lines = _last_lines(log, place)
    for line in reversed(lines):
        with contextlib.suppress(ValueError, AttributeError, TypeError):
            error = json.loads(line).get("error")
            if error:
                return str(error["type"]), str(error["message"])
    last = f": {lines[-1][:300]}" if lines else ""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return "signal", f"it was ended by {name}{last}."
    if code == 0:
        return "", f"it ended without a result{last}."
    return _BY_EXIT_CODE.get(code, ""), f"it ended with exit code {code}{last}."


def _last_lines(log: Path, place: int) -> list[str]:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(place, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        return [
            line
            for line in file.read(_TAIL_BYTES).decode("utf-8", errors="replace").splitlines()
            if line.strip()
        ]
    return []


def die_with_parent() -> None:
    """Let this process get SIGTERM when the scheduler that started it ends, however it ends.

    Nothing where none did.

    `alexnet retrain` calls it first. A scheduler that was gone before is noticed too.
    """
    parent = os.environ.pop(_PARENT, "")
    if not parent.isdecimal():
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG, of Linux
    if os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGTERM)
