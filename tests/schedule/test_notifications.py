import contextlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipeline.schedule import notifications
from pipeline.schedule.notifications import send_notification

EVENT = {
    "event": "promoted",
    "schedule": "main",
    "why": "it is better: 1.2 % < 1.4 %",
    "version": "4",
    "workdir": "/srv/w",
}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """Pause between tries for milliseconds, so that the tests wait for nothing."""
    monkeypatch.setattr(notifications, "_PAUSE_SECONDS", 0.05)


@contextlib.contextmanager
def server(answer):
    """A real HTTP server on this machine; yields its address and the requests that came."""
    came = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            came.append(
                (
                    self.command,
                    self.headers["Content-Type"],
                    self.rfile.read(int(self.headers["Content-Length"])),
                )
            )
            answer(self, len(came))

        def do_GET(self):
            came.append((self.command, "", b""))
            answer(self, len(came))

        def log_message(self, *_words):
            pass

    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{http_server.server_port}/hook/secret", came
    finally:
        http_server.shutdown()
        thread.join()
        http_server.server_close()


def answering(*codes):
    def answer(handler, number):
        handler.send_response(codes[min(number, len(codes)) - 1])
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def test_no_hook_is_told_nothing():
    assert send_notification("", EVENT) == ""
    assert send_notification("  ", EVENT) == ""


def test_a_command_reads_the_event(tmp_path):
    told = tmp_path / "told.json"
    assert (
        send_notification(f"cat > {told}; printf '%s' \"$ALEXNET_EVENT\" > {told}.kind", EVENT)
        == ""
    )
    assert json.loads(told.read_text()) == EVENT
    assert Path(f"{told}.kind").read_text() == "promoted"


def test_a_command_need_not_read_what_it_is_told():
    assert send_notification("true", EVENT | {"why": "x" * 1_000_000}) == ""


def test_a_command_that_fails_is_tried_three_times(tmp_path):
    tries = tmp_path / "tries"
    reason = send_notification(
        f"echo . >> {tries}; echo out; echo no room >&2; echo for it >&2; exit 3", EVENT
    )
    assert reason == "the command ended with 3: for it"
    assert tries.read_text().count(".") == 3


def test_a_command_that_fails_once_succeeds(tmp_path):
    assert (
        send_notification(
            f"test -e {tmp_path}/again || {{ touch {tmp_path}/again; exit 1; }}", EVENT
        )
        == ""
    )


def test_what_cannot_be_run_is_said(tmp_path):
    script = tmp_path / "hook.sh"
    script.write_text("#!/bin/sh\n")
    assert "Permission denied" in send_notification(str(script), EVENT)
    assert "not found" in send_notification(str(tmp_path / "none"), EVENT)
    assert "could not be started" in send_notification("true \0", EVENT)


def test_a_command_that_hangs_is_killed_with_what_it_started(tmp_path):
    begin = time.monotonic()
    reason = send_notification(
        f"sleep 300 & echo $! > {tmp_path}/pid; trap '' TERM; sleep 300", EVENT, limit_seconds=1
    )
    assert reason == "the command did not end within 1 s"
    assert time.monotonic() - begin < 5
    child = int((tmp_path / "pid").read_text())
    assert _is_gone(child)


def _is_gone(pid):
    for _ in range(50):
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.1)
                continue
        return True
    return False


def test_what_a_command_leaves_running_is_not_waited_for(tmp_path):
    begin = time.monotonic()
    assert send_notification(f"sleep 30 & echo $! > {tmp_path}/pid", EVENT) == ""
    assert time.monotonic() - begin < 5
    os.kill(int((tmp_path / "pid").read_text()), 9)


def test_however_much_a_command_prints_is_no_trouble():
    before = psutil.Process().memory_info().rss
    assert (
        send_notification("head -c 300000000 /dev/zero; head -c 300000000 /dev/zero >&2", EVENT)
        == ""
    )
    assert (
        send_notification("yes no >&2", EVENT, limit_seconds=1)
        == "the command did not end within 1 s"
    )
    assert psutil.Process().memory_info().rss - before < 30_000_000


def test_an_address_is_sent_the_event():
    with server(answering(204)) as (address, came):
        assert send_notification(address, EVENT) == ""
    [(command, kind, body)] = came
    assert (command, kind, json.loads(body)) == ("POST", "application/json", EVENT)


def test_an_address_that_fails_once_is_tried_again():
    with server(answering(503, 200)) as (address, came):
        assert send_notification(address, EVENT) == ""
    assert len(came) == 2


def test_an_answer_that_is_no_success_is_said_without_the_address():
    with server(answering(500)) as (address, came):
        reason = send_notification(address, EVENT)
    assert "the server answered 500" in reason
    assert "secret" not in reason
    assert len(came) == 3


def test_a_redirect_is_not_followed():
    def elsewhere(handler, _number):
        handler.send_response(302)
        handler.send_header("Location", "/elsewhere")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with server(elsewhere) as (address, came):
        assert "the server answered 302" in send_notification(address, EVENT)
    assert {command for command, _, _ in came} == {"POST"}


def test_a_server_that_drips_is_left_in_time():
    def drip(handler, _number):
        with contextlib.suppress(OSError):
            for _ in range(100):
                handler.wfile.write(b"H")
                time.sleep(0.1)

    begin = time.monotonic()
    with server(drip) as (address, _came):
        assert "did not end within 2 s" in send_notification(address, EVENT, limit_seconds=2)
    assert time.monotonic() - begin < 15


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:9/secret", "http://[::1/secret", "https://no.such.host.invalid/secret"],
)
def test_a_server_that_is_not_there_is_said(address):
    reason = send_notification(address, EVENT, limit_seconds=2)
    assert "the server was not reached" in reason or "did not end" in reason
    assert "secret" not in reason


def test_nothing_is_left_behind():
    process = psutil.Process()
    send_notification("true", EVENT)
    files, threads = process.num_fds(), threading.active_count()
    for _ in range(5):
        send_notification("exit 0", EVENT)
        send_notification("sleep 9", EVENT, limit_seconds=0.2)
    assert (process.num_fds(), threading.active_count(), process.children()) == (files, threads, [])


def test_it_imports_nothing_heavy():
    code = (
        "import sys, pipeline.schedule.notifications;"
        " print({'tensorflow', 'keras', 'mlflow', 'pydantic'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
