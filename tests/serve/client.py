"""Helpers of the tests of the service: small releases, a running service, and requests to it."""

import base64
import contextlib
import http.client
import io
import json
import socket
import threading
import time
from types import SimpleNamespace

import keras
import numpy as np
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from pipeline.artifacts import file_sha256
from pipeline.config.serve import ServeConfig
from pipeline.errors import PipelineError
from pipeline.model.weights import save_model
from pipeline.release.classify import load_classifier
from pipeline.release.package import GoldenImage, Release, read_package, write_package
from pipeline.serve import service as service_module

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
    logits = classifier.predict_logits(
        np.stack([classifier.prepare_pixels(image) for image in images])
    )
    golden = [GoldenImage(image, 0, own) for image, own in zip(images[:3], logits, strict=False)]
    write_package(release, folder / "model.keras", golden, folder / "package")
    read = read_package(folder / "package", name="tiny", version=version)
    probabilities = classifier.compute_probabilities(logits)
    return SimpleNamespace(release=read, images=images, logits=logits, probabilities=probabilities)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def running(find, changed=None, *, wait=True, **settings):
    """Run a service in a thread, and end it."""
    config = ServeConfig(
        port=free_port(),
        **{"max_batch": 4, "max_wait_milliseconds": 1, "reload_seconds": 0.05, **settings},
    )
    said, ended = [], []

    def run():
        try:
            service.run()
        except PipelineError as error:
            ended.append(error)

    service = service_module.Service(find, config, log=said.append, identify_release=changed)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        if wait:
            until(lambda: ask(config.port, "GET", "/ready")[0] == 200, 120)  # TensorFlow compiles
        yield SimpleNamespace(
            port=config.port, service=service, said=said, thread=thread, ended=ended
        )
    finally:
        service.stop()
        thread.join(60)
    assert not thread.is_alive()


def until(true, seconds=60.0):
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
        http.client.HTTPConnection("127.0.0.1", port, timeout=60)
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


IMAGE = encoded(np.zeros((20, 20, 3), np.uint8))


BASE64 = base64.b64encode(IMAGE).decode()


JSON = "application/json"


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


def refused(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False
