import json
import os
import platform
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from pipeline.evaluate.speed import (
    BatchSpeed,
    SpeedMeasurement,
    measure_resident_memory,
    measure_speed,
)

MEGABYTE = 10**6
READ_TEXT, WRITE_TEXT = Path.read_text, Path.write_text


class Sleeper:
    """A network that takes a known time, after a first answer that takes longer; remembers what it
    was asked."""

    input_shape = (None, 4, 4, 3)

    def __init__(self, seconds, first=0.0):
        self.seconds, self.first = seconds, first
        self.traced, self.answered = [], []

    def __call__(self, pixels, training):
        assert training is False
        self.traced.append((tuple(pixels.shape), pixels.dtype))

        def answer(values):
            time.sleep(self.seconds + (0 if self.answered else self.first))
            self.answered.append(values.numpy())
            return np.zeros((len(values), 2), np.float32)

        return tf.py_function(answer, [pixels], tf.float32)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.keras"
    path.write_bytes(b"x" * 12_345)
    return path


def test_latencies_are_those_of_the_calls(file):
    found = measure_speed(Sleeper(0.01), file, seconds=0.19, batches=(1, 3))
    assert [item.batch for item in found.batches] == [1, 3]
    for item in found.batches:
        assert item.calls == 20  # which take longer than was asked for
        assert 0.01 <= item.p50_seconds < 0.05
        assert item.p50_seconds <= item.p95_seconds <= item.p99_seconds
        assert item.batch / item.p99_seconds < item.images_per_second <= item.batch / 0.01


def test_a_quick_network_is_called_as_long_as_was_asked(file):
    (item,) = measure_speed(Sleeper(0), file, seconds=0.3, batches=(2,)).batches
    assert item.calls > 20
    assert 0.299 < 2 * item.calls / item.images_per_second < 3


def test_a_slow_network_is_given_ten_times_as_long_and_no_more(file):
    network = Sleeper(0.1)
    (item,) = measure_speed(network, file, seconds=0.05, batches=(1,)).batches
    assert 1 <= item.calls <= 5
    assert len(network.answered) - item.calls <= 4


def test_a_network_slower_than_all_patience_is_timed_once(file):
    network = Sleeper(0.3)
    (item,) = measure_speed(network, file, seconds=0.01, batches=(1,)).batches
    assert item.calls == 1
    assert item.p50_seconds == item.p99_seconds >= 0.3
    assert len(network.answered) == 2


def test_the_first_calls_are_not_counted(file):
    network = Sleeper(0.001, first=0.5)
    (item,) = measure_speed(network, file, seconds=0.2, batches=(1,)).batches
    assert len(network.answered) == item.calls + 4
    assert item.p99_seconds < 0.5


def test_each_size_is_one_program_on_the_same_noise(file):
    network = Sleeper(0)
    measure_speed(network, file, seconds=0.01, batches=(1, 8, 1))
    assert network.traced == [
        ((8, 4, 4, 3), tf.uint8),
        ((1, 4, 4, 3), tf.uint8),
    ]  # the largest first, each once
    eights = [pixels for pixels in network.answered if len(pixels) == 8]
    assert all(np.array_equal(pixels, eights[0]) for pixels in eights)
    assert eights[0].min() < 20
    assert eights[0].max() > 235


def test_a_real_network_with_its_file_and_memory(make_model, tmp_path):
    path = tmp_path / "model.keras"
    network = make_model(classes=7)
    network.save(path)
    found = measure_speed(network, path, seconds=0.05, batches=(1, 512))
    assert found.model_bytes == len(path.read_bytes())
    assert found.processors == len(os.sched_getaffinity(0))
    # The largest tensor is that of conv1: 512 images, 8 x 8 places, 8 filters, float32.
    assert found.tensor_bytes is None or 512 * 8 * 8 * 8 * 4 <= found.tensor_bytes < 100 * MEGABYTE
    assert found.resident_bytes is None or 0 <= found.resident_bytes < 1000 * MEGABYTE


def test_json_keeps_everything(file):
    found = measure_speed(Sleeper(0), file, seconds=0.01, batches=(1, 2))
    document = json.loads(json.dumps(asdict(found), allow_nan=False))
    document["batches"] = tuple(BatchSpeed(**item) for item in document["batches"])
    assert SpeedMeasurement(**document) == found
    assert document["model_bytes"] == 12_345


def test_resident_memory_counts_what_was_freed_again_and_forgets_earlier_peaks():
    np.ones(300 * MEGABYTE, np.uint8)
    result, added = measure_resident_memory(lambda: len(np.ones(100 * MEGABYTE, np.uint8)))
    assert result == 100 * MEGABYTE
    assert added is None or 95 * MEGABYTE < added < 150 * MEGABYTE


def test_memory_is_unknown_where_the_kernel_forbids_the_question(monkeypatch):
    def refused(path, *args, **kwargs):
        if str(path).startswith("/proc"):
            raise PermissionError
        return WRITE_TEXT(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", refused)
    assert measure_resident_memory(lambda: "done") == ("done", None)


@pytest.mark.parametrize("counted", [ValueError, 0])
def test_memory_of_tensors_is_unknown_where_the_allocator_does_not_count(
    monkeypatch, file, counted
):
    def info(device):
        if counted is ValueError:
            raise ValueError
        return {"current": 0, "peak": 0}

    monkeypatch.setattr(tf.config.experimental, "get_memory_info", info)
    assert measure_speed(Sleeper(0), file, seconds=0.01, batches=(1,)).tensor_bytes is None


def test_device_is_named_by_the_processor_or_the_gpu(monkeypatch, file):
    def name():
        return measure_speed(Sleeper(0), file, seconds=0.001, batches=(1,)).device

    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [])
    for text, expected in (
        ("flags: x\nmodel name\t: Fast: One\nmodel name\t: Other\n", "Fast: One"),
        ("CPU part : 0\n", platform.machine()),
    ):
        monkeypatch.setattr(
            Path,
            "read_text",
            lambda path, text=text, **_: text if path == Path("/proc/cpuinfo") else READ_TEXT(path),
        )
        assert name() == f"CPU: {expected}"
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["one", "two"])
    monkeypatch.setattr(
        tf.config.experimental, "get_device_details", lambda gpu: {"device_name": f"GPU {gpu}"}
    )
    assert name() == "GPU one"
