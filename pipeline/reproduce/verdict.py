"""The rule that turns the measured effects of the seeds into an interval and a verdict.

Every verdict of the package is made here.

An effect is reproduced when the low end of its 95 % interval is above the null effect. It is not
reproduced when the high end is below the published effect or, if no number was published, below the
null effect. In between it is not decidable at this size. If there is no effect, the low end is
above it once in forty times, so at most 2.5 % of such claims are called reproduced.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.reports.claim_records import (
    ClaimFinding,
    ClaimQuestion,
    ClaimVerdict,
    EffectUnit,
    format_effect,
)

CONFIDENCE = 0.95


@dataclass(frozen=True)
class _Evidence:
    """The measurements that a verdict is made from; fields as in `ClaimFinding`."""

    effects: tuple[float, ...]
    image_std: float
    is_lower_bound: bool
    is_upper_bound: bool
    ours: float | None
    interval: tuple[float, float] | None


def judge_effects(
    question: ClaimQuestion,
    effects: Sequence[float],
    *,
    image_std: float = 0.0,
    is_lower_bound: bool = False,
    is_upper_bound: bool = False,
) -> ClaimFinding:
    """Return the finding on a question, with its interval and verdict.

    Args:
        question: the quantity and its published value.
        effects: one per seed, in the question's unit; both arms of a seed had the same images in
            the same order.
        image_std: standard deviation of the mean effect, in the question's unit, that comes from
            the choice of test images. Not for ratios.
        is_lower_bound: each effect is exact or a lower bound.
        is_upper_bound: each effect is exact or an upper bound.
    """
    values = tuple(float(value) for value in effects)
    ours, interval = _compute_mean_and_interval(values, question.unit, image_std)
    evidence = _Evidence(values, image_std, is_lower_bound, is_upper_bound, ours, interval)
    verdict, why = _decide_verdict(question, evidence)
    return ClaimFinding(
        **question.model_dump(include=set(ClaimQuestion.model_fields)),
        **vars(evidence),
        verdict=verdict,
        why=why,
    )


def make_unmeasured_finding(question: ClaimQuestion, why: str) -> ClaimFinding:
    """Return the finding of a question that was not measured, with the reason."""
    return ClaimFinding(
        **question.model_dump(include=set(ClaimQuestion.model_fields)),
        effects=(),
        ours=None,
        interval=None,
        verdict="not measured",
        why=why,
    )


def compute_mean_interval(
    effects: Sequence[float], image_std: float = 0.0
) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean; None for one seed.

    Student's t over the seeds, with the variance from the choice of test images added. It contains
    a part of the seeds' variance again, so it errs on the wide side.
    """
    from scipy import stats

    if len(effects) < 2:
        return None
    values = np.asarray(effects, np.float64)
    of_seeds = float(
        stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1)
        * values.std(ddof=1)
        / math.sqrt(len(values))
    )
    half = math.hypot(of_seeds, float(stats.norm.ppf(0.5 + CONFIDENCE / 2)) * image_std)
    return float(values.mean()) - half, float(values.mean()) + half


def _compute_mean_and_interval(
    values: tuple[float, ...], unit: EffectUnit, image_std: float
) -> tuple[float | None, tuple[float, float] | None]:
    """Return the mean effect and its interval; both of the logarithms for ratios."""
    if not values:
        return None, None
    if unit != "times":
        return float(np.mean(values)), compute_mean_interval(values, image_std)
    logs = [math.log(value) for value in values]
    interval = compute_mean_interval(logs)
    return math.exp(float(np.mean(logs))), (
        None if interval is None else (math.exp(interval[0]), math.exp(interval[1]))
    )


def _decide_verdict(question: ClaimQuestion, evidence: _Evidence) -> tuple[ClaimVerdict, str]:
    """Return the verdict and its reason."""
    if evidence.ours is None:
        return "not measured", "No seed was measured."
    if evidence.interval is None:
        return "not decidable", "One seed has no spread to judge by; use --seeds 3 or more."
    (low, high), published, unit = evidence.interval, question.published, question.unit
    is_bound = evidence.is_lower_bound or evidence.is_upper_bound
    bound = "at least " if evidence.is_lower_bound else "at most " if is_bound else ""
    measured = (
        f"{bound}{format_effect(evidence.ours, unit)}, 95 % interval {format_effect(low, unit)} to"
        f" {format_effect(high, unit)}"
    )
    reference = (
        "no number was published"
        if published is None
        else f"published: {format_effect(published, unit)}"
    )
    if low > question.null_effect and not evidence.is_upper_bound:
        is_smaller = published is not None and high < published and not evidence.is_lower_bound
        smaller = ", though less than published" if is_smaller else ""
        reason = f"{_describe_null_effect(question)}, beyond chance{smaller}"
        return "reproduced", f"{measured}: {reason} ({reference})."
    excluded_from = question.null_effect if published is None else published
    if high < excluded_from and not evidence.is_lower_bound:
        ruled_out = "an effect" if published is None else "an effect as large as the published one"
        other_way = (
            ", and the effect is in the other direction" if high < _get_zero_effect(unit) else ""
        )
        return "not reproduced", f"{measured}: {ruled_out} is ruled out{other_way} ({reference})."
    if is_bound:
        direction = "larger" if evidence.is_lower_bound else "smaller"
        reason = f"an arm did not reach its goal, so the effect may be {direction}"
        return "not decidable", f"{measured}, but {reason} ({reference})."
    both = "no effect and " + ("some" if published is None else "the published one")
    needed = _describe_needed_seeds(question, evidence.effects, evidence.image_std, (low, high))
    return "not decidable", f"{measured}: both {both} are possible{needed} ({reference})."


def _get_zero_effect(unit: EffectUnit) -> float:
    """Return the value of exactly no effect in a unit."""
    return 1.0 if unit == "times" else 0.0


def _describe_null_effect(question: ClaimQuestion) -> str:
    """Return the bound that the low end of a reproduced effect exceeds, as text."""
    return (
        "more than none"
        if question.null_effect == _get_zero_effect(question.unit)
        else f"more than {format_effect(question.null_effect, question.unit)}"
    )


def _describe_needed_seeds(
    question: ClaimQuestion,
    effects: tuple[float, ...],
    image_std: float,
    interval: tuple[float, float],
) -> str:
    """Return how many seeds would tell the published or the observed effect from none, as text.

    More test images are named instead where seeds alone would not do.
    """
    aim = question.published or sum(interval) / 2
    null_effect, values = question.null_effect, np.asarray(effects)
    if question.unit == "times":
        aim, null_effect = math.log(max(aim, 1e-9)), math.log(null_effect)
        values = np.log(values)
    if aim <= null_effect:
        return ""
    # 1.96 + 0.84 standard deviations: an effect of that size is then found four times in five.
    variance = ((aim - null_effect) / 2.8) ** 2 - image_std**2
    if variance <= 0:
        return "; more seeds would not tell them apart, more test images would"
    seeds = max(math.ceil(float(values.var(ddof=1)) / variance), len(values) + 1)
    return f"; about {seeds:,} seeds would tell them apart"
