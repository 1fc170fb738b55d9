"""Settings of the `reproduce` section."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from pipeline.config.section import Section


class ReproduceConfig(Section):
    """The size of the experiments that measure the claims of 2012 again (docs/reproduction.md)."""

    seeds: int = Field(
        3,
        ge=1,
        le=100,
        description="Seeds of each arm, one training per seed; an interval needs at least 2.",
    )
    images: int = Field(
        0,
        ge=0,
        description="Training images of the ablations, from the start of the split; 0: all.",
    )
    tuning_epochs: int = Field(
        2,
        ge=1,
        le=1000,
        description=(
            "Epochs of the short trainings that choose the learning rate of each arm and seed."
        ),
    )
    activation_images: int = Field(
        6_400,
        ge=0,
        description="Training images of the claim `relu`, the paper's figure 1; 0: all.",
    )
    activation_epochs: int = Field(
        75, ge=1, le=10_000, description="Upper limit of the epochs of an arm of `relu`."
    )
    plain_images: int = Field(
        6_400,
        ge=0,
        description="Training images of the claim `gradients`; 0: all.",
    )
    plain_epochs: int = Field(10, ge=1, le=10_000, description="Epochs of an arm of `gradients`.")
    max_minutes: float = Field(
        0,
        ge=0,
        description=(
            "Minutes after which no training is started; the next command continues. 0: no limit."
        ),
    )

    # The spec of an experiment holds what it depends on.
    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset(
        {
            "seeds",
            "images",
            "tuning_epochs",
            "activation_images",
            "activation_epochs",
            "plain_images",
            "plain_epochs",
            "max_minutes",
        }
    )
