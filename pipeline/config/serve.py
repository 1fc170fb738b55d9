"""Settings of the `serve` section."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.section import Section


class ServeConfig(Section):
    """How the champion answers over HTTP. Nothing here changes an answer."""

    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address to listen at; another than the loopback lets other machines in.",
    )
    port: int = Field(8080, ge=1, le=65_535, description="Port to listen at.")
    batch: int = Field(32, ge=1, le=1024, description="Most images that are answered together.")
    wait_milliseconds: float = Field(
        2.0,
        ge=0,
        le=1000,
        description="How long the first image waits for others to be answered with.",
    )
    queue: int = Field(
        256,
        ge=1,
        le=65_536,
        description="Images that may wait; what comes on top is told to try again: 429.",
    )
    max_megabytes: float = Field(10.0, gt=0, le=1000, description="Largest request.")
    max_pixels: int = Field(
        50_000_000, ge=1, le=89_478_485, description="Largest image, known before it is decoded."
    )
    max_images: int = Field(64, ge=1, le=1024, description="Most images in a request.")
    upload_seconds: float = Field(
        30.0, gt=0, le=3600, description="How long a request may take to come in."
    )
    reload_seconds: float = Field(
        5.0, gt=0, le=86_400, description="How often the alias is looked up, for a new champion."
    )
