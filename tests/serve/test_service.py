"""The beginning and the end of a service."""

import contextlib
import threading

from pipeline.errors import CheckpointError
from tests.serve.client import (
    ask,
    good_request,
    head_of,
    raw,
    read_answer,
    refused,
    require_right,
    running,
    until,
)


def test_nobody_is_sent_here_before_the_model_is_open_and_while_the_service_ends(releases):
    gate = threading.Event()
    with running(lambda: gate.wait(20) and releases[0].release, wait=False) as service:
        until(lambda: ask(service.port, "GET", "/health")[0] == 200)
        for method, path in (("GET", "/ready"), ("POST", "/predict"), ("GET", "/model")):
            status, told, headers = ask(service.port, method, path)
            assert (status, headers["Retry-After"]) == (503, "1")
            assert "still loading" in told["error"]
        gate.set()
        until(lambda: ask(service.port, "GET", "/ready")[0] == 200)
        service.service._predictor.drain()
        status, told, _ = ask(service.port, "GET", "/ready")
        assert (status, told["error"]) == (503, "Shutting down; retry another instance.")
        good_request(service.port, releases[0])


def test_the_end_finishes_what_is_there(releases):
    released = releases[0]
    with running(lambda: released.release) as service:
        image = released.images[0]
        with contextlib.closing(
            raw(
                service.port,
                head_of(service.port, len(image), path="/predict?logits=true"),
                image[:50],
            )
        ) as late:
            until(lambda: service.service._predictor._bytes == 50)
            service.service.stop()
            until(lambda: refused(service.port))
            late.sendall(image[50:])
            status, told, _ = read_answer(late)
        assert status == 200
        require_right(told, released, [0])
        service.thread.join(10)
        assert not service.thread.is_alive()


def test_a_first_model_that_cannot_be_opened_ends_the_service():
    def find():
        raise CheckpointError("The released file is damaged.")

    with running(find, wait=False) as service:
        service.thread.join(10)
        assert [str(error) for error in service.ended] == ["The released file is damaged."]
