"""Receptive fields of chains and of graphs, compared with where the gradient is."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.evaluate.map_layers import list_depth_layers
from pipeline.evaluate.receptive_field import ReceptiveField, compute_receptive_field
from pipeline.model.layers import SpatialResponseNormalization
from pipeline.model.networks import build_network
from tests.networks import model_config

FUSED = ["conv1", "conv2", "conv3", "conv4", "conv5"]


def network(size=32, classes=4, **settings):
    config = model_config(image_size=size, width_multiplier=0.125, **settings)
    return build_network(
        config, num_classes=classes, channel_mean=(120.0,) * 3, channel_std=(60.0,) * 3
    )


def square(*numbers):
    return ReceptiveField(*numbers), ReceptiveField(*numbers)


def test_receptive_fields_of_the_2012_network_are_the_published_ones():
    model = network(227, network="caffenet")
    found = [compute_receptive_field(model, name) for name in FUSED]
    assert all(rows == columns for rows, columns in found)
    fields = [rows for rows, _ in found]
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
        (field, same), last = (
            compute_receptive_field(model, name),
            model.get_layer(name).output.shape[1] - 1,
        )
        assert same == field
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
    assert compute_receptive_field(model, "conv1") == square(0, 1, 3)
    assert compute_receptive_field(model, "spatial") == square(-2, 1, 7)
    # 9 positions into 5, 2 apart: a border of 1 on each side.
    assert compute_receptive_field(model, "conv2") == square(-4, 4, 12)


def graph(size=(30, 22), activation="tanh", gate=False):
    """Return a small network of every kind of window, with a shortcut and two branches."""
    layers = keras.layers
    image = keras.Input((*size, 3), dtype="uint8")
    x = layers.Rescaling(1 / 64, name="normalize")(image)
    x = layers.ZeroPadding2D(((1, 0), (2, 1)))(x)
    x = layers.Conv2D(4, (3, 5), strides=2, activation=activation, name="stem")(x)
    y = layers.DepthwiseConv2D(3, padding="same", dilation_rate=2)(x)
    if gate:
        scale = layers.GlobalAveragePooling2D(keepdims=True)(y)
        y = y * layers.Conv2D(4, 1, activation="sigmoid")(scale)
    x = layers.Add(name="sum")([x, layers.Activation(activation)(layers.LayerNormalization()(y))])
    left = layers.SeparableConv2D(3, (1, 5), padding="same", activation=activation)(x)
    right = layers.AveragePooling2D(3, 1, padding="same")(x)
    x = layers.Concatenate(name="both")([left, right])
    x = layers.Cropping2D(((1, 0), (0, 1)))(layers.AveragePooling2D(2, 2)(x))
    x = layers.Conv2D(5, 3, padding="same", activation=activation, name="last")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(4, name="logits")(x))


@pytest.mark.parametrize("name", ["stem", "sum", "both", "last"])
def test_receptive_field_of_a_graph_is_where_the_gradient_is(name):
    model = graph()
    rows, columns = compute_receptive_field(model, name)
    assert rows != columns
    units = model.get_layer(name).output.shape[1:3]
    for unit in ((0, 0), (units[0] // 2, units[1] // 2), (units[0] - 1, units[1] - 1)):
        ends = []
        for field, side, index in zip((rows, columns), model.input_shape[1:3], unit, strict=True):
            start = field.start + field.stride * index
            ends += [max(start, 0), min(start + field.size, side) - 1]
        assert supports(model, "normalize", name, unit) == tuple(ends), unit


def test_what_is_one_number_for_a_map_does_not_widen_the_field():
    assert compute_receptive_field(graph(gate=True), "last") == compute_receptive_field(
        graph(), "last"
    )


def test_a_field_behind_enlarged_maps_or_unlike_strides_is_not_defined():
    image = keras.Input((16, 16, 3), dtype="uint8")
    x = keras.layers.Conv2D(2, 3, padding="same", name="seen")(keras.layers.Rescaling(1.0)(image))
    small = keras.layers.MaxPooling2D(2)(x)
    large = keras.layers.UpSampling2D(2)(small)
    both = keras.layers.Concatenate()([x, large])
    mixed = keras.layers.Add()(
        [keras.layers.Conv2D(2, 1, strides=2)(x), keras.layers.Conv2D(2, 9)(x)]
    )
    model = keras.Model(
        image,
        [
            keras.layers.Conv2D(2, 3, name="enlarged")(both),
            keras.layers.Conv2D(2, 3, name="unlike")(mixed),
        ],
    )
    assert compute_receptive_field(model, "seen") == square(-1, 1, 3)
    assert compute_receptive_field(model, "enlarged") is None
    assert compute_receptive_field(model, "unlike") is None
