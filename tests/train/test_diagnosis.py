"""Messages of a training that failed, found with real lost numbers and real hanging pipes."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from pipeline.config.train import TrainConfig
from pipeline.data.input_stages import list_input_stages
from pipeline.data.loader import load_split
from pipeline.errors import HungError, TrainingDivergedError
from pipeline.train import diagnosis, loop
from pipeline.train.state import prepare_state
from pipeline.train.strategy import Devices

sys.path.insert(0, str(Path(__file__).parent))
from test_loop import make_training, network, split


def test_a_network_that_is_lost_at_its_first_step_is_told_from_one_that_went_too_fast(tmp_path):
    config = TrainConfig(epochs=1, global_batch_size=32)
    state = prepare_state(network, config, Devices())
    state.network.get_layer("fc8").bias.assign([np.inf, 0])
    with pytest.raises(
        TrainingDivergedError,
        match=r"epoch 1, at step 1 of 3\. .*first step, before any weight had changed.*input_scale",
    ):
        list(loop.train_epochs(state, make_training(config, tmp_path / "c")))
    state = prepare_state(network, config, Devices())
    state.network.get_layer("conv1").bias.assign(
        np.full(8, np.nan, np.float32)
    )  # which the first ReLU may turn into zeros
    with pytest.raises(
        TrainingDivergedError, match=r"(The loss became nan|A weight was not finite after epoch 1)"
    ):
        list(loop.train_epochs(state, make_training(config, tmp_path / "d")))
    state = SimpleNamespace(history=[], steps=tf.constant(7), network=network())
    assert "--set train.learning_rate=0.001" in diagnosis.diagnose_divergence(state, config, 0.01)
    half = TrainConfig(precision="float16")
    assert "has left float16's range" in diagnosis.diagnose_divergence(state, half, 0.01)
    state.history = [{"signal/update_ratio/conv1": 0.5, "signal/update_ratio/fc8": 0.02}]
    assert "asked for steps of 50% of its weights after epoch 1" in diagnosis.diagnose_divergence(
        state, config, 0.01
    )


def test_images_that_do_not_come_are_reported_with_the_stage_that_hangs(
    tmp_path, monkeypatch, prepared_jpegs
):
    """A shard on storage that does not answer any more: a pipe that nobody writes into."""
    monkeypatch.setattr(diagnosis, "_STAGE_SECONDS", 2.0)
    config = TrainConfig(global_batch_size=4, watchdog_seconds=2)
    images = load_split(prepared_jpegs, "train", in_memory=False)
    assert [
        name for name, attempt in list_input_stages(images, config, 16) if attempt() is None
    ] == []
    assert "what hangs is the step itself: its device." in str(
        diagnosis.diagnose_hang(images, config, 16, Devices())
    )
    shards = sorted(Path(prepared_jpegs.shards).glob("*train*tfrecord*"))
    assert shards
    for shard in shards:
        shard.unlink()
        os.mkfifo(shard)
    state = prepare_state(network, config, Devices())
    training = loop.Training(
        images, split(8, 1, "validation"), config, Devices(), tmp_path / "c.npz"
    )
    with pytest.raises(
        HungError, match=r"within 2 s.*what hangs is reading the shards in .*the same command again"
    ):
        next(loop.train_epochs(state, training))
    for shard in shards:  # let the readers go
        os.close(os.open(shard, os.O_RDWR | os.O_NONBLOCK))
