"""Settings of the `retrain` section."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.section import Section


class RetrainConfig(Section):
    """When a scheduled run retrains, and how a retraining runs.

    Docs/retraining.md describes the triggers.
    """

    triggers: tuple[Literal["always", "new_data", "drift", "degraded_champion", "age"], ...] = (
        Field(
            ("new_data", "drift", "degraded_champion", "age"),
            min_length=1,
            description=(
                "Reasons to retrain, with commas between several; one that fires is enough."
                " `always`: every scheduled run retrains."
            ),
        )
    )
    min_new_images: int = Field(
        0,
        ge=0,
        description=(
            "`new_data` fires from this number of new, removed or relabeled images on; 0: only"
            " min_new_fraction counts."
        ),
    )
    min_new_fraction: float = Field(
        0.05,
        ge=0,
        le=100,
        description=(
            "The same as a fraction of the champion's images; 0: only min_new_images counts. Either"
            " is enough."
        ),
    )
    significance_level: float = Field(
        0.05,
        ge=0.01,
        lt=0.5,
        description=(
            "False-alarm rate of a scheduled run: of all drift tests together, and of"
            " `degraded_champion`."
        ),
    )
    degradation_margin: float = Field(
        0.02,
        ge=0,
        lt=1,
        description=(
            "`degraded_champion` needs a top-1 error on newly labeled images that is higher by this"
            " much."
        ),
    )
    max_age_days: float = Field(
        90.0, gt=0, description="`age` fires for an older champion, in days."
    )

    start: Literal["fresh", "champion"] = Field(
        "fresh",
        description=(
            "`fresh`: train from fresh weights; `champion`: from the champion's, which is faster"
            " and keeps its biases."
        ),
    )
    timeout_hours: float = Field(
        24.0,
        gt=0,
        le=8760,
        description="A retraining that takes longer is ended and fails, in hours.",
    )
    retries: int = Field(
        3,
        ge=0,
        le=100,
        description=(
            "Retries of a retraining that failed for a reason that may pass, such as a busy work"
            " directory."
        ),
    )
    backoff_seconds: float = Field(
        60.0,
        gt=0,
        le=86_400,
        description="Pause before the first retry, in seconds; it doubles each time.",
    )
    drain_seconds: float = Field(
        20.0,
        ge=0,
        le=86_400,
        description=(
            "Time for a retraining to end when the scheduler stops, in seconds; the next scheduler"
            " resumes it."
        ),
    )
    notify: str = Field(
        "",
        description=(
            "Notified of promoted, refused, waiting and failed: a shell command that reads JSON, or"
            " an http(s) address."
        ),
    )
    keep: int = Field(
        5,
        ge=1,
        le=10_000,
        description=(
            "Retrainings kept of each schedule and outcome, besides the champion, the previous and"
            " the best."
        ),
    )

    @field_validator("triggers", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        """Take `drift,age` of a command line."""
        return (
            tuple(word.strip() for word in value.split(",") if word.strip())
            if isinstance(value, str)
            else value
        )

    @model_validator(mode="after")
    def _check_new_data(self) -> Self:
        if "new_data" in self.triggers and not (self.min_new_images or self.min_new_fraction):
            raise ValueError(
                "new_data needs min_new_images or min_new_fraction above 0; leave it out of"
                " triggers, or give one of them"
            )
        return self
