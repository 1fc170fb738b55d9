"""Intervals: how far a number counted on a split may lie from that of all such images.

Wilson's interval for the two errors; for every other number the bootstrap, in one pass. Pure NumPy.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipeline.arrays import Floats, Integers

BOOTSTRAP_SAMPLES = 1000  # the ends of a 95 % interval lie 25 samples from the ends of their range
_NORMAL_QUANTILE = 1.959963984540054  # of 0.975: 95 % of a normal distribution lie within +- this


def draw_bootstrap_weights(rng: np.random.Generator, images: int, samples: int) -> Floats:
    """Return how often each image counts in each sample, float64 [images, 1 + samples].

    Once in column 0, the split itself, then Poisson(1) times.

    The bootstrap draws as many images as there are, with replacement; that each is drawn a
    Poisson(1) number of times is its limit for many images and can be counted in one pass (Hanley
    and MacGibbon 2006). Drawn to a 65,536th.

    Args:
        rng: generator of the draws.
        images: number of images.
        samples: an even number, so that the generator's 32-bit outputs are used up and the images
            may be counted in several calls.
    """
    weights = np.ones((images, 1 + samples))
    weights[:, 1:] = _POISSON[rng.integers(0, 1 << 16, (images, samples), np.uint16)]
    return weights


def _tabulate_poisson() -> Integers:
    """Return the Poisson(1) count of each 16-bit number, uint8 [65536]."""
    upper = np.cumsum([math.exp(-1) / math.factorial(count) for count in range(9)])
    return np.searchsorted(upper, (np.arange(1 << 16) + 0.5) / (1 << 16)).astype(np.uint8)


_POISSON = _tabulate_poisson()


def compute_bootstrap_interval(value: float, samples: Floats) -> tuple[float, float]:
    """Return the 95 % interval of a number: quantiles of its bootstrap samples, shifted to it.

    The shift is the value less the mean of the samples. A sample lacks a third of the images, so
    precision and F1 of classes with few are lower there than on the split, all of them.

    Args:
        value: the number on the split.
        samples: float [samples], the number on each bootstrap sample; without any, the interval is
            the value alone.
    """
    if len(samples) == 0:
        return float(value), float(value)
    low, high = np.quantile(samples, (0.025, 0.975)) + (value - samples.mean())
    return float(low), float(high)


def compute_wilson_interval(errors: int, images: int) -> tuple[float, float]:
    """Return the 95 % interval, within [0, 1], of the error on images like these (Wilson 1927).

    Unlike fraction +- 1.96 standard deviations, and unlike the bootstrap, it holds for few images
    and for no errors at all.
    """
    fraction, z2 = errors / images, _NORMAL_QUANTILE**2
    center = fraction + z2 / (2 * images)
    reach = _NORMAL_QUANTILE * math.sqrt(fraction * (1 - fraction) / images + z2 / (4 * images**2))
    low, high = (center - reach) / (1 + z2 / images), (center + reach) / (1 + z2 / images)
    return (0.0 if errors == 0 else low, 1.0 if errors == images else high)
