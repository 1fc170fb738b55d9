"""Uploads of every kind, and the refusals of those that are wrong."""

import base64
import contextlib
import json
import re
import struct
import threading
import zlib

import pytest

from tests.serve.client import (
    BASE64,
    FORM,
    IMAGE,
    JSON,
    PNG,
    as_json,
    ask,
    form,
    good_request,
    head_of,
    metrics,
    raw,
    read_answer,
    require_right,
    running,
    until,
)


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


def test_base64_may_be_broken_into_lines(served, releases):
    text = base64.encodebytes(releases[0].images[0]).decode()
    status, _, _ = ask(
        served.port, "POST", "/predict", json.dumps({"images": [text]}).encode(), "application/json"
    )
    assert status == 200


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


REFUSALS = {
    "text": (422, "text, not an image", b"hello", PNG),
    "garbage": (422, "not a JPEG", bytes(range(256)) * 40, PNG),
    "empty": (422, "empty file", b"", PNG),
    "cut off": (422, "The image cannot be used", IMAGE[:60], PNG),
    "bomb": (422, "17000 x 17000 pixels are more than 50,000,000", bomb(17_000), PNG),
    "bomb in a form": (422, "17000 x 17000 pixels", form([("a.png", bomb(17_000))]), FORM),
    "no kind of ours": (415, "Content-Type text/plain is not supported", IMAGE, "text/plain"),
    "form of fields": (
        415,
        "x-www-form-urlencoded",
        b"image=cat",
        "application/x-www-form-urlencoded",
    ),
    "no JSON": (400, "not valid JSON", b'{"images": [', JSON),
    "not UTF-8": (400, "not valid JSON", b'{"images": ["\xff"]}', JSON),
    "a JSON list": (422, "The JSON is a list", b"[]", JSON),
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
    "deep JSON": (400, "not valid JSON", b"[" * 100_000, JSON),
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
    "too many in JSON": (413, "65 images, at most 64", as_json([IMAGE] * 65), JSON),
    "too large": (413, "10,000,001 bytes, at most 10,000,000 bytes", b"x" * 10_000_001, PNG),
    "a million wrong keys": (
        422,
        "'a0'",
        json.dumps({f"a{n}": 1 for n in range(600_000)}).encode(),
        JSON,
    ),
    "a million numbers": (
        413,
        "1,000,000 images",
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
    assert re.fullmatch(r"[A-Z].*\.", told["error"])
    assert not re.search(r"\. [A-Z]", told["error"])  # one sentence
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert len(answers) == 1


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
        assert service.service._predictor._bytes == 0
        good_request(service.port, releases[0])


def test_what_comes_in_too_slowly_is_given_up(releases):
    with running(lambda: releases[0].release, upload_seconds=0.3) as service:
        with contextlib.closing(
            raw(service.port, head_of(service.port, 1000), b"x" * 100)
        ) as connection:
            good_request(service.port, releases[0])
            status, told, headers = read_answer(connection)
        assert (status, headers["Connection"]) == (408, "close")
        assert "within 0.3 seconds (100 bytes received)" in told["error"]
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
    assert served.service._predictor._bytes == 0
