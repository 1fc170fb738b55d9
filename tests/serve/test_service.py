"""The service, asked over real connections."""

import base64
import concurrent.futures
import contextlib
import http.client
import io
import itertools
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from pipeline.artifacts import file_sha256
from pipeline.config.serve import ServeConfig
from pipeline.errors import CheckpointError, PipelineError, TrackingError
from pipeline.model.weights import save_model
from pipeline.release.classify import load_classifier
from pipeline.release.package import GoldenImage, Release, read_package, write_package
from pipeline.serve import reload
from pipeline.serve import service as service_module
from pipeline.serve.batching import Batcher

SIZE = 12
NAMES = (
    "cat",
    "<img src=x onerror=document.title='bad'>",
    "sea horse",
    "א",
    "ship",
    "both \"quotes' &amp;",
    "dog",
)
PNG, JPEG = "image/png", "image/jpeg"


def tiny(seed):
    image = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 64, offset=-2.0)(image)
    x = keras.layers.Conv2D(
        8, 5, activation="relu", kernel_initializer=keras.initializers.HeNormal(seed)
    )(x)
    return keras.Model(
        image,
        keras.layers.Dense(len(NAMES), kernel_initializer=keras.initializers.HeNormal(seed + 1))(
            keras.layers.Flatten()(x)
        ),
    )


def encoded(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def one_release(folder, version, seed):
    """Write a release with golden images, and return it with what its classifier says of ten
    images."""
    folder.mkdir()
    save_model(tiny(seed), folder / "model.keras")
    release = Release(
        directory=folder,
        model_file="model.keras",
        model_sha256=file_sha256(folder / "model.keras"),
        class_names=NAMES,
        image_size=SIZE,
        short_side=SIZE + 2,
        temperature=1.5,
    )
    classifier = load_classifier(release, batch=8)
    rng = np.random.default_rng(5)
    images = [
        encoded(
            rng.integers(0, 256, (20 + 3 * n, 30, 3), dtype=np.uint8), "JPEG" if n % 2 else "PNG"
        )
        for n in range(10)
    ]
    logits = classifier.logits(np.stack([classifier.pixels(image) for image in images]))
    golden = [GoldenImage(image, 0, own) for image, own in zip(images[:3], logits, strict=False)]
    write_package(release, folder / "model.keras", golden, folder / "package")
    read = read_package(folder / "package", name="tiny", version=version)
    probabilities = classifier.probabilities(logits)
    return SimpleNamespace(release=read, images=images, logits=logits, probabilities=probabilities)


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    return [
        one_release(tmp_path_factory.mktemp("releases") / version, version, seed)
        for version, seed in (("1", 0), ("2", 40))
    ]


@pytest.fixture(scope="module", autouse=True)
def opened_once():
    """Compiling takes most of a second: a model that another test has opened is taken as it is."""
    with pytest.MonkeyPatch.context() as patch:
        classifiers = {}

        def load(release, *, batch):
            key = release.model_path, batch
            return (
                classifiers[key]
                if key in classifiers
                else classifiers.setdefault(key, load_classifier(release, batch=batch))
            )

        patch.setattr(reload, "load_classifier", load)
        yield


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def running(find, changed=None, *, wait=True, **settings):
    """Run a service in a thread, and end it."""
    config = ServeConfig(
        port=free_port(), **{"batch": 4, "wait_milliseconds": 1, "reload_seconds": 0.05, **settings}
    )
    said, ended = [], []

    def run():
        try:
            service.run()
        except PipelineError as error:
            ended.append(error)

    service = service_module.Service(find, config, say=said.append, changed=changed)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        if wait:
            until(lambda: ask(config.port, "GET", "/ready")[0] == 200)
        yield SimpleNamespace(
            port=config.port, service=service, said=said, thread=thread, ended=ended
        )
    finally:
        service.stop()
        thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def served(releases):
    with running(lambda: releases[0].release) as service:
        yield service


def until(true, seconds=20.0):
    """Wait until something holds; a connection that is refused holds nothing."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if true():
                return
        time.sleep(0.01)
    raise AssertionError("it never happened")


def ask(port, method, path, body=b"", kind="", headers=None):
    """Return the status, what the JSON or the text says, and the headers of an answer."""
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    ) as connection:
        connection.request(
            method, path, body, {**({"Content-Type": kind} if kind else {}), **(headers or {})}
        )
        return answer_of(connection.getresponse())


def answer_of(response):
    text = response.read()
    is_json = response.headers.get_content_type() == "application/json"
    return response.status, json.loads(text) if is_json else text.decode(), response.headers


def form(files, boundary="frontier", name="image"):
    """Return a multipart body."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}";'
        f' filename="{file}"\r\nContent-Type: image/png\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for file, content in files
    ]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()])


FORM = "multipart/form-data; boundary=frontier"


def as_json(images, **more):
    return json.dumps(
        {"images": [base64.b64encode(image).decode() for image in images], **more}
    ).encode()


def require_right(told, released, places):
    """The answer is that of this release for these images."""
    assert told["model"]["version"] == released.release.version
    assert told["model"]["release_sha256"] == released.release.sha256()
    np.testing.assert_allclose(
        [one["logits"] for one in told["predictions"]], released.logits[places], atol=1e-5
    )
    for one, probabilities in zip(told["predictions"], released.probabilities[places], strict=True):
        order = np.argsort(-probabilities, kind="stable")[: len(one["top"])]
        assert [guess["number"] for guess in one["top"]] == order.tolist()
        assert [guess["class"] for guess in one["top"]] == [NAMES[number] for number in order]
        np.testing.assert_allclose(
            [guess["probability"] for guess in one["top"]], probabilities[order], atol=1e-5
        )


def good_request(port, released, places=(0,)):
    status, told, _ = ask(
        port,
        "POST",
        "/predict?logits=true",
        form([("a.png", released.images[place]) for place in places]),
        FORM,
    )
    assert status == 200, told
    require_right(told, released, list(places))


def metrics(port):
    """Return name and labels -> value of all metrics."""
    families = text_string_to_metric_families(ask(port, "GET", "/metrics")[1])
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


# -- answers ---------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    "kind",
    [
        "image/png",
        "IMAGE/anything; x=y",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "",
    ],
)
def test_a_file_as_it_is_may_come_as_any_kind_of_file(served, releases, kind):
    status, told, _ = ask(served.port, "POST", "/predict?logits=true", releases[0].images[0], kind)
    assert status == 200
    assert [one["name"] for one in told["predictions"]] == ["0"]
    require_right(told, releases[0], [0])


def test_names_are_those_of_the_files(served, releases):
    names = ["cat.jpg", "<script>alert(1)</script>", "", "שלום.png"]
    _, told, _ = ask(
        served.port,
        "POST",
        "/predict",
        form([(name, releases[0].images[0]) for name in names]),
        FORM,
    )
    assert [one["name"] for one in told["predictions"]] == [*names[:2], "2", names[3]]


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


def test_base64_may_be_broken_into_lines(served, releases):
    text = base64.encodebytes(releases[0].images[0]).decode()
    status, _, _ = ask(
        served.port, "POST", "/predict", json.dumps({"images": [text]}).encode(), "application/json"
    )
    assert status == 200


def test_the_model_is_described(served, releases):
    release = releases[0].release
    _, told, _ = ask(served.port, "GET", "/model")
    assert (told["name"], told["version"], told["sha256"]) == ("tiny", "1", release.model_sha256)
    assert told["release_sha256"] == file_sha256(release.directory / "release.json")
    assert (
        tuple(told["class_names"]),
        told["image_size"],
        told["short_side"],
        told["temperature"],
    ) == (NAMES, SIZE, SIZE + 2, 1.5)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", told["since"])
    assert told["limits"] == {"bytes": 10_000_000, "images": 64, "pixels": 50_000_000}
    assert ask(served.port, "GET", "/health")[:2] == (200, {"alive": True})


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


def test_metrics_count_what_was_asked(served, releases):
    before = metrics(served.port)
    good_request(served.port, releases[0], (0, 1, 2))
    ask(served.port, "POST", "/predict", b"no", PNG)
    ask(served.port, "GET", "/made/up/1")
    ask(served.port, "GET", "/made/up/2")
    after = metrics(served.port)
    for key, more in {
        ("alexnet_requests_total", "/predict", "200"): 1,
        ("alexnet_requests_total", "/predict", "422"): 1,
        ("alexnet_requests_total", "404", "other"): 2,
        ("alexnet_images_total", "answered"): 3,
        ("alexnet_images_total", "unusable"): 1,
        ("alexnet_predict_seconds_count",): 2,
        ("alexnet_batch_images_sum",): 3,
    }.items():
        labels = tuple(sorted(key[1:]))
        assert after[key[0], *labels] - before.get((key[0], *labels), 0) == more, key
    assert (
        after["alexnet_model_info", *sorted(("tiny", "1", releases[0].release.model_sha256))] == 1
    )
    assert after["alexnet_queue_images",] == 0


# -- refusals --------------------------------------------------------------------------------------


def bomb(side):
    """Return a PNG file whose header promises side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + b"\0" * 100
    )


IMAGE = encoded(np.zeros((20, 20, 3), np.uint8))
BASE64 = base64.b64encode(IMAGE).decode()
JSON = "application/json"
REFUSALS = {
    "text": (422, "text, not an image", b"hello", PNG),
    "garbage": (422, "not a JPEG", bytes(range(256)) * 40, PNG),
    "empty": (422, "empty file", b"", PNG),
    "cut off": (422, "The image cannot be used", IMAGE[:60], PNG),
    "bomb": (422, "17000 x 17000 pixels are more than 50,000,000", bomb(17_000), PNG),
    "bomb in a form": (422, "17000 x 17000 pixels", form([("a.png", bomb(17_000))]), FORM),
    "no kind of ours": (415, "No image comes as text/plain", IMAGE, "text/plain"),
    "form of fields": (
        415,
        "x-www-form-urlencoded",
        b"image=cat",
        "application/x-www-form-urlencoded",
    ),
    "no JSON": (400, "no JSON", b'{"images": [', JSON),
    "not UTF-8": (400, "no JSON", b'{"images": ["\xff"]}', JSON),
    "a JSON list": (422, "no use for the JSON", b"[]", JSON),
    "no images": (422, "images", b'{"top": 3}', JSON),
    "no image": (422, "images", b'{"images": []}', JSON),
    "numbers for images": (422, "images.0", b'{"images": [3]}', JSON),
    "unknown wish": (
        422,
        "'topp' in the JSON",
        json.dumps({"images": [BASE64], "topp": 3}).encode(),
        JSON,
    ),
    "top as text": (422, "top", json.dumps({"images": [BASE64], "top": "3"}).encode(), JSON),
    "no base64": (422, "images[1]", json.dumps({"images": [BASE64, "%%%"]}).encode(), JSON),
    "data address": (
        422,
        "data:image/png",
        json.dumps({"images": ["data:image/png;base64," + BASE64]}).encode(),
        JSON,
    ),
    "base64 of text": (
        422,
        "text, not an image",
        json.dumps({"images": [base64.b64encode(b"hello").decode()]}).encode(),
        JSON,
    ),
    "deep JSON": (400, "no JSON", b"[" * 100_000, JSON),
    "no boundary": (400, "no boundary", form([("a.png", IMAGE)]), "multipart/form-data"),
    "wrong boundary": (
        400,
        "The form cannot be read",
        form([("a.png", IMAGE)]),
        "multipart/form-data; boundary=other",
    ),
    "cut off form": (400, "cut off", form([("a.png", IMAGE)])[:-10], FORM),
    "no form": (400, "The form cannot be read", b"hello", FORM),
    "empty form": (422, "at least one file", b"--frontier--\r\n", FORM),
    "field": (
        422,
        "'top'",
        b'--frontier\r\nContent-Disposition: form-data; name="top"\r\n\r\n3\r\n--frontier--\r\n',
        FORM,
    ),
    "too many images": (413, "at most 64", form([("a.png", IMAGE)] * 65), FORM),
    "too many in JSON": (413, "at most 64. Received 65", as_json([IMAGE] * 65), JSON),
    "too large": (413, "at most 10,000,000 bytes. Received 10,000,001", b"x" * 10_000_001, PNG),
    "a million wrong keys": (
        422,
        "'a0'",
        json.dumps({f"a{n}": 1 for n in range(600_000)}).encode(),
        JSON,
    ),
    "a million numbers": (
        413,
        "Received 1,000,000",
        json.dumps({"images": [3] * 1_000_000}).encode(),
        JSON,
    ),
    "huge base64": (413, "too large", as_json([b"x" * 8_000_000]), JSON),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_says_why_and_harms_nobody(served, releases, name):
    status, words, body, kind = REFUSALS[name]
    answers = []
    beside = threading.Thread(
        target=lambda: answers.append(good_request(served.port, releases[0], (0, 1)))
    )
    beside.start()
    found, told, headers = ask(served.port, "POST", "/predict", body, kind)
    beside.join()
    assert (found, set(told)) == (status, {"error"}), told
    assert words in told["error"]
    assert "Expected" in told["error"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert len(answers) == 1


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/nothing", 404, "Received /nothing"),
        ("POST", "/predict/", 404, "Received /predict/"),
        ("GET", "/docs", 404, "nothing here"),
        ("GET", "/openapi.json", 404, "nothing here"),
        ("GET", "/predict", 405, "Expected POST. Received GET"),
        ("DELETE", "/model", 405, "Received DELETE"),
        ("OPTIONS", "/predict", 405, "Received OPTIONS"),
        ("POST", "/predict?top=0", 422, "top"),
        ("POST", "/predict?top=8", 422, "top=1 to 7"),
        ("POST", "/predict?top=x", 422, "top"),
        ("POST", "/predict?logits=perhaps", 422, "logits"),
        ("POST", "/predict?topk=3", 422, "topk"),
    ],
)
def test_a_wrong_address_is_explained(served, method, path, status, words):
    found, told, headers = ask(
        served.port,
        method,
        path,
        IMAGE if method == "POST" else b"",
        PNG if method == "POST" else "",
    )
    assert (found, set(told)) == (status, {"error"})
    assert words in told["error"]
    assert ("Allow" in headers) == (status == 405)
    assert "Access-Control-Allow-Origin" not in headers


def test_wishes_beside_json_are_refused(served):
    status, told, _ = ask(served.port, "POST", "/predict?top=3", as_json([IMAGE]), JSON)
    assert status == 422
    assert "?top" in told["error"]


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_is_not_read_beyond_its_bound(releases, declared):
    """The client has sent one large body in full, sees the answer, and the connection ends; nothing
    of it was kept."""
    with running(lambda: releases[0].release, max_megabytes=0.1) as service:
        body = b"x" * 3_000_000
        parts = (body[start : start + 60_000] for start in range(0, len(body), 60_000))
        status, told, headers = ask(
            service.port, "POST", "/predict", body if declared else parts, PNG
        )
        assert status == 413
        assert "at most 100,000 bytes" in told["error"]
        assert headers["Connection"] == "close"
        assert service.service._answers._bytes == 0
        good_request(service.port, releases[0])


def raw(port, head, body=b""):
    """Open a connection and send the beginning of a request."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(head.encode() + body)
    return connection


def head_of(port, length, kind=PNG, path="/predict"):
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {kind}\r\nContent-Length:"
        f" {length}\r\n\r\n"
    )


def read_answer(connection):
    response = http.client.HTTPResponse(connection)
    response.begin()
    with contextlib.closing(response):
        return answer_of(response)


def test_what_comes_in_too_slowly_is_given_up(releases):
    with running(lambda: releases[0].release, upload_seconds=0.3) as service:
        with contextlib.closing(
            raw(service.port, head_of(service.port, 1000), b"x" * 100)
        ) as connection:
            good_request(service.port, releases[0])
            status, told, headers = read_answer(connection)
        assert (status, headers["Connection"]) == (408, "close")
        assert "within 0.3 seconds. Received 100 bytes" in told["error"]
        with contextlib.closing(raw(service.port, "POST /pred")) as connection:
            assert connection.recv(100) == b""  # a head that never ends
        with contextlib.closing(raw(service.port, "")) as connection:
            assert connection.recv(100) == b""


def test_a_client_that_leaves_harms_nobody(served, releases):
    before = metrics(served.port).get(("alexnet_requests_total", "/predict", "499"), 0)
    raw(served.port, head_of(served.port, 1000), b"x" * 100).close()
    until(
        lambda: (
            metrics(served.port).get(("alexnet_requests_total", "/predict", "499"), 0) == before + 1
        )
    )
    good_request(served.port, releases[0])
    assert served.service._answers._bytes == 0


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
    with running(lambda: releases[0].release, host="0.0.0.0") as open_to_all:  # noqa: S104 - the bound that is tested
        assert ask(open_to_all.port, "GET", "/model", headers={"Host": "cats.example"})[0] == 200


def test_no_answer_tells_what_it_runs_on(served):
    for path in ("/", "/model", "/nothing"):
        headers = ask(served.port, "GET", path)[2]
        assert "Server" not in headers
        assert "'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"


# -- more than there is room for -------------------------------------------------------------------


@contextlib.contextmanager
def held(service):
    """Let the model of a service wait until this ends."""
    gate, forward = threading.Event(), service.service._changeover.now.classifier._forward
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
        running(lambda: released.release, queue=4, batch=2) as service,
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
    monkeypatch.setattr(service_module, "_BODIES", 1)
    with running(lambda: releases[0].release, max_megabytes=0.1) as service:
        with contextlib.closing(raw(service.port, head_of(service.port, 90_000), b"x" * 60_000)):
            until(lambda: service.service._answers._bytes == 60_000)
            status, _, headers = ask(service.port, "POST", "/predict", b"x" * 60_000, PNG)
            assert (status, headers["Retry-After"]) == (429, "1")
            good_request(service.port, releases[0])
        until(lambda: service.service._answers._bytes == 0)
        assert ask(service.port, "POST", "/predict", b"x" * 60_000, PNG)[0] == 422
        assert metrics(service.port)["alexnet_rejected_total", "bytes"] == 1


def test_large_images_of_one_request_let_those_of_another_in_between(served, releases, monkeypatch):
    """Images beyond a bound go through one thread; here all of them are beyond it but the first."""
    monkeypatch.setattr(service_module, "_LARGE", 601)
    cut, pixels_of = [], service_module._pixels_or_reason

    def slowly(*arguments):
        cut.append(threading.current_thread().name)
        time.sleep(0.05)
        return pixels_of(*arguments)

    monkeypatch.setattr(service_module, "_pixels_or_reason", slowly)
    with concurrent.futures.ThreadPoolExecutor(1) as clients:
        many = clients.submit(good_request, served.port, releases[0], tuple(range(10)))
        until(lambda: cut)
        good_request(served.port, releases[0], (9,))
        assert len(cut) < 10
        many.result(20)
    assert sorted(name[:5] for name in cut) == ["decod"] + ["large"] * 10


# -- the batcher -----------------------------------------------------------------------------------


class Summing:
    """Stands in for a classifier: the logits are the sums of the images; what holds a 13 cannot be
    answered."""

    def __init__(self):
        self.batches = []

    def logits(self, pixels):
        self.batches.append(len(pixels))
        if (pixels == 13).any():
            raise CheckpointError("13 is no number.")
        return pixels.reshape(len(pixels), -1).sum(axis=1, keepdims=True)


def test_a_batch_holds_images_of_one_classifier_up_to_its_size():
    first, second = Summing(), Summing()
    batcher = Batcher(4, 0.2, lambda _: None)
    images = [np.full((2, 2), value) for value in range(6)]
    answers = [
        batcher.answer(first, images),
        batcher.answer(second, images[:3]),
        batcher.answer(first, images[:1]),
    ]
    assert [answer.result(5).ravel().tolist() for answer in answers] == [
        [0, 4, 8, 12, 16, 20],
        [0, 4, 8],
        [0],
    ]
    assert (first.batches, second.batches) == ([4, 2, 1], [3])
    batcher.close()


def test_the_first_image_waits_for_others_only_so_long():
    classifier, batcher = Summing(), Batcher(4, 0.3, lambda _: None)
    started = time.monotonic()
    answers = [batcher.answer(classifier, [np.ones((2, 2))])]
    time.sleep(0.1)
    answers.append(batcher.answer(classifier, [np.ones((2, 2))]))
    assert [answer.result(5).item() for answer in answers] == [4, 4]
    assert 0.25 < time.monotonic() - started < 2
    assert classifier.batches == [2]
    batcher.close()


def test_an_image_that_cannot_be_answered_harms_no_other():
    classifier, batcher = Summing(), Batcher(8, 0.2, lambda _: None)
    answers = [
        batcher.answer(classifier, [np.full((2, 2), value), np.ones((2, 2))])
        for value in (1, 13, 2)
    ]
    assert answers[0].result(5).ravel().tolist() == [4, 4]
    assert answers[2].result(5).ravel().tolist() == [8, 4]
    with pytest.raises(CheckpointError, match="13"):
        answers[1].result(5)
    batcher.close()


def test_a_model_whose_answer_is_no_number_is_said_to_be_at_fault(releases):
    with running(lambda: releases[0].release) as service:
        forward = service.service._changeover.now.classifier._forward
        before = dict(forward)
        forward.update(
            {size: lambda pixels: np.full((len(pixels), len(NAMES)), np.nan) for size in before}
        )
        status, told, _ = ask(service.port, "POST", "/predict", IMAGE, PNG)
        assert status == 500
        assert "Expected finite logits" in told["error"]
        forward.update(before)
        good_request(service.port, releases[0])


# -- another model ---------------------------------------------------------------------------------


class Store:
    """Stands in for the registry: which release is the champion, or what is wrong."""

    def __init__(self, release):
        self.release, self.identity, self.error, self.asked = release, "1", None, 0

    def find(self):
        self.asked += 1
        if isinstance(self.release, Exception):
            raise self.release
        return self.release

    def changed(self):
        if self.error:
            raise self.error
        return self.identity


def test_a_new_model_takes_over_under_load_without_a_failed_request(releases, monkeypatch):
    monkeypatch.setattr(reload, "load_classifier", load_classifier)
    store, ending = Store(releases[0].release), threading.Event()

    def client(seed):
        rng, versions = np.random.default_rng(seed), []
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
        ) as connection:
            while not (ending.is_set() and versions[-5:] == ["2"] * 5):
                places = rng.integers(0, 10, 3)
                body = as_json([releases[0].images[place] for place in places], logits=True)
                connection.request("POST", "/predict", body, {"Content-Type": JSON})
                status, told, _ = answer_of(connection.getresponse())
                assert status == 200, told
                versions.append(told["model"]["version"])
                require_right(told, releases[int(versions[-1]) - 1], places)
        return versions

    with (
        running(store.find, store.changed) as service,
        concurrent.futures.ThreadPoolExecutor(6) as clients,
    ):
        done = [clients.submit(client, seed) for seed in range(6)]
        time.sleep(0.3)
        store.release, store.identity = releases[1].release, "2"
        until(lambda: ask(service.port, "GET", "/model")[1]["version"] == "2")
        ending.set()
        for versions in (one.result(30) for one in done):
            assert [version for version, _ in itertools.groupby(versions)] == ["1", "2"]
        after = metrics(service.port)
        assert after["alexnet_reloads_total", "ok"] == 1
        assert {key[1:] for key in after if key[0] == "alexnet_model_info"} == {
            tuple(sorted(("tiny", "2", releases[1].release.model_sha256)))
        }
        assert not any(key[0] == "alexnet_requests_total" and key[1] == "500" for key in after)
        assert service.said[1:] == [
            f"tiny {version} answers now (SHA-256 {own.release.model_sha256[:12]}...)."
            for version, own in zip("12", releases, strict=True)
        ]


def test_a_model_that_cannot_take_over_leaves_the_old_one_answering(
    releases, monkeypatch, tmp_path
):
    monkeypatch.setattr(reload, "RETRY_SECONDS", 0.3)
    shutil.copytree(releases[1].release.directory, tmp_path / "wrong")
    text = (tmp_path / "wrong" / "release.json").read_text()
    golden = releases[1].release.golden[0].logits
    (tmp_path / "wrong" / "release.json").write_text(
        text.replace(repr(golden[0]), repr(golden[0] + 0.01))
    )
    other = read_package(tmp_path / "wrong", name="tiny", version="3")
    store = Store(releases[0].release)
    with running(store.find, store.changed) as service:
        store.error = TrackingError("The registry does not answer.")
        until(lambda: metrics(service.port)["alexnet_reloads_total", "no store"] >= 2)
        store.error = None
        store.release, store.identity = CheckpointError("The released file is damaged."), "2"
        until(lambda: store.asked >= 4)  # tried again after a while
        store.release, store.identity = other, "3"
        until(lambda: len(service.said) == 5)
        good_request(service.port, releases[0])
        assert service.said[2:4] == [
            "tiny 1 goes on answering: The registry does not answer.",
            "tiny 1 goes on answering: The released file is damaged.",
        ]
        assert "does not answer its golden images" in service.said[4]
        store.release = releases[1].release  # mended in place: tried again without a new identity
        until(lambda: ask(service.port, "GET", "/model")[1]["version"] == "2")
        good_request(service.port, releases[1])
        counts = {
            result: metrics(service.port)["alexnet_reloads_total", result]
            for result in ("ok", "failed")
        }
        assert counts["ok"] == 1
        assert counts["failed"] >= 3


def test_the_same_release_is_not_opened_twice(releases):
    store = Store(releases[0].release)
    with running(store.find, store.changed) as service:
        opened = service.service._changeover.now
        store.identity = "moved and moved back"
        until(lambda: store.asked == 2)
        time.sleep(0.2)
        assert store.asked == 2
        assert service.service._changeover.now is opened


# -- beginning and end -----------------------------------------------------------------------------


def test_nobody_is_sent_here_before_the_model_is_open_and_while_the_service_ends(releases):
    gate = threading.Event()
    with running(lambda: gate.wait(20) and releases[0].release, wait=False) as service:
        until(lambda: ask(service.port, "GET", "/health")[0] == 200)
        for method, path in (("GET", "/ready"), ("POST", "/predict"), ("GET", "/model")):
            status, told, headers = ask(service.port, method, path)
            assert (status, headers["Retry-After"]) == (503, "1")
            assert "being opened" in told["error"]
        gate.set()
        until(lambda: ask(service.port, "GET", "/ready")[0] == 200)
        service.service._answers.drain()
        assert ask(service.port, "GET", "/ready")[0] == 503
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
            until(lambda: service.service._answers._bytes == 50)
            service.service.stop()
            until(lambda: refused(service.port))
            late.sendall(image[50:])
            status, told, _ = read_answer(late)
        assert status == 200
        require_right(told, released, [0])
        service.thread.join(10)
        assert not service.thread.is_alive()


def refused(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_first_model_that_cannot_be_opened_ends_the_service():
    def find():
        raise CheckpointError("The released file is damaged.")

    with running(find, wait=False) as service:
        service.thread.join(10)
        assert [str(error) for error in service.ended] == ["The released file is damaged."]


def test_a_port_that_is_taken_is_a_sentence(served):
    with pytest.raises(
        PipelineError, match=rf"at 127.0.0.1:{served.port} .* Name others with --port"
    ):
        service_module.serve(lambda: None, ServeConfig(port=served.port), say=print)
    with pytest.raises(PipelineError, match=r"Nothing can be served at no\.such\.host\.invalid"):
        service_module.serve(lambda: None, ServeConfig(host="no.such.host.invalid"), say=print)


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
from pipeline.serve.service import serve
from pathlib import Path
serve(lambda: read_package(Path(sys.argv[1])), ServeConfig(port=int(sys.argv[2])), say=lambda line: print(line, flush=True))
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


# -- the page --------------------------------------------------------------------------------------

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
with_browser = pytest.mark.skipif(
    CHROMIUM is None,
    reason="the page was not tested in a browser: install Debian's package `chromium`",
)
BITING = "<img src=x onerror=document.title='bad'>.png"


@contextlib.contextmanager
def opened(port, **look):
    """Open the page in a browser; nothing may go wrong in it, and it may ask nobody but the
    service."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )  # no sandbox: CI is root in a container
        page = browser.new_page(**look)
        asked, wrong = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "console",
            lambda line: wrong.append(line.text) if line.type in ("error", "warning") else None,
        )
        page.goto(f"http://127.0.0.1:{port}/")
        yield page, wrong
        assert [
            url
            for url in asked
            if not url.startswith((f"http://127.0.0.1:{port}/", "blob:", "data:"))
        ] == []
        browser.close()


def photo():
    """Return a photograph as a JPEG file."""
    from sklearn.datasets import load_sample_image

    return encoded(load_sample_image("flower.jpg"), "JPEG")


@with_browser
@pytest.mark.parametrize(
    ("scheme", "width"), [("light", 1000), pytest.param("dark", 390, marks=pytest.mark.slow)]
)
def test_the_page_shows_what_an_image_is_taken_for(served, tmp_path, scheme, width):
    file = photo()
    _, told, _ = ask(served.port, "POST", "/predict", file, JPEG)
    expected = [
        (guess["class"], f"{100 * guess['probability']:.1f} %")
        for guess in told["predictions"][0]["top"]
    ]
    with opened(served.port, color_scheme=scheme, viewport={"width": width, "height": 900}) as (
        page,
        wrong,
    ):
        page.set_input_files("#file", {"name": BITING, "mimeType": JPEG, "buffer": file})
        page.locator("li").nth(4).wait_for()
        rows = page.locator(".line").evaluate_all(
            "lines => lines.map(line => [...line.children].map(part => part.textContent))"
        )
        assert [tuple(row) for row in rows] == [
            (name, share.replace("0.0 %", "< 0.1 %")) for name, share in expected
        ]
        assert page.locator("h2").text_content() == BITING
        assert page.title() == "tiny 1"
        assert "tiny 1" in page.locator("#model").text_content()
        assert page.evaluate("document.querySelector('article img').naturalWidth") == 640
        widths = page.locator(".bar i").evaluate_all(
            "bars => bars.map(bar => bar.getBoundingClientRect().width)"
        )
        assert widths == sorted(widths, reverse=True)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(
            "document.querySelector('li').getBoundingClientRect().width > innerWidth / 2"
        )
        page.screenshot(path=tmp_path / f"{scheme}.png", full_page=True)
        assert wrong == []


@pytest.mark.slow
@with_browser
def test_the_page_says_what_is_wrong(releases, tmp_path):
    with (
        running(lambda: releases[0].release, max_megabytes=0.2) as service,
        opened(service.port) as (page, _),
    ):
        page.locator("#model:not(:empty)", has_text="tiny 1").wait_for()
        page.set_input_files("#file", {"name": "notes.png", "mimeType": PNG, "buffer": b"hello"})
        page.locator(".wrong", has_text="text, not an image").wait_for()
        assert page.locator("img").count() == 0
        assert page.evaluate("document.querySelector('.wrong').getBoundingClientRect().width") > 400
        page.set_input_files(
            "#file", {"name": "large.png", "mimeType": PNG, "buffer": b"x" * 300_000}
        )
        page.locator(".wrong", has_text="Expected at most 0.2 MB. Received 0.3 MB").wait_for()
        page.evaluate(
            """base64 => {
                  const data = new DataTransfer(), bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
                  data.items.add(new File([bytes], "pasted.png", { type: "image/png" }));
                  document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
                }""",
            BASE64,
        )
        page.locator("article", has_text="pasted.png").locator("li").nth(4).wait_for()
        service.service.stop()
        until(lambda: refused(service.port))
        page.set_input_files("#file", {"name": "late.png", "mimeType": PNG, "buffer": IMAGE})
        page.locator(".wrong", has_text="The service does not answer").wait_for()
        page.screenshot(path=tmp_path / "wrong.png", full_page=True)
