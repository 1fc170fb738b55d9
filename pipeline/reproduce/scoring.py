"""The splits that experiments train and score on, and the scoring of a network."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.artifacts import DatasetArtifact
from pipeline.engine.stage import Context
from pipeline.reproduce.measurement import Measurement, hash_files

if TYPE_CHECKING:
    from pipeline.arrays import Booleans, Network
    from pipeline.data.loader import LoadedSplit

_SCORING_BATCH = 256


@functools.lru_cache(maxsize=3)
def load_cached_split(directory: Path, split: str) -> LoadedSplit:
    """Return a split of a prepared dataset, read once per process.

    TensorFlow keeps every array that batches were cut from.

    Args:
        directory: of the record of the ingest stage.
        split: `train`, `validation` or `test`.
    """
    from pipeline.data.loader import load_split

    return load_split(DatasetArtifact.read(directory), split)


def take_first_images(images: LoadedSplit, count: int) -> LoadedSplit:
    """Return the first images of the training split in stored order, which is a random one.

    Smaller sets are subsets of larger ones. The split must begin with its first shard, as training
    splits do.

    Args:
        images: the training split.
        count: number of images; 0 for all.
    """
    if not 0 < count < len(images):
        return images
    pixels = images.pixels if images.pixels is None else images.pixels[:count]
    reads = dict(images.dataset.reads)
    reads[images.split] = f"{reads[images.split].partition('[')[0]}[:{count}]"
    dataset = images.dataset.model_copy(update={"reads": reads})
    return dataclasses.replace(
        images,
        dataset=dataset,
        labels=images.labels[:count],
        keys=images.keys[:count],
        pixels=pixels,
        groups=None if images.groups is None else images.groups[:count],
    )


def find_wrong_answers(
    network: Network, images: LoadedSplit, view: Literal["center", "ten"] = "center"
) -> Booleans:
    """Return which images of a split a network misclassifies, bool [images] in stored order.

    Args:
        network: takes uint8 [batch, height, width, 3] in [0, 255], gives logits.
        images: the split.
        view: `center`, the central crop, or `ten`, the mean of the paper's ten.
    """
    import numpy as np

    from pipeline.data.evaluation_batches import make_evaluation_batches
    from pipeline.evaluate.scoring import ScoringModel, score_batches

    size = network.input_shape[1:3]
    batches = make_evaluation_batches(images, image_size=size, batch_size=_SCORING_BATCH, view=view)
    chunks = score_batches(
        ScoringModel(network),
        batches,
        images.keys,
        batch_size=_SCORING_BATCH,
        progress=lambda _done, _wrong: None,
    )
    return np.concatenate([chunk.logits.argmax(axis=1) != chunk.labels for chunk in chunks])


def score_ten_crops(
    _spec: Mapping[str, Any], dataset: DatasetArtifact, context: Context, trained: Path
) -> Measurement:
    """Score a trained network by the mean of ten crops of each test image."""
    import numpy as np

    from pipeline.model.weights import load_model

    wrong = find_wrong_answers(
        load_model(trained / Measurement.MODEL_FILE),
        load_cached_split(dataset.directory, "test"),
        view="ten",
    )
    np.save(context.directory / Measurement.WRONG_FILE, wrong)
    numbers, files = {"test_top1_error": float(wrong.mean())}, (Measurement.WRONG_FILE,)
    context.run.log_metrics(numbers)
    digest = hash_files(context.directory, files)
    return Measurement(
        directory=context.directory, name="ten crops", numbers=numbers, files=files, sha256=digest
    )
