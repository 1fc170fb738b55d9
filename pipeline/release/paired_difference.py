"""The difference of the errors of two models that answered the same images.

They are compared on the images that exactly one of them gets wrong; on these they disagree. The
difference, candidate less champion, gets the score interval of Tango 1998 ("Equivalence test and
confidence interval for the difference in proportions for the paired-sample design"), which holds
for few such images and for none at all. Pure NumPy and SciPy.
"""

from __future__ import annotations

import bisect
import math

from scipy import optimize, special, stats

SIGNIFICANCE = 0.05  # chance that a candidate passes that is worse by exactly the margin
POWER = 0.8  # chance that an equally good candidate should have to pass
# Images on which two models disagree: with fewer, chances jump from one count to the next and are
# summed count by count.
_FEW = 10


def compute_upper_bound(
    only_candidate: int, only_champion: int, images: int, significance: float = SIGNIFICANCE
) -> float:
    """Return the upper confidence bound of the candidate's error less the champion's, in [-1, 1].

    Args:
        only_candidate: images that only the candidate gets wrong.
        only_champion: images that only the champion gets wrong.
        images: all images, at least one.
        significance: chance of a difference above the bound, one-sided, in (0, 0.5).
    """
    difference, quantile = (only_candidate - only_champion) / images, _quantile(significance)
    if only_candidate == images:
        return 1.0

    def beyond(assumed: float) -> float:
        return (
            difference
            - assumed
            + quantile
            * math.sqrt(_variance(only_candidate, only_champion, images, assumed) / images)
        )

    # The observed difference is itself a root where its variance is zero, such as without an image
    # on which the two disagree.
    return float(optimize.brentq(beyond, difference + 1e-12, 1.0, xtol=1e-12))


def compute_lower_bound(
    only_candidate: int, only_champion: int, images: int, significance: float = SIGNIFICANCE
) -> float:
    """Return the lower confidence bound of the candidate's error less the champion's, in [-1, 1].

    The arguments are those of `compute_upper_bound`.
    """
    return -compute_upper_bound(only_champion, only_candidate, images, significance)


def _variance(only_candidate: float, only_champion: float, images: float, assumed: float) -> float:
    """Return one image's variance of the difference, if the true difference is `assumed`.

    Args:
        only_candidate: images, or a fraction of them, that only the candidate gets wrong.
        only_champion: the same of the champion.
        images: all images, or 1 where the others are fractions.
        assumed: the difference, in (-1, 1].
    """
    # Tango 1998: the likeliest fraction that only the champion gets wrong, if that of the candidate
    # is so much higher, is a quadratic's root.
    linear = (
        assumed * (2 * images - only_candidate + only_champion) - only_candidate - only_champion
    )
    constant = -only_champion * assumed * (1 - assumed)
    root = math.sqrt(max(0.0, linear**2 - 8 * images * constant))
    # Of two forms of the same root, the one that does not subtract like numbers.
    fraction = -2 * constant / (linear + root) if linear > 0 else (root - linear) / (4 * images)
    return max(0.0, 2 * fraction + assumed * (1 - assumed))


def _quantile(chance: float) -> float:
    """Return the number that a standard normal variable exceeds with a chance in (0, 1)."""
    return float(-special.ndtri(chance))


def count_images_needed(
    discordant: float, margin: float, power: float = POWER, significance: float = SIGNIFICANCE
) -> int:
    """Return the test images with which an equally good candidate passes `non_inferior`.

    The formula is Nam's of 1997. The simpler (z_significance + z_power)^2 / margin^2 uses the
    variance of equal models for that of the margin as well, and where two models disagree on few
    images its candidates pass in 53 instead of 80 of 100 cases.

    Args:
        discordant: fraction of the images on which the two disagree, in [0, 1].
        margin: by how much the candidate's error may be higher, in (0, 1).
        power: chance to pass, in [0.5, 1).
        significance: chance that a candidate passes that is worse by the margin, in (0, 0.5).
    """
    half = discordant / 2
    at_margin, equal = _variance(half, half, 1, margin), discordant
    reach = _quantile(significance) * math.sqrt(at_margin) + _quantile(1 - power) * math.sqrt(equal)
    images = math.floor((reach / margin) ** 2) + 1
    while (
        images * discordant < _FEW
        and _compute_pass_chance(discordant, margin, images, significance) < power
    ):
        images += math.ceil(images / 50)
    return images


def _compute_pass_chance(
    discordant: float, margin: float, images: int, significance: float
) -> float:
    """Return the chance that an equally good candidate passes, in [0, 1].

    It is summed over the numbers of images that one model alone gets wrong.
    """
    limit = min(images, 3 * _FEW)
    pairs = [(one, other) for one in range(limit + 1) for other in range(limit + 1 - one)]
    passing = [
        (one, other, images - one - other)
        for one, other in pairs
        if _is_below_margin(one, other, images, margin, significance)
    ]
    fractions = (discordant / 2, discordant / 2, 1 - discordant)
    return float(stats.multinomial.pmf(passing, images, fractions).sum()) if passing else 0.0


def _is_below_margin(
    only_candidate: int, only_champion: int, images: int, margin: float, significance: float
) -> bool:
    """Return whether `compute_upper_bound` is below a margin in (0, 1), without a search for it."""
    standard_error = math.sqrt(_variance(only_candidate, only_champion, images, margin) / images)
    return (only_candidate - only_champion) / images - margin + _quantile(
        significance
    ) * standard_error < 0


def count_images_to_win(
    discordant: float, lead: float, power: float = POWER, significance: float = SIGNIFICANCE
) -> int:
    """Return the test images with which a candidate passes `superior`.

    Args:
        discordant: as in `count_images_needed`.
        lead: by how much the candidate's error is lower, in (0, 1].
        power: as in `count_images_needed`.
        significance: as in `count_images_needed`.
    """
    min_discordant = max(discordant, lead)  # a lead takes so many images on which the two disagree
    return math.ceil(
        min_discordant * ((_quantile(significance) + _quantile(1 - power)) / lead) ** 2
    )


def find_decidable_margin(discordant: float, images: int) -> float:
    """Return the least margin for which so many images are enough, by `count_images_needed`.

    It is a multiple of 0.0001; 1 where none is.
    """
    return (
        1
        + bisect.bisect_left(
            range(1, 10_000),
            -images,
            key=lambda step: -count_images_needed(discordant, step / 10_000),
        )
    ) / 10_000
