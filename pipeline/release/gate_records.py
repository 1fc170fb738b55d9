"""Records of the gate: what it judges, and the checks that it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.artifacts import GateCheck
from pipeline.reports.numbers import format_percent, format_points

if TYPE_CHECKING:
    from pipeline.arrays import Booleans, Labels


@dataclass(frozen=True)
class FirstGuesses:
    """The first guesses of one or two models on the frozen test images.

    Attributes:
        labels: int64 [images], right classes, in the candidate's class numbers.
        candidate: int64 [images], first guesses.
        champion: int64 [images], first guesses in the candidate's class numbers, -1 for an answer
            that the candidate has no class for. None: there is no champion.
        compared: bool [images], images whose class the champion knows; the two are compared on
            these alone. None: on all.
    """

    labels: Labels
    candidate: Labels
    champion: Labels | None = None
    compared: Booleans | None = None


@dataclass(frozen=True)
class CandidateMeasurements:
    """Measurements of the candidate besides its guesses; None or NaN where they are missing.

    Attributes:
        calibration_error: expected calibration error with the fitted temperature, in [0, 1], less
            what chance makes of perfect probabilities: 100 of them, spread over the bins with 70
            right, would be off by 14 points.
        majority_error: error of always giving the commonest training class, in [0, 1].
        latency_p95_seconds: time within which 95 % of the answers to one image come.
        model_bytes: size of the model's file.
    """

    calibration_error: float | None
    majority_error: float | None
    latency_p95_seconds: float | None
    model_bytes: int | None


def fail_unmeasured(name: str, required: str, subject: str) -> GateCheck:
    """Return the check that fails because its subject was not measured."""
    text = f"{subject} was not measured, and without evidence there is no promotion."
    return make_check(name, False, "not measured", required, text)


def make_check(name: str, passed: bool, measured: str, required: str, text: str) -> GateCheck:
    """Return a check; `text` is one sentence with the numbers, the others are for a table."""
    return GateCheck(name=name, passed=passed, measured=measured, required=required, text=text)


def format_fraction(fraction: float) -> str:
    """Return a fraction in [0, 1] as `1.43 %`.

    The one decimal of the pages would hide on which side of a limit it is.
    """
    return format_percent(fraction, 2)


def format_change(difference: float) -> str:
    """Return a difference of fractions as `-1.43 points`, with as many decimals."""
    return format_points(difference, 2)
