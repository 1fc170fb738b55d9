"""Starts several workers of a training on this machine, and starts them again when one is lost."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import IO, Any

from pipeline.errors import LostWorkerError

# How often all workers are started again, because one was lost, before the launcher gives up.
_MAX_RESTARTS = 3
# A worker that lost another one notices within some seconds by itself. After these it is sent a
# signal; the chief, which may be saving, is ended only after that many more.
_NOTICE_SECONDS, _SAVE_SECONDS = 30.0, 60.0


def run_workers(arguments: Sequence[str], workers: int, notify: Callable[[str], None]) -> int:
    """Run `alexnet ARGUMENTS` as several workers on this machine.

    When one is lost, start all again, and they go on from the last checkpoint.

    The chief's output is this process's. A signal that ends this process, or its death, ends the
    workers, too.

    Args:
        arguments: of the command line.
        workers: how many.
        notify: called with what a person should know.

    Returns:
        The exit code: 0, or that of the worker that failed by itself.
    """
    for attempt in range(1, _MAX_RESTARTS + 2):
        codes = _run_once(arguments, workers, notify)
        lost = [
            f"worker {index} ended by signal {-code}"
            for index, code in enumerate(codes)
            if code < 0
        ]
        failed = [code for code in codes if code > 0 and code != LostWorkerError.exit_code]
        if failed or not any(codes):
            return failed[0] if failed else 0
        if attempt <= _MAX_RESTARTS:
            notify(
                f"{', '.join(lost) or 'A worker was lost'}; all start again from the last"
                f" checkpoint ({attempt} of {_MAX_RESTARTS} times)"
            )
    return LostWorkerError.exit_code


def _run_once(arguments: Sequence[str], workers: int, notify: Callable[[str], None]) -> list[int]:
    """Start the workers, wait until all have ended, and return their exit codes.

    Negative where a signal ended one. A worker that was ended from here counts as lost. Where the
    chief ended well, all count as having ended well.
    """
    addresses = [f"127.0.0.1:{port}" for port in _find_free_ports(workers)]
    with contextlib.ExitStack() as stack:
        messages = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(workers)]
        processes = [
            _start_worker(arguments, addresses, index, messages[index]) for index in range(workers)
        ]
        stack.callback(_end_workers, processes)
        ended = _wait_for_processes(processes)
        codes = [
            LostWorkerError.exit_code if index in ended else process.returncode
            for index, process in enumerate(processes)
        ]
        for index, (code, message) in enumerate(zip(codes, messages, strict=True)):
            if index and code > 0 and code != LostWorkerError.exit_code:
                message.seek(0)
                notify(
                    f"worker {index} ended with {code}:"
                    f" {message.read().decode(errors='replace').strip()[-500:]}"
                )
        return codes if codes[0] else [0] * workers


def _start_worker(
    arguments: Sequence[str], addresses: Sequence[str], index: int, messages: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start one worker in a session of its own, so that Ctrl-C reaches it once, from here.

    What workers other than the chief write to stderr goes to `messages`.
    """
    config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    output: dict[str, Any] = (
        {} if index == 0 else {"stdout": subprocess.DEVNULL, "stderr": messages}
    )
    command = [sys.executable, "-m", "pipeline", *arguments]
    environment = os.environ | {"TF_CONFIG": json.dumps(config)}
    return subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        preexec_fn=_end_with_parent,  # noqa: PLW1509
        **output,
    )


def _end_with_parent() -> None:
    """Ask Linux to send SIGTERM to this process when its parent has died, from whatever cause."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG of prctl(2)


def _wait_for_processes(processes: Sequence[subprocess.Popen[bytes]]) -> set[int]:
    """Wait until all have ended, and return the indices of those that were ended from here.

    Once one has failed, the others have a limited time to end: little where the chief has failed by
    itself, as no other worker writes.
    """
    chief, ended_at, signaled = processes[0], 0.0, set[int]()
    try:
        while running := {
            index for index, process in enumerate(processes) if process.poll() is None
        }:
            time.sleep(0.1)
            if chief.returncode is None and not any(process.returncode for process in processes):
                continue  # none has ended, or only workers whose work is done
            ended_at = ended_at or time.monotonic()
            failed = (
                chief.returncode is not None
                and chief.returncode > 0
                and chief.returncode != LostWorkerError.exit_code
            )
            if time.monotonic() > ended_at + (2.0 if failed else _NOTICE_SECONDS):
                for index in running - signaled:
                    processes[index].send_signal(signal.SIGKILL if index else signal.SIGTERM)
                signaled |= running
            if time.monotonic() > ended_at + _NOTICE_SECONDS + _SAVE_SECONDS:
                _send_signal(processes, signal.SIGKILL)
    except KeyboardInterrupt as asked:
        _send_signal(
            processes, signal.SIGTERM if type(asked).__name__ == "Terminated" else signal.SIGINT
        )
        raise
    return signaled


def _end_workers(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for the chief as long as it may save, then end all that still run."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        processes[0].wait(timeout=_SAVE_SECONDS)
    _send_signal(processes, signal.SIGKILL)
    for process in processes:
        process.wait()


def _send_signal(processes: Sequence[subprocess.Popen[bytes]], sign: signal.Signals) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(sign)


def _find_free_ports(count: int) -> list[int]:
    """Return ports of this machine that no process listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [int(opened.getsockname()[1]) for opened in sockets]
