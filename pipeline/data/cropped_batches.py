"""Batches of crops: cut from pixels in memory or on the disk, or decoded from shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from pipeline.data.crops import cut_crops, place_in_square, place_window
from pipeline.data.decoding import decode_window, mirror_where, stretch
from pipeline.data.loader import LoadedSplit, decode_square, make_hints
from pipeline.data.shards import RecordReader, as_written
from pipeline.image_size import ImageSize, sides_of

if TYPE_CHECKING:
    from pipeline.arrays import Array, Dataset, Image, Images, Integers, Tensor

# Small batches that are cut by one call of Python, which costs as much as copying some hundred kB.
_MAX_TOGETHER, _BYTES_TOGETHER = 64, 2**20


def cut_pixel_batches(
    images: LoadedSplit, order: Integers, crops: tuple[Array, ...], size: ImageSize, calls: int
) -> Dataset:
    """Cut batches from memory or from the disk.

    Args:
        images: a split with its pixels.
        order: which image is at each position, int [batches, batch].
        crops: either top, left and mirrored [batches, batch], or the two arrays of `draw_windows`
            and mirrored.
        size: height and width of the result.
        calls: batches, or images of resized crops, that are prepared at a time.

    Returns:
        Batches of `pixels` uint8 [batch, height, width, 3] and `labels`.
    """
    if len(crops[0].shape) == 2:  # corners; copied batch by batch, as single images are soon done
        return _cut_corners(images, order, crops, size, calls)
    return _cut_windows(images, order, crops, size, calls)


def _cut_corners(
    images: LoadedSplit, order: Integers, crops: tuple[Array, ...], size: ImageSize, calls: int
) -> Dataset:
    batch, (height, width) = order.shape[1], sides_of(size)

    def copy_crops(*crops: Array) -> Images:
        indices, top, left, mirrored = (values.reshape(-1) for values in crops)
        copied = cut_crops(_pixels_of(images), indices, top, left, mirrored, size)
        return copied.reshape(*crops[0].shape, height, width, 3)

    def cut(*crops: Tensor) -> Tensor:
        copied = tf.numpy_function(copy_crops, crops, tf.uint8, stateful=False)
        return tf.ensure_shape(copied, (None, batch, height, width, 3))

    together = max(1, min(_MAX_TOGETHER, _BYTES_TOGETHER // (batch * height * width * 3)))
    slices = tf.data.Dataset.from_tensor_slices((images.labels[order], (order, *crops)))
    copies = slices.batch(together).map(
        as_written(lambda labels, crops: {"pixels": cut(*crops), "labels": labels}),
        num_parallel_calls=calls,
    )
    if together > 1:
        return copies.unbatch()
    return copies.map(as_written(lambda one: {name: values[0] for name, values in one.items()}))


def _cut_windows(
    images: LoadedSplit, order: Integers, crops: tuple[Array, ...], size: ImageSize, calls: int
) -> Dataset:
    side = images.dataset.short_side

    def copy_window(index: int, window: Integers) -> Image:
        top, left, height, width = window.tolist()
        pixels = _pixels_of(images)
        return np.ascontiguousarray(pixels[index, top : top + height, left : left + width])

    def cut(index: Tensor, shapes: Tensor, corner: Tensor, mirrored: Tensor) -> Tensor:
        window = place_in_square(shapes, corner, side, size)
        copied = tf.numpy_function(copy_window, [index, window], tf.uint8, stateful=False)
        copied = tf.ensure_shape(copied, (None, None, 3))
        return mirror_where(mirrored, stretch(copied, size))

    slices = tf.data.Dataset.from_tensor_slices(
        (images.labels[order.reshape(-1)], _flatten_batches(order, *crops))
    )
    pairs = slices.map(
        as_written(lambda label, crop: {"pixels": cut(*crop), "labels": label}),
        num_parallel_calls=calls,
    )
    return pairs.batch(order.shape[1], drop_remainder=True)


def _pixels_of(images: LoadedSplit) -> Images:
    if images.pixels is None:
        raise ValueError(f"the {images.split} split is streamed")
    return images.pixels


def decode_record_batches(
    images: LoadedSplit,
    records: Dataset,
    reader: RecordReader,
    crops: tuple[Array, ...],
    size: ImageSize,
    calls: int,
) -> Dataset:
    """Decode batches from shards.

    Args:
        images: a split.
        records: of its shards, in the order of the batches.
        reader: what parses them.
        crops: as `cut_pixel_batches` takes them, for the positions of `records`.
        size: height and width of the result.
        calls: images that are prepared at a time.

    Returns:
        Batches of `pixels` uint8 [batch, height, width, 3] and `labels`.
    """
    dataset = images.dataset
    side, (height, width) = dataset.short_side, sides_of(size)

    def decode_crop(example: dict[str, Tensor], top: Tensor, left: Tensor) -> Tensor:
        return tf.slice(decode_square(dataset, example), [top, left, 0], [height, width, 3])

    def decode_resized(example: dict[str, Tensor], shapes: Tensor, corner: Tensor) -> Tensor:
        if dataset.fit == "pad":  # windows of the prepared square, as of one in memory
            top, left, *sides = tf.unstack(place_in_square(shapes, corner, side, size))
            window = tf.slice(decode_square(dataset, example), [top, left, 0], [*sides, 3])
            return stretch(window, size)

        def find_window(sides: Tensor) -> Tensor:
            return place_window(shapes, corner, sides, size)

        return decode_window(
            example["image"], example["orientation"], find_window, size, make_hints(dataset)
        )

    decode = decode_crop if len(crops[0].shape) == 2 else decode_resized

    def make_example(record: Tensor, crop: tuple[Tensor, ...]) -> dict[str, Tensor]:
        *position, mirrored = crop
        example = reader.parse(record)
        return {
            "pixels": mirror_where(mirrored, decode(example, *position)),
            "labels": tf.cast(example["label"], tf.int32),
        }

    slices = tf.data.Dataset.from_tensor_slices(_flatten_batches(*crops))
    batch = crops[0].shape[1]
    return (
        tf.data.Dataset.zip(records, slices)
        .map(as_written(make_example), num_parallel_calls=calls)
        .batch(batch, drop_remainder=True)
    )


def _flatten_batches(*arrays: Array) -> tuple[Array, ...]:
    """Return arrays [batches, batch, ...] as [batches * batch, ...]."""
    return tuple(array.reshape(-1, *array.shape[2:]) for array in arrays)
