"""The table of endpoints, the metrics, and requests for paths that do not exist."""

import re

import pytest

from pipeline.artifacts import file_sha256
from tests.serve.client import IMAGE, NAMES, PNG, SIZE, ask, good_request, metrics


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


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/nothing", 404, "nothing at /nothing; use GET /, POST /predict, GET /model"),
        ("POST", "/predict/", 404, "nothing at /predict/"),
        ("GET", "/docs", 404, "nothing at"),
        ("GET", "/openapi.json", 404, "nothing at"),
        ("GET", "/predict", 405, "Method GET not allowed for /predict; use POST."),
        ("DELETE", "/model", 405, "Method DELETE not allowed for /model; use"),
        ("OPTIONS", "/predict", 405, "Method OPTIONS not allowed for /predict"),
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
