"""The score interval of paired differences, and the number of test images that it needs."""

import numpy as np
import pytest
from scipy import optimize, stats

from pipeline.release.paired_difference import (
    compute_lower_bound,
    compute_upper_bound,
    count_images_needed,
    count_images_to_win,
    find_decidable_margin,
)


@pytest.mark.parametrize(
    ("only_candidate", "only_champion", "images", "level", "interval", "digits"),
    [
        (9, 3, 32, 0.025, (-0.027, 0.390), 3),  # Tango 1998, both of his examples
        (0, 1, 44, 0.05, (-0.096, 0.037), 3),
        (16, 8, 86, 0.025, (-0.020, 0.207), 3),  # Agresti and Min 2005
        (1, 7, 21, 0.025, (-0.517, -0.026), 3),  # Fagerland, Lydersen and Laake 2014
        (3, 1, 14, 0.025, (-0.1670, 0.4327), 4),  # Tang, Ling, Ling and Tian 2010
        (25, 2, 102, 0.025, (0.139, 0.321), 3),  # Chang and others 2024
        (7, 0, 14, 0.025, (0.177034, 0.732008), 6),  # `scoreci.mp` of the R package PropCIs
        (28, 25, 618, 0.05, (-0.0148, 0.0247), 4),
    ],
)
def test_the_interval_equals_published_ones(
    only_candidate, only_champion, images, level, interval, digits
):
    found = [
        bound(only_candidate, only_champion, images, level)
        for bound in (compute_lower_bound, compute_upper_bound)
    ]
    assert found == pytest.approx(interval, abs=0.51 * 10**-digits)


@pytest.mark.parametrize(
    "counts",
    [(5, 4, 384), (0, 3, 50), (3, 0, 50), (0, 0, 30), (40, 2, 60), (2, 58, 60), (300, 310, 20_000)],
)
def test_a_bound_is_where_the_score_test_begins_to_reject(counts):
    """With the likeliest shares under the assumed difference looked for, not solved for."""
    only_candidate, only_champion, images = counts

    def statistic(assumed):
        def unlikeliness(share):
            shares = np.array([share + assumed, share, 1 - 2 * share - assumed])
            cells = np.array(
                [only_candidate, only_champion, images - only_candidate - only_champion]
            )
            return -np.sum(cells[cells > 0] * np.log(np.maximum(shares[cells > 0], 1e-300)))

        bounds = (max(0.0, -assumed), (1 - assumed) / 2)
        share = optimize.minimize_scalar(
            unlikeliness, bounds=bounds, method="bounded", options={"xatol": 1e-12}
        ).x
        return (only_candidate - only_champion - images * assumed) / np.sqrt(
            images * (2 * share + assumed - assumed**2)
        )

    for level in (0.05, 0.005):
        quantile = stats.norm.isf(level)
        if only_candidate < images:
            assert statistic(compute_upper_bound(*counts, level)) == pytest.approx(
                -quantile, rel=2e-3
            )
        assert statistic(compute_lower_bound(*counts, level)) == pytest.approx(quantile, rel=2e-3)


def test_models_that_change_places_change_the_sign():
    for counts in [(5, 4, 384), (0, 3, 50), (0, 0, 10), (7, 0, 7)]:
        swapped = (counts[1], counts[0], counts[2])
        assert compute_upper_bound(*counts) == -compute_lower_bound(*swapped)
        assert (
            compute_lower_bound(*counts)
            <= (counts[0] - counts[1]) / counts[2]
            <= compute_upper_bound(*counts)
        )


def test_without_an_image_on_which_they_part_the_bound_is_known():
    square = stats.norm.isf(0.05) ** 2
    for images in (1, 10, 384, 10**6):
        assert compute_upper_bound(0, 0, images) == pytest.approx(
            square / (images + square), rel=1e-6
        )
    assert compute_upper_bound(9, 0, 9) == 1.0
    assert compute_upper_bound(0, 9, 9) == pytest.approx((square - 9) / (square + 9))


def test_the_bound_rises_with_each_image_that_the_candidate_alone_gets_wrong():
    bounds = [compute_upper_bound(count, 3, 40) for count in range(38)]
    assert (np.diff(bounds) > 0).all()


def chance_that_truth_is_above(images, only_candidate, only_champion):
    """Return how often the bound lies below the true difference, summed over every count there can
    be."""
    pairs = [(one, other) for one in range(images + 1) for other in range(images + 1 - one)]
    chances = stats.multinomial.pmf(
        [(*pair, images - sum(pair)) for pair in pairs],
        images,
        (only_candidate, only_champion, 1 - only_candidate - only_champion),
    )
    missed = [compute_upper_bound(*pair, images) < only_candidate - only_champion for pair in pairs]
    return float(chances[missed].sum())


@pytest.mark.parametrize(
    ("images", "shares"),
    [(60, (0.1, 0.1)), (60, (0.3, 0.2)), (60, (0.15, 0.05)), (90, (0.06, 0.02))],
)
def test_the_bound_is_below_the_truth_in_5_of_100_cases(images, shares):
    assert 0.03 <= chance_that_truth_is_above(images, *shares) <= 0.057


@pytest.mark.slow
def test_the_bound_is_below_the_truth_in_6_of_100_cases_at_most():
    for images in (30, 100, 160):
        for share in (0.02, 0.05, 0.1, 0.3, 0.6):
            for worse in (0, share / 4, share / 2, share / 1.1):
                found = chance_that_truth_is_above(images, (share + worse) / 2, (share - worse) / 2)
                assert found <= 0.06, (images, share, worse)


def chance_to_pass(images, share, margin):
    """Return how often an equally good candidate passes, by Tango's bound at every likely pair of
    counts."""
    most = int(stats.binom.ppf(1 - 1e-6, images, share)) + 1
    pairs = [(one, other) for one in range(most + 1) for other in range(most + 1 - one)]
    chances = stats.multinomial.pmf(
        [(*pair, images - sum(pair)) for pair in pairs], images, (share / 2, share / 2, 1 - share)
    )
    return sum(
        chance
        for chance, pair in zip(chances, pairs, strict=True)
        if chance > 1e-9 and compute_upper_bound(*pair, images) < margin
    )


@pytest.mark.parametrize("share", [0.0005, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.02])
def test_so_many_images_let_an_equally_good_candidate_pass_in_80_of_100_cases(share):
    images = count_images_needed(share, 0.01)
    assert 0.8 <= chance_to_pass(images, share, 0.01) < 0.99
    assert (
        images < 700 or chance_to_pass(int(0.9 * images), share, 0.01) < 0.8
    )  # nor are they far too many


def test_with_many_images_the_number_is_that_of_the_simple_formula():
    quantiles = (stats.norm.isf(0.05) + stats.norm.isf(0.2)) ** 2
    assert count_images_needed(0.4, 0.01) == pytest.approx(0.4 * quantiles / 0.01**2, rel=1e-3)
    assert count_images_needed(0.4, 0.01, power=0.9) == pytest.approx(
        0.4 * (stats.norm.isf(0.05) + stats.norm.isf(0.1)) ** 2 / 1e-4, rel=1e-3
    )
    assert count_images_to_win(0.4, 0.02) == pytest.approx(0.4 * quantiles / 0.02**2, rel=1e-3)


@pytest.mark.parametrize("margin", [0.002, 0.01, 0.1])
def test_models_that_answer_alike_need_images_too(margin):
    least = count_images_needed(0.0, margin)
    assert compute_upper_bound(0, 0, least) < margin <= compute_upper_bound(0, 0, least - 1)
    assert count_images_needed(margin / 100, margin) >= least


@pytest.mark.parametrize(
    ("share", "images"), [(0.0, 384), (0.01, 384), (0.05, 2000), (0.3, 10_000)]
)
def test_the_margin_that_can_be_decided_is_the_least_that_needs_no_more_images(share, images):
    margin = find_decidable_margin(share, images)
    assert (
        count_images_needed(share, margin) <= images < count_images_needed(share, margin - 0.0001)
    )


def test_one_image_decides_no_margin():
    assert find_decidable_margin(1.0, 1) == 1.0
