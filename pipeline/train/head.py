"""The classifier on features: multinomial logistic regression, its penalty by cross-validation.

It is a convex problem with one solution, so nothing depends on a learning rate or on chance. The
features are standardized for the fit, and the scale is folded into the weights afterwards.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.files import writing
from pipeline.random_streams import RandomStream, open_stream

if TYPE_CHECKING:
    from pipeline.arrays import Booleans, Floats, Integers, Labels

# Inverse strengths of the L2 penalty that are tried, as scikit-learn's C, on standardized features:
# for 1,280 features and 5 to 500 images per class the best is within; neighbors differ little.
PENALTIES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
# Where no class has two images, nothing can be held out.
_UNTESTED_PENALTY = 1e-2
_FOLDS = 5
# With more images one part of the five says enough, and each fit takes seconds.
_MAX_CROSSED_IMAGES = 2000
_MAX_ITERATIONS = 500
_ABSENT_LOGIT = -20.0  # of a class without training images, below the smallest bias of the others
_TOLERANCE = 1e-5  # of the gradient's largest element; the error no longer changes at ten times it


@dataclass(frozen=True)
class Head:
    """A fitted classifier.

    Attributes:
        kernel: float32 [features, classes].
        bias: float32 [classes].
        penalty: the chosen inverse strength.
        scores: for each penalty, the mean cross-entropy in nats and the top-1 error in [0, 1] of
            images that were held out; empty where none could be.
        held_out: images that these are of.
    """

    kernel: Floats
    bias: Floats
    penalty: float
    scores: dict[float, tuple[float, float]]
    held_out: int

    def compute_logits(self, features: Floats) -> Floats:
        """Return the logits of features [images, features], float32 [images, classes]."""
        return features @ self.kernel + self.bias


def fit_head(
    features: Floats,
    labels: Labels,
    classes: int,
    *,
    seed: int,
    class_weights: Floats | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Head:
    """Return the classifier with the penalty that predicts held-out images best.

    All views of an image are held out together. The images are divided into five parts, of every
    class about as many; above 2,000 images only the first part is held out.

    Args:
        features: float32 [images, views, features].
        labels: integers [images] in [0, classes); a class may have none.
        classes: number of logits.
        seed: of the division.
        class_weights: float32 [classes], the weights of an image's loss; None for equal ones.
        report: called with the fits that are done, and their number; None for no reports.
    """
    folds = assign_folds(labels, seed)
    tested = list(range(_FOLDS if len(labels) <= _MAX_CROSSED_IMAGES else 1))
    parts = [(folds != fold, folds == fold) for fold in tested if (folds == fold).any()]
    total = len(parts) * len(PENALTIES) + 1
    problem = _Problem(features, labels, classes, class_weights)
    losses: dict[float, list[Floats]] = {penalty: [] for penalty in PENALTIES}
    errors: dict[float, list[Booleans]] = {penalty: [] for penalty in PENALTIES}
    for part, (fitted, held_out) in enumerate(parts):
        fits = problem.fit_path(fitted, PENALTIES)
        for index, (penalty, (kernel, bias)) in enumerate(zip(PENALTIES, fits, strict=True)):
            logits = features[held_out, 0] @ kernel + bias
            losses[penalty].append(_cross_entropy(logits, labels[held_out]))
            errors[penalty].append(logits.argmax(axis=1) != labels[held_out])
            if report is not None:
                report(part * len(PENALTIES) + index + 1, total)
    scores = {
        penalty: (
            float(np.concatenate(losses[penalty]).mean(dtype=np.float64)),
            float(np.concatenate(errors[penalty]).mean()),
        )
        for penalty in PENALTIES
        if parts
    }
    best = min(scores, key=lambda penalty: scores[penalty][0]) if scores else _UNTESTED_PENALTY
    *_, (kernel, bias) = problem.fit_path(np.ones(len(labels), bool), (best,))
    if report is not None:
        report(total, total)
    return Head(kernel, bias, best, scores, sum(int(held.sum()) for _, held in parts))


def assign_folds(labels: Labels, seed: int) -> Integers:
    """Return the part that each image is in, int [images] in [0, 5).

    Each class is spread evenly in a random order; the only image of a class gets -1, as it is
    always fitted.
    """
    rng = open_stream(RandomStream.HEAD_FOLDS, seed=seed, epoch=0)
    folds, start = np.full(len(labels), -1), 0
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) > 1:
            folds[members] = (start + np.arange(len(members))) % _FOLDS
            start += len(members)
    return folds


class _Problem:
    """The fits on some of the images, all on the same scale of features."""

    def __init__(
        self, features: Floats, labels: Labels, classes: int, class_weights: Floats | None
    ):
        self._labels, self._classes = labels, classes
        self._weights = None if class_weights is None else class_weights[labels]
        flat = features.reshape(-1, features.shape[-1])
        self._mean = flat.mean(axis=0, dtype=np.float64).astype(np.float32)
        std = flat.std(axis=0, dtype=np.float64).astype(np.float32)
        # A feature that never changes says nothing: its weights are 0.
        varies = std > 1e-6 * float(std.max())
        self._scale = np.where(varies, 1 / np.where(varies, std, 1), 0).astype(np.float32)
        self._scaled = (features - self._mean) * self._scale

    def fit_path(
        self, chosen: Booleans, penalties: tuple[float, ...]
    ) -> Iterator[tuple[Floats, Floats]]:
        """Yield kernel and bias for each penalty, each fit beginning with the one before."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits

        views = self._scaled.shape[1]
        rows = self._scaled[chosen].reshape(-1, self._scaled.shape[-1])
        labels = np.repeat(self._labels[chosen], views)
        weights = None if self._weights is None else np.repeat(self._weights[chosen], views)
        model = LogisticRegression(tol=_TOLERANCE, max_iter=_MAX_ITERATIONS, warm_start=True)
        for penalty in penalties:
            # The views of an image count as one image.
            model.set_params(C=penalty / views)
            # One thread: the products are small, so more are slower, and the last bits depend on
            # their number.
            with warnings.catch_warnings(), threadpool_limits(1):
                warnings.simplefilter("ignore", ConvergenceWarning)  # it is near enough then
                model.fit(rows, labels, sample_weight=weights)
            yield self._unscale(model.coef_, model.intercept_, model.classes_)

    def _unscale(self, weights: Floats, bias: Floats, present: Labels) -> tuple[Floats, Floats]:
        """Return kernel and bias for features as they come, with every class."""
        if len(present) == 2:  # scikit-learn keeps the difference of the two logits
            weights = np.concatenate([-weights, weights]) / 2
            bias = np.concatenate([-bias, bias]) / 2
        kernel = np.zeros((self._scaled.shape[-1], self._classes), np.float32)
        # A class without images is never the answer.
        own = bias - (weights * self._scale) @ self._mean
        full_bias = np.full(self._classes, float(own.min()) + _ABSENT_LOGIT, np.float32)
        kernel[:, present], full_bias[present] = (weights * self._scale).T, own
        return kernel, full_bias


def _cross_entropy(logits: Floats, labels: Labels) -> Floats:
    """Return the cross-entropies in nats, float64 [images]."""
    from scipy.special import logsumexp

    wide = logits.astype(np.float64)
    return logsumexp(wide, axis=1) - wide[np.arange(len(labels)), labels]


def write_head(head: Head, path: Path) -> None:
    """Write a classifier's weights, complete or not at all."""
    with writing(path) as temporary:
        np.savez(temporary, kernel=head.kernel, bias=head.bias)


def read_head(path: Path) -> tuple[Floats, Floats]:
    """Return kernel and bias of a file of `write_head`."""
    with np.load(path) as found:
        return found["kernel"], found["bias"]
