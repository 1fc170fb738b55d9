"""What training says when something goes wrong, found with real hanging pipes and real limits of
memory."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from pipeline.config.train import TrainConfig
from pipeline.data.input_stages import list_input_stages
from pipeline.data.loader import load_split
from pipeline.errors import HungError, OutOfMemoryError, TrainingDivergedError
from pipeline.train import loop, trouble
from pipeline.train.checkpoint import read_checkpoint
from pipeline.train.state import prepare
from pipeline.train.strategy import Devices

sys.path.insert(0, str(Path(__file__).parent))
from test_loop import SIZE, given, network, split


def test_a_network_that_is_lost_at_its_first_step_is_told_from_one_that_went_too_fast(tmp_path):
    config = TrainConfig(epochs=1, global_batch_size=32)
    state = prepare(network, config, Devices())
    state.network.get_layer("fc8").bias.assign([np.inf, 0])
    with pytest.raises(
        TrainingDivergedError,
        match=r"epoch 1, at step 1 of 3\. .*first step, before any weight had changed.*input_scale",
    ):
        list(loop.fit(state, given(config, tmp_path / "c")))
    state = prepare(network, config, Devices())
    state.network.get_layer("conv1").bias.assign(
        np.full(8, np.nan, np.float32)
    )  # which the first ReLU may turn into zeros
    with pytest.raises(
        TrainingDivergedError, match=r"(The loss became nan|A weight was not finite after epoch 1)"
    ):
        list(loop.fit(state, given(config, tmp_path / "d")))
    state = SimpleNamespace(history=[], steps=tf.constant(7), network=network())
    assert "--set train.learning_rate=0.001" in trouble.likely_cause(state, config, 0.01)
    half = TrainConfig(precision="float16")
    assert "has left float16's range" in trouble.likely_cause(state, half, 0.01)
    state.history = [{"signal/update_ratio/conv1": 0.5, "signal/update_ratio/fc8": 0.02}]
    assert "asked for steps of 50% of its weights after epoch 1" in trouble.likely_cause(
        state, config, 0.01
    )


def test_images_that_do_not_come_are_reported_with_the_stage_that_hangs(
    tmp_path, monkeypatch, prepared_jpegs
):
    """A shard on storage that does not answer any more: a pipe that nobody writes into."""
    monkeypatch.setattr(trouble, "_STAGE_SECONDS", 2.0)
    config = TrainConfig(global_batch_size=4, watchdog_seconds=2)
    images = load_split(prepared_jpegs, "train", in_memory=False)
    assert [
        name for name, attempt in list_input_stages(images, config, 16) if attempt() is None
    ] == []
    assert "what hangs is the step itself: its device." in trouble.what_hangs(
        images, config, 16, Devices()
    )
    shards = sorted(Path(prepared_jpegs.shards).glob("*train*tfrecord*"))
    assert shards
    for shard in shards:
        shard.unlink()
        os.mkfifo(shard)
    state = prepare(network, config, Devices())
    training = loop.Training(
        images, split(8, 1, "validation"), config, Devices(), tmp_path / "c.npz"
    )
    with pytest.raises(
        HungError, match=r"for 2 s.*What hangs is reading the shards in .*the same command again"
    ):
        next(loop.fit(state, training))
    for shard in shards:  # let the readers go
        os.close(os.open(shard, os.O_RDWR | os.O_NONBLOCK))


def test_the_parts_that_fit_are_the_largest_that_memory_allows(monkeypatch):
    """With a limit between what 32 and 64 images take, 128 images go in four parts."""
    config = TrainConfig(global_batch_size=128, gradient_accumulation_steps="auto")
    state = prepare(network, config, Devices())
    monkeypatch.setattr(trouble, "_forget_peak", lambda: None)
    peaks = iter([1000, 1100, 1300, 1700, 2500])
    monkeypatch.setattr(trouble, "_peak", lambda: next(peaks))
    monkeypatch.setattr(trouble, "memory_bytes", lambda: 1700 / 0.85 - 1)
    assert trouble.fitting_parts(state, split(128), config, Devices()) == 4
    peaks = iter([1000, 1100, 1300, 1700, 2500])
    monkeypatch.setattr(trouble, "memory_bytes", lambda: 10**6)
    assert trouble.fitting_parts(state, split(128), config, Devices()) == 1


@pytest.mark.slow
def test_a_step_that_fits_is_taken_whole_and_is_the_same_training(tmp_path):
    whole, chosen = (
        TrainConfig(epochs=1, global_batch_size=32, gradient_accumulation_steps=parts)
        for parts in (1, "auto")
    )
    states = []
    for config in (whole, chosen):
        states.append(prepare(network, config, Devices()))
        list(
            loop.fit(
                states[-1], given(config, tmp_path / f"{config.gradient_accumulation_steps}.npz")
            )
        )
    assert states[1].parts == 1
    for one, two in zip(states[0].network.variables, states[1].network.variables, strict=True):
        assert np.array_equal(one.numpy(), two.numpy())


def test_a_device_that_is_full_is_told_with_the_batch_that_fits_and_loses_nothing(
    tmp_path, monkeypatch
):
    """A GPU's refusal, which cannot be had here, in place of the second call; what fits is found by
    the real tries."""
    config = TrainConfig(epochs=2, global_batch_size=96, checkpoint_seconds=0)
    real, peaks = loop.compiled_training, iter([1000, 1100, 1300, 1700, 2500])
    monkeypatch.setattr(trouble, "_forget_peak", lambda: None)
    monkeypatch.setattr(trouble, "_peak", lambda: next(peaks))
    monkeypatch.setattr(trouble, "memory_bytes", lambda: 1700 / 0.85 - 1)

    def full_at_the_second(*words):
        steps, calls = real(*words), iter([True])

        def train_steps(*given):
            if next(calls, False):
                return steps(*given)
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

        return train_steps

    monkeypatch.setattr(loop, "compiled_training", full_at_the_second)
    wanted = (
        r"A step of 96 images a device does not fit into its memory; 32 images do\. Type"
        r" --auto-batch.*train.gradient_accumulation_steps=3, or .*size=32\."
    )
    with pytest.raises(OutOfMemoryError, match=wanted):
        list(loop.fit(prepare(network, config, Devices()), given(config, tmp_path / "c.npz")))
    assert len(read_checkpoint(tmp_path / "c.npz")[1]["history"]) == 1


OVERFLOW = """
import numpy as np
import tensorflow as tf
from pipeline.config.train import TrainConfig
from pipeline.train.strategy import configure_runtime, make_devices
config = TrainConfig(precision="float16", devices="cpu:2", global_batch_size=2, momentum=0.9)
configure_runtime(config)
import keras
from pipeline.train.optimizer import apply_update, make_optimizer
devices = make_devices()
with devices.scope():
    variables = [keras.Variable(np.ones((2, 2), np.float32))]
    optimizer = make_optimizer(config, variables)
def step(gradient):
    apply_update(optimizer, variables, [gradient], config, 2)
@tf.function
def both(values):
    devices.strategy.run(step, args=(values,))
for first, second in ((1.0, np.inf), (1024.0, 1024.0)):
    values = devices.strategy.experimental_distribute_values_from_function(
        lambda context: tf.fill((2, 2), (first, second)[context.replica_id_in_sync_group])
    )
    both(values)
    weights = devices.strategy.experimental_local_results(variables[0].value)
    print(float(optimizer.dynamic_scale.numpy()), *np.unique([value.numpy() for value in weights]))
"""


@pytest.mark.slow
def test_in_float16_an_overflow_on_one_replica_leaves_the_step_out_on_all():
    done = subprocess.run(
        [sys.executable, "-c", OVERFLOW], capture_output=True, text=True, timeout=100, check=True
    )
    (scale, *same), (scale2, *moved) = (
        [float(word) for word in line.split()] for line in done.stdout.splitlines()
    )
    assert (scale, same) == (2.0**14, [1.0])
    assert scale2 == 2.0**14
    assert moved == pytest.approx([1 - 0.01 * (2048 / 2**14 + 5e-4)], rel=1e-6)


def test_float16_scales_the_loss_leaves_out_what_overflows_and_goes_on_bit_for_bit(tmp_path):
    config = TrainConfig(
        epochs=2,
        global_batch_size=32,
        learning_rate=0.02,
        precision="float16",
        clip_norm=5,
        checkpoint_seconds=0,
    )
    state = prepare(network, config, Devices())
    assert state.network.get_layer("conv1").compute_dtype == "float16"
    state.optimizer.dynamic_scale.assign(2.0**19)  # overflows at first
    weights = [variable.numpy() for variable in state.network.trainable_variables]
    epochs = loop.fit(state, given(config, tmp_path / "c.npz"))
    next(epochs)
    assert float(state.optimizer.dynamic_scale) < 2.0**19
    assert all(
        np.isfinite(variable.numpy()).all() for variable in state.network.trainable_variables
    )
    rest = list(epochs)
    assert any(
        not np.array_equal(one, two.numpy())
        for one, two in zip(weights, state.network.trainable_variables, strict=True)
    )
    again = prepare(network, config, Devices())
    assert [
        loop.without_clock(entry) for entry in loop.fit(again, given(config, tmp_path / "c.npz"))
    ][1:] == [loop.without_clock(entry) for entry in rest]
    for one, two in zip(state.optimizer.variables, again.optimizer.variables, strict=True):
        assert np.array_equal(one.numpy(), two.numpy())
    exact = prepare(network, config.model_copy(update={"precision": "float32"}), Devices())
    first, *_ = loop.fit(
        exact, given(config.model_copy(update={"precision": "float32"}), tmp_path / "d.npz")
    )
    mixed = prepare(network, config, Devices())
    half, *_ = loop.fit(mixed, given(config, tmp_path / "e.npz"))
    assert half["train_loss"] == pytest.approx(first["train_loss"], rel=0.05)
    assert SIZE == 28
