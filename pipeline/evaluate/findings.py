"""Findings of an evaluation: everything that was measured of a model on a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.evaluate.inspection import NetworkInspection
from pipeline.evaluate.logits import compute_log_probabilities
from pipeline.evaluate.metrics import SplitSummary
from pipeline.evaluate.robustness import CorruptionResult
from pipeline.evaluate.slices import ErrorSlice
from pipeline.evaluate.speed import SpeedMeasurement

if TYPE_CHECKING:
    from pipeline.arrays import Image, Logits

_GUESSES = 5


@dataclass(frozen=True)
class ShownImage:
    """An image of the report with its first guesses, the likeliest first.

    `index` is that in the split, `pixels` are uint8 [height, width, 3] in [0, 255], `label` and
    `answers` class ids, `probabilities` those of the answers, in [0, 1].
    """

    index: int
    key: str
    pixels: Image
    label: int
    answers: tuple[int, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class EvaluationFindings:
    """Everything that was measured of a model on a split.

    `view` is the name of how images were cut. `robustness`, `corrupted` (one image by corruption
    and rising severity), `speed` and `inspection` are left out of a short report.
    """

    split: str
    view: str
    class_names: Sequence[str]
    dataset_name: str
    summary: SplitSummary
    slices: Sequence[ErrorSlice]
    samples: Sequence[ShownImage]
    mistakes: Sequence[ShownImage]
    unsure: Sequence[ShownImage]
    robustness: CorruptionResult | None = None
    corrupted: Mapping[str, Sequence[Image]] | None = None
    speed: SpeedMeasurement | None = None
    inspection: NetworkInspection | None = None


def rank_guesses(logits: Logits) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Return the first five guesses of each image with their probabilities.

    Equal guesses are in order of class id.

    Args:
        logits: float [images, classes].
    """
    order = np.argsort(-logits, axis=1, kind="stable")[:, :_GUESSES]
    probabilities = np.exp(np.take_along_axis(compute_log_probabilities(logits), order, axis=1))
    return [
        (tuple(answers), tuple(own))
        for answers, own in zip(order.tolist(), probabilities.tolist(), strict=True)
    ]
