"""Settings of the `serve` section."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.section import Section


class ServeConfig(Section):
    """Settings of the HTTP service. None of them changes a prediction."""

    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address to listen at; any but the loopback admits other machines.",
    )
    port: int = Field(8080, ge=1, le=65_535, description="Port to listen at.")
    max_batch: int = Field(
        32, ge=1, le=1024, description="Largest number of images classified together."
    )
    max_wait_milliseconds: float = Field(
        2.0,
        ge=0,
        le=1000,
        description="Longest time that the first image of a batch waits for others, in ms.",
    )
    max_queue: int = Field(
        256,
        ge=1,
        le=65_536,
        description="Images waiting at most; a request beyond is rejected with 429.",
    )
    max_megabytes: float = Field(
        10.0, gt=0, le=1000, description="Largest request, in MB (10^6 bytes)."
    )
    max_pixels: int = Field(
        50_000_000,
        ge=1,
        le=89_478_485,
        description="Largest image in pixels, checked before it is decoded.",
    )
    max_images: int = Field(
        64, ge=1, le=1024, description="Largest number of images in one request."
    )
    upload_seconds: float = Field(
        30.0, gt=0, le=3600, description="Longest time that a request may take to arrive, in s."
    )
    reload_seconds: float = Field(
        5.0, gt=0, le=86_400, description="Interval between checks for a new champion, in s."
    )
