"""The trained copy of a network: every kind of randomness by row, what is refused, and weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.errors import ConfigError
from pipeline.train.dropout import BatchPosition, StatelessLayer, make_stateless
from pipeline.train.network_copy import copy_network
from tests.unlike_networks import QUICK_AND_SLOW_NETWORKS, SIDE, build_unlike_network

BATCH = 64
LAYERS = keras.layers
# Every kind: the layer of Keras, and along which axes it shares what it draws.
KINDS = {
    "dropout": (LAYERS.Dropout(0.25), ()),
    "drop-connect": (LAYERS.Dropout(0.25, noise_shape=(None, 1, 1, 1)), (1, 2, 3)),
    "one mask for all": (LAYERS.Dropout(0.25, noise_shape=(1, None, None, None)), (0,)),
    "spatial": (LAYERS.SpatialDropout2D(0.25), (1, 2)),
    "spatial, channels first": (LAYERS.SpatialDropout2D(0.25, "channels_first"), (2, 3)),
    "stochastic depth": (keras.src.applications.convnext.StochasticDepth(0.25), (1, 2, 3)),
    "alpha": (LAYERS.AlphaDropout(0.25), ()),
    "gaussian dropout": (LAYERS.GaussianDropout(0.25), ()),
    "gaussian noise": (LAYERS.GaussianNoise(0.5), ()),
}


def draw(layer, inputs, first=0, step=3, seed=1, index=0):
    """Apply the stateless layer to images of a batch of 64, from row `first` on."""
    position = BatchPosition(seed, BATCH, step, {0: first})
    return make_stateless(layer, position, index)(inputs, training=True).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_draws_by_row_step_seed_and_layer(kind):
    layer, shared = KINDS[kind]
    inputs = tf.ones((BATCH, 6, 7, 8))
    whole = draw(layer, inputs)
    np.testing.assert_array_equal(draw(layer, inputs[:32], first=32), whole[32:])
    first = np.take(whole, [0], axis=shared[0]) if shared else whole
    for axis in shared:
        first = np.take(first, [0], axis=axis)
    np.testing.assert_array_equal(np.broadcast_to(first, whole.shape), whole)
    assert len(np.unique(whole)) > 1
    assert np.array_equal(whole[32:], whole[:32]) == (0 in shared)
    for other in ({"step": 4}, {"seed": 2}, {"index": 1}, {"index": 64}):
        assert not np.array_equal(whole, draw(layer, inputs, **other)), other


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_does_on_average_what_keras_does(kind):
    """Mean and standard deviation over many images, of inputs of mean 0 and deviation 1."""
    layer, shared = KINDS[kind]
    if 0 in shared:
        pytest.skip("one mask is no average")
    inputs = tf.constant(np.random.default_rng(0).normal(size=(4096, 4, 4, 8)), tf.float32)
    keras.utils.set_random_seed(0)
    wanted = layer(inputs, training=True).numpy()
    position = BatchPosition(0, 4096, 0, {0: 0})
    found = make_stateless(layer, position, 0)(inputs, training=True).numpy()
    assert found.mean() == pytest.approx(wanted.mean(), abs=0.02)
    assert found.std() == pytest.approx(wanted.std(), abs=0.02)
    assert (found == 0).mean() == pytest.approx((wanted == 0).mean(), abs=0.02)
    assert make_stateless(layer, position, 0)(inputs) is inputs


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_half_precision(kind):
    layer = KINDS[kind][0].__class__.from_config(KINDS[kind][0].get_config())
    layer.dtype_policy = "mixed_bfloat16"
    position = BatchPosition(0, 4, 0, {0: 0})
    inputs = tf.ones((4, 3, 3, 8), tf.bfloat16)
    assert make_stateless(layer, position, 0)(inputs, training=True).dtype == tf.bfloat16


@pytest.mark.parametrize("name", QUICK_AND_SLOW_NETWORKS)
def test_a_copy_has_the_layers_and_weights_in_order_and_what_was_frozen(name):
    network = build_unlike_network(name)
    network.layers[3].trainable = False
    rng = np.random.default_rng(0)
    network.set_weights([rng.uniform(0.5, 1.5, value.shape) for value in network.get_weights()])
    copy = copy_network(network, BatchPosition(0, 8))
    assert [layer.name for layer in copy.layers] == [layer.name for layer in network.layers]
    for one, two in zip(network.get_weights(), copy.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    images = rng.integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)
    np.testing.assert_array_equal(network(images), copy(images))
    assert [layer.trainable for layer in copy.layers] == [
        layer.trainable for layer in network.layers
    ]
    for layer in copy.layers:
        assert len(layer.variables) == len(layer.weights)
    assert any(isinstance(layer, StatelessLayer) for layer in copy.layers)
    again = build_unlike_network(name)
    again.set_weights(copy.get_weights())
    np.testing.assert_array_equal(again(images), network(images))


def test_a_normalization_of_pixels_that_was_adapted_is_copied():
    """It computes with numbers beside its weights, which `set_weights` does not change."""
    image = keras.Input((4, 4, 3))
    normalization = keras.layers.Normalization()
    network = keras.Model(image, keras.layers.Flatten()(normalization(image)))
    normalization.adapt(np.random.default_rng(0).normal(5, 3, (64, 4, 4, 3)))
    pixels = np.ones((2, 4, 4, 3), np.float32)
    copy = copy_network(network, BatchPosition(0, 2))
    np.testing.assert_array_equal(copy(pixels), network(pixels))


class Jitter(keras.layers.Layer):
    """Draws from Keras's global generator, which no layer owns."""

    def call(self, inputs, training=None):
        return inputs + keras.random.normal((1,)) if training else inputs


class OwnDropout(keras.layers.Dropout):
    """A subclass may draw anything."""


class Block(keras.layers.Layer):
    """Dropout inside another layer."""

    def __init__(self, **options):
        super().__init__(**options)
        self.inner = keras.layers.Dropout(0.5)

    def call(self, inputs, training=None):
        return self.inner(inputs, training=training)


class Scale(keras.layers.Layer):
    """Draws nothing."""

    def build(self, input_shape):
        self.gamma = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="gamma")

    def call(self, inputs):
        return inputs * self.gamma


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        (Jitter(name="odd"), r"layer odd \(Jitter\) draws random numbers that cannot be repeated"),
        (OwnDropout(0.5, name="own"), r"layer own \(OwnDropout\) draws random numbers"),
        (Block(name="block"), r"layer block \(Block\) draws .* Stochastic depth is Dropout\("),
        (
            keras.layers.RandomFlip(name="flip"),
            r"layer flip \(RandomFlip\) changes training images at random.*Remove it .*train\.flip",
        ),
        (keras.layers.RandAugment(name="augment"), r"layer augment .* changes training images"),
    ],
)
def test_what_cannot_be_repeated_is_refused_by_name(layer, sentence):
    image = keras.Input((8, 8, 3))
    network = keras.Model(image, Scale(name="scale")(layer(Scale(name="first")(image))))
    with pytest.raises(ConfigError, match=sentence):
        copy_network(network, BatchPosition(0, 2))


def test_a_layer_of_the_users_own_that_draws_nothing_is_copied():
    image = keras.Input((8, 8, 3))
    network = keras.Model(image, keras.layers.Dropout(0.5)(Scale()(image)))
    copy = copy_network(network, BatchPosition(0, 2))
    assert isinstance(copy.layers[1], Scale)


def test_more_random_layers_than_64_draw_different_numbers():
    """EfficientNetV2L has 75."""
    image = x = keras.Input((4,))
    for _ in range(70):
        x = keras.layers.GaussianNoise(0.5)(x)
    copy = copy_network(keras.Model(image, x), BatchPosition(0, 2, 0, {0: 0}))
    inputs = tf.zeros((2, 4))
    drawn = {tuple(layer(inputs, training=True).numpy().ravel()) for layer in copy.layers[1:]}
    assert len(drawn) == 70
