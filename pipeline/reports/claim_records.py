"""Records of the claims of 2012: questions, findings, tables and figures, as claim.json holds them.

They are made by `pipeline.reproduce` and are all that its pages and documents are written from.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

ClaimVerdict = Literal["reproduced", "not reproduced", "not decidable", "not measured"]
EffectUnit = Literal["points", "times", "fraction"]


class ClaimQuestion(BaseModel):
    """A quantity that a claim is about and its published value, fixed before any measurement.

    Effects have the sign that the claim predicts: a larger effect supports the claim.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantity: str = Field(
        description="The quantity, such as `top-1 error without dropout less that with it`."
    )
    unit: EffectUnit = Field(
        description="`points` of an error in %; `times`, a ratio; `fraction`, in [0, 1]."
    )
    published: float | None = Field(
        description="The published effect in that unit; None if no number was published."
    )
    source: str = Field(description="Where it was published.")
    null_effect: float = Field(
        description="Effects up to this value count as no effect: 0 points, 1 times."
    )


class ClaimFinding(ClaimQuestion):
    """The answer to a question."""

    effects: tuple[float, ...] = Field(description="Measured effect of each seed.")
    image_std: float = Field(
        0.0,
        description=(
            "Standard deviation of the mean effect that comes from the choice of test images."
        ),
    )
    is_lower_bound: bool = Field(
        False,
        description=(
            "The effects are lower bounds: the slow arm did not reach its goal within its budget."
        ),
    )
    is_upper_bound: bool = Field(
        False, description="The effects are upper bounds: the fast arm did not reach its goal."
    )
    ours: float | None = Field(description="Mean effect; for ratios the geometric mean.")
    interval: tuple[float, float] | None = Field(description="95 % interval of that mean.")
    verdict: ClaimVerdict
    why: str = Field(description="Reason for the verdict, with the numbers.")

    @property
    def seeds(self) -> int:
        """Number of seeds that were measured."""
        return len(self.effects)


class ArmRow(BaseModel):
    """One row of a claim's table: an arm and its measured values, one per seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: str = Field(description="Label of the arm.")
    setting: str = Field(
        default="", description="Setting that was chosen for the arm, such as its learning rate."
    )
    values: dict[str, tuple[float, ...]] = Field(
        description=(
            "Measure -> one value per seed. Measures whose name ends in `error` are fractions in"
            " [0, 1]."
        )
    )


class ClaimFigure(BaseModel):
    """A figure of a claim."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field(description="PNG file beside the claim's record.")
    caption: str = Field(description="Content of the figure, in two or three sentences.")


class Claim(BaseModel):
    """A measured claim with its verdict: the content of `claim.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    FILE: ClassVar[str] = "claim.json"

    name: str = Field(description="Short name, as the command line takes it.")
    title: str = Field(description="The claim in a few words.")
    text: str = Field(description="What the paper states and where, and what was done here.")
    findings: tuple[ClaimFinding, ...] = Field(
        description="The first one decides the verdict; the others are reported beside it."
    )
    rows: tuple[ArmRow, ...] = Field(default=(), description="One row per arm.")
    figures: tuple[ClaimFigure, ...] = ()
    notes: tuple[str, ...] = Field(default=(), description="Limits of the measurement.")
    seeds: int = Field(description="Seeds per arm.")
    profile: str = Field(description="`quick`, `paper` or a recipe.")
    dataset: str = Field(description="Name, and number of images of each split.")
    size: str = Field(
        default="", description="Network, number of training images and epochs of the arms."
    )
    command: str = Field(description="Command that repeats the measurement.")
    seconds: float = Field(
        description="Duration of all experiments, including those shared with other claims."
    )
    digest: str = Field(
        description=(
            "SHA-256 over the measurements, the code that judges them and the settings; an equal"
            " digest means an unchanged claim."
        )
    )

    @property
    def main_finding(self) -> ClaimFinding:
        """The finding that decides the verdict."""
        return self.findings[0]

    def as_dict(self) -> dict[str, Any]:
        """Return the claim as one JSON object."""
        main = self.main_finding
        compared = ("quantity", "published", "ours", "interval", "unit", "verdict")
        return {
            "claim": self.name,
            "published": main.published,
            "ours": main.ours,
            "interval": main.interval,
            "seeds": main.seeds,
            "verdict": main.verdict,
            "is_lower_bound": main.is_lower_bound,
            "is_upper_bound": main.is_upper_bound,
            "unit": main.unit,
            "quantity": main.quantity,
            "why": main.why,
            "also": [
                {name: getattr(other, name) for name in compared} for other in self.findings[1:]
            ],
            "seconds": round(self.seconds, 1),
        }


def format_effect(value: float, unit: EffectUnit) -> str:
    """Return an effect with its unit: `+1.40 points`, `2.41 times` or `0.006`."""
    if unit == "times":
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return (
            f"{value:.3g} times" if 1e-3 < value < 1e4 else f"{mantissa} x 10^{int(exponent)} times"
        )
    return f"{value:+.2f} points" if unit == "points" else f"{value:.3f}"
