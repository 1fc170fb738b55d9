"""Settings of the `evaluate` section."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from pipeline.config.section import Section


class EvaluateConfig(Section):
    """Settings of the evaluation of a model."""

    split: Literal["test", "validation"] = Field("test", description="Which split to score.")
    view: Literal["center", "ten"] = Field(
        "center",
        description=(
            "`center`: the central crop; `ten`: the mean of ten crops as in the paper, ten times"
            " slower."
        ),
    )
    global_batch_size: int = Field(
        256,
        ge=1,
        le=65_536,
        description=("Images per forward step; only the last digits of logits may depend on it."),
    )
    report: Literal["full", "short"] = Field(
        "full",
        description=(
            "`short` leaves out corrupted images, the network's inside and its speed, which take"
            " most of the time."
        ),
    )
    model: str = Field(
        "",
        description=(
            "Evaluate this model instead of the trained one: a `.keras` file, models:/NAME@ALIAS,"
            " or the id of an MLflow run."
        ),
    )

    # With `model` another stage runs, whose fingerprint has the bytes of the model, not its name.
    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset({"model"})
