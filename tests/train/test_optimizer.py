"""The update rule against the paper's, and the learning rate as a function of the history."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from pipeline.config.train import TrainConfig
from pipeline.train.optimizer import (
    apply_update,
    compute_learning_rate,
    is_decayed,
    is_finished,
    make_optimizer,
    plan_epochs,
)


def errors(*values):
    return [{"validation_top1_error": value} for value in values]


def test_decay_goes_through_the_momentum():
    """After 50 steps without gradient at rate 0.01, the paper's rule leaves 0.997949 of a weight
    (Keras's own decay 0.999750)."""
    import keras

    config = TrainConfig(learning_rate=0.01, momentum=0.9, weight_decay=5e-4)
    weight = keras.Variable(np.ones((1, 1), np.float32))
    optimizer = make_optimizer(config, [weight])
    step = tf.function(lambda: apply_update(optimizer, [weight], [tf.zeros((1, 1))], config, 1))
    for _ in range(50):
        step()
    assert float(weight.numpy()[0, 0]) == pytest.approx(0.997949, abs=2e-6)


def test_biases_at_twice_the_rate():
    """One step of SGD: the kernel by rate x gradient, the bias by twice that, as in the code of
    2012."""
    import keras

    for rule, factor in (("double", 2), ("same", 1)):
        config = TrainConfig(learning_rate=0.1, weight_decay=0, bias_rate=rule)
        weights = [keras.Variable(np.zeros(shape, np.float32)) for shape in ((2, 2), (2,))]
        optimizer = make_optimizer(config, weights)
        tf.function(
            functools.partial(
                apply_update, optimizer, weights, [tf.ones((2, 2)), tf.ones(2)], config, 1
            )
        )()
        assert weights[0].numpy()[0, 0] == pytest.approx(-0.1)
        assert weights[1].numpy()[0] == pytest.approx(-0.1 * factor)


def test_a_gradient_is_clipped_to_the_length_of_all_weights_together():
    import keras

    config = TrainConfig(learning_rate=1, weight_decay=0, clip_norm=1)
    weights = [keras.Variable(np.zeros((1, 1), np.float32)) for _ in range(2)]
    optimizer = make_optimizer(config, weights)
    tf.function(
        lambda: apply_update(
            optimizer, weights, [tf.constant([[3.0]]), tf.constant([[4.0]])], config, 1
        )
    )()
    assert [float(weight.numpy()[0, 0]) for weight in weights] == pytest.approx([-0.6, -0.8])


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_decoupled_decay_leaves_biases_alone(name):
    """Without a gradient a kernel shrinks by rate x decay a step (AdamW, section 2 of its paper), a
    bias not at all."""
    import keras

    config = TrainConfig(optimizer=name, learning_rate=0.1, weight_decay=0.5)
    kernel, bias = (
        keras.Variable(np.ones((2, 2), np.float32)),
        keras.Variable(np.ones(2, np.float32)),
    )
    optimizer = make_optimizer(config, [kernel, bias])
    tf.function(
        lambda: apply_update(optimizer, [kernel, bias], [tf.zeros((2, 2)), tf.zeros(2)], config, 1)
    )()
    assert kernel.numpy()[0, 0] == pytest.approx(0.95)
    assert bias.numpy()[0] == 1


def test_biases_do_not_decay():
    assert is_decayed(np.zeros((3, 4)))
    assert not is_decayed(np.zeros(4))


def test_plateau_divides_by_ten_after_patience_and_three_times_at_most():
    config = TrainConfig(schedule="plateau", patience=2, learning_rate=1.0)
    assert compute_learning_rate(config, []) == 1.0
    assert compute_learning_rate(config, errors(0.5, 0.5)) == 1.0
    assert compute_learning_rate(config, errors(0.5, 0.5, 0.5)) == pytest.approx(0.1)
    assert compute_learning_rate(config, errors(0.5, 0.5, 0.4, 0.4)) == 1.0
    assert compute_learning_rate(config, errors(0.5, *[0.5] * 20)) == pytest.approx(1e-3)


def test_cosine_starts_at_the_rate_and_ends_near_zero():
    config = TrainConfig(schedule="cosine", epochs=10, learning_rate=0.2)
    rates = [compute_learning_rate(config, errors(*[0.5] * epoch)) for epoch in range(10)]
    assert rates[0] == 0.2
    assert rates[5] == pytest.approx(0.1)
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.01


def test_warm_up_rises_to_the_rate():
    config = TrainConfig(schedule="cosine", epochs=10, warmup_epochs=3, learning_rate=0.4)
    assert [
        compute_learning_rate(config, errors(*[0.5] * epoch)) for epoch in range(4)
    ] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_step_divides_by_ten_and_constant_does_not():
    step = TrainConfig(schedule="step", step_epochs=2, learning_rate=1.0)
    assert [
        compute_learning_rate(step, errors(*[0.5] * epoch)) for epoch in range(5)
    ] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert (
        compute_learning_rate(
            TrainConfig(schedule="constant", learning_rate=0.3), errors(*[0.5] * 99)
        )
        == 0.3
    )


def test_the_rate_grows_with_the_batch_and_halves_with_each_setback():
    config = TrainConfig(
        schedule="constant", learning_rate=0.01, base_batch_size=128, global_batch_size=512
    )
    assert compute_learning_rate(config, []) == pytest.approx(0.04)
    assert compute_learning_rate(config, [], nan_restarts=2) == pytest.approx(0.01)


def test_minutes_end_the_training_and_bring_cosine_to_its_end():
    config = TrainConfig(schedule="cosine", epochs=100, max_minutes=1, learning_rate=1.0)
    history = [{"validation_top1_error": 0.5, "seconds": 10.0}]
    assert plan_epochs(config, []) == 100
    assert plan_epochs(config, history) == 6
    assert compute_learning_rate(config, history * 3) == pytest.approx(0.5)
    assert [is_finished(config, history * epochs) for epochs in (0, 5, 6)] == [False, False, True]
    assert is_finished(
        TrainConfig(epochs=100, max_minutes=0.1), history
    )  # one epoch is trained whatever the time


def test_early_stopping_waits_so_many_epochs():
    config = TrainConfig(early_stopping=2)
    assert not is_finished(config, errors(0.5, 0.4, 0.6))
    assert is_finished(config, errors(0.5, 0.4, 0.6, 0.4))
    assert not is_finished(TrainConfig(), errors(*[0.5] * 20))
    assert is_finished(TrainConfig(epochs=3), errors(0.5, 0.4, 0.3))
    # Of few images the error stays as it is while the loss still falls.
    falling = [{**entry, "validation_loss": 1 / 2**i} for i, entry in enumerate(errors(*[0.5] * 4))]
    assert is_finished(config, falling)
    assert not is_finished(config, falling, by_loss=True)
    assert is_finished(config, falling[::-1], by_loss=True)


def test_kernels_decay_and_what_shifts_or_scales_does_not():
    """Each kind of layer with weights that networks for images have."""
    import keras
    from keras.src.applications.convnext import LayerScale

    layers = keras.layers
    rank4 = {
        layers.Conv2D(4, 3): ["kernel"],
        layers.DepthwiseConv2D(3): ["kernel"],
        layers.SeparableConv2D(4, 3): ["depthwise_kernel", "pointwise_kernel"],
        layers.BatchNormalization(): [],
        layers.LayerNormalization(): [],
        layers.LayerNormalization(axis=(1, 2, 3)): [],
        layers.GroupNormalization(2): [],
        layers.PReLU(): [],
        LayerScale(1e-6, 4): [],
        layers.Dense(2): ["kernel"],
    }
    for layer, decayed in rank4.items():
        layer.build((None, 8, 8, 4))
        found = [weight.name for weight in layer.trainable_weights if is_decayed(weight)]
        assert found == decayed, layer
    attention = layers.MultiHeadAttention(2, 4)
    attention.build((None, 5, 8), (None, 5, 8))
    kinds = {(weight.name, is_decayed(weight)) for weight in attention.trainable_weights}
    assert kinds == {("kernel", True), ("bias", False)}


RATES = [0.25, 1.0, 0.0, 0.5]


def take_steps(config, rate_multipliers, steps=3, rate=None):
    """Return four variables, two of them biases, after steps with gradients that change."""
    import keras

    rng = np.random.default_rng(0)
    shapes = ((3, 4), (3, 4), (4,), (4,))
    variables = [keras.Variable(rng.normal(size=shape).astype(np.float32)) for shape in shapes]
    optimizer = make_optimizer(config, variables)
    if rate is not None:
        optimizer.learning_rate.assign(rate)
    step = tf.function(
        lambda *gradients: apply_update(
            optimizer, variables, gradients, config, 1, rate_multipliers
        )
    )
    for _ in range(steps):
        scale = 2.0**15 if config.precision == "float16" else 1.0
        step(*[tf.constant(scale * rng.normal(size=shape), tf.float32) for shape in shapes])
    return [variable.numpy() for variable in variables]


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lamb"])
def test_a_variable_with_a_multiplier_is_updated_as_at_that_rate(optimizer, precision):
    """Compared with trainings in which all variables have that rate; decay and momentum included.
    LAMB's decay comes before its norms, so there the two differ by a thousandth of a step."""
    decay = 0.01 if optimizer != "lamb" else 0.0
    options = {"optimizer": optimizer, "precision": precision, "weight_decay": decay}
    config = TrainConfig(learning_rate=0.1, bias_rate="double", **options)
    found = take_steps(config, RATES)
    for index, multiplier in enumerate(RATES):
        wanted = take_steps(config, None, rate=0.1 * multiplier)[index]
        np.testing.assert_allclose(found[index], wanted, rtol=1e-5, atol=1e-6)
    start = take_steps(config, None, steps=0)
    assert np.array_equal(found[2], start[2])
    assert all(not np.array_equal(found[index], start[index]) for index in (0, 1, 3))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lamb"])
def test_multipliers_of_one_are_none_bit_for_bit(optimizer):
    config = TrainConfig(optimizer=optimizer, learning_rate=0.1, bias_rate="double")
    for one, other in zip(take_steps(config, None), take_steps(config, [1.0] * 4), strict=True):
        assert np.array_equal(one, other)
