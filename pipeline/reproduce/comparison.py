"""Comparisons of two arms, seed by seed, and what several claims conclude from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.reports.claim_records import ArmRow, ClaimFigure, ClaimFinding, ClaimQuestion
from pipeline.reproduce.arm_training import MAX_SCORED_TRAINING_IMAGES
from pipeline.reproduce.arms import Arm
from pipeline.reproduce.claim_run import ClaimRun
from pipeline.reproduce.experiment import ArmMeasurements, Conclusion
from pipeline.reproduce.measurement import Measurement
from pipeline.reproduce.verdict import judge_effects, make_unmeasured_finding

if TYPE_CHECKING:
    from pipeline.arrays import Booleans, Floats


def compare_errors(
    question: ClaimQuestion, without: Sequence[Measurement], whole: Sequence[Measurement]
) -> ClaimFinding:
    """Return the finding on the test error without something less that with it, seed by seed.

    Args:
        question: in points.
        without: the control arm, one measurement per seed.
        whole: the arm that has it, with the same seeds and test images.
    """
    wrong = [[made.load_wrong() for made in arm] for arm in (without, whole)]
    if all((one == other).all() for one, other in zip(*wrong, strict=True)):
        return make_unmeasured_finding(
            question, "Both arms are the same network: there was nothing of the kind to leave out."
        )
    differences = [
        100 * (one.numbers["test_top1_error"] - other.numbers["test_top1_error"])
        for one, other in zip(without, whole, strict=True)
    ]
    return judge_effects(question, differences, image_std=estimate_image_std(*wrong))


def compare_gaps(
    question: ClaimQuestion, without: Sequence[Measurement], whole: Sequence[Measurement]
) -> ClaimFinding:
    """Return the finding on how much wider the gap between test and training error is.

    The variance from the choice of the scored training images is that of two independent samples,
    which is an upper bound.

    Args:
        question: in points.
        without: the control arm, one measurement per seed.
        whole: the arm that has it, with the same seeds.
    """
    gaps = [
        [100 * (made.numbers["test_top1_error"] - made.numbers["train_top1_error"]) for made in arm]
        for arm in (without, whole)
    ]
    of_test = estimate_image_std(*([made.load_wrong() for made in arm] for arm in (without, whole)))
    errors = [
        sum(made.numbers["train_top1_error"] for made in arm) / len(arm) for arm in (without, whole)
    ]
    scored = min(MAX_SCORED_TRAINING_IMAGES, whole[0].numbers["images"])
    of_training = 100 * math.sqrt(sum(error * (1 - error) for error in errors) / scored)
    differences = [one - other for one, other in zip(*gaps, strict=True)]
    return judge_effects(question, differences, image_std=math.hypot(of_test, of_training))


def estimate_image_std(
    first: Sequence[Booleans | Floats], second: Sequence[Booleans | Floats]
) -> float:
    """Return the standard deviation of a mean error difference from the choice of test images.

    Args:
        first: bool [images] for each seed, the misclassified ones; or float, differences of such.
        second: the same of the other arm.

    Returns:
        In points.
    """
    import numpy as np

    of_images = np.mean(
        [one.astype(np.float64) - other for one, other in zip(first, second, strict=True)], axis=0
    )
    return 100 * float(of_images.std(ddof=1)) / math.sqrt(len(of_images))


def make_arm_row(arm: Arm, made: Sequence[Measurement], *measures: str) -> ArmRow:
    """Return an arm's row of the table; by default with the test error and the training error."""
    names = measures or ("test_top1_error", "train_top1_error")
    values = {name: tuple(one.numbers[name] for one in made) for name in names}
    return ArmRow(arm=arm.label, setting=describe_rates(made), values=values)


def describe_rates(made: Sequence[Measurement]) -> str:
    """Return the learning rates of an arm as text: one for all seeds, or one per seed."""
    chosen = [f"{one.numbers['learning_rate']:.2g}" for one in made]
    return f"rate {chosen[0]}" if len(set(chosen)) == 1 else f"rates {', '.join(chosen)}"


def conclude_comparison(
    run: ClaimRun,
    findings: Sequence[ClaimFinding],
    arms: Sequence[Arm],
    measured: ArmMeasurements,
    caption: str,
    notes: Sequence[str] = (),
) -> Conclusion:
    """Return the conclusion of a claim about test errors: findings, a row per arm, their figure."""
    from pipeline.reports.claim_figures import draw_arms

    rows = tuple(make_arm_row(arm, measured[arm.name]) for arm in arms)
    draw_arms(rows, "test_top1_error", run.folder / "arms.png", xlabel="test error, %")
    return Conclusion(
        tuple(findings),
        rows,
        (ClaimFigure(file="arms.png", caption=caption),),
        (*notes, *note_different_rates(arms, measured)),
    )


def note_different_rates(arms: Sequence[Arm], measured: ArmMeasurements) -> tuple[str, ...]:
    """Return a note if the arms have different learning rates.

    Then a part of the effect may come from stability.
    """
    chosen = {arm.label: describe_rates(measured[arm.name]) for arm in arms}
    if len(set(chosen.values())) < 2:
        return ()
    listed = "; ".join(f"{label}: {rates}" for label, rates in chosen.items())
    return (
        (
            f"Different learning rates were chosen for the arms ({listed}), so a part of the"
            " difference may be how fast each can be trained."
        ),
    )


def find_crossing_epoch(
    curve: Sequence[Mapping[str, float]], measure: str, goal: float
) -> float | None:
    """Return the epoch at which a number first falls to a goal; None if it never does.

    Between two epochs it is interpolated linearly.

    Args:
        curve: the numbers of each epoch, in order.
        measure: name of the number.
        goal: value to fall to.
    """
    before: float | None = None
    for epoch, entry in enumerate(curve, start=1):
        value = entry[measure]
        if value <= goal:
            return float(epoch) if before is None else epoch - (goal - value) / (before - value)
        before = value
    return None
