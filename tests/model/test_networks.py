"""The registry of networks: its rows, and which settings each network has."""

import re
import subprocess
import sys

import pytest

from pipeline.config.recipes import flatten
from pipeline.config.settings import Config
from pipeline.errors import ConfigError
from pipeline.model.alexnet_rows import networks_with_weights
from pipeline.model.networks import (
    find_network,
    network_code,
    network_names,
    require_network_settings,
)
from pipeline.workspace.workspace import ALL_STAGES, Workspace
from tests.networks import model_config


def config_of(**settings):
    return Config(model=model_config(**settings), data={"short_side": 1024})


def complaint(**settings):
    with pytest.raises(ConfigError) as caught:
        require_network_settings(config_of(**settings))
    return str(caught.value)


def test_rows_are_named_and_described():
    names = network_names()
    assert len(set(names)) == len(names) == 7 + 3 + 40
    assert len(network_names("alexnet")) == 7
    for row in map(find_network, names):
        assert 0 < len(row.summary) <= 62, row.summary
        assert row.min_image_size <= row.image_size
        require_network_settings(config_of(network=row.name, image_size=row.image_size))
        require_network_settings(config_of(network=row.name, image_size=row.min_image_size))


def test_all_of_keras_applications_has_a_row():
    """A network that another version of Keras brings, or leaves out, is noticed here."""
    import keras

    found = {
        f"keras/{name}"
        for name, value in vars(keras.applications).items()
        if callable(value) and name[0].isupper()
    }
    assert found == set(network_names("keras"))
    for name in found:
        row = find_network(name)
        assert 0.13 < row.imagenet_top1_error < 0.32
        assert row.licence
        assert row.bgr == (row.name.startswith(("keras/VGG", "keras/ResNet")) and "V2" not in name)


@pytest.mark.parametrize("name", network_names("keras"))
def test_pixels_are_scaled_as_keras_scales_them(name):
    """Where Keras has a function for it; the others scale them in layers."""
    import keras
    import numpy as np

    row = find_network(name)
    module = sys.modules[getattr(keras.applications, name.partition("/")[2]).__module__]
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 4, 4, 3)).astype(np.float32)
    theirs = module.preprocess_input(pixels.copy())
    if np.array_equal(theirs, pixels):
        layers = ("mobilenet_v3", "efficientnet", "efficientnet_v2", "convnext")
        assert module.__name__.rpartition(".")[2] in layers
        return
    ours = (pixels - np.array(row.pixel_mean)) / np.array(row.pixel_std)
    ours = ours[..., ::-1] if row.bgr else ours
    assert np.allclose(theirs, ours, atol=1e-5)


def test_a_name_may_have_its_family():
    assert model_config(network="alexnet/owt").network == "owt"
    assert model_config(network="alexnet/owt") == model_config(network="owt")


def test_settings_of_alexnet_are_refused_elsewhere():
    sentence = complaint(network="keras/MobileNet", image_size=224, activation="tanh")
    assert "model.alexnet.activation would change nothing: network keras/MobileNet" in sentence
    assert sentence.endswith("Received tanh. Leave activation out.")
    sentence = complaint(network="efficientnet_lite0", image_size=224, fidelity="paper")
    assert "model.alexnet.fidelity would change nothing" in sentence


def test_the_registry_needs_no_tensorflow():
    code = (
        "import sys, pipeline.model.networks;"
        " print('tensorflow' in sys.modules, 'keras' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_an_unknown_network_is_refused_with_a_near_miss():
    sentence = complaint(network="papier")
    assert sentence.startswith("Unknown network `papier`. Expected one of small, paper, ")
    assert "Did you mean `paper`?" in sentence
    assert "Did you mean" not in complaint(network="xyzzy")


@pytest.mark.parametrize(
    "name", [name for name in network_names("alexnet") if name not in ("small", "cifar")]
)
def test_images_that_are_too_small(name):
    sentence = complaint(network=name, image_size=62)
    least = find_network(name).min_image_size
    assert f"needs a model.image_size of at least {least} pixels" in sentence
    assert "--set data.short_side=256 --image-size 224, or keep --network small" in sentence


def test_fidelity_of_a_network_that_has_none():
    sentence = complaint(fidelity="paper")
    assert "Expected it with model.network paper, ungrouped, single_tower." in sentence
    assert "Received network small. Leave fidelity out." in sentence


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"network": "owt", "lrn_alpha": 1e-4}, "alexnet.lrn_alpha"),
        ({"normalization": "none", "lrn_across": "maps"}, "alexnet.lrn_across"),
        ({"normalization": "batch", "layer_order": "caffe"}, "alexnet.layer_order"),
        ({"normalization": "batch", "spatial_norm": True}, "alexnet.spatial_norm"),
        ({"network": "cifar", "layer_order": "code"}, "alexnet.layer_order"),
        ({"network": "cifar", "dropout": 0.2}, "dropout"),
        ({"network": "cifar", "dropout_position": "before"}, "alexnet.dropout_position"),
        ({"network": "cifar", "initialization": "paper"}, "alexnet.initialization"),
        ({"network": "cifar", "sixth_layer": True}, "alexnet.sixth_layer"),
    ],
)
def test_a_setting_of_the_network_that_would_change_nothing_is_refused(settings, setting):
    size = 224 if settings.get("network") == "owt" else 32
    sentence = complaint(image_size=size, **settings)
    assert f"model.{setting} would change nothing" in sentence
    assert re.search(r"Leave \w+ out\.$", sentence)


@pytest.mark.parametrize("layer", ["conv4", "conv5"])
def test_a_layer_that_is_not_there_cannot_be_removed(layer):
    sentence = complaint(network="cifar", remove_layer=layer)
    assert sentence.startswith(f"Network cifar has no layer {layer}.")
    assert "one of conv2, conv3." in sentence


@pytest.mark.parametrize(
    "settings",
    [
        {"normalization": "lrn", "network": "cifar", "lrn_alpha": 1e-4},
        {"normalization": "none", "layer_order": "code", "spatial_norm": True},
        {"network": "cifar", "initialization": "he", "remove_layer": "conv3"},
    ],
)
def test_settings_of_the_network_that_change_something(settings):
    require_network_settings(config_of(**settings))


def test_which_networks_take_foreign_weights():
    assert networks_with_weights("caffe") == ("paper", "caffenet")
    assert networks_with_weights("torchvision") == ("owt",)


@pytest.mark.parametrize("name", ["gone.keras", "gone:build", "hub/gone"])
def test_a_network_that_was_built_needs_its_source_no_more(name, tmp_path, monkeypatch):
    """Later stages and commands that look have its result; building it again is refused."""
    monkeypatch.chdir(tmp_path)
    workspace = Workspace(tmp_path)
    selection = workspace.runner().selection
    built = config_of(network=name, dropout=0.3).model_dump()["model"]
    settings = {f"model.{field}": value for field, value in flatten(built).items()}
    (stage,) = (stage for stage in ALL_STAGES if stage.name == "build")
    selection.select(stage, "build-0", "digits", settings, finished=True)
    for stages in ((), ["train"], ["evaluate"]):
        config = workspace.resolve(stages).config
        assert config.model.model_dump() == built
    assert None in network_code(config.model).values() or name.endswith(".keras")
    with pytest.raises(ConfigError, match="gone"):
        Workspace(tmp_path, settings={"model.network": name}).resolve(["build"])
    with pytest.raises(ConfigError, match="other"):
        Workspace(tmp_path, settings={"model.network": "other:build"}).resolve(["train"])
