"""Networks that others wrote: files and functions, adopted."""

import importlib
import json
import sys
import zipfile

import keras
import numpy as np
import pytest

from pipeline.errors import CheckpointError, ConfigError
from pipeline.model.graph import find_classifier, find_feature_layer
from pipeline.model.networks import build_network, find_network, network_code
from pipeline.model.own_networks import load_own_network
from pipeline.model.own_rows import describe_own_code
from pipeline.model.pretrained import load_pretrained_network
from pipeline.model.weights import save_model
from tests.networks import model_config

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 61.0, 62.0)
NAMES = ("ant", "bee", "cow")


def given(*end, size=48, scale=True, dtype="float32"):
    """Return a stranger's network that ends with some layers."""
    start = [keras.layers.Rescaling(1 / 127.5, offset=-1)] if scale else []
    return keras.Sequential(
        [
            keras.Input((size, size, 3), dtype=dtype),
            *start,
            keras.layers.Conv2D(8, 3, strides=2, activation="relu"),
            keras.layers.BatchNormalization(),
            *end,
        ]
    )


def pooled(*end):
    return given(keras.layers.GlobalAveragePooling2D(), *end)


def saved(network, folder, class_names=None):
    path = folder / "given.keras"
    network.save(path)
    if class_names:
        (folder / "artifact.json").write_text(json.dumps({"class_names": class_names}))
    return path


def adopted(path, class_names=NAMES, **settings):
    row = find_network(str(path))
    settings = {"image_size": row.image_size, **settings}
    config = model_config(network=str(path), **settings)
    return load_own_network(row, config, class_names)


class TestFile:
    def test_its_size_is_read_without_keras(self, tmp_path):
        row = find_network(str(saved(pooled(keras.layers.Dense(3)), tmp_path)))
        assert (row.family, row.image_size) == ("file", 48)

    @pytest.mark.parametrize(
        "end",
        [
            [keras.layers.Dense(3, activation="softmax")],
            [keras.layers.Dense(3), keras.layers.Softmax()],
            [keras.layers.Dropout(0.3), keras.layers.Dense(3), keras.layers.Activation("softmax")],
        ],
    )
    def test_a_kept_classifier_gives_its_logits(self, end, tmp_path):
        network = pooled(*end)
        found, kept = adopted(saved(network, tmp_path, NAMES), NAMES)
        assert kept
        assert find_classifier(found) is found.layers[-1]
        assert (found.input.dtype, found.input.name) == ("uint8", "image")
        expected = network(IMAGES.astype(np.float32)).numpy()
        assert np.allclose(keras.ops.softmax(found(IMAGES)), expected, atol=1e-6)

    def test_other_classes_get_a_fresh_classifier_on_the_same_features(self, tmp_path):
        network = pooled(keras.layers.Dense(5, activation="softmax"))
        path = saved(network, tmp_path, ["a", "b", "c", "d", "e"])
        found, kept = adopted(path)
        assert (kept, found.output_shape) == (False, (None, 3))
        features = keras.Model(found.input, find_feature_layer(found).output)
        theirs = keras.Model(network.inputs[0], network.layers[-1].input)
        expected = theirs(IMAGES.astype(np.float32)).numpy()
        assert np.allclose(features(IMAGES), expected, atol=1e-6)
        with pytest.raises(ConfigError, match="needs as many classes"):
            adopted(path, classifier="keep")

    def test_of_unknown_classes_the_classifier_is_kept_when_asked(self, tmp_path):
        path = saved(pooled(keras.layers.Dense(3)), tmp_path)
        assert not adopted(path)[1]
        assert adopted(path, classifier="keep")[1]
        assert not adopted(
            saved(pooled(keras.layers.Dense(3)), tmp_path, NAMES), classifier="fresh"
        )[1]

    @pytest.mark.parametrize(
        "end", [(), (keras.layers.GlobalMaxPooling2D(),), (keras.layers.Flatten(),)]
    )
    def test_features_alone_get_a_classifier(self, end, tmp_path):
        found, _ = adopted(saved(given(*end), tmp_path), dropout=0.25)
        assert found.output_shape == (None, 3)
        assert found.get_layer("dropout").rate == 0.25

    def test_pixels_of_uint8_need_no_layer_of_ours(self, tmp_path):
        network = given(keras.layers.GlobalAveragePooling2D(), dtype="uint8")
        found, _ = adopted(saved(network, tmp_path))
        assert "normalize" not in [layer.name for layer in found.layers]

    def test_one_of_ours_is_taken_as_it_is(self, tmp_path):
        config = model_config(width_multiplier=0.1)
        ours = build_network(config, num_classes=3, channel_mean=MEAN, channel_std=STD)
        path = saved(ours, tmp_path, NAMES)
        images = IMAGES[:, :32, :32]
        assert np.array_equal(adopted(path)[0](images), ours(images))

    def test_another_size_is_taken_where_the_network_takes_it(self, tmp_path):
        path = saved(pooled(keras.layers.Dense(3)), tmp_path, NAMES)
        assert adopted(path, image_size=64)[0].input_shape == (None, 64, 64, 3)
        flat = saved(
            given(keras.layers.Flatten(), keras.layers.Dense(4), keras.layers.Dense(3)), tmp_path
        )
        with pytest.raises(ConfigError, match="cannot take images of 64 pixels"):
            adopted(flat, image_size=64)

    def test_pixels_of_an_unknown_scale_are_refused(self, tmp_path):
        path = saved(given(scale=False), tmp_path)
        with pytest.raises(ConfigError, match="does not say on which scale") as found:
            adopted(path)
        assert "keras.Input((48, 48, 3))" in found.value.hint

    @pytest.mark.parametrize(
        ("operation", "scales"),
        [
            (lambda x: keras.ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), False),
            (lambda x: x[:, 1:, 1:], False),
            (lambda x: keras.ops.flip(x, axis=-1), False),
            (lambda x: x / 255, True),
            (lambda x: (x - 127) * (1 / 128), True),
        ],
    )
    def test_arithmetic_scales_pixels_and_no_other_operation(self, operation, scales, tmp_path):
        image = keras.Input((48, 48, 3))
        x = keras.layers.Conv2D(4, 3)(operation(keras.layers.ReLU()(image)))
        path = saved(keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(x))), tmp_path)
        if scales:
            normalize = adopted(path)[0].get_layer("normalize").get_config()
            assert (normalize["mean"], normalize["std"]) == ([0.0] * 3, [1.0] * 3)
        else:
            with pytest.raises(ConfigError, match="does not say on which scale"):
                adopted(path)

    @pytest.mark.parametrize("own", [(), (keras.layers.Dropout(0.1, name="mine"),)])
    def test_a_fresh_classifier_has_dropout_once(self, own, tmp_path):
        found, _ = adopted(saved(pooled(*own, keras.layers.Dense(7)), tmp_path), dropout=0.25)
        rates = [layer.rate for layer in found.layers if isinstance(layer, keras.layers.Dropout)]
        assert rates == [0.1 if own else 0.25]

    def test_what_is_no_network_of_images_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="There is no file"):
            find_network(str(tmp_path / "none.keras"))
        words = keras.Sequential([keras.Input((7,)), keras.layers.Dense(3)])
        with pytest.raises(ConfigError, match="takes no color images"):
            find_network(str(saved(words, tmp_path)))
        (tmp_path / "given.keras").write_bytes(b"nothing")
        with pytest.raises(ConfigError, match="cannot be read"):
            find_network(str(tmp_path / "given.keras"))
        with zipfile.ZipFile(tmp_path / "given.keras", "w") as archive:
            archive.writestr("config.json", json.dumps([1]))
        with pytest.raises(ConfigError, match="cannot be read"):
            find_network(str(tmp_path / "given.keras"))

    def test_code_in_a_file_is_refused(self, tmp_path):
        network = pooled(keras.layers.Lambda(lambda x: x), keras.layers.Dense(3))
        with pytest.raises(CheckpointError, match="Lambda"):
            adopted(saved(network, tmp_path))


LOADS_WEIGHTS = """
import keras


def build(image_size, classes):
    return keras.saving.load_model("given.keras")
"""


def test_weights_that_a_function_loads_stay(tmp_path, monkeypatch):
    """All but a classifier of other classes; ImageNet's are refused with what to type instead."""
    trained = pooled(keras.layers.Dense(5))
    saved(trained, tmp_path)
    (tmp_path / "my_trained_network.py").write_text(LOADS_WEIGHTS)
    monkeypatch.chdir(tmp_path)
    name = "my_trained_network:build"
    weights = [made(name, classes).get_weights() for classes in (5, 3)]
    for mine, theirs in zip(weights[0], trained.get_weights(), strict=True):
        assert np.array_equal(mine, theirs)
    for mine, theirs in zip(weights[1][:-2], trained.get_weights()[:-2], strict=True):
        assert np.array_equal(mine, theirs)
    with pytest.raises(ConfigError, match=r"the function brings its own, and --set train.finetune"):
        load_pretrained_network(model_config(network=name, weights="imagenet"), NAMES)


SOURCE = '''
import keras
from my_parts import WIDTH


def build(image_size, classes):
    """Return a small network."""
    return keras.Sequential([
        keras.Input((image_size, image_size, 3)),
        keras.layers.Conv2D(WIDTH, 3, strides=2, activation="relu"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(classes),
    ])


def layers(image_size, classes):
    return [keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D()]


def fails(image_size, classes):
    raise RuntimeError("no idea")


def nothing(image_size, classes):
    return None


def code(image_size, classes):
    return [
        keras.layers.Lambda(lambda pixels: pixels / 255),
        keras.layers.Conv2D(4, 3),
        keras.layers.GlobalAveragePooling2D(),
    ]
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with a module of the user's own."""
    name = f"my_networks_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    (tmp_path / "my_parts.py").write_text("WIDTH = 8\n")
    monkeypatch.chdir(tmp_path)
    return name


def made(name, classes=3, **settings):
    config = model_config(network=name, image_size=48, **settings)
    return build_network(config, num_classes=classes, channel_mean=MEAN, channel_std=STD)


class TestFunction:
    def test_a_network_of_ones_own(self, folder, tmp_path):
        network = made(f"{folder}:build")
        assert network.output_shape == (None, 3)
        assert network.layers[-1].name == "logits"
        normalize = network.get_layer("normalize").get_config()
        assert (normalize["mean"], normalize["std"]) == (list(MEAN), list(STD))
        files = [tmp_path / f"{index}.keras" for index in range(3)]
        for file, seed in zip(files, (1, 1, 2), strict=True):
            save_model(made(f"{folder}:build", seed=seed), file)
        contents = [file.read_bytes() for file in files]
        assert contents[0] == contents[1] != contents[2]

    def test_layers_are_enough(self, folder):
        network = made(f"{folder}:layers", classes=7, dropout=0.1)
        assert network.output_shape == (None, 7)
        assert network.get_layer("dropout").rate == 0.1

    @pytest.mark.parametrize(
        ("function", "sentence"),
        [
            ("fails", "failed \\(RuntimeError: no idea\\)"),
            ("nothing", "returned an object of class NoneType"),
            ("missing", "has no function missing"),
            ("code", "a Lambda, cannot be copied or opened again without running code"),
        ],
    )
    def test_what_goes_wrong_is_a_sentence(self, folder, function, sentence):
        with pytest.raises(ConfigError, match=sentence):
            made(f"{folder}:{function}")

    def test_names_that_are_none(self, folder):
        with pytest.raises(ConfigError, match="The module not_here does not exist"):
            find_network("not_here:build")
        with pytest.raises(ConfigError, match="names no function"):
            find_network(f"{folder}:1+1")

    def test_its_source_is_part_of_the_fingerprint(self, folder, tmp_path):
        name = f"{folder}:build"
        before = describe_own_code(name)
        assert before.items() <= network_code(model_config(network=name)).items()
        (tmp_path / "unrelated.py").write_text("x = 1\n")
        source = tmp_path / f"{folder}.py"
        source.write_text(f"# a comment\n{source.read_text()}")
        assert describe_own_code(name) == before
        (tmp_path / "my_parts.py").write_text("WIDTH = 16\n")
        assert describe_own_code(name) != before

    def test_an_edit_while_python_runs_builds_the_new_source(self, folder, tmp_path, monkeypatch):
        """Within a second, and of equal length: Python would take the compiled file."""
        name = f"{folder}:build"

        def widths():
            return made(name).layers[2].filters, describe_own_code(name)

        monkeypatch.syspath_prepend(tmp_path)
        imported = importlib.import_module(folder)  # as a notebook does
        before = dict(sys.modules), list(sys.path), list(sys.meta_path)
        assert imported.WIDTH == widths()[0] == 8
        first = widths()
        (tmp_path / "my_parts.py").write_text("WIDTH = 7\n")
        second = widths()
        assert (first[0], second[0]) == (8, 7)
        assert first[1] != second[1]
        after = dict(sys.modules), list(sys.path), list(sys.meta_path)
        assert {name: after[0][name] for name in before[0]} == before[0]
        assert after[1:] == before[1:]

    def test_another_folder_has_another_module_of_that_name(self, folder, tmp_path, monkeypatch):
        made(f"{folder}:build")
        other = tmp_path / "other"
        other.mkdir()
        text = (
            "import keras\ndef build(image_size, classes):\n    return [keras.layers.Flatten()]\n"
        )
        (other / f"{folder}.py").write_text(text)
        # That name is the standard library's, too.
        (other / "code.py").write_text(text)
        monkeypatch.chdir(other)
        for module in (folder, "code"):
            assert type(made(f"{module}:build").layers[2]) is keras.layers.Flatten
        assert hasattr(importlib.import_module("code"), "InteractiveConsole")

    def test_a_function_may_import_when_it_is_called(self, folder, tmp_path):
        """By all kinds of imports; what is imported is part of the fingerprint."""
        package = tmp_path / "my_package" / "inner"
        package.mkdir(parents=True)
        (package.parent / "__init__.py").write_text("SIDE = 3\n")
        (package / "net.py").write_text(
            "def build(image_size, classes):\n"
            "    import keras\n"
            "    from my_parts import WIDTH\n"
            "    from . import sibling\n"
            "    from .. import SIDE\n"
            "    return [keras.layers.Conv2D(WIDTH, SIDE, strides=sibling.STRIDES)]\n"
        )
        (package / "sibling.py").write_text("STRIDES = 2\n")
        name = "my_package.inner.net:build"
        first = made(name)
        assert first.layers[2].get_config()["kernel_size"] == (3, 3)
        codes = [describe_own_code(name)]
        for file in ("my_package/__init__.py", "my_package/inner/sibling.py", "my_parts.py"):
            with (tmp_path / file).open("a") as opened:
                opened.write("MORE = 1\n")
            codes.append(describe_own_code(name))
        assert len({tuple(code.items()) for code in codes}) == 4

    def test_source_that_is_no_python_is_a_sentence(self, folder, tmp_path):
        (tmp_path / "my_parts.py").write_text("WIDTH = = 8\n")
        describe_own_code(f"{folder}:build")
        with pytest.raises(ConfigError, match=r"cannot be imported \(SyntaxError: .*my_parts"):
            made(f"{folder}:build")

    def test_an_installed_package_is_imported_once(self):
        """Keras itself must not run again, nor all that lies beside it be parsed."""
        before = keras.applications
        with pytest.raises(ConfigError, match="not subscriptable"):  # it takes a shape first
            made("keras.applications:MobileNetV3Small")
        assert keras.applications is sys.modules["keras.applications"] is before
        assert describe_own_code("keras.applications:VGG16")["package keras"] == keras.__version__


def test_keras_hub_is_asked_for_in_one_sentence():
    import importlib.util

    if importlib.util.find_spec("keras_hub"):
        pytest.skip("keras-hub is installed")
    with pytest.raises(ConfigError, match="pip install keras-hub"):
        find_network("hub/resnet_18_imagenet")
