"""A context that records nothing, and small folders of images."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from pipeline.config.data import DataConfig
from pipeline.data.loader import load_split
from pipeline.data.stage import ingest
from pipeline.engine.stage import Context


@pytest.fixture
def make_dataset(tmp_path):
    """Return a function that runs the ingest stage with some settings, in a fresh work directory
    unless one is given, and draws its pages where they are wanted."""
    runs = []

    def make(workdir=None, draw=False, **settings):
        directory = (
            (workdir or tmp_path / f"work{len(runs)}") / "stages" / f"ingest-{len(runs)}.partial"
        )
        directory.mkdir(parents=True)
        runs.append(directory)
        return _ingest_into(directory, draw=draw, **settings)

    return make


def _ingest_into(directory, *, draw=True, **settings):
    """Do what the runner does: run the stage, then draw its pages."""
    record = ingest.function(DataConfig(**settings), _context_in(directory))
    if draw:
        (directory / "report").mkdir()
        ingest.draw(record, directory / "report")
    return record


def _context_in(directory):
    run = SimpleNamespace(
        key="test", log_metrics=lambda *_, **__: None, set_tags=lambda *_, **__: None
    )
    observer = SimpleNamespace(progressed=lambda *_: None)
    return Context(directory, run, observer)


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """The digits, prepared once with the default settings."""
    directory = tmp_path_factory.mktemp("digits") / "stages" / "ingest-x.partial"
    directory.mkdir(parents=True)
    return _ingest_into(directory)


@pytest.fixture
def folder(tmp_path):
    return _write_folder(tmp_path / "images")


def _write_folder(root: Path, classes=("1", "2", "10"), per_class=30, seed=0):
    """Write classes of random images, each another size; JPEG, PNG and BMP in turn."""
    rng = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = rng.integers(0, 256, (12 + index % 5, 16, 3), dtype=np.uint8)
            suffix = (".jpg", ".png", ".JPEG")[index % 3]
            encode = tf.io.encode_png if suffix == ".png" else tf.io.encode_jpeg
            (root / name / f"{index}{suffix}").write_bytes(encode(pixels).numpy())
    return root


@pytest.fixture
def write_folder():
    """Return a function that writes class folders."""
    return _write_folder


@pytest.fixture(scope="session")
def train(digits):
    return load_split(digits, "train")


@pytest.fixture(scope="session")
def streamed(digits):
    return load_split(digits, "train", in_memory=False)


@pytest.fixture
def stored(digits, tmp_path):
    """The digits with their pixels stored, too."""
    shutil.copytree(digits.directory, tmp_path / "ingest-pixels")
    dataset = digits.model_copy(update={"directory": tmp_path / "ingest-pixels", "store": "pixels"})
    (dataset.directory / "pixels").mkdir()
    for split in digits.reads:
        np.save(dataset.pixels_path(split), load_split(digits, split).pixels)
    return dataset


@pytest.fixture
def mapped(stored):
    return load_split(stored, "train", in_memory=False)
