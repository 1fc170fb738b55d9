"""Claim: response normalization lowers the error."""

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
    what="test error without response normalization less that with it",
    unit="points",
    published=1.4,
    source=(
        "2012's diaries, config 148 against 145: 42.03 and 40.66 %, ten crops (paper, section 3.3)"
    ),
    least=0.0,
)


def arms(config: Config) -> tuple[Arm, ...]:
    """Return the network with it and without."""
    return baseline(config), without(
        config, "no-lrn", "without normalization", model={"alexnet": {"normalization": "none"}}
    )


def conclude(lab: Lab, measured: Mapping[str, Sequence[Measurement]]) -> Conclusion:
    """Compare the test errors."""
    finding = costs(_ERROR, measured["no-lrn"], measured["baseline"])
    return compared(
        lab,
        [finding],
        arms(lab.config),
        measured,
        "Test error with and without response normalization, a dot a seed.",
    )


EXPERIMENT = Experiment(
    "lrn",
    "Response normalization lowers the error",
    "Section 3.3: normalizing each response over neighboring maps lowers the top-1 error by 1.4"
    " points (the diaries' network without it also lacks an unpublished layer). Here: the same"
    " network with both normalizations and with neither.",
    arms,
    conclude,
)
