"""Why a scheduled run retrains, or why it does not.

Every trigger answers with a sentence and with its numbers, whether it fired or not.

    always          the schedule alone decides
    new_data        enough images are new, gone or labeled otherwise since the champion's data
    drift           new images do not look like those that the champion was made for:
    `pipeline.retrain.drift`
    degraded_champion   the champion errs more on newly labeled images than on its test images, beyond
    chance and by more than a margin
    age             the champion is old

One that fires is enough. What is not known fires nothing: no evidence, no retraining for it.
Without a champion there is nothing to compare with, and the scheduled run retrains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipeline.config.retrain import RetrainConfig
from pipeline.retrain.drift import Drift, Finding

if TYPE_CHECKING:
    from pipeline.arrays import Integers

# -- what is known ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Index:
    """The images of a dataset, of all its splits.

    The files' SHA-256, S32 [images], and class numbers, int [images].
    """

    sha256: NDArray[np.bytes_]
    labels: Integers


@dataclass(frozen=True)
class Changes:
    """What is different from the champion's data.

    Images of each class, by content, copies under one label counted once.

    Attributes:
        before: of the champion's data.
        new: of a content that was not there.
        removed: whose content is gone, or has lost this label and got no other.
        relabeled: of a content that was there and now has this label, which it had not.
    """

    before: tuple[int, ...]
    new: tuple[int, ...]
    removed: tuple[int, ...]
    relabeled: tuple[int, ...]

    @property
    def images(self) -> int:
        """How many images are different.

        One that was replaced is new and removed, and counts once.
        """
        return max(sum(self.new), sum(self.removed)) + sum(self.relabeled)

    @property
    def share(self) -> float:
        """The same as a share of the champion's images, from 0 on."""
        return self.images / max(sum(self.before), 1)

    @property
    def unknown(self) -> int:
        """New images of classes that the champion's data had none of."""
        return sum(new for new, before in zip(self.new, self.before, strict=True) if not before)


@dataclass(frozen=True)
class Score:
    """How many of some images the champion gets wrong.

    One of a class that it does not know is wrong.
    """

    wrong: int
    images: int

    @property
    def error(self) -> float:
        """Top-1 error, in [0, 1]."""
        return self.wrong / self.images


@dataclass(frozen=True)
class Facts:
    """What is known when a scheduled run comes; None: not known.

    Attributes:
        has_champion: whether there is a model to keep.
        changes: since the champion's data.
        drift: of new images.
        new_score: the champion's, on images that were labeled since and that it was not trained on.
        test_score: the champion's, on its test images.
        champion_age_days: since the champion was trained.
    """

    has_champion: bool
    changes: Changes | None = None
    drift: Drift | None = None
    new_score: Score | None = None
    test_score: Score | None = None
    champion_age_days: float | None = None


def changed_images(old: Index, new: Index, classes: int) -> Changes:
    """Compare two datasets by the contents of their images; a million take some seconds.

    Args:
        old: the champion's data.
        new: the data as they are now.
        classes: how many there are in both; labels are in [0, classes) and mean the same in both.
    """
    contents = np.concatenate([np.asarray(index.sha256, "S32") for index in (old, new)])
    _, content = np.unique(contents, return_inverse=True)
    pairs = content * classes + np.concatenate(
        [np.asarray(index.labels, np.int64) for index in (old, new)]
    )
    before, now = np.unique(pairs[: len(old.labels)]), np.unique(pairs[len(old.labels) :])
    gone, come = (
        np.setdiff1d(before, now, assume_unique=True),
        np.setdiff1d(now, before, assume_unique=True),
    )
    known = np.isin(come // classes, before // classes)
    replaced = np.isin(
        gone // classes, come[known] // classes
    )  # a label that another one has taken the place of

    def of_each_class(some: Integers) -> tuple[int, ...]:
        return tuple(np.bincount(some % classes, minlength=classes).tolist())

    return Changes(
        of_each_class(before),
        of_each_class(come[~known]),
        of_each_class(gone[~replaced]),
        of_each_class(come[known]),
    )


# -- what follows ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reason:
    """What one trigger says: `text` in sentences with the numbers, `brief` in a few words.

    `numbers` are those for a chart.
    """

    name: str
    fired: bool
    numbers: Mapping[str, float]
    text: str
    brief: str


@dataclass(frozen=True)
class Verdict:
    """Whether a scheduled run retrains, and what every trigger said."""

    reasons: tuple[Reason, ...]

    @property
    def retrain(self) -> bool:
        """Whether any trigger fired."""
        return any(reason.fired for reason in self.reasons)

    @property
    def text(self) -> str:
        """What is done and why: the triggers that fired, or all of them where none did."""
        return f"{'Retrain' if self.retrain else 'Keep the champion'}. " + " ".join(
            reason.text for reason in self.reasons if reason.fired or not self.retrain
        )

    @property
    def brief(self) -> str:
        """The same in a few words, without what is done."""
        return "; ".join(
            reason.brief for reason in self.reasons if reason.fired or not self.retrain
        )

    @property
    def numbers(self) -> dict[str, float]:
        """Every number as `trigger.number`, and `trigger.fired` as 0 or 1."""
        found: dict[str, float] = {}
        for reason in self.reasons:
            numbers = {"fired": float(reason.fired), **reason.numbers}
            found |= {f"{reason.name}.{key}": value for key, value in numbers.items()}
        return found


def decide(facts: Facts, config: RetrainConfig) -> Verdict:
    """Ask each trigger of the settings, in their order."""
    if not facts.has_champion:
        return Verdict(
            (
                Reason(
                    "first",
                    fired=True,
                    numbers={},
                    text="There is no champion yet.",
                    brief="there was no champion",
                ),
            )
        )
    triggers = {
        "always": _always,
        "new_data": _new_data,
        "drift": _drift,
        "degraded_champion": _champion_fall,
        "age": _age,
    }
    return Verdict(tuple(triggers[name](facts, config) for name in config.triggers))


def _not_known(name: str, what: str, brief: str) -> Reason:
    return Reason(name, fired=False, numbers={}, text=f"{what}.", brief=brief)


def _always(_facts: Facts, _config: RetrainConfig) -> Reason:
    return Reason(
        "always",
        fired=True,
        numbers={},
        text="Every scheduled run retrains.",
        brief="every scheduled run does",
    )


def _new_data(facts: Facts, config: RetrainConfig) -> Reason:
    changes = facts.changes
    if changes is None:
        return _not_known(
            "new_data", "What changed since the champion's data is not known", "changes not known"
        )
    numbers = {
        name: float(sum(getattr(changes, name)))
        for name in ("before", "new", "removed", "relabeled")
    }
    numbers |= {
        "images": float(changes.images),
        "share": changes.share,
        "of_unknown_classes": float(changes.unknown),
    }
    limits = (
        (config.min_new_images, f"{config.min_new_images:,}"),
        (config.min_new_fraction, _percent(config.min_new_fraction)),
    )
    enough = " or ".join(arguments for limit, arguments in limits if limit)
    text = (
        f"Since the champion's {sum(changes.before):,} images, {changes.images:,} changed,"
        f" {_percent(changes.share)}: {sum(changes.new):,} new, {sum(changes.removed):,} removed,"
        f" {sum(changes.relabeled):,} labeled otherwise; {enough} is enough."
    )
    unknown = (
        f" {changes.unknown:,} are of classes that the champion does not know."
        if changes.unknown
        else ""
    )
    many = (
        0 < config.min_new_images <= changes.images or 0 < config.min_new_fraction <= changes.share
    )
    brief = f"{changes.images:,} images changed ({_percent(changes.share)})"
    return Reason("new_data", many, numbers, text + unknown, brief)


def _drift(facts: Facts, _config: RetrainConfig) -> Reason:
    drift = facts.drift
    if drift is None or not drift.findings:
        what = (
            "Drift was not measured: there are too few new images, or their reference is not known"
        )
        return _not_known("drift", what, "drift not measured")
    compared = (
        f"{drift.images:,} new images with {drift.reference:,} that the champion was made for"
        f" ({len(drift.findings)} comparisons, together wrong in {_percent(drift.level)} of scheduled runs"
        " without a drift)"
    )
    if drift.drifted:
        text = f"Drift, comparing {compared}: {'; '.join(map(_finding_text, drift.drifted))}."
    else:
        nearest = min(drift.findings, key=lambda finding: finding.p_value)
        text = (
            f"No drift, comparing {compared}; the nearest to it is {_finding_text(nearest)}, and"
            f" above {nearest.threshold:.3g} is drift."
        )
    numbers = {"images": float(drift.images), "reference": float(drift.reference)}
    for finding in drift.findings:
        numbers |= {
            f"{finding.name}.{key}": getattr(finding, key)
            for key in ("distance", "threshold", "p_value")
        }
    brief = (
        f"drift in {', '.join(_words(finding) for finding in drift.drifted)}"
        if drift.drifted
        else "no drift"
    )
    return Reason("drift", bool(drift.drifted), numbers, text, brief)


def _finding_text(finding: Finding) -> str:
    note = f"; {finding.note}" if finding.note else ""
    return f"{_words(finding)} {finding.distance:.3g} away (p = {finding.p_value:.3f}{note})"


def _words(finding: Finding) -> str:
    return finding.name.replace("_", " ")


def _champion_fall(facts: Facts, config: RetrainConfig) -> Reason:
    new, test = facts.new_score, facts.test_score
    if new is None or test is None or not new.images or not test.images:
        what = "The champion was not scored: no image that it can be asked about was labeled since"
        return _not_known("degraded_champion", what, "champion not scored")
    fall, p_value = (
        round(new.error - test.error, 12),
        chance_of_fall(new, test),
    )  # 0.06 - 0.04 is below 0.02
    fired = fall >= config.degradation_margin and p_value <= config.significance_level
    numbers = {"error": new.error, "test_error": test.error, "fall": fall, "p_value": p_value}
    numbers |= {
        "wrong": new.wrong,
        "images": new.images,
        "test_wrong": test.wrong,
        "test_images": test.images,
    }
    text = (
        f"The champion is wrong on {new.wrong:,} of {new.images:,} newly labeled images,"
        f" {_percent(new.error)}, and on {test.wrong:,} of {test.images:,} test images,"
        f" {_percent(test.error)}: {100 * fall:+.2f} points, p = {p_value:.2g}; at least"
        f" {100 * config.degradation_margin:.2f} points with p of at most {config.significance_level:g} is a fall."
    )
    brief = (
        f"the champion errs on {_percent(new.error)} of the newly labeled, and on"
        f" {_percent(test.error)} of its test"
    )
    return Reason(
        "degraded_champion",
        fired,
        {name: float(value) for name, value in numbers.items()},
        text,
        brief,
    )


def chance_of_fall(new: Score, test: Score) -> float:
    """Return how often so many wrong answers, or more, would be among the new images if both were equally hard (Fisher's exact test)."""
    return float(
        stats.hypergeom.sf(
            new.wrong - 1, new.images + test.images, new.wrong + test.wrong, new.images
        )
    )


def _age(facts: Facts, config: RetrainConfig) -> Reason:
    age = facts.champion_age_days
    if age is None:
        return _not_known("age", "The champion's age is not known", "age not known")
    text = f"The champion is {age:,.1f} days old; more than {config.max_age_days:,.6g} is too old."
    return Reason(
        "age", age > config.max_age_days, {"days": float(age)}, text, f"{age:,.1f} days old"
    )


def _percent(share: float) -> str:
    """Return a share as `1.43 %`."""
    return f"{100 * share:.2f} %"
