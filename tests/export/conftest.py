"""A release, its answers, and a format that is written and read back in no time."""

import numpy as np
import pytest
import tensorflow as tf

from pipeline.export import export as module
from pipeline.export import integer_cost, parity
from pipeline.model.weights import load_model
from pipeline.release.classify import load_classifier
from tests.export.networks import IMAGES, NAMES, TEMPERATURE, network, photographs, released


@pytest.fixture(scope="session")
def release(tmp_path_factory):
    return released(network(), tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="session")
def opened(release):
    return load_classifier(release)


@pytest.fixture(scope="session")
def expected(release, opened):
    """Return pixels, logits and probabilities of the images."""
    pixels = np.stack([opened.prepare_pixels(encoded) for encoded in IMAGES])
    logits = np.asarray(load_model(release.model_path)(pixels))
    return pixels, logits, np.asarray(tf.nn.softmax(logits / TEMPERATURE))


@pytest.fixture(scope="session")
def labeled(opened):
    """Return 30 images, each with the released model's class, but two with another."""
    images = photographs(30)
    answers = opened.predict_logits(
        np.stack([opened.prepare_pixels(encoded) for encoded in images])
    ).argmax(axis=1)
    answers[:2] = (answers[:2] + 1) % len(NAMES)
    return list(zip(images, answers.tolist(), strict=True))


@pytest.fixture
def fake(opened, monkeypatch):
    """Let a format be written and read back in no time, by a model that answers what it is told."""

    def answers(change=0.0, names=NAMES):
        def write(network, release, folder, calibration=()):
            (folder / "model.onnx").write_bytes(b"model")
            return folder / "model.onnx"

        def read_back(format_name, paths, pixels, files, scratch, *, rounds=0):
            right, many = opened.predict_logits(pixels), len(paths)
            logits = right + change if files else right[:, ::-1]
            return parity.RuntimeAnswers(
                "fake",
                "1",
                [names] * many,
                [{"image": (logits, opened.compute_probabilities(right))}] * many,
                [0.001] * many,
            )

        monkeypatch.setattr(module, "WRITERS", {"onnx": write, "litert": write})
        for reader in (module, integer_cost):
            monkeypatch.setattr(reader, "read_back_models", read_back)
        monkeypatch.setattr(module, "_FORMAT_PACKAGES", {"onnx": (), "litert": ()})
        monkeypatch.setattr(module, "load_classifier", lambda _: opened)
        monkeypatch.setattr(module, "make_export_network", lambda _: None)

    return answers
