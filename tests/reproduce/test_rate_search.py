"""The search for a learning rate: which rates are tried, and when it ends."""

from __future__ import annotations

import math

import pytest

from pipeline.reproduce.rate_search import compute_rate, find_next_step


def searched(score) -> list[int]:
    """Return the rates, in steps, that the search tries for a function of the step."""
    scores: dict[int, float] = {}
    while (step := find_next_step(scores)) is not None and len(scores) < 12:
        scores[step] = score(step)
    return list(scores)


@pytest.mark.parametrize("best", [-4, -1, 0, 1, 3])
def test_the_search_for_a_rate_ends_with_the_best_between_two_worse_ones(best):
    tried = searched(lambda step: abs(step - best))
    assert {best - 1, best, best + 1} <= set(tried)
    assert len(tried) <= 3 + abs(best)


def test_rates_that_diverge_are_worse_than_any_other_and_lower_ones_are_tried():
    assert searched(lambda step: math.inf if step > -3 else 1.0)[-1] < -3


def test_rates_are_half_a_decade_apart():
    spec = {"train": {"learning_rate": 0.01}}
    assert [compute_rate(spec, step) for step in (-2, -1, 0, 1, 2)] == [
        0.001,
        0.0032,
        0.01,
        0.032,
        0.1,
    ]
