"""The promotion gate: the checks that a candidate must pass to replace the champion.

Both are judged on the same frozen test images. Pure NumPy, without a model or a file. What was not
measured never passes: without evidence there is no promotion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

from pipeline.evaluate.intervals import compute_wilson_interval
from pipeline.release.champion_checks import check_against_champion
from pipeline.release.gate_records import (
    CandidateMeasurements,
    FirstGuesses,
    fail_unmeasured,
    format_fraction,
    make_check,
)

if TYPE_CHECKING:
    from pipeline.artifacts import GateCheck
    from pipeline.config.release import ReleaseConfig


def judge_candidate(
    guesses: FirstGuesses,
    measured: CandidateMeasurements,
    class_names: Sequence[str],
    config: ReleaseConfig,
) -> tuple[GateCheck, ...]:
    """Return every check; the candidate may be promoted if all have passed.

    A first model has no champion to be compared with.
    """
    return (
        _check_top1_error(guesses, config),
        _check_majority(guesses, measured),
        _check_class_recall(guesses, class_names, config),
        _check_calibration(measured, config),
        _check_latency(measured, config),
        _check_size(measured, config),
        *check_against_champion(guesses, class_names, config),
    )


def _check_top1_error(guesses: FirstGuesses, config: ReleaseConfig) -> GateCheck:
    required, images = f"at most {format_fraction(config.max_top1_error)}", len(guesses.labels)
    if not images:
        return fail_unmeasured("top1_error", required, "The top-1 error")
    error = float(np.mean(guesses.candidate != guesses.labels))
    text = (
        f"The first guess is wrong on {format_fraction(error)} of {images:,} test images;"
        f" {required} is allowed."
    )
    return make_check(
        "top1_error", error <= config.max_top1_error, format_fraction(error), required, text
    )


def _check_majority(guesses: FirstGuesses, measured: CandidateMeasurements) -> GateCheck:
    """Require that the error's upper bound is below that of always giving the commonest class."""
    majority, images = measured.majority_error, len(guesses.labels)
    if not images or not _is_measured(majority):
        return fail_unmeasured(
            "beats_majority",
            "below the commonest class's error",
            "The error against always giving the commonest class",
        )
    upper = compute_wilson_interval(int(np.sum(guesses.candidate != guesses.labels)), images)[1]
    passed = upper < majority
    text = (
        f"The error may be as high as {format_fraction(upper)}, the upper end of its 95 % interval"
        f" on {images:,} test images; always giving the commonest class is wrong on"
        f" {format_fraction(majority)}{'' if passed else ', which the model does not beat'}."
    )
    return make_check(
        "beats_majority", passed, format_fraction(upper), f"below {format_fraction(majority)}", text
    )


def _check_class_recall(
    guesses: FirstGuesses, class_names: Sequence[str], config: ReleaseConfig
) -> GateCheck:
    required = f"at least {format_fraction(config.min_class_recall)}"
    if not len(guesses.labels):
        return fail_unmeasured("class_recall", required, "The recall of the classes")
    images = np.bincount(guesses.labels, minlength=len(class_names))
    right = np.bincount(
        guesses.labels[guesses.candidate == guesses.labels], minlength=len(class_names)
    )
    # A class without images is never the worst.
    recall = np.divide(right, images, out=np.full(len(images), np.inf), where=images > 0)
    worst = int(np.argmin(recall))
    text = (
        f"The lowest recall is that of `{class_names[worst]}`, {format_fraction(recall[worst])} of"
        f" {images[worst]:,} images; {required} is required."
    )
    return make_check(
        "class_recall",
        bool(recall[worst] >= config.min_class_recall),
        format_fraction(recall[worst]),
        required,
        text,
    )


def _check_calibration(measured: CandidateMeasurements, config: ReleaseConfig) -> GateCheck:
    required, error = (
        f"at most {format_fraction(config.max_calibration_error)}",
        measured.calibration_error,
    )
    if not _is_measured(error):
        return fail_unmeasured("calibration_error", required, "The calibration error")
    text = (
        f"Calibration error beyond chance, with the fitted temperature: {format_fraction(error)};"
        f" {required} is allowed."
    )
    return make_check(
        "calibration_error",
        error <= config.max_calibration_error,
        format_fraction(error),
        required,
        text,
    )


def _check_latency(measured: CandidateMeasurements, config: ReleaseConfig) -> GateCheck:
    required, seconds = (
        f"at most {config.max_latency_milliseconds:,.6g} ms",
        measured.latency_p95_seconds,
    )
    if not _is_measured(seconds):
        return fail_unmeasured("latency", required, "The time of an answer")
    found = f"{1000 * seconds:,.1f} ms"
    text = f"95 % of the answers to one image come within {found}; {required} is allowed."
    return make_check(
        "latency", 1000 * seconds <= config.max_latency_milliseconds, found, required, text
    )


def _check_size(measured: CandidateMeasurements, config: ReleaseConfig) -> GateCheck:
    required, size = f"at most {config.max_megabytes:,.6g} MB", measured.model_bytes
    if not _is_measured(size) or not size:
        return fail_unmeasured("size", required, "The size of the model's file")
    found = f"{size / 1e6:,.1f} MB"
    return make_check(
        "size",
        size / 1e6 <= config.max_megabytes,
        found,
        required,
        f"The model's file takes {found}; {required} is allowed.",
    )


def _is_measured(value: float | None) -> TypeGuard[float]:
    """Return whether a number was measured; no measurement of a candidate is below zero."""
    return value is not None and math.isfinite(value) and value >= 0
