"""Networks that have little in common train alike: killed and resumed with the same bits, and two
replicas or two workers as one device, batch normalization, dropout and all."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.unlike_networks import UNLIKE_NETWORKS

# Fresh maps of one position make its gradients so steep that they multiply what was rounded.
_LOGIT_TOLERANCE = {"densenet": 1e-5}

# Two steps of AdamW or SGD with everything that has a state; the process kills itself in between.
TRAIN = """
import os, signal, sys
from pathlib import Path
from pipeline.config.train import TrainConfig
devices, folder, names, kill, more = sys.argv[1:6]
config = TrainConfig(
    epochs=2, global_batch_size=16, learning_rate=0.01, schedule="constant", devices=devices,
    checkpoint_seconds=0, checkpoint_steps=1, **eval(more),
)
from pipeline.train.strategy import configure_runtime, make_devices
configure_runtime(config, join=True)
import numpy as np
from pipeline.train import loop
from pipeline.train.state import prepare_state
from tests.train.test_loop import every_number, split
from tests.unlike_networks import SIDE, build_unlike_network
where, folder = make_devices(), Path(folder)
for name in names.split(","):
    def stop(done, *_):
        if kill == "kill" and done == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    state = prepare_state(lambda: build_unlike_network(name), config, where)
    state.rate_fractions = {"logits": 1.0, state.network.layers[2].name: 0.5}
    images = split(16, side=SIDE), split(16, 1, "validation", side=SIDE)
    training = loop.Training(*images, config, where, folder / f"{name}.npz", report_progress=stop)
    list(loop.train_epochs(state, training))
    assert int(state.steps.numpy()) == 2
    variables, best, history = every_number(state)
    pixels = images[1].pixels
    logits = [n(pixels, training=False).numpy() for n in (state.network, state.ema_network)]
    weights = {f"best{i}": value for i, value in enumerate(best)}
    if where.cluster.is_chief:
        np.savez(folder / f"{name}.end.npz", logits=logits, history=repr(history), **variables,
                 **weights)
"""


def start(folder, names, devices="cpu", kill="", more="{}", environment=None):
    """Start a process that trains networks, and leaves their numbers in a folder."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", TRAIN, devices, str(folder), ",".join(names), kill, more]
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        command,
        cwd=root,
        env=os.environ | {"PYTHONPATH": root} | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    _, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors[-4000:]


def read(folder, name):
    with np.load(folder / f"{name}.end.npz") as file:
        return dict(file)


@pytest.mark.slow
@pytest.mark.parametrize("name", UNLIKE_NETWORKS)
def test_killed_after_a_step_and_resumed_is_the_same_training(tmp_path, name):
    more = repr({"ema_decay": 0.9, "clip_norm": 1.0, "gradient_accumulation_steps": 2})
    finish(start(tmp_path / "whole", [name], more=more))
    killed = start(tmp_path / "killed", [name], kill="kill", more=more)
    killed.communicate(timeout=1200)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "killed" / f"{name}.npz").exists()
    finish(start(tmp_path / "killed", [name], more=more))
    one, two = (read(tmp_path / folder, name) for folder in ("whole", "killed"))
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_two_replicas_and_two_workers_train_as_one_device(tmp_path):
    """Logits and statistics after two steps: 1e-6."""
    addresses = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            addresses.append(f"127.0.0.1:{free.getsockname()[1]}")
    clusters = [
        {"TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": task})}
        for task in ({"type": "worker", "index": 0}, {"type": "worker", "index": 1})
    ]
    names = UNLIKE_NETWORKS
    finish(start(tmp_path / "one", names))
    finish(start(tmp_path / "replicas", names, devices="cpu:2"))
    workers = [start(tmp_path / "workers", names, environment=cluster) for cluster in clusters]
    for worker in workers:
        finish(worker)
    for name in names:
        one, *others = (read(tmp_path / where, name) for where in ("one", "replicas", "workers"))
        for other in others:
            assert one.keys() == other.keys()
            close = {"rtol": 1e-6, "atol": _LOGIT_TOLERANCE.get(name, 1e-6)}
            np.testing.assert_allclose(one["logits"], other["logits"], **close, err_msg=name)
            for key in (key for key in one if key.startswith("model/")):
                np.testing.assert_allclose(one[key], other[key], atol=2e-6, err_msg=name + key)
        assert not np.array_equal(one["logits"][0], one["logits"][0][::-1])


@pytest.mark.slow
def test_micro_batches_on_two_replicas_exchange_their_statistics(tmp_path):
    """Within a loop of TensorFlow they could not."""
    more = repr({"gradient_accumulation_steps": 2})
    finish(start(tmp_path / "micro", ["handmade"], devices="cpu:2", more=more))
    assert np.isfinite(read(tmp_path / "micro", "handmade")["logits"]).all()
