"""What a claim leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from pipeline.reproduce.verdict import Finding


class Row(BaseModel):
    """One line of a claim's table: an arm, and what each seed gave."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: str = Field(description="For people.")
    setting: str = Field(
        default="", description="What was chosen for it, such as its learning rate."
    )
    values: dict[str, tuple[float, ...]] = Field(
        description=(
            "By what was measured: one number a seed. Names ending in `error` are shares in [0, 1]."
        )
    )


class Figure(BaseModel):
    """An image of a claim."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field(description="PNG file beside the claim's record.")
    caption: str = Field(description="What it shows, in two or three sentences.")


class Claim(BaseModel):
    """A claim, judged: what `claim.json` holds and what every page and table is written from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    FILE: ClassVar[str] = "claim.json"

    name: str = Field(description="Short name, as the command line takes it.")
    title: str = Field(description="What is claimed, in a few words.")
    text: str = Field(description="What the paper says and where, and what was done here.")
    findings: tuple[Finding, ...] = Field(
        description="The first decides the verdict; others are told beside it."
    )
    rows: tuple[Row, ...] = Field(default=(), description="The arms.")
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = Field(
        default=(), description="What one should know before believing it."
    )
    seeds: int = Field(description="Seeds an arm.")
    profile: str = Field(description="`quick`, `paper` or a recipe.")
    dataset: str = Field(description="Name, and images of each split.")
    size: str = Field(
        default="", description="The network, the training images and the epochs of its arms."
    )
    command: str = Field(description="What measures it again.")
    seconds: float = Field(
        description="Time that its experiments took, also those it shares with other claims."
    )
    measured: str = Field(
        description=(
            "SHA-256 over everything that was measured and the rule; the same means nothing new."
        )
    )

    @property
    def main(self) -> Finding:
        """The finding that decides."""
        return self.findings[0]

    def as_dict(self) -> dict[str, Any]:
        """Return the claim as one JSON object."""
        main = self.main
        return {
            "claim": self.name,
            "published": main.published,
            "ours": main.ours,
            "interval": main.interval,
            "seeds": main.seeds,
            "verdict": main.verdict,
            "at_least": main.at_least,
            "at_most": main.at_most,
            "unit": main.unit,
            "what": main.what,
            "why": main.why,
            "also": [
                {
                    "what": other.what,
                    "published": other.published,
                    "ours": other.ours,
                    "interval": other.interval,
                    "unit": other.unit,
                    "verdict": other.verdict,
                }
                for other in self.findings[1:]
            ],
            "seconds": round(self.seconds, 1),
        }


@dataclass(frozen=True)
class Conclusion:
    """What a claim's own code makes of the measurements: findings, table, images and notes."""

    findings: tuple[Finding, ...]
    rows: tuple[Row, ...] = ()
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()
