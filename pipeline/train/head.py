"""The classifier on features: multinomial logistic regression, its penalty by cross-validation.

It is a convex problem with one solution, so nothing depends on a learning rate or on chance. The
features are standardized for the fit, and the scale is folded into the weights afterwards.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

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
# Of a few images some features hardly change; scaled by that alone, they would be all that counts
# in an image where they do. As a fraction of the median; 0.25 to 1 make little difference.
_SMALLEST_DEVIATION = 0.5
_ROWS_AT_ONCE = 4096  # of what is computed in float64
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
            images that were held out, weighted as the fit; empty where none could be.
        held_out: images that these are of.
    """

    kernel: Floats
    bias: Floats
    penalty: float
    scores: dict[float, tuple[float, float]]
    held_out: int

    @property
    def edge(self) -> Literal["", "strongest", "weakest"]:
        """Which end of the tried penalties is the best, so that a better one may lie beyond it."""
        if self.scores and self.penalty == min(self.scores):
            return "strongest"
        return "weakest" if self.scores and self.penalty == max(self.scores) else ""

    def compute_logits(self, features: Floats) -> Floats:
        """Return the logits of features [images, features], float32 [images, classes]."""
        return features @ self.kernel + self.bias


def fit_head(
    features: Floats,
    labels: Labels,
    classes: int,
    *,
    seed: int,
    groups: Integers | None = None,
    class_weights: Floats | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Head:
    """Return the classifier with the penalty that predicts held-out images best.

    All views of an image are held out together, and so are all images of a group. The images are
    divided into five parts, of every class about as many; above 2,000 images one part is held out.
    A class that is not in the fit of a part says nothing about it, so it is not scored there.

    Args:
        features: float32 [images, views, features].
        labels: integers [images] in [0, classes); a class may have none.
        classes: number of logits.
        seed: of the division.
        groups: integers [images], equal for images that belong together; None if none do.
        class_weights: float32 [classes], the weights of an image's loss and error; None for equal
            ones.
        report: called with the fits that are done, and their number; None for no reports.
    """
    parts = list(_iterate_parts(labels, assign_folds(labels, seed, groups)))
    if len(labels) > _MAX_CROSSED_IMAGES:
        parts = parts[:1]
    total = len(parts) * len(PENALTIES) + 1
    problem = _Problem(features, labels, classes, class_weights)
    held = [labels[held_out] for _, held_out in parts]
    weights = None if class_weights is None or not parts else class_weights[np.concatenate(held)]
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
            float(np.average(np.concatenate(losses[penalty]), weights=weights)),
            float(np.average(np.concatenate(errors[penalty]), weights=weights)),
        )
        for penalty in PENALTIES
        if parts
    }
    best = min(scores, key=lambda penalty: scores[penalty][0]) if scores else _UNTESTED_PENALTY
    *_, (kernel, bias) = problem.fit_path(np.ones(len(labels), bool), (best,))
    if report is not None:
        report(total, total)
    return Head(kernel, bias, best, scores, sum(map(len, held)))


def assign_folds(labels: Labels, seed: int, groups: Integers | None = None) -> Integers:
    """Return the part that each image is in, int [images] in [0, 5); a group is in one part.

    Groups come in a random order, large ones first, each into the part that has least of its
    classes. One whose classes are in no other group gets -1, as it is always fitted: held out, it
    would leave its classes without an image.

    scikit-learn's StratifiedGroupKFold refuses classes of fewer than five images, and takes a table
    of groups by classes, 10 GB for ImageNet.

    Args:
        labels: integers [images].
        seed: of the order.
        groups: integers [images], equal for images that belong together; None if none do.
    """
    _, labels = np.unique(labels, return_inverse=True)
    groups = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    classes, count = int(labels.max()) + 1, int(groups.max()) + 1
    # For each group, a row for each of its classes.
    pairs, sizes = np.unique(groups * classes + labels, return_counts=True)
    owners, kinds = np.divmod(pairs, classes)
    ends = np.searchsorted(owners, np.arange(count + 1))
    shared = np.bincount(kinds)[kinds] > 1
    divisible = np.bincount(owners, weights=shared, minlength=count) > 0
    fractions = sizes / np.bincount(labels)[kinds]
    order = open_stream(RandomStream.HEAD_FOLDS, seed=seed, epoch=0).permutation(count)
    order = order[np.argsort(-np.bincount(groups)[order], kind="stable")]
    filled, images, chosen = np.zeros((_FOLDS, classes)), np.zeros(_FOLDS), np.full(count, -1)
    for group in order[divisible[order]].tolist():
        rows = slice(ends[group], ends[group + 1])
        own, fraction = kinds[rows], fractions[rows]
        fold = np.lexsort((images, (filled[:, own] * fraction).sum(axis=1).round(9)))[0]
        filled[fold, own] += fraction
        images[fold] += sizes[rows].sum()
        chosen[group] = fold
    return chosen[groups]


def _iterate_parts(labels: Labels, folds: Integers) -> Iterator[tuple[Booleans, Booleans]]:
    """Yield which images are fitted and which are scored, a part whose size is usual first."""
    sizes = [int((folds == fold).sum()) for fold in range(_FOLDS)]
    usual = sum(sizes) / _FOLDS
    for fold in sorted(range(_FOLDS), key=lambda fold: abs(sizes[fold] - usual)):
        fitted = folds != fold
        known = np.unique(labels[fitted])
        scored = (folds == fold) & np.isin(labels, known)
        if len(known) > 1 and scored.any():
            yield fitted, scored


class _Problem:
    """The fits on some of the images, each on a scale of its own."""

    def __init__(
        self, features: Floats, labels: Labels, classes: int, class_weights: Floats | None
    ):
        self._features, self._labels, self._classes = features, labels, classes
        self._weights = None if class_weights is None else class_weights[labels]

    def fit_path(
        self, chosen: Booleans, penalties: tuple[float, ...]
    ) -> Iterator[tuple[Floats, Floats]]:
        """Yield kernel and bias for each penalty, each fit beginning with the one before."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits

        views = self._features.shape[1]
        rows = self._features[chosen].reshape(-1, self._features.shape[-1])
        mean, scale = _standardize(rows)
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
            weighted, bias = model.coef_, model.intercept_
            if len(model.classes_) == 2:  # scikit-learn keeps the difference of the two logits
                weighted = np.concatenate([-weighted, weighted]) / 2
                bias = np.concatenate([-bias, bias]) / 2
            weighted = weighted * scale
            yield self._add_classes(weighted, bias - weighted @ mean, model.classes_)

    def _add_classes(self, weights: Floats, bias: Floats, present: Labels) -> tuple[Floats, Floats]:
        """Return kernel and bias with every class; one without images is never the answer."""
        kernel = np.zeros((self._features.shape[-1], self._classes), np.float32)
        full_bias = np.full(self._classes, float(bias.min()) + _ABSENT_LOGIT, np.float32)
        kernel[:, present], full_bias[present] = weights.T, bias
        return kernel, full_bias


def _standardize(rows: Floats) -> tuple[Floats, Floats]:
    """Give each feature mean 0 and variance 1, in place; return what was done, float32 [features].

    It is (rows - mean) * scale. A feature that never changes says nothing: its scale is 0. One that
    changes far less than most is scaled as if it changed by half of what they do.
    """
    mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    rows -= mean
    squares = np.zeros(rows.shape[-1])
    for start in range(0, len(rows), _ROWS_AT_ONCE):  # no copy of everything in float64
        squares += np.square(rows[start : start + _ROWS_AT_ONCE], dtype=np.float64).sum(axis=0)
    std = np.sqrt(squares / len(rows)).astype(np.float32)
    varies = std > 1e-6 * float(std.max())
    smallest = _SMALLEST_DEVIATION * float(np.median(std[varies])) if varies.any() else 1.0
    scale = np.where(varies, 1 / np.maximum(std, smallest), 0).astype(np.float32)
    rows *= scale
    return mean, scale


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
