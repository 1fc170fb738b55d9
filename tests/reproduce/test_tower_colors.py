"""How colorful the first filters of a network's towers are."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.model.weights import save_model
from pipeline.reports.claim_records import ClaimQuestion
from pipeline.reproduce import tower_colors
from pipeline.reproduce.measurement import Measurement
from pipeline.reproduce.verdict import judge_effects


def filters(*colors, seed=0):
    """Filters of a random shape, each of one color: float [5, 5, 3, filters]."""
    shapes = np.random.default_rng(seed).normal(size=(5, 5, 1, len(colors)))
    return shapes * np.array(colors, float).T[np.newaxis, np.newaxis]


def test_gray_is_blind_to_color_and_opponents_are_blind_to_brightness():
    kernel = filters((1, 1, 1), (-2, -2, -2), (1, -1, 0), (-1, -1, 2), (1, 0, 0), (0, 0, 0))
    assert tower_colors.compute_colorfulness(kernel) == pytest.approx([0, 0, 1, 1, 2 / 3, 0])


def test_random_filters_are_two_thirds_color():
    assert tower_colors.compute_colorfulness(
        np.random.default_rng(0).normal(size=(5, 5, 3, 2000))
    ).mean() == pytest.approx(2 / 3, abs=0.01)


def test_a_planted_tower_is_found():
    rng = np.random.default_rng(1)
    kernel = filters(*[(1, 1, 1)] * 12, *[(1, -1, 0)] * 12) + 0.3 * rng.normal(size=(5, 5, 3, 24))
    found = tower_colors.compare_halves(
        tower_colors.compute_colorfulness(kernel), splits=2000, seed=0
    )
    assert found.effect > 0.4
    assert found.p < 0.001
    mixed = (
        tower_colors.compute_colorfulness(kernel).reshape(2, 12).T.ravel()
    )  # the same filters, every second one in each half
    assert tower_colors.compare_halves(mixed, splits=2000, seed=0).p > 0.05


def test_which_tower_is_the_gray_one_does_not_matter():
    values = tower_colors.compute_colorfulness(filters(*[(1, 1, 1)] * 4, *[(1, -1, 0)] * 4))
    assert tower_colors.compare_halves(values, splits=500, seed=0) == tower_colors.compare_halves(
        values[::-1], splits=500, seed=0
    )


def test_chance_gives_no_effect_and_is_seldom_called_one():
    rng = np.random.default_rng(2)
    found = [
        tower_colors.compare_halves(rng.beta(8, 4, 24), splits=200, seed=0) for _ in range(900)
    ]
    effects = np.array([one.effect for one in found])
    assert abs(effects.mean()) < 3 * effects.std() / 30
    assert 0.03 < np.mean([one.p < 0.05 for one in found]) < 0.07
    question = ClaimQuestion(
        quantity="x", unit="fraction", published=None, source="x", null_effect=0.0
    )
    verdicts = [judge_effects(question, three).verdict for three in effects.reshape(300, 3)]
    assert verdicts.count("reproduced") <= 0.025 * 300 + 5


def test_the_filters_and_what_training_changed_in_them_are_looked_at(
    context, dataset, tmp_path, network
):
    model = network()
    layer = model.get_layer("conv1")
    first = np.asarray(layer.kernel)
    half = first.shape[-1] // 2
    grown = filters(*[(1, 1, 1)] * half, *[(1, -1, 0)] * half)
    layer.set_weights([first + grown, layer.get_weights()[1]])
    (tmp_path / "trained").mkdir()
    save_model(model, tmp_path / "trained" / Measurement.MODEL_FILE)
    spec = {"splits": 500, "split_seed": 0, "filters": True}
    made = tower_colors.measure_tower_colors(spec, dataset, context, tmp_path / "trained")
    values = np.load(context.directory / "colorfulness.npy")
    assert values[0] == pytest.approx(tower_colors.compute_colorfulness(first + grown))
    assert values[1] == pytest.approx([0] * half + [1] * half, abs=1e-5)
    assert made.numbers["changes/difference"] == pytest.approx(1, abs=1e-5)
    assert made.numbers["moved"] == pytest.approx(
        np.linalg.norm(grown) / np.linalg.norm(first), rel=1e-5
    )
    assert [made.numbers["changes/tower 1"], made.numbers["changes/tower 2"]] == pytest.approx(
        [0, 1], abs=1e-5
    )
    assert set(made.files) == {"colorfulness.npy", "report_data.json", "report_data.npz"}
    assert all(path.exists() for path in made.promised_files())
    assert [len(tower) for tower in tower_colors.load_tower_colors(made)] == [half, half]
