"""Predictions over real connections: right, together, and within limits."""

import concurrent.futures
import contextlib
import http.client
import threading
import time

import numpy as np

from pipeline.serve import prediction
from tests.serve.client import (
    FORM,
    IMAGE,
    JSON,
    NAMES,
    PNG,
    as_json,
    ask,
    form,
    good_request,
    head_of,
    metrics,
    raw,
    require_right,
    running,
    until,
)


def test_sixteen_clients_at_once_get_the_classifiers_own_answers(served, releases):
    released = releases[0]

    def client(seed):
        rng = np.random.default_rng(seed)
        for number in range(6):
            places = rng.integers(0, 10, rng.integers(1, 6))
            images = [released.images[place] for place in places]
            if number % 3 == 0:
                body, kind, query = as_json(images, top=3, logits=True), "application/json", ""
            elif number % 3 == 1:
                body, kind, query = (
                    form([(f"{place}.png", one) for place, one in enumerate(images)]),
                    FORM,
                    "?logits=true&top=7",
                )
            else:
                places, body, kind, query = (
                    places[:1],
                    images[0],
                    "application/octet-stream",
                    "?logits=1",
                )
            status, told, _ = ask(served.port, "POST", f"/predict{query}", body, kind)
            assert status == 200, told
            require_right(told, released, places)
            assert {len(one["top"]) for one in told["predictions"]} == {(3, 7, 5)[number % 3]}

    before = metrics(served.port)
    with concurrent.futures.ThreadPoolExecutor(16) as clients:
        assert len(list(clients.map(client, range(16)))) == 16
    after = metrics(served.port)
    batches, images = ("alexnet_batch_images_count",), ("alexnet_batch_images_sum",)
    assert after[images] - before[images] > 96 + 16
    assert (
        after[batches] - before[batches] < (after[images] - before[images]) / 2
    )  # so they were answered together


def test_of_several_images_the_unusable_ones_say_so_in_their_place(served, releases):
    good = releases[0].images
    status, told, _ = ask(
        served.port,
        "POST",
        "/predict?logits=true",
        form([("a", good[0]), ("b", b"%PDF-1.4"), ("c", good[1])]),
        FORM,
    )
    assert status == 200
    first, second, third = told["predictions"]
    assert set(second) == {"name", "error"}
    assert "a PDF file" in second["error"]
    np.testing.assert_allclose(
        [first["logits"], third["logits"]], releases[0].logits[:2], atol=1e-5
    )


def test_an_answer_comes_in_one_go(served):
    """Its second half does not wait, by the rule of Nagle, for word of the first, which a client
    gives after 40 ms."""
    seconds = []
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    ) as connection:
        for _ in range(40):
            started = time.perf_counter()
            connection.request("POST", "/predict", IMAGE, {"Content-Type": PNG})
            connection.getresponse().read()
            seconds.append(time.perf_counter() - started)
    assert np.percentile(seconds, 25) < 0.035


@contextlib.contextmanager
def held(service):
    """Let the model of a service wait until this ends."""
    gate, forward = threading.Event(), service.service._reloader.current.classifier._forward
    before = dict(forward)
    forward.update(
        {
            size: lambda pixels, own=own: gate.wait(20) and own(pixels)
            for size, own in before.items()
        }
    )
    try:
        yield
    finally:
        forward.update(before)
        gate.set()


def test_a_full_queue_refuses_at_once_and_recovers(releases):
    released = releases[0]
    with (
        running(lambda: released.release, max_queue=4, max_batch=2) as service,
        concurrent.futures.ThreadPoolExecutor(4) as clients,
    ):
        with held(service):
            waiting = [clients.submit(good_request, service.port, released) for _ in range(3)]
            until(lambda: metrics(service.port)["alexnet_queue_images",] == 3)
            started = time.monotonic()
            status, told, headers = ask(
                service.port, "POST", "/predict", as_json(released.images[:2]), JSON
            )
            assert time.monotonic() - started < 5
            assert (status, headers["Retry-After"]) == (429, "1")
            assert "at most 4 images" in told["error"]
            waiting.append(clients.submit(good_request, service.port, released))  # one more fits
            until(lambda: metrics(service.port)["alexnet_queue_images",] == 4)
            assert ask(service.port, "POST", "/predict", IMAGE, PNG)[0] == 429
        for done in waiting:
            done.result(20)
        good_request(service.port, released, (0, 1, 2, 3))
        assert (
            ask(service.port, "POST", "/predict", form([("a.png", IMAGE)] * 5), FORM)[0] == 413
        )  # would never fit
        assert metrics(service.port)["alexnet_rejected_total", "images"] == 2


def test_requests_hold_no_more_bytes_than_there_is_room_for(releases, monkeypatch):
    monkeypatch.setattr(prediction, "_MAX_BODIES", 1)
    with running(lambda: releases[0].release, max_megabytes=0.1) as service:
        with contextlib.closing(raw(service.port, head_of(service.port, 90_000), b"x" * 60_000)):
            until(lambda: service.service._predictor._bytes == 60_000)
            status, _, headers = ask(service.port, "POST", "/predict", b"x" * 60_000, PNG)
            assert (status, headers["Retry-After"]) == (429, "1")
            good_request(service.port, releases[0])
        until(lambda: service.service._predictor._bytes == 0)
        assert ask(service.port, "POST", "/predict", b"x" * 60_000, PNG)[0] == 422
        assert metrics(service.port)["alexnet_rejected_total", "bytes"] == 1


def test_large_images_of_one_request_let_those_of_another_in_between(served, releases, monkeypatch):
    """Images beyond a bound go through one thread; here all of them are beyond it but the first."""
    monkeypatch.setattr(prediction, "_LARGE_PIXELS", 601)
    cut, pixels_of = [], prediction._decode_image

    def slowly(*arguments):
        cut.append(threading.current_thread().name)
        time.sleep(0.05)
        return pixels_of(*arguments)

    monkeypatch.setattr(prediction, "_decode_image", slowly)
    with concurrent.futures.ThreadPoolExecutor(1) as clients:
        many = clients.submit(good_request, served.port, releases[0], tuple(range(10)))
        until(lambda: cut)
        good_request(served.port, releases[0], (9,))
        assert len(cut) < 10
        many.result(20)
    assert sorted(name[:5] for name in cut) == ["decod"] + ["large"] * 10


def test_a_model_whose_answer_is_no_number_is_said_to_be_at_fault(releases):
    with running(lambda: releases[0].release) as service:
        forward = service.service._reloader.current.classifier._forward
        before = dict(forward)
        forward.update(
            {size: lambda pixels: np.full((len(pixels), len(NAMES)), np.nan) for size in before}
        )
        status, told, _ = ask(service.port, "POST", "/predict", IMAGE, PNG)
        assert status == 500
        assert told["error"] == "The model tiny 1 answers with NaN or infinity."
        forward.update(before)
        good_request(service.port, releases[0])
