"""The port, the hosts, the headers of every answer, and the signals."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.config.serve import ServeConfig
from pipeline.errors import PipelineError
from pipeline.serve import service as service_module
from tests.serve.client import ask, free_port, head_of, raw, read_answer, refused, running, until


def test_other_hosts_are_strangers_at_the_loopback(served, releases):
    for host in (
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "localhost.",
        "a b",
        "[::1",
        "",
    ):
        status, told, _ = ask(served.port, "GET", "/model", headers={"Host": host})
        assert (status, set(told)) == (421, {"error"}), host
    for host in ("localhost", f"LOCALHOST:{served.port}", "127.0.0.1:1", "[::1]:80"):
        assert ask(served.port, "GET", "/model", headers={"Host": host})[0] == 200
    with running(lambda: releases[0].release, host="0.0.0.0") as open_to_all:  # noqa: S104
        assert ask(open_to_all.port, "GET", "/model", headers={"Host": "cats.example"})[0] == 200


def test_no_answer_tells_what_it_runs_on(served):
    for path in ("/", "/model", "/nothing"):
        headers = ask(served.port, "GET", path)[2]
        assert "Server" not in headers
        assert "'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"


def test_a_port_that_is_taken_is_a_sentence(served):
    with pytest.raises(
        PipelineError, match=rf"at 127.0.0.1:{served.port} .* Name others with --port"
    ):
        service_module.run_service(lambda: None, ServeConfig(port=served.port), log=print)
    with pytest.raises(PipelineError, match=r"cannot listen at no\.such\.host\.invalid"):
        service_module.run_service(
            lambda: None, ServeConfig(host="no.such.host.invalid"), log=print
        )


# As the command line does, a signal raises; so whatever the service does not take itself ends the
# process otherwise.
ALONE = """
import signal, sys
def asked(number, frame):
    raise KeyboardInterrupt(number)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, asked)
from pipeline.config.serve import ServeConfig
from pipeline.release.package import read_package
from pipeline.serve.service import run_service
from pathlib import Path
config = ServeConfig(port=int(sys.argv[2]))
release = Path(sys.argv[1])
run_service(lambda: read_package(release), config, log=lambda line: print(line, flush=True))
print("ended", flush=True)
"""


@contextlib.contextmanager
def alone(releases):
    """Run a service in a process of its own."""
    port = free_port()
    command = [sys.executable, "-c", ALONE, str(releases[0].release.directory), str(port)]
    environment = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": str(Path(service_module.__file__).parents[2]),
    }
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield port, process
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_after_the_requests_in_flight(releases, number):
    image = releases[0].images[0]
    with alone(releases) as (port, process):
        until(lambda: ask(port, "GET", "/ready")[0] == 200, 60)
        with contextlib.closing(raw(port, head_of(port, len(image)), image[:50])) as late:
            time.sleep(0.2)
            process.send_signal(number)
            until(lambda: refused(port))
            late.sendall(image[50:])
            assert read_answer(late)[0] == 200
        output, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert output.splitlines()[-1] == "ended"
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_signal_while_the_model_is_opened_ends_the_process(releases):
    with alone(releases) as (port, process):
        until(lambda: ask(port, "GET", "/health")[0] == 200, 60)
        process.terminate()
        output, errors = process.communicate(timeout=40)
    assert process.returncode == 0, errors
    assert output.splitlines()[-1] == "ended"
