"""Settings of the `retrain` section."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.section import Section


class RetrainConfig(Section):
    """When a scheduled run of the schedule retrains, and what a retraining is.

    Docs/retraining.md says what each trigger looks at.
    """

    triggers: tuple[Literal["always", "new_data", "drift", "degraded_champion", "age"], ...] = (
        Field(
            ("new_data", "drift", "degraded_champion", "age"),
            min_length=1,
            description=(
                "What a scheduled run retrains for, with commas between several; one that fires is enough."
                " `always`: the schedule decides."
            ),
        )
    )
    min_new_images: int = Field(
        0,
        ge=0,
        description=(
            "`new_data` fires from so many images on that are new, gone or labeled otherwise; 0:"
            " their share decides."
        ),
    )
    min_new_fraction: float = Field(
        0.05,
        ge=0,
        le=100,
        description=(
            "The same as a share of the champion's images; 0: their number decides. Either is"
            " enough."
        ),
    )
    significance_level: float = Field(
        0.05,
        ge=0.01,
        lt=0.5,
        description=(
            "How often a scheduled run may take chance for a drift, and how often for a fall of the"
            " champion."
        ),
    )
    degradation_margin: float = Field(
        0.02,
        ge=0,
        lt=1,
        description=(
            "By how much the champion's top-1 error must be higher on newly labeled images to be"
            " a fall."
        ),
    )
    max_age_days: float = Field(
        90.0, gt=0, description="`age` fires for a champion that is older, in days."
    )

    start: Literal["fresh", "champion"] = Field(
        "fresh",
        description=(
            "`fresh`: train from fresh weights; `champion`: go on from the champion's, quicker, and"
            " with its habits."
        ),
    )
    timeout_hours: float = Field(
        24.0,
        gt=0,
        le=8760,
        description="A retraining that takes longer is ended and counts as failed, in hours.",
    )
    retries: int = Field(
        3,
        ge=0,
        le=100,
        description=(
            "How often a retraining is tried again that failed for a reason which may pass, such as"
            " a busy folder."
        ),
    )
    backoff_seconds: float = Field(
        60.0,
        gt=0,
        le=86_400,
        description="Pause before the first such try, in seconds; it doubles each time.",
    )
    drain_seconds: float = Field(
        20.0,
        ge=0,
        le=86_400,
        description=(
            "How long a retraining may go on when the scheduler is asked to end; the next start"
            " goes on with it."
        ),
    )
    notify: str = Field(
        "",
        description=(
            "Told of what was promoted, refused, failed or waits: a shell command, which reads"
            " JSON, or an http(s) address."
        ),
    )
    keep: int = Field(
        5,
        ge=1,
        le=10_000,
        description=(
            "How many retrainings are kept besides the champion, the one before and the best."
        ),
    )

    @field_validator("triggers", mode="before")
    @classmethod
    def _from_words(cls, value: object) -> object:
        """Take `drift,age` of a command line."""
        return (
            tuple(word.strip() for word in value.split(",") if word.strip())
            if isinstance(value, str)
            else value
        )

    @model_validator(mode="after")
    def _new_data_can_fire(self) -> Self:
        if "new_data" in self.triggers and not (self.min_new_images or self.min_new_fraction):
            raise ValueError(
                "new_data needs min_new_images or min_new_fraction above 0; leave it out of"
                " triggers, or give one of them"
            )
        return self
