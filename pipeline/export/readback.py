"""Opens exported models as a stranger would.

Each by its own runtime, in a process that holds nothing of this project.

Run as a script, `python -P readback.py FOLDER`, where the folder holds

    request.json    `format`; `models`, the files or folders; `rounds`, how often one image is timed
    pixels.npy      uint8 [images, size, size, 3] in [0, 255]
    files/          the same images as files, by number

and gets for each model and endpoint `<place>-<endpoint>.npz` with `logits` and `probabilities`,
float32 [images, classes]; and, last of all, report.json: `runtime`, `version`, and for each model
`class_names`, `endpoints` and `seconds`. Only savedmodel imports TensorFlow.
"""

import importlib.metadata
import json
import statistics
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_BATCH = 16  # so that more images than that come in batches of several sizes
RUNTIMES = {"savedmodel": "tensorflow", "onnx": "onnxruntime", "litert": "ai-edge-litert"}

Endpoint = Callable[[Any], Mapping[str, Any]]


@dataclass(frozen=True)
class Opened:
    """A model in its runtime: its class names, and functions from images to `logits` and `probabilities`.

    Each takes uint8 [images, size, size, 3] in [0, 255]; that named `jpeg` takes a list of files'
    bytes.
    """

    class_names: Sequence[str]
    endpoints: Mapping[str, Endpoint]


def open_savedmodel(path: str) -> Opened:
    """Open a SavedModel by TensorFlow alone, without Keras's classes."""
    import tensorflow as tf

    signatures = tf.saved_model.load(path).signatures
    names = signatures["class_names"]()["class_names"].numpy()
    endpoints = {
        "serving_default": lambda pixels: signatures["serving_default"](image=tf.constant(pixels)),
        "jpeg": lambda files: signatures["jpeg"](image_bytes=tf.constant(files)),
    }
    return Opened([name.decode() for name in names], endpoints)


def open_onnx(path: str) -> Opened:
    """Open an ONNX file by ONNX Runtime, on the processor."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = ["logits", "probabilities"]

    def image(pixels: Any) -> Mapping[str, Any]:
        return dict(zip(outputs, session.run(outputs, {"image": pixels}), strict=True))

    return Opened(
        json.loads(session.get_modelmeta().custom_metadata_map["class_names"]), {"image": image}
    )


def open_litert(path: str) -> Opened:
    """Open a LiteRT file by its interpreter, and the archive at its end by Python's own reader."""
    from ai_edge_litert.interpreter import Interpreter

    with zipfile.ZipFile(path) as archive:
        names = json.loads(archive.read("model.json"))["class_names"]
    answer = Interpreter(path).get_signature_runner("serving_default")
    return Opened(names, {"image": lambda pixels: answer(image=pixels)})


OPENERS: Mapping[str, Callable[[str], Opened]] = {
    "savedmodel": open_savedmodel,
    "onnx": open_onnx,
    "litert": open_litert,
}


def read_back(folder: Path) -> None:
    """Answer the images of a folder by each of its models."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    pixels = np.load(folder / "pixels.npy")
    files = [path.read_bytes() for path in sorted((folder / "files").iterdir())]
    opened = [OPENERS[request["format"]](path) for path in request["models"]]
    for place, model in enumerate(opened):
        for name, endpoint in model.endpoints.items():
            np.savez(
                folder / f"{place}-{name}.npz",
                **_answers(endpoint, files if name == "jpeg" else pixels),
            )
    seconds = _seconds(
        [next(iter(model.endpoints.values())) for model in opened], pixels[:1], request["rounds"]
    )
    runtime = RUNTIMES[request["format"]]
    report = {
        "runtime": runtime,
        "version": importlib.metadata.version(runtime),
        "models": [
            {
                "class_names": list(model.class_names),
                "endpoints": list(model.endpoints),
                "seconds": own,
            }
            for model, own in zip(opened, seconds, strict=True)
        ],
    }
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


def _answers(endpoint: Endpoint, images: Any) -> dict[str, Any]:
    """Return `logits` and `probabilities`, float32 [images, classes], asked for in batches."""
    parts = [endpoint(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
    return {
        name: np.concatenate([np.asarray(part[name]) for part in parts])
        for name in ("logits", "probabilities")
    }


def _seconds(endpoints: Sequence[Endpoint], image: Any, rounds: int) -> list[float | None]:
    """Return each endpoint's median time for one image, None without rounds.

    They take turns, so a busy moment meets all of them.
    """
    taken: list[list[float]] = [[] for _ in endpoints]
    for _ in range(rounds):
        for endpoint, own in zip(endpoints, taken, strict=True):
            started = time.perf_counter()
            np.asarray(endpoint(image)["logits"])
            own.append(time.perf_counter() - started)
    return [statistics.median(own) if own else None for own in taken]


if __name__ == "__main__":
    read_back(Path(sys.argv[1]))
