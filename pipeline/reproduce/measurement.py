"""What one experiment leaves behind.

Apart from the verdicts, so that another rule is no reason to train again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from pipeline.artifacts import Artifact


class Measurement(Artifact):
    """What one experiment measured: one arm with one seed, or one look at a trained network."""

    CURVE_FILE: ClassVar[str] = "curve.json"
    WRONG_FILE: ClassVar[str] = "wrong.npy"
    MODEL_FILE: ClassVar[str] = "model.keras"

    name: str = Field(description="Which experiment.")
    numbers: dict[str, float] = Field(
        description="What was measured; errors are fractions in [0, 1], durations in seconds."
    )
    files: tuple[str, ...] = Field(default=(), description="Files beside the record.")
    sha256: str = Field(
        default="", description="SHA-256 over those of the files that are the same each time."
    )

    def headline(self) -> str:
        """Name some numbers."""
        return ", ".join(f"{name} {value:.4g}" for name, value in list(self.numbers.items())[:3])

    def promised_files(self) -> tuple[Path, ...]:
        """The files beside the record."""
        return tuple(self.directory / name for name in self.files)

    def curve(self) -> list[dict[str, float]]:
        """Return the numbers of every epoch."""
        found: list[dict[str, float]] = json.loads(
            (self.directory / self.CURVE_FILE).read_text(encoding="utf-8")
        )
        return found

    def wrong(self) -> Any:
        """Return which test images were answered wrongly, bool [images] in stored order."""
        import numpy as np

        return np.load(self.directory / self.WRONG_FILE)
