"""Waiting for a stop that a signal handler may set in the waiting thread itself."""

from __future__ import annotations

import threading
import time

_STOP_POLL_SECONDS = 0.1


def wait_for_stop(stop: threading.Event, seconds: float) -> bool:
    """Wait, and return whether `stop` is set.

    `Event.wait` holds a lock at its start and end, which `Event.set` takes too: a signal handler
    that calls `set` at such a moment would wait for ever for the thread that it interrupted.
    """
    until = time.monotonic() + seconds
    while not stop.is_set() and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, _STOP_POLL_SECONDS))
    return stop.is_set()
