"""Claim: each middle layer is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.config.settings import Config
from pipeline.reproduce.arms import Arm, baseline, without
from pipeline.reproduce.claims.ablation import compared, costs
from pipeline.reproduce.lab import Experiment, Lab
from pipeline.reproduce.measurement import Measurement
from pipeline.reproduce.records import Conclusion
from pipeline.reproduce.verdict import Question

_ERROR = Question(
    what="test error without conv4 less that with it",
    unit="points",
    published=2.0,
    source="paper, section 7",
    least=0.0,
)


def arms(config: Config) -> tuple[Arm, ...]:
    """Return the network with it and without."""
    return baseline(config), without(
        config, "no-conv4", "without conv4", model={"alexnet": {"remove_layer": "conv4"}}
    )


def conclude(lab: Lab, measured: Mapping[str, Sequence[Measurement]]) -> Conclusion:
    """Compare the test errors."""
    finding = costs(_ERROR, measured["no-conv4"], measured["baseline"])
    return compared(
        lab,
        [finding],
        arms(lab.config),
        measured,
        "Test error with five convolutions and with four, a dot a seed.",
    )


EXPERIMENT = Experiment(
    "depth",
    "Each middle layer is needed",
    "Section 7: removing any of the middle layers costs about 2 points of top-1 error. Here: the"
    " network without its fourth convolution.",
    arms,
    conclude,
)
