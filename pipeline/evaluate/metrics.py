"""What is counted from logits and labels: pure NumPy, no model and no file.

Everywhere `logits` are float [images, classes], unbounded, and `labels` are integers [images] in [0, classes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]

_NORMAL_QUANTILE = 1.959963984540054  # of 0.975: 95 % of a normal distribution lie within so many deviations
_ROWS_AT_ONCE = 4096  # float64 copies of 1000 logits an image stay near 30 MB


@dataclass(frozen=True)
class ClassScores:
    """One value a class: three scores, float64 [classes] in [0, 1], and images that are (support) and were answered this class."""

    precision: Floats
    recall: Floats
    f1: Floats
    support: Integers
    answered: Integers


@dataclass(frozen=True)
class Average:
    """The three scores as one number each, in [0, 1]."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Confusion:
    """How many images of class `label` were answered `answer`."""

    label: int
    answer: int
    images: int


@dataclass(frozen=True)
class Summary:
    """Everything that is counted of one split; errors are shares in [0, 1], the loss is in nats."""

    images: int
    loss: float
    top1_error: float
    top5_error: float
    top1_error_interval: tuple[float, float]
    majority_error: float
    balanced_accuracy: float
    macro: Average
    weighted: Average
    by_class: ClassScores
    confusion: Integers


def summarise(logits: Floats, labels: Integers, training_counts: Sequence[int] | Integers) -> Summary:
    """Return everything that is counted.

    Args:
        logits: finite float [images, classes], at least one image.
        labels: int [images] in [0, classes).
        training_counts: int [classes], the training images of each class.
    """
    images, classes = logits.shape
    ranks = label_ranks(logits, labels)
    confusion = confusion_matrix(labels, logits.argmax(axis=1), classes)
    scores = class_scores(confusion)
    return Summary(
        images=images,
        loss=cross_entropy(logits, labels),
        top1_error=top_k_error(ranks, 1, classes),
        top5_error=top_k_error(ranks, 5, classes),
        top1_error_interval=wilson_interval(int(np.count_nonzero(ranks)), images),
        majority_error=majority_error(training_counts, labels),
        balanced_accuracy=balanced_accuracy(scores),
        macro=macro_average(scores),
        weighted=weighted_average(scores),
        by_class=scores,
        confusion=confusion,
    )


def label_ranks(logits: Floats, labels: Integers) -> Integers:
    """Return int64 [images]: how many guesses come before the right one, 0 if the first guess is right.

    Guesses are ordered by logit; equal logits by class index, the lower first, which is also what `argmax` does. A constant
    network is thus right on class 0 only, not on everything. A NaN counts as coming before the right one, so it never scores.
    """
    rows = np.arange(len(labels))
    own = logits[rows, labels][:, None]
    not_below = ~(logits < own)
    tied_behind = (logits == own) & (np.arange(logits.shape[1])[None, :] >= np.asarray(labels)[:, None])
    return np.asarray(np.count_nonzero(not_below & ~tied_behind, axis=1))


def top_k_error(ranks: Integers, k: int, classes: int) -> float:
    """Return the share of images, in [0, 1], whose right class is not among the first k guesses.

    Args:
        ranks: of `label_ranks`.
        k: guesses allowed. With as many guesses as classes nothing can be wrong: 0.
        classes: how many classes there are.
    """
    return 0.0 if k >= classes else float(np.mean(ranks >= k))


def log_probabilities(logits: Floats) -> Floats:
    """Return the logarithm of the softmax, float64 [images, classes] in (-inf, 0]."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def cross_entropy(logits: Floats, labels: Integers) -> float:
    """Return the mean of -log softmax at the label, in nats, computed in float64."""
    losses = np.empty(len(labels))
    for start in range(0, len(labels), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        losses[rows] = -log_probabilities(logits[rows])[np.arange(len(labels[rows])), labels[rows]]
    return float(losses.mean())


def answer_probabilities(logits: Floats) -> Floats:
    """Return the softmax of each image's first guess, float64 [images] in (0, 1]."""
    parts = [log_probabilities(logits[start : start + _ROWS_AT_ONCE]).max(axis=1) for start in range(0, len(logits), _ROWS_AT_ONCE)]
    return np.asarray(np.exp(np.concatenate(parts)))


def confusion_matrix(labels: Integers, answers: Integers, classes: int) -> Integers:
    """Return int64 [classes, classes]: images by right class (row) and answer (column)."""
    flat = np.bincount(np.asarray(labels, np.int64) * classes + answers, minlength=classes * classes)
    return flat.reshape(classes, classes)


def class_scores(confusion: Integers) -> ClassScores:
    """Return precision, recall and F1 of every class; a ratio of nothing to nothing is 0.

    Args:
        confusion: int [classes, classes] of `confusion_matrix`.
    """
    right, answered, support = np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1)
    return ClassScores(_ratio(right, answered), _ratio(right, support), _ratio(2 * right, answered + support), support, answered)


def macro_average(scores: ClassScores) -> Average:
    """Return the mean over the classes that have images or were answered; each class counts the same.

    A class on neither side says nothing of the network; scikit-learn leaves it out as well.
    """
    return _average(scores, (scores.support + scores.answered > 0).astype(np.float64))


def weighted_average(scores: ClassScores) -> Average:
    """Return the mean over classes; each counts by its images."""
    return _average(scores, scores.support.astype(np.float64))


def balanced_accuracy(scores: ClassScores) -> float:
    """Return the mean recall, in [0, 1], over the classes that have images."""
    return float(scores.recall[scores.support > 0].mean())


def wilson_interval(errors: int, images: int) -> tuple[float, float]:
    """Return the 95 % interval, within [0, 1], of the share of errors in pictures like these (Wilson 1927).

    Unlike share +- 1.96 deviations it holds for few images and for no errors at all.
    """
    share, z2 = errors / images, _NORMAL_QUANTILE**2
    centre = share + z2 / (2 * images)
    reach = _NORMAL_QUANTILE * float(np.sqrt(share * (1 - share) / images + z2 / (4 * images**2)))
    low, high = (centre - reach) / (1 + z2 / images), (centre + reach) / (1 + z2 / images)
    return (0.0 if errors == 0 else low, 1.0 if errors == images else high)


def majority_error(training_counts: Sequence[int] | Integers, labels: Integers) -> float:
    """Return the top-1 error, in [0, 1], of always answering the commonest training class.

    Args:
        training_counts: int [classes], the training images of each class.
        labels: int [images] of the pictures that are scored.
    """
    return float(np.mean(np.asarray(labels) != np.argmax(training_counts)))


def most_confused(confusion: Integers, limit: int) -> list[Confusion]:
    """Return the most frequent (right class, wrong answer) pairs, at most `limit`; equal counts in order of class ids."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    rows, columns = np.nonzero(wrong)
    order = np.argsort(-wrong[rows, columns], kind="stable")[:limit]
    return [Confusion(int(rows[i]), int(columns[i]), int(wrong[rows[i], columns[i]])) for i in order]


def _ratio(part: Integers, whole: Integers) -> Floats:
    """Return part / whole, float64 [classes], 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)


def _average(scores: ClassScores, weights: Floats) -> Average:
    mean = [float(np.average(values, weights=weights)) for values in (scores.precision, scores.recall, scores.f1)]
    return Average(*mean)
