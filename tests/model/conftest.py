"""Files of a small network, as they are and changed."""

import io
import json
import zipfile

import h5py
import keras
import pytest

from tests.model.refusals import CONFIG, WEIGHTS


@pytest.fixture(scope="module")
def harmless(tmp_path_factory):
    """The members of a small network's file."""
    path = tmp_path_factory.mktemp("harmless") / "model.keras"
    keras.Sequential(
        [keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(3, name="last")]
    ).save(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture
def written(harmless, tmp_path):
    """Write the small network's file with other members, and return where it is."""

    def write(changes=None, **options):
        path = tmp_path / "model.keras"
        with zipfile.ZipFile(path, "w", **options) as archive:
            for name, content in (harmless | (changes or {})).items():
                archive.writestr(name, content)
        return path

    return write


@pytest.fixture
def with_layer(harmless, written):
    """Write the small network with more layers, described by what JSON holds, and return where it
    is."""

    def write(*layers):
        config = json.loads(harmless[CONFIG])
        config["config"]["layers"].extend(layers)
        return written({CONFIG: json.dumps(config)})

    return write


@pytest.fixture
def with_weights(written):
    """Write the small network with weights that a function puts into an HDF5 file, and return where
    it is."""

    def write(fill):
        memory = io.BytesIO()
        with h5py.File(memory, "w") as file:
            fill(file)
        return written({WEIGHTS: memory.getvalue()})

    return write
