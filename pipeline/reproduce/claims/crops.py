"""Claim: random crops and mirrorings keep the network from overfitting (section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.config.settings import Config
from pipeline.reproduce.arms import Arm, baseline, without
from pipeline.reproduce.claims.ablation import compared, costs, widens
from pipeline.reproduce.lab import Experiment, Lab
from pipeline.reproduce.measurement import Measurement
from pipeline.reproduce.records import Conclusion
from pipeline.reproduce.verdict import Question

_GAP = Question(
    what=(
        "gap between test and training error with central crops alone, less the gap with random"
        " ones"
    ),
    unit="points",
    published=None,
    source='paper, section 4.1: "substantial overfitting" without, no number',
    least=0.0,
)
_ERROR = Question(
    what="test error with central crops alone less that with random ones",
    unit="points",
    published=None,
    source="no number was published",
    least=0.0,
)


def arms(config: Config) -> tuple[Arm, ...]:
    """Return the network trained on random cuts and on central ones."""
    return baseline(config), without(
        config, "center-crops", "central crops alone", train={"crop": "center", "flip": False}
    )


def conclude(lab: Lab, measured: Mapping[str, Sequence[Measurement]]) -> Conclusion:
    """Compare gaps and errors."""
    whole, bare = measured["baseline"], measured["center-crops"]
    findings = (widens(_GAP, bare, whole), costs(_ERROR, bare, whole))
    return compared(
        lab,
        findings,
        arms(lab.config),
        measured,
        "Test error, trained on random crops and mirrorings and on central crops, a dot a seed.",
    )


EXPERIMENT = Experiment(
    "crops",
    "Random crops and mirrorings prevent overfitting",
    "Section 4.1: 224 of 256 pixels are cut at random and mirrored, 2048 times as many images;"
    " without, the network overfits substantially. Here: the same images cut at random and"
    " mirrored where the recipe does, and cut at the center alone.",
    arms,
    conclude,
)
