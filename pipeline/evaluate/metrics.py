"""Metrics of a split, counted from logits and labels: pure NumPy and SciPy.

Every number of an evaluation is a function of sums over its images, so a `Tally` holds sums alone:
of the images as they are, and of a thousand bootstrap samples in which each image counts a
Poisson(1) number of times. The same function makes the number of all of them, and the spread of the
bootstrap samples is the number's interval. Memory does not grow with the images.

Everywhere `logits` are float [images, classes], unbounded, and `labels` are integers [images] in
[0, classes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from pipeline.evaluate.class_scores import (
    ClassScores,
    compute_balanced_accuracy,
    compute_macro_average,
    compute_ratio,
    compute_weighted_average,
    count_confusion,
    score_class_counts,
    score_classes,
)
from pipeline.evaluate.intervals import (
    BOOTSTRAP_SAMPLES,
    compute_bootstrap_interval,
    compute_wilson_interval,
    draw_bootstrap_weights,
)
from pipeline.evaluate.logits import (
    BINS,
    ROWS_AT_ONCE,
    assign_bins,
    compute_losses_and_confidences,
    rank_labels,
)

if TYPE_CHECKING:
    from pipeline.arrays import Floats, Integers, Labels, Logits

_MAX_SUMS = 4_000_000  # 100 MB: with more than a thousand classes there are fewer bootstrap samples
_SCALARS = ("images", "loss", "calibrated_loss", "top5_wrong", "majority_wrong")
_BY_CLASS = ("support", "right", "answered")
_BY_BIN = tuple(
    f"{kind}_{what}" for kind in ("raw", "calibrated") for what in ("images", "confidence", "right")
)


@dataclass
class Tally:
    """Sums over the images of a split, and over bootstrap samples of it.

    `sums` is float64 [rows, 1 + bootstrap_samples]; column 0 is the split itself. `confusion` is
    int64 [classes, classes]: images by correct class (row) and answer (column). `majority` is the
    class that a rule without a network would always answer. With a `temperature` the calibrated
    numbers are those of logits / temperature.
    """

    classes: int
    majority: int
    temperature: float = 1.0
    bootstrap_samples: int = BOOTSTRAP_SAMPLES
    seed: int = 0
    sums: Floats = field(init=False)
    confusion: Integers = field(init=False)
    _rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        """Set every sum to zero."""
        rows = len(_SCALARS) + len(_BY_CLASS) * self.classes + len(_BY_BIN) * BINS
        self.bootstrap_samples = min(self.bootstrap_samples, 2 * (_MAX_SUMS // rows // 2))
        self.sums = np.zeros((rows, 1 + self.bootstrap_samples))
        self.confusion = np.zeros((self.classes, self.classes), np.int64)
        self._rng = np.random.default_rng(self.seed)

    def add_images(self, logits: Logits, labels: Labels) -> None:
        """Add images to the sums; the sums do not depend on how many are added at a time."""
        for start in range(0, len(labels), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            self._add_rows(logits[rows], np.asarray(labels[rows], np.int64))

    def _add_rows(self, logits: Logits, labels: Labels) -> None:
        answers, ranks = logits.argmax(axis=1), rank_labels(logits, labels)
        loss, confidence = compute_losses_and_confidences(logits, labels)
        calibrated_loss, calibrated = compute_losses_and_confidences(
            logits, labels, self.temperature
        )
        right = (ranks == 0).astype(np.float64)
        ones = np.ones(len(labels))
        wrong5 = (ranks >= 5) & (self.classes > 5)
        start, bins = len(_SCALARS), len(_SCALARS) + len(_BY_CLASS) * self.classes
        entries = [
            *enumerate((ones, loss, calibrated_loss, wrong5, labels != self.majority)),
            (start + labels, ones),
            (start + self.classes + labels, right),
            (start + 2 * self.classes + answers, ones),
        ]
        for offset, probabilities in ((bins, confidence), (bins + 3 * BINS, calibrated)):
            row = offset + assign_bins(probabilities)
            entries += [(row, ones), (row + BINS, probabilities), (row + 2 * BINS, right)]
        rows = np.concatenate([np.broadcast_to(row, len(labels)) for row, _ in entries])
        values = np.concatenate([np.asarray(value, np.float64) for _, value in entries])
        columns = np.tile(np.arange(len(labels)), len(entries))
        which = sparse.csr_array((values, (rows, columns)), shape=(len(self.sums), len(labels)))
        self.sums += which @ draw_bootstrap_weights(self._rng, len(labels), self.bootstrap_samples)
        self.confusion += count_confusion(labels, answers, self.classes)

    def name_sums(self) -> dict[str, Floats]:
        """Return the sums by name.

        Float64 [1 + bootstrap_samples], or [classes or bins, 1 + bootstrap_samples].
        """
        found = {name: self.sums[row] for row, name in enumerate(_SCALARS)}
        start = len(_SCALARS)
        for name, length in [
            *((name, self.classes) for name in _BY_CLASS),
            *((name, BINS) for name in _BY_BIN),
        ]:
            found[name] = self.sums[start : start + length]
            start += length
        return found


# -- numbers of the sums ---------------------------------------------------------------------------


@dataclass(frozen=True)
class ReliabilityBins:
    """Images, mean confidence and accuracy of each bin of confidence, float64 [15] all three.

    The means are 0 in a bin without images.
    """

    images: Floats
    confidence: Floats
    accuracy: Floats


@dataclass(frozen=True)
class SplitSummary:
    """Everything that is counted of one split.

    `values` and `intervals` hold the headline numbers by name; errors, scores and calibration
    errors are fractions in [0, 1], losses are in nats. The intervals hold 95 %: Wilson's for the
    two errors, the bootstrap's for the others.
    """

    images: int
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    bootstrap_intervals: dict[str, tuple[float, float]]
    majority_error: float
    temperature: float
    by_class: ClassScores
    confusion: Integers
    reliability: ReliabilityBins
    calibrated_reliability: ReliabilityBins

    @property
    def top1_error(self) -> float:
        """Fraction of the images whose first guess is wrong."""
        return self.values["top1_error"]

    @property
    def top5_error(self) -> float:
        """Fraction of the images whose first five guesses are all wrong."""
        return self.values["top5_error"]

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats, without any penalty."""
        return self.values["loss"]

    @property
    def top1_error_interval(self) -> tuple[float, float]:
        """The 95 % interval of the top-1 error."""
        return self.intervals["top1_error"]


def summarize_tally(tally: Tally) -> SplitSummary:
    """Return every number of a tally of at least one image."""
    sums = tally.name_sums()
    images, found = int(sums["images"][0]), compute_headline_numbers(sums)
    bootstrap = {
        name: _bound_interval(name, values, sums["images"][1:]) for name, values in found.items()
    }
    wilson = {
        name: compute_wilson_interval(round(float(found[name][0]) * images), images)
        for name in ("top1_error", "top5_error")
    }
    return SplitSummary(
        images=images,
        values={name: float(values[0]) for name, values in found.items()},
        intervals=bootstrap | wilson,
        bootstrap_intervals=bootstrap,
        majority_error=float(sums["majority_wrong"][0] / images),
        temperature=tally.temperature,
        by_class=score_classes(tally.confusion),
        confusion=tally.confusion,
        reliability=_compute_reliability(sums, "raw"),
        calibrated_reliability=_compute_reliability(sums, "calibrated"),
    )


def compute_headline_numbers(sums: dict[str, Floats]) -> dict[str, Floats]:
    """Return the headline numbers by name, float64 [1 + bootstrap_samples] each.

    Args:
        sums: of `Tally.name_sums`.
    """
    images = np.maximum(sums["images"], 1)  # a bootstrap sample of one image may have none
    scores = score_class_counts(sums["right"], sums["answered"], sums["support"])
    found = {
        "top1_error": (sums["images"] - sums["right"].sum(axis=0)) / images,
        "top5_error": sums["top5_wrong"] / images,
        "loss": sums["loss"] / images,
        "balanced_accuracy": compute_balanced_accuracy(scores),
    }
    for measure in ("precision", "recall", "f1"):
        found[f"macro_{measure}"] = compute_macro_average(scores, measure)
    for measure in ("precision", "recall", "f1"):
        found[f"weighted_{measure}"] = compute_weighted_average(scores, measure)
    for kind in ("raw", "calibrated"):
        gap = np.abs(sums[f"{kind}_right"] - sums[f"{kind}_confidence"]).sum(axis=0) / images
        found["calibration_error" if kind == "raw" else "calibrated_calibration_error"] = gap
    return found | {"calibrated_loss": sums["calibrated_loss"] / images}


def _bound_interval(name: str, values: Floats, images: Floats) -> tuple[float, float]:
    """Return the 95 % interval of a number from its bootstrap samples that have an image."""
    low, high = compute_bootstrap_interval(values[0], values[1:][images > 0])
    return max(0.0, low), high if name.endswith("loss") else min(1.0, high)


def _compute_reliability(sums: dict[str, Floats], kind: str) -> ReliabilityBins:
    images = sums[f"{kind}_images"][:, 0]
    return ReliabilityBins(
        images,
        compute_ratio(sums[f"{kind}_confidence"][:, 0], images),
        compute_ratio(sums[f"{kind}_right"][:, 0], images),
    )


def find_majority_class(training_counts: Sequence[int] | Integers) -> int:
    """Return the commonest training class, the first of equals."""
    return int(np.argmax(training_counts))
