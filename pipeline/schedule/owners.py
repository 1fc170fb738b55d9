"""Owners: processes that claim scheduled runs, named so that a dead one is recognized.

An owner is host/pid/boot/start of the process, so that a process id that was given again, or a restart of the machine,
is not taken for the owner.
"""

from __future__ import annotations

import contextlib
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

# An owner on another host whose last heartbeat is younger than this counts as alive
_MAX_HEARTBEAT_AGE = timedelta(minutes=15)


def utc_now() -> datetime:
    """Return the time, in UTC."""
    return datetime.now(UTC)


def identify_this_process() -> str:
    """Return what names this process and no other, also after a restart of the machine.

    Host/pid/boot/start of the process.
    """
    return identify_process(os.getpid())


def identify_process(pid: int) -> str:
    """Return the same of another process of this machine."""
    return f"{socket.gethostname()}/{pid}/{_boot()}/{_started(pid)}"


def is_owner_alive(
    owner: str, heartbeat: datetime | None = None, now: datetime | None = None
) -> bool:
    """Return whether an owner lives.

    On this host whether it is that process, on another whether it was heard of lately.

    Args:
        owner: as `owner_of_this_process` names it.
        heartbeat: when it was last heard of, UTC.
        now: the time, UTC.
    """
    host, _, process = owner.partition("/")
    if not process:
        return False
    if host != socket.gethostname():
        return heartbeat is not None and (now or utc_now()) - heartbeat < _MAX_HEARTBEAT_AGE
    pid, _, _ = process.partition("/")
    return pid.isdecimal() and owner == identify_process(int(pid)) and not process.endswith("/")


def describe_owner(owner: str) -> str:
    """Return an owner for people: `process 123 on host`."""
    host, pid, *_ = *owner.split("/"), ""
    return f"process {pid} on {host}"


def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _started(pid: int) -> str:
    """Return when a process was started, in clock ticks since the boot.

    Empty where there is none, or only what is left of one.
    """
    with contextlib.suppress(OSError):
        fields = (
            Path(f"/proc/{pid}/stat")
            .read_text(encoding="utf-8", errors="replace")
            .rpartition(")")[2]
            .split()
        )  # a name may hold ")"
        return "" if fields[0] in "ZX" else fields[19]
    return ""
