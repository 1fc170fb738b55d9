"""Parity: an export, read back by its own runtime, must answer as the released model does.

reference = compute_reference(classifier, files)       the released model, on the CPU
answers = read_back_models(format, paths, ...)         a clean process with the runtime alone
compare_endpoint(...) for each endpoint, then require_parity(...)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from pipeline.errors import DatasetError, GateError
from pipeline.export import readback
from pipeline.export.record import EndpointParity
from pipeline.release.classify import TOLERANCE, Classifier, UnusableError, find_tolerance
from pipeline.release.package import Release

if TYPE_CHECKING:
    from pipeline.arrays import Floats, Images, Logits

_OTHER_FORMAT = "Nothing was written: choose another format"


@dataclass(frozen=True)
class ReferenceAnswers:
    """Images and the released model's answers.

    Attributes:
        files: the images as files' bytes.
        pixels: the same as uint8 [images, size, size, 3] in [0, 255].
        logits: float32 [images, classes].
        probabilities: calibrated, float64 [images, classes].
        tolerance: of a logit by rounding, relative to the largest one.
    """

    files: Sequence[bytes]
    pixels: Images
    logits: Logits
    probabilities: Floats
    tolerance: float = TOLERANCE

    @property
    def allowed(self) -> float:
        """The largest difference of a logit that passes.

        Float32 sums in another order, and loses more of larger values.
        """
        return self.tolerance * max(1.0, float(np.abs(self.logits).max()))


@dataclass(frozen=True)
class RuntimeAnswers:
    """A runtime's answers for one or several models.

    Attributes:
        runtime: its package.
        version: of the package.
        class_names: of each model.
        answers: of each model, (logits, probabilities) by endpoint, float32 [images, classes].
        seconds: of each model, median time for one image.
    """

    runtime: str
    version: str
    class_names: Sequence[Sequence[str]]
    answers: Sequence[Mapping[str, tuple[Logits, Floats]]]
    seconds: Sequence[float]


def compute_reference(classifier: Classifier, files: Sequence[bytes]) -> ReferenceAnswers:
    """Return the released model's answers for images, each a file's bytes."""
    pixels = decode_images(classifier, files)
    logits = compute_logits(classifier, pixels)
    probabilities = classifier.compute_probabilities(logits)
    return ReferenceAnswers(files, pixels, logits, probabilities, find_tolerance(classifier.model))


def decode_images(classifier: Classifier, files: Sequence[bytes]) -> Images:
    """Return uint8 [images, size, size, 3] in [0, 255] of files' bytes.

    Raises:
        DatasetError: one cannot be used.
    """
    try:
        with ThreadPoolExecutor() as threads:
            return np.stack(list(threads.map(classifier.prepare_pixels, files)))
    except UnusableError as error:
        raise DatasetError(
            f"An image for the export cannot be used: {error}",
            expected="images of a prepared dataset",
            hint="Name another dataset",
        ) from error


def compute_logits(classifier: Classifier, pixels: Images) -> Logits:
    """Return float32 [images, classes], computed on the CPU.

    A GPU may round products to ten bits, and no runtime reads an export on one.
    """
    with tf.device("CPU:0"):
        return classifier.predict_logits(pixels)


def read_back_models(
    format_name: str,
    paths: Sequence[Path],
    pixels: Images,
    files: Sequence[bytes],
    scratch: Path,
    *,
    rounds: int = 0,
) -> RuntimeAnswers:
    """Return the answers of models that a clean process opens with their own runtime.

    Args:
        format_name: of all models.
        paths: the models.
        pixels: uint8 [images, size, size, 3] in [0, 255].
        files: the same images as files' bytes, for the endpoint `jpeg`; empty if there is none.
        scratch: a folder for work.
        rounds: calls that are timed.

    Raises:
        GateError: the runtime cannot open or run them.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        (folder / "files").mkdir()
        np.save(folder / "pixels.npy", pixels)
        for index, encoded in enumerate(files):
            (folder / "files" / f"{index:06d}").write_bytes(encoded)
        request = {
            "format": format_name,
            "models": [os.fspath(path) for path in paths],
            "rounds": rounds,
        }
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        _run_reader(folder, format_name)
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        answers = [
            {
                endpoint: _load_answers(folder / f"{index}-{endpoint}.npz")
                for endpoint in model["endpoints"]
            }
            for index, model in enumerate(report["models"])
        ]
    return RuntimeAnswers(
        report["runtime"],
        report["version"],
        [model["class_names"] for model in report["models"]],
        answers,
        [model["seconds"] for model in report["models"]],
    )


def _load_answers(path: Path) -> tuple[Logits, Floats]:
    with np.load(path) as file:
        return file["logits"], file["probabilities"]


def _run_reader(folder: Path, format_name: str) -> None:
    """Run readback.py as a script that finds no module of this package, on the CPU."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-P", readback.__file__, os.fspath(folder)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise GateError(
            f"{readback.RUNTIMES[format_name]} cannot read the export back ({last[:300]})",
            expected="predictions for real images",
            hint=_OTHER_FORMAT,
        )


def compare_endpoint(
    endpoint: str,
    logits: Logits,
    probabilities: Floats,
    reference: ReferenceAnswers,
    allowed: float | None,
) -> EndpointParity:
    """Compare an endpoint's answers, float32 [images, classes], with the reference."""
    if logits.shape != reference.logits.shape:
        return EndpointParity(endpoint, len(reference.logits), float("inf"), allowed, 1.0, 0)
    return EndpointParity(
        endpoint,
        images=len(logits),
        difference=float(np.abs(logits - reference.logits).max()),
        allowed=allowed,
        probability_difference=float(np.abs(probabilities - reference.probabilities).max()),
        same_top5=_count_same_top5(logits, reference),
    )


def _count_same_top5(logits: Logits, reference: ReferenceAnswers) -> int:
    """Return for how many images both have the same top five classes in the same order.

    Classes whose reference logits differ by rounding alone count as the same.
    """
    best, found = (
        np.argsort(-values, axis=1, kind="stable")[:, :5] for values in (reference.logits, logits)
    )
    own, others = (
        np.take_along_axis(reference.logits, indices, axis=1) for indices in (best, found)
    )
    return int(np.sum(np.all(np.abs(own - others) <= 2 * reference.allowed, axis=1)))


def require_parity(
    format_name: str,
    release: Release,
    found: RuntimeAnswers,
    checks: Sequence[EndpointParity],
    allowed: float,
) -> None:
    """Check every endpoint and the class names of every model.

    Raises:
        GateError: an endpoint differs by more than rounding, or a model has other class names.
    """
    # Softmax moves a probability by at most half of what it moves a logit, after the division by
    # the temperature.
    allowed_probability = max(TOLERANCE, allowed / release.temperature)
    for check in checks:
        alike = (
            check.difference <= allowed
            and check.probability_difference <= allowed_probability
            and check.same_top5 == check.images
        )
        if not alike:
            raise GateError(
                f"The export to {format_name} does not answer as the released model does",
                expected=f"logits of `{check.endpoint}` within {allowed:.1e}, probabilities within"
                f" {allowed_probability:.1e} and the same top five on {check.images} images",
                received=f"differences of {check.difference:.1e} and"
                f" {check.probability_difference:.1e}, and the same top five on {check.same_top5}",
                hint=_OTHER_FORMAT,
            )
    if any(tuple(names) != release.class_names for names in found.class_names):
        raise GateError(
            f"The export to {format_name} gives other class names",
            expected=f"those of the release: {', '.join(release.class_names)[:100]}",
            received=f"{', '.join(found.class_names[0])[:100]}",
            hint=_OTHER_FORMAT,
        )
