"""Checkpoints are saved often, and take a small fraction of the time."""

from types import SimpleNamespace

import tensorflow as tf

from pipeline.config.train import TrainConfig
from pipeline.train import checkpoint_saver


def test_checkpoints_take_a_small_fraction_of_the_time(tmp_path, monkeypatch):
    """One that takes 0.1 s makes the next wait for 4 s, whatever `checkpoint_seconds` below that
    says."""
    now = [0.0]
    monkeypatch.setattr(checkpoint_saver.time, "monotonic", lambda: now[0])
    saved = []

    def save_to(_path):
        saved.append(now[0])
        now[0] += 0.1

    saver = checkpoint_saver.CheckpointSaver(
        SimpleNamespace(save_to=save_to, steps=tf.Variable(0)),
        tmp_path / "c.npz",
        TrainConfig(checkpoint_seconds=2),
    )
    for now[0] in (1.9, 2.0, 5.0, 6.0, 6.2):
        saver.save_if_due()
    assert saved == [2.0, 6.2]
