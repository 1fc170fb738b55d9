"""Sending a notification: to a shell command that reads JSON, or to an http(s) address.

Both run in a process of their own, so that a command that hangs or a server that answers slowly
ends with it. For an address that process is this file, which needs nothing but Python's standard
library; the address may hold a secret, so it is in no command line and in no message.
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
_ADDRESS = "ALEXNET_NOTIFY_ADDRESS"


def send_notification(target: str, event: Mapping[str, Any], *, limit_seconds: float = 30.0) -> str:
    """Send an event to a command or an address, with three tries, and return why it failed.

    A command finds the event as JSON on its standard input, and its kind in the environment,
    ALEXNET_EVENT=promoted; its output is dropped, and exit code 0 is success. An address gets a
    POST of application/json, and an answer of 2xx is success.

    Args:
        target: a shell command, or http://... or https://...; empty for none.
        event: JSON values; `event` is its kind.
        limit_seconds: for all tries together; a command that runs longer is killed with all
            processes that it started.

    Returns:
        Nothing where it succeeded, else one sentence without a capital and a full stop.
    """
    if not target.strip():
        return ""
    if re.match(r"https?://", target.strip(), re.IGNORECASE):
        arguments, more = [sys.executable, "-I", __file__], {_ADDRESS: target.strip()}
    else:
        arguments, more = ["/bin/sh", "-c", target], {}
    environment = {**os.environ, "ALEXNET_EVENT": str(event.get("event", "")), **more}
    until, reason = time.monotonic() + limit_seconds, ""
    for retry in range(_TRIES):
        if retry:
            time.sleep(max(0.0, min(_PAUSE_SECONDS * retry, until - time.monotonic())))
        if retry and time.monotonic() >= until:
            break
        text = json.dumps(event, default=str)
        reason = _run_command(arguments, environment, text, until, limit_seconds)
        if not reason:
            break
    return reason


def _run_command(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    text: str,
    until: float,
    limit_seconds: float,
) -> str:
    """Run a command once with a text on its standard input, and return why it failed."""
    try:
        # A file, as a pipe would block where the command does not read it
        with tempfile.TemporaryFile() as standard_input:
            standard_input.write(text.encode())
            standard_input.seek(0)
            process = subprocess.Popen(
                arguments,
                stdin=standard_input,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=dict(environment),
                start_new_session=True,
            )
    except (OSError, ValueError) as error:  # ValueError: a null byte in the command
        return f"the command could not be started: {error}"
    with process:
        try:
            ended, output = _wait_for_end(process, until)
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    if not ended:
        return f"the command did not end within {limit_seconds:g} s"
    if process.returncode == 0:
        return ""
    decoded = output.decode(errors="replace")
    lines = "".join(c if c.isprintable() else "\n" for c in decoded).strip().splitlines()
    last = f": {lines[-1].strip()[-300:]}" if lines else ""
    return f"the command ended with {process.returncode}{last}"


def _wait_for_end(process: subprocess.Popen[bytes], until: float) -> tuple[bool, bytes]:
    """Wait for the end of a process, however much it prints and whichever child holds its pipe.

    Returns:
        Whether it ended in time, and the end of its standard error.
    """
    stream, output = cast(IO[bytes], process.stderr), b""
    os.set_blocking(stream.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while time.monotonic() < until:
            ended = process.poll() is not None
            if selector.get_map():
                selector.select(0 if ended else min(0.1, until - time.monotonic()))
                chunk = _read_available(stream)
                output = (output + (chunk or b""))[-_TAIL_BYTES:]
                if chunk == b"":
                    selector.unregister(stream)
            elif not ended:
                time.sleep(0.05)
            if ended:
                return True, output
    return False, output


def _read_available(stream: IO[bytes]) -> bytes | None:
    """Return the bytes that are there; None for nothing yet, b"" for the end."""
    try:
        return os.read(stream.fileno(), 65_536)
    except BlockingIOError:
        return None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follow no redirect, which would turn the POST into a GET without the event."""

    def redirect_request(self, *_args: object, **_options: object) -> None:
        """Return None, which makes the answer an error."""


def _post_json(address: str, body: bytes) -> str:
    """Send JSON to an address, and return why it failed."""
    headers = {"Content-Type": "application/json", "User-Agent": "alexnet"}
    try:
        request = urllib.request.Request(address, data=body, headers=headers, method="POST")  # noqa: S310 - http or https, checked by `send_notification`
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=30):
            return ""
    except urllib.error.HTTPError as error:
        error.close()
        return f"the server answered {error.code} {error.reason}"
    except urllib.error.URLError as error:
        return f"the server was not reached: {error.reason}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return (  # its text may hold the address
            f"the server was not reached: {type(error).__name__}"
        )


if __name__ == "__main__":
    sys.exit(_post_json(os.environ[_ADDRESS], sys.stdin.buffer.read()) or 0)
