"""Robustness: the error on corrupted images, and on the same images as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.evaluate.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    MeanCorruptionError,
    compute_mean_corruption_error,
    corrupt_images,
)

if TYPE_CHECKING:
    from pipeline.arrays import Image, Images, Integers, Labels


@dataclass(frozen=True)
class CorruptionResult:
    """Top-1 errors, fractions in [0, 1], on some images of a split.

    `clean` is that of the images as they are, `errors` those by corruption and severity.
    """

    images: int
    clean: float
    errors: dict[str, dict[int, float]]

    @property
    def mean(self) -> MeanCorruptionError:
        """The mean over all corruptions, and its rise over the clean error."""
        return compute_mean_corruption_error(self.clean, self.errors)


def measure_robustness(
    guess: Callable[[Images], Integers],
    pixels: Images,
    labels: Labels,
    positions: Integers,
    *,
    seed: int,
    progress: Callable[[int, int], None],
) -> CorruptionResult:
    """Corrupt images in every way and return the errors on them.

    Args:
        guess: gives the first guess, int [images], for uint8 [images, height, width, 3] in
            [0, 255].
        pixels: uint8 [images, height, width, 3], cut as the network takes them.
        labels: int [images].
        positions: int [images], each image's index in its split: what is drawn for it depends on
            that and the seed.
        seed: of noise and of where images are occluded.
        progress: called with how many of the corruptions are done, and how many there are.
    """
    every = [(kind, severity) for kind in CORRUPTIONS for severity in SEVERITIES]
    errors: dict[str, dict[int, float]] = {kind: {} for kind in CORRUPTIONS}
    clean = float(np.mean(guess(pixels) != labels))
    for done, (kind, severity) in enumerate(every, start=1):
        corrupted = corrupt_images(pixels, kind, severity, seed=seed, positions=positions)
        errors[kind][severity] = float(np.mean(guess(corrupted) != labels))
        progress(done, len(every))
    return CorruptionResult(len(labels), clean, errors)


def corrupt_in_every_way(pixels: Image, position: int, seed: int) -> dict[str, list[Image]]:
    """Return one image, uint8 [height, width, 3], by corruption and rising severity.

    Args:
        pixels: the image.
        position: its index in its split.
        seed: that of `measure_robustness` makes the image that was scored there.
    """
    positions = np.array([position])
    return {
        kind: [
            corrupt_images(pixels[None], kind, severity, seed=seed, positions=positions)[0]
            for severity in SEVERITIES
        ]
        for kind in CORRUPTIONS
    }
