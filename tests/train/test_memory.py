"""How many images fit into memory, with real limits and in place of a GPU's refusal."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from pipeline.config.train import TrainConfig
from pipeline.errors import OutOfMemoryError
from pipeline.train import loop, memory
from pipeline.train.checkpoint import read_checkpoint
from pipeline.train.state import prepare_state
from pipeline.train.strategy import Devices

sys.path.insert(0, str(Path(__file__).parent))
from test_loop import make_training, network, split


def test_the_micro_batches_that_fit_are_the_largest_that_memory_allows(monkeypatch):
    """With a limit between what 32 and 64 images take, 128 images go in four micro-batches."""
    config = TrainConfig(global_batch_size=128, gradient_accumulation_steps="auto")
    state = prepare_state(network, config, Devices())
    monkeypatch.setattr(memory, "_reset_peak", lambda: None)
    peaks = iter([1000, 1100, 1300, 1700, 2500])
    monkeypatch.setattr(memory, "_read_peak", lambda: next(peaks))
    monkeypatch.setattr(memory, "usable_memory_bytes", lambda: 1700 / 0.85 - 1)
    assert memory.choose_accumulation_steps(state, split(128), config, Devices()) == 4
    peaks = iter([1000, 1100, 1300, 1700, 2500])
    monkeypatch.setattr(memory, "usable_memory_bytes", lambda: 10**6)
    assert memory.choose_accumulation_steps(state, split(128), config, Devices()) == 1


@pytest.mark.slow
def test_a_step_that_fits_is_taken_whole_and_is_the_same_training(tmp_path):
    whole, chosen = (
        TrainConfig(epochs=1, global_batch_size=32, gradient_accumulation_steps=steps)
        for steps in (1, "auto")
    )
    states = []
    for config in (whole, chosen):
        states.append(prepare_state(network, config, Devices()))
        list(
            loop.train_epochs(
                states[-1],
                make_training(config, tmp_path / f"{config.gradient_accumulation_steps}.npz"),
            )
        )
    assert states[1].gradient_accumulation_steps == 1
    for one, two in zip(states[0].network.variables, states[1].network.variables, strict=True):
        assert np.array_equal(one.numpy(), two.numpy())


def test_a_device_that_is_full_is_told_with_the_batch_that_fits_and_loses_nothing(
    tmp_path, monkeypatch
):
    """A GPU's refusal, which cannot be had here, in place of the second call; what fits is found by
    the real tries."""
    config = TrainConfig(epochs=2, global_batch_size=96, checkpoint_seconds=0)
    real, peaks = loop.compile_training, iter([1000, 1100, 1300, 1700, 2500])
    monkeypatch.setattr(memory, "_reset_peak", lambda: None)
    monkeypatch.setattr(memory, "_read_peak", lambda: next(peaks))
    monkeypatch.setattr(memory, "usable_memory_bytes", lambda: 1700 / 0.85 - 1)

    def full_at_the_second(*arguments):
        steps, calls = real(*arguments), iter([True])

        def train_steps(*given):
            if next(calls, False):
                return steps(*given)
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

        return train_steps

    monkeypatch.setattr(loop, "compile_training", full_at_the_second)
    wanted = (
        r"A step of 96 images a device does not fit into its memory; 32 images do\. Type"
        r" --auto-batch.*train.gradient_accumulation_steps=3, or .*size=32\."
    )
    with pytest.raises(OutOfMemoryError, match=wanted):
        list(
            loop.train_epochs(
                prepare_state(network, config, Devices()), make_training(config, tmp_path / "c.npz")
            )
        )
    assert len(read_checkpoint(tmp_path / "c.npz")[1]["history"]) == 1
