"""Batch normalization of the trained copy: Keras's numbers, and better ones where they are lost."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.train.batch_normalization import StepBatchNormalization
from pipeline.train.dropout import BatchPosition
from pipeline.train.network_copy import copy_network


def run(layer, x, weights=None):
    """Return outputs, gradients and moving statistics of one training step."""
    if not layer.built:
        layer.build(x.shape)
    if weights is not None:
        layer.set_weights(weights)
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = layer(x, training=True)
        loss = tf.reduce_sum(tf.cast(outputs, tf.float32) ** 3)
    parameters = [variable.value for variable in layer.trainable_variables]
    gradients = tape.gradient(loss, [x, *parameters])
    return [value.numpy() for value in (outputs, *gradients, *layer.non_trainable_variables)]


@pytest.mark.parametrize(
    "options",
    [{}, {"axis": 1}, {"scale": False}, {"center": False, "momentum": 0.8, "epsilon": 0.1}],
)
def test_it_does_what_keras_does_unsynchronized(options):
    rng = np.random.default_rng(0)
    x = rng.normal(1, 2, (8, 5, 6, 5)).astype(np.float32)
    plain = keras.layers.BatchNormalization(**options)
    plain.build(x.shape)
    weights = [rng.uniform(0.5, 1, value.shape) for value in plain.get_weights()]
    found = run(StepBatchNormalization(**options), x, weights)
    for one, two in zip(run(plain, x, weights), found, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


def test_the_variance_of_maps_with_a_large_mean_is_not_lost():
    """Deviation 0.01 around 100: float32's E[x^2] - E[x]^2 has no digit of it."""
    rng = np.random.default_rng(0)
    x = rng.normal(100, 0.01, (64, 4, 4, 2)).astype(np.float32)
    exact = x.astype(np.float64).var((0, 1, 2))
    options = {"momentum": 0.0}
    found = run(StepBatchNormalization(**options), x)[-1]
    np.testing.assert_allclose(found, exact, rtol=1e-3)
    lost = run(keras.layers.BatchNormalization(synchronized=True, **options), x)[-1]
    assert np.abs(lost / exact - 1).max() > 0.5


def test_half_precision_keeps_its_statistics_in_float32():
    layer = StepBatchNormalization(dtype="mixed_float16", momentum=0.0)
    x = tf.constant(np.random.default_rng(0).normal(300, 1, (64, 8, 8, 2)), tf.float16)
    outputs = layer(x, training=True)
    assert outputs.dtype == tf.float16
    np.testing.assert_allclose(layer.moving_mean, 300, atol=0.1)
    np.testing.assert_allclose(outputs.numpy().astype(np.float32).std(), 1, atol=0.01)


def test_frozen_it_is_inference():
    layer = StepBatchNormalization()
    layer.build((None, 3))
    layer.trainable = False
    before = layer.get_weights()
    x = np.full((4, 3), 7, np.float32)
    np.testing.assert_array_equal(layer(x, training=True), layer(x, training=False))
    for one, two in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_copy_has_it_and_a_layer_that_is_synchronized_already_stays_keras():
    image = keras.Input((4, 4, 3))
    x = keras.layers.BatchNormalization(name="plain")(image)
    network = keras.Model(image, keras.layers.BatchNormalization(synchronized=True, name="own")(x))
    copy = copy_network(network, BatchPosition(0, 2))
    kinds = [type(copy.get_layer(name)) for name in ("plain", "own")]
    assert kinds == [StepBatchNormalization, keras.layers.BatchNormalization]
    assert copy.get_layer("own").synchronized
