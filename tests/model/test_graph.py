"""Questions about a network's graph: networks of this project, of Keras, and one made of others."""

import keras
import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.model.graph import (
    assign_layer_weights,
    copy_layers,
    find_classifier,
    find_feature_layer,
    find_last_maps,
    inline_submodels,
    list_blocks,
)
from pipeline.model.layers import PixelNormalization
from pipeline.model.networks import build_network
from tests.networks import model_config
from tests.unlike_networks import build_unlike_network

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
# Name -> feature layer, last maps, number of blocks (by hand, from each network's own code).
APPLICATIONS = {
    "MobileNetV3Small": ("avg_pool", "activation_17", None),
    # The stem and 16 residual sums.
    "ResNet50V2": ("avg_pool", "post_relu", 1 + 16),
    # The stem, 58 concatenations less the last, whose normalization leads to the features.
    "DenseNet121": ("avg_pool", "relu", 1 + 58),
    # The stem, 18 sums, of which the last leads to the features.
    "ConvNeXtTiny": ("layer_normalization", "convnext_tiny_stage_3_block_2_identity", 1 + 18),
}
# The same of small networks of these kinds.
SMALL = {
    "resnet": ("post_relu", 1 + 4),
    "densenet": ("relu", 1 + 8),
    "convnext": ("layer_normalization", 1 + 5),
}


def with_top(backbone, image, rate=0.5):
    features = keras.layers.Dropout(rate)(backbone)
    return keras.Model(image, keras.layers.Dense(5, name="logits")(features), name="whole")


def application(name):
    image = keras.Input((64, 64, 3), dtype="uint8", name="image")
    pixels = PixelNormalization([100] * 3, [50] * 3, name="normalize")(image)
    kind = getattr(keras.applications, name)
    whole = kind(include_top=False, weights=None, input_tensor=pixels, pooling="avg")
    return with_top(whole.output, image)


def alexnet(**settings):
    statistics = {"channel_mean": (120,) * 3, "channel_std": (60,) * 3}
    return build_network(model_config(**settings), num_classes=5, **statistics)


def nested():
    """Return a user's network: a sequential model and a functional one, twice nested."""
    inner_image = keras.Input((32, 32, 8))
    sum_ = keras.layers.Conv2D(8, 3, padding="same", name="conv")(inner_image) + inner_image
    inner = keras.Model(inner_image, keras.layers.BatchNormalization()(sum_), name="inner")
    relu = keras.layers.ReLU()
    outer = keras.Sequential(
        [
            keras.Input((64, 64, 3)),
            keras.layers.Conv2D(8, 3, strides=2, padding="same", name="conv"),
            relu,
            inner,
            relu,
            keras.layers.GlobalAveragePooling2D(),
        ],
        name="outer",
    )
    image = keras.Input((64, 64, 3), dtype="uint8", name="image")
    pixels = keras.layers.Rescaling(1 / 255)(image)
    return with_top(outer(pixels, training=False), image)


@pytest.mark.parametrize("name", SMALL)
def test_blocks_of_small_networks(name):
    network = build_unlike_network(name, size=64)
    maps, blocks = SMALL[name]
    assert find_classifier(network).name == "logits"
    assert find_feature_layer(network).name == "mean"
    assert find_last_maps(network).name == maps
    names = list_blocks(network)
    assert names[-1] == "mean"
    assert len(names) == len(set(names)) == blocks


@pytest.mark.parametrize(
    "name",
    [
        "MobileNetV3Small",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("ResNet50V2", "DenseNet121", "ConvNeXtTiny")
        ),
    ],
)
def test_networks_of_keras(name):
    network = inline_submodels(application(name))
    features, maps, blocks = APPLICATIONS[name]
    assert find_classifier(network).name == "logits"
    assert find_feature_layer(network).name == features
    assert find_last_maps(network).name == maps
    assert network.get_layer(maps).output.shape[1:3] == (2, 2)
    names = list_blocks(network)
    assert names[-1] == features
    assert len(names) == len(set(names)) == (blocks or len(names))


@pytest.mark.parametrize(
    "name",
    [
        *SMALL,
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("MobileNetV3Small", "ResNet50V2", "DenseNet121")
        ),
    ],
)
def test_nothing_passes_a_cut_but_its_output(name):
    """The upper part computes the same from a cut's output alone."""
    network = build_unlike_network(name, size=64) if name in SMALL else application(name)
    network = inline_submodels(network)
    expected = network(IMAGES).numpy()
    names = list_blocks(network)
    for cut in (names[0], names[len(names) // 2], names[-1]):
        layer = network.get_layer(cut)
        lower = keras.Model(network.input, layer.output)
        upper = keras.Model(layer.output, network.output)
        assert np.array_equal(upper(lower(IMAGES)).numpy(), expected)
        here = [one.name for one in network.layers].index(cut)
        assert {one.name for one in lower.layers} == {
            one.name for one in network.layers[: here + 1]
        }


def test_alexnet():
    network = alexnet()
    assert find_classifier(network).name == "fc8"
    assert find_feature_layer(network).name == "fc7"
    assert find_last_maps(network).name == "pool5"
    # conv3 and conv4 have no pool behind them.
    assert list_blocks(network) == ("pool1", "pool2", "conv3", "conv4", "flatten", "drop6", "fc7")


def test_submodels_are_inlined_with_their_weights():
    network = nested()
    network.get_layer("outer").trainable = False
    flat = inline_submodels(network)
    assert not [layer for layer in flat.layers if isinstance(layer, keras.Model)]
    names = [layer.name for layer in flat.layers]
    assert ("conv" in names, "inner_conv" in names) == (True, True)
    assert ("re_lu" in names, "re_lu_1" in names) == (True, True)  # one layer, called twice
    assert np.array_equal(flat(IMAGES).numpy(), network(IMAGES).numpy())
    # The caller said training=False: batch normalization keeps to its stored statistics.
    keras.utils.set_random_seed(0)
    flat.get_layer("dropout").rate = network.get_layer(network.layers[-2].name).rate = 0.0
    assert np.array_equal(flat(IMAGES, training=True).numpy(), flat(IMAGES).numpy())
    assert [layer.name for layer in flat.layers if layer.trainable_variables] == ["logits"]
    assert find_feature_layer(flat).name == "global_average_pooling2d"
    assert len({id(layer) for layer in flat.layers} & {id(layer) for layer in network.layers}) == 0
    assert list_blocks(flat) == ("re_lu", "global_average_pooling2d")


def test_copies_do_not_depend_on_what_was_built_before():
    """Names and weights follow from the network and the seed alone."""

    def copy(seed):
        image = keras.Input((64, 64, 3), dtype="uint8", name="image")
        return keras.Model(image, copy_layers(nested(), image, seed=seed))

    first, second, other = copy(1), copy(1), copy(2)
    assert [layer.name for layer in first.layers] == [layer.name for layer in second.layers]
    for one, two in zip(first.get_weights(), second.get_weights(), strict=True):
        assert np.array_equal(one, two)
    kernels = [model.get_layer("logits").get_weights()[0] for model in (first, other)]
    assert not np.array_equal(*kernels)


def test_layers_can_be_left_out():
    image = keras.Input((64, 64, 3), dtype="uint8", name="image")
    x = keras.layers.Normalization(mean=[1] * 3, variance=[2] * 3)(
        keras.layers.Rescaling(1 / 255)(image)
    )
    whole = with_top(keras.layers.GlobalAveragePooling2D()(x), image)
    copied = copy_layers(whole, image, leave_out=(keras.layers.Dropout,))
    kinds = {type(layer) for layer in keras.Model(image, copied).layers}
    assert keras.layers.Dropout not in kinds
    assert keras.layers.Dense in kinds


def test_a_network_that_cannot_be_taken_apart_is_refused_in_a_sentence():
    class Opaque(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(ConfigError, match="of class Opaque, whose layers cannot be seen"):
        inline_submodels(Opaque())
    image = keras.Input((8,))
    shared = keras.layers.Dense(8, name="shared")
    with pytest.raises(ConfigError, match="layer shared is called twice"):
        inline_submodels(keras.Model(image, shared(shared(image))))
    with pytest.raises(ConfigError, match="has 1 inputs and 2 outputs"):
        inline_submodels(keras.Model(image, [image + 1, image + 2]))


@pytest.mark.parametrize(
    ("last", "found"),
    [
        (keras.layers.Dense(5, activation="softmax", name="end"), "softmax"),
        (lambda x: keras.layers.Softmax(name="end")(keras.layers.Dense(5)(x)), "end, a Softmax"),
    ],
)
def test_what_ends_with_no_logits_has_no_classifier(last, found):
    image = keras.Input((8,))
    with pytest.raises(ConfigError, match=found):
        find_classifier(keras.Model(image, last(image)))


def test_a_group_for_each_map_becomes_a_depthwise_convolution():
    image = keras.Input((9, 9, 3), dtype="uint8")
    x = keras.layers.Conv2D(6, 3)(keras.layers.Rescaling(1 / 255)(image))
    settings = {"groups": 6, "strides": 2, "padding": "same", "activation": "tanh"}
    x = keras.layers.Conv2D(6, 3, bias_initializer="random_normal", name="each", **settings)(x)
    x = keras.layers.Conv2D(4, 3, groups=2, name="halves")(x)
    network = keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
    found = inline_submodels(network)
    each = found.get_layer("each")
    assert type(each) is keras.layers.DepthwiseConv2D
    own = network.get_layer("each")
    assert type(each.depthwise_initializer) is type(own.kernel_initializer)
    assert type(found.get_layer("halves")) is keras.layers.Conv2D
    pixels = np.random.default_rng(0).integers(0, 256, (3, 9, 9, 3), dtype=np.uint8)
    np.testing.assert_allclose(
        np.asarray(found(pixels)), np.asarray(network(pixels)), rtol=1e-5, atol=1e-6
    )


def test_an_adapted_normalization_keeps_what_it_was_adapted_to():
    """It computes with tensors that it made of its weights; an export wants them in the graph."""
    adapted = keras.layers.Normalization()
    adapted.adapt(IMAGES.astype(np.float32))
    network = keras.Sequential([keras.Input((64, 64, 3)), adapted, keras.layers.Flatten()])
    expected = np.asarray(network(IMAGES))
    assert abs(expected.mean()) < 0.1
    copied = inline_submodels(network)
    np.testing.assert_allclose(np.asarray(copied(IMAGES)), expected, atol=1e-5)
    assert keras.layers.Normalization not in {type(layer) for layer in copied.layers}
    whole = keras.layers.Normalization(axis=None, mean=100.0, variance=4.0)
    others = keras.layers.Normalization(axis=(1, 3), mean=[[1.0]], variance=[[4.0]])
    network = keras.Sequential([keras.Input((64, 64, 3)), whole, others])
    np.testing.assert_allclose(inline_submodels(network)(IMAGES), network(IMAGES), atol=1e-5)
    again = keras.layers.Normalization()
    again.build((None, 64, 64, 3))
    assign_layer_weights(again, adapted.get_weights())
    np.testing.assert_array_equal(again(IMAGES), adapted(IMAGES))
