"""The figures of the claims, from numbers that were made up."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.reports import claim_feature_figures, claim_figures
from pipeline.reports.claim_records import ArmRow


def falling(epochs, rate=0.1):
    return [float(0.9 * np.exp(-rate * epoch)) for epoch in range(1, epochs + 1)]


def entries(errors):
    return [
        {"epoch": epoch, "train_top1_error": error, "validation_top1_error": error / 2 + 0.1}
        for epoch, error in enumerate(errors, 1)
    ]


GAMMA = np.random.default_rng(0).gamma(2, 0.1, 48)
DRAWINGS = {
    "epochs to the goal": lambda path: claim_figures.draw_epochs_to_goal(
        {"ReLU $x$": [falling(4, 0.4), falling(5, 0.3)], "tanh": [falling(30, 0.02)] * 3},
        0.25,
        path,
    ),
    "epochs of one": lambda path: claim_figures.draw_epochs_to_goal(
        {"שלום": [[0.2]], "empty": [[]], "none": []}, 0.25, path
    ),
    "curves": lambda path: claim_figures.draw_curves(
        {"a": [entries(falling(9)), entries(falling(4))], "b" * 99: [entries(falling(1))]}, path
    ),
    "no validation": lambda path: claim_figures.draw_curves(
        {"a": [[{"epoch": 1, "train_top1_error": 0.5}]], "b": []}, path
    ),
    "depths": lambda path: claim_figures.draw_depths(
        {"ReLU": {2: [1, 1], 4: [1, 0.9, 0.8, 0.9]}, "tanh": {4: [0.0, 0.0, 1e-30, 1]}},
        {"ReLU": {2: [0.1, 0.2], 4: [0.3]}},
        0.9,
        path,
    ),
    "no gradients": lambda path: claim_figures.draw_depths(
        {"tanh": {3: [0.0, 0.0, 0.0]}, "none": {}}, {"tanh": {3: []}}, 0.9, path
    ),
    "sizes": lambda path: claim_figures.draw_sizes(
        {50_000: [0.1, 0.2, 0.1], 1000: [0.5], 10_000: [0.3, 0.31]}, path
    ),
    "one size": lambda path: claim_figures.draw_sizes({100: [0.5]}, path),
    "probes": lambda path: claim_feature_figures.draw_probes(
        {"trained": {"conv1": [0.5, 0.4], "a" * 80: [0.2]}, "fresh": {"conv1": [0.6]}}, path
    ),
    "towers": lambda path: claim_feature_figures.draw_towers(
        [(GAMMA, 3 * GAMMA), ([0.1], [])], path
    ),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_drawing_has_a_sane_size_and_is_the_same_again(name, tmp_path, check_drawing):
    DRAWINGS[name](tmp_path / "a.png")
    DRAWINGS[name](tmp_path / "b.png")
    check_drawing(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("arms", [1, 3, 9])
@pytest.mark.parametrize("measure", ["test_top1_error", "epochs", "absent"])
def test_arms_are_drawn_with_one_seed_or_several(arms, measure, tmp_path, check_drawing):
    rows = [
        ArmRow(
            arm="$x$ " * (1 + 9 * index),
            values={"test_top1_error": (0.1,) * (index + 1), "epochs": (1.0, 2e4)},
        )
        for index in range(arms)
    ]
    claim_figures.draw_arms(rows, measure, tmp_path / "arms.png")
    check_drawing(tmp_path / "arms.png")


def test_the_median_of_the_seeds_ends_at_the_goal():
    seeds = [[0.5, 0.2], [0.6, 0.4, 0.3, 0.24], [0.7, 0.5, 0.26]]
    assert claim_figures._compute_median_curve(seeds, 0.25) == pytest.approx([0.6, 0.4, 0.26, 0.24])
    assert (
        claim_figures._describe_goal_epochs(seeds, 0.25)
        == "25 % after 2 to 4 epochs, 1 of 3 seeds never"
    )
    assert claim_figures._describe_goal_epochs([[0.2]], 0.25) == "25 % after 1 epoch"
    assert claim_figures._describe_goal_epochs([[0.5, 0.4]], 0.25) == "not at 25 % after 2 epochs"
