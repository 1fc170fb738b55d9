"""The record of one experiment.

It stands apart from the verdicts, so that another rule does not repeat a training.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from pipeline.artifacts import Artifact

if TYPE_CHECKING:
    from pipeline.arrays import Booleans


class Measurement(Artifact):
    """The numbers of one experiment: one arm with one seed, or one examination of a network."""

    CURVE_FILE: ClassVar[str] = "curve.json"
    WRONG_FILE: ClassVar[str] = "wrong.npy"
    MODEL_FILE: ClassVar[str] = "model.keras"

    name: str = Field(description="Name of the experiment.")
    numbers: dict[str, float] = Field(
        description="Measured numbers; errors are fractions in [0, 1], durations in seconds."
    )
    files: tuple[str, ...] = Field(default=(), description="Files beside the record.")
    sha256: str = Field(
        default="", description="SHA-256 over the files that are equal in each repetition."
    )

    def headline(self) -> str:
        """Return the first three numbers as text."""
        return ", ".join(f"{name} {value:.4g}" for name, value in list(self.numbers.items())[:3])

    def promised_files(self) -> tuple[Path, ...]:
        """Return the paths of the files beside the record."""
        return tuple(self.directory / name for name in self.files)

    def read_curve(self) -> list[dict[str, float]]:
        """Return the numbers of every epoch."""
        curve: list[dict[str, float]] = json.loads(
            (self.directory / self.CURVE_FILE).read_text(encoding="utf-8")
        )
        return curve

    def load_wrong(self) -> Booleans:
        """Return which test images were misclassified, bool [images] in stored order."""
        import numpy as np

        wrong: Booleans = np.load(self.directory / self.WRONG_FILE)
        return wrong


def hash_files(folder: Path, files: tuple[str, ...]) -> str:
    """Return the SHA-256 over the bytes of some files, in order."""
    digest = hashlib.sha256()
    for name in files:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()
