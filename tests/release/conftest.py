"""A small network, saved, and releases of it."""

import io
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from pipeline.artifacts import file_sha256
from pipeline.config.tracking import TrackingConfig
from pipeline.model.weights import save_model
from pipeline.release.classify import load_classifier
from pipeline.release.package import GoldenImage, Release, read_package, write_package
from pipeline.tracking.registry import Registry
from pipeline.tracking.store import open_experiment

SIZE, SIDE = 24, 28
NAMES = ("cat", "dog", "owl")


def _make_model(classes=3, size=SIZE, seed=0):
    """An untrained network whose logits differ well between images."""
    image = keras.Input((size, size, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 64, offset=-2.0)(image)
    x = keras.layers.Conv2D(
        4, 5, activation="relu", kernel_initializer=keras.initializers.HeNormal(seed)
    )(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(
        image,
        keras.layers.Dense(classes, kernel_initializer=keras.initializers.HeNormal(seed + 1))(x),
    )


def _image(seed=0, kind="PNG", height=40, width=50, **how):
    """An image file's bytes."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 5, width // 5, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR).save(
        file, kind, **how
    )
    return file.getvalue()


@pytest.fixture(scope="session")
def model_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.keras"
    save_model(_make_model(), path)
    return path


@pytest.fixture(scope="session")
def release(model_file, tmp_path_factory) -> Release:
    """A release in a folder, with golden images."""
    bare = Release(
        directory=model_file.parent,
        model_file=model_file.name,
        name="small",
        model_sha256=file_sha256(model_file),
        class_names=NAMES,
        image_size=SIZE,
        short_side=SIDE,
        temperature=1.7,
    )
    classifier = load_classifier(bare, batch=4)
    files = [_image(seed) for seed in range(3)]
    logits = classifier.predict_logits(
        np.stack([classifier.prepare_pixels(file) for file in files])
    )
    golden = [GoldenImage(file, 0, own) for file, own in zip(files, logits, strict=True)]
    folder = tmp_path_factory.mktemp("release") / "package"
    written = write_package(bare, model_file, golden, folder)
    return read_package(folder, written.sha256())


@pytest.fixture(scope="session")
def classifier(release):
    return load_classifier(release, batch=4)


@pytest.fixture(scope="session")
def make_model():
    return _make_model


@pytest.fixture(scope="session")
def image():
    return _image


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """A work directory with a database that is migrated: that takes seconds."""
    workdir = tmp_path_factory.mktemp("store")
    open_experiment(TrackingConfig(), workdir)
    return workdir


@pytest.fixture
def registry(store, tmp_path):
    workdir = tmp_path / "w"
    shutil.copytree(store, workdir)
    return Registry("alexnet", TrackingConfig(), workdir)
