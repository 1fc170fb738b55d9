"""Several workers that train together.

Who they are, and a launcher that starts them on one machine.
"""

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from pipeline.errors import ConfigError, HungError, LostWorkerError

# How often the launcher starts all workers again, because one was lost, before it gives up.
RESTARTS = 3
# A worker whose fellow is gone notices within some seconds by itself. After these it is told; the
# chief, who may be saving, is ended only after that many more.
_NOTICE_SECONDS, _SAVE_SECONDS = 30.0, 60.0
_EXPECTED = (
    'Expected {"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}},'
    " equal on all workers but for the index"
)


@dataclass(frozen=True)
class Cluster:
    """The workers of a training, by address, and which of them this process is.

    The first is the chief, who keeps the results.
    """

    addresses: tuple[str, ...] = ("",)
    index: int = 0

    @property
    def workers(self) -> int:
        """How many there are; 1 without a cluster."""
        return len(self.addresses)

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that writes."""
        return self.index == 0

    def chief_answers(self) -> bool:
        """Return whether something listens at the chief's address."""
        return _answers(self.addresses[0])

    def meet(self, seconds: float) -> None:
        """Wait until every other worker is there; TensorFlow would wait without hearing any signal.

        This worker's own port is held open meanwhile, and is free again when this returns.

        Args:
            seconds: how long at most; 0 is for ever.

        Raises:
            ConfigError: this worker's port is taken.
            HungError: they did not all come in time.
        """
        port, deadline = (
            int(self.addresses[self.index].rpartition(":")[2]),
            time.monotonic() + seconds,
        )
        missing = [address for index, address in enumerate(self.addresses) if index != self.index]
        try:
            door = socket.create_server(("", port))
        except OSError as error:
            raise ConfigError(
                f"Worker {self.index} cannot listen at {self.addresses[self.index]}"
                f" ({error.strerror}). Expected a free port of this machine. End what uses it, or"
                " name another one in TF_CONFIG."
            ) from error
        with door:
            while missing := [address for address in missing if not _answers(address)]:
                if seconds and time.monotonic() > deadline:
                    raise HungError(
                        f"The {self.workers} workers of TF_CONFIG did not meet within {seconds:g}"
                        f" s, which is train.watchdog_seconds: {', '.join(missing)} did not answer"
                        f" worker {self.index}. Expected the same command on every one of them."
                        " Start those."
                    )
                time.sleep(0.2)


def _answers(address: str) -> bool:
    """Return whether something listens at `host:port`."""
    host, _, port = address.rpartition(":")
    with (
        contextlib.suppress(OSError),
        socket.create_connection((host.strip("[]"), int(port)), timeout=5),
    ):
        return True
    return False


def read_cluster(environment: Mapping[str, str] | None = None) -> Cluster:
    """Return the cluster that TF_CONFIG names, one process alone without it.

    Raises:
        ConfigError: TF_CONFIG cannot be read, or names something else than workers.
    """
    text = (os.environ if environment is None else environment).get("TF_CONFIG", "")
    if not text.strip():
        return Cluster()
    try:
        parsed = json.loads(text)
        if not parsed.get("cluster"):
            return Cluster()
        jobs, task = dict(parsed["cluster"]), parsed["task"]
        addresses = tuple(
            str(address) for job in ("chief", "worker") for address in jobs.pop(job, ())
        )
        index = int(task["index"]) + (
            len(parsed["cluster"].get("chief", ())) if task["type"] == "worker" else 0
        )
        ports = [int(address.rpartition(":")[2]) for address in addresses]
        known = all(0 < port < 65536 for port in ports) and (
            task["type"] == "worker" or parsed["cluster"].get("chief")
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"TF_CONFIG cannot be read ({type(error).__name__}: {error}). {_EXPECTED}. Received"
            f" {text[:200]}"
        ) from error
    if (
        not known
        or jobs
        or task["type"] not in ("chief", "worker")
        or not 0 <= index < len(ports)
        or len(set(addresses)) < len(ports)
    ):
        raise ConfigError(
            f"TF_CONFIG does not name workers, each once, and one of them as the task. {_EXPECTED}."
            f" Received {text[:200]}"
        )
    return Cluster(addresses, index)


def launch(words: Sequence[str], workers: int, say: Callable[[str], None]) -> int:
    """Run `alexnet WORDS` as several workers on this machine.

    When one is lost, start all again, and they go on from the last checkpoint.

    The chief's output is this process's. A signal that ends this process, or its death, ends the
    workers, too.

    Args:
        words: of the command line.
        workers: how many.
        say: told what a person should know.

    Returns:
        The exit code: 0, or that of the worker that failed by itself.
    """
    for attempt in range(1, RESTARTS + 2):
        codes = _run_together(words, workers, say)
        lost = [
            f"worker {index} ended by signal {-code}"
            for index, code in enumerate(codes)
            if code < 0
        ]
        failed = [code for code in codes if code > 0 and code != LostWorkerError.exit_code]
        if failed or not any(codes):
            return failed[0] if failed else 0
        if attempt <= RESTARTS:
            say(
                f"{', '.join(lost) or 'A worker was lost'}; all start again from the last"
                f" checkpoint ({attempt} of {RESTARTS} times)"
            )
    return LostWorkerError.exit_code


def _run_together(words: Sequence[str], workers: int, say: Callable[[str], None]) -> list[int]:
    """Start the workers, wait until all have ended, and return their exit codes.

    Negative where a signal ended one.

    What was ended from here counts as lost, and nothing else than the chief's end does where that
    is good.
    """
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(workers)]
    with contextlib.ExitStack() as stack:
        messages = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(workers)]
        processes = [_start(words, addresses, index, messages[index]) for index in range(workers)]
        stack.callback(_end, processes)
        told = _wait(processes)
        codes = [
            LostWorkerError.exit_code if index in told else process.returncode
            for index, process in enumerate(processes)
        ]
        for index, (code, message) in enumerate(zip(codes, messages, strict=True)):
            if index and code > 0 and code != LostWorkerError.exit_code:
                message.seek(0)
                say(
                    f"worker {index} ended with {code}:"
                    f" {message.read().decode(errors='replace').strip()[-500:]}"
                )
        return codes if codes[0] else [0] * workers


def _start(
    words: Sequence[str], addresses: Sequence[str], index: int, messages: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start one worker in a session of its own, so that Ctrl-C reaches it once, from here.

    What others than the chief say is kept.
    """
    config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    output: dict[str, Any] = (
        {} if index == 0 else {"stdout": subprocess.DEVNULL, "stderr": messages}
    )
    command = [sys.executable, "-m", "pipeline", *words]
    environment = os.environ | {"TF_CONFIG": json.dumps(config)}
    return subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        preexec_fn=_die_with_parent,  # noqa: PLW1509
        **output,
    )


def _die_with_parent() -> None:
    """Ask Linux to send SIGTERM to this process when its parent has died, however."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG of prctl(2)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> set[int]:
    """Wait until all have ended, and return which of them were ended from here.

    Once one has failed, the others have a limited time to end: little where the chief has failed by
    itself, as nobody else writes.
    """
    chief, ended_at, told = processes[0], 0.0, set[int]()
    try:
        while running := {
            index for index, process in enumerate(processes) if process.poll() is None
        }:
            time.sleep(0.1)
            if chief.returncode is None and not any(process.returncode for process in processes):
                continue  # nobody has ended, or others whose work is done
            ended_at = ended_at or time.monotonic()
            failed = (
                chief.returncode is not None
                and chief.returncode > 0
                and chief.returncode != LostWorkerError.exit_code
            )
            if time.monotonic() > ended_at + (2.0 if failed else _NOTICE_SECONDS):
                for index in running - told:
                    processes[index].send_signal(signal.SIGKILL if index else signal.SIGTERM)
                told |= running
            if time.monotonic() > ended_at + _NOTICE_SECONDS + _SAVE_SECONDS:
                _signal(processes, signal.SIGKILL)
    except KeyboardInterrupt as asked:
        _signal(
            processes, signal.SIGTERM if type(asked).__name__ == "Terminated" else signal.SIGINT
        )
        raise
    return told


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for those that were told to end, for the chief as long as it may save, and end those that do not."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        processes[0].wait(timeout=_SAVE_SECONDS)
    _signal(processes, signal.SIGKILL)
    for process in processes:
        process.wait()


def _signal(processes: Sequence[subprocess.Popen[bytes]], sign: signal.Signals) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(sign)


def _free_ports(count: int) -> list[int]:
    """Return ports of this machine that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
