"""Training in float16: the loss is scaled, and steps that overflow are left out on all replicas."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.train import TrainConfig
from pipeline.train import loop
from pipeline.train.state import prepare_state
from pipeline.train.strategy import Devices

sys.path.insert(0, str(Path(__file__).parent))
from test_loop import SIZE, make_training, network

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
    state = prepare_state(network, config, Devices())
    assert state.network.get_layer("conv1").compute_dtype == "float16"
    state.optimizer.dynamic_scale.assign(2.0**19)  # overflows at first
    weights = [variable.numpy() for variable in state.network.trainable_variables]
    epochs = loop.train_epochs(state, make_training(config, tmp_path / "c.npz"))
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
    again = prepare_state(network, config, Devices())
    assert [
        loop.remove_clock_readings(entry)
        for entry in loop.train_epochs(again, make_training(config, tmp_path / "c.npz"))
    ][1:] == [loop.remove_clock_readings(entry) for entry in rest]
    for one, two in zip(state.optimizer.variables, again.optimizer.variables, strict=True):
        assert np.array_equal(one.numpy(), two.numpy())
    exact = prepare_state(network, config.model_copy(update={"precision": "float32"}), Devices())
    first, *_ = loop.train_epochs(
        exact, make_training(config.model_copy(update={"precision": "float32"}), tmp_path / "d.npz")
    )
    mixed = prepare_state(network, config, Devices())
    half, *_ = loop.train_epochs(mixed, make_training(config, tmp_path / "e.npz"))
    assert half["train_loss"] == pytest.approx(first["train_loss"], rel=0.05)
    assert SIZE == 28
