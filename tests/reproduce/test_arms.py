"""The arms of the experiments: settings and seeds."""

from __future__ import annotations

import pytest

from pipeline.errors import ConfigError
from pipeline.reproduce.arms import make_baseline_arm
from tests.claim_settings import reproduction_settings

CONFIG = reproduction_settings().config


@pytest.mark.parametrize("setting", [{"model.classes": 5}, {"evaluate.model": "x.keras"}])
def test_settings_that_are_not_of_a_training_are_refused(setting):
    with pytest.raises(ConfigError):
        reproduction_settings(settings=setting)


def test_rates_are_chosen_for_each_seed_by_one_that_is_not_measured():
    specs = [make_baseline_arm(CONFIG).make_tuning_spec(CONFIG, seed) for seed in range(3)]
    seeds = [spec["train"]["seed"] for spec in specs]
    assert seeds == [spec["model"]["seed"] for spec in specs]
    assert len(set(seeds)) == 3
    assert min(seeds) >= 100  # the most that --seeds takes
