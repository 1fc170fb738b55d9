"""The claims that change one setting: nothing else differs between their arms."""

from __future__ import annotations

import pytest

from pipeline.errors import ConfigError
from pipeline.reproduce.arms import make_baseline_arm
from pipeline.reproduce.catalog import select_experiments
from tests.claim_settings import reproduction_settings

CONFIG = reproduction_settings().config


def find_experiment(name):
    (experiment,) = select_experiments([name])
    return experiment


def test_color_noise_is_taken_away_from_a_recipe_that_has_it():
    for recipe_noise, control, value in ((0.0, "color-noise", 0.1), (0.1, "no-color-noise", 0.0)):
        config = reproduction_settings(settings={"train.color_noise": recipe_noise}).config
        arm = find_experiment("color").list_arms(config)[1]
        assert (arm.name, arm.settings) == (control, {"train.color_noise": value})


@pytest.mark.parametrize(
    ("claim", "changed"),
    [
        ("dropout", {"model.dropout"}),
        ("lrn", {"model.alexnet.normalization"}),
        ("pooling", {"model.alexnet.overlapping_pooling"}),
        ("color", {"train.color_noise"}),
        ("depth", {"model.alexnet.remove_layer"}),
        ("crops", {"train.crop", "train.flip"}),
    ],
)
def test_an_ablation_changes_one_thing_and_has_the_same_images_in_the_same_order(
    claim, changed, find_differences
):
    whole, control = find_experiment(claim).list_arms(CONFIG)
    assert whole == make_baseline_arm(CONFIG)
    for seed in (0, 1):
        one, other = whole.make_spec(CONFIG, seed), control.make_spec(CONFIG, seed)
        assert find_differences(one, other) == changed
        assert one["train"]["seed"] == other["train"]["seed"] == seed


def test_settings_that_leave_nothing_to_change_are_refused():
    config = reproduction_settings(
        settings={"model.network": "cifar", "model.image_size": 32}
    ).config
    with pytest.raises(
        ConfigError,
        match=(
            r"The arm no-conv4 cannot be made of these settings: Network cifar has no layer conv4"
        ),
    ):
        find_experiment("depth").list_arms(config)[1].make_spec(config, 0)
