"""Settings of the `evaluate` section."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from pipeline.config.section import Section


class EvaluateConfig(Section):
    """How the trained network is judged."""

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
        description=(
            "Images per forward step; logits may depend on it in their last digit, nothing else"
            " does."
        ),
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
            "Judge this model instead of the trained one: a `.keras` file, models:/NAME@ALIAS, or"
            " the id of an MLflow run."
        ),
    )

    # With a model of its own the stage is another one, which knows it by its bytes and not by its
    # name.
    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset({"model"})
