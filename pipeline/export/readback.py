"""Read exported models back, each by its own runtime, in a process without this package.

Run as a script, `python -P readback.py FOLDER`, where the folder holds

    request.json    `format`; `models`, the files or folders; `rounds`, the number of timed calls
    pixels.npy      uint8 [images, size, size, 3] in [0, 255]
    files/          the same images as files, by number

and receives for each model and endpoint `<index>-<endpoint>.npz` with `logits` and `probabilities`,
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
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

_READBACK_BATCH = 16  # more images than that are answered in batches of two sizes
RUNTIMES = {"savedmodel": "tensorflow", "onnx": "onnxruntime", "litert": "ai-edge-litert"}

# uint8 [images, size, size, 3] in [0, 255], or files' bytes for the endpoint `jpeg`.
Inputs: TypeAlias = NDArray[np.uint8] | list[bytes]
# From inputs to `logits` and `probabilities`, arrays or tensors.
Endpoint: TypeAlias = Callable[[Inputs], Mapping[str, Any]]


@dataclass(frozen=True)
class OpenedModel:
    """A model in its runtime: its class names, and its endpoints by name.

    Each takes uint8 [images, size, size, 3] in [0, 255]; `jpeg` takes a list of files' bytes.
    """

    class_names: Sequence[str]
    endpoints: Mapping[str, Endpoint]


def open_savedmodel(path: str) -> OpenedModel:
    """Open a SavedModel by TensorFlow alone, without Keras's classes."""
    import tensorflow as tf

    signatures = tf.saved_model.load(path).signatures
    names = signatures["class_names"]()["class_names"].numpy()
    endpoints = {
        "serving_default": lambda pixels: signatures["serving_default"](image=tf.constant(pixels)),
        "jpeg": lambda files: signatures["jpeg"](image_bytes=tf.constant(files)),
    }
    return OpenedModel([name.decode() for name in names], endpoints)


def open_onnx(path: str) -> OpenedModel:
    """Open an ONNX file by ONNX Runtime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = ["logits", "probabilities"]

    def run_session(pixels: Inputs) -> Mapping[str, Any]:
        return dict(zip(outputs, session.run(outputs, {"image": pixels}), strict=True))

    return OpenedModel(
        json.loads(session.get_modelmeta().custom_metadata_map["class_names"]),
        {"image": run_session},
    )


def open_litert(path: str) -> OpenedModel:
    """Open a LiteRT file by its interpreter, and the archive at its end by Python's zipfile."""
    from ai_edge_litert.interpreter import Interpreter

    with zipfile.ZipFile(path) as archive:
        names = json.loads(archive.read("model.json"))["class_names"]
    answer = Interpreter(path).get_signature_runner("serving_default")
    return OpenedModel(names, {"image": lambda pixels: answer(image=pixels)})


OPENERS: Mapping[str, Callable[[str], OpenedModel]] = {
    "savedmodel": open_savedmodel,
    "onnx": open_onnx,
    "litert": open_litert,
}


def read_back(folder: Path) -> None:
    """Run each model of a folder on its images, and write the answers there."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    pixels = np.load(folder / "pixels.npy")
    files = [path.read_bytes() for path in sorted((folder / "files").iterdir())]
    opened = [OPENERS[request["format"]](path) for path in request["models"]]
    for index, model in enumerate(opened):
        for name, endpoint in model.endpoints.items():
            answers = _run_batches(endpoint, files if name == "jpeg" else pixels)
            np.savez(
                folder / f"{index}-{name}.npz",
                logits=answers["logits"],
                probabilities=answers["probabilities"],
            )
    seconds = _time_endpoints(
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


def _run_batches(endpoint: Endpoint, images: Inputs) -> dict[str, NDArray[np.float32]]:
    """Return `logits` and `probabilities`, float32 [images, classes], computed in batches."""
    batches = [
        endpoint(images[start : start + _READBACK_BATCH])
        for start in range(0, len(images), _READBACK_BATCH)
    ]
    return {
        name: np.concatenate([np.asarray(batch[name]) for batch in batches])
        for name in ("logits", "probabilities")
    }


def _time_endpoints(
    endpoints: Sequence[Endpoint], image: Inputs, rounds: int
) -> list[float | None]:
    """Return each endpoint's median time for one image in seconds, None without rounds.

    They take turns, so that other load slows all of them.
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
