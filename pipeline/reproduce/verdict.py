"""The rule: from what each seed measured to an interval and a verdict.

Nothing else in the project decides one.

An effect is reproduced when even the low end of its 95 % interval is more than what counts as no
effect. It is not reproduced when even the high end is less than what was published, or, where no
number was, than what counts as no effect. In between it is not decidable at this size. Where there
is no effect the low end is above it once in forty times, so no more than 2.5 % of such claims are
called reproduced.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

Verdict = Literal["reproduced", "not reproduced", "not decidable", "not measured"]
LEVEL = 0.95


class Question(BaseModel):
    """What a claim says of one number, fixed before anything is measured.

    Effects are written so that the claim says `more`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str = Field(
        description="The number, such as `top-1 error without dropout less that with it`."
    )
    unit: Literal["points", "times", "share"] = Field(
        description="`points` of an error in %; `times`, a ratio; `share`, in [0, 1]."
    )
    published: float | None = Field(
        description="The published effect in that unit; None where no number was."
    )
    source: str = Field(description="Where it was published.")
    least: float = Field(description="Effects up to this count as none: 0 points, 1 times.")


class Finding(Question):
    """The answer to a question."""

    effects: tuple[float, ...] = Field(description="What each seed gave.")
    image_deviation: float = Field(
        0.0, description="Deviation of the mean that comes from the choice of test images."
    )
    at_least: bool = Field(
        False,
        description=(
            "The effects are lower bounds: the slow arm did not come to its goal within its budget."
        ),
    )
    at_most: bool = Field(False, description="The effects are upper bounds: the fast arm did not.")
    ours: float | None = Field(description="Mean effect; of ratios the geometric mean.")
    interval: tuple[float, float] | None = Field(description="95 % interval of that mean.")
    verdict: Verdict
    why: str = Field(description="The reason for the verdict, with the numbers.")

    @property
    def seeds(self) -> int:
        """How many seeds were measured."""
        return len(self.effects)


def find(
    question: Question,
    effects: Sequence[float],
    *,
    image_deviation: float = 0.0,
    at_least: bool = False,
    at_most: bool = False,
) -> Finding:
    """Return the verdict on a question.

    Args:
        question: what was claimed.
        effects: of each seed, both arms of which had the same images in the same order; in the
            question's unit.
        image_deviation: of the mean effect, in the question's unit, from having these test images
            and not others. Not for ratios.
        at_least: each effect is itself or a lower bound.
        at_most: each effect is itself or an upper bound.
    """
    values = tuple(float(value) for value in effects)
    ours, interval = _mean_and_interval(values, question.unit, image_deviation)
    measured: dict[str, Any] = {
        "effects": values,
        "image_deviation": image_deviation,
        "at_least": at_least,
        "at_most": at_most,
    }
    measured |= {"ours": ours, "interval": interval}
    verdict, why = _decided(question, **measured)
    return Finding(
        **{name: getattr(question, name) for name in Question.model_fields},
        **measured,
        verdict=verdict,
        why=why,
    )


def not_measured(question: Question, why: str) -> Finding:
    """Return the finding of a question that nothing was measured for, and why."""
    question_fields = {name: getattr(question, name) for name in Question.model_fields}
    return Finding(
        **question_fields, effects=(), ours=None, interval=None, verdict="not measured", why=why
    )


def interval_of(
    effects: Sequence[float], image_deviation: float = 0.0
) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean.

    Student's t over the seeds, and the test images' own chance on top; None for one seed.

    The images' part is added to the seeds' as variances are. It contains some of the seeds' chance
    again, so it errs on the wide side.
    """
    from scipy import stats

    if len(effects) < 2:
        return None
    values = np.asarray(effects, np.float64)
    of_seeds = float(
        stats.t.ppf(0.5 + LEVEL / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    )
    half = math.hypot(of_seeds, float(stats.norm.ppf(0.5 + LEVEL / 2)) * image_deviation)
    return float(values.mean()) - half, float(values.mean()) + half


def _mean_and_interval(
    values: tuple[float, ...], unit: str, image_deviation: float
) -> tuple[float | None, tuple[float, float] | None]:
    if not values:
        return None, None
    if unit != "times":
        return float(np.mean(values)), interval_of(values, image_deviation)
    logs = [math.log(value) for value in values]
    interval = interval_of(logs)
    return math.exp(float(np.mean(logs))), (
        None if interval is None else (math.exp(interval[0]), math.exp(interval[1]))
    )


def _decided(
    question: Question,
    effects: tuple[float, ...],
    image_deviation: float,
    at_least: bool,
    at_most: bool,
    ours: float | None,
    interval: tuple[float, float] | None,
) -> tuple[Verdict, str]:
    """Return the verdict and its reason."""
    if ours is None:
        return "not measured", "No seed was measured."
    if interval is None:
        return "not decidable", "One seed has no spread to judge by; --seeds 3 or more has."
    (low, high), published, unit = interval, question.published, question.unit
    bound = "at least " if at_least else "at most " if at_most else ""
    measured = (
        f"{bound}{amount(ours, unit)}, 95 % interval {amount(low, unit)} to {amount(high, unit)}"
    )
    said = (
        "no number was published" if published is None else f"published: {amount(published, unit)}"
    )
    if low > question.least and not at_most:
        smaller = published is not None and high < published and not at_least
        return (
            "reproduced",
            (
                f"{measured}: {_none(question)}, beyond"
                f" chance{', though less than published' if smaller else ''} ({said})."
            ),
        )
    if high < (question.least if published is None else published) and not at_least:
        ruled_out = "an effect" if published is None else "an effect as large as the published one"
        other_way = ", and it goes the other way" if high < _zero(question) else ""
        return "not reproduced", f"{measured}: {ruled_out} is ruled out{other_way} ({said})."
    if bound:
        word = "larger" if at_least else "smaller"
        return (
            "not decidable",
            (
                f"{measured}, but an arm did not come to its goal, so the effect may be {word}"
                f" ({said})."
            ),
        )
    both = "no effect and " + ("some" if published is None else "the published one")
    return (
        "not decidable",
        (
            f"{measured}: both {both} are"
            f" possible{_needed(question, effects, image_deviation, interval)} ({said})."
        ),
    )


def _zero(question: Question) -> float:
    """Return what no effect at all is, in the question's unit."""
    return 1.0 if question.unit == "times" else 0.0


def _none(question: Question) -> str:
    """Say what the low end of an effect that counts is above."""
    return (
        "more than none"
        if question.least == _zero(question)
        else f"more than {amount(question.least, question.unit)}"
    )


def _needed(
    question: Question,
    effects: tuple[float, ...],
    image_deviation: float,
    interval: tuple[float, float],
) -> str:
    """Say what would tell the published effect, or the one that was seen, from none.

    About how many seeds, or other images.
    """
    aim, least, values = (
        question.published or sum(interval) / 2,
        question.least,
        np.asarray(effects),
    )
    if question.unit == "times":
        aim, least, values = math.log(max(aim, 1e-9)), math.log(least), np.log(values)
    if aim <= least:
        return ""
    # 1.96 + 0.84 deviations: an effect of that size is then found four times in five.
    variance = ((aim - least) / 2.8) ** 2 - image_deviation**2
    if variance <= 0:
        return "; more seeds would not tell them apart, more test images would"
    seeds = max(math.ceil(float(values.var(ddof=1)) / variance), len(values) + 1)
    return f"; about {seeds:,} seeds would tell them apart"


def amount(value: float, unit: str) -> str:
    """Write an effect with its unit."""
    if unit == "times":
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return (
            f"{value:.3g} times" if 1e-3 < value < 1e4 else f"{mantissa} x 10^{int(exponent)} times"
        )
    return f"{value:+.2f} points" if unit == "points" else f"{value:.3f}"
