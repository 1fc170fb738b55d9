"""Comparisons of two arms: effects, and the variance from the choice of images."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.reports.claim_records import ClaimQuestion
from pipeline.reproduce.comparison import (
    compare_errors,
    compare_gaps,
    estimate_image_std,
    find_crossing_epoch,
)
from pipeline.reproduce.measurement import Measurement

QUESTION = ClaimQuestion(
    quantity="an effect", unit="points", published=None, source="nowhere", null_effect=0.0
)


def made(folder, wrong, train_error=0.1):
    """Return a measurement of a training that got these test images wrong."""
    folder.mkdir(parents=True)
    np.save(folder / Measurement.WRONG_FILE, wrong)
    numbers = {
        "test_top1_error": float(wrong.mean()),
        "train_top1_error": train_error,
        "images": 1000.0,
        "learning_rate": 0.01,
    }
    return Measurement(directory=folder, name="training", numbers=numbers)


def test_a_goal_is_reached_between_epochs_by_a_straight_line():
    curve = [{"error": value} for value in (0.5, 0.3, 0.1)]
    assert find_crossing_epoch(curve, "error", 0.25) == pytest.approx(2.25)
    assert find_crossing_epoch(curve, "error", 0.3) == pytest.approx(2.0)
    assert find_crossing_epoch(curve, "error", 0.9) == 1.0
    assert find_crossing_epoch(curve, "error", 0.05) is None


def test_the_images_part_of_the_chance_is_that_of_a_mean_of_differences():
    rng = np.random.default_rng(0)
    first, second = ([rng.random(500) < fraction for _ in range(3)] for fraction in (0.3, 0.25))
    differences = np.mean(first, axis=0) - np.mean(second, axis=0)
    assert estimate_image_std(first, second) == pytest.approx(
        100 * differences.std(ddof=1) / math.sqrt(500)
    )


def test_arms_that_are_one_network_are_not_measured_instead_of_refuted(tmp_path):
    wrong = np.arange(100) < 30
    arms = [[made(tmp_path / arm / str(seed), wrong) for seed in range(3)] for arm in "ab"]
    assert compare_errors(QUESTION, *arms).verdict == "not measured"


def test_a_gap_is_test_error_less_training_error_and_knows_the_chance_of_both_sets_of_images(
    tmp_path,
):
    wrong = np.arange(100) < 30
    wide = [made(tmp_path / "wide" / str(seed), wrong, 0.1 + seed / 100) for seed in range(3)]
    narrow = [made(tmp_path / "narrow" / str(seed), wrong, 0.2) for seed in range(3)]
    found = compare_gaps(QUESTION, wide, narrow)
    assert found.effects == pytest.approx([10.0, 9.0, 8.0])
    assert found.image_std == pytest.approx(
        100 * math.sqrt((0.11 * 0.89 + 0.2 * 0.8) / 1000)
    )  # the test errors are the same
