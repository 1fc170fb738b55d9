"""A split as batches of central crops or of ten views, every image once in stored order."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import tensorflow as tf

from pipeline.data.loader import LoadedSplit, decode_square, measure_surplus, open_split_records
from pipeline.data.shards import count_processors, make_deterministic_options

_PREFETCHED_BATCHES = 2


View = Literal["center", "ten"]


def make_evaluation_batches(
    images: LoadedSplit,
    *,
    image_size: int,
    batch_size: int,
    view: View = "center",
    worker: tuple[int, int] = (0, 1),
    parallel_calls: int | None = None,
) -> Any:
    """Return a split as a tf.data.Dataset of (uint8 [batch, image_size, image_size, 3] in [0, 255], int32 [batch]).

    Crops in stored order, every image once; the last batch may be smaller.

    Args:
        images: the split.
        image_size: height and width of the crops.
        batch_size: images a batch.
        view: `center`, the central crop; or `ten`, the paper's ten (section 4.1), pixels [batch,
            10, ...]: the four corners and the center, then the same mirrored.
        worker: whose batches, and of how many that take them in turns.
        parallel_calls: images or batches that are prepared at a time; the result does not depend on
            it.

    Raises:
        ConfigError: the images are smaller than the crop.
    """
    surplus, calls, (index, workers) = (
        measure_surplus(images, image_size),
        parallel_calls or 2 * count_processors(),
        worker,
    )
    if images.pixels is not None:
        slices = (
            tf.data.Dataset.from_tensor_slices((np.arange(len(images)), images.labels))
            .batch(batch_size)
            .shard(workers, index)
        )
        batches = slices.map(
            lambda places, labels: (_rows_at(images, places), labels), num_parallel_calls=calls
        )
    else:
        records, parse = open_split_records(images)
        own = records(None)
        if workers > 1:  # before anything is decoded
            own = (
                own.enumerate()
                .filter(lambda place, _: place // batch_size % workers == index)
                .map(lambda _, record: record)
            )
        decoded = own.map(
            lambda record: decode_square(images.dataset, parse(record)), num_parallel_calls=calls
        ).batch(batch_size)
        labels = (
            tf.data.Dataset.from_tensor_slices(images.labels)
            .batch(batch_size)
            .shard(workers, index)
        )
        batches = tf.data.Dataset.zip(decoded, labels)

    def viewed(squares: Any, labels: Any) -> tuple[Any, Any]:
        corners = (
            (0, 0),
            (0, surplus),
            (surplus, 0),
            (surplus, surplus),
            (surplus // 2, surplus // 2),
        )
        crops = [
            squares[:, top : top + image_size, left : left + image_size] for top, left in corners
        ]
        if view == "center":
            return crops[-1], labels
        five = tf.stack(crops, axis=1)
        return tf.concat([five, tf.reverse(five, [3])], axis=1), labels

    return (
        batches.map(viewed, num_parallel_calls=calls)
        .prefetch(_PREFETCHED_BATCHES)
        .with_options(make_deterministic_options())
    )


def make_scoring_batches(
    images: LoadedSplit, *, image_size: int, batch_size: int, worker: tuple[int, int], full: bool
) -> Any:
    """Return the centers of `make_evaluation_batches` as dictionaries of `pixels` and `labels`.

    Args:
        images: the split.
        image_size: height and width of the crops.
        batch_size: images a batch.
        worker: whose batches, and of how many.
        full: fill the last batch up with black images of label -1, so that devices have equal
            shares.
    """

    def named(pixels: Any, labels: Any) -> dict[str, Any]:
        if not full:
            return {"pixels": pixels, "labels": labels}
        missing = batch_size - tf.shape(labels)[0]
        pixels = tf.pad(pixels, [(0, missing), (0, 0), (0, 0), (0, 0)])
        labels = tf.pad(labels, [(0, missing)], constant_values=-1)
        return {
            "pixels": tf.ensure_shape(pixels, (batch_size, image_size, image_size, 3)),
            "labels": tf.ensure_shape(labels, (batch_size,)),
        }

    return make_evaluation_batches(
        images, image_size=image_size, batch_size=batch_size, worker=worker
    ).map(named)


def _rows_at(images: LoadedSplit, places: Any) -> Any:
    """Return the images at some places, uint8 [places, side, side, 3], from memory or from the disk."""
    rows = tf.numpy_function(images.pixels.__getitem__, [places], tf.uint8, stateful=False)
    return tf.ensure_shape(rows, (None, *images.pixels.shape[1:]))
