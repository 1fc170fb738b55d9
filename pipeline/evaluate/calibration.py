"""Calibration: the temperature of probabilities, and the calibration error that chance makes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy import optimize

from pipeline.evaluate.logits import (
    BINS,
    ROWS_AT_ONCE,
    assign_bins,
    compute_losses_and_confidences,
    rank_labels,
)

if TYPE_CHECKING:
    from pipeline.arrays import Floats, Labels, Logits


def fit_temperature(logits: Logits, labels: Labels) -> float:
    """Return the divisor of logits that makes the probabilities of these images as good as it can.

    It minimizes the mean cross-entropy, which has one minimum (Guo and others 2017). One number for
    all classes: the order of guesses stays as it is. Between 1/20 and 20. It is 1 where every first
    guess is right: then nothing shows how sure is too sure, and the minimum would be at 0.
    """
    if not rank_labels(logits, labels).any():
        return 1.0

    def compute_loss(log_temperature: float) -> float:
        parts = (
            slice(start, start + ROWS_AT_ONCE) for start in range(0, len(labels), ROWS_AT_ONCE)
        )
        temperature = math.exp(log_temperature)
        return float(
            sum(
                compute_losses_and_confidences(logits[rows], labels[rows], temperature)[0].sum()
                for rows in parts
            )
        )

    bound = math.log(20)
    found = optimize.minimize_scalar(
        compute_loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-6}
    )
    return math.exp(float(found.x))


def compute_chance_calibration_error(confidence: Floats) -> float:
    """Return the calibration error that perfect probabilities have by chance, in [0, 1].

    In a bin of images whose first guesses are right with exactly these probabilities, the number
    that is right misses its expectation by a normal deviate whose mean size is sqrt(2 / pi) of its
    standard deviation.

    Args:
        confidence: probability of each image's first guess, float64 [images], at least one.
    """
    variance = np.bincount(assign_bins(confidence), confidence * (1 - confidence), BINS)
    return float(np.sqrt(2 / np.pi * variance).sum() / len(confidence))
