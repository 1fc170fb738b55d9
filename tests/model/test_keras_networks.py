"""Networks of keras.applications as this project builds them."""

import keras
import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.model.graph import find_classifier, find_feature_layer
from pipeline.model.keras_networks import build_with_imagenet_weights
from pipeline.model.networks import build_network, find_network, network_names
from pipeline.model.safety import require_safe
from pipeline.model.weights import load_model, save_model
from tests.networks import model_config

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 61.0, 62.0)
UNLIKE = ("MobileNetV3Small", "EfficientNetB0", "EfficientNetV2B0", "ResNet50V2", "ConvNeXtTiny")
# Large ones take minutes and gigabytes.
LARGE = ("ConvNeXtBase", "ConvNeXtLarge", "ConvNeXtXLarge", "NASNetLarge", "EfficientNetV2L")


def built(name, classes=5, size=64, **settings):
    config = model_config(network=f"keras/{name}", image_size=size, **settings)
    return build_network(config, num_classes=classes, channel_mean=MEAN, channel_std=STD)


@pytest.fixture(scope="module")
def mobilenet():
    """Return the small network that several tests look at and none changes."""
    return built("MobileNetV3Small")


@pytest.mark.parametrize(
    "name", [UNLIKE[0], *(pytest.param(name, marks=pytest.mark.slow) for name in UNLIKE[1:])]
)
def test_a_network_is_what_the_pipeline_expects(name, mobilenet, tmp_path):
    network = mobilenet if name == "MobileNetV3Small" else built(name)
    assert (network.input_shape, network.input.dtype) == ((None, 64, 64, 3), "uint8")
    assert network.input.name == "image"
    assert find_classifier(network) is network.layers[-1]
    assert network.layers[-1].name == "logits"
    assert len(find_feature_layer(network).output.shape) == 2
    kinds = [type(layer).__name__ for layer in network.layers]
    assert kinds.count("PixelNormalization") == 1
    assert not {"Rescaling", "Normalization", "Functional", "Sequential"} & set(kinds)
    normalize = network.get_layer("normalize").get_config()
    assert (normalize["mean"], normalize["std"]) == (list(MEAN), list(STD))
    save_model(network, tmp_path / "model.keras")
    require_safe(tmp_path / "model.keras")
    again = load_model(tmp_path / "model.keras")
    assert np.array_equal(again(IMAGES).numpy(), network(IMAGES).numpy())


def test_a_file_follows_from_the_seed_alone(mobilenet, tmp_path):
    keras.layers.Conv2D(3, 3)  # Keras counts the names that it makes up
    contents = []
    for index, network in enumerate((mobilenet, built("MobileNetV3Small"))):
        path = tmp_path / f"{index}.keras"
        save_model(network, path)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


def test_the_initial_weights_of_a_layer_follow_from_its_name_and_the_seed(mobilenet):
    large = built("MobileNetV3Small", classes=7, size=96)
    other = built("MobileNetV3Small", seed=4)
    for layer in mobilenet.layers[:-1]:
        weights = zip(
            layer.get_weights(),
            large.get_layer(layer.name).get_weights(),
            other.get_layer(layer.name).get_weights(),
            strict=True,
        )
        for one, same, another in weights:
            assert np.array_equal(one, same), layer.name
            assert one.ndim == 1 or not np.array_equal(one, another), layer.name


@pytest.mark.parametrize(
    "name",
    [
        "VGG16",
        "MobileNet",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("EfficientNetB0", "ResNet50")),
    ],
)
def test_published_weights_see_the_pixels_that_they_were_trained_on(name, monkeypatch):
    """Our network of Keras's weights gives Keras's features for pixels as Keras prepares them."""
    make = getattr(keras.applications, name)
    keras.utils.set_random_seed(0)
    application = make(include_top=False, weights=None, input_shape=(64, 64, 3), pooling="avg")
    monkeypatch.setattr(keras.applications, name, lambda **_: application)
    row = find_network(f"keras/{name}")
    network = build_with_imagenet_weights(
        row,
        model_config(network=row.name, image_size=64),
        num_classes=5,
        keeps_classifier=False,
    )
    features = keras.Model(network.input, find_feature_layer(network).output)
    pixels = IMAGES.astype(np.float32)
    if name == "EfficientNetB0":  # its third layer, with ImageNet's weights
        mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
        first = next(layer for layer in application.layers if hasattr(layer, "kernel"))
        rest = keras.Model(first.input, application.output)
        pixels = keras.ops.pad((pixels / 255 - mean) / std, ((0, 0), (0, 1), (0, 1), (0, 0)))
        expected = rest(pixels).numpy()
    else:
        module = getattr(keras.applications, {"ResNet50": "resnet"}.get(name, name.lower()))
        expected = application(module.preprocess_input(pixels)).numpy()
    found = features(IMAGES).numpy()
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    "name",
    ["MobileNetV3Small", "MobileNet", pytest.param("EfficientNetV2B0", marks=pytest.mark.slow)],
)
def test_the_published_classifier_gives_the_logits_of_keras(name, monkeypatch):
    """With hidden layers above the features, with a convolution as classifier, and with a Dense."""
    make = getattr(keras.applications, name)
    keras.utils.set_random_seed(0)
    monkeypatch.setattr(
        keras.applications, name, lambda weights, **arguments: make(weights=None, **arguments)
    )
    row = find_network(f"keras/{name}")
    config = model_config(network=row.name, image_size=224)
    network = build_with_imagenet_weights(row, config, num_classes=1000, keeps_classifier=True)
    # The same weights behind our pixels and behind Keras's.
    application = make(weights=None, classifier_activation=None)
    kinds = (keras.layers.Normalization, keras.layers.Dropout)
    theirs = [
        layer for layer in application.layers if layer.weights and not isinstance(layer, kinds)
    ]
    ours = [layer for layer in network.layers if layer.weights and not isinstance(layer, kinds)]
    for one, other in zip(theirs, ours, strict=True):
        weights = zip(one.get_weights(), other.get_weights(), strict=True)
        one.set_weights([values.reshape(old.shape) for old, values in weights])
    images = np.random.default_rng(1).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    pixels = images.astype(np.float32)
    if name == "MobileNet":
        pixels = keras.applications.mobilenet.preprocess_input(pixels)
    expected = application(pixels).numpy()
    assert np.allclose(network(images), expected, atol=1e-4 * np.abs(expected).max())
    with pytest.raises(ConfigError, match="is for images of 224 pixels"):
        build_with_imagenet_weights(
            row,
            model_config(network=row.name, image_size=192),
            num_classes=1000,
            keeps_classifier=True,
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", network_names("keras"))
def test_every_network_builds_at_its_smallest_size(name, tmp_path):
    row = find_network(name)
    short = name.partition("/")[2]
    if short in LARGE:
        pytest.skip("takes minutes and gigabytes")
    network = built(short, size=row.min_image_size)
    assert network.output_shape == (None, 5)
    save_model(network, tmp_path / "model.keras")
    require_safe(tmp_path / "model.keras")
