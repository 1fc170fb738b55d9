"""The claims of one shape: one setting is changed, and the control's test error is compared.

A new claim of this shape is a new row of `ABLATIONS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config.settings import Config
from pipeline.reports.claim_records import ClaimQuestion
from pipeline.reproduce.arms import Arm, apply_settings, make_baseline_arm, make_changed_arm
from pipeline.reproduce.claim_run import ClaimRun
from pipeline.reproduce.comparison import compare_errors, compare_gaps, conclude_comparison
from pipeline.reproduce.experiment import ArmMeasurements, Conclusion, Experiment


@dataclass(frozen=True)
class Change:
    """Settings that make an arm out of the baseline.

    Attributes:
        name: of the arm.
        label: in tables and figures.
        settings: `section.field` -> value.
    """

    name: str
    label: str
    settings: Mapping[str, Any]

    def is_made_by(self, config: Config) -> bool:
        """Return whether the settings of a recipe have these values already."""
        return apply_settings(config.model_dump(), self.settings) == config.model_dump()

    def make_arm(self, config: Config) -> Arm:
        """Return the changed baseline arm."""
        return make_changed_arm(config, self.name, self.label, self.settings)


@dataclass(frozen=True)
class Ablation:
    """A claim that something lowers the test error, measured by leaving it out.

    Attributes:
        name, title, text, summary, section, position: as in `Experiment`.
        removal: leaves it out.
        error: the question about the test error without it less that with it, in points.
        caption: of the figure of both test errors.
        addition: adds it, for recipes that are without; None where every recipe has it.
        gap: the question about the gap between test and training error, which then decides.
    """

    name: str
    title: str
    text: str
    summary: str
    section: str
    position: int
    removal: Change
    error: ClaimQuestion
    caption: str
    addition: Change | None = None
    gap: ClaimQuestion | None = None

    def list_arms(self, config: Config) -> tuple[Arm, ...]:
        """Return the baseline and the arm that differs from it."""
        change = self.removal
        if self.addition is not None and self.removal.is_made_by(config):
            change = self.addition
        return make_baseline_arm(config), change.make_arm(config)

    def conclude(self, run: ClaimRun, measured: ArmMeasurements) -> Conclusion:
        """Compare the test errors, and the gaps if the claim is about overfitting."""
        arms = self.list_arms(run.config)
        whole, without = (measured[arm.name] for arm in arms)
        if arms[1].name != self.removal.name:
            whole, without = without, whole
        findings = [compare_errors(self.error, without, whole)]
        if self.gap is not None:
            findings.insert(0, compare_gaps(self.gap, without, whole))
        return conclude_comparison(run, findings, arms, measured, self.caption)

    def make_experiment(self) -> Experiment:
        """Return the claim as every other is defined."""
        criterion = "test error" if self.gap is None else "gap between test and training error"
        return Experiment(
            name=self.name,
            title=self.title,
            text=self.text,
            summary=self.summary,
            section=self.section,
            criterion=criterion,
            list_arms=self.list_arms,
            conclude=self.conclude,
            position=self.position,
        )


def ask_error(
    without: str, whole: str, published: float | None = None, source: str = ""
) -> ClaimQuestion:
    """Return the question about the test error of one arm less that of the other, in points."""
    return ClaimQuestion(
        quantity=f"test error {without} less that {whole}",
        unit="points",
        published=published,
        source=source or "no number was published",
        null_effect=0.0,
    )


ABLATIONS = (
    Ablation(
        name="lrn",
        position=40,
        title="Response normalization lowers the error",
        text=(
            "Section 3.3: normalizing each response over neighboring maps lowers the top-1 error by"
            " 1.4 points (the diaries' network without it also lacks an unpublished layer). Here:"
            " the same network with both normalizations and with neither."
        ),
        summary="response normalization: 1.4 points",
        section="section 3.3",
        removal=Change("no-lrn", "without normalization", {"model.alexnet.normalization": "none"}),
        error=ask_error(
            "without response normalization",
            "with it",
            1.4,
            "2012's diaries, config 148 against 145: 42.03 and 40.66 %, ten crops (paper, section"
            " 3.3)",
        ),
        caption="Test error with and without response normalization, one dot per seed.",
    ),
    Ablation(
        name="pooling",
        position=50,
        title="Overlapping pools lower the error",
        text=(
            "Section 3.4: pools of 3 x 3, two apart, lower the top-1 error by 0.4 points against"
            " pools of 2 x 2. Here: the same network with both."
        ),
        summary="overlapping pools: 0.4 points",
        section="section 3.4",
        removal=Change(
            "no-overlap", "pools of 2 x 2", {"model.alexnet.overlapping_pooling": False}
        ),
        error=ask_error(
            "with pools of 2 x 2",
            "with overlapping ones",
            0.4,
            "paper, section 3.4; the diaries' config 147 against 145: 41.06 and 40.66 %, ten crops",
        ),
        caption="Test error with overlapping pools and with pools of 2 x 2, one dot per seed.",
    ),
    Ablation(
        name="crops",
        position=60,
        title="Random crops and horizontal flips prevent overfitting",
        text=(
            "Section 4.1: 224 of 256 pixels are cropped at random and flipped, 2048 times as many"
            " images; without, the network overfits substantially. Here: the same images cropped at"
            " random and flipped where the recipe does, and cropped at the center alone."
        ),
        summary="random crops and flips prevent overfitting",
        section="section 4.1",
        removal=Change(
            "center-crops", "central crops alone", {"train.crop": "center", "train.flip": False}
        ),
        gap=ClaimQuestion(
            quantity=(
                "gap between test and training error with central crops alone, less the gap with"
                " random ones"
            ),
            unit="points",
            published=None,
            source='paper, section 4.1: "substantial overfitting" without, no number',
            null_effect=0.0,
        ),
        error=ask_error("with central crops alone", "with random ones"),
        caption=(
            "Test error, trained on random crops and flips and on central crops, one dot per seed."
        ),
    ),
    Ablation(
        name="color",
        position=70,
        title="Noise along the principal colors lowers the error",
        text=(
            "Section 4.1: adding to every pixel of an image a random multiple of the principal"
            " colors of the training images lowers the top-1 error by over 1 %. Here: the same"
            " network with noise of standard deviation 0.1, counted as the program of 2012 did"
            " (model.alexnet.fidelity), and without."
        ),
        summary="noise along the principal colors: over 1 point",
        section="section 4.1",
        removal=Change("no-color-noise", "without color noise", {"train.color_noise": 0.0}),
        # 0.1: paper, section 4.1.
        addition=Change("color-noise", "with color noise", {"train.color_noise": 0.1}),
        error=ask_error(
            "without color noise",
            "with it",
            1.0,
            'paper, section 4.1: "over 1 %"; not isolated in the diaries',
        ),
        caption=(
            "Test error with and without noise along the principal colors of the training images,"
            " one dot per seed."
        ),
    ),
    Ablation(
        name="depth",
        position=110,
        title="Each middle layer is needed",
        text=(
            "Section 7: removing any of the middle layers costs about 2 points of top-1 error."
            " Here: the network without its fourth convolution."
        ),
        summary="leaving out a middle convolution costs 2 points",
        section="section 7",
        removal=Change("no-conv4", "without conv4", {"model.alexnet.remove_layer": "conv4"}),
        error=ask_error("without conv4", "with it", 2.0, "paper, section 7"),
        caption="Test error with five convolutions and with four, one dot per seed.",
    ),
)
EXPERIMENTS = tuple(ablation.make_experiment() for ablation in ABLATIONS)
