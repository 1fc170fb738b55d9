"""Batches of crops of a split, from its pixels in memory or on the disk, or decoded from its shards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.data.crops import cut_squares, place_window
from pipeline.data.decoding import decode_window, mirror_where, resize_square
from pipeline.data.loader import LoadedSplit, decode_square, decoding_hints

_MAX_TOGETHER, _BYTES_TOGETHER = 64, 2**20


def cut_pixel_batches(
    images: LoadedSplit, order: Any, how: tuple[Any, ...], size: int, calls: int
) -> Any:
    """Cut batches from memory or from the disk.

    `how` belongs to the places of `order` [batches, batch], whatever it is.
    """
    side, batch = images.dataset.short_side, order.shape[1]

    def copied(*where: Any) -> Any:
        places, top, left, mirrored = (values.reshape(-1) for values in where)
        return cut_squares(images.pixels, places, top, left, mirrored, size).reshape(
            *where[0].shape, size, size, 3
        )

    def squares(*where: Any) -> Any:
        return tf.ensure_shape(
            tf.numpy_function(copied, where, tf.uint8, stateful=False), (None, batch, size, size, 3)
        )

    def part(place: Any, inside: Any) -> Any:
        top, left, height, width = inside.tolist()
        return np.ascontiguousarray(images.pixels[place, top : top + height, left : left + width])

    def window(place: Any, shapes: Any, corner: Any, mirrored: Any) -> Any:
        copied = tf.numpy_function(
            part, [place, place_window(shapes, corner, (side, side))], tf.uint8, stateful=False
        )
        return mirror_where(mirrored, resize_square(tf.ensure_shape(copied, (None, None, 3)), size))

    if len(how[0].shape) == 2:  # corners; copied batch by batch, as single images are soon done
        # Several small batches at a time: a call of Python costs as much as copying some hundred
        # kB.
        together = max(1, min(_MAX_TOGETHER, _BYTES_TOGETHER // (batch * size * size * 3)))
        slices = tf.data.Dataset.from_tensor_slices((images.labels[order], (order, *how))).batch(
            together
        )
        copies = slices.map(
            lambda labels, where: {"pixels": squares(*where), "labels": labels},
            num_parallel_calls=calls,
        )
        return (
            copies.unbatch()
            if together > 1
            else copies.map(lambda one: {name: values[0] for name, values in one.items()})
        )
    slices = tf.data.Dataset.from_tensor_slices(
        (images.labels[order.reshape(-1)], _flat(order, *how))
    )
    pairs = slices.map(
        lambda label, where: {"pixels": window(*where), "labels": label}, num_parallel_calls=calls
    )
    return pairs.batch(batch, drop_remainder=True)


def decode_record_batches(
    images: LoadedSplit,
    records: Any,
    parse: Callable[..., Any],
    how: tuple[Any, ...],
    size: int,
    calls: int,
) -> Any:
    """Decode batches from shards.

    `how` belongs to the places of `records`, [batches, batch] whatever it is.
    """
    dataset = images.dataset

    def crop(example: dict[str, Any], top: Any, left: Any) -> Any:
        return tf.slice(decode_square(dataset, example), [top, left, 0], [size, size, 3])

    def window(example: dict[str, Any], shapes: Any, corner: Any) -> Any:
        def inside(sides: Any) -> Any:
            return place_window(shapes, corner, sides)

        return decode_window(
            example["image"], example["orientation"], inside, size, decoding_hints(dataset)
        )

    function = crop if len(how[0].shape) == 2 else window

    def one(record: Any, where: tuple[Any, ...]) -> dict[str, Any]:
        *place, mirrored = where
        example = parse(record)
        return {
            "pixels": mirror_where(mirrored, function(example, *place)),
            "labels": tf.cast(example["label"], tf.int32),
        }

    places = tf.data.Dataset.from_tensor_slices(_flat(*how))
    batch = how[0].shape[1]
    return (
        tf.data.Dataset.zip(records, places)
        .map(one, num_parallel_calls=calls)
        .batch(batch, drop_remainder=True)
    )


def _flat(*arrays: Any) -> tuple[Any, ...]:
    """Return arrays [batches, batch, ...] as [batches * batch, ...]."""
    return tuple(array.reshape(-1, *array.shape[2:]) for array in arrays)
