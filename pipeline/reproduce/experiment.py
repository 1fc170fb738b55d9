"""The definition of a claim: what it states, what is trained for it, what the numbers mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.config.settings import Config
from pipeline.image_size import describe_image_size, read_image_size
from pipeline.reports.claim_records import ArmRow, ClaimFigure, ClaimFinding
from pipeline.reproduce.arms import Arm
from pipeline.reproduce.claim_run import ClaimRun
from pipeline.reproduce.measurement import Measurement

# By the name of an arm: its measurements, one per seed.
ArmMeasurements = Mapping[str, Sequence[Measurement]]

_LAST = 1_000


@dataclass(frozen=True)
class Conclusion:
    """The findings, table, figures and notes that follow from the measurements of a claim."""

    findings: tuple[ClaimFinding, ...]
    rows: tuple[ArmRow, ...] = ()
    figures: tuple[ClaimFigure, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """A claim of the paper, and how it is measured again.

    Attributes:
        name: short name, as the command line takes it.
        title: the claim in a few words.
        text: what the paper states and where, and what is done here.
        summary: the claim as the table of claims states it.
        section: where the paper states it.
        criterion: the quantity that decides the verdict, as the table of claims states it.
        list_arms: returns the arms that must be trained.
        conclude: returns what the measurements mean.
        position: claims are measured and listed in ascending positions.
    """

    name: str
    title: str
    text: str
    summary: str
    section: str
    criterion: str
    list_arms: Callable[[Config], tuple[Arm, ...]]
    conclude: Callable[[ClaimRun, ArmMeasurements], Conclusion]
    position: int = _LAST

    def describe_size(self, config: Config) -> str:
        """Return network, training images and epochs of the arms as text; empty without arms."""
        specs = [arm.make_spec(config, 0) for arm in self.list_arms(config)]
        if not specs:
            return ""
        sizes = sorted({spec["images"] for spec in specs})
        epochs = sorted({spec["train"]["epochs"] for spec in specs})
        model = specs[0]["model"]
        depths = sorted({spec["depth"] for spec in specs})
        network = (
            f"plain networks of {_join_numbers(depths)} layers"
            if depths[0]
            else str(model["network"])
        )
        multiplier = model["alexnet"]["width_multiplier"]
        width = f" at width {multiplier:g}" if multiplier != 1 else ""
        images = _join_numbers(sizes) if sizes[0] else "all"
        size = describe_image_size(read_image_size(model["image_size"]))
        return (
            f"{network}{width}, {size} pixels, {images} training images,"
            f" {_join_numbers(epochs)} epochs"
        )


def _join_numbers(numbers: Sequence[int]) -> str:
    """Return `1, 2 and 3`."""
    texts = [f"{number:,}" for number in numbers]
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))
