"""The loop itself: its steps by hand, resuming bit for bit, two replicas as one, and divergence."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.config.train import TrainConfig
from pipeline.data.augment import compute_class_weights
from pipeline.data.loader import LoadedSplit
from pipeline.data.training_batches import make_training_batches
from pipeline.errors import ConfigError, TrainingDivergedError
from pipeline.model.networks import build_network
from pipeline.train import loop
from pipeline.train.checkpoint import read_checkpoint
from pipeline.train.dropout import BatchPosition, StatelessDropout
from pipeline.train.state import TrainingState, prepare_state
from pipeline.train.step import compute_losses, compute_sums
from pipeline.train.strategy import Devices
from tests.networks import model_config

SIDE, SIZE = 32, 28
IGNORED = [].append  # is told what happens
COVARIANCE = ((4000.0, 3500.0, 3000.0), (3500.0, 3900.0, 3400.0), (3000.0, 3400.0, 4500.0))


def split(count, seed=0, name="train", side=SIDE):
    """Images of two classes that can be told apart: bright and dark, with noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count).astype(np.int32)
    pixels = np.clip(
        rng.normal(90 + 70 * labels[:, None, None, None], 30, (count, side, side, 3)), 0, 255
    ).astype(np.uint8)
    counts = {name: tuple(np.bincount(labels))}
    dataset = SimpleNamespace(
        short_side=side,
        count_images=lambda _split: count,
        channel_mean=(125, 125, 125),
        channel_covariance=COVARIANCE,
        class_counts=counts,
    )
    return LoadedSplit(dataset, name, labels, tuple(str(i) for i in range(count)), pixels)


def network(dropout=0.5):
    """A network with all that a step treats in its own way, and little to compile."""
    layers = keras.layers
    start = [keras.initializers.HeNormal(seed) for seed in range(3)]
    image = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    x = layers.Rescaling(1 / 50, -2.5)(image)
    x = layers.Conv2D(
        8, 5, strides=4, activation="relu", name="conv1", kernel_initializer=start[0]
    )(x)
    x = layers.Dropout(dropout, seed=0)(layers.Flatten()(x))
    x = layers.Dense(16, activation="relu", name="fc7", kernel_initializer=start[1])(x)
    x = layers.Dropout(dropout, seed=1)(x)
    return keras.Model(image, layers.Dense(2, name="fc8", kernel_initializer=start[2])(x))


def alexnet(dropout=0.5, **settings):
    config = model_config(image_size=SIZE, width_multiplier=0.1, dropout=dropout, **settings)
    return build_network(
        config, num_classes=2, channel_mean=(125, 125, 125), channel_std=(50, 50, 50)
    )


ONE = Devices()


def make_training(config, checkpoint, devices=ONE, **more):
    """Return what the loop needs: 96 images to train on, and 40 to validate."""
    return loop.Training(split(96), split(40, 1, "validation"), config, devices, checkpoint, **more)


def score(scored_network):
    config = TrainConfig(global_batch_size=32)
    return loop._EpochLoop(
        prepare_state(lambda: scored_network, config, ONE),
        make_training(config, None),
        SimpleNamespace(call=lambda function, *arguments: function(*arguments)),
    ).score_validation()


def train(
    config, checkpoint, dropout=0.5, stop_after=None, devices=ONE, notify=IGNORED, build=network
):
    """Train on 96 images; return the state at the end, or after some epochs."""
    state = prepare_state(lambda: build(dropout), config, devices)
    with contextlib.closing(
        loop.train_epochs(state, make_training(config, checkpoint, devices, notify=notify))
    ) as epochs:
        for epoch in epochs:
            if epoch["epoch"] == stop_after:
                break
    return state


def every_number(state):
    history = [loop.remove_clock_readings(entry) for entry in state.history]
    return (
        {name: variable.numpy() for name, variable in state.named_variables().items()},
        state.best_weights,
        history,
    )


def assert_same_bits(one, other):
    (variables, best, history), (variables2, best2, history2) = (
        every_number(one),
        every_number(other),
    )
    assert history == history2
    assert variables.keys() == variables2.keys()
    assert all(np.array_equal(variables[name], variables2[name]) for name in variables)
    assert all(np.array_equal(a, b) for a, b in zip(best, best2, strict=True))


def test_three_steps_are_the_rule_of_2012(tmp_path):
    """v <- 0.9 v - rate (gradient + decay w); w <- w + v; decay on kernels alone; computed here
    with plain pieces, one step an epoch."""
    config = TrainConfig(
        epochs=3,
        global_batch_size=96,
        learning_rate=0.02,
        weight_decay=0.01,
        schedule="cosine",
        flip=False,
    )
    plain = network(dropout=0)
    velocities = [np.zeros(variable.shape, np.float32) for variable in plain.trainable_variables]
    losses = []
    for epoch in range(3):
        batch = next(iter(make_training_batches(split(96), config, image_size=SIZE, epoch=epoch)))
        images, labels = batch["pixels"], batch["labels"]
        with tf.GradientTape() as tape:
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(
                labels, plain(images, training=True)
            )
        losses.append(float(loss))
        rate = 0.02 * 0.5 * (1 + np.cos(np.pi * epoch / 3))
        for i, (variable, gradient) in enumerate(
            zip(
                plain.trainable_variables,
                tape.gradient(loss, plain.trainable_variables),
                strict=True,
            )
        ):
            decay = 0.01 * variable.numpy() if len(variable.shape) > 1 else 0.0
            velocities[i] = 0.9 * velocities[i] - rate * (gradient.numpy() + decay)
            variable.assign(variable.numpy() + velocities[i])
    state = train(config, tmp_path / "c.npz", dropout=0)
    assert [entry["train_loss"] for entry in state.history] == pytest.approx(losses, rel=1e-4)
    for variable, trained in zip(
        plain.trainable_variables, state.network.trainable_variables, strict=True
    ):
        np.testing.assert_allclose(
            trained.numpy(), variable.numpy(), atol=1e-5, err_msg=variable.path
        )


def test_it_learns_and_keeps_the_best_epoch(tmp_path):
    state = train(
        TrainConfig(epochs=6, global_batch_size=32, schedule="cosine", learning_rate=0.02),
        tmp_path / "c.npz",
    )
    losses = [entry["validation_loss"] for entry in state.history]
    assert state.history[-1]["validation_top1_error"] < 0.1
    best = loop.choose_best_epoch(state.history)
    assert best["validation_top1_error"] == min(
        entry["validation_top1_error"] for entry in state.history
    )
    again = network()
    again.set_weights(state.best_weights)
    scored = score(again)
    assert scored[0] / scored[3] == pytest.approx(best["validation_loss"], rel=1e-5)
    assert best["validation_loss"] in losses


EVERYTHING = {
    "epochs": 5,
    "global_batch_size": 16,
    "learning_rate": 0.02,
    "schedule": "plateau",
    "patience": 1,
    "early_stopping": 3,
    "color_noise": 0.1,
    "mixup": 0.4,
    "ema_decay": 0.9,
    "gradient_accumulation_steps": 2,
    "clip_norm": 1.0,
    "label_smoothing": 0.1,
    "bias_rate": "double",
    "checkpoint_seconds": 0,
}


class DeathError(Exception):
    """The process is gone: nothing more is written."""


def cut_short(config, checkpoint, after, end):
    """Train until so many calls have reported their progress, then end by raising."""
    calls = iter(range(after))

    def progress(*_):
        if next(calls, None) is None:
            raise end

    state = prepare_state(network, config, ONE)
    with pytest.raises(type(end)):
        list(loop.train_epochs(state, make_training(config, checkpoint, report_progress=progress)))


ADAM = {"epochs": 3, "global_batch_size": 16, "optimizer": "adamw", "learning_rate": 0.002}


@pytest.fixture(scope="module")
def whole_training(tmp_path_factory):
    """Return a function that gives the state after all epochs of a config, trained once."""
    done = {}

    def train_once(config):
        key = config.model_dump_json()
        if key not in done:
            done[key] = train(config, tmp_path_factory.mktemp("whole") / "c.npz")
        return done[key]

    return train_once


@pytest.mark.parametrize(
    ("settings", "end"),
    [(EVERYTHING, DeathError()), (ADAM, KeyboardInterrupt())],
    ids=["killed", "interrupted"],
)
def test_taken_up_again_is_the_same_training_bit_for_bit(
    tmp_path, monkeypatch, whole_training, settings, end
):
    """At the first step, within an epoch, at an epoch's last step and twice in a row."""
    monkeypatch.setattr(loop, "_MAX_STEPS_PER_CALL", 2)
    seconds = 0 if isinstance(end, DeathError) else 1000  # the interrupted one must save by itself
    config = TrainConfig(**{**settings, "checkpoint_seconds": seconds})
    whole = whole_training(config)
    assert len(whole.history) >= 3
    for after in (0, 3):
        cut_short(config, tmp_path / f"{after}.npz", after, end)
        if after == 3:
            before = (tmp_path / "3.npz").read_bytes()
            cut_short(config, tmp_path / "3.npz", 1, end)
            assert (tmp_path / "3.npz").read_bytes() != before
        assert_same_bits(whole, train(config, tmp_path / f"{after}.npz"))


def test_a_finished_training_taken_up_again_trains_no_more(tmp_path):
    config = TrainConfig(
        epochs=4, global_batch_size=32, checkpoint_seconds=0, early_stopping=1, learning_rate=1e-6
    )
    first = train(config, tmp_path / "c.npz")
    assert len(first.history) == 2  # at this rate nothing gets better
    again = train(config, tmp_path / "c.npz")
    assert again.history == first.history
    assert_same_bits(first, again)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, monkeypatch, whole_training):
    monkeypatch.setattr(loop, "_MAX_STEPS_PER_CALL", 1)
    config = TrainConfig(**EVERYTHING)
    whole = whole_training(config)
    cut_short(config, tmp_path / "c.npz", 4, DeathError())
    (tmp_path / "c.npz").write_bytes(b"PK damaged")
    told = []
    resumed = train(config, tmp_path / "c.npz", notify=told.append)
    assert_same_bits(whole, resumed)
    assert any("c.npz is damaged" in said and "goes on from step 4" in said for said in told)


def test_accumulated_micro_batches_are_the_large_batch(tmp_path):
    """With dropout, whose masks belong to the images and not to the micro-batches."""
    states = [
        train(
            TrainConfig(
                epochs=1,
                global_batch_size=32,
                gradient_accumulation_steps=steps,
                learning_rate=0.02,
            ),
            tmp_path / f"{steps}",
        )
        for steps in (1, 4)
    ]
    assert states[0].history[0]["train_loss"] == pytest.approx(
        states[1].history[0]["train_loss"], rel=1e-6
    )
    for one, other in zip(*(state.network.trainable_variables for state in states), strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-6)


def test_a_smoothed_label_is_kerass(tmp_path):
    logits = tf.constant(np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32))
    labels = tf.constant([0, 1, 2, 3, 4, 0, 1, 2])
    wanted = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=0.1, reduction="none"
    )(tf.one_hot(labels, 5), logits)
    np.testing.assert_allclose(compute_losses(labels, logits, None, 0.1), wanted, rtol=1e-5)


def test_averaged_weights_are_scored_and_kept(tmp_path, monkeypatch):
    """The mean is computed here again from the weights after each step: one step an epoch, constant
    rate."""
    config = TrainConfig(
        epochs=4, global_batch_size=96, learning_rate=0.02, schedule="constant", ema_decay=0.5
    )
    state = prepare_state(network, config, ONE)
    average = [variable.numpy() for variable in state.network.trainable_variables]
    epochs = loop.train_epochs(state, make_training(config, tmp_path / "c"))
    for steps, entry in enumerate(epochs, 1):
        share = min(0.5, (1 + steps) / (10 + steps))
        average = [
            share * old + (1 - share) * new.numpy()
            for old, new in zip(average, state.network.trainable_variables, strict=True)
        ]
        for mean, variable in zip(average, state.ema_network.trainable_variables, strict=True):
            np.testing.assert_allclose(variable.numpy(), mean, atol=1e-6)
        scored = score(state.ema_network)
        assert entry["validation_loss"] == pytest.approx(scored[0] / scored[3], rel=1e-5)
    if loop.choose_best_epoch(state.history)["epoch"] == 4:
        np.testing.assert_array_equal(state.best_weights[0], state.ema_network.weights[0].numpy())


class TestDropout:
    def masks(self, rows, first=0, step=3, seed=1, index=0, rate=0.25):
        position = BatchPosition(seed, 64, step, {0: first})
        return StatelessDropout(rate, position, index)(tf.ones((rows, 512)), training=True).numpy()

    def test_drops_its_share_and_keeps_the_mean(self):
        found = self.masks(64)
        assert set(np.unique(found)) == {np.float32(0), np.float32(1 / 0.75)}
        assert (found == 0).mean() == pytest.approx(0.25, abs=0.01)

    def test_a_part_of_the_batch_has_its_own_rows_of_the_mask(self):
        whole = self.masks(64)
        np.testing.assert_array_equal(self.masks(32, first=32), whole[32:])
        assert not np.array_equal(whole[32:], whole[:32])  # so that replicas differ

    @pytest.mark.parametrize("other", [{"step": 4}, {"seed": 2}, {"index": 1}])
    def test_every_step_seed_and_layer_has_its_own(self, other):
        assert not np.array_equal(self.masks(64), self.masks(64, **other))

    def test_does_nothing_while_not_training(self):
        inputs = tf.ones((2, 3))
        assert np.array_equal(StatelessDropout(0.5, BatchPosition(0, 2), 0)(inputs), inputs)


def test_training_goes_back_to_the_last_epoch_at_half_the_rate(tmp_path):
    """A rate that is lost in the first epochs; the nan_restarts are counted, bounded, recorded and
    taken up again."""
    config = TrainConfig(
        epochs=3,
        global_batch_size=16,
        learning_rate=10,
        schedule="constant",
        nan_restarts=10,
        checkpoint_seconds=0,
    )
    told = []
    state = train(config, tmp_path / "c.npz", notify=told.append)
    assert 1 <= len(state.nan_restarts) == len(told) <= 10
    assert "goes back to the end of epoch" in told[0]
    assert len(state.history) == 3
    assert state.history[-1]["learning_rate"] == 10 / 2 ** len(state.nan_restarts)
    assert state.history[-1]["nan_restarts"] == len(state.nan_restarts)
    assert_same_bits(state, train(config, tmp_path / "c.npz"))
    with pytest.raises(TrainingDivergedError):
        train(
            config.model_copy(update={"nan_restarts": len(state.nan_restarts) - 1}),
            tmp_path / "d.npz",
        )


@pytest.mark.slow
def test_rare_classes_count_as_much_with_class_weights(tmp_path):
    """A network that says the same of both classes has the loss that the classes' own mean has,
    however many images each has."""
    images = split(96)
    counts = np.bincount(images.labels)
    weights = compute_class_weights(images.dataset)
    np.testing.assert_allclose(weights * counts, [48, 48], rtol=1e-6)
    logits = tf.constant(np.tile([1.0, 0.0], (96, 1)).astype(np.float32))
    losses = compute_losses(tf.constant(images.labels), logits, weights).numpy()
    each = np.log(1 + np.exp([-1.0, 1.0]))
    assert losses.mean() == pytest.approx(each.mean(), rel=1e-6)
    plain, weighted = (
        train(TrainConfig(epochs=1, global_batch_size=32, class_weights=on), tmp_path / f"{on}")
        for on in (False, True)
    )
    assert plain.history[0]["train_loss"] != weighted.history[0]["train_loss"]


@pytest.mark.slow
def test_mixed_images_are_learnt_as_both(tmp_path):
    """The loss of a mixture is that of both labels in proportion; here a network of zeros, whose
    loss is ln 2 for any mixture."""
    config = TrainConfig(
        epochs=3, global_batch_size=32, mixup=0.4, cutmix=1.0, schedule="cosine", learning_rate=1e-6
    )
    state = prepare_state(lambda: alexnet(0), config, ONE)
    for variable in state.network.trainable_variables:
        variable.assign(tf.zeros_like(variable))
    first = next(iter(loop.train_epochs(state, make_training(config, tmp_path / "c.npz"))))
    assert first["train_loss"] == pytest.approx(np.log(2), rel=1e-4)
    learned = train(
        config.model_copy(update={"learning_rate": 0.02, "epochs": 8}),
        tmp_path / "d.npz",
        dropout=0,
        build=alexnet,
    )
    assert learned.history[-1]["validation_top1_error"] < 0.1
    assert learned.history[-1]["train_loss"] > 0.1  # nobody can be sure of a mixture


def test_another_seed_is_another_training(tmp_path):
    first, other = (
        train(TrainConfig(epochs=1, global_batch_size=32, seed=seed), tmp_path / f"{seed}.npz")
        for seed in (0, 1)
    )
    assert first.history[0]["train_loss"] != other.history[0]["train_loss"]


def test_the_numbers_do_not_depend_on_how_many_steps_a_call_does(tmp_path, monkeypatch):
    """The clock decides how steps are grouped into calls, and must not decide their sums."""
    config = TrainConfig(epochs=2, global_batch_size=8, schedule="cosine", learning_rate=0.02)
    grouped = train(config, tmp_path / "a.npz")
    monkeypatch.setattr(loop, "_MAX_STEPS_PER_CALL", 1)
    assert_same_bits(grouped, train(config, tmp_path / "b.npz"))


def test_ties_are_not_forgiven():
    """A network that gives every class the same logit knows only the first one, in training as in
    evaluation."""
    _, numbers = compute_sums(tf.constant([0, 1, 3, 9]), tf.zeros((4, 10)))
    assert numbers.numpy()[1:].tolist() == [3, 1, 4]
    _, numbers = compute_sums(tf.constant([1, 0]), tf.constant([[0.0, 2.0], [1.0, 2.0]]))
    assert numbers.numpy()[1:].tolist() == [1, 0, 2]


def test_divergence_stops_at_its_step_with_a_remedy(tmp_path):
    config = TrainConfig(epochs=3, global_batch_size=16, learning_rate=0.02)
    state = prepare_state(network, config, ONE)
    epochs = loop.train_epochs(state, make_training(config, tmp_path / "c.npz"))
    assert next(epochs)["epoch"] == 1
    state.network.trainable_variables[-1].assign([np.nan, 0])
    with pytest.raises(
        TrainingDivergedError,
        match=r"The loss became nan in epoch 2, at step 1 of 6\. .* train.learning_rate=0.002,",
    ) as found:
        next(epochs)
    assert "--set train.nan_restarts=3" in str(found.value)


def test_whoever_stops_reading_the_epochs_finds_the_last_step_saved(tmp_path):
    """A signal that arrives where the numbers are written down, and not where they are made, loses
    nothing either."""
    config = TrainConfig(
        epochs=3, global_batch_size=16, learning_rate=0.02, checkpoint_seconds=1000
    )
    whole = train(config, tmp_path / "whole.npz")
    assert len(train(config, tmp_path / "c.npz", stop_after=2).history) == 2
    assert len(read_checkpoint(tmp_path / "c.npz")[1]["history"]) == 2
    assert_same_bits(whole, train(config, tmp_path / "c.npz"))


def test_a_rate_that_is_far_too_high_ends_in_one_sentence(tmp_path):
    """Whether the loss or the weights are found out first depends on the initial weights."""
    found = r"(The loss became (nan|inf) |A weight was not finite after epoch \d)"
    with pytest.raises(
        TrainingDivergedError, match=rf"{found}.* try --set train\.learning_rate=1,"
    ):
        train(
            TrainConfig(epochs=20, global_batch_size=32, learning_rate=10, schedule="constant"),
            tmp_path / "c.npz",
            build=alexnet,
        )


REPLICAS = """
import sys
from pathlib import Path
import numpy as np
from pipeline.config.train import TrainConfig
more = dict(clip_norm=1, gradient_accumulation_steps=2, ema_decay=0.9, label_smoothing=0.1)
more |= dict(color_noise=0.1, mixup=0.4, cutmix=1.0, randaugment=2, random_erasing=0.5)
more |= dict(class_weights=True)
more = more if sys.argv[4] == "everything" else {}
more |= dict(epochs=1, global_batch_size=32, learning_rate=0.01, schedule="cosine")
config = TrainConfig(devices=sys.argv[1], **more)
from pipeline.train.strategy import configure_runtime, list_devices, make_devices
configure_runtime(config)
sys.path.insert(0, sys.argv[3])
from test_loop import alexnet, train
state = train(config, Path(sys.argv[2] + ".ckpt"), devices=make_devices(), build=alexnet)
weights = [*state.network.trainable_variables, *state.ema_network.trainable_variables]
np.savez(sys.argv[2], len(list_devices()), *[variable.numpy() for variable in weights])
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["plain", "everything"])
def test_two_replicas_train_as_one(tmp_path, how):
    for devices in ("cpu", "cpu:2"):
        arguments = [
            sys.executable,
            "-c",
            REPLICAS,
            devices,
            str(tmp_path / f"{devices}.npz"),
            str(Path(__file__).parent),
            how,
        ]
        subprocess.run(arguments, check=True, capture_output=True)
    one, two = (list(np.load(tmp_path / f"{devices}.npz").values()) for devices in ("cpu", "cpu:2"))
    assert (one[0], two[0]) == (1, 2)
    for a, b in zip(one[1:], two[1:], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


class TestFrozen:
    def state(self, freeze, **settings):
        config = TrainConfig(epochs=1, global_batch_size=32, freeze=freeze)
        return prepare_state(lambda: alexnet(**settings), config, ONE), config

    @pytest.mark.parametrize(
        ("freeze", "kept", "normalization"),
        [("conv1", 1, "batch"), ("fc7", 7, "lrn")],
    )
    def test_keeps_its_numbers_and_the_rest_learns(self, freeze, kept, normalization, tmp_path):
        state, config = self.state(freeze, normalization=normalization)
        before = {
            layer.name: layer.get_weights() for layer in state.network.layers if layer.weights
        }
        (entry,) = loop.train_epochs(state, make_training(config, tmp_path / "c"))
        weighted = [layer.name for layer in state.network.layers if hasattr(layer, "kernel")]
        same = [
            np.array_equal(before[name][0], state.network.get_layer(name).get_weights()[0])
            for name in weighted
        ]
        assert same == [True] * kept + [False] * (8 - kept)
        ratios = [entry[f"signal/update_ratio/{name}"] for name in weighted]
        assert [ratio == 0 for ratio in ratios] == [True] * kept + [False] * (8 - kept)
        if normalization == "batch" and kept:
            norms = [
                np.array_equal(
                    before[f"norm{n}"][2], state.network.get_layer(f"norm{n}").get_weights()[2]
                )
                for n in range(1, 6)
            ]
            assert norms == [n <= kept for n in range(1, 6)]

    def test_a_layer_that_is_not_there(self):
        with pytest.raises(
            ConfigError, match=r"has no layer fc6 to freeze. Expected .* one of conv1, conv2, conv3"
        ):
            self.state("fc6", network="cifar")


def test_bfloat16_computes_in_it_and_keeps_weights_in_float32(tmp_path):
    config = TrainConfig(epochs=4, global_batch_size=32, learning_rate=0.02, precision="bfloat16")
    state = train(config, tmp_path / "c", dropout=0, build=alexnet)
    assert {variable.dtype for variable in state.network.trainable_variables} == {"float32"}
    layers = {layer.name: layer.compute_dtype for layer in state.network.layers}
    assert (layers["conv1"], layers["norm1"], layers["fc8"]) == ("bfloat16",) * 3
    assert state.network(np.zeros((1, SIZE, SIZE, 3), np.uint8)).dtype == "bfloat16"
    assert state.history[-1]["train_loss"] < 0.7 * state.history[0]["train_loss"]
    exact = train(
        config.model_copy(update={"precision": "float32", "epochs": 1}),
        tmp_path / "d",
        dropout=0,
        build=alexnet,
    )
    assert state.history[0]["train_loss"] == pytest.approx(exact.history[0]["train_loss"], rel=0.02)
    assert state.history[0]["train_loss"] != exact.history[0]["train_loss"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Two epochs of AlexNet: their history, and the progress that was reported."""
    told, config = [], TrainConfig(epochs=2, global_batch_size=32, learning_rate=0.02)
    state = prepare_state(alexnet, config, ONE)
    training = make_training(
        config,
        tmp_path_factory.mktemp("recorded") / "c.npz",
        report_progress=lambda *arguments: told.append(arguments),
    )
    return list(loop.train_epochs(state, training)), told


def test_what_an_epoch_takes_of_the_machine_is_recorded_and_no_part_of_the_result(recorded):
    entry = recorded[0][0]
    assert 0 < entry["system/processors"] <= 2 * len(os.sched_getaffinity(0))
    assert 0.1 < entry["system/memory_gb"] < 100
    assert (
        {"train_loss", "learning_rate"}
        < set(loop.remove_clock_readings(entry))
        == set(entry)
        - {
            "system/processors",
            "system/memory_gb",
            "seconds",
            "images_per_second",
            "time",
        }
    )


def test_what_passes_through_each_layer_is_recorded_after_every_epoch(recorded):
    history = recorded[0]
    assert len(history) == 2
    for entry in history:
        for what in ("spread", "gradient", "update_ratio", "idle"):
            values = [
                entry[f"signal/{what}/{layer}"]
                for layer in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
            ]
            assert all(np.isfinite(values))
            assert all(value >= 0 for value in values)
        assert entry["signal/update_ratio/conv1"] > 0
    assert history[0]["signal/spread/fc8"] != history[1]["signal/spread/fc8"]


def test_checkpoints_by_steps_come_after_exactly_so_many(tmp_path, monkeypatch):
    """24 steps, 6 an epoch: after each fifth, whatever one call would do at a time."""
    config = TrainConfig(
        epochs=4, global_batch_size=16, checkpoint_seconds=1000, checkpoint_steps=5
    )
    saved, save = [], TrainingState.save_to

    def noted(state, path):
        saved.append(int(state.steps.numpy()))
        save(state, path)

    monkeypatch.setattr(TrainingState, "save_to", noted)
    whole = train(config, tmp_path / "c.npz")
    assert saved == [5, 10, 15, 20]
    assert_same_bits(
        whole, train(config.model_copy(update={"checkpoint_steps": 0}), tmp_path / "c.npz")
    )


def test_a_profile_is_written_for_tensorboard_and_changes_nothing(tmp_path):
    config = TrainConfig(epochs=2, global_batch_size=16, profile_steps=3)
    traced, plain = (prepare_state(network, config, ONE) for _ in range(2))
    list(
        loop.train_epochs(
            traced, make_training(config, tmp_path / "c.npz", traces=tmp_path / "profile")
        )
    )
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert b"train_steps" in trace.read_bytes()
    list(loop.train_epochs(plain, make_training(config, tmp_path / "d.npz")))
    assert_same_bits(traced, plain)


def test_progress_says_how_it_goes_and_what_it_takes_of_the_machine(recorded):
    told = recorded[1]
    assert told[-1][:2] == (6, 6)
    assert re.fullmatch(
        r"epoch 2/2  loss \d\.\d{3}  error \d+\.\d%  \d+\.\d of \d+ cores", told[-1][2]
    )


BOUNDARY = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from pipeline.config.train import TrainConfig
config = TrainConfig(**eval(sys.argv[4]), devices=sys.argv[1])
from pipeline.train.strategy import configure_runtime, make_devices
configure_runtime(config)
import numpy as np
from test_loop import alexnet, make_training, every_number
from pipeline.train import loop
from pipeline.train.checkpoint import read_checkpoint
from pipeline.train.state import TrainingState, prepare_state
path, devices = Path(sys.argv[2]), make_devices()
found = read_checkpoint(path)
before = len(found[1]["history"]) if found else 0
state = prepare_state(alexnet, config, devices)
for epoch in loop.train_epochs(state, make_training(config, path, devices)):
    if epoch["epoch"] > before and len(sys.argv) > 5:
        os.kill(os.getpid(), signal.SIGKILL)
variables, best, history = every_number(state)
best = {f"best{i}": weights for i, weights in enumerate(best)}
np.savez(path.with_suffix(".end"), history=repr(history), **variables, **best)
"""


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["cpu", "cpu:2"])
def test_killed_at_every_epoch_boundary_is_the_same_training(tmp_path, devices):
    def run(name, *arguments):
        command = [
            sys.executable,
            "-c",
            BOUNDARY,
            devices,
            str(tmp_path / name),
            str(Path(__file__).parent),
            repr(EVERYTHING),
            *arguments,
        ]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    whole = run("whole.npz")
    assert whole.returncode == 0, whole.stderr
    ends = []
    while not ends or ends[-1] != 0:
        ends.append(run("killed.npz", "kill").returncode)
        assert len(ends) < 10
    assert ends[:-1] == [-signal.SIGKILL] * (len(ends) - 1)
    assert len(ends) > 3
    one, two = (dict(np.load(tmp_path / f"{name}.end.npz")) for name in ("whole", "killed"))
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_the_loss_may_choose_the_epoch():
    history = [
        {"epoch": 1, "validation_top1_error": 0.3, "validation_loss": 0.8},
        {"epoch": 2, "validation_top1_error": 0.2, "validation_loss": 0.9},
        {"epoch": 3, "validation_top1_error": 0.2, "validation_loss": 0.85},
    ]
    assert loop.choose_best_epoch(history)["epoch"] == 3
    assert loop.choose_best_epoch(history, by_loss=True)["epoch"] == 1
