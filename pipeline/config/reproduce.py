"""Settings of the `reproduce` section."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from pipeline.config.section import Section


class ReproduceConfig(Section):
    """How large the experiments are that measure the claims of 2012 again.

    Docs/reproduction.md says what each of them does.
    """

    seeds: int = Field(
        3,
        ge=1,
        le=100,
        description=(
            "Trainings of each arm, each with a seed of its own; intervals need two at least."
        ),
    )
    images: int = Field(
        0,
        ge=0,
        description="Training images of the ablations, the first so many of the split; 0: all.",
    )
    tuning_epochs: int = Field(
        2,
        ge=1,
        le=1000,
        description=(
            "Epochs of the short trainings that a learning rate is chosen by, for each arm and"
            " seed."
        ),
    )
    race_images: int = Field(
        6_400,
        ge=0,
        description="Training images of the race of activations, the paper's figure 1; 0: all.",
    )
    race_epochs: int = Field(
        75, ge=1, le=10_000, description="Epochs after which an arm of that race is given up."
    )
    plain_images: int = Field(
        6_400,
        ge=0,
        description="Training images of the plain networks of 4 to 16 layers; 0: all.",
    )
    plain_epochs: int = Field(10, ge=1, le=10_000, description="Epochs of those.")
    budget_minutes: float = Field(
        0,
        ge=0,
        description="Begin no training after so many minutes; the next command goes on. 0: no end.",
    )

    # What an experiment depends on is in its own account.
    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset(
        {
            "seeds",
            "images",
            "tuning_epochs",
            "race_images",
            "race_epochs",
            "plain_images",
            "plain_epochs",
            "budget_minutes",
        }
    )
