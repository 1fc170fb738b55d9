"""Claim: without dropout the network overfits.

With it, training takes about twice the iterations (section 4.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.config.settings import Config
from pipeline.reproduce.arms import Arm, baseline, without
from pipeline.reproduce.claims.ablation import compared, costs, crossing, widens
from pipeline.reproduce.lab import Experiment, Lab
from pipeline.reproduce.measurement import Measurement
from pipeline.reproduce.records import Conclusion, Figure
from pipeline.reproduce.verdict import Question, find

_GAP = Question(
    what="gap between test and training error without dropout, less the gap with it",
    unit="points",
    published=None,
    source='paper, section 4.2: "substantial overfitting" without, no number',
    least=0.0,
)
_TIME = Question(
    what="epochs until the validation error that both come to, with dropout over without",
    unit="times",
    published=2.0,
    source='paper, section 4.2: "roughly doubles the number of iterations"',
    least=1.0,
)
_ERROR = Question(
    what="test error without dropout less that with it",
    unit="points",
    published=None,
    source="no number was published",
    least=0.0,
)


def arms(config: Config) -> tuple[Arm, ...]:
    """Return the network with dropout and without."""
    return baseline(config), without(
        config, "no-dropout", "without dropout", model={"dropout": 0.0}
    )


def conclude(lab: Lab, measured: Mapping[str, Sequence[Measurement]]) -> Conclusion:
    """Compare gaps, times and errors."""
    from pipeline.reports.claim_figures import draw_curves

    whole, bare = measured["baseline"], measured["no-dropout"]
    ratios = [slower(one.curve(), other.curve()) for one, other in zip(whole, bare, strict=True)]
    findings = (
        widens(_GAP, bare, whole),
        find(_TIME, ratios),
        costs(_ERROR, bare, whole),
    )
    conclusion = compared(
        lab,
        findings,
        arms(lab.config),
        measured,
        "Test error with and without dropout, a dot a seed.",
        (
            (
                "The training error is that of the finished network on training images, cut as"
                " test images are and without dropout."
            ),
            (
                "A learning rate that falls to nothing ends both trainings at the same epoch, which"
                " draws their times together: that finding says little about trainings that may"
                " take as long as they need."
            ),
        ),
    )
    curves = {arm.label: [one.curve() for one in measured[arm.name]] for arm in arms(lab.config)}
    draw_curves(curves, lab.folder / "curves.png")
    drawn = Figure(
        file="curves.png",
        caption=(
            "Training error, as each step saw it, and validation error by epoch. With dropout a"
            " step sees half of the units."
        ),
    )
    return Conclusion(
        conclusion.findings, conclusion.rows, (drawn, *conclusion.figures), conclusion.notes
    )


def slower(slow: Sequence[Mapping[str, float]], fast: Sequence[Mapping[str, float]]) -> float:
    """Return how many times longer one training takes to the lowest validation error that both come to."""
    measure = "validation_top1_error"
    goal = max(min(epoch[measure] for epoch in curve) for curve in (slow, fast))
    times = [crossing(curve, measure, goal) or float(len(curve)) for curve in (slow, fast)]
    return times[0] / times[1]


EXPERIMENT = Experiment(
    "dropout",
    "Dropout prevents overfitting, and takes longer",
    "Section 4.2: without dropout the network overfits substantially; dropout about doubles the"
    " iterations that it takes to converge. Here: the same network and images with half of fc6's"
    " and fc7's units dropped while training, and with none.",
    arms,
    conclude,
)
