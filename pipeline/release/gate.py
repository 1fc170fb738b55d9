"""The promotion gate: whether a candidate may replace the champion, both judged on the same frozen test images.

Pure NumPy and SciPy, no model and no file. What is not measured never passes: no evidence, no
promotion.

Two models that answer the same images are compared on those that exactly one of them gets wrong; on
these they part. The difference of their errors, candidate less champion, gets the score interval of
Tango 1998 ("Equivalence test and confidence interval for the difference in proportions for the
paired-sample design"), which holds for few such images and for none at all.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from pipeline.evaluate.intervals import compute_wilson_interval

if TYPE_CHECKING:
    from pipeline.arrays import Integers
    from pipeline.config.release import ReleaseConfig

LEVEL = 0.05  # how often a candidate that is worse by exactly the margin may pass
POWER = 0.8  # how often an equally good one should
# Images on which two models part: with fewer, chances jump from one count to the next and are
# summed count by count
_FEW = 10
_NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Answers:
    """What one or two models said of the frozen images.

    Attributes:
        labels: int64 [images], right classes, in the candidate's class numbers.
        candidate: int64 [images], first guesses.
        champion: int64 [images], first guesses in the candidate's class numbers, -1 for an answer
            that the candidate has no class for. None: there is no champion.
        shared: bool [images], images whose class the champion knows; the two are compared on these
            alone. None: on all.
    """

    labels: Integers
    candidate: Integers
    champion: Integers | None = None
    shared: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Measured:
    """What else was measured of the candidate; None or NaN where it was not.

    Attributes:
        calibration_error: expected calibration error with the fitted temperature, in [0, 1], less
            what chance makes of perfect probabilities: 100 of them, spread over the bins with 70
            right, would be off by 14 points.
        majority_error: error of always giving the commonest training class, in [0, 1].
        latency_p95_seconds: time within which 95 of 100 answers to one image come.
        model_bytes: size of the model's file.
    """

    calibration_error: float | None
    majority_error: float | None
    latency_p95_seconds: float | None
    model_bytes: int | None


@dataclass(frozen=True)
class Check:
    """One question of the gate. `text` is a plain sentence with the numbers, `measured` and `required` are those for a table."""

    name: str
    passed: bool
    measured: str
    required: str
    text: str


@dataclass(frozen=True)
class _Paired:
    """The images on which the two are compared.

    Labels int64 [images], and bool [images] whether that model alone is wrong.
    """

    labels: Integers
    only_candidate: NDArray[np.bool_]
    only_champion: NDArray[np.bool_]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Images that only the candidate gets wrong, those that only the champion does, and all."""
        return int(self.only_candidate.sum()), int(self.only_champion.sum()), len(self.labels)


def judge(
    answers: Answers, measured: Measured, class_names: Sequence[str], config: ReleaseConfig
) -> tuple[Check, ...]:
    """Return every check; the candidate may be promoted if all have passed.

    A first model has no champion to be compared with.
    """
    checks = (
        _top1_error(answers, config),
        _beats_majority(answers, measured),
        _class_recall(answers, class_names, config),
        _calibration(measured, config),
        _latency(measured, config),
        _size(measured, config),
    )
    paired = _paired(answers)
    if paired is None:
        return checks
    return (
        *checks,
        _against_champion(paired, config),
        _classes_against_champion(paired, class_names, config),
    )


# -- the candidate by itself -----------------------------------------------------------------------


def _top1_error(answers: Answers, config: ReleaseConfig) -> Check:
    required, images = f"at most {_percent(config.max_top1_error)}", len(answers.labels)
    if not images:
        return _missing("top1_error", required, "The top-1 error")
    error = float(np.mean(answers.candidate != answers.labels))
    text = (
        f"The first guess is wrong on {_percent(error)} of {images:,} test images; {required} is"
        " allowed."
    )
    return Check("top1_error", error <= config.max_top1_error, _percent(error), required, text)


def _beats_majority(answers: Answers, measured: Measured) -> Check:
    """Ask that even the upper end of the error's interval lies below the error of always giving the commonest class."""
    majority, images = measured.majority_error, len(answers.labels)
    if not images or not _known(majority):
        return _missing(
            "beats_majority",
            "below the commonest class's error",
            "The error against always giving the commonest class",
        )
    upper = compute_wilson_interval(int(np.sum(answers.candidate != answers.labels)), images)[1]
    passed = upper < majority
    text = (
        f"The error may be as high as {_percent(upper)}, the upper end of its 95 % interval on"
        f" {images:,} test images; always giving the commonest class is wrong on"
        f" {_percent(majority)}{'' if passed else ', and the model cannot be told from that'}."
    )
    return Check("beats_majority", passed, _percent(upper), f"below {_percent(majority)}", text)


def _class_recall(answers: Answers, class_names: Sequence[str], config: ReleaseConfig) -> Check:
    required = f"at least {_percent(config.min_class_recall)}"
    if not len(answers.labels):
        return _missing("class_recall", required, "The recall of the classes")
    images = np.bincount(answers.labels, minlength=len(class_names))
    right = np.bincount(
        answers.labels[answers.candidate == answers.labels], minlength=len(class_names)
    )
    recall = np.divide(
        right, images, out=np.full(len(images), np.inf), where=images > 0
    )  # a class without images is never the worst
    worst = int(np.argmin(recall))
    text = (
        f"The class found least is `{class_names[worst]}`, {_percent(recall[worst])} of"
        f" {images[worst]:,} images; {required} must be."
    )
    return Check(
        "class_recall",
        bool(recall[worst] >= config.min_class_recall),
        _percent(recall[worst]),
        required,
        text,
    )


def _calibration(measured: Measured, config: ReleaseConfig) -> Check:
    required, error = (
        f"at most {_percent(config.max_calibration_error)}",
        measured.calibration_error,
    )
    if not _known(error):
        return _missing("calibration_error", required, "The calibration error")
    text = (
        f"Probabilities, with the fitted temperature, are off by {_percent(error)} on average,"
        f" beyond chance; {required} is allowed."
    )
    return Check(
        "calibration_error", error <= config.max_calibration_error, _percent(error), required, text
    )


def _latency(measured: Measured, config: ReleaseConfig) -> Check:
    required, seconds = (
        f"at most {config.max_latency_milliseconds:,.6g} ms",
        measured.latency_p95_seconds,
    )
    if not _known(seconds):
        return _missing("latency", required, "The time of an answer")
    found = f"{1000 * seconds:,.1f} ms"
    text = f"An answer to one image comes within {found} in 95 of 100 cases; {required} is allowed."
    return Check(
        "latency", 1000 * seconds <= config.max_latency_milliseconds, found, required, text
    )


def _size(measured: Measured, config: ReleaseConfig) -> Check:
    required, size = f"at most {config.max_megabytes:,.6g} MB", measured.model_bytes
    if not _known(size) or not size:
        return _missing("size", required, "The size of the model's file")
    found = f"{size / 1e6:,.1f} MB"
    return Check(
        "size",
        size / 1e6 <= config.max_megabytes,
        found,
        required,
        f"The model's file has {found}; {required} is allowed.",
    )


def _known(value: float | None) -> TypeGuard[float]:
    """Return whether a number was measured; none of those of a candidate can be below zero."""
    return value is not None and math.isfinite(value) and value >= 0


def _missing(name: str, required: str, what: str) -> Check:
    return Check(
        name,
        passed=False,
        measured=_NOT_MEASURED,
        required=required,
        text=f"{what} was not measured: no evidence, no promotion.",
    )


# -- the candidate against the champion ------------------------------------------------------------


def _paired(answers: Answers) -> _Paired | None:
    if answers.champion is None:
        return None
    rows = slice(None) if answers.shared is None else np.asarray(answers.shared, bool)
    labels = answers.labels[rows]
    wrong, champion_wrong = answers.candidate[rows] != labels, answers.champion[rows] != labels
    return _Paired(labels, wrong & ~champion_wrong, champion_wrong & ~wrong)


def _against_champion(paired: _Paired, config: ReleaseConfig) -> Check:
    only_candidate, only_champion, images = paired.counts
    allowed = config.margin if config.policy == "non_inferior" else 0.0
    required = f"below {_points(allowed)}"
    if not images:
        return _missing(
            "against_champion",
            required,
            "The difference on images whose class the champion knows",
        )
    difference, bound = (
        (only_candidate - only_champion) / images,
        upper_bound(only_candidate, only_champion, images),
    )
    text = (
        f"The candidate's error less the champion's is {_points(difference)} on {images:,} test"
        f" images, and with 95 % confidence below {_points(bound)}, where {_points(allowed)} is"
        f" required; {only_candidate:,} images are wrong with the candidate alone,"
        f" {only_champion:,} with the champion alone."
    )
    advice = "" if bound < allowed else f" {_advice(only_candidate, only_champion, images, config)}"
    return Check("against_champion", bound < allowed, _points(bound), required, text + advice)


def _advice(only_candidate: int, only_champion: int, images: int, config: ReleaseConfig) -> str:
    """Say of a candidate that did not pass what would help."""
    share, difference = (
        (only_candidate + only_champion) / images,
        (only_candidate - only_champion) / images,
    )
    if config.policy == "superior":
        if difference >= 0:
            return "It errs no less than the champion, so more images are not what it lacks."
        return (
            f"Images are too few to be sure of this lead: {images_to_win(share, -difference):,}"
            " would show it in 80 % of cases."
        )
    if difference >= config.margin:
        return (
            "The difference itself is not within release.margin, so more images are not what it"
            " lacks."
        )
    needed = images_needed(share, config.margin)
    if needed <= images:
        return (
            f"Images are not what it lacks: {needed:,} let an equally good candidate pass in 80 %"
            " of cases."
        )
    return (
        f"The difference is within release.margin, but images are too few to be sure: {needed:,}"
        f" would let an equally good candidate pass in 80 % of cases; {images:,} can decide a"
        f" release.margin of {decidable_margin(share, images):.4g}."
    )


def _classes_against_champion(
    paired: _Paired, class_names: Sequence[str], config: ReleaseConfig
) -> Check:
    """Ask that no class's recall is known to have fallen by more than the margin of a class, with 5 % of error for all classes together."""
    required = f"no sure fall above {100 * config.class_margin:.2f} points"
    if not len(paired.labels):
        return _missing(
            "classes_against_champion",
            required,
            "The change of recall on images whose class the champion knows",
        )
    images, only_candidate, only_champion = (
        np.bincount(paired.labels[rows], minlength=len(class_names))
        for rows in (slice(None), paired.only_candidate, paired.only_champion)
    )
    falls = (only_candidate - only_champion) / np.maximum(images, 1)
    level = LEVEL / int(np.sum(images > 0))  # Bonferroni
    fallen = [
        f"`{class_names[place]}` by {100 * falls[place]:.2f} points of {images[place]:,} images"
        for place in np.flatnonzero(
            falls > config.class_margin
        ).tolist()  # the others cannot have fallen for sure
        if _surely_fell(
            int(only_candidate[place]),
            int(only_champion[place]),
            int(images[place]),
            level,
            config.class_margin,
        )
    ]
    worst = int(np.argmax(np.where(images > 0, falls, -np.inf)))
    found = f"recall of `{class_names[worst]}` {_points(-falls[worst])}"
    text = (
        f"Recall fell, surely by more than allowed, of {', '.join(fallen)}."
        if fallen
        else _no_fall_text(found, images, level, config)
    )
    return Check("classes_against_champion", not fallen, found, required, text)


def _surely_fell(
    only_candidate: int, only_champion: int, images: int, level: float, margin: float
) -> bool:
    """Return whether a class's recall fell by more than the margin, beyond chance.

    One image is forgiven. Without that, classes that fell by just the margin are named twice as
    often as `level` says where there are ten of them, and three times where there are a hundred: so
    far out, counts are more uneven than the normal distribution.
    """
    return lower_bound(max(0, only_candidate - 1), only_champion, images, level) > margin


def _no_fall_text(found: str, images: Integers, level: float, config: ReleaseConfig) -> str:
    """Say that no class fell for sure, and of how many classes no fall could have been seen, not even of every image."""
    text = (
        f"No class's recall fell, for sure, by more than {100 * config.class_margin:.2f} points;"
        f" the lowest change is {found}."
    )
    sizes, classes = np.unique(images[images > 0], return_counts=True)
    blind = [not _surely_fell(size, 0, size, level, config.class_margin) for size in sizes.tolist()]
    if not any(blind):
        return text
    return (
        f"{text} Of {classes[blind].sum():,} of {classes.sum():,} classes there are too few"
        " images for any fall to be sure."
    )


# -- Tango's interval ------------------------------------------------------------------------------


def upper_bound(
    only_candidate: int, only_champion: int, images: int, level: float = LEVEL
) -> float:
    """Return what the candidate's error less the champion's is below with confidence 1 - level, in [-1, 1].

    Args:
        only_candidate: images that only the candidate gets wrong.
        only_champion: images that only the champion gets wrong.
        images: all images, at least one.
        level: chance of a difference above the bound, one-sided, in (0, 0.5).
    """
    difference, quantile = (only_candidate - only_champion) / images, _quantile(level)
    if only_candidate == images:
        return 1.0

    def beyond(assumed: float) -> float:
        return (
            difference
            - assumed
            + quantile
            * math.sqrt(_variance(only_candidate, only_champion, images, assumed) / images)
        )

    # The observed difference is itself a root where its variance is zero, such as without an image
    # on which the two part.
    return float(optimize.brentq(beyond, difference + 1e-12, 1.0, xtol=1e-12))


def lower_bound(
    only_candidate: int, only_champion: int, images: int, level: float = LEVEL
) -> float:
    """Return what the candidate's error less the champion's is above with confidence 1 - level.

    Else as `upper_bound`.
    """
    return -upper_bound(only_champion, only_candidate, images, level)


def _variance(only_candidate: float, only_champion: float, images: float, assumed: float) -> float:
    """Return an image's variance of the difference if that is, in truth, `assumed`, in (-1, 1].

    Args:
        only_candidate: images, or a share of them, that only the candidate gets wrong.
        only_champion: the same of the champion.
        images: all images, or 1 where shares are given.
        assumed: the difference.
    """
    # Tango 1998: the likeliest share that only the champion gets wrong, if that of the candidate is
    # so much higher, is a quadratic's root.
    linear = (
        assumed * (2 * images - only_candidate + only_champion) - only_candidate - only_champion
    )
    constant = -only_champion * assumed * (1 - assumed)
    root = math.sqrt(max(0.0, linear**2 - 8 * images * constant))
    # Of two forms of the same root, the one that does not subtract like numbers.
    share = -2 * constant / (linear + root) if linear > 0 else (root - linear) / (4 * images)
    return max(0.0, 2 * share + assumed * (1 - assumed))


def _quantile(level: float) -> float:
    """Return what a standard normal number exceeds with chance `level`."""
    return float(-special.ndtri(level))


# -- how many images -------------------------------------------------------------------------------


def images_needed(
    discordant_share: float, margin: float, power: float = POWER, level: float = LEVEL
) -> int:
    """Return how many test images let an equally good candidate pass `non_inferior` with chance `power`.

    The formula is Nam's of 1997. The simpler share (z_level + z_power)^2 / margin^2 takes the
    variance of equal models for that of the margin as well, and where two models part on few images
    its candidates pass in 53 instead of 80 of 100 cases.

    Args:
        discordant_share: share of the images on which the two part, in [0, 1].
        margin: by how much the candidate's error may be higher, in (0, 1).
        power: chance, in [0.5, 1).
        level: chance that a candidate passes that is worse by the margin, in (0, 0.5).
    """
    half = discordant_share / 2
    at_margin, equal = _variance(half, half, 1, margin), discordant_share
    reach = _quantile(level) * math.sqrt(at_margin) + _quantile(1 - power) * math.sqrt(equal)
    images = math.floor((reach / margin) ** 2) + 1
    while (
        images * discordant_share < _FEW
        and _chance_to_pass(discordant_share, margin, images, level) < power
    ):
        images += math.ceil(images / 50)
    return images


def _chance_to_pass(discordant_share: float, margin: float, images: int, level: float) -> float:
    """Return how often an equally good candidate passes, summed over the numbers of images that one model alone gets wrong."""
    most = min(images, 3 * _FEW)
    pairs = [(one, other) for one in range(most + 1) for other in range(most + 1 - one)]
    passing = [
        (one, other, images - one - other)
        for one, other in pairs
        if _is_below(one, other, images, margin, level)
    ]
    shares = (discordant_share / 2, discordant_share / 2, 1 - discordant_share)
    return float(stats.multinomial.pmf(passing, images, shares).sum()) if passing else 0.0


def _is_below(
    only_candidate: int, only_champion: int, images: int, margin: float, level: float
) -> bool:
    """Return whether `upper_bound` is below a margin in (0, 1), without looking for it."""
    deviation = math.sqrt(_variance(only_candidate, only_champion, images, margin) / images)
    return (only_candidate - only_champion) / images - margin + _quantile(level) * deviation < 0


def images_to_win(
    discordant_share: float, lead: float, power: float = POWER, level: float = LEVEL
) -> int:
    """Return how many test images let a candidate pass `superior` whose error is lower by `lead`, in (0, 1].

    The other arguments are those of `images_needed`.
    """
    min_share = max(discordant_share, lead)  # a lead takes so many images on which the two part
    return math.ceil(min_share * ((_quantile(level) + _quantile(1 - power)) / lead) ** 2)


def decidable_margin(discordant_share: float, images: int) -> float:
    """Return the least margin, a multiple of 0.0001, for which so many images are enough by `images_needed`; 1 if there is none."""
    return (
        1
        + bisect.bisect_left(
            range(1, 10_000),
            -images,
            key=lambda step: -images_needed(discordant_share, step / 10_000),
        )
    ) / 10_000


def needed_text(answers: Answers, config: ReleaseConfig) -> str:
    """Say how many test images the gate needs, for the page of the decision."""
    paired = _paired(answers)
    only_candidate, only_champion, images = paired.counts if paired else (0, 0, 0)
    share = (only_candidate + only_champion) / max(images, 1)
    if config.policy == "superior":
        who, needed = (
            f"A candidate whose error is lower by {100 * config.margin:.2f} points",
            images_to_win(share, config.margin),
        )
    else:
        who, needed = (
            f"With release.margin {config.margin:.4g} an equally good candidate",
            images_needed(share, config.margin),
        )
    seen = f", where the two part on {_percent(share)} of them, as on the {images:,} here"
    unseen = (
        " at least; how many more depends on how often it and its champion part, which is not"
        " known yet"
    )
    return f"{who} passes in 80 % of cases with {needed:,} test images{seen if images else unseen}."


def _percent(share: float) -> str:
    """Return a share in [0, 1] as `1.43 %`.

    The page's one decimal would hide on which side of a limit it lies.
    """
    return f"{100 * share:.2f} %"


def _points(share: float) -> str:
    """Return a difference of shares as `-1.43 points`."""
    return f"{round(100 * share, 2) + 0.0:+.2f} points"  # + 0.0: no `-0.00`
