"""Networks of every family that start from a champion with more classes, and their features."""

import json

import keras
import numpy as np
import pytest

from pipeline.evaluate.map_layers import find_embedding_layer, flatten_graph
from pipeline.model.networks import build_network
from pipeline.model.pretrained import load_pretrained_network
from pipeline.model.weights import load_model, save_model
from pipeline.retrain.image_measurements import _add_features
from tests.networks import model_config

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
OLD, NEW = ("ant", "bee", "cow"), ("ant", "bat", "bee", "cow")


def build(image_size, classes):
    """Return a user's network that takes levels of 0-255 and scales them itself."""
    layers = keras.layers
    image = keras.Input((image_size, image_size, 3), dtype="uint8")
    x = layers.Rescaling(1 / 127.5, offset=-1)(image)
    x = layers.Conv2D(6, 3, strides=2, activation="relu")(x)
    x = x + layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.BatchNormalization()(x)
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, layers.Dense(classes)(x))


@pytest.fixture(params=["keras/MobileNet", "function", "file"])
def config(request, tmp_path):
    """Return the settings of a network of each family."""
    name = request.param
    if name == "function":
        name = "tests.model.test_warm_start:build"
    if name == "file":
        build(32, 5).save(tmp_path / "base.keras")
        name = str(tmp_path / "base.keras")
    return model_config(network=name, image_size=32)


def release(config, folder):
    """Write the package of a champion of `OLD`, whose weights are not those of a fresh network."""
    network = build_network(
        config, num_classes=len(OLD), channel_mean=(120,) * 3, channel_std=(60,) * 3
    )
    rng = np.random.default_rng(1)
    for layer in network.layers:
        changed = [
            (weight + rng.normal(0, 0.01, weight.shape)).astype(weight.dtype)
            if weight.dtype.kind == "f"
            else weight
            for weight in layer.get_weights()
        ]
        layer.set_weights(changed)
    (folder / "data").mkdir(parents=True)
    save_model(network, folder / "data" / "model.keras")
    (folder / "release.json").write_text(json.dumps({"class_names": OLD}))
    return network


def test_a_new_class_is_fresh_and_all_else_is_the_champion(config, tmp_path):
    champion = release(config, tmp_path / "package")
    weights = str(tmp_path / "package" / "data" / "model.keras")
    started = load_pretrained_network(config.model_copy(update={"weights": weights}), NEW)
    assert started.fresh_layers == (started.network.layers[-1].name,)
    logits = np.asarray(started.network(IMAGES, training=False))
    expected = np.asarray(champion(IMAGES, training=False))
    np.testing.assert_allclose(logits[:, [0, 2, 3]], expected, atol=1e-5)
    again = load_pretrained_network(config.model_copy(update={"weights": weights}), OLD)
    assert again.fresh_layers == ()
    np.testing.assert_allclose(
        np.asarray(again.network(IMAGES, training=False)), expected, atol=1e-6
    )


@pytest.mark.parametrize(
    "config",
    [pytest.param("keras/MobileNet", marks=pytest.mark.slow), "function", "file"],
    indirect=True,
)
def test_drift_is_measured_on_what_the_classifier_reads(config, tmp_path):
    champion = release(config, tmp_path / "package")
    opened = load_model(tmp_path / "package" / "data" / "model.keras")
    both, units = _add_features(opened)
    found = np.asarray(both(IMAGES, training=False))
    kernel, bias = champion.layers[-1].get_weights()
    assert units == kernel.shape[0]
    np.testing.assert_allclose(found[:, :units] @ kernel + bias, found[:, units:], atol=1e-5)
    flat = flatten_graph(opened)
    assert find_embedding_layer(flat) != flat.layers[-1].name


def test_features_of_a_file_with_a_submodel_and_a_softmax():
    base = build(32, 4)
    base = keras.Model(base.inputs[0], base.layers[-2].output, name="base")
    outer = keras.Sequential(
        [keras.Input((32, 32, 3), dtype="uint8"), base, keras.layers.Dense(4, "softmax")]
    )
    opened = keras.Model(outer.inputs[0], outer.outputs[0])
    both, units = _add_features(opened)
    assert units == 6
    np.testing.assert_allclose(
        np.asarray(both(IMAGES, training=False))[:, units:],
        np.asarray(opened(IMAGES, training=False)),
        atol=1e-6,
    )
