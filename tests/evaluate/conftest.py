"""A stand-in for the loader and small records, so that these tests need neither shards nor
training."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from pyarrow import parquet

from pipeline.artifacts import DatasetArtifact, TrainingResult, file_sha256
from pipeline.engine.stage import Context
from pipeline.evaluate.speed import measure_speed

SIZE = 12


@dataclass
class Notes:
    """A tracking run and an observer that remember what they receive."""

    key: str = ""
    summary: dict[str, float] = field(default_factory=dict)
    detail: dict[str, float] = field(default_factory=dict)
    tagged: dict[str, str] = field(default_factory=dict)
    steps: list[tuple[int, int, str, str]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def set_tags(self, values, *, summary=False):
        self.tagged.update(values)

    def notified(self, text):
        self.words.append(text)

    def log_metrics(self, values, *, step=0, summary=False):
        (self.summary if summary else self.detail).update(values)

    def progressed(self, done, total, unit, detail):
        self.steps.append((done, total, unit, detail))


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def context(tmp_path: Path, notes: Notes) -> Context:
    folder = tmp_path / "evaluate"
    folder.mkdir()
    return Context(folder, notes, notes)


def _make_model(classes: int, size: int = SIZE, seed: int = 0) -> Any:
    """Return an untrained network whose logits differ well between images."""
    image = keras.Input((size, size, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 64, offset=-2.0)(image)
    x = keras.layers.Conv2D(
        8, 5, activation="relu", kernel_initializer=keras.initializers.HeNormal(seed), name="conv1"
    )(x)
    x = keras.layers.Dropout(0.5)(keras.layers.Flatten()(x))
    return keras.Model(
        image,
        keras.layers.Dense(classes, kernel_initializer=keras.initializers.HeNormal(seed + 1))(x),
    )


def _make_dataset(names, labels, directory: Path) -> DatasetArtifact:
    counts = tuple(np.bincount(labels, minlength=len(names)).tolist())
    return DatasetArtifact(
        directory=directory,
        name="tiny",
        digest="d" * 64,
        class_names=tuple(names),
        class_counts={"train": counts, "validation": counts, "test": counts},
        reads={},
        short_side=SIZE,
        channel_mean=(0, 0, 0),
        channel_covariance=((1, 0, 0), (0, 1, 0), (0, 0, 1)),
        builder_directory=directory,
    )


def _save_trained(model: Any, names, directory: Path) -> TrainingResult:
    directory.mkdir()
    model.save(directory / "model.keras")
    return TrainingResult(
        directory=directory,
        model_sha256=file_sha256(directory / "model.keras"),
        parameters=model.count_params(),
        network="small",
        image_size=model.input_shape[1],
        class_names=tuple(names),
        best_epoch=1,
        epochs=1,
        validation_top1_error=0.5,
        history_sha256="h" * 64,
    )


@pytest.fixture
def evaluate_and_draw(context, monkeypatch):
    """Return a function that runs an evaluation stage and draws its pages, as the Runner does.

    Each batch size is timed for a moment only.
    """
    from pipeline.evaluate import assessment

    monkeypatch.setattr(assessment, "measure_speed", partial(measure_speed, seconds=0.02))

    def run(stage, config, *records):
        report = stage.function(config, *records, context)
        stage.draw(report, context.report_directory)
        return report

    return run


@pytest.fixture(scope="session")
def make_model():
    return _make_model


@pytest.fixture(scope="session")
def make_dataset():
    return _make_dataset


@pytest.fixture(scope="session")
def save_trained():
    return _save_trained


@pytest.fixture
def serve_images(monkeypatch, tmp_path):
    """Serve these images as every split, with an index that has their sizes."""

    def serve(pixels, labels, keys):
        from pipeline.evaluate import assessment

        def make_evaluation_batches(images, *, image_size, batch_size, view="center"):
            assert view == "center"
            assert image_size == images.pixels.shape[1:3]
            return tf.data.Dataset.from_tensor_slices(
                (images.pixels, images.labels.astype(np.int32))
            ).batch(batch_size)

        def load_split(dataset, split, in_memory=None):
            return SimpleNamespace(
                dataset=dataset, split=split, pixels=pixels, labels=labels, keys=names
            )

        names = tuple(key.decode() for key in keys)
        monkeypatch.setattr(assessment, "load_split", load_split)
        monkeypatch.setattr(assessment, "make_evaluation_batches", make_evaluation_batches)
        sizes = np.random.default_rng(3).integers(12, 90, (2, len(labels)))
        contents = [image.tobytes()[:32] for image in pixels]
        table = pa.table(
            {
                "key": list(names),
                "label": labels,
                "sha256": contents,
                "height": sizes[0],
                "width": sizes[1],
            }
        )
        (tmp_path / "index").mkdir(exist_ok=True)
        for split in ("train", "validation", "test"):
            parquet.write_table(table, tmp_path / "index" / f"{split}.parquet")

    return serve
