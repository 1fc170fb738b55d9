"""Claim: response normalisation lowers the error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.config import Config
from pipeline.reproduce.ablation import compared, costs
from pipeline.reproduce.arms import Arm, baseline, without
from pipeline.reproduce.lab import Experiment, Lab
from pipeline.reproduce.measurement import Measurement
from pipeline.reproduce.records import Conclusion
from pipeline.reproduce.verdict import Question

_ERROR = Question(
    what="test error without response normalisation less that with it",
    unit="points",
    published=1.4,
    source="2012's diaries, config 148 against 145: 42.03 and 40.66 %, ten crops (paper, section 3.3)",
    least=0.0,
)


def arms(config: Config) -> tuple[Arm, ...]:
    """Return the network with it and without."""
    return baseline(config), without(config, "no-lrn", "without normalisation", model={"normalization": "none"})


def conclude(lab: Lab, measured: Mapping[str, Sequence[Measurement]]) -> Conclusion:
    """Compare the test errors."""
    finding = costs(_ERROR, measured["no-lrn"], measured["baseline"])
    return compared(lab, [finding], arms(lab.config), measured, "Test error with and without response normalisation, a dot a seed.")


EXPERIMENT = Experiment(
    "lrn",
    "Response normalisation lowers the error",
    "Section 3.3: normalising each response over neighbouring maps lowers the top-1 error by 1.4 points (the diaries' network without it "
    "also lacks an unpublished layer). Here: the same network with both normalisations and with neither.",
    arms,
    conclude,
)
