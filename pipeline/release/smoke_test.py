"""The smoke test of a release: a clean process serves it and answers its golden images.

The answers must be those of the evaluation.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.artifacts import GateCheck
from pipeline.config.resolution import ENVIRONMENT_PREFIX
from pipeline.release.classify import TOLERANCE
from pipeline.release.package import Release
from pipeline.reports.numbers import format_magnitude

_START_SECONDS = 180.0  # TensorFlow starts in 5 to 20 s on a busy machine
_ANSWER_SECONDS = 30.0
# `alexnet`, ended with the process that started it, also by SIGKILL, where the system can:
# prctl(PR_SET_PDEATHSIG, SIGTERM).
_SERVE = """
import ctypes, sys
try:
    ctypes.CDLL(None).prctl(1, 15)
except (OSError, AttributeError):
    pass
from pipeline.cli.main import main
main(sys.argv[1:])
"""


def run_smoke_test(release: Release, scratch: Path, tolerance: float = TOLERANCE) -> GateCheck:
    """Serve a release by `alexnet serve` in another process, and compare its answers.

    Args:
        release: in the folder that will be registered.
        scratch: a folder for the process, which sees nothing of the work directory.
        tolerance: of a logit by rounding, relative to the largest one.
    """
    if not release.golden:
        return _make_check(
            tolerance, False, "none", "There is no golden image to test a service with."
        )
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        with _serve_release(release, scratch) as port:
            found = np.asarray(
                [_request_logits(port, release.directory / image.file) for image in release.golden]
            )
    except (OSError, http.client.HTTPException, ValueError, KeyError, IndexError) as error:
        return _make_check(
            tolerance,
            False,
            "no answer",
            f"A clean process did not serve the release ({' '.join(str(error).split())[:300]}).",
        )
    expected = np.asarray([image.logits for image in release.golden])
    difference = (
        float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
    )
    passed = difference <= tolerance * max(1.0, float(np.abs(expected).max()))
    return _make_check(
        tolerance,
        passed,
        format_magnitude(difference),
        f"A clean process served the release and answered {len(expected)} golden images: largest"
        f" logit difference {format_magnitude(difference)}.",
    )


def _make_check(tolerance: float, passed: bool, measured: str, text: str) -> GateCheck:
    required = f"at most {format_magnitude(tolerance)} of the largest logit"
    return GateCheck(name="serving", passed=passed, measured=measured, required=required, text=text)


@contextlib.contextmanager
def _serve_release(release: Release, scratch: Path) -> Iterator[int]:
    """Serve a release on a free port of this machine; yield the port when the service is ready."""
    port = _find_free_port()
    arguments = [
        "serve",
        "--model",
        str(release.directory.resolve()),
        "--port",
        str(port),
        "--workdir",
        str(scratch / "workdir"),
    ]
    # No setting of the shell reaches it; our own code is found from any working directory.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)
    }
    paths = os.pathsep.join(
        filter(None, [str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")])
    )
    log = scratch / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, *arguments],
            cwd=scratch,
            env={**environment, "PYTHONPATH": paths},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the command, which ends it
        )
        try:
            _wait_until_ready(process, port, log, release)
            yield port
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
            process.kill()
            process.wait()


def _wait_until_ready(
    process: subprocess.Popen[bytes], port: int, log: Path, release: Release
) -> None:
    """Wait until the service is ready and serves the release.

    Another program may have taken the port.

    Raises:
        OSError: the process ended; the message holds the last line of its log.
        TimeoutError: it takes too long.
    """
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise OSError(
                f"it ended with {process.returncode}: {lines[-1] if lines else 'no output'}"
            )
        with contextlib.suppress(OSError):
            status, answer = _send_request(port, "GET", "/ready")
            if (
                status == http.HTTPStatus.OK
                and json.loads(answer)["model"]["release_sha256"] == release.sha256()
            ):
                return
        time.sleep(0.1)
    raise TimeoutError(f"it was not ready after {_START_SECONDS:.0f} s")


def _request_logits(port: int, image: Path) -> list[float]:
    """Return the logits that the service gives an image file."""
    status, text = _send_request(port, "POST", "/predict?logits=true", image.read_bytes())
    if status != http.HTTPStatus.OK:
        raise OSError(f"it answered {status}: {text[:200]!r}")
    return [float(value) for value in json.loads(text)["predictions"][0]["logits"]]


def _send_request(port: int, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """Return the status and the body of the service's answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_SECONDS)
    try:
        connection.request(method, path, body, {"Content-Type": "application/octet-stream"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _find_free_port() -> int:
    with socket.socket() as candidate:
        candidate.bind(("127.0.0.1", 0))
        return int(candidate.getsockname()[1])
