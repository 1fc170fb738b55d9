"""Scores of classes: the confusion matrix, and precision, recall and F1 of it. Pure NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipeline.arrays import Booleans, Floats, Integers, Labels


@dataclass(frozen=True)
class ClassScores:
    """Three scores, float64 [classes] in [0, 1], and two counts of each class.

    `support` counts the images of the class, `answered` those that were answered with it. With
    bootstrap samples every array has them as a second axis.
    """

    precision: Floats
    recall: Floats
    f1: Floats
    support: Floats | Integers
    answered: Floats | Integers


@dataclass(frozen=True)
class ConfusedPair:
    """Number of images of class `label` that were answered `answer`: class ids."""

    label: int
    answer: int
    images: int


def count_confusion(labels: Labels, answers: Labels, classes: int) -> Integers:
    """Return int64 [classes, classes]: images by correct class (row) and answer (column)."""
    flat = np.bincount(
        np.asarray(labels, np.int64) * classes + answers, minlength=classes * classes
    )
    return flat.reshape(classes, classes)


def score_classes(confusion: Integers) -> ClassScores:
    """Return precision, recall and F1 of every class; a ratio of 0 to 0 is 0.

    Args:
        confusion: int [classes, classes] of `count_confusion`.
    """
    return score_class_counts(np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1))


def score_class_counts(
    right: Floats | Integers, answered: Floats | Integers, support: Floats | Integers
) -> ClassScores:
    """Return the scores from the counts of each class.

    Args:
        right: images of the class that are right, [classes] or [classes, samples], as the others.
        answered: images answered with the class.
        support: images of the class.
    """
    return ClassScores(
        compute_ratio(right, answered),
        compute_ratio(right, support),
        compute_ratio(2 * right, answered + support),
        support,
        answered,
    )


def compute_macro_average(scores: ClassScores, measure: str) -> Floats:
    """Return the mean of a score over the classes that have images or were answered.

    Each class counts the same. A class on neither side carries no information about the network;
    scikit-learn leaves it out as well.
    """
    return _average(getattr(scores, measure), scores.support + scores.answered > 0)


def compute_weighted_average(scores: ClassScores, measure: str) -> Floats:
    """Return the mean of a score over classes, each weighted by its images."""
    return _average(getattr(scores, measure), scores.support)


def compute_balanced_accuracy(scores: ClassScores) -> Floats:
    """Return the mean recall, in [0, 1], over the classes that have images."""
    return _average(scores.recall, scores.support > 0)


def _average(values: Floats, weights: Floats | Integers | Booleans) -> Floats:
    return compute_ratio(
        (values * weights).sum(axis=0), np.asarray(weights, np.float64).sum(axis=0)
    )


def compute_ratio(part: Floats | Integers, whole: Floats | Integers) -> Floats:
    """Return part / whole, float64, 0 where the whole is 0."""
    whole = np.asarray(whole, np.float64)
    return np.divide(
        part, whole, out=np.zeros(np.broadcast_shapes(np.shape(part), whole.shape)), where=whole > 0
    )


def find_most_confused(confusion: Integers, limit: int) -> list[ConfusedPair]:
    """Return the most frequent pairs of a correct class and a wrong answer, at most `limit`.

    Equal counts are in order of class ids.
    """
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    rows, columns = np.nonzero(wrong)
    order = np.argsort(-wrong[rows, columns], kind="stable")[:limit]
    return [
        ConfusedPair(int(rows[i]), int(columns[i]), int(wrong[rows[i], columns[i]])) for i in order
    ]
