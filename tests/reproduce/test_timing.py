"""Timings of trainings in processes of their own."""

from __future__ import annotations

import subprocess

import pytest

from pipeline.config.train import TrainConfig
from pipeline.errors import PipelineError
from pipeline.reproduce import timing
from tests.networks import model_config

SIZE = 16
TINY = {"image_size": SIZE, "width_multiplier": 0.02}


def test_noise_is_like_the_dataset(dataset):
    images = timing.make_noise_split(dataset, 10)
    assert images.pixels.shape == (10, SIZE + 4, SIZE + 4, 3)
    assert images.dataset.count_images("train") == len(images) == 10
    assert images.pixels.std() > 60


def test_one_timing_in_this_process(dataset):
    from pipeline.train.strategy import Devices

    config = TrainConfig(global_batch_size=4, color_noise=0.1, class_weights=True)
    speed = timing.measure_training_speed(
        model_config(**TINY), config, dataset, Devices(), steps=4, seconds=1.0
    )
    assert 1 < speed < 1e6


@pytest.mark.slow  # two processes that import TensorFlow
def test_each_timing_is_a_process_with_its_own_devices(dataset):
    model = model_config(**TINY).model_dump(mode="json")
    for devices, count in (("cpu", 1), ("cpu:2", 2)):
        settings = TrainConfig(global_batch_size=8, devices=devices).model_dump(mode="json")
        found = timing.time_in_process(
            {
                "networks": {"whole": model, "half": model},
                "settings": settings,
                "steps": 4,
                "seconds": 1.0,
            },
            dataset,
        )
        assert found["replicas"] == count
        assert set(found["images_per_second"]) == {"whole", "half"}
        assert all(1 < speed < 1e6 for speed in found["images_per_second"].values())
        assert "processor" in found["hardware"]


def test_a_timing_that_fails_says_why(monkeypatch, dataset):
    def run(arguments, **_):
        raise subprocess.CalledProcessError(
            1, arguments, stderr="Traceback\npipeline.errors.ConfigError: no such GPU\n"
        )

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(
        PipelineError, match=r"A timing on gpu:7 failed: pipeline\.errors\.ConfigError: no such GPU"
    ):
        timing.time_in_process({"settings": {"devices": "gpu:7"}}, dataset)


def test_timings_are_taken_by_turns(context, dataset, timings):
    networks = {"half": {}, "whole": {}}
    made = timing.time_on_one_and_two_devices(
        {"devices": ["cpu", "cpu:2"], "networks": networks, "settings": {}, "pairs": 3},
        dataset,
        context,
    )
    one, two = ("cpu", "half", "whole"), ("cpu:2", "whole")
    assert timings == [one, two, two, one, one, two]
    assert {name: made.numbers[name] for name in ("half/1", "one/1", "two/1")} == {
        "half/1": 400,
        "one/1": 400,
        "two/1": 300,
    }
    assert len(made.numbers) == 9
