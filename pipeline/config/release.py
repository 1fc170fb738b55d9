"""Settings of the `release` section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config.section import Section


class ReleaseConfig(Section):
    """When a trained network may become the champion.

    docs/release.md describes each check of the gate and the number of images that it needs.
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
            "Largest rise of the top-1 error over the champion's, as a fraction of the test images,"
            " in (0, 1)."
        ),
    )
    class_margin: float = Field(
        0.1,
        gt=0,
        le=1,
        description="Largest fall of any class's recall, as a fraction of its images, in (0, 1].",
    )
    max_top1_error: float = Field(
        1.0, ge=0, le=1, description="Highest top-1 error of a released model, in [0, 1]."
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
        1000.0,
        gt=0,
        description="Longest time in which 95 % of single images are answered on this machine.",
    )
    max_megabytes: float = Field(1000.0, gt=0, description="Largest size of the model file, in MB.")
    test_images: Literal["frozen", "current"] = Field(
        "frozen",
        description=(
            "`frozen`: the test images and labels that the champion was released by, and those of"
            " new classes; `current`: the test split as it is now."
        ),
    )
    approval: Literal["none", "required"] = Field(
        "none",
        description=(
            "`required`: a candidate that passed waits until a person types `alexnet promote"
            " --approve`."
        ),
    )
    approve: bool = Field(False, description="Approve the candidate, as a person.")
    dry_run: bool = Field(
        False,
        description="Judge and report the outcome; register nothing and move no alias.",
    )
