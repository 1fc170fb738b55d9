"""The layers of networks whose structure is known."""

import keras
import numpy as np
import pytest

from pipeline.evaluate.map_layers import (
    find_embedding_layer,
    find_first_convolution,
    list_depth_layers,
    read_first_filters,
)
from pipeline.model.layers import PixelNormalization
from pipeline.model.networks import build_network
from tests.networks import model_config

FUSED = ["conv1", "conv2", "conv3", "conv4", "conv5"]


def network(size=32, classes=4, **settings):
    config = model_config(image_size=size, width_multiplier=0.125, **settings)
    return build_network(
        config, num_classes=classes, channel_mean=(120.0,) * 3, channel_std=(60.0,) * 3
    )


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
    assert find_embedding_layer(network(**settings)) == expected


def test_dropout_is_no_feature_layer():
    image = keras.Input((8, 8, 3), dtype="uint8")
    x = keras.layers.Dropout(0.5)(
        keras.layers.Dense(5, name="hidden")(
            keras.layers.Flatten()(keras.layers.Rescaling(1.0)(image))
        )
    )
    assert find_embedding_layer(keras.Model(image, keras.layers.Dense(2)(x))) == "hidden"


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


def test_layers_of_a_saved_network_are_found(tmp_path, make_model):
    make_model(classes=3).save(tmp_path / "saved.keras")
    loaded = keras.saving.load_model(tmp_path / "saved.keras", compile=False)
    assert list_depth_layers(loaded) == ["conv1"]
    assert find_first_convolution(loaded).name == "conv1"


def backbone(name, size, **settings):
    """Return a network of keras.applications as the pipeline has them, with fresh weights."""
    image = keras.Input((size, size, 3), dtype="uint8", name="image")
    pixels = PixelNormalization((127,) * 3, (64,) * 3, name="normalize")(image)
    body = getattr(keras.applications, name)(
        weights=None, include_top=False, input_tensor=pixels, pooling="avg", **settings
    )
    features = keras.layers.Dropout(0.2, name="drop")(body.output)
    return keras.Model(image, keras.layers.Dense(5, name="logits")(features))


@pytest.mark.parametrize(
    ("name", "size", "first", "sizes", "last"),
    [
        ("MobileNetV3Small", 64, "conv", [32, 16, 8, 4, 2], "activation"),
        ("MobileNetV3Small", 32, "conv", [16, 8, 4, 2], "activation"),
        ("VGG16", 64, "block1_conv1", [64, 32, 16, 8, 4], "block5_conv3"),
        *(
            pytest.param(*values, marks=pytest.mark.slow)
            for values in (
                ("EfficientNetB0", 64, "stem_conv", [32, 16, 8, 4, 2], "top_activation"),
                ("ResNet50V2", 64, "conv1_conv", [16, 8, 4, 2], "post_relu"),
                ("DenseNet121", 64, "conv1_conv", [32, 16, 8, 4, 2], "relu"),
            )
        ),
    ],
)
def test_layers_of_known_networks_are_the_ends_of_their_stages(name, size, first, sizes, last):
    settings = {"include_preprocessing": False} if name.startswith("Mobile") else {}
    model = backbone(name, size, **settings)
    layers = list_depth_layers(model)
    assert [model.get_layer(layer).output.shape[1] for layer in layers] == sizes
    assert layers[-1].startswith(last)
    assert find_first_convolution(model).name.startswith(first)
    features = model.get_layer(find_embedding_layer(model)).output
    assert features is model.get_layer("drop").input
    # Each divides the network: the logits follow from its output alone.
    for layer in layers:
        keras.Model(model.get_layer(layer).output, model.output)


def test_of_many_layers_of_one_size_some_are_shown():
    image = keras.Input((8, 8, 3), dtype="uint8")
    x = keras.layers.Rescaling(1.0)(image)
    for index in range(16):
        conv = keras.layers.Conv2D(2, 3, padding="same", activation="relu", name=f"conv{index}")
        x = conv(x)
    model = keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
    assert list_depth_layers(model) == [f"conv{index}" for index in (0, 3, 6, 9, 12, 15)]


def test_what_lies_beside_a_shortcut_is_not_shown():
    image = keras.Input((8, 8, 3), dtype="uint8")
    scaled = keras.layers.Rescaling(1.0)(image)
    seen = keras.layers.Conv2D(3, 3, padding="same", name="beside")(scaled)
    x = keras.layers.Add(name="sum")([scaled, seen])
    model = keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
    assert list_depth_layers(model) == ["sum"]
    without = keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(scaled)))
    assert list_depth_layers(without) == []
    assert find_first_convolution(without) is None


def test_filters_of_gray_pixels_are_not_colors():
    image = keras.Input((8, 8, 3), dtype="uint8")
    gray = keras.layers.Conv2D(2, 3, name="conv")(keras.layers.Rescaling(1.0)(image)[..., :1])
    model = keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(gray)))
    assert find_first_convolution(model) is None


@pytest.mark.parametrize("ending", ["softmax", "activation", "convolution"])
def test_features_are_what_the_classifier_reads_whatever_is_behind_it(ending):
    image = keras.Input((8, 8, 3), dtype="uint8")
    x = keras.layers.Conv2D(4, 3, name="conv")(keras.layers.Rescaling(1.0)(image))
    if ending == "convolution":  # a classifier at every position, and the mean of its answers
        x = keras.layers.Conv2D(2, 1)(keras.layers.Dropout(0.5)(x))
        x = keras.layers.Softmax()(keras.layers.GlobalAveragePooling2D()(x))
        assert find_embedding_layer(keras.Model(image, x)) == "conv"
        return
    x = keras.layers.GlobalAveragePooling2D(name="mean")(x)
    x = keras.layers.Dense(2)(keras.layers.Dropout(0.5)(x))
    x = {"softmax": keras.layers.Softmax(), "activation": keras.layers.Activation("softmax")}[
        ending
    ](x)
    assert find_embedding_layer(keras.Model(image, x)) == "mean"
