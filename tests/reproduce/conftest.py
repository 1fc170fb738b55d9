"""Small networks, datasets and claim runs for the tests of the reproduction."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.artifacts import DatasetArtifact
from pipeline.config.recipes import flatten
from pipeline.config.settings import Config
from pipeline.data import loader
from pipeline.data.loader import LoadedSplit
from pipeline.engine.stage import Context
from pipeline.model.networks import build_network
from pipeline.model.weights import save_model
from pipeline.reproduce import timing
from pipeline.reproduce.measurement import Measurement
from tests.networks import model_config

SIZE, CLASSES = 16, 3
TINY = {"image_size": SIZE, "width_multiplier": 0.02}


class Silent:
    """A tracking run and an observer that forget."""

    key = ""

    def __getattr__(self, _name):
        return lambda *_, **__: None


@pytest.fixture
def find_differences():
    """The settings in which two specs differ."""

    def find(one, other) -> set[str]:
        flat, others = (
            flatten({part: spec[part] for part in ("model", "train")}) for spec in (one, other)
        )
        sections = {name for name in flat if flat[name] != others[name]}
        return sections | {name for name in ("images", "depth", "goal") if one[name] != other[name]}

    return find


@pytest.fixture
def context(tmp_path):
    folder = tmp_path / "look"
    folder.mkdir()
    return Context(folder, Silent(), Silent())


@pytest.fixture
def dataset(tmp_path):
    counts = {"train": (40, 40, 40), "validation": (2, 2, 2), "test": (20, 20, 20)}
    return DatasetArtifact(
        directory=tmp_path,
        name="tiny",
        digest="d" * 64,
        class_names=("red", "green", "blue"),
        class_counts=counts,
        reads={},
        short_side=SIZE + 4,
        channel_mean=(128, 128, 128),
        channel_covariance=((4000, 0, 0), (0, 4000, 0), (0, 0, 4000)),
        builder_directory=tmp_path,
    )


@pytest.fixture
def serve(monkeypatch, dataset):
    """Let the loader find noise with a touch of each class's color."""

    def load(_dataset, split, *, in_memory=None):
        count, rng = dataset.count_images(split), np.random.default_rng(len(split))
        labels = (np.arange(count) % CLASSES).astype(np.int32)
        pixels = rng.integers(0, 130, (count, SIZE + 4, SIZE + 4, 3), dtype=np.uint8)
        pixels[np.arange(count), ..., labels] += 90
        return LoadedSplit(dataset, split, labels, tuple(map(str, range(count))), pixels)

    monkeypatch.setattr(loader, "load_split", load)


@pytest.fixture
def network():
    def build(seed=0, **settings):
        config = model_config(**TINY | settings | {"seed": seed})
        return build_network(
            config, num_classes=CLASSES, channel_mean=(128, 128, 128), channel_std=(63, 63, 63)
        )

    return build


@pytest.fixture
def saved():
    def save(model, folder):
        """Save a network as if training had changed it, and return its weights."""
        folder.mkdir()
        model.set_weights([1.5 * weights + 0.01 for weights in model.get_weights()])
        save_model(model, folder / Measurement.MODEL_FILE)
        return model.get_weights()

    return save


@pytest.fixture
def make_run():
    def make(tmp_path, numbers=None, **settings):
        """A claim run that has measured already."""
        made = Measurement(directory=tmp_path, name="made", numbers=numbers or {})
        asked = []

        def perform(name, spec, _work, _trained=None):
            json.dumps(spec)
            asked.append((name, spec))
            return made

        dataset = SimpleNamespace(
            channel_covariance=((4000, 3500, 3300), (3500, 3800, 3700), (3300, 3700, 4400))
        )
        config = Config.model_validate(settings)
        return SimpleNamespace(
            config=config,
            dataset=dataset,
            folder=tmp_path,
            perform_experiment=perform,
            examine_network=perform,
            asked=asked,
        )

    return make


@pytest.fixture
def timings(monkeypatch):
    """Answer for the child processes, and return the devices and networks of each request."""
    asked = []

    def answer(spec, _dataset):
        asked.append((spec["settings"]["devices"], *spec["networks"]))
        return {
            "images_per_second": {name: 100.0 * len(asked) for name in spec["networks"]},
            "hardware": "none",
        }

    monkeypatch.setattr(timing, "time_in_process", answer)
    return asked
