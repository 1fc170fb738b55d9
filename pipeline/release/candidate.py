"""The candidate: a trained model, packed as a release, scored, timed and served once."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.artifacts import (
    DatasetArtifact,
    Decision,
    EvaluationReport,
    GateCheck,
    TrainingResult,
)
from pipeline.data.headers import read_orientation
from pipeline.data.loader import LoadedSplit, load_split, read_encoded_images
from pipeline.engine.stage import Context
from pipeline.evaluate.calibration import compute_chance_calibration_error
from pipeline.evaluate.logits import compute_losses_and_confidences
from pipeline.evaluate.metrics import Tally, find_majority_class, summarize_tally
from pipeline.evaluate.predictions import read_logits, read_logits_at
from pipeline.evaluate.selection import spread_indices
from pipeline.evaluate.speed import measure_speed
from pipeline.release.classify import Classifier, find_tolerance, load_classifier
from pipeline.release.gate_records import CandidateMeasurements
from pipeline.release.package import GoldenImage, Release, read_package, write_package
from pipeline.release.smoke_test import run_smoke_test
from pipeline.reports.numbers import format_magnitude

if TYPE_CHECKING:
    from pipeline.arrays import Integers, Labels, Logits

# A file's bytes, its EXIF orientation in 1..8, and its label.
StoredImage = tuple[bytes, int, int]

GOLDEN_IMAGES = 16
WINDOW = 256  # images that are decoded and answered together


@dataclass(frozen=True)
class Candidate:
    """A trained model, packed and scored.

    Attributes:
        release: the package.
        labels: int64 [images], of the dataset's test split.
        guesses: int64 [images], first guesses.
        measured: besides the guesses.
        checks: those that need no champion.
    """

    release: Release
    labels: Labels
    guesses: Labels
    measured: CandidateMeasurements
    checks: tuple[GateCheck, ...]

    @property
    def top1_error(self) -> float:
        """Fraction of the test images whose first guess is wrong, in [0, 1]."""
        return float(np.mean(self.labels != self.guesses))


def examine_candidate(
    dataset: DatasetArtifact, trained: TrainingResult, report: EvaluationReport, context: Context
) -> Candidate:
    """Pack the trained model, score it from the package, time it and run its smoke test."""
    images = load_split(dataset, "test", in_memory=False)
    release = _pack_release(images, trained, report, context)
    classifier = load_classifier(release, batch=WINDOW)
    logits, labels = score_images(classifier, images, "candidate", context)
    tolerance = find_tolerance(classifier.model)
    rescored = _check_rescored(logits, report, tolerance)
    context.progress(0, 1, "model", "latency")
    speed = measure_speed(classifier.model, release.model_path, batches=(1,))
    tally = Tally(
        len(dataset.class_names),
        find_majority_class(dataset.class_counts["train"]),
        temperature=report.temperature,
    )
    tally.add_images(logits, labels)
    summary = summarize_tally(tally)
    _, confidence = compute_losses_and_confidences(logits, labels, report.temperature)
    calibration_error = summary.values["calibrated_calibration_error"]
    context.progress(0, 1, "service", "smoke test: a clean process answers the golden images")
    served = run_smoke_test(release, context.scratch_directory, tolerance)
    return Candidate(
        release,
        labels,
        logits.argmax(axis=1),
        CandidateMeasurements(
            calibration_error=max(
                0.0, calibration_error - compute_chance_calibration_error(confidence)
            ),
            majority_error=summary.majority_error,
            latency_p95_seconds=speed.batches[0].p95_seconds,
            model_bytes=speed.model_bytes,
        ),
        (rescored, served),
    )


def _pack_release(
    images: LoadedSplit, trained: TrainingResult, report: EvaluationReport, context: Context
) -> Release:
    """Write the release's folder, with golden images of the test split, and read it back."""
    folder = context.directory / Decision.PACKAGE
    shutil.rmtree(folder, ignore_errors=True)
    indices = spread_indices(len(images), GOLDEN_IMAGES)
    expected = dict(zip(indices, read_logits_at(report.predictions_path, indices), strict=True))
    golden = [
        GoldenImage(encoded, label, expected[index])
        for index, (encoded, orientation, label) in enumerate(read_encoded_images(images))
        # Where a published set was read without its EXIF orientation, a service that respects it
        # answers another image.
        if index in expected and orientation == read_orientation(encoded)
    ]
    release = Release(
        model_sha256=trained.model_sha256,
        class_names=trained.class_names,
        image_size=trained.image_size,
        short_side=trained.short_side,
        fit=trained.fit,
        temperature=report.temperature,
        dataset_digest=report.dataset_digest,
        pretrained=trained.pretrained,
        weights_licence=trained.weights_licence,
    )
    written = write_package(release, trained.verified_model_path(), golden, folder)
    return read_package(folder, written.sha256(), name="candidate")


def score_images(
    classifier: Classifier,
    images: LoadedSplit,
    model_name: str,
    context: Context,
    indices: Integers | None = None,
) -> tuple[Logits, Labels]:
    """Return the logits and labels of a split, from the files' bytes as a service reads them.

    Args:
        classifier: the model.
        images: the split.
        model_name: for the display of progress.
        context: of the stage.
        indices: int64 ascending, of the images to score. None: all.

    Returns:
        float32 [images, classes] and int64 [images].
    """
    logits: list[Logits] = []
    labels: list[int] = []
    stored, total = read_encoded_images(images), len(images) if indices is None else len(indices)
    if indices is not None:
        stored = itertools.compress(stored, np.isin(np.arange(len(images)), indices))
    with ThreadPoolExecutor() as threads:
        for window in _take_windows(stored):
            pixels = threads.map(
                lambda image: classifier.prepare_pixels(image[0], orientation=image[1]), window
            )
            logits.append(classifier.predict_logits(np.stack(list(pixels))))
            labels += [label for *_, label in window]
            context.progress(len(labels), total, "images", f"{model_name} on the test split")
    return np.concatenate(logits), np.asarray(labels, np.int64)


def _take_windows(images: Iterator[StoredImage]) -> Iterator[list[StoredImage]]:
    while window := list(itertools.islice(images, WINDOW)):
        yield window


def _check_rescored(logits: Logits, report: EvaluationReport, tolerance: float) -> GateCheck:
    """Return whether the saved file gives the logits that the evaluation stored."""
    stored = np.concatenate([part for part, _ in read_logits(report.predictions_path)])
    alike = stored.shape == logits.shape
    difference = float(np.abs(stored - logits).max()) if alike else float("inf")
    return GateCheck(
        name="as evaluated",
        passed=alike and difference <= tolerance * max(1.0, float(np.abs(stored).max())),
        measured=format_magnitude(difference),
        required=f"at most {format_magnitude(tolerance)} of the largest logit",
        text=(
            "Re-scored from the saved file: largest logit difference"
            f" {format_magnitude(difference)}."
        ),
    )
