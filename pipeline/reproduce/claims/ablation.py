"""What the claims share that leave out one thing.

The same images in the same order, with and without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.reproduce.arms import Arm
from pipeline.reproduce.lab import Lab
from pipeline.reproduce.measurement import Measurement
from pipeline.reproduce.records import Conclusion, Figure, Row
from pipeline.reproduce.verdict import Finding, Question, find, not_measured

_SCORED_TRAINING_IMAGES = 5000  # as pipeline.reproduce.arms scores them

Measured = Mapping[str, Sequence[Measurement]]


def costs(
    question: Question, without: Sequence[Measurement], whole: Sequence[Measurement]
) -> Finding:
    """Return by how many points the test error is higher without something, seed by seed, on the same test images.

    Args:
        question: in points.
        without: the control arm, one measurement a seed.
        whole: the arm with it, of the same seeds.
    """
    wrong = [[made.wrong() for made in arm] for arm in (without, whole)]
    if all((one == other).all() for one, other in zip(*wrong, strict=True)):
        return not_measured(
            question, "Both arms are the same network: there was nothing of the kind to leave out."
        )
    differences = [
        100 * (one.numbers["test_top1_error"] - other.numbers["test_top1_error"])
        for one, other in zip(without, whole, strict=True)
    ]
    return find(question, differences, image_deviation=image_deviation(*wrong))


def widens(
    question: Question, without: Sequence[Measurement], whole: Sequence[Measurement]
) -> Finding:
    """Return by how many points the gap between test and training error is wider without something.

    The chance of the training images that were scored counts as that of two independent samples,
    which is more than it can be.

    Args:
        question: in points.
        without: the control arm, one measurement a seed.
        whole: the arm with it, of the same seeds.
    """
    gaps = [
        [100 * (made.numbers["test_top1_error"] - made.numbers["train_top1_error"]) for made in arm]
        for arm in (without, whole)
    ]
    of_test = image_deviation(*([made.wrong() for made in arm] for arm in (without, whole)))
    shares = [
        sum(made.numbers["train_top1_error"] for made in arm) / len(arm) for arm in (without, whole)
    ]
    scored = min(_SCORED_TRAINING_IMAGES, whole[0].numbers["images"])
    of_training = 100 * math.sqrt(sum(share * (1 - share) for share in shares) / scored)
    differences = [one - other for one, other in zip(*gaps, strict=True)]
    return find(question, differences, image_deviation=math.hypot(of_test, of_training))


def image_deviation(first: Sequence[Any], second: Sequence[Any]) -> float:
    """Return the deviation, in points, that the choice of test images gives to the mean difference of two arms' errors.

    Args:
        first: bool [images] for each seed, which ones were answered wrongly.
        second: likewise, of the other arm.
    """
    import numpy as np

    of_images = np.mean(
        [one.astype(np.float64) - other for one, other in zip(first, second, strict=True)], axis=0
    )
    return 100 * float(of_images.std(ddof=1)) / math.sqrt(len(of_images))


def row(arm: Arm, made: Sequence[Measurement], *measures: str) -> Row:
    """Return an arm's line of the table.

    Its test error, the error on training images, and more numbers.
    """
    names = measures or ("test_top1_error", "train_top1_error")
    values = {name: tuple(one.numbers[name] for one in made) for name in names}
    return Row(arm=arm.label, setting=rates(made), values=values)


def rates(made: Sequence[Measurement]) -> str:
    """Say which learning rates were chosen for an arm: one for all seeds, or each."""
    chosen = [f"{one.numbers['learning_rate']:.2g}" for one in made]
    return f"rate {chosen[0]}" if len(set(chosen)) == 1 else f"rates {', '.join(chosen)}"


def compared(
    lab: Lab,
    findings: Sequence[Finding],
    arms: Sequence[Arm],
    measured: Measured,
    caption: str,
    notes: Sequence[str] = (),
) -> Conclusion:
    """Return the conclusion of a claim about test errors.

    Its findings, a table of the arms, and their image.
    """
    from pipeline.reports.claim_figures import draw_arms

    rows = tuple(row(arm, measured[arm.name]) for arm in arms)
    draw_arms(rows, "test_top1_error", lab.folder / "arms.png", xlabel="test error, %")
    return Conclusion(
        tuple(findings),
        rows,
        (Figure(file="arms.png", caption=caption),),
        (*notes, *unlike_rates(arms, measured)),
    )


def unlike_rates(arms: Sequence[Arm], measured: Measured) -> tuple[str, ...]:
    """Say so where unlike rates were chosen for the arms.

    Then what was left out may have cost stability, and with it error.
    """
    chosen = {arm.label: rates(measured[arm.name]) for arm in arms}
    if len(set(chosen.values())) < 2:
        return ()
    told = "; ".join(f"{label}: {words}" for label, words in chosen.items())
    return (
        (
            f"Unlike learning rates were chosen for the arms ({told}), so a part of the difference"
            " may be how fast each can be trained."
        ),
    )


def crossing(curve: Sequence[Mapping[str, float]], measure: str, goal: float) -> float | None:
    """Return after how many epochs a number first comes down to a goal, between two epochs by a straight line; None if it never does.

    Args:
        curve: the numbers of each epoch, in order.
        measure: which number.
        goal: what it comes down to.
    """
    before: float | None = None
    for epoch, entry in enumerate(curve, start=1):
        value = entry[measure]
        if value <= goal:
            return float(epoch) if before is None else epoch - (goal - value) / (before - value)
        before = value
    return None
