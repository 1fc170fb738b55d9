"""Settings of the `data` section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from pipeline.config.section import Section


class DataConfig(Section):
    """Which images, and how they are split and stored."""

    dataset: str = Field(
        "digits",
        min_length=1,
        description="`digits`, a TFDS name, a folder of class folders, or a manifest (.csv, ...).",
    )
    short_side: int = Field(
        36,
        ge=16,
        le=1024,
        description="Pixels that the shorter side is resized to; crops are cut from this.",
    )
    fit: Literal["crop", "pad", "auto"] = Field(
        "crop",
        description=(
            "`crop` keeps an image's central square; `pad` keeps it whole, in a square of its"
            " border's mean color; `auto` pads where more than a quarter of the images would lose"
            " more than a quarter of their area."
        ),
    )
    validation_fraction: float = Field(
        0.1,
        gt=0,
        lt=0.5,
        description=(
            "Fraction of the training images kept for validation where the source names none, in"
            " (0, 0.5)."
        ),
    )
    test_fraction: float = Field(
        0.2,
        gt=0,
        lt=0.5,
        description="Fraction kept for the test where the source names none, in (0, 0.5).",
    )
    max_quarantined_fraction: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Ingest fails when a larger fraction of the files cannot be used, in [0, 1].",
    )
    # Pillow's own limit, 1024^3 / 4 / 3: a PNG of some kilobytes can hold an image that fills the
    # memory when it is decoded.
    max_pixels: int = Field(
        89_478_485,
        ge=1,
        description="Files with more pixels are quarantined before they are decoded.",
    )
    max_side: int = Field(
        65_500,
        ge=1,
        description=(
            "Files with a longer side, in pixels, are quarantined; 65,500 is libjpeg's own limit."
        ),
    )
    max_file_bytes: int = Field(
        100_000_000, ge=1, description="Files with more bytes are quarantined unread."
    )
    duplicates: Literal["exclude", "report"] = Field(
        "exclude",
        description=(
            "Duplicates, exact or near, of an image of another split: `exclude` leaves them out,"
            " `report` only lists them."
        ),
    )
    renamed_classes: dict[str, str] = Field(
        {},
        description=(
            "Old name: new name, for classes that an earlier ingest knew; an empty new name drops"
            " the class."
        ),
    )
    store: Literal["encoded", "pixels"] = Field(
        "encoded",
        description=(
            "`encoded`: the files' bytes alone; `pixels`: also each image at short_side, uint8,"
            " about ten times faster to read."
        ),
    )

    beam: str = Field(
        "",
        description=(
            "Apache Beam's options, to prepare very large sets on many machines:"
            " `--runner=FlinkRunner --flink_master=HOST:8081`."
        ),
    )

    @field_validator("renamed_classes", mode="before")
    @classmethod
    def _parse_pairs(cls, value: object) -> object:
        """Parse `old=new,older=newer` of a command line."""
        if not isinstance(value, str):
            return value
        pairs = [pair for pair in value.split(",") if pair.strip()]
        if not all("=" in pair for pair in pairs):
            raise ValueError("should be old=new, with commas between several")
        return {old.strip(): new.strip() for old, new in (pair.split("=", 1) for pair in pairs)}
