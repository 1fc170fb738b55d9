"""Ranks, losses and confidences of single images, from their logits. Pure NumPy.

Everywhere `logits` are float [images, classes], unbounded, and `labels` are integers [images] in
[0, classes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipeline.arrays import Floats, Integers, Labels, Logits

ROWS_AT_ONCE = 4096  # float64 copies of 1000 logits an image stay near 30 MB
BINS = 15  # of confidence, equally wide, as Guo and others 2017 have them


def rank_labels(logits: Logits, labels: Labels) -> Integers:
    """Return the number of guesses that come before the correct one, int64 [images].

    It is 0 where the first guess is right. Guesses are ordered by logit; equal logits by class
    index, the lower first, which is also what `argmax` does. A constant network is thus right on
    class 0 only, not on everything. A NaN counts as coming before the correct guess, so it never
    scores.
    """
    rows = np.arange(len(labels))
    own = logits[rows, labels][:, None]
    not_below = ~(logits < own)
    tied_behind = (logits == own) & (
        np.arange(logits.shape[1])[None, :] >= np.asarray(labels)[:, None]
    )
    return np.asarray(np.count_nonzero(not_below & ~tied_behind, axis=1))


def compute_log_probabilities(logits: Logits, temperature: float = 1.0) -> Floats:
    """Return log softmax of logits / temperature, float64 [images, classes] in (-inf, 0]."""
    shifted = logits.astype(np.float64) / temperature
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def compute_losses_and_confidences(
    logits: Logits, labels: Labels, temperature: float = 1.0
) -> tuple[Floats, Floats]:
    """Return cross-entropy in nats and probability of the first guess, float64 [images] both.

    The probabilities lie in (0, 1] and are those of logits / temperature.
    """
    found = compute_log_probabilities(logits, temperature)
    return -found[np.arange(len(labels)), labels], np.exp(found.max(axis=1))


def assign_bins(confidence: Floats) -> Integers:
    """Return the index of the bin that each confidence falls into, int64 [images].

    Bins are (0, 1/15], (1/15, 2/15] and so on.
    """
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
