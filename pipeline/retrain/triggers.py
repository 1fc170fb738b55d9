"""The triggers: whether a scheduled run retrains, and why.

    always              the schedule alone decides
    new_data            enough images are new, removed or relabeled since the champion's data
    drift               new images differ from those that the champion was made for (drift.py)
    degraded_champion   the champion's error on newly labeled images is above that on its test
                        images, beyond chance and by more than a margin
    age                 the champion is old

Every trigger returns a sentence and its numbers, fired or not. One that fires is enough. An unknown
signal fires nothing. Without a champion there is nothing to compare with, and the scheduled run
retrains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scipy import stats

from pipeline.config.retrain import RetrainConfig
from pipeline.reports.numbers import format_percent
from pipeline.retrain.drift import DriftTest
from pipeline.retrain.signals import ErrorCount, Signals


@dataclass(frozen=True)
class TriggerResult:
    """The result of one trigger: `text` in sentences with the numbers, `brief` in a few words.

    `numbers` are those for a chart.
    """

    name: str
    fired: bool
    numbers: Mapping[str, float]
    text: str
    brief: str


@dataclass(frozen=True)
class RetrainVerdict:
    """Whether a scheduled run retrains, and the result of every trigger."""

    results: tuple[TriggerResult, ...]

    @property
    def retrain(self) -> bool:
        """Whether any trigger fired."""
        return any(result.fired for result in self.results)

    @property
    def text(self) -> str:
        """The decision and its reasons: the triggers that fired, or all where none did."""
        return f"{'Retrain' if self.retrain else 'Keep the champion'}. " + " ".join(
            result.text for result in self.results if result.fired or not self.retrain
        )

    @property
    def brief(self) -> str:
        """The reasons in a few words."""
        return "; ".join(
            result.brief for result in self.results if result.fired or not self.retrain
        )

    @property
    def numbers(self) -> dict[str, float]:
        """Every number as `trigger.number`, and `trigger.fired` as 0 or 1."""
        found: dict[str, float] = {}
        for result in self.results:
            numbers = {"fired": float(result.fired), **result.numbers}
            found |= {f"{result.name}.{key}": value for key, value in numbers.items()}
        return found


def decide_retraining(signals: Signals, config: RetrainConfig) -> RetrainVerdict:
    """Return the verdict of the triggers of the settings, in their order."""
    if not signals.has_champion:
        return RetrainVerdict(
            (
                TriggerResult(
                    "first",
                    fired=True,
                    numbers={},
                    text="There is no champion yet.",
                    brief="there was no champion",
                ),
            )
        )
    triggers = {
        "always": _check_always,
        "new_data": _check_new_data,
        "drift": _check_drift,
        "degraded_champion": _check_degraded_champion,
        "age": _check_age,
    }
    return RetrainVerdict(tuple(triggers[name](signals, config) for name in config.triggers))


def _report_unknown(name: str, what: str, brief: str) -> TriggerResult:
    return TriggerResult(name, fired=False, numbers={}, text=f"{what}.", brief=brief)


def _check_always(_signals: Signals, _config: RetrainConfig) -> TriggerResult:
    return TriggerResult(
        "always",
        fired=True,
        numbers={},
        text="Every scheduled run retrains.",
        brief="every scheduled run does",
    )


def _check_new_data(signals: Signals, config: RetrainConfig) -> TriggerResult:
    changes = signals.changes
    if changes is None:
        return _report_unknown(
            "new_data", "The changes since the champion's data are unknown", "changes unknown"
        )
    numbers = {
        name: float(sum(getattr(changes, name)))
        for name in ("before", "new", "removed", "relabeled")
    }
    numbers |= {
        "images": float(changes.images),
        "fraction": changes.fraction,
        "of_unknown_classes": float(changes.of_unknown_classes),
    }
    limits = (
        (config.min_new_images, f"{config.min_new_images:,}"),
        (config.min_new_fraction, format_percent(config.min_new_fraction, 2)),
    )
    enough = " or ".join(text for limit, text in limits if limit)
    text = (
        f"Since the champion's {sum(changes.before):,} images, {changes.images:,} changed,"
        f" {format_percent(changes.fraction, 2)}: {sum(changes.new):,} new,"
        f" {sum(changes.removed):,} removed, {sum(changes.relabeled):,} relabeled; {enough} is"
        " enough."
    )
    of_unknown_classes = (
        f" {changes.of_unknown_classes:,} are of classes that the champion does not know."
        if changes.of_unknown_classes
        else ""
    )
    many = (
        0 < config.min_new_images <= changes.images
        or 0 < config.min_new_fraction <= changes.fraction
    )
    brief = f"{changes.images:,} images changed ({format_percent(changes.fraction, 2)})"
    return TriggerResult("new_data", many, numbers, text + of_unknown_classes, brief)


def _check_drift(signals: Signals, _config: RetrainConfig) -> TriggerResult:
    drift = signals.drift
    if drift is None or not drift.tests:
        what = "Drift was not measured: there are too few new images, or their reference is unknown"
        return _report_unknown("drift", what, "drift not measured")
    compared = (
        f"{drift.images:,} new images with {drift.reference:,} that the champion was made for"
        f" ({len(drift.tests)} tests, family-wise false-alarm rate"
        f" {format_percent(drift.significance_level, 2)})"
    )
    if drift.drifted:
        text = f"Drift, comparing {compared}: {'; '.join(map(_describe_test, drift.drifted))}."
    else:
        nearest = min(drift.tests, key=lambda test: test.p_value)
        text = (
            f"No drift, comparing {compared}; the smallest p-value is that of"
            f" {_describe_test(nearest)}, threshold {nearest.threshold:.3g}."
        )
    numbers = {"images": float(drift.images), "reference": float(drift.reference)}
    for test in drift.tests:
        numbers |= {
            f"{test.name}.{key}": getattr(test, key) for key in ("distance", "threshold", "p_value")
        }
    brief = (
        f"drift in {', '.join(_format_name(test) for test in drift.drifted)}"
        if drift.drifted
        else "no drift"
    )
    return TriggerResult("drift", bool(drift.drifted), numbers, text, brief)


def _describe_test(test: DriftTest) -> str:
    note = f"; {test.note}" if test.note else ""
    return f"{_format_name(test)} at distance {test.distance:.3g} (p = {test.p_value:.3f}{note})"


def _format_name(test: DriftTest) -> str:
    return test.name.replace("_", " ")


def _check_degraded_champion(signals: Signals, config: RetrainConfig) -> TriggerResult:
    new, test = signals.new_errors, signals.test_errors
    if new is None or test is None or not new.images or not test.images:
        what = "The champion was not scored: no image of its classes was labeled since"
        return _report_unknown("degraded_champion", what, "champion not scored")
    increase = round(new.error - test.error, 12)  # 0.06 - 0.04 is below 0.02
    p_value = compute_degradation_p_value(new, test)
    fired = increase >= config.degradation_margin and p_value <= config.significance_level
    numbers = {
        "error": new.error,
        "test_error": test.error,
        "increase": increase,
        "p_value": p_value,
    }
    numbers |= {
        "wrong": new.wrong,
        "images": new.images,
        "test_wrong": test.wrong,
        "test_images": test.images,
    }
    text = (
        f"The champion is wrong on {new.wrong:,} of {new.images:,} newly labeled images,"
        f" {format_percent(new.error, 2)}, and on {test.wrong:,} of {test.images:,} test images,"
        f" {format_percent(test.error, 2)}: {100 * increase:+.2f} points, p = {p_value:.2g};"
        f" degraded is at least {100 * config.degradation_margin:.2f} points with p at most"
        f" {config.significance_level:g}."
    )
    brief = (
        f"champion error {format_percent(new.error, 2)} on newly labeled images,"
        f" {format_percent(test.error, 2)} on its test images"
    )
    return TriggerResult(
        "degraded_champion",
        fired,
        {name: float(value) for name, value in numbers.items()},
        text,
        brief,
    )


def compute_degradation_p_value(new: ErrorCount, test: ErrorCount) -> float:
    """Return the one-sided p-value of Fisher's exact test of equal error on both images."""
    return float(
        stats.hypergeom.sf(
            new.wrong - 1, new.images + test.images, new.wrong + test.wrong, new.images
        )
    )


def _check_age(signals: Signals, config: RetrainConfig) -> TriggerResult:
    age = signals.champion_age_days
    if age is None:
        return _report_unknown("age", "The champion's age is unknown", "age unknown")
    text = f"The champion is {age:,.1f} days old; more than {config.max_age_days:,.6g} is too old."
    return TriggerResult(
        "age", age > config.max_age_days, {"days": float(age)}, text, f"{age:,.1f} days old"
    )
