"""H: what answering over HTTP costs beyond the network's own work, in throughput and in waiting.

H1 sends batches of PNG files of the network's own size, a form of a batch a request, from two
clients at a time over the loopback; its peer is the bare forward pass, compiled once, on as many
pixels in a batch. "H1 decode" has a peer that also decodes the same files, one after the other. The
clients are a process of their own on the same processors, and their work counts as the service's.
H2 sends one image a request from sixteen clients at a time: 95 of 100 answers come within how many
forward passes of sixteen images? One pass is the least; a request that comes during another one
waits for that as well. One JSON object a line.

python benchmarks/bench_serve.py [--full] [--only ROW]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import http.client
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _harness import alternate_variants, print_rows, serve_variant

PAIRS = {"H1": ("serve", "forward pass"), "H1 decode": ("serve", "decode and forward pass")}
CLASSES = 10
SIDES = {"small": 32, "owt": 224}
BATCH = {"small": 32, "owt": 16}
REQUESTS = {"small": 48, "owt": 12}  # in a round
CLIENTS, SINGLES, SINGLE_CLIENTS = 2, 640, 16


def build_served_network(variant: str) -> Any:
    """Return a network with fresh weights."""
    from pipeline.config.model import ModelConfig
    from pipeline.model.networks import build_network

    config = ModelConfig(network=variant, image_size=SIDES[variant])
    return build_network(
        config, num_classes=CLASSES, channel_mean=(128,) * 3, channel_std=(60,) * 3
    )


def make_release(variant: str, folder: Path) -> Any:
    """Return the variant with fresh weights as a release in a folder."""
    from pipeline.artifacts import file_sha256
    from pipeline.model.weights import save_model
    from pipeline.release.package import Release

    save_model(build_served_network(variant), folder / "model.keras")
    side, names = SIDES[variant], tuple(f"class {number}" for number in range(CLASSES))
    digest = file_sha256(folder / "model.keras")
    return Release(
        directory=folder,
        model_file="model.keras",
        name=variant,
        model_sha256=digest,
        class_names=names,
        image_size=side,
        short_side=side,
    )


def make_files(variant: str) -> list[bytes]:
    """Return a batch of smooth images as PNG files."""
    from PIL import Image

    rng, side, made = np.random.default_rng(0), SIDES[variant], []
    for _ in range(BATCH[variant]):
        file = io.BytesIO()
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(file, "PNG")
        made.append(file.getvalue())
    return made


def encode_form(images: list[bytes]) -> bytes:
    """Return the images as the body of a form."""
    parts = [
        '--frontier\r\nContent-Disposition: form-data; name="image";'
        f' filename="{place}.png"\r\n\r\n'.encode()
        + one
        + b"\r\n"
        for place, one in enumerate(images)
    ]
    return b"".join([*parts, b"--frontier--\r\n"])


# -- throughput ------------------------------------------------------------------------------------


def make_variant(name: str, variant: str) -> Callable[[], int]:
    """Return one round: as many images for each peer."""
    images, count = make_files(variant), REQUESTS[variant]
    if name == "serve":
        load = ClientLoad(serve_release(variant), "form", variant)
        return lambda: len(images) * len(load.time_answers(count, CLIENTS))
    classifier = open_classifier(variant, BATCH[variant])
    pixels = np.stack([classifier.prepare_pixels(one) for one in images])
    if name == "forward pass":
        return lambda: sum(len(classifier.predict_logits(pixels)) for _ in range(count))
    return lambda: sum(
        len(classifier.predict_logits(np.stack([classifier.prepare_pixels(one) for one in images])))
        for _ in range(count)
    )


def open_classifier(variant: str, batch: int) -> Any:
    """Return a classifier, compiled."""
    from pipeline.release.classify import load_classifier, warm_up

    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
        classifier = load_classifier(make_release(variant, Path(folder)), batch=batch)
    warm_up(classifier)
    return classifier


def serve_release(variant: str) -> int:
    """Start the service in a thread of this process, and return its port."""
    from pipeline.config.serve import ServeConfig
    from pipeline.serve.service import Service

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ready = threading.Event()
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
        found, config = (
            make_release(variant, Path(folder)),
            ServeConfig(port=port, max_batch=BATCH[variant]),
        )
        service = Service(
            lambda: found,
            config,
            log=lambda line: ready.set() if line.startswith("Serving") else None,
        )
        threading.Thread(target=service.run, daemon=True).start()
        ready.wait(300)
    return port


class ClientLoad:
    """A process of clients, which send the same request again and again."""

    def __init__(self, port: int, what: str, variant: str):
        command = [sys.executable, __file__, "--clients", str(port), what, variant]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def time_answers(self, requests: int, clients: int) -> list[float]:
        """Send so many requests, so many at a time, and return the seconds until each answer."""
        self._process.stdin.write(f"{requests} {clients}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def run_client_process(port: int, what: str, variant: str) -> None:
    """Answer each line of standard input, `requests clients`, with the seconds of each request.

    A request is a `form` of a batch of images, or `one` of them.
    """
    images = make_files(variant)
    body, kind = (
        (encode_form(images), "multipart/form-data; boundary=frontier")
        if what == "form"
        else (images[0], "image/png")
    )

    def run_client(count: int) -> list[float]:
        connection, seconds = http.client.HTTPConnection("127.0.0.1", port, timeout=120), []
        for _ in range(count):
            started = time.perf_counter()
            connection.request("POST", "/predict", body, {"Content-Type": kind})
            response = connection.getresponse()
            text = response.read()
            assert response.status == 200, text
            seconds.append(time.perf_counter() - started)
        connection.close()
        return seconds

    for line in sys.stdin:
        requests, at_a_time = map(int, line.split())
        with concurrent.futures.ThreadPoolExecutor(at_a_time) as pool:
            found = [
                second
                for seconds in pool.map(run_client, [requests // at_a_time] * at_a_time)
                for second in seconds
            ]
        print(json.dumps(found), flush=True)


# -- waiting ---------------------------------------------------------------------------------------


def print_waiting() -> dict[str, Any]:
    """Print the percentiles of many small requests and the duration of a pass.

    All are measured in this process; medians of a few rounds.
    """
    output, port = os.fdopen(os.dup(1), "w"), serve_release("small")
    os.dup2(2, 1)  # libraries may print
    load, classifier = ClientLoad(port, "one", "small"), open_classifier("small", SINGLE_CLIENTS)
    pixels = np.zeros((SINGLE_CLIENTS, SIDES["small"], SIDES["small"], 3), np.uint8)
    load.time_answers(SINGLES, SINGLE_CLIENTS)
    rounds = [
        (
            time_call(lambda: classifier.predict_logits(pixels)),
            load.time_answers(SINGLES, SINGLE_CLIENTS),
        )
        for _ in range(5)
    ]
    one = statistics.median(seconds for seconds, _ in rounds)
    half, most = (
        statistics.median(float(np.percentile(seconds, percent)) for _, seconds in rounds)
        for percent in (50, 95)
    )
    found = {
        "ratio": most / one,
        "p50_milliseconds": 1e3 * half,
        "p95_milliseconds": 1e3 * most,
        "pass_milliseconds": 1e3 * one,
    }
    print(
        json.dumps({name: round(value, 2) for name, value in found.items()}),
        file=output,
        flush=True,
    )


def time_call(call: Callable[[], Any]) -> float:
    """Return the median seconds of a call."""
    seconds = []
    for _ in range(30):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def measure_waiting() -> dict[str, Any]:
    """Return what `print_waiting` prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--worker", "waiting", "small"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    what = (
        f"95th percentile of {SINGLE_CLIENTS} clients with an image a request / a forward pass of"
        f" {SINGLE_CLIENTS} images"
    )
    return {"id": "H2", "what": what, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    """Print one JSON object per row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--full", action="store_true", help="more rounds, and variant owt on 224 pixels"
    )
    parser.add_argument("--rounds", type=int, help="so many rounds")
    parser.add_argument("--only", choices=("H1", "H2"), help="one row")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--clients", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("variant", nargs="?", choices=tuple(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.clients:
        port, what, variant = options.clients
        run_client_process(int(port), what, variant)
    elif options.worker == "waiting":
        print_waiting()
    elif options.worker:
        serve_variant(make_variant(options.worker, options.variant))
    else:
        print_measurements(options)


def print_measurements(options: argparse.Namespace) -> None:
    """Print the rows that were asked for."""
    names = list(dict.fromkeys(name for pair in PAIRS.values() for name in pair))
    if options.only in (None, "H1"):
        for variant in ("small", "owt") if options.full else ("small",):
            rates = alternate_variants(
                __file__, names, options.rounds or (11 if options.full else 5), [variant]
            )
            suffix = "" if variant == "small" else f" {variant}"
            print_rows({f"{name}{suffix}": pair for name, pair in PAIRS.items()}, rates)
    if options.only in (None, "H2"):
        print(json.dumps(measure_waiting()))


if __name__ == "__main__":
    sys.exit(main())
