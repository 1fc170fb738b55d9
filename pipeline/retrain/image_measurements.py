"""What is measured of opened images: light, size, and the champion's features and answers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from pyarrow import parquet

from pipeline.artifacts import DatasetArtifact
from pipeline.errors import CheckpointError, DatasetError
from pipeline.retrain.drift import ImageMeasurements
from pipeline.retrain.image_selection import DatasetImages, map_class_names
from pipeline.retrain.signals import ErrorCount

if TYPE_CHECKING:
    from pipeline.arrays import Dataset, Floats, Image, Images, Integers, Network
    from pipeline.release.classify import Classifier

Progress = Callable[[int, int, str, str], None]
_WINDOW = 256  # images that are decoded and classified together: 40 MB at 227 pixels
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


@dataclass(frozen=True)
class MeasuredImages:
    """Measurements of some images of a dataset.

    Attributes:
        rows: int64 [images], ascending.
        scalars: name -> float64 [images].
        embeddings: float32 [images, units], the input of the champion's last layer.
        predictions: int64 [images], its top-1 classes in its own class numbers.
    """

    rows: Integers
    scalars: dict[str, Floats]
    embeddings: Floats
    predictions: Integers


def count_champion_errors(
    classifier: Classifier, images: DatasetImages, measured: MeasuredImages, rows: Integers
) -> ErrorCount:
    """Count the wrong answers to some of the images that were measured."""
    predictions = map_class_names(classifier.release.class_names, images.names)[
        measured.predictions[np.isin(measured.rows, rows)]
    ]
    return ErrorCount(int(np.count_nonzero(predictions != images.labels[rows])), len(rows))


def select_measurements(
    images: DatasetImages, measured: MeasuredImages, rows: Integers
) -> ImageMeasurements:
    """Return the measurements of some measured images."""
    among = np.isin(measured.rows, rows)
    scalars = {name: values[among] for name, values in measured.scalars.items()}
    return ImageMeasurements(
        scalars, np.asarray(images.names)[images.labels[rows]], measured.embeddings[among]
    )


def drop_constant_scalars(
    new: ImageMeasurements, reference: ImageMeasurements
) -> tuple[ImageMeasurements, ImageMeasurements]:
    """Drop scalars that are the same for all images: each test makes all others stricter."""
    names = [
        name
        for name in new.scalars
        if len(np.unique(np.concatenate([new.scalars[name], reference.scalars[name]]))) > 1
    ]
    new, reference = (
        replace(side, scalars={name: side.scalars[name] for name in names})
        for side in (new, reference)
    )
    return new, reference


def measure_images(
    classifier: Classifier, images: DatasetImages, rows: Integers, detail: str, progress: Progress
) -> MeasuredImages:
    """Measure the central crops of some images, and the champion's features and predictions.

    Args:
        classifier: the champion.
        images: of a dataset.
        rows: int64, ascending.
        detail: what is measured, for `progress`.
        progress: called with the images done, all images, their unit and the detail.

    Raises:
        CheckpointError: a logit is NaN or infinite.
        DatasetError: the shards cannot be read.
    """
    from pipeline.evaluate.neighbors import compute_features

    lights: list[tuple[float, ...]] = []

    def iterate_windows() -> Iterator[tuple[Images, None]]:
        encoded = _iterate_encoded(images, rows)
        with ThreadPoolExecutor() as threads:
            while window := list(itertools.islice(encoded, _WINDOW)):
                pixels = list(
                    threads.map(
                        lambda image: classifier.prepare_pixels(image[0], orientation=image[1]),
                        window,
                    )
                )
                lights.extend(threads.map(measure_light, pixels))
                progress(len(lights), len(rows), "images", detail)
                yield np.stack(pixels), None

    model, units = _add_features(classifier.model)
    found = compute_features(model, iterate_windows(), model.layers[-1].name)
    if len(found) != len(rows):
        raise _make_damaged_error(images.dataset, f"{len(found)} images instead of {len(rows)}")
    if not np.isfinite(found).all():
        raise CheckpointError(
            f"The champion {classifier.release.title} computes NaN or infinite logits",
            expected="finite logits",
            received=f"{found[~np.isfinite(found)][0]}",
            hint="Go back with `alexnet model rollback`",
        )
    scalars = dict(
        zip(
            ("brightness", "contrast", "saturation", "sharpness"), np.asarray(lights).T, strict=True
        )
    )
    return MeasuredImages(
        rows, scalars | _read_sizes(images, rows), found[:, :units], found[:, units:].argmax(axis=1)
    )


def _add_features(model: Network) -> tuple[Network, int]:
    """Return a model of the features and, behind them, the logits, and the number of features.

    Features are the input of the last layer; the output is float [images, units + classes].
    """
    import keras

    from pipeline.evaluate.layer_outputs import get_output
    from pipeline.evaluate.map_layers import find_embedding_layer, flatten_graph

    model = flatten_graph(model)
    features = get_output(model, find_embedding_layer(model))
    units = keras.layers.Flatten(name="features_in_a_row")(features)
    both = keras.layers.Concatenate(name="features_and_logits")([units, model.output])
    return keras.Model(model.input, both), units.shape[-1]


def measure_light(pixels: Image) -> tuple[float, float, float, float]:
    """Return brightness, contrast, saturation and sharpness of uint8 [side, side, 3] in [0, 255].

    Mean and standard deviation of the luma, in [0, 255]; mean of HSV's saturation, in [0, 1];
    variance of the luma's Laplacian, from 0 on.
    """
    luma = pixels @ _LUMA
    largest, least = pixels.max(axis=2), pixels.min(axis=2)
    saturation = (largest - least) / np.maximum(largest, 1)
    middle = luma[1:-1, 1:-1]
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * middle
    return float(luma.mean()), float(luma.std()), float(saturation.mean()), float(laplacian.var())


def _read_sizes(images: DatasetImages, rows: Integers) -> dict[str, Floats]:
    """Return the files' shorter side, in pixels, and width / height, float64 [rows]."""
    found = []
    for split, indices in images.iterate_splits(rows):
        table = parquet.read_table(
            images.dataset.directory / "index" / f"{split}.parquet", columns=["height", "width"]
        )
        found.append(
            np.stack([table[side].to_numpy()[indices] for side in ("height", "width")]).astype(
                np.float64
            )
        )
    height, width = np.concatenate(found, axis=1)
    return {"short_side": np.minimum(height, width), "aspect_ratio": width / height}


def _iterate_encoded(images: DatasetImages, rows: Integers) -> Iterator[tuple[bytes, int]]:
    """Yield the file and the EXIF orientation, in 1..8, of some images; others are not parsed."""
    import tensorflow as tf

    for split, indices in images.iterate_splits(rows):
        if len(indices):
            try:
                for example in _read_examples(images.dataset, split, indices):
                    yield example["image"].numpy(), int(example["orientation"])
            except (OSError, ValueError, tf.errors.OpError) as error:
                raise _make_damaged_error(images.dataset, str(error)) from error


def _read_examples(dataset: DatasetArtifact, split: str, indices: Integers) -> Dataset:
    """Return the examples at some indices of a split, int64, ascending."""
    import tensorflow as tf

    from pipeline.data.shards import as_written, make_deterministic_options, open_records

    records, parse = open_records(
        dataset.shards, dataset.reads[split], dataset.image_key, dataset.label_key
    )
    wanted = np.zeros(indices[-1] + 1, np.bool_)
    wanted[indices] = True
    is_wanted = tf.constant(wanted)
    picked = (
        records(None)
        .take(len(wanted))
        .enumerate()
        .filter(as_written(lambda index, _: is_wanted[index]))
    )
    return picked.map(as_written(lambda _, record: parse(record))).with_options(
        make_deterministic_options()
    )


def _make_damaged_error(dataset: DatasetArtifact, reason: str) -> DatasetError:
    return DatasetError(
        f"The prepared dataset in {dataset.shards} is damaged ({' '.join(reason.split()):.200})",
        expected="the files that ingest wrote",
        hint=f"Delete {dataset.directory} and type the same command: it is prepared again where its"
        " source is still there",
    )
