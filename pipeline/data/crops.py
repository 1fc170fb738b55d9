"""The crops of an epoch: where each image is cut and whether it is mirrored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from pipeline.random_streams import RandomStream, open_stream

if TYPE_CHECKING:
    from pipeline.arrays import Booleans, Floats, Images, Integers, Tensor

# One pixel as one item, so that NumPy copies its three bytes together.
_PIXEL = np.dtype("V3")


@dataclass(frozen=True)
class Crops:
    """The crop of each image: int32 top and left corner [images], and bool mirrored [images]."""

    top: Integers
    left: Integers
    mirrored: Booleans


def center_crops(count: int, surplus: int) -> Crops:
    """Return the central crop for every image.

    Args:
        count: images.
        surplus: pixels by which a side is longer than the crop.
    """
    corner = np.full(count, surplus // 2, np.int32)
    return Crops(corner, corner, np.zeros(count, np.bool_))


def draw_crops(
    count: int, surplus: int, *, seed: int, epoch: int, random_crop: bool, flip: bool
) -> Crops:
    """Return a random crop and a mirroring for each position in an epoch's order.

    They depend on (seed, epoch, position) alone: all are drawn at once, ahead of the input threads,
    so that their number changes nothing.

    Args:
        count: images.
        surplus: pixels by which a side is longer than the crop.
        seed: of the training.
        epoch: counted from 0.
        random_crop: cut at random corners; else at the center.
        flip: mirror one image in two.
    """
    center = center_crops(count, surplus)
    tops, lefts, coins = (
        open_stream(stream, seed=seed, epoch=epoch)
        for stream in (RandomStream.CROP_TOP, RandomStream.CROP_LEFT, RandomStream.MIRRORING)
    )
    return Crops(
        tops.integers(0, surplus, count, np.int32, endpoint=True) if random_crop else center.top,
        lefts.integers(0, surplus, count, np.int32, endpoint=True) if random_crop else center.left,
        coins.random(count) < 0.5 if flip else center.mirrored,
    )


def draw_windows(count: int, *, seed: int, epoch: int) -> tuple[Floats, Floats]:
    """Return the random numbers of the window of a resized crop, for each position of an epoch.

    The first are float32 [count, 4, 2], four tries of height and width in units of the root of the
    image's area: a fraction of the area in [0.08, 1) and a width / height between 3/4 and 4/3. The
    second are float32 [count, 2], where the window lies, in [0, 1) of the distance it can be moved
    down and to the right. The ranges are those of Szegedy and others, 2014, section 6.

    Args:
        count: images.
        seed: of the training.
        epoch: counted from 0.
    """
    rng = open_stream(RandomStream.RESIZED_CROP, seed=seed, epoch=epoch)
    area = rng.uniform(0.08, 1, (count, 4))
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), (count, 4)))
    shapes = np.sqrt(np.stack([area / aspect, area * aspect], axis=2))
    return shapes.astype(np.float32), rng.random((count, 2), np.float32)


def place_window(shapes: Tensor, corner: Tensor, sides: Tensor) -> Tensor:
    """Return the window of an image, int32 [..., 4]: top, left, height and width, inside the image.

    The first try that fits is taken; if none does, the largest square.

    Args:
        shapes: float32 [..., 4, 2], as `draw_windows` returns them.
        corner: float32 [..., 2], likewise.
        sides: int [2], height and width of the image.
    """
    whole = tf.cast(sides, tf.float32)
    tries = tf.maximum(tf.round(shapes * tf.sqrt(tf.reduce_prod(whole))), 1)
    square = tf.zeros_like(tries[..., :1, :]) + tf.reduce_min(whole)
    tries = tf.concat([tries, square], axis=-2)
    first = tf.argmax(tf.reduce_all(tries <= whole, axis=-1), axis=-1)
    size = tf.gather(tries, first, axis=-2, batch_dims=tries.shape.rank - 2)
    start = tf.minimum(tf.floor(corner * (whole - size + 1)), whole - size)
    return tf.cast(tf.concat([start, size], axis=-1), tf.int32)


def cut_squares(
    pixels: Images,
    indices: Integers,
    top: Integers,
    left: Integers,
    mirrored: Booleans,
    size: int,
) -> Images:
    """Copy a square out of some images and mirror some; pixels keep their values.

    In NumPy, which copies as fast as memory allows and holds no lock meanwhile; TensorFlow's
    gathering takes seven times as long.

    Args:
        pixels: uint8 [images, side, side, 3] in [0, 255].
        indices: int [batch], which images.
        top: int [batch] in [0, side - size].
        left: int [batch] in [0, side - size].
        mirrored: bool [batch].
        size: height and width of the result.

    Returns:
        uint8 [batch, size, size, 3] in [0, 255].
    """
    whole = pixels.view(_PIXEL)[..., 0]
    if size == whole.shape[1]:  # nothing is cut off
        squares = whole[indices]
        squares[mirrored] = squares[mirrored, :, ::-1]
        return squares.view(np.uint8).reshape(*squares.shape, 3)
    squares = np.empty((len(indices), size, size), _PIXEL)
    for square, index, y, x, turned in zip(
        squares, indices.tolist(), top.tolist(), left.tolist(), mirrored.tolist(), strict=True
    ):
        square[:, :: -1 if turned else 1] = whole[index, y : y + size, x : x + size]
    return squares.view(np.uint8).reshape(*squares.shape, 3)
