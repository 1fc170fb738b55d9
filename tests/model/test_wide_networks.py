"""Networks whose input's height and width differ, of every family."""

import math

import keras
import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.model.keras_networks import build_with_imagenet_weights
from pipeline.model.layer_table import describe_layers
from pipeline.model.networks import (
    build_network,
    find_network,
    network_names,
    require_network_settings,
)
from pipeline.model.signal import make_photo_like_noise
from pipeline.model.weights import load_model, save_model
from pipeline.reproduce.plain_network import build_plain_network
from tests.model.test_networks import config_of
from tests.networks import model_config

COLORS = {"channel_mean": (120.0, 110.0, 100.0), "channel_std": (60.0, 61.0, 62.0)}


def built(name, size, **settings):
    config = model_config(network=name, image_size=size, **settings)
    return build_network(config, num_classes=5, **COLORS)


def assert_answers(network, size):
    """Check that a network takes images of a size, and that what it answers follows from them."""
    assert network.input_shape == (None, *size, 3)
    assert describe_layers(network)[0].output == (*size, 3)
    images = make_photo_like_noise(3, size)
    assert images.shape == (3, *size, 3)
    answers = network(images).numpy()
    assert answers.shape == (3, 5)
    assert np.isfinite(answers).all() and not np.array_equal(answers[0], answers[1])


@pytest.mark.parametrize("name", network_names("alexnet"))
@pytest.mark.parametrize("turned", [False, True])
def test_alexnet(name, turned):
    """Maps keep the shape of the image, and the first hidden layer reads all of the last ones."""
    least = find_network(name).min_image_size
    size = (2 * least + 5, least) if turned else (least, 2 * least + 5)
    network = built(name, size, width_multiplier=0.1)
    assert_answers(network, size)
    layers = {layer.layer: layer for layer in describe_layers(network)}
    dense = next(layer for layer in network.layers if isinstance(layer, keras.layers.Dense))
    maps = [layer.output for layer in layers.values() if len(layer.output) == 3]
    assert layers["flatten"].output == (math.prod(maps[-1]),)
    assert dense.kernel.shape[0] == math.prod(maps[-1])
    other = built(name, size[::-1], width_multiplier=0.1)
    for layer, turn in zip(network.layers, other.layers, strict=True):
        shape = layer.output.shape[1:]
        assert len(shape) == 1 or turn.output.shape[1:] == (shape[1], shape[0], shape[2])


def test_the_sides_of_2012_are_those_of_its_squares():
    """Each side has the positions that it has in a square: 224 gives 55, 6 in the last pool."""
    network = built("paper", (224, 160), width_multiplier=0.1)
    square = {size: built("paper", size, width_multiplier=0.1) for size in (224, 160)}
    for layer in network.layers:
        if len(layer.output.shape) == 4:
            sides = tuple(square[size].get_layer(layer.name).output.shape[1] for size in (224, 160))
            assert layer.output.shape[1:3] == sides
    assert network.get_layer("edge").output.shape[1:3] == (227, 163)
    assert network.get_layer("pool5").output.shape[1:3] == (6, 4)


def test_a_square_given_by_two_sides_is_the_same_network(tmp_path):
    for index, size in enumerate((32, "32x32")):
        save_model(built("small", size, width_multiplier=0.1), tmp_path / f"{index}.keras")
    assert (tmp_path / "0.keras").read_bytes() == (tmp_path / "1.keras").read_bytes()


@pytest.mark.parametrize(
    "name", ["efficientnet_lite0", pytest.param("keras/MobileNetV3Small", marks=pytest.mark.slow)]
)
def test_other_families(name, tmp_path):
    network = built(name, (32, 72))
    assert_answers(network, (32, 72))
    save_model(network, tmp_path / "model.keras")
    images = make_photo_like_noise(2, (32, 72))
    again = load_model(tmp_path / "model.keras")
    assert np.array_equal(again(images).numpy(), network(images).numpy())


def test_plain_networks():
    config = model_config(network="small", image_size="16x24")
    assert_answers(build_plain_network(3, config, num_classes=5, **COLORS), (16, 24))


@pytest.mark.parametrize("size", ["31x224", "224x31"])
def test_the_smallest_size_holds_for_both_sides(size):
    with pytest.raises(ConfigError, match=rf"at least 32 pixels, .* Received {size}\."):
        require_network_settings(config_of(network="efficientnet_lite0", image_size=size))
    require_network_settings(config_of(network="efficientnet_lite0", image_size="32x224"))


def test_a_classifier_of_keras_is_for_its_own_size_alone():
    row = find_network("keras/MobileNetV3Small")
    config = model_config(network=row.name, image_size="224x160")
    with pytest.raises(ConfigError, match=r"for images of 224 pixels.*image_size=224x160"):
        build_with_imagenet_weights(row, config, num_classes=1000, keeps_classifier=True)


class TestOfOnesOwn:
    SOURCE = """
import keras


def build(image_size, classes):
    height, width = image_size
    return keras.Sequential([
        keras.Input((height, width, 3)), keras.layers.Conv2D(4, 3, strides=2),
        keras.layers.Flatten(), keras.layers.Dense(classes)])


def square(image_size, classes):
    assert type(image_size) is int
    return [keras.layers.Conv2D(4, 3)]


def layers(image_size, classes):
    return [keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D()]
"""

    @pytest.fixture
    def module(self, tmp_path, monkeypatch):
        name = f"my_wide_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{name}.py").write_text(self.SOURCE)
        monkeypatch.chdir(tmp_path)
        return name

    def test_a_function_gets_height_and_width(self, module):
        for function in ("build", "layers"):
            assert_answers(built(f"{module}:{function}", (24, 40)), (24, 40))
        assert built(f"{module}:square", "24x24").input_shape == (None, 24, 24, 3)

    @pytest.mark.parametrize(
        ("sides", "size"),
        [((24, 40), (24, 40)), ((40, 40), 40), ((None, 40), 40), ((None, None), 224)],
    )
    def test_a_file_has_the_size_of_its_input(self, sides, size, tmp_path):
        layers = [keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(4, 3)]
        given = keras.Sequential(
            [keras.Input((*sides, 3)), *layers, keras.layers.GlobalAveragePooling2D()]
        )
        given.save(tmp_path / "given.keras")
        row = find_network(str(tmp_path / "given.keras"))
        assert row.image_size == size
        if size == (24, 40):
            assert_answers(built(row.name, row.image_size), size)
