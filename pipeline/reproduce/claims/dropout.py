"""Claim: without dropout the network overfits; with it, training takes longer (section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.config.settings import Config
from pipeline.reports.claim_records import ClaimFigure, ClaimQuestion
from pipeline.reproduce.arms import Arm, make_baseline_arm, make_changed_arm
from pipeline.reproduce.claim_run import ClaimRun
from pipeline.reproduce.comparison import (
    compare_errors,
    compare_gaps,
    conclude_comparison,
    find_crossing_epoch,
)
from pipeline.reproduce.experiment import ArmMeasurements, Conclusion, Experiment
from pipeline.reproduce.verdict import judge_effects

_DROPOUT_GAP = ClaimQuestion(
    quantity="gap between test and training error without dropout, less the gap with it",
    unit="points",
    published=None,
    source='paper, section 4.2: "substantial overfitting" without, no number',
    null_effect=0.0,
)
_DROPOUT_TIME = ClaimQuestion(
    quantity="epochs until the validation error that both reach, with dropout over without",
    unit="times",
    published=2.0,
    source='paper, section 4.2: "roughly doubles the number of iterations"',
    null_effect=1.0,
)
_DROPOUT_ERROR = ClaimQuestion(
    quantity="test error without dropout less that with it",
    unit="points",
    published=None,
    source="no number was published",
    null_effect=0.0,
)


def list_dropout_arms(config: Config) -> tuple[Arm, ...]:
    """Return the network with dropout and without."""
    return make_baseline_arm(config), make_changed_arm(
        config, "no-dropout", "without dropout", {"model.dropout": 0.0}
    )


def conclude_dropout(run: ClaimRun, measured: ArmMeasurements) -> Conclusion:
    """Compare gaps, training times and errors."""
    from pipeline.reports.claim_figures import draw_curves

    arms = list_dropout_arms(run.config)
    whole, without = measured["baseline"], measured["no-dropout"]
    ratios = [
        compare_training_times(one.read_curve(), other.read_curve())
        for one, other in zip(whole, without, strict=True)
    ]
    findings = (
        compare_gaps(_DROPOUT_GAP, without, whole),
        judge_effects(_DROPOUT_TIME, ratios),
        compare_errors(_DROPOUT_ERROR, without, whole),
    )
    notes = (
        (
            "The training error is that of the finished network on training images, cropped as"
            " test images are and without dropout."
        ),
        (
            "A learning rate that falls to zero ends both trainings at the same epoch, which brings"
            " their times together: that finding says little about trainings without a time limit."
        ),
    )
    caption = "Test error with and without dropout, one dot per seed."
    conclusion = conclude_comparison(run, findings, arms, measured, caption, notes)
    curves = {arm.label: [one.read_curve() for one in measured[arm.name]] for arm in arms}
    draw_curves(curves, run.folder / "curves.png")
    figure = ClaimFigure(
        file="curves.png",
        caption=(
            "Training error, as each step measured it, and validation error by epoch. With dropout"
            " a step uses half of the units."
        ),
    )
    return Conclusion(
        conclusion.findings, conclusion.rows, (figure, *conclusion.figures), conclusion.notes
    )


def compare_training_times(
    slow: Sequence[Mapping[str, float]], fast: Sequence[Mapping[str, float]]
) -> float:
    """Return the ratio of the epochs until the lowest validation error that both trainings reach.

    Args:
        slow: the numbers of each epoch of the training in the numerator.
        fast: the same of the one in the denominator.
    """
    measure = "validation_top1_error"
    goal = max(min(epoch[measure] for epoch in curve) for curve in (slow, fast))
    times = [
        find_crossing_epoch(curve, measure, goal) or float(len(curve)) for curve in (slow, fast)
    ]
    return times[0] / times[1]


EXPERIMENTS = (
    Experiment(
        name="dropout",
        position=30,
        title="Dropout prevents overfitting, and takes longer",
        text=(
            "Section 4.2: without dropout the network overfits substantially; dropout about doubles"
            " the iterations that it takes to converge. Here: the same network and images with half"
            " of fc6's and fc7's units dropped while training, and with none."
        ),
        summary="without it the network overfits; with it, training takes twice as long",
        section="section 4.2",
        criterion="gap between test and training error",
        list_arms=list_dropout_arms,
        conclude=conclude_dropout,
    ),
)
