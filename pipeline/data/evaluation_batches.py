"""The batches of evaluation: central crops or ten views, every image once in stored order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import tensorflow as tf

from pipeline.data.loader import (
    PREFETCHED_BATCHES,
    LoadedSplit,
    decode_square,
    measure_surplus,
    open_split_records,
)
from pipeline.data.shards import as_written, count_processors, make_deterministic_options
from pipeline.image_size import ImageSize, sides_of

if TYPE_CHECKING:
    from pipeline.arrays import Array, Dataset, Images, Tensor

View = Literal["center", "ten"]


def make_evaluation_batches(
    images: LoadedSplit,
    *,
    image_size: ImageSize,
    batch_size: int,
    view: View = "center",
    worker: tuple[int, int] = (0, 1),
    parallel_calls: int | None = None,
) -> Dataset:
    """Return a split as batches of (pixels, labels): crops in stored order, every image once.

    Pixels are uint8 [batch, height, width, 3] in [0, 255], labels int32 [batch]; the last
    batch may be smaller.

    Args:
        images: the split.
        image_size: height and width of the crops.
        batch_size: images per batch.
        view: `center`, the central crop; or `ten`, the paper's ten (section 4.1), pixels [batch,
            10, ...]: the four corners and the center, then the same mirrored.
        worker: whose batches, and of how many that take them in turns.
        parallel_calls: images or batches that are prepared at a time; the result does not depend on
            it.

    Raises:
        ConfigError: the images are smaller than the crop.
    """
    height, width = sides_of(image_size)
    rows, columns = measure_surplus(images, image_size)
    calls = parallel_calls or 2 * count_processors()
    read = _read_streamed if images.pixels is None else _read_pixels

    def cut_views(squares: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        middle = (rows // 2, columns // 2)
        corners = ((0, 0), (0, columns), (rows, 0), (rows, columns), middle)
        crops = [squares[:, top : top + height, left : left + width] for top, left in corners]
        if view == "center":
            return crops[-1], labels
        five = tf.stack(crops, axis=1)
        return tf.concat([five, tf.reverse(five, [3])], axis=1), labels

    return (
        read(images, batch_size, worker, calls)
        .map(as_written(cut_views), num_parallel_calls=calls)
        .prefetch(PREFETCHED_BATCHES)
        .with_options(make_deterministic_options())
    )


def _read_pixels(
    images: LoadedSplit, batch_size: int, worker: tuple[int, int], calls: int
) -> Dataset:
    """Return a worker's batches of whole squares, and labels, from memory or the disk."""
    index, workers = worker
    slices = (
        tf.data.Dataset.from_tensor_slices((np.arange(len(images)), images.labels))
        .batch(batch_size)
        .shard(workers, index)
    )
    return slices.map(
        as_written(lambda indices, labels: (_take_images(images, indices), labels)),
        num_parallel_calls=calls,
    )


def _read_streamed(
    images: LoadedSplit, batch_size: int, worker: tuple[int, int], calls: int
) -> Dataset:
    """Return a worker's batches of whole squares, and labels, decoded from the shards."""
    index, workers = worker
    reader = open_split_records(images)
    own = reader.read(None)
    if workers > 1:  # before anything is decoded
        own = (
            own.enumerate()
            .filter(as_written(lambda position, _: position // batch_size % workers == index))
            .map(as_written(lambda _, record: record))
        )
    decoded = own.map(
        as_written(lambda record: decode_square(images.dataset, reader.parse(record))),
        num_parallel_calls=calls,
    ).batch(batch_size)
    labels = (
        tf.data.Dataset.from_tensor_slices(images.labels).batch(batch_size).shard(workers, index)
    )
    return tf.data.Dataset.zip(decoded, labels)


def make_scoring_batches(
    images: LoadedSplit,
    *,
    image_size: ImageSize,
    batch_size: int,
    worker: tuple[int, int],
    full: bool,
) -> Dataset:
    """Return the centers of `make_evaluation_batches` as dictionaries of `pixels` and `labels`.

    Args:
        images: the split.
        image_size: height and width of the crops.
        batch_size: images per batch.
        worker: whose batches, and of how many.
        full: fill the last batch up with black images of label -1, so that devices have equal
            parts.
    """

    def make_dictionary(pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if not full:
            return {"pixels": pixels, "labels": labels}
        missing = batch_size - tf.shape(labels)[0]
        pixels = tf.pad(pixels, [(0, missing), (0, 0), (0, 0), (0, 0)])
        labels = tf.pad(labels, [(0, missing)], constant_values=-1)
        return {
            "pixels": tf.ensure_shape(pixels, (batch_size, *sides_of(image_size), 3)),
            "labels": tf.ensure_shape(labels, (batch_size,)),
        }

    return make_evaluation_batches(
        images, image_size=image_size, batch_size=batch_size, worker=worker
    ).map(as_written(make_dictionary))


def _take_images(images: LoadedSplit, indices: Tensor) -> Tensor:
    """Return some images, uint8 [indices, side, side, 3], from memory or from the disk."""
    pixels = images.pixels
    if pixels is None:
        raise ValueError(f"the {images.split} split is streamed")

    def take(rows: Array) -> Images:
        return pixels[rows]

    taken = tf.numpy_function(take, [indices], tf.uint8, stateful=False)
    return tf.ensure_shape(taken, (None, *pixels.shape[1:]))
