"""The claim about two GPUs: its networks, batches and verdicts."""

from __future__ import annotations

import pytest

from pipeline.config.train import TrainConfig
from pipeline.reproduce.claims import replicas
from tests.networks import model_config


def test_half_of_the_network():
    assert (
        replicas.halve_network(model_config(network="paper", image_size=224)).network
        == "single_tower"
    )
    assert replicas.halve_network(model_config(width_multiplier=0.5)) == model_config(
        width_multiplier=0.25
    )


def test_a_batch_that_two_devices_can_share():
    assert (
        replicas.fit_batch_to_devices(2, TrainConfig(global_batch_size=101)).global_batch_size
        == 100
    )
    assert replicas.fit_batch_to_devices(2, TrainConfig(global_batch_size=1)).global_batch_size == 2
    assert (
        replicas.fit_batch_to_devices(
            2, TrainConfig(global_batch_size=130, mixup=0.2)
        ).global_batch_size
        == 128
    )


def speeds(**pairs):
    return {
        f"{arm}/{pair}": value for arm, values in pairs.items() for pair, value in enumerate(values)
    }


@pytest.mark.parametrize(
    ("gpus", "devices", "verdict"),
    [
        ([], ["cpu", "cpu:2"], "not measured"),
        (["1"], ["cpu", "cpu:2"], "not measured"),
        (["0", "2", "3"], ["gpu:0", "gpu:0,2"], "reproduced"),
    ],
)
def test_two_replicas_on_one_processor_decide_nothing(
    monkeypatch, tmp_path, gpus, devices, verdict, make_run
):
    monkeypatch.setattr(replicas, "list_visible_gpus", lambda _: gpus)
    run = make_run(tmp_path, speeds(half=(100, 101, 102), one=(50, 51, 50), two=(110, 112, 111)))
    concluded = replicas.conclude_replicas(run, {})
    assert concluded.findings[0].verdict == verdict
    assert run.asked[0][1]["devices"] == devices
    assert [row.values["images_per_second"][0] for row in concluded.rows] == [100, 50, 110]
    assert "2.21 times" in concluded.notes[0]
    assert "1.10 times" in concluded.notes[0]
    assert (tmp_path / concluded.figures[0].file).exists()


def test_one_tower_has_no_half_on_each_device(monkeypatch, tmp_path, make_run):
    monkeypatch.setattr(replicas, "list_visible_gpus", lambda _: ["0", "1"])
    assert (
        "has no two towers"
        in replicas.conclude_replicas(make_run(tmp_path, model={"network": "cifar"}), {})
        .findings[0]
        .why
    )
