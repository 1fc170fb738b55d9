"""How often the network is wrong on images that were made worse, and on the same ones as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.evaluate.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    Robustness,
    corrupted,
    mean_corruption_error,
)


@dataclass(frozen=True)
class Worn:
    """Top-1 errors, shares in [0, 1], on some images of a split.

    `clean`, and `errors` by corruption and severity.
    """

    images: int
    clean: float
    errors: dict[str, dict[int, float]]

    @property
    def mean(self) -> Robustness:
        """The mean over all corruptions, and its rise over the clean error."""
        return mean_corruption_error(self.clean, self.errors)


def wear(
    answers: Callable[[Any], Any],
    pixels: Any,
    labels: Any,
    positions: Any,
    *,
    seed: int,
    progress: Callable[[int, int], None],
) -> Worn:
    """Corrupt images in every way and count wrong answers.

    Args:
        answers: gives the first guess, int [images], for uint8 [images, size, size, 3] in [0, 255].
        pixels: uint8 [images, size, size, 3], cut as the network takes them.
        labels: int [images].
        positions: int [images], each image's place in its split: what is drawn for it depends on
            that and the seed.
        seed: of noise and places.
        progress: called with how many of the corruptions are done, and how many there are.
    """
    every = [(kind, severity) for kind in CORRUPTIONS for severity in SEVERITIES]
    errors: dict[str, dict[int, float]] = {kind: {} for kind in CORRUPTIONS}
    clean = float(np.mean(answers(pixels) != labels))
    for done, (kind, severity) in enumerate(every, start=1):
        worse = corrupted(pixels, kind, severity, seed=seed, positions=positions)
        errors[kind][severity] = float(np.mean(answers(worse) != labels))
        progress(done, len(every))
    return Worn(len(labels), clean, errors)


def specimens(pixels: Any, position: int, seed: int) -> dict[str, list[Any]]:
    """Return one image, uint8 [size, size, 3], as each corruption leaves it, by kind and rising severity."""
    place = np.array([position])
    return {
        kind: [
            corrupted(pixels[None], kind, severity, seed=seed, positions=place)[0]
            for severity in SEVERITIES
        ]
        for kind in CORRUPTIONS
    }
