"""The layers of networks whose structure is known."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.evaluate.chain import (
    ReceptiveField,
    can_explain,
    compute_receptive_field,
    find_feature_layer,
    list_depth_layers,
    read_first_filters,
)
from pipeline.model.layers import SpatialResponseNormalization
from pipeline.model.networks import build_network
from tests.networks import model_config

FUSED = ["conv1", "conv2", "conv3", "conv4", "conv5"]


def network(size=32, classes=4, **settings):
    config = model_config(image_size=size, width_multiplier=0.125, **settings)
    return build_network(
        config, num_classes=classes, channel_mean=(120.0,) * 3, channel_std=(60.0,) * 3
    )


def noise(count, size=32):
    return np.random.default_rng(size).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, FUSED),
        ({"network": "cifar", "normalization": "batch"}, ["relu1", "relu2", "relu3"]),
        ({"network": "cifar"}, ["relu1", "conv2", "conv3"]),  # it pools before it activates
        (
            {"normalization": "batch", "activation": "tanh"},
            ["tanh1", "tanh2", "tanh3", "tanh4", "tanh5"],
        ),
        ({"layer_order": "code"}, ["relu1", "conv2", "conv3", "conv4", "conv5"]),
        ({"remove_layer": "conv4"}, ["conv1", "conv2", "conv3", "conv5"]),
        ({"sixth_layer": True}, [*FUSED, "conv6"]),
    ],
)
def test_depth_layers_are_the_activated_ones(settings, expected):
    assert list_depth_layers(network(**settings)) == expected


def test_only_the_activation_of_a_convolution_is_its_output():
    image = keras.Input((8, 8, 3), dtype="uint8")
    x = keras.layers.Activation("linear", name="before")(keras.layers.Rescaling(1.0)(image))
    x = keras.layers.Conv2D(2, 3, activation="relu", name="fused")(x)
    x = keras.layers.Conv2D(2, 3, name="bare")(keras.layers.Activation("tanh", name="again")(x))
    x = keras.layers.Activation("softmax", name="answer")(
        keras.layers.Dense(2)(keras.layers.Flatten()(x))
    )
    assert list_depth_layers(keras.Model(image, x)) == ["fused", "bare"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, "fc7"), ({"dropout_position": "before"}, "fc7"), ({"network": "cifar"}, "flatten")],
)
def test_features_come_from_the_last_layer_before_the_logits(settings, expected):
    assert find_feature_layer(network(**settings)) == expected


def test_dropout_is_no_feature_layer():
    image = keras.Input((8, 8, 3), dtype="uint8")
    x = keras.layers.Dropout(0.5)(
        keras.layers.Dense(5, name="hidden")(
            keras.layers.Flatten()(keras.layers.Rescaling(1.0)(image))
        )
    )
    assert find_feature_layer(keras.Model(image, keras.layers.Dense(2)(x))) == "hidden"


@pytest.mark.parametrize(
    ("settings", "towers"),
    [
        ({}, 2),
        ({"remove_layer": "conv2"}, 1),
        ({"network": "cifar"}, 1),
        ({"network": "owt", "size": 64}, 1),
    ],
)
def test_filters_and_their_towers(settings, towers):
    model = network(**settings)
    kernel, found = read_first_filters(model)
    assert found == towers
    assert np.array_equal(kernel, model.get_layer("conv1").kernel.numpy())
    assert kernel.dtype == np.float32


def test_only_chains_with_a_convolution_over_colors_are_explainable(tmp_path, make_model):
    make_model(classes=3).save(tmp_path / "saved.keras")
    assert can_explain(keras.saving.load_model(tmp_path / "saved.keras", compile=False))
    assert can_explain(network())
    image = keras.Input((8, 8, 3), dtype="uint8")
    scaled = keras.layers.Rescaling(1.0)(image)
    seen = keras.layers.Conv2D(3, 3, padding="same")(scaled)
    branched = keras.layers.Flatten()(keras.layers.Add()([scaled, seen]))
    without = keras.layers.Dense(2)(keras.layers.Flatten()(scaled))
    nested = keras.layers.Flatten()(keras.Sequential([keras.layers.Conv2D(3, 3)])(scaled))
    gray = keras.layers.Conv2D(3, 3)(scaled[..., :1])
    assert not any(
        can_explain(keras.Model(image, end)) for end in (branched, without, nested, gray)
    )


def test_receptive_fields_of_the_2012_network_are_the_published_ones():
    fields = [compute_receptive_field(network(227, network="caffenet"), name) for name in FUSED]
    assert [field.size for field in fields] == [11, 51, 99, 131, 163]
    assert [field.stride for field in fields] == [4, 8, 16, 16, 16]
    assert [field.start for field in fields] == [0, -16, -32, -48, -64]


def supports(model, source, layer, unit, images=6):
    """Return the first and last row and column whose pixels some map of a layer's unit moves with,
    for some noise."""
    part = keras.Model(model.get_layer(source).output, model.get_layer(layer).output)
    values = tf.constant(
        np.random.default_rng(0).normal(size=(images, *part.input_shape[1:])), tf.float32
    )
    with tf.GradientTape() as tape:
        tape.watch(values)
        score = tf.reduce_sum(part(values)[:, unit[0], unit[1]])
    moved = np.abs(tape.gradient(score, values).numpy()).sum(axis=(0, 3)) > 0
    rows, columns = np.flatnonzero(moved.any(axis=1)), np.flatnonzero(moved.any(axis=0))
    return rows[0], rows[-1], columns[0], columns[-1]


@pytest.mark.parametrize(
    "settings",
    [
        {"activation": "tanh"},
        {"size": 31, "activation": "tanh", "normalization": "batch"},
        {
            "size": 34,
            "network": "cifar",
            "activation": "tanh",
        },  # pools that fall off one edge, then off two
        {"size": 67, "network": "owt", "activation": "tanh", "overlapping_pooling": False},
        {
            "size": 96,
            "network": "ungrouped",
            "activation": "tanh",
        },  # a border at the end, normalization over positions
    ],
)
def test_receptive_field_is_where_the_gradient_is(settings):
    model = network(**settings)
    for name in list_depth_layers(model):
        field, last = (
            compute_receptive_field(model, name),
            model.get_layer(name).output.shape[1] - 1,
        )
        for unit in ((0, last), (last // 2, last // 3)):
            first = [field.start + field.stride * index for index in unit]
            ends = [
                (max(start, 0), min(start + field.size, model.input_shape[1]) - 1)
                for start in first
            ]
            assert supports(model, "normalize", name, unit) == (*ends[0], *ends[1]), (name, unit)


def test_normalization_over_positions_widens_the_field():
    image = keras.Input((20, 20, 3), dtype="uint8")
    x = keras.layers.Conv2D(2, 3, name="conv1")(keras.layers.Rescaling(1.0)(image))
    x = keras.layers.AveragePooling2D(2, 2)(SpatialResponseNormalization(name="spatial")(x))
    model = keras.Model(
        image, keras.layers.Conv2D(2, 3, strides=2, padding="same", name="conv2")(x)
    )
    assert compute_receptive_field(model, "conv1") == ReceptiveField(0, 1, 3)
    assert compute_receptive_field(model, "spatial") == ReceptiveField(-2, 1, 7)
    # 9 positions into 5, 2 apart: a border of 1 on each side.
    assert compute_receptive_field(model, "conv2") == ReceptiveField(-4, 4, 12)
