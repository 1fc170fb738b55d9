"""Weights from elsewhere: every layout lands where it belongs, the classifier is kept or not, and
no file can run code."""

import json
import os
import pickle
import struct
import zipfile
from typing import ClassVar

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.model.imagenet import imagenet_class_names
from pipeline.model.networks import build_network
from pipeline.model.pretrained import load_pretrained_network
from pipeline.model.weights import save_model
from pipeline.model.weights_files import read_weights_file
from tests.networks import model_config

THOUSAND = imagenet_class_names()
# A quarter of torchvision's and of Caffe's widths, so that the files are small.
TORCHVISION = {
    "features.0": (16, 3, 11, 11),
    "features.3": (48, 16, 5, 5),
    "features.6": (96, 48, 3, 3),
    "features.8": (64, 96, 3, 3),
    "features.10": (64, 64, 3, 3),
    "classifier.1": (1024, 2304),
    "classifier.4": (1024, 1024),
    "classifier.6": (1000, 1024),
}
CAFFE = {
    "conv1": (24, 3, 11, 11),
    "conv2": (64, 12, 5, 5),
    "conv3": (96, 64, 3, 3),
    "conv4": (96, 48, 3, 3),
    "conv5": (64, 48, 3, 3),
    "fc6": (1024, 2304),
    "fc7": (1024, 1024),
    "fc8": (1000, 1024),
}
OWT = {"network": "owt", "image_size": 224, "width_multiplier": 0.25}
PAPER = {"network": "paper", "image_size": 227, "width_multiplier": 0.25}


def load_network(config, class_names):
    """Return the network and the layers that start afresh."""
    found = load_pretrained_network(config, class_names)
    return found.network, found.fresh_layers


def random_arrays(shapes, kernel=".weight", bias=".bias"):
    rng, made = np.random.default_rng(0), {}
    for name, shape in shapes.items():
        made[name + kernel] = rng.standard_normal(shape, np.float32)
        made[name + bias] = rng.standard_normal(shape[0], np.float32)
    return made


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value):
    return b"J" + struct.pack("<i", value)


def write_pth(path, tensors, dtype="FloatStorage", more=b""):
    """Write PyTorch's zip format by its opcodes, so that the quick tests need no PyTorch; `more`
    goes into the dictionary."""
    content = b"\x80\x02}("
    with zipfile.ZipFile(path, "w") as archive:
        for index, (name, array) in enumerate(tensors.items()):
            archive.writestr(f"archive/data/{index}", array.tobytes())
            strides = [int(np.prod(array.shape[place + 1 :])) for place in range(array.ndim)]
            storage = (
                b"("
                + text("storage")
                + f"ctorch\n{dtype}\n".encode()
                + text(str(index))
                + text("cpu")
                + number(array.size)
                + b"tQ"
            )
            shape, stride = (
                b"(" + b"".join(map(number, sides)) + b"t" for sides in (array.shape, strides)
            )
            hooks = b"\x89ccollections\nOrderedDict\n)R"
            content += (
                text(name)
                + b"ctorch._utils\n_rebuild_tensor_v2\n("
                + storage
                + number(0)
                + shape
                + stride
                + hooks
                + b"tR"
            )
        archive.writestr("archive/data.pkl", content + more + b"u.")


def write(path, tensors):
    if path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file(tensors, path)
    else:
        write_pth(path, tensors)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvision(suffix, tmp_path):
    tensors = random_arrays(TORCHVISION)
    write(tmp_path / f"alexnet{suffix}", tensors)
    network, fresh = load_network(
        model_config(weights=str(tmp_path / f"alexnet{suffix}"), **OWT), THOUSAND
    )
    assert fresh == ()
    conv1, fc6 = (network.get_layer(name).get_weights() for name in ("conv1", "fc6"))
    assert np.array_equal(conv1[0][3, 5, 2, 7], tensors["features.0.weight"][7, 2, 3, 5])
    # fc6 reads the maps by position there and by channel here: map 40, row 2, column 5.
    assert np.array_equal(
        fc6[0][(2 * 6 + 5) * 64 + 40], tensors["classifier.1.weight"][:, 40 * 36 + 2 * 6 + 5]
    )
    assert np.array_equal(fc6[1], tensors["classifier.1.bias"])
    gray = np.full((1, 224, 224, 3), 128, np.uint8)
    expected = (128 / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(
        np.asarray(network.get_layer("normalize")(gray))[0, 0, 0], expected, rtol=1e-5
    )


def caffe_file(path, tensors):
    """Write Caffe's blobs: as `.npz`, or as the `.npy` dictionary with the axes as TensorFlow has
    them."""
    if path.suffix == ".npz":
        np.savez(
            path,
            **{
                name: array.reshape((1, 1, 1, -1)) if array.ndim == 1 else array
                for name, array in tensors.items()
            },
        )
        return
    layers = {}
    for name in CAFFE:
        kernel, bias = tensors[f"{name}_w"], tensors[f"{name}_b"]
        if name == "fc6":
            kernel = (
                kernel.reshape(len(kernel), -1, 6, 6).transpose(0, 2, 3, 1).reshape(len(kernel), -1)
            )
        layers[name] = [kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T, bias]
    np.save(path, layers, allow_pickle=True)


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_caffe(suffix, tmp_path):
    tensors = random_arrays(CAFFE, "_w", "_b")
    path = tmp_path / f"bvlc_alexnet{suffix}"
    caffe_file(path, tensors)
    network, fresh = load_network(model_config(weights=str(path), **PAPER), THOUSAND)
    assert fresh == ()
    conv1, conv2, fc6 = (
        network.get_layer(name).get_weights() for name in ("conv1", "conv2", "fc6")
    )
    assert np.array_equal(
        conv1[0][3, 5, 0, 7], tensors["conv1_w"][7, 2, 3, 5]
    )  # Caffe's first channel is blue
    assert np.array_equal(conv2[0][1, 4, 9, 60], tensors["conv2_w"][60, 9, 1, 4])
    assert np.array_equal(fc6[0][(2 * 6 + 5) * 64 + 40], tensors["fc6_w"][:, 40 * 36 + 2 * 6 + 5])
    assert np.array_equal(network.get_layer("fc8").get_weights()[1], tensors["fc8_b"])
    norm = network.get_layer("norm1")
    assert (norm.bias, norm.alpha, norm.towers) == (1.0, 2e-5, 1)  # as Caffe trained it
    gray = np.full((1, 227, 227, 3), 128, np.uint8)
    expected = 128 - np.array([122.67891434, 116.66876762, 104.00698793])
    np.testing.assert_allclose(
        np.asarray(network.get_layer("normalize")(gray))[0, 0, 0], expected, rtol=1e-5
    )


def test_half_precision_and_an_old_prefix(tmp_path):
    tensors = {
        f"module.{name}": array.astype(np.float16)
        for name, array in random_arrays(TORCHVISION).items()
    }
    write_pth(tmp_path / "half.pth", tensors, dtype="HalfStorage")
    conv1 = read_weights_file(tmp_path / "half.pth").layers["conv1"][0]
    assert conv1.dtype == np.float32
    assert np.array_equal(
        conv1, tensors["module.features.0.weight"].astype(np.float32).transpose(2, 3, 1, 0)
    )


def test_the_classifier_starts_afresh_for_other_classes(tmp_path):
    write_pth(tmp_path / "a.pth", random_arrays(TORCHVISION))
    config = model_config(weights=str(tmp_path / "a.pth"), **OWT)
    for names, kept, setting in (
        (("cat", "dog"), False, "auto"),
        (THOUSAND, True, "auto"),
        (tuple(map(str, range(1000))), False, "auto"),
        (THOUSAND, False, "fresh"),
    ):
        network, fresh = load_network(config.model_copy(update={"classifier": setting}), names)
        assert fresh == (() if kept else ("fc8",))
        assert network.output_shape == (None, len(names))
    with pytest.raises(ConfigError, match=r"Expected 1000 classes\. Received 2"):
        load_network(config.model_copy(update={"classifier": "keep"}), ("cat", "dog"))


class TestOurOwn:
    SETTINGS: ClassVar = {"image_size": 32, "width_multiplier": 0.25}
    CONFIG = model_config(**SETTINGS)

    def saved(self, tmp_path, config=CONFIG, names=("a", "b")):
        network = build_network(
            config, num_classes=len(names), channel_mean=(101, 102, 103), channel_std=(41, 42, 43)
        )
        save_model(network, tmp_path / "model.keras")
        return network

    def test_all_its_numbers_and_its_pixels(self, tmp_path):
        network = self.saved(tmp_path)
        (tmp_path / "artifact.json").write_text(json.dumps({"class_names": ["a", "b"]}))
        other = self.CONFIG.model_copy(update={"weights": str(tmp_path / "model.keras"), "seed": 9})
        again, fresh = load_network(other, ("a", "b"))
        images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
        assert fresh == ()
        assert np.array_equal(np.asarray(network(images)), np.asarray(again(images)))

    def test_other_classes_of_the_same_number_start_afresh(self, tmp_path):
        network = self.saved(tmp_path)
        other = self.CONFIG.model_copy(update={"weights": str(tmp_path / "model.keras"), "seed": 9})
        again, fresh = load_network(other, ("cat", "dog"))
        assert fresh == ("fc8",)
        assert np.array_equal(
            network.get_layer("fc7").get_weights()[0], again.get_layer("fc7").get_weights()[0]
        )
        assert not np.array_equal(
            network.get_layer("fc8").get_weights()[0], again.get_layer("fc8").get_weights()[0]
        )

    @pytest.mark.parametrize("record", ["artifact.json", "../release.json"])
    def test_known_classes_keep_their_weights_wherever_they_stand_now(self, tmp_path, record):
        (tmp_path / "data").mkdir()
        network = self.saved(tmp_path / "data", names=("a", "b", "c"))
        (tmp_path / "data" / record).write_text(json.dumps({"class_names": ["a", "b", "c"]}))
        path = str(tmp_path / "data" / "model.keras")
        config = self.CONFIG.model_copy(update={"weights": path, "seed": 9})
        again, fresh = load_network(config, ("c", "new", "a"))
        assert fresh == ("fc8",)
        (kernel, bias), (old_kernel, old_bias) = (
            model.get_layer("fc8").get_weights() for model in (again, network)
        )
        assert np.array_equal(kernel[:, [0, 2]], old_kernel[:, [2, 0]])
        assert np.array_equal(bias[[0, 2]], old_bias[[2, 0]])
        assert not np.isin(kernel[:, 1], old_kernel).any()
        _, fresh = load_network(config, ("c", "b"))  # one fewer
        assert fresh == ()
        settings = config.model_copy(update={"classifier": "fresh"})
        again, fresh = load_network(settings, ("c", "b"))
        assert fresh == ("fc8",)
        assert not np.isin(again.get_layer("fc8").get_weights()[0], old_kernel).any()

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            ({"activation": "tanh"}, "has activation=relu, the settings make tanh"),
            ({"normalization": "none"}, "it has one that the settings do not make: layer norm1"),
            ({"lrn_alpha": 2e-5}, "has alpha=0.0001, the settings make 2e-05"),
            ({"width_multiplier": 0.5}, "its layer conv1 has filters=16, the settings make 24"),
            ({"network": "cifar"}, "it lacks one that the settings make"),
        ],
    )
    def test_another_network_is_refused(self, tmp_path, change, sentence):
        self.saved(tmp_path)
        with pytest.raises(ConfigError) as caught:
            load_network(
                model_config(**self.SETTINGS | change | {"weights": str(tmp_path / "model.keras")}),
                ("a", "b"),
            )
        assert "is another one" in str(caught.value)
        assert sentence in str(caught.value)

    def test_batch_normalization_brings_its_statistics(self, tmp_path):
        config = model_config(**self.SETTINGS, normalization="batch")
        network = self.saved(tmp_path, config)
        norm = network.get_layer("norm1")
        norm.set_weights([np.full_like(value, 2.5) for value in norm.get_weights()])
        save_model(network, tmp_path / "model.keras")
        again, _ = load_network(
            config.model_copy(update={"weights": str(tmp_path / "model.keras")}), ("a", "b")
        )
        assert all((value == 2.5).all() for value in again.get_layer("norm1").get_weights())


class Harm:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class TestRefused:
    def refused(self, path, **settings):
        with pytest.raises(ConfigError) as caught:
            load_network(model_config(weights=str(path), **(settings or OWT)), THOUSAND)
        return str(caught.value)

    def test_no_pickle_runs_code(self, tmp_path):
        harm = pickle.dumps(Harm(tmp_path / "harm"), protocol=2)
        with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive:
            archive.writestr("archive/data.pkl", harm)
        (tmp_path / "old.pth").write_bytes(harm)
        np.save(tmp_path / "caffe.npy", {"conv1": Harm(tmp_path / "harm")}, allow_pickle=True)
        for name in ("zip.pth", "old.pth", "caffe.npy"):
            assert "besides tensors" in self.refused(tmp_path / name), name
        assert not (tmp_path / "harm").exists()

    @pytest.mark.parametrize(
        "callable_",
        ["builtins\neval", "os\nsystem", "torch\nload", "numpy\nload", "collections\nChainMap"],
    )
    def test_nothing_else_is_called(self, callable_, tmp_path):
        more = text("x") + f"c{callable_}\n(".encode() + text("1") + b"tR"
        write_pth(tmp_path / "a.pth", random_arrays({"features.0": (16, 3, 11, 11)}), more=more)
        assert "besides tensors" in self.refused(tmp_path / "a.pth")

    def test_a_tensor_outside_its_storage(self, tmp_path):
        tensors = random_arrays(TORCHVISION)
        write_pth(tmp_path / "a.pth", tensors)
        with zipfile.ZipFile(tmp_path / "a.pth") as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        for change in (
            {"archive/data/0": members["archive/data/0"][:-8]},
            {
                "archive/data.pkl": (
                    members["archive/data.pkl"].replace(
                        number(0) + b"(" + number(16), number(4) + b"(" + number(16)
                    )
                )
            },
        ):
            with zipfile.ZipFile(tmp_path / "bad.pth", "w") as archive:
                for name, content in (members | change).items():
                    archive.writestr(name, content)
            assert "cannot be read as an AlexNet" in self.refused(tmp_path / "bad.pth")

    @pytest.mark.parametrize("suffix", [".keras", ".pth", ".safetensors", ".npy", ".npz"])
    @pytest.mark.parametrize(
        "content", [b"", b"hello", b"\x80\x02}.", b"PK\x03\x04" + bytes(40), b"\x93NUMPY\x01\x00"]
    )
    def test_damaged_files(self, suffix, content, tmp_path):
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(content)
        assert "cannot be read as an AlexNet" in self.refused(path)

    def test_what_is_not_there(self, tmp_path):
        assert "There is no file" in self.refused(tmp_path / "nothing.pth")
        (tmp_path / "weights.txt").write_text("1")
        assert "must be a file of .keras, .pth" in self.refused(tmp_path / "weights.txt")

    def test_the_wrong_network_names_the_right_one(self, tmp_path):
        write_pth(tmp_path / "a.pth", random_arrays(TORCHVISION))
        assert "--network owt" in self.refused(tmp_path / "a.pth", **PAPER)
        caffe_file(tmp_path / "a.npz", random_arrays(CAFFE, "_w", "_b"))
        assert "--network paper" in self.refused(tmp_path / "a.npz", **OWT)

    def test_the_wrong_size_names_the_layer(self, tmp_path):
        write_pth(tmp_path / "a.pth", random_arrays(TORCHVISION))
        assert "layer conv1 expects other arrays" in self.refused(
            tmp_path / "a.pth", network="owt", image_size=224
        )
        assert "layer fc6 expects other arrays" in self.refused(
            tmp_path / "a.pth", network="owt", image_size=160, width_multiplier=0.25
        )

    def test_another_scale_of_the_pixels(self, tmp_path):
        write_pth(tmp_path / "a.pth", random_arrays(TORCHVISION))
        assert "input_scale=unit" in self.refused(tmp_path / "a.pth", input_scale="levels", **OWT)
