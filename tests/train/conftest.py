"""A small folder of images, prepared as ingest does it."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from pipeline.config.data import DataConfig
from pipeline.data.stage import ingest
from pipeline.engine.stage import Context, UnrecordedRun


@pytest.fixture
def prepared_jpegs(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(20):
            pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            (tmp_path / "images" / name / f"{index}.jpg").write_bytes(
                tf.io.encode_jpeg(pixels).numpy()
            )
    directory = tmp_path / "work" / "stages" / "ingest-0.partial"
    directory.mkdir(parents=True)
    observer = SimpleNamespace(progressed=lambda *_: None, notified=lambda _: None)
    return ingest.function(
        DataConfig(dataset=str(tmp_path / "images"), short_side=32),
        Context(directory, UnrecordedRun(), observer),
    )
