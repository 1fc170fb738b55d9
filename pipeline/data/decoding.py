"""From an image file's bytes to pixels: the decoder and the resize that all stages share.

What becomes of the less usual files, the same everywhere: gray is repeated in three channels; CMYK
JPEGs are converted by libjpeg's rule; 16 bits a channel are cut to the upper 8; a palette is looked
up; what is transparent shows white; EXIF orientation is applied once. A color profile is not
applied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from pipeline.data.headers import PNG_SIGNATURE


def decode_image(encoded: Any, orientation: Any = 1) -> Any:
    """Decode a JPEG, PNG, BMP, WebP or still GIF file.

    Args:
        encoded: string tensor [], the file's bytes.
        orientation: int [] in 1..8 as `read_orientation` says.

    Returns:
        uint8 [height, width, 3] in [0, 255], upright.
    """
    start = tf.strings.substr(encoded, 0, 4)
    image = tf.case(
        [
            (start == PNG_SIGNATURE[:4], lambda: _decode_png(encoded)),
            (tf.strings.substr(start, 0, 2) == b"BM", lambda: _decode_bmp(encoded)),
            (start == b"GIF8", lambda: tf.io.decode_gif(encoded)[0]),
            (start == b"RIFF", lambda: _decode_webp(encoded)),
        ],
        # INTEGER_ACCURATE gives the pixels that every other decoder gives; TensorFlow's default may
        # not.
        default=lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),
        exclusive=False,
    )
    return tf.ensure_shape(turn_upright(image, orientation), (None, None, 3))


def _decode_png(encoded: Any) -> Any:
    """Return uint8 [height, width, 3].

    Only color types that can be transparent are decoded with four channels.
    """
    color_type = tf.strings.substr(
        encoded, 25, 1
    )  # IHDR: 0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGB and alpha
    opaque = (color_type == b"\x00") | (color_type == b"\x02")
    return tf.cond(
        opaque,
        lambda: tf.io.decode_png(encoded, channels=3),
        lambda: _on_white(tf.io.decode_png(encoded, channels=4)),
    )


def _decode_bmp(encoded: Any) -> Any:
    """Return uint8 [height, width, 3] of a BMP with one, three or four channels.

    The fourth is not used by the format.
    """
    image = tf.io.decode_bmp(encoded)
    return tf.cond(
        tf.shape(image)[2] == 1, lambda: tf.repeat(image, 3, axis=2), lambda: image[:, :, :3]
    )


def _decode_webp(encoded: Any) -> Any:
    """Return uint8 [height, width, 3] of a still WebP, which TensorFlow decodes into as many channels as the file has."""
    image = tf.io.decode_webp(encoded)[0]
    return tf.cond(tf.shape(image)[2] == 4, lambda: _on_white(image), lambda: image)


def _on_white(image: Any) -> Any:
    """Lay uint8 [height, width, 4] over white; return uint8 [height, width, 3]."""
    values = tf.cast(image, tf.uint16)  # 255 * 255 + 127 fits
    color, opacity = values[:, :, :3], values[:, :, 3:]
    return tf.cast((color * opacity + 255 * (255 - opacity) + 127) // 255, tf.uint8)


def turn_upright(image: Any, orientation: Any) -> Any:
    """Turn an image as its EXIF orientation says.

    Args:
        image: uint8 [height, width, 3].
        orientation: int [] in 1..8.
    """
    number = tf.cast(orientation, tf.int32)

    def turned() -> Any:
        lying = tf.cond(number >= 5, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
        mirrored = tf.cond(
            tf.reduce_any(number == [2, 3, 6, 7]), lambda: lying[:, ::-1], lambda: lying
        )
        return tf.cond(
            tf.reduce_any(number == [3, 4, 7, 8]), lambda: mirrored[::-1], lambda: mirrored
        )

    return tf.cond(number == 1, lambda: image, turned)


@dataclass(frozen=True)
class DecodingHints:
    """What is known of every image of a dataset.

    The fewer cases a graph must provide for, the faster it runs, to the same pixels.

    `upright_jpeg`: all are JPEGs that need not be turned. `short_side`: that of the largest image,
    in pixels.
    """

    upright_jpeg: bool = False
    short_side: int = 1 << 16


def decode_and_resize(
    encoded: Any, short_side: int, orientation: Any = 1, known: DecodingHints = DecodingHints()
) -> Any:
    """Decode an image, cut out the central square and rescale it (paper, section 2).

    Args:
        encoded: string tensor [], the bytes of an image file.
        short_side: height and width of the result.
        orientation: int [] in 1..8, EXIF.
        known: what need not be provided for.

    Returns:
        uint8 [short_side, short_side, 3] in [0, 255].
    """

    def square(sides: Any) -> Any:
        side = tf.reduce_min(sides)
        return tf.concat([(sides - side) // 2, [side, side]], axis=0)

    return decode_window(encoded, orientation, square, short_side, known)


def decode_window(
    encoded: Any,
    orientation: Any,
    window: Callable[[Any], Any],
    size: int,
    known: DecodingHints = DecodingHints(),
) -> Any:
    """Decode a window of an image and stretch it to a square.

    Of an upright JPEG nothing but the window is decoded.

    Args:
        encoded: string tensor [], the bytes of an image file.
        orientation: int [] in 1..8, EXIF.
        window: takes height and width of the upright image, int32 [2], and gives int32 [4]: top,
            left, height and width.
        size: height and width of the result.
        known: what need not be provided for.

    Returns:
        uint8 [size, size, 3] in [0, 255].
    """

    def part() -> Any:
        return _decode_part(
            encoded,
            window(tf.io.extract_jpeg_shape(encoded)[:2]),
            size,
            may_halve=known.short_side >= 2 * size,
        )

    def whole() -> Any:
        image = decode_image(encoded, orientation)
        cut = window(tf.shape(image)[:2])
        image = tf.slice(image, tf.concat([cut[:2], [0]], 0), tf.concat([cut[2:], [3]], 0))
        # As many pixels are averaged beforehand as libjpeg averages of a JPEG.
        return tf.cond(
            _reduction(cut, size) > 0,
            lambda: _to_levels(tf.image.resize(image, (size, size), antialias=True)),
            lambda: image,
        )

    upright_jpeg = (tf.strings.substr(encoded, 0, 2) == b"\xff\xd8") & (
        tf.cast(orientation, tf.int32) == 1
    )
    image = tf.ensure_shape(
        part() if known.upright_jpeg else tf.cond(upright_jpeg, part, whole), (None, None, 3)
    )
    return resize_square(image, size)


def _decode_part(encoded: Any, window: Any, size: int, *, may_halve: bool) -> Any:
    """Return uint8 [height, width, 3] of an upright JPEG's window, reduced 2, 4 or 8 times where it is that much larger than needed.

    libjpeg leaves out the fine frequencies then, which takes less time than to average their
    pixels. What is left is less than twice as large as needed, so that bilinear sampling misses no
    pixel.
    """

    def reduced(ratio: int) -> Callable[[], Any]:
        # INTEGER_ACCURATE gives the pixels that every other decoder gives; TensorFlow's default may
        # not.
        return lambda: tf.io.decode_and_crop_jpeg(
            encoded, window // ratio, channels=3, dct_method="INTEGER_ACCURATE", ratio=ratio
        )

    return (
        reduced(1)()
        if not may_halve
        else tf.switch_case(
            _reduction(window, size), [reduced(1), reduced(2), reduced(4), reduced(8)]
        )
    )


def _reduction(window: Any, size: int) -> Any:
    """Return how often a window can be halved and is still as large as needed, int32 [] in 0..3."""
    side = tf.reduce_min(window[2:])
    return tf.reduce_sum(tf.cast(side >= [2 * size, 4 * size, 8 * size], tf.int32))


def resize_square(image: Any, size: int) -> Any:
    """Stretch an image to a square by bilinear sampling.

    Args:
        image: uint8 [height, width, 3] in [0, 255], less than twice as large as needed.
        size: height and width of the result.

    Returns:
        uint8 [size, size, 3] in [0, 255].
    """
    return tf.ensure_shape(_to_levels(tf.image.resize(image, (size, size))), (size, size, 3))


def mirror_where(mirrored: Any, image: Any) -> Any:
    """Mirror [height, width, channels] if so, bool [].

    Not by a slice with a negative step, which takes as long as decoding.
    """
    return tf.raw_ops.Reverse(tensor=image, dims=tf.stack([False, mirrored, False]))


def _to_levels(values: Any) -> Any:
    """Round means of pixels, which stay in [0, 255], to uint8.

    Cutting off after adding a half takes a third of the time.
    """
    return tf.cast(values + 0.5, tf.uint8)


def decoding_error_reason(message: str) -> str:
    """Return what TensorFlow's message of a failed decoding says, without the names of operations and the places in the code."""
    return message.partition("\n\t [[")[0].rpartition("\n")[2].partition(" when decoding")[0][:120]
