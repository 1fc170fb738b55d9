"""The loop itself: its steps by hand, resuming bit for bit, two replicas as one, and divergence."""

import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.config import ModelConfig, TrainConfig
from pipeline.data.loader import Images, training_batches
from pipeline.errors import ConfigError, TrainingDivergedError
from pipeline.model.alexnet import build_network
from pipeline.train import loop

SIDE, SIZE = 32, 28
COVARIANCE = ((4000.0, 3500.0, 3000.0), (3500.0, 3900.0, 3400.0), (3000.0, 3400.0, 4500.0))


def split(count, seed=0, name="train", side=SIDE):
    """Pictures of two classes that can be told apart: bright and dark, with noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count).astype(np.int32)
    pixels = np.clip(rng.normal(90 + 70 * labels[:, None, None, None], 30, (count, side, side, 3)), 0, 255).astype(np.uint8)
    counts = {name: tuple(np.bincount(labels))}
    dataset = SimpleNamespace(
        short_side=side, images=lambda _split: count, channel_mean=(125, 125, 125), channel_covariance=COVARIANCE, class_counts=counts
    )
    return Images(dataset, name, labels, tuple(str(i) for i in range(count)), pixels)


def network(dropout=0.5):
    config = ModelConfig(image_size=SIZE, width_multiplier=0.1, dropout=dropout)
    return build_network(config, num_classes=2, channel_mean=(125, 125, 125), channel_std=(50, 50, 50))


def train(config, checkpoint, dropout=0.5, stop_after=None, strategy=None):
    """Train on 96 pictures; return the state at the end, or after some epochs as if the process had died there."""
    state = loop.prepare(lambda: network(dropout), config, strategy)
    epochs = loop.fit(state, split(96), split(40, 1, "validation"), config, strategy, checkpoint, lambda *_: None)
    for epoch in epochs:
        if epoch["epoch"] == stop_after:
            break
    return state


def every_number(state):
    clock = {"seconds", "images_per_second"}
    history = [{name: value for name, value in entry.items() if name not in clock} for entry in state.history]
    return {name: variable.numpy() for name, variable in state.variables().items()}, state.best, history


def assert_same_bits(one, other):
    (variables, best, history), (variables2, best2, history2) = every_number(one), every_number(other)
    assert history == history2
    assert variables.keys() == variables2.keys()
    assert all(np.array_equal(variables[name], variables2[name]) for name in variables)
    assert all(np.array_equal(a, b) for a, b in zip(best, best2, strict=True))


def test_three_steps_are_the_rule_of_2012(tmp_path):
    """v <- 0.9 v - rate (gradient + decay w); w <- w + v; decay on kernels alone; computed here with plain pieces, one step an epoch."""
    config = TrainConfig(epochs=3, global_batch_size=96, learning_rate=0.02, weight_decay=0.01, schedule="cosine", flip=False)
    plain = network(dropout=0)
    velocities = [np.zeros(variable.shape, np.float32) for variable in plain.trainable_variables]
    losses = []
    for epoch in range(3):
        batch = next(iter(training_batches(split(96), config, image_size=SIZE, epoch=epoch)))
        images, labels = batch["pixels"], batch["labels"]
        with tf.GradientTape() as tape:
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, plain(images, training=True))
        losses.append(float(loss))
        rate = 0.02 * 0.5 * (1 + np.cos(np.pi * epoch / 3))
        for i, (variable, gradient) in enumerate(
            zip(plain.trainable_variables, tape.gradient(loss, plain.trainable_variables), strict=True)
        ):
            decay = 0.01 * variable.numpy() if len(variable.shape) > 1 else 0.0
            velocities[i] = 0.9 * velocities[i] - rate * (gradient.numpy() + decay)
            variable.assign(variable.numpy() + velocities[i])
    state = train(config, tmp_path / "c.npz", dropout=0)
    assert [entry["train_loss"] for entry in state.history] == pytest.approx(losses, rel=1e-4)
    for variable, trained in zip(plain.trainable_variables, state.network.trainable_variables, strict=True):
        np.testing.assert_allclose(trained.numpy(), variable.numpy(), atol=1e-5, err_msg=variable.path)


def test_it_learns_and_keeps_the_best_epoch(tmp_path):
    state = train(TrainConfig(epochs=6, global_batch_size=32, schedule="cosine", learning_rate=0.02), tmp_path / "c.npz")
    losses = [entry["validation_loss"] for entry in state.history]
    assert state.history[-1]["validation_top1_error"] < 0.1
    best = loop.best_epoch(state.history)
    assert best["validation_top1_error"] == min(entry["validation_top1_error"] for entry in state.history)
    again = network()
    again.set_weights(state.best)
    scored = loop._score_split(loop._compiled_scoring(again), split(40, 1, "validation"), SIZE, 32)
    assert scored[0] / scored[3] == pytest.approx(best["validation_loss"], rel=1e-5)
    assert best["validation_loss"] in losses


@pytest.mark.parametrize("stop_after", [2])
def test_taken_up_again_is_the_same_training_bit_for_bit(tmp_path, monkeypatch, stop_after):
    """With dropout, crops, mirrors and a plateau in the middle."""
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", 0.0)  # a checkpoint after every epoch
    config = TrainConfig(epochs=5, global_batch_size=32, schedule="plateau", patience=1, learning_rate=0.02)
    whole = train(config, tmp_path / "whole.npz")
    train(config, tmp_path / "cut.npz", stop_after=stop_after)
    resumed = train(config, tmp_path / "cut.npz")
    assert len(resumed.history) == 5
    assert_same_bits(whole, resumed)


def test_rare_classes_count_as_much_with_class_weights(tmp_path):
    """A network that says the same of both classes has the loss that the classes' own mean has, however many pictures each has."""
    images = split(96)
    counts = np.bincount(images.labels)
    weights = loop.class_weights(images.dataset)
    np.testing.assert_allclose(weights * counts, [48, 48], rtol=1e-6)
    logits = tf.constant(np.tile([1.0, 0.0], (96, 1)).astype(np.float32))
    losses = loop._losses(tf.constant(images.labels), logits, weights).numpy()
    each = np.log(1 + np.exp([-1.0, 1.0]))
    assert losses.mean() == pytest.approx(each.mean(), rel=1e-6)
    plain, weighted = (train(TrainConfig(epochs=1, global_batch_size=32, class_weights=on), tmp_path / f"{on}") for on in (False, True))
    assert plain.history[0]["train_loss"] != weighted.history[0]["train_loss"]


def test_mixed_pictures_are_learnt_as_both(tmp_path):
    """The loss of a mixture is that of both labels in proportion; here a network of zeros, whose loss is ln 2 for any mixture."""
    config = TrainConfig(epochs=3, global_batch_size=32, mixup=0.4, cutmix=1.0, schedule="cosine", learning_rate=1e-6)
    state = loop.prepare(lambda: network(0), config, None)
    for variable in state.network.trainable_variables:
        variable.assign(tf.zeros_like(variable))
    first = next(iter(loop.fit(state, split(96), split(40, 1, "validation"), config, None, tmp_path / "c.npz", lambda *_: None)))
    assert first["train_loss"] == pytest.approx(np.log(2), rel=1e-4)
    learnt = train(config.model_copy(update={"learning_rate": 0.02, "epochs": 8}), tmp_path / "d.npz", dropout=0)
    assert learnt.history[-1]["validation_top1_error"] < 0.1
    assert learnt.history[-1]["train_loss"] > 0.1  # nobody can be sure of a mixture


def test_another_seed_is_another_training(tmp_path):
    first, other = (train(TrainConfig(epochs=1, global_batch_size=32, seed=seed), tmp_path / f"{seed}.npz") for seed in (0, 1))
    assert first.history[0]["train_loss"] != other.history[0]["train_loss"]


def test_the_numbers_do_not_depend_on_how_many_steps_a_call_does(tmp_path, monkeypatch):
    """Steps are grouped by the clock; sums, and so the digests that are made of them, must not be."""
    config = TrainConfig(epochs=2, global_batch_size=8, schedule="cosine", learning_rate=0.02)
    grouped = train(config, tmp_path / "a.npz")
    monkeypatch.setattr(loop, "_MAX_STEPS_PER_CALL", 1)
    assert_same_bits(grouped, train(config, tmp_path / "b.npz"))


def test_ties_are_not_forgiven():
    """A network that gives every class the same logit knows only the first one, in training as in evaluation."""
    _, numbers = loop._sums(tf.constant([0, 1, 3, 9]), tf.zeros((4, 10)))
    assert numbers.numpy()[1:].tolist() == [3, 1, 4]
    _, numbers = loop._sums(tf.constant([1, 0]), tf.constant([[0.0, 2.0], [1.0, 2.0]]))
    assert numbers.numpy()[1:].tolist() == [1, 0, 2]


def test_divergence_is_one_sentence_with_a_remedy(tmp_path):
    with pytest.raises(TrainingDivergedError, match=r"The loss became (nan|inf) .* try --set train.learning_rate=1"):
        train(TrainConfig(epochs=20, global_batch_size=32, learning_rate=10, schedule="cosine"), tmp_path / "c.npz")


REPLICAS = """
import sys
from pathlib import Path
import numpy as np
from pipeline.config import TrainConfig
more = dict(color_noise=0.1, mixup=0.4, cutmix=1.0, randaugment=2, erasing=0.5, class_weights=True) if sys.argv[4] == "everything" else {}
config = TrainConfig(epochs=1, global_batch_size=32, learning_rate=0.01, schedule="cosine", devices=sys.argv[1], **more)
from pipeline.train.strategy import configure_runtime, device_names, make_strategy
configure_runtime(config)
sys.path.insert(0, sys.argv[3])
from test_loop import train
state = train(config, Path(sys.argv[2] + ".ckpt"), dropout=0, strategy=make_strategy())
np.savez(sys.argv[2], len(device_names()), *[variable.numpy() for variable in state.network.trainable_variables])
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["plain", "everything"])
def test_two_replicas_train_as_one(tmp_path, how):
    from pathlib import Path

    for devices in ("cpu", "cpu:2"):
        words = [sys.executable, "-c", REPLICAS, devices, str(tmp_path / f"{devices}.npz"), str(Path(__file__).parent), how]
        subprocess.run(words, check=True, capture_output=True)
    one, two = (list(np.load(tmp_path / f"{devices}.npz").values()) for devices in ("cpu", "cpu:2"))
    assert (one[0], two[0]) == (1, 2)
    for a, b in zip(one[1:], two[1:], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


class TestFrozen:
    def state(self, freeze, **settings):
        config = TrainConfig(epochs=1, global_batch_size=32, freeze=freeze)
        model = ModelConfig(image_size=SIZE, width_multiplier=0.1, **settings)
        load = lambda: build_network(model, num_classes=2, channel_mean=(125,) * 3, channel_std=(50,) * 3)  # noqa: E731
        return loop.prepare(load, config, None), config

    @pytest.mark.parametrize(("freeze", "kept"), [("none", 0), ("conv1", 1), ("conv5", 5), ("fc7", 7)])
    @pytest.mark.parametrize("normalization", ["lrn", "batch"])
    def test_keeps_its_numbers_and_the_rest_learns(self, freeze, kept, normalization, tmp_path):
        state, config = self.state(freeze, normalization=normalization)
        before = {layer.name: layer.get_weights() for layer in state.network.layers if layer.weights}
        (entry,) = loop.fit(state, split(96), split(40, 1, "validation"), config, None, tmp_path / "c", lambda *_: None)
        weighted = [layer.name for layer in state.network.layers if hasattr(layer, "kernel")]
        same = [np.array_equal(before[name][0], state.network.get_layer(name).get_weights()[0]) for name in weighted]
        assert same == [True] * kept + [False] * (8 - kept)
        ratios = [entry[f"signal/update_ratio/{name}"] for name in weighted]
        assert [ratio == 0 for ratio in ratios] == [True] * kept + [False] * (8 - kept)
        if normalization == "batch" and kept:
            norms = [np.array_equal(before[f"norm{n}"][2], state.network.get_layer(f"norm{n}").get_weights()[2]) for n in range(1, 6)]
            assert norms == [n <= kept for n in range(1, 6)]

    def test_a_layer_that_is_not_there(self):
        with pytest.raises(ConfigError, match=r"has no layer fc6 to freeze. Expected .* one of conv1, conv2, conv3"):
            self.state("fc6", variant="cifar")


def test_bfloat16_computes_in_it_and_keeps_weights_in_float32(tmp_path):
    config = TrainConfig(epochs=4, global_batch_size=32, learning_rate=0.02, precision="bfloat16")
    state = train(config, tmp_path / "c", dropout=0)
    assert {variable.dtype for variable in state.network.trainable_variables} == {"float32"}
    layers = {layer.name: layer.compute_dtype for layer in state.network.layers}
    assert (layers["conv1"], layers["norm1"], layers["fc8"]) == ("bfloat16",) * 3
    assert state.network(np.zeros((1, SIZE, SIZE, 3), np.uint8)).dtype == "bfloat16"
    assert state.history[-1]["train_loss"] < 0.7 * state.history[0]["train_loss"]
    exact = train(config.model_copy(update={"precision": "float32"}), tmp_path / "d", dropout=0)
    assert state.history[0]["train_loss"] == pytest.approx(exact.history[0]["train_loss"], rel=0.02)
    assert state.history[0]["train_loss"] != exact.history[0]["train_loss"]


def test_what_passes_through_each_layer_is_recorded_after_every_epoch(tmp_path):
    state = train(TrainConfig(epochs=2, global_batch_size=32, learning_rate=0.02), tmp_path / "c")
    for entry in state.history:
        for what in ("spread", "gradient", "update_ratio", "idle"):
            values = [entry[f"signal/{what}/{layer}"] for layer in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")]
            assert all(np.isfinite(values))
            assert all(value >= 0 for value in values)
        assert entry["signal/update_ratio/conv1"] > 0
    assert state.history[0]["signal/spread/fc8"] != state.history[1]["signal/spread/fc8"]
