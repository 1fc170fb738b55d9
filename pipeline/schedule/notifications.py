"""Telling somebody what became of a retraining.

A shell command that reads JSON, or an address that it is sent to.

Both run in a process of their own, so that a command that hangs or a server that drips ends with
it. For an address that process is this file, which needs nothing but Python's own library; the
address may hold a secret, so it is no word of a command line and in no message.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import IO, Any, cast

_TRIES = 3
_PAUSE_SECONDS = 1.0  # before the second try, and twice as long before the third
_TAIL_BYTES = 4000
_ADDRESS = "ALEXNET_HOOK_ADDRESS"


def send_notification(
    notification: str, event: Mapping[str, Any], *, limit_seconds: float = 30.0
) -> str:
    """Tell a hook of an event, three times at most.

    A command finds the event as JSON on its standard input, and its kind in the environment,
    ALEXNET_EVENT=promoted; what it prints is dropped, and exit code 0 is success. An address gets a
    POST of application/json, and an answer of 2xx is success.

    Args:
        notification: a shell command, or http://... or https://...; empty for none.
        event: of values that JSON knows; `event` is its kind.
        limit_seconds: for all tries together; a command that runs longer is killed with all that it
            started.

    Returns:
        Nothing, or why it did not succeed.
    """
    if not notification.strip():
        return ""
    if re.match(r"https?://", notification.strip(), re.IGNORECASE):
        arguments, more = [sys.executable, "-I", __file__], {_ADDRESS: notification.strip()}
    else:
        arguments, more = ["/bin/sh", "-c", notification], {}
    environment = {**os.environ, "ALEXNET_EVENT": str(event.get("event", "")), **more}
    until, reason = time.monotonic() + limit_seconds, ""
    for again in range(_TRIES):
        if again:
            time.sleep(max(0.0, min(_PAUSE_SECONDS * again, until - time.monotonic())))
        if again and time.monotonic() >= until:
            break
        reason = _told(arguments, environment, json.dumps(event, default=str), until, limit_seconds)
        if not reason:
            break
    return reason


def _told(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    text: str,
    until: float,
    limit_seconds: float,
) -> str:
    """Run a hook once, and return why it did not succeed."""
    try:
        with (
            tempfile.TemporaryFile() as given
        ):  # a pipe would hang where the command does not read it
            given.write(text.encode())
            given.seek(0)
            process = subprocess.Popen(
                arguments,
                stdin=given,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=dict(environment),
                start_new_session=True,
            )
    except (OSError, ValueError) as error:  # ValueError: a null byte in the command
        return f"the hook could not be started: {error}"
    with process:
        try:
            ended, said = _awaited(process, until)
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    if not ended:
        return f"the hook did not end within {limit_seconds:g} s"
    if process.returncode == 0:
        return ""
    lines = (
        "".join(sign if sign.isprintable() else "\n" for sign in said.decode(errors="replace"))
        .strip()
        .splitlines()
    )
    return (
        "the hook ended with"
        f" {process.returncode}{': ' if lines else ''}{lines[-1].strip()[-300:] if lines else ''}"
    )


def _awaited(process: subprocess.Popen[bytes], until: float) -> tuple[bool, bytes]:
    """Wait for the end of a process, however much it prints and whoever of its own still holds the pipe.

    Returns:
        Whether it ended in time, and the end of what it printed.
    """
    stream, said = cast(IO[bytes], process.stderr), b""
    os.set_blocking(stream.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while time.monotonic() < until:
            ended = process.poll() is not None
            if selector.get_map():
                selector.select(0 if ended else min(0.1, until - time.monotonic()))
                chunk = _read(stream)
                said = (said + (chunk or b""))[-_TAIL_BYTES:]
                if chunk == b"":
                    selector.unregister(stream)
            elif not ended:
                time.sleep(0.05)
            if ended:
                return True, said
    return False, said


def _read(stream: IO[bytes]) -> bytes | None:
    """Return what is there; None for nothing yet, b"" for the end."""
    try:
        return os.read(stream.fileno(), 65_536)
    except BlockingIOError:
        return None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Elsewhere, a POST would become a GET without the event."""

    def redirect_request(self, *_args: Any, **_more: Any) -> None:
        """Return no request: the answer is an error then."""


def _posted(address: str, body: bytes) -> str:
    """Send JSON to an address, and return why it did not take it."""
    headers = {"Content-Type": "application/json", "User-Agent": "alexnet"}
    try:
        request = urllib.request.Request(address, data=body, headers=headers, method="POST")  # noqa: S310 - http or https, as `fire` saw
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=30):
            return ""
    except urllib.error.HTTPError as error:
        error.close()
        return f"the server answered {error.code} {error.reason}"
    except urllib.error.URLError as error:
        return f"the server was not reached: {error.reason}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return (  # its words may hold the address
            f"the server was not reached: {type(error).__name__}"
        )


if __name__ == "__main__":
    sys.exit(_posted(os.environ[_ADDRESS], sys.stdin.buffer.read()) or 0)
