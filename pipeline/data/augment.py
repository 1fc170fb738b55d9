"""What training changes in the colours of its pictures; where they are cut is the loader's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf

ColorMode = Literal["code", "paper"]


def principal_colors(covariance: Sequence[Sequence[float]]) -> tuple[Any, Any]:
    """Return standard deviations float64 [3], the largest first, and their directions float64 [3, 3] in RGB, one a row.

    Of a direction and its opposite, that is taken whose largest part is positive.

    Args:
        covariance: of RGB over the training pixels, 0-255 squared.
    """
    variances, directions = np.linalg.eigh(np.asarray(covariance, np.float64))
    rows = directions.T[::-1]
    signs = np.sign(rows[np.arange(3), np.abs(rows).argmax(1)])
    return np.sqrt(np.maximum(variances[::-1], 0)), rows * signs[:, None]


def color_shifts(count: int, covariance: Sequence[Sequence[float]], *, seed: int, epoch: int, noise: float, mode: ColorMode) -> Any:
    """Return what is added to every pixel of each picture, float32 [count, 3] in levels of 0-255 (paper, section 4.1).

    Each principal direction of the training colours is taken a normally distributed number of times. How far one time is, paper and code
    of 2012 say differently: the published code means a standard deviation, the paper a variance, which makes sense on the 0-1 scale only.

    Args:
        count: pictures, in the order of the epoch.
        covariance: of RGB over the training pixels, 0-255 squared.
        seed: of the training.
        epoch: counted from 0.
        noise: standard deviation of the normal distribution; 0.1 in 2012.
        mode: `code` or `paper`.
    """
    deviations, directions = principal_colors(covariance)
    lengths = deviations if mode == "code" else (deviations / 255) ** 2 * 255
    # An own stream: the loader's cuts of the same epoch use 0 to 3.
    times = np.random.default_rng([seed, epoch, 4]).normal(0, noise, (count, 3))
    return (times * lengths @ directions).astype(np.float32)


def color_scale(noise: float, mode: ColorMode) -> float:
    """Return what deviations from the mean colour are multiplied with: the code of 2012 takes back the spread that noise adds."""
    return 1 / (1 + noise) if mode == "code" else 1.0


def shift_colors(pixels: Any, shifts: Any, mean: Sequence[float], scale: float) -> Any:
    """Return (pixels - mean + shifts) * scale + mean, rounded and cut to 0-255.

    Args:
        pixels: uint8 [batch, height, width, 3] in [0, 255].
        shifts: float32 [batch, 3] in levels.
        mean: RGB mean of the training pixels, 0-255.
        scale: as `color_scale` says.

    Returns:
        uint8 [batch, height, width, 3] in [0, 255].
    """
    offsets = shifts * scale + tf.constant([(1 - scale) * value + 0.5 for value in mean], tf.float32)
    # Rows of width x 3 numbers: adding a long row is several times faster than adding three numbers everywhere.
    shape = tf.shape(pixels)
    rows = tf.cast(tf.reshape(pixels, (shape[0], shape[1], -1)), tf.float32)
    moved = rows * scale + tf.tile(offsets, (1, shape[2]))[:, tf.newaxis]
    return tf.reshape(tf.cast(tf.clip_by_value(moved, 0, 255), tf.uint8), shape)  # the half was added above, so cutting off rounds
