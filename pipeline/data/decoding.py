"""From an image file's bytes to pixels: the decoder and the resize that all stages share.

Less usual files are treated the same everywhere: gray is repeated in three channels; CMYK JPEGs are
converted by libjpeg's rule; 16 bits a channel are cut to the upper 8; a palette is looked up;
transparent pixels show white; EXIF orientation is applied once. A color profile is not applied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tensorflow as tf

from pipeline.data.headers import PNG_SIGNATURE

if TYPE_CHECKING:
    from pipeline.arrays import Tensor


def decode_image(encoded: Tensor, orientation: Tensor | int = 1) -> Tensor:
    """Decode a JPEG, PNG, BMP, WebP or still GIF file.

    Args:
        encoded: string tensor [], the file's bytes.
        orientation: int [] in 1..8 as `read_orientation` returns it.

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


def _decode_png(encoded: Tensor) -> Tensor:
    """Return uint8 [height, width, 3].

    Only color types that can be transparent are decoded with four channels.
    """
    # IHDR: 0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGB and alpha.
    color_type = tf.strings.substr(encoded, 25, 1)
    opaque = (color_type == b"\x00") | (color_type == b"\x02")
    return tf.cond(
        opaque,
        lambda: tf.io.decode_png(encoded, channels=3),
        lambda: _on_white(tf.io.decode_png(encoded, channels=4)),
    )


def _decode_bmp(encoded: Tensor) -> Tensor:
    """Return uint8 [height, width, 3] of a BMP; the format does not use a fourth channel."""
    image = tf.io.decode_bmp(encoded)
    return tf.cond(
        tf.shape(image)[2] == 1, lambda: tf.repeat(image, 3, axis=2), lambda: image[:, :, :3]
    )


def _decode_webp(encoded: Tensor) -> Tensor:
    """Return uint8 [height, width, 3] of a still WebP; TensorFlow keeps the file's channels."""
    image = tf.io.decode_webp(encoded)[0]
    return tf.cond(tf.shape(image)[2] == 4, lambda: _on_white(image), lambda: image)


def _on_white(image: Tensor) -> Tensor:
    """Lay uint8 [height, width, 4] over white; return uint8 [height, width, 3]."""
    values = tf.cast(image, tf.uint16)  # 255 * 255 + 127 fits
    color, opacity = values[:, :, :3], values[:, :, 3:]
    return tf.cast((color * opacity + 255 * (255 - opacity) + 127) // 255, tf.uint8)


def turn_upright(image: Tensor, orientation: Tensor | int) -> Tensor:
    """Turn an image by its EXIF orientation.

    Args:
        image: uint8 [height, width, 3].
        orientation: int [] in 1..8.
    """
    number = tf.cast(orientation, tf.int32)

    def turned() -> Tensor:
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
    """What is known of every image of a dataset, so that a graph needs fewer cases and runs faster.

    The pixels are the same. `upright_jpeg`: all are JPEGs that need not be turned. `short_side`:
    that of the largest image, in pixels.
    """

    upright_jpeg: bool = False
    short_side: int = 1 << 16


def decode_and_resize(
    encoded: Tensor,
    short_side: int,
    orientation: Tensor | int = 1,
    hints: DecodingHints = DecodingHints(),
) -> Tensor:
    """Decode an image, cut out the central square and rescale it (paper, section 2).

    Args:
        encoded: string tensor [], the bytes of an image file.
        short_side: height and width of the result.
        orientation: int [] in 1..8, EXIF.
        hints: what the graph need not provide for.

    Returns:
        uint8 [short_side, short_side, 3] in [0, 255].
    """

    def center_square(sides: Tensor) -> Tensor:
        side = tf.reduce_min(sides)
        return tf.concat([(sides - side) // 2, [side, side]], axis=0)

    return decode_window(encoded, orientation, center_square, short_side, hints)


def decode_window(
    encoded: Tensor,
    orientation: Tensor | int,
    window: Callable[[Tensor], Tensor],
    size: int,
    hints: DecodingHints = DecodingHints(),
) -> Tensor:
    """Decode a window of an image and stretch it to a square.

    Of an upright JPEG only the window is decoded.

    Args:
        encoded: string tensor [], the bytes of an image file.
        orientation: int [] in 1..8, EXIF.
        window: takes height and width of the upright image, int32 [2], and returns int32 [4]: top,
            left, height and width.
        size: height and width of the result.
        hints: what the graph need not provide for.

    Returns:
        uint8 [size, size, 3] in [0, 255].
    """

    def part() -> Tensor:
        return _decode_part(
            encoded,
            window(tf.io.extract_jpeg_shape(encoded)[:2]),
            size,
            may_halve=hints.short_side >= 2 * size,
        )

    def whole() -> Tensor:
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
        part() if hints.upright_jpeg else tf.cond(upright_jpeg, part, whole), (None, None, 3)
    )
    return resize_square(image, size)


def _decode_part(encoded: Tensor, window: Tensor, size: int, *, may_halve: bool) -> Tensor:
    """Return uint8 [height, width, 3] of an upright JPEG's window.

    Reduced 2, 4 or 8 times where it is that much larger than needed: libjpeg then leaves out the
    fine frequencies, which takes less time than to average their pixels. The rest is less than
    twice as large as needed, so that bilinear sampling misses no pixel.
    """

    def reduced(ratio: int) -> Callable[[], Tensor]:
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


def _reduction(window: Tensor, size: int) -> Tensor:
    """Return the number of times that a window can be halved for a result of `size`, 0..3."""
    side = tf.reduce_min(window[2:])
    return tf.reduce_sum(tf.cast(side >= [2 * size, 4 * size, 8 * size], tf.int32))


def resize_square(image: Tensor, size: int) -> Tensor:
    """Stretch an image to a square by bilinear sampling.

    Args:
        image: uint8 [height, width, 3] in [0, 255], less than twice as large as needed.
        size: height and width of the result.

    Returns:
        uint8 [size, size, 3] in [0, 255].
    """
    return tf.ensure_shape(_to_levels(tf.image.resize(image, (size, size))), (size, size, 3))


def mirror_where(mirrored: Tensor, image: Tensor) -> Tensor:
    """Return an image [height, width, channels], mirrored where `mirrored`, bool [].

    Not by a slice with a negative step, which takes as long as decoding.
    """
    return tf.raw_ops.Reverse(tensor=image, dims=tf.stack([False, mirrored, False]))


def _to_levels(values: Tensor) -> Tensor:
    """Round means of pixels, in [0, 255], to uint8.

    Truncating after adding a half takes a third of the time of rounding.
    """
    return tf.cast(values + 0.5, tf.uint8)


def decoding_error_reason(message: str) -> str:
    """Return the reason in TensorFlow's message of a failed decoding, without operations."""
    return message.partition("\n\t [[")[0].rpartition("\n")[2].partition(" when decoding")[0][:120]
