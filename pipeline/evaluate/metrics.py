"""What is counted from logits and labels: pure NumPy and SciPy, no model and no file.

Every number of an evaluation is a function of sums over its images, so a `Tally` holds sums alone:
of the images as they are, and of a thousand resamples in which each image counts a Poisson(1)
number of times. The same function makes the number of all of them, and the spread of the resamples
is the number's interval. Memory does not grow with the images.

Everywhere `logits` are float [images, classes], unbounded, and `labels` are integers [images] in
[0, classes).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]

ROWS_AT_ONCE = 4096  # float64 copies of 1000 logits an image stay near 30 MB
BINS = 15  # of confidence, equally wide, as Guo and others 2017 have them
RESAMPLES = 1000  # the ends of a 95 % interval then lie 25 resamples from the ends of their range
_MAX_SUMS = 4_000_000  # 100 MB: with more than a thousand classes there are fewer resamples
_NORMAL_QUANTILE = (
    1.959963984540054  # of 0.975: 95 % of a normal distribution lie within so many deviations
)
_SCALARS = ("images", "loss", "calibrated_loss", "top5_wrong", "majority_wrong")
_BY_CLASS = ("support", "right", "answered")
_BY_BIN = tuple(
    f"{kind}_{what}" for kind in ("raw", "calibrated") for what in ("images", "confidence", "right")
)


# -- of each image ---------------------------------------------------------------------------------


def label_ranks(logits: Floats, labels: Integers) -> Integers:
    """Return int64 [images]: how many guesses come before the right one, 0 if the first guess is right.

    Guesses are ordered by logit; equal logits by class index, the lower first, which is also what
    `argmax` does. A constant network is thus right on class 0 only, not on everything. A NaN counts
    as coming before the right one, so it never scores.
    """
    rows = np.arange(len(labels))
    own = logits[rows, labels][:, None]
    not_below = ~(logits < own)
    tied_behind = (logits == own) & (
        np.arange(logits.shape[1])[None, :] >= np.asarray(labels)[:, None]
    )
    return np.asarray(np.count_nonzero(not_below & ~tied_behind, axis=1))


def log_probabilities(logits: Floats, temperature: float = 1.0) -> Floats:
    """Return the logarithm of the softmax of logits / temperature, float64 [images, classes] in (-inf, 0]."""
    shifted = logits.astype(np.float64) / temperature
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def losses_and_confidences(
    logits: Floats, labels: Integers, temperature: float = 1.0
) -> tuple[Floats, Floats]:
    """Return of each image the cross-entropy, in nats, and the probability of its first guess, in (0, 1]; float64 [images] both."""
    found = log_probabilities(logits, temperature)
    return -found[np.arange(len(labels)), labels], np.exp(found.max(axis=1))


# -- sums of all images ----------------------------------------------------------------------------


@dataclass
class Tally:
    """What is counted of a split, and of resamples of it.

    `sums` is float64 [rows, 1 + resamples]; column 0 is the split itself. `confusion` is int64
    [classes, classes]: images by right class (row) and answer (column). `majority` is the class
    that a rule without a network would always answer. With a `temperature` the calibrated numbers
    are those of logits / temperature.
    """

    classes: int
    majority: int
    temperature: float = 1.0
    resamples: int = RESAMPLES
    seed: int = 0
    sums: Any = field(init=False)
    confusion: Any = field(init=False)
    _rng: Any = field(init=False)

    def __post_init__(self) -> None:
        """Begin with nothing counted."""
        rows = len(_SCALARS) + len(_BY_CLASS) * self.classes + len(_BY_BIN) * BINS
        self.resamples = min(self.resamples, 2 * (_MAX_SUMS // rows // 2))
        self.sums = np.zeros((rows, 1 + self.resamples))
        self.confusion = np.zeros((self.classes, self.classes), np.int64)
        self._rng = np.random.default_rng(self.seed)

    def add(self, logits: Floats, labels: Integers) -> None:
        """Count some images; what is found does not depend on how many come at a time."""
        for start in range(0, len(labels), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            self._add(logits[rows], np.asarray(labels[rows], np.int64))

    def _add(self, logits: Floats, labels: Integers) -> None:
        answers, ranks = logits.argmax(axis=1), label_ranks(logits, labels)
        loss, confidence = losses_and_confidences(logits, labels)
        calibrated_loss, calibrated = losses_and_confidences(logits, labels, self.temperature)
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
        for offset, shares in ((bins, confidence), (bins + 3 * BINS, calibrated)):
            place = offset + _bin_of(shares)
            entries += [(place, ones), (place + BINS, shares), (place + 2 * BINS, right)]
        rows = np.concatenate([np.broadcast_to(row, len(labels)) for row, _ in entries])
        values = np.concatenate([np.asarray(value, np.float64) for _, value in entries])
        columns = np.tile(np.arange(len(labels)), len(entries))
        which = sparse.csr_array((values, (rows, columns)), shape=(len(self.sums), len(labels)))
        self.sums += which @ resampled(self._rng, len(labels), self.resamples)
        self.confusion += confusion_matrix(labels, answers, self.classes)

    def rows(self) -> dict[str, Floats]:
        """Return the sums by name, float64 [1 + resamples], or [classes or bins, 1 + resamples]."""
        found = {name: self.sums[row] for row, name in enumerate(_SCALARS)}
        start = len(_SCALARS)
        for name, length in [
            *((name, self.classes) for name in _BY_CLASS),
            *((name, BINS) for name in _BY_BIN),
        ]:
            found[name] = self.sums[start : start + length]
            start += length
        return found


def resampled(rng: Any, images: int, resamples: int) -> Floats:
    """Return how often each image counts in each resample, float64 [images, 1 + resamples].

    Once in the first, then Poisson(1) times.

    The bootstrap draws as many images as there are, with replacement; that each is drawn a
    Poisson(1) number of times is its limit for many images and can be counted in one pass (Hanley
    and MacGibbon 2006). Drawn to a 65,536th.

    Args:
        rng: a NumPy generator.
        images: how many.
        resamples: an even number, so that the generator's 32-bit words are used up and images may
            come in parts.
    """
    weights = np.ones((images, 1 + resamples))
    weights[:, 1:] = _POISSON[rng.integers(0, 1 << 16, (images, resamples), np.uint16)]
    return weights


def _poisson_table() -> Any:
    """Return for each 16-bit number the count that it stands for, uint8 [65536]."""
    upper = np.cumsum([math.exp(-1) / math.factorial(count) for count in range(9)])
    return np.searchsorted(upper, (np.arange(1 << 16) + 0.5) / (1 << 16)).astype(np.uint8)


_POISSON = _poisson_table()


def _bin_of(confidence: Floats) -> Integers:
    """Return which of the bins (0, 1/15], (1/15, 2/15] ... a confidence falls into, int64 [images] from 0 on."""
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


# -- numbers of the sums ---------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassScores:
    """One value a class: three scores, float64 [classes] in [0, 1], and images that are (support) and were answered this class.

    With resamples every array has them as a second axis.
    """

    precision: Floats
    recall: Floats
    f1: Floats
    support: Any
    answered: Any


@dataclass(frozen=True)
class Reliability:
    """How confident and how right the images of each bin of confidence are.

    Float64 [15] all three, the means 0 where there are none.
    """

    images: Floats
    confidence: Floats
    accuracy: Floats


@dataclass(frozen=True)
class Confusion:
    """How many images of class `label` were answered `answer`."""

    label: int
    answer: int
    images: int


@dataclass(frozen=True)
class Summary:
    """Everything that is counted of one split.

    `values` and `intervals` hold the headline numbers by name; errors, scores and calibration
    errors are shares in [0, 1], losses are in nats. The intervals hold 95 %: Wilson's for the two
    errors, the resamples' for the others.
    """

    images: int
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    resampled_intervals: dict[str, tuple[float, float]]
    majority_error: float
    temperature: float
    by_class: ClassScores
    confusion: Integers
    reliability: Reliability
    calibrated_reliability: Reliability

    @property
    def top1_error(self) -> float:
        """Share of the images whose first guess is wrong."""
        return self.values["top1_error"]

    @property
    def top5_error(self) -> float:
        """Share of the images whose first five guesses are all wrong."""
        return self.values["top5_error"]

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats, without any penalty."""
        return self.values["loss"]

    @property
    def top1_error_interval(self) -> tuple[float, float]:
        """The 95 % interval of the top-1 error."""
        return self.intervals["top1_error"]


def summarize(tally: Tally) -> Summary:
    """Return everything that is counted; at least one image must be."""
    sums = tally.rows()
    images, found = int(sums["images"][0]), headline_numbers(sums)
    resamples = {name: _spread(name, values, sums["images"][1:]) for name, values in found.items()}
    wilson = {
        name: wilson_interval(round(float(found[name][0]) * images), images)
        for name in ("top1_error", "top5_error")
    }
    return Summary(
        images=images,
        values={name: float(values[0]) for name, values in found.items()},
        intervals=resamples | wilson,
        resampled_intervals=resamples,
        majority_error=float(sums["majority_wrong"][0] / images),
        temperature=tally.temperature,
        by_class=class_scores(tally.confusion),
        confusion=tally.confusion,
        reliability=_reliability(sums, "raw"),
        calibrated_reliability=_reliability(sums, "calibrated"),
    )


def headline_numbers(sums: dict[str, Floats]) -> dict[str, Floats]:
    """Return the headline numbers by name, float64 [1 + resamples] each, from what `Tally.rows` gives."""
    images = np.maximum(sums["images"], 1)  # a resample of one image may have none
    scores = _scores(sums["right"], sums["answered"], sums["support"])
    found = {
        "top1_error": (sums["images"] - sums["right"].sum(axis=0)) / images,
        "top5_error": sums["top5_wrong"] / images,
        "loss": sums["loss"] / images,
        "balanced_accuracy": balanced_accuracy(scores),
    }
    for measure in ("precision", "recall", "f1"):
        found[f"macro_{measure}"] = macro_average(scores, measure)
    for measure in ("precision", "recall", "f1"):
        found[f"weighted_{measure}"] = weighted_average(scores, measure)
    for kind in ("raw", "calibrated"):
        gap = np.abs(sums[f"{kind}_right"] - sums[f"{kind}_confidence"]).sum(axis=0) / images
        found["calibration_error" if kind == "raw" else "calibrated_calibration_error"] = gap
    return found | {"calibrated_loss": sums["calibrated_loss"] / images}


def _spread(name: str, values: Floats, images: Floats) -> tuple[float, float]:
    """Return the 95 % interval of a number from its resamples, those without an image left out."""
    low, high = shifted_interval(values[0], values[1:][images > 0])
    return max(0.0, low), high if name.endswith("loss") else min(1.0, high)


def shifted_interval(value: float, resamples: Floats) -> tuple[float, float]:
    """Return the 95 % interval between quantiles of the resamples, moved by as much as their mean lies beside the value.

    A resample lacks a third of the images, so precision and F1 of classes with few are lower there
    than on the split, all of them.
    """
    if len(resamples) == 0:
        return float(value), float(value)
    low, high = np.quantile(resamples, (0.025, 0.975)) + (value - resamples.mean())
    return float(low), float(high)


def _reliability(sums: dict[str, Floats], kind: str) -> Reliability:
    images = sums[f"{kind}_images"][:, 0]
    return Reliability(
        images,
        _ratio(sums[f"{kind}_confidence"][:, 0], images),
        _ratio(sums[f"{kind}_right"][:, 0], images),
    )


def confusion_matrix(labels: Integers, answers: Integers, classes: int) -> Integers:
    """Return int64 [classes, classes]: images by right class (row) and answer (column)."""
    flat = np.bincount(
        np.asarray(labels, np.int64) * classes + answers, minlength=classes * classes
    )
    return flat.reshape(classes, classes)


def class_scores(confusion: Integers) -> ClassScores:
    """Return precision, recall and F1 of every class; a ratio of nothing to nothing is 0.

    Args:
        confusion: int [classes, classes] of `confusion_matrix`.
    """
    return _scores(np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1))


def _scores(right: Any, answered: Any, support: Any) -> ClassScores:
    return ClassScores(
        _ratio(right, answered),
        _ratio(right, support),
        _ratio(2 * right, answered + support),
        support,
        answered,
    )


def macro_average(scores: ClassScores, measure: str) -> Any:
    """Return the mean over the classes that have images or were answered.

    Each class counts the same.

    A class on neither side says nothing of the network; scikit-learn leaves it out as well.
    """
    return _mean(getattr(scores, measure), scores.support + scores.answered > 0)


def weighted_average(scores: ClassScores, measure: str) -> Any:
    """Return the mean over classes; each counts by its images."""
    return _mean(getattr(scores, measure), scores.support)


def balanced_accuracy(scores: ClassScores) -> Any:
    """Return the mean recall, in [0, 1], over the classes that have images."""
    return _mean(scores.recall, scores.support > 0)


def _mean(values: Floats, weights: Any) -> Any:
    return _ratio((values * weights).sum(axis=0), np.asarray(weights, np.float64).sum(axis=0))


def _ratio(part: Any, whole: Any) -> Any:
    """Return part / whole, float64, 0 where the whole is 0."""
    whole = np.asarray(whole, np.float64)
    return np.divide(
        part, whole, out=np.zeros(np.broadcast_shapes(np.shape(part), whole.shape)), where=whole > 0
    )


def most_confused(confusion: Integers, limit: int) -> list[Confusion]:
    """Return the most frequent (right class, wrong answer) pairs, at most `limit`.

    Equal counts in order of class ids.
    """
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    rows, columns = np.nonzero(wrong)
    order = np.argsort(-wrong[rows, columns], kind="stable")[:limit]
    return [
        Confusion(int(rows[i]), int(columns[i]), int(wrong[rows[i], columns[i]])) for i in order
    ]


def wilson_interval(errors: int, images: int) -> tuple[float, float]:
    """Return the 95 % interval, within [0, 1], of the share of errors in images like these (Wilson 1927).

    Unlike share +- 1.96 deviations, and unlike the resamples, it holds for few images and for no
    errors at all.
    """
    share, z2 = errors / images, _NORMAL_QUANTILE**2
    center = share + z2 / (2 * images)
    reach = _NORMAL_QUANTILE * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2))
    low, high = (center - reach) / (1 + z2 / images), (center + reach) / (1 + z2 / images)
    return (0.0 if errors == 0 else low, 1.0 if errors == images else high)


def majority_class(training_counts: Sequence[int] | Integers) -> int:
    """Return the commonest training class, the first of equals."""
    return int(np.argmax(training_counts))


# -- calibration -----------------------------------------------------------------------------------


def fit_temperature(logits: Floats, labels: Integers) -> float:
    """Return what to divide logits by so that probabilities are as good as they can be on these images (Guo and others 2017).

    It minimizes the mean cross-entropy, which has one minimum. One number for all classes: the
    order of guesses stays as it is. Between 1/20 and 20. It is 1 where no first guess is wrong:
    nothing says then how sure is too sure, and the minimum would be at 0.
    """
    if not label_ranks(logits, labels).any():
        return 1.0

    def loss(log_temperature: float) -> float:
        parts = (
            slice(start, start + ROWS_AT_ONCE) for start in range(0, len(labels), ROWS_AT_ONCE)
        )
        return float(
            sum(
                losses_and_confidences(logits[rows], labels[rows], math.exp(log_temperature))[
                    0
                ].sum()
                for rows in parts
            )
        )

    bound = math.log(20)
    found = optimize.minimize_scalar(
        loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-6}
    )
    return math.exp(float(found.x))


def chance_calibration_error(confidence: Floats) -> float:
    """Return the calibration error that perfect probabilities would have on so few images, expected by chance, in [0, 1].

    In a bin of images whose first guesses are right with exactly these probabilities, the number
    that is right misses its expectation by a normal deviate whose mean size is sqrt(2 / pi) of its
    standard deviation.

    Args:
        confidence: probability of each image's first guess, float64 [images], at least one.
    """
    variance = np.bincount(_bin_of(confidence), confidence * (1 - confidence), BINS)
    return float(np.sqrt(2 / np.pi * variance).sum() / len(confidence))


# -- in words --------------------------------------------------------------------------------------

# What the headline numbers are called, in the order in which they are shown.
MEASURES = (
    ("top1_error", "top-1 error: first guess wrong"),
    ("top5_error", "top-5 error: first five guesses all wrong"),
    ("loss", "loss: mean cross-entropy, nats"),
    ("balanced_accuracy", "balanced accuracy: mean recall of the classes"),
    ("macro_precision", "precision, each class counts the same (macro)"),
    ("macro_recall", "recall, macro"),
    ("macro_f1", "F1, macro"),
    ("weighted_precision", "precision, each image counts the same (weighted)"),
    ("weighted_recall", "recall, weighted"),
    ("weighted_f1", "F1, weighted"),
    ("calibration_error", "expected calibration error, 15 bins"),
    ("calibrated_calibration_error", "the same with the fitted temperature"),
    ("calibrated_loss", "loss with the fitted temperature, nats"),
)


def percent(share: float) -> str:
    """Return a share in [0, 1] as `1.4 %`."""
    return f"{100 * share:.1f} %"
