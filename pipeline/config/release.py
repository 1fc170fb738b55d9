"""Settings of the `release` section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config.section import Section


class ReleaseConfig(Section):
    """When a trained network may take the champion's place.

    Docs/release.md says what each check decides, and with how many images.
    """

    name: str = Field(
        "alexnet",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the model in MLflow's registry.",
    )
    policy: Literal["non_inferior", "superior"] = Field(
        "non_inferior",
        description=(
            "`non_inferior`: fresh data counts when quality holds; `superior`: the candidate must"
            " be better, beyond chance."
        ),
    )
    margin: float = Field(
        0.01,
        gt=0,
        lt=1,
        description=(
            "How much higher than the champion's the top-1 error may be, as a share of the test"
            " images."
        ),
    )
    class_margin: float = Field(
        0.1,
        gt=0,
        le=1,
        description="By how much no class's recall may fall, as a share of its images.",
    )
    max_top1_error: float = Field(
        1.0, ge=0, le=1, description="Highest top-1 error of a model that is released, in [0, 1]."
    )
    min_class_recall: float = Field(
        0.0, ge=0, le=1, description="Lowest recall of any class, in [0, 1]."
    )
    max_calibration_error: float = Field(
        0.1,
        ge=0,
        le=1,
        description=(
            "Highest calibration error with the fitted temperature, beyond chance, in [0, 1]."
        ),
    )
    max_latency_milliseconds: float = Field(
        1000.0, gt=0, description="Longest time that 95 of 100 single images may take here."
    )
    max_megabytes: float = Field(1000.0, gt=0, description="Largest model file.")
    test_images: Literal["frozen", "current"] = Field(
        "frozen",
        description=(
            "`frozen`: judged on the test images, and labels, that the champion was released by,"
            " and on those of new classes; `current`: on the test split as it is now."
        ),
    )
    approval: Literal["none", "required"] = Field(
        "none",
        description=(
            "`required`: what passed waits as the candidate until a person types `alexnet promote"
            " --approve`."
        ),
    )
    approve: bool = Field(False, description="The approval, by the person who types the command.")
    dry_run: bool = Field(
        False,
        description="Judge, and say what would happen; nothing is registered and no alias moves.",
    )
