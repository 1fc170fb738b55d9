"""Hot reloads under load, and models that cannot be loaded."""

import concurrent.futures
import contextlib
import http.client
import itertools
import shutil
import threading
import time

import numpy as np

from pipeline.errors import CheckpointError, TrackingError
from pipeline.release.classify import load_classifier
from pipeline.release.package import read_package
from pipeline.serve import reload
from tests.serve.client import (
    JSON,
    answer_of,
    as_json,
    ask,
    good_request,
    metrics,
    require_right,
    running,
    until,
)


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
        concurrent.futures.ThreadPoolExecutor(3) as clients,
    ):
        done = [clients.submit(client, seed) for seed in range(3)]
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
            f"Serving tiny {version} (SHA-256 {own.release.model_sha256[:12]}...)."
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
            "Still serving tiny 1: The registry does not answer.",
            "Still serving tiny 1: The released file is damaged.",
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
        opened = service.service._reloader.current
        store.identity = "moved and moved back"
        until(lambda: store.asked == 2)
        time.sleep(0.2)
        assert store.asked == 2
        assert service.service._reloader.current is opened
