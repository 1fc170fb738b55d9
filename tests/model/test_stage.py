"""The build stage: from the dataset's record to the file, the page and the record."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.engine.stage import Context
from pipeline.errors import ConfigError
from pipeline.model.stage import build, build_alone
from pipeline.model.weights import load_model
from tests.networks import model_config


class Run:
    """Remembers what is recorded."""

    def __init__(self):
        self.recorded = {}

    def log_metrics(self, values, *, step=0, summary=False):
        self.recorded |= values

    set_tags = log_metrics


def context(folder):
    observer = SimpleNamespace(progressed=lambda *_: None)
    return Context(folder, Run(), observer)


def dataset(folder, pixels):
    np.savez(
        folder / "sample.npz", pixels=pixels, labels=np.arange(len(pixels), dtype=np.int32) % 2
    )
    return SimpleNamespace(
        sample_path=folder / "sample.npz",
        short_side=36,
        fit="crop",
        class_names=("a", "b"),
        channel_mean=(100, 110, 120),
        channel_std=(50, 60, 70),
    )


def built(stage, config, folder, pixels=None):
    """Run a stage as the Runner does, pages and all."""
    where = context(folder)
    records = {} if pixels is None else {"dataset": dataset(folder, pixels)}
    made = stage.function(config, **records, context=where)
    stage.draw(made, where.report_directory)
    return made, where.run.recorded


NOISE = np.random.default_rng(0).integers(0, 256, (16, 36, 36, 3), dtype=np.uint8)


def test_record_page_and_file_say_the_same(tmp_path):
    made, recorded = built(build, model_config(width_multiplier=0.25), tmp_path, NOISE)
    network = load_model(made.verified_model_path())
    assert network.output_shape == (None, 2)
    assert (
        made.parameters == network.count_params() == sum(layer.parameters for layer in made.layers)
    )
    assert (made.signal, made.class_names) == ("alive", ("a", "b"))
    facts = json.loads((tmp_path / "report" / "network.json").read_text())
    assert (facts["parameters"], facts["macs"], len(facts["layers"])) == (
        made.parameters,
        made.macs,
        len(made.layers),
    )
    assert facts["signal"]["this network"]["layers"][-1]["spread"] == pytest.approx(
        made.logit_spread, rel=0.01
    )
    assert {"relu", "tanh", "sigmoid"} < facts["signal"].keys()
    page = (tmp_path / "report" / "network.html").read_text()
    assert f"{made.parameters:,}" in page
    assert page.count("data:image/png") == 2
    assert recorded["parameters"] == made.parameters
    assert recorded["signal/spread/fc8"] == pytest.approx(made.logit_spread, rel=0.01)


def test_the_check_stops_warns_or_is_off(tmp_path):
    flat = {"initialization": "paper", "width_multiplier": 0.25}
    with pytest.raises(ConfigError, match="The signal vanishes"):
        built(build, model_config(**flat), tmp_path, NOISE)
    assert not (tmp_path / "model.keras").exists()
    warned, _ = built(build, model_config(signal_check="warn", **flat), tmp_path, NOISE)
    assert (warned.signal, "signal vanished" in warned.headline()) == ("vanished", True)
    off, _ = built(build, model_config(signal_check="off", **flat), tmp_path, NOISE)
    assert (off.signal, off.logit_spread) == ("not checked", None)
    assert (
        "Not checked: model.signal_check=off" in (tmp_path / "report" / "network.html").read_text()
    )


@pytest.mark.parametrize(
    "pixels", [NOISE[:1], np.repeat(NOISE[:1], 8, axis=0), np.zeros_like(NOISE)]
)
def test_images_that_are_alike_say_nothing_of_the_network(pixels, tmp_path):
    made, _ = built(build, model_config(width_multiplier=0.25), tmp_path, pixels)
    assert made.signal == "not checked"
    assert "all alike" in (tmp_path / "report" / "network.html").read_text()


@pytest.mark.parametrize("classes", [1, 1000])
def test_a_look_without_a_dataset(classes, tmp_path):
    made, _ = built(build_alone, model_config(width_multiplier=0.25, classes=classes), tmp_path)
    assert len(made.class_names) == classes
    assert made.layers[-1].output == (classes,)
    assert made.activation_bytes(3) == 3 * made.activation_bytes(1) > 0


LAYER_OF_ONES_OWN = """
import keras


class Doubling(keras.layers.Layer):
    def call(self, inputs):
        return 2 * inputs


def build(image_size, classes):
    return [keras.layers.Conv2D(4, 3), Doubling(), keras.layers.GlobalAveragePooling2D()]
"""


def test_layers_that_no_later_stage_could_open_are_refused(tmp_path, monkeypatch):
    (tmp_path / "networks_with_own_layers.py").write_text(LAYER_OF_ONES_OWN)
    monkeypatch.chdir(tmp_path)
    config = model_config(network="networks_with_own_layers:build")
    with pytest.raises(ConfigError, match=r"cannot be opened again .* 'Doubling'"):
        built(build, config, tmp_path, NOISE)


def test_a_network_of_keras_and_its_page(tmp_path):
    config = model_config(network="keras/MobileNetV3Small")
    made, _ = built(build, config, tmp_path, NOISE)
    assert (made.signal, made.network) == ("alive", "keras/MobileNetV3Small")
    facts = json.loads((tmp_path / "report" / "network.json").read_text())
    assert list(facts["signal"]) == ["this network"]
    page = (tmp_path / "report" / "network.html").read_text()
    assert "Network keras/MobileNetV3Small" in page
    assert page.index("<h2>Blocks</h2>") < page.index("<h2>Every layer</h2>")


def test_a_function_for_other_classes_is_said_on_the_page(tmp_path, monkeypatch):
    (tmp_path / "networks_of_seven.py").write_text(
        "from keras import layers, ops, Input, Model\n"
        "def build(image_size, classes):\n"
        "    image = Input((image_size, image_size, 3))\n"
        "    x = layers.Conv2D(4, 3)(ops.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0))))\n"
        "    return Model(image, layers.Dense(7)(layers.GlobalAveragePooling2D()(x)))\n"
    )
    monkeypatch.chdir(tmp_path)
    said = []
    where = context(tmp_path)
    where.observer.notified = said.append
    config = model_config(network="networks_of_seven:build", signal_check="warn")
    made = build.function(config, dataset=dataset(tmp_path, NOISE), context=where)
    build.draw(made, where.report_directory)
    (note,) = said
    assert "has 7 classes: a fresh one of 2 replaces it" in note
    page = (tmp_path / "report" / "network.html").read_text()
    assert "has 7 classes" in page
    assert "levels of 0-255, less 100, 110, 120, divided by 50, 60, 70" in page
