"""Every network trains: one step under two replicas, dropout and all, is the step of one, and a
frozen part stays what it was."""

import subprocess
import sys

import pytest

# One process with two logical CPUs: a step on one of them, and the same step under a strategy over
# both.
STEP = """
import sys
import numpy as np
import tensorflow as tf
from pipeline.config.model import ModelConfig
from pipeline.config.train import TrainConfig
from pipeline.train.strategy import Devices, configure_runtime, make_devices
config = TrainConfig(
    epochs=1, global_batch_size=8, learning_rate=0.01, devices="cpu:2", crop="center", flip=False
)
configure_runtime(config)
sys.path.insert(0, sys.argv[1])
from test_loop import split
from pipeline.data.training_batches import make_training_batches
from pipeline.model.networks import build_network
from pipeline.train.state import prepare_state
from pipeline.train.step import compile_training
both = make_devices()
assert both.strategy.num_replicas_in_sync == 2
for arguments in sys.argv[2:]:
    settings = dict(word.split("=") for word in arguments.split(","))
    network = settings.pop("network")
    size = 32 if network in ("small", "cifar") else 64
    alexnet = {"width_multiplier": 0.25, **settings}
    model = ModelConfig(network=network, image_size=size, alexnet=alexnet)
    colors = {"channel_mean": (125,) * 3, "channel_std": (50,) * 3}
    images = split(16, side=model.image_size)
    after = []
    for where in (Devices(), both):
        load = lambda: build_network(model, num_classes=2, **colors)
        state = prepare_state(load, config, where)
        before = [variable.numpy() for variable in state.network.variables]
        batches = make_training_batches(images, config, image_size=model.image_size, epoch=0)
        train_steps = compile_training(state, images, config, where)
        iterator = where.distribute_batches(batches)
        train_steps(iterator, tf.constant(1, tf.int64), tf.constant(True))
        after.append([variable.numpy() for variable in state.network.variables])
    worst = max(float(np.abs(one - two).max()) for one, two in zip(*after))
    moved = max(float(np.abs(one - old).max()) for one, old in zip(after[0], before))
    print(arguments, worst, moved)
"""
CASES = [
    f"network={name}"
    for name in ("paper", "caffenet", "ungrouped", "single_tower", "owt", "small", "cifar")
]
CASES += ["network=paper,fidelity=paper", "network=small,normalization=batch"]


@pytest.mark.slow
def test_a_step_of_two_replicas_is_the_step_of_one():
    folder = str(__import__("pathlib").Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", STEP, folder, *CASES], check=True, capture_output=True, text=True
    )
    found = {
        arguments: (float(worst), float(moved))
        for arguments, worst, moved in (line.split() for line in done.stdout.splitlines())
    }
    assert list(found) == list(CASES)
    assert all(worst <= 1e-6 and moved > 10 * worst for worst, moved in found.values()), found
