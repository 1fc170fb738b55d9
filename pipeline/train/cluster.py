"""The workers of a training, as TF_CONFIG names them, and how they wait for each other."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.errors import ConfigError, HungError

_EXPECTED = (
    '{"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}},'
    " equal on all workers but for the index"
)


@dataclass(frozen=True)
class Cluster:
    """The workers of a training, by address, and which of them this process is.

    The first is the chief, which writes the results.
    """

    addresses: tuple[str, ...] = ("",)
    index: int = 0

    @property
    def workers(self) -> int:
        """The number of workers; 1 without a cluster."""
        return len(self.addresses)

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that writes."""
        return self.index == 0

    def is_chief_reachable(self) -> bool:
        """Return whether something listens at the chief's address."""
        return _is_reachable(self.addresses[0])

    def wait_for_workers(self, seconds: float) -> None:
        """Wait until every other worker answers; TensorFlow would wait without hearing any signal.

        This worker's own port is held open meanwhile, and is free again when this returns.

        Args:
            seconds: how long at most; 0 is for ever.

        Raises:
            ConfigError: this worker's port is taken.
            HungError: one of them did not answer in time.
        """
        port, deadline = (
            int(self.addresses[self.index].rpartition(":")[2]),
            time.monotonic() + seconds,
        )
        missing = [address for index, address in enumerate(self.addresses) if index != self.index]
        try:
            server = socket.create_server(("", port))
        except OSError as error:
            raise ConfigError(
                f"Worker {self.index} cannot listen at {self.addresses[self.index]}"
                f" ({error.strerror})",
                expected="a free port of this machine",
                hint="End what uses it, or name another one in TF_CONFIG",
            ) from error
        with server:
            while missing := [address for address in missing if not _is_reachable(address)]:
                if seconds and time.monotonic() > deadline:
                    raise HungError(
                        f"The {self.workers} workers of TF_CONFIG did not meet within {seconds:g}"
                        f" s, which is train.watchdog_seconds: {', '.join(missing)} did not answer"
                        f" worker {self.index}",
                        expected="the same command on every worker",
                        hint="Start the missing ones",
                    )
                time.sleep(0.2)


def _is_reachable(address: str) -> bool:
    """Return whether something listens at `host:port`."""
    host, _, port = address.rpartition(":")
    with (
        contextlib.suppress(OSError),
        socket.create_connection((host.strip("[]"), int(port)), timeout=5),
    ):
        return True
    return False


def read_cluster(environment: Mapping[str, str] | None = None) -> Cluster:
    """Return the cluster that TF_CONFIG names; without it, that of this process alone.

    Raises:
        ConfigError: TF_CONFIG cannot be read, or names other tasks than workers.
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
            f"TF_CONFIG cannot be read ({type(error).__name__}: {error})",
            expected=_EXPECTED,
            received=text[:200],
        ) from error
    if (
        not known
        or jobs
        or task["type"] not in ("chief", "worker")
        or not 0 <= index < len(ports)
        or len(set(addresses)) < len(ports)
    ):
        raise ConfigError(
            "TF_CONFIG does not name workers, each once, and one of them as the task",
            expected=_EXPECTED,
            received=text[:200],
        )
    return Cluster(addresses, index)
