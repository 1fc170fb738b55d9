"""Owners: processes that claim scheduled runs, named so that a dead one is recognized.

An owner is host/pid/boot/start of the process, so that a process id that was given again, or a
restart of the machine, is not taken for the owner.
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
    """Return the owner name of this process, unique also after a restart of the machine."""
    return identify_process(os.getpid())


def identify_process(pid: int) -> str:
    """Return the owner name of a process of this machine: host/pid/boot/start of the process."""
    return f"{socket.gethostname()}/{pid}/{_read_boot_id()}/{_read_start_time(pid)}"


def is_owner_alive(
    owner: str, heartbeat: datetime | None = None, now: datetime | None = None
) -> bool:
    """Return whether an owner is alive: the process on this host, a recent heartbeat on another.

    Args:
        owner: as `identify_this_process` names it.
        heartbeat: its last one, UTC.
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
    """Return an owner as text: `process 123 on host`."""
    host, pid, *_ = *owner.split("/"), ""
    return f"process {pid} on {host}"


def _read_boot_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _read_start_time(pid: int) -> str:
    """Return the start of a process, in clock ticks since the boot; empty for a dead one."""
    with contextlib.suppress(OSError):
        fields = (
            Path(f"/proc/{pid}/stat")
            .read_text(encoding="utf-8", errors="replace")
            .rpartition(")")[2]
            .split()
        )  # a name may hold ")"
        return "" if fields[0] in "ZX" else fields[19]
    return ""
