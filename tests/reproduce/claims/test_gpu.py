"""The claim about a GPU: its verdicts with and without one."""

from __future__ import annotations

import pytest

from pipeline.reproduce import timing
from pipeline.reproduce.claims import gpu


def test_the_processor_is_timed_where_there_is_no_gpu(
    monkeypatch, tmp_path, context, dataset, timings, make_run
):
    monkeypatch.setattr(gpu, "list_visible_gpus", lambda _: [])
    run = make_run(tmp_path, {"cpu/0": 16.0})
    concluded = gpu.conclude_gpu(run, {})
    assert concluded.findings[0].verdict == "not measured"
    assert "No GPU on this machine" in concluded.findings[0].why
    assert concluded.rows[0].values == {"images_per_second": (16.0,), "seconds_per_step": (2.0,)}
    assert "78 days on `cpu`" in concluded.notes[0]
    (_, spec), = run.asked  # fmt: skip
    assert (
        spec["settings"]["global_batch_size"],
        spec["networks"]["paper"]["image_size"],
        spec["pairs"],
    ) == (32, 224, 1)
    assert timing.time_on_each_device(spec, dataset, context).numbers == {"cpu/0": 100.0}


def test_a_gpu_is_compared_with_the_processor(
    monkeypatch, tmp_path, context, dataset, timings, make_run
):
    monkeypatch.setattr(gpu, "list_visible_gpus", lambda _: ["1"])
    run = make_run(
        tmp_path,
        {
            f"{device}/{pair}": speed + pair
            for device, speed in (("cpu", 20.0), ("gpu:1", 2000.0))
            for pair in range(3)
        },
    )
    concluded = gpu.conclude_gpu(run, {})
    assert concluded.findings[0].verdict == "reproduced"
    assert concluded.findings[0].effects[0] == pytest.approx(100)
    (_, spec), = run.asked  # fmt: skip
    assert spec["settings"]["global_batch_size"] == 128
    assert list(timing.time_on_each_device(spec, dataset, context).numbers) == [
        "cpu/0",
        "gpu:1/0",
        "gpu:1/1",
        "cpu/1",
        "cpu/2",
        "gpu:1/2",
    ]
