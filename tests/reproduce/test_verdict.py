"""The rule that makes verdicts: what it says of planted effects, and how often it is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pipeline.reports.claim_records import ClaimQuestion
from pipeline.reproduce.verdict import compute_mean_interval, judge_effects, make_unmeasured_finding

POINTS = ClaimQuestion(
    quantity="error without less that with",
    unit="points",
    published=1.4,
    source="paper",
    null_effect=0.0,
)
QUALITATIVE = POINTS.model_copy(update={"published": None})
TIMES = ClaimQuestion(
    quantity="epochs with tanh over those with ReLU",
    unit="times",
    published=6.0,
    source="figure 1",
    null_effect=2.0,
)
# Of shapes unlike each other: the t interval is exact for the first alone.
NOISES = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "uniform": lambda rng, shape: rng.uniform(-1.7, 1.7, shape),
    "heavy tails": lambda rng, shape: rng.standard_t(4, shape),
}


def test_the_interval_is_students():
    low, high = compute_mean_interval([1.0, 2.0, 4.0])
    half = stats.t.ppf(0.975, 2) * np.std([1, 2, 4], ddof=1) / math.sqrt(3)
    assert (low, high) == pytest.approx((7 / 3 - half, 7 / 3 + half))


def test_the_choice_of_test_images_widens_the_interval_as_variances_add():
    alone, both = (
        compute_mean_interval([1.0, 2.0, 4.0]),
        compute_mean_interval([1.0, 2.0, 4.0], 0.5),
    )
    assert (both[1] - both[0]) / 2 == pytest.approx(
        math.hypot((alone[1] - alone[0]) / 2, 0.5 * stats.norm.ppf(0.975))
    )


def test_equal_seeds_do_not_hide_the_chance_of_the_images():
    assert judge_effects(POINTS, [1.0, 1.0, 1.0], image_std=0.6).verdict == "not decidable"


@pytest.mark.parametrize(
    ("question", "effects", "verdict"),
    [
        (POINTS, [1.2, 1.4, 1.5], "reproduced"),
        (POINTS, [0.3, 0.35, 0.4], "reproduced"),
        (POINTS, [-0.1, 0.0, 0.1], "not reproduced"),
        (POINTS, [-1.2, -1.4, -1.5], "not reproduced"),
        (POINTS, [-1.0, 0.5, 2.0], "not decidable"),
        (POINTS, [1.4], "not decidable"),
        (POINTS, [], "not measured"),
        (QUALITATIVE, [5.0, 6.0, 7.0], "reproduced"),
        (QUALITATIVE, [-5.0, -6.0, -7.0], "not reproduced"),
        (QUALITATIVE, [-0.1, 0.0, 0.1], "not decidable"),
        (TIMES, [5.0, 6.0, 7.0], "reproduced"),
        (TIMES, [1.0, 1.1, 1.2], "not reproduced"),
        (TIMES, [1.0, 4.0, 9.0], "not decidable"),
    ],
)
def test_verdicts(question, effects, verdict):
    assert judge_effects(question, effects).verdict == verdict


def test_the_mean_of_ratios_is_geometric():
    found = judge_effects(TIMES, [2.0, 8.0])
    assert found.ours == pytest.approx(4.0)
    assert found.interval[0] * found.interval[1] == pytest.approx(16.0)


def test_a_smaller_effect_than_published_is_reproduced_and_said_to_be_smaller():
    assert "though less than published" in judge_effects(POINTS, [0.3, 0.35, 0.4]).why
    assert "though less than published" not in judge_effects(POINTS, [1.2, 1.4, 1.6]).why


def test_a_lower_bound_is_never_a_refutation():
    assert judge_effects(TIMES, [1.0, 1.1, 1.2], is_lower_bound=True).verdict == "not decidable"
    found = judge_effects(TIMES, [4.0, 4.1, 4.2], is_lower_bound=True)
    assert found.verdict == "reproduced"
    assert found.why.startswith("at least 4.1 times")
    assert "less than published" not in found.why


def test_an_upper_bound_is_never_a_confirmation_and_may_refute():
    assert (
        judge_effects(TIMES, [4.0, 4.1, 4.2], is_upper_bound=True).verdict == "not reproduced"
    )  # 6 is ruled out
    assert judge_effects(TIMES, [9.0, 9.1, 9.2], is_upper_bound=True).verdict == "not decidable"
    assert judge_effects(TIMES, [0.4, 0.5, 0.6], is_upper_bound=True).why.startswith(
        "at most 0.493 times"
    )


def test_an_effect_of_the_other_sign_is_told():
    assert "in the other direction" in judge_effects(POINTS, [-1.2, -1.4, -1.5]).why
    assert "in the other direction" not in judge_effects(POINTS, [-0.1, 0.0, 0.1]).why


def test_how_many_seeds_would_do_is_told_and_they_would():
    effects = [-1.0, 0.5, 2.0]
    why = judge_effects(POINTS, effects).why
    seeds = int(why.partition("about ")[2].partition(" seeds")[0])
    rng = np.random.default_rng(0)
    samples = rng.normal(1.4, np.std(effects, ddof=1), (2000, seeds))
    found = np.mean([compute_mean_interval(sample)[0] > 0 for sample in samples])
    assert 0.7 < found < 0.9  # four times in five


def test_where_the_test_images_are_too_few_no_number_of_seeds_is_named():
    assert "more test images would" in judge_effects(POINTS, [1.0, 1.05, 0.95], image_std=0.8).why
    why = judge_effects(POINTS, [-1.0, 0.5, 2.0], image_std=0.3).why
    assert int(why.partition("about ")[2].partition(" seeds")[0]) > int(
        judge_effects(POINTS, [-1.0, 0.5, 2.0]).why.partition("about ")[2].partition(" seeds")[0]
    )


def test_what_was_not_measured_says_why_and_has_no_numbers():
    found = make_unmeasured_finding(POINTS, "no GPU here")
    assert (found.verdict, found.why, found.ours, found.interval, found.seeds) == (
        "not measured",
        "no GPU here",
        None,
        None,
        0,
    )


def count_fraction(verdict: str, question: ClaimQuestion, effects) -> float:
    """Return how often the rule gives a verdict, over rows of effects."""
    return float(np.mean([judge_effects(question, row).verdict == verdict for row in effects]))


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("question", [POINTS, QUALITATIVE], ids=["published", "qualitative"])
def test_a_planted_null_is_reproduced_in_at_most_one_of_twenty(question, noise, seeds):
    effects = NOISES[noise](np.random.default_rng(1), (1500, seeds))
    assert count_fraction("reproduced", question, effects) <= 0.05


@pytest.mark.parametrize("noise", NOISES)
def test_a_planted_ratio_of_the_least_that_counts_is_reproduced_in_at_most_one_of_twenty(noise):
    ratios = TIMES.null_effect * np.exp(0.3 * NOISES[noise](np.random.default_rng(2), (1500, 3)))
    assert count_fraction("reproduced", TIMES, ratios) <= 0.05


@pytest.mark.parametrize("noise", NOISES)
def test_a_planted_effect_of_the_published_size_is_refuted_in_at_most_one_of_twenty(noise):
    effects = POINTS.published + NOISES[noise](np.random.default_rng(3), (1500, 3))
    assert count_fraction("not reproduced", POINTS, effects) <= 0.05


def test_a_clear_effect_is_found():
    effects = POINTS.published + 0.2 * np.random.default_rng(4).normal(size=(500, 3))
    assert count_fraction("reproduced", POINTS, effects) > 0.95


def test_networks_that_differ_by_chance_alone_are_not_told_apart_by_their_images():
    """The whole way, from the wrong answers of two arms that are equally good on all the images
    there could be."""
    from pipeline.reproduce.comparison import estimate_image_std

    rng, trials, seeds, images, reproduced = np.random.default_rng(5), 300, 6, 300, np.zeros(2)
    for _ in range(trials):
        hard = rng.beta(0.4, 1.0, images)
        tilt = rng.normal(0, 0.4, images)  # on a single image the arms do differ, whatever the seed
        first = [rng.random(images) < np.clip(hard + tilt, 0, 1) for _ in range(seeds)]
        second = [rng.random(images) < np.clip(hard - tilt, 0, 1) for _ in range(seeds)]
        effects = [
            100 * (one.mean() - other.mean()) for one, other in zip(first, second, strict=True)
        ]
        image_stds = (estimate_image_std(first, second), 0.0)
        reproduced += [
            judge_effects(QUALITATIVE, effects, image_std=image_std).verdict == "reproduced"
            for image_std in image_stds
        ]
    assert reproduced[0] / trials <= 0.05
    assert reproduced[1] / trials > 0.1  # seeds alone would have said so of one in four


def test_the_luck_in_choosing_a_rate_is_in_the_interval_when_each_seed_chooses_anew():
    """Two arms that are equal, each trained at the rate that a noisy short training preferred,
    which costs points where it is wrong."""
    rng, trials, seeds, costs, noise = (
        np.random.default_rng(6),
        1500,
        3,
        np.array([2.0, 0.0, 2.0]),
        0.05,
    )
    short = np.array(
        [1.02, 1.0, 1.02]
    )  # what the short trainings differ by is less than their noise

    def trained(shape):
        chosen = (short + noise * rng.normal(size=(*shape, 3))).argmin(axis=-1)
        return costs[chosen]

    anew = (
        trained((trials, seeds)) - trained((trials, seeds)) + 0.5 * rng.normal(size=(trials, seeds))
    )
    once = (trained((trials, 1)) - trained((trials, 1))) + 0.5 * rng.normal(size=(trials, seeds))
    assert count_fraction("reproduced", QUALITATIVE, anew) <= 0.05
    assert (
        count_fraction("reproduced", QUALITATIVE, once) > 0.1
    )  # one choice for all seeds would look like an effect
