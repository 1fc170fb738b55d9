"""The crops of an epoch: where each image is cut and whether it is mirrored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from pipeline.image_size import ImageSize, sides_of
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


def center_crops(count: int, surplus: tuple[int, int]) -> Crops:
    """Return the central crop for every image.

    Args:
        count: images.
        surplus: pixels by which height and width are longer than the crop's.
    """
    top, left = (np.full(count, pixels // 2, np.int32) for pixels in surplus)
    return Crops(top, left, np.zeros(count, np.bool_))


def draw_crops(
    count: int,
    surplus: tuple[int, int],
    *,
    seed: int,
    epoch: int,
    random_crop: bool,
    flip: bool,
) -> Crops:
    """Return a random crop and a mirroring for each position in an epoch's order.

    They depend on (seed, epoch, position) alone: all are drawn at once, ahead of the input threads,
    so that their number changes nothing.

    Args:
        count: images.
        surplus: pixels by which height and width are longer than the crop's.
        seed: of the training.
        epoch: counted from 0.
        random_crop: cut at random corners; else at the center.
        flip: mirror one image in two.
    """
    center, (rows, columns) = center_crops(count, surplus), surplus
    tops, lefts, coins = (
        open_stream(stream, seed=seed, epoch=epoch)
        for stream in (RandomStream.CROP_TOP, RandomStream.CROP_LEFT, RandomStream.MIRRORING)
    )
    return Crops(
        tops.integers(0, rows, count, np.int32, endpoint=True) if random_crop else center.top,
        lefts.integers(0, columns, count, np.int32, endpoint=True) if random_crop else center.left,
        coins.random(count) < 0.5 if flip else center.mirrored,
    )


def find_frame(side: int, size: ImageSize) -> tuple[int, int, int, int]:
    """Return the part of a prepared square in which crops are drawn: top, left, height and width.

    It has the shape of the crops, and in its middle the crop that evaluation takes; of a square
    crop it is all. So training moves a crop by the same fraction of each of its sides, and of an
    image that was padded it sees hardly more border than evaluation does.

    Args:
        side: height and width of the square.
        size: height and width of the crops, at most `side`.
    """
    (height, width), longest = sides_of(size), max(sides_of(size))
    rows, columns = round(side * height / longest), round(side * width / longest)
    top = (side - height) // 2 - (rows - height) // 2
    left = (side - width) // 2 - (columns - width) // 2
    return top, left, rows, columns


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


def place_window(shapes: Tensor, corner: Tensor, sides: Tensor, size: ImageSize) -> Tensor:
    """Return the window of an image, int32 [..., 4]: top, left, height and width, inside the image.

    The first try that fits is taken; if none does, the largest window of the crop's shape. What was
    drawn as width / height is in units of the crop's, so that nothing is stretched more than in a
    square.

    Args:
        shapes: float32 [..., 4, 2], as `draw_windows` returns them.
        corner: float32 [..., 2], likewise.
        sides: int [2], height and width of the image.
        size: height and width of the crops.
    """
    whole, (height, width) = tf.cast(sides, tf.float32), sides_of(size)
    shape = [math.sqrt(height / width), math.sqrt(width / height)]
    tries = tf.maximum(tf.round(shapes * (tf.sqrt(tf.reduce_prod(whole)) * shape)), 1)
    reach = tf.round(whole[::-1] * [height / width, width / height])  # of the other side
    largest = tf.zeros_like(tries[..., :1, :]) + tf.maximum(tf.minimum(whole, reach), 1)
    tries = tf.concat([tries, largest], axis=-2)
    first = tf.argmax(tf.reduce_all(tries <= whole, axis=-1), axis=-1)
    taken = tf.gather(tries, first, axis=-2, batch_dims=tries.shape.rank - 2)
    start = tf.minimum(tf.floor(corner * (whole - taken + 1)), whole - taken)
    return tf.cast(tf.concat([start, taken], axis=-1), tf.int32)


def place_in_square(shapes: Tensor, corner: Tensor, side: int, size: ImageSize) -> Tensor:
    """Return `place_window` within the frame of a prepared square, int32 [..., 4]."""
    top, left, *frame = find_frame(side, size)
    return tf.add(place_window(shapes, corner, frame, size), [top, left, 0, 0])


def cut_crops(
    pixels: Images,
    indices: Integers,
    top: Integers,
    left: Integers,
    mirrored: Booleans,
    size: ImageSize,
) -> Images:
    """Copy a crop out of some images and mirror some; pixels keep their values.

    In NumPy, which copies as fast as memory allows and holds no lock meanwhile; TensorFlow's
    gathering takes seven times as long.

    Args:
        pixels: uint8 [images, side, side, 3] in [0, 255].
        indices: int [batch], which images.
        top: int [batch] in [0, side - height].
        left: int [batch] in [0, side - width].
        mirrored: bool [batch].
        size: height and width of the result.

    Returns:
        uint8 [batch, height, width, 3] in [0, 255].
    """
    whole, (height, width) = pixels.view(_PIXEL)[..., 0], sides_of(size)
    if (height, width) == whole.shape[1:]:  # nothing is cut off
        crops = whole[indices]
        crops[mirrored] = crops[mirrored, :, ::-1]
        return crops.view(np.uint8).reshape(*crops.shape, 3)
    crops = np.empty((len(indices), height, width), _PIXEL)
    for crop, index, y, x, turned in zip(
        crops, indices.tolist(), top.tolist(), left.tolist(), mirrored.tolist(), strict=True
    ):
        crop[:, :: -1 if turned else 1] = whole[index, y : y + height, x : x + width]
    return crops.view(np.uint8).reshape(*crops.shape, 3)
