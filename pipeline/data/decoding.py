"""From an image file's bytes to pixels: the decoder and the resize that all stages share.

Less usual files are treated the same everywhere: gray is repeated in three channels; CMYK JPEGs are
converted by libjpeg's rule; 16 bits a channel are cut to the upper 8; a palette is looked up;
transparent pixels show white; EXIF orientation is applied once. A color profile is not applied.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tensorflow as tf

from pipeline.data.headers import PNG_SIGNATURE
from pipeline.image_size import ImageSize, sides_of

if TYPE_CHECKING:
    from pipeline.arrays import Tensor
    from pipeline.artifacts import Fit

# Crops are 224 of 256 pixels (section 2 of the paper; `config.resolution.leave_room_for_crops` is
# the inverse). The longer side of a padded image takes that part of its square, so that the central
# crop shows the image whole and hardly anything else.
CROP_FRACTION = (7, 8)


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

    The pixels are the same. `upright_jpeg`: all are JPEGs that need not be turned. `scaled_side`:
    pixels of the side that is resized, the shorter one where images are cropped and the longer one
    where they are padded, of the image where it is longest.
    """

    upright_jpeg: bool = False
    scaled_side: int = 1 << 16


@dataclass(frozen=True)
class _Placement:
    """The window of an upright image that is shown, and how large.

    `window` is int32 [4]: top, left, height and width; `sides` int32 [2], the height and width that
    it is resized to; `halvings` int32 [] in 0..3, how often its pixels are averaged beforehand.
    """

    window: Tensor
    sides: Tensor
    halvings: Tensor


def decode_and_resize(
    encoded: Tensor,
    short_side: int,
    orientation: Tensor | int = 1,
    hints: DecodingHints = DecodingHints(),
    fit: Fit = "crop",
) -> Tensor:
    """Decode an image and make a square of it.

    Args:
        encoded: string tensor [], the bytes of an image file.
        short_side: height and width of the result.
        orientation: int [] in 1..8, EXIF.
        hints: what the graph need not provide for.
        fit: `crop` cuts out the central square and rescales it (paper, section 2); `pad` shows the
            whole image, its longer side 7/8 of the result's, on the mean color of its border.

    Returns:
        uint8 [short_side, short_side, 3] in [0, 255].
    """
    if fit == "pad":
        longer_side = measure_longer_side(short_side)

        def place_whole(sides: Tensor) -> _Placement:
            longer = tf.reduce_max(sides)
            # Rounded to whole pixels, of which a thin image keeps one.
            scaled = tf.maximum((2 * sides * longer_side + longer) // (2 * longer), 1)
            return _Placement(
                tf.concat([[0, 0], sides], axis=0), scaled, _count_halvings(longer // longer_side)
            )

        may_halve = hints.scaled_side >= 2 * longer_side
        image = _decode_placed(encoded, orientation, place_whole, hints.upright_jpeg, may_halve)
        return _pad_to_square(image, short_side)

    def center_square(sides: Tensor) -> Tensor:
        side = tf.reduce_min(sides)
        return tf.concat([(sides - side) // 2, [side, side]], axis=0)

    return decode_window(encoded, orientation, center_square, short_side, hints)


@functools.lru_cache(maxsize=32)
def compile_decoding(
    short_side: int, hints: DecodingHints = DecodingHints(), fit: Fit = "crop"
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return `decode_and_resize` of (bytes, orientation) as a graph that is traced once.

    For what maps a dataset: each map would trace it anew, which takes half a second.
    """

    @tf.function(input_signature=(tf.TensorSpec((), tf.string), tf.TensorSpec((), tf.int32)))
    def decode(encoded: Tensor, orientation: Tensor) -> Tensor:
        return decode_and_resize(encoded, short_side, orientation, hints, fit)

    compiled: Callable[[Tensor, Tensor], Tensor] = decode
    return compiled


def decode_window(
    encoded: Tensor,
    orientation: Tensor | int,
    window: Callable[[Tensor], Tensor],
    size: ImageSize,
    hints: DecodingHints = DecodingHints(),
) -> Tensor:
    """Decode a window of an image and stretch it to a size.

    Of an upright JPEG only the window is decoded.

    Args:
        encoded: string tensor [], the bytes of an image file.
        orientation: int [] in 1..8, EXIF.
        window: takes height and width of the upright image, int32 [2], and returns int32 [4]: top,
            left, height and width.
        size: height and width of the result.
        hints: what the graph need not provide for.

    Returns:
        uint8 [height, width, 3] in [0, 255].
    """
    sides = sides_of(size)

    def place_window(stored: Tensor) -> _Placement:
        cut = window(stored)
        halvings = _count_halvings(tf.reduce_min(cut[2:] // sides))
        return _Placement(cut, tf.constant(sides), halvings)

    may_halve = hints.scaled_side >= 2 * min(sides)
    image = _decode_placed(encoded, orientation, place_window, hints.upright_jpeg, may_halve)
    return tf.ensure_shape(image, (*sides, 3))


def measure_longer_side(short_side: int) -> int:
    """Return the pixels of the longer side of an image that is padded to `short_side`, rounded."""
    part, whole = CROP_FRACTION
    return (2 * short_side * part + whole) // (2 * whole)


def _decode_placed(
    encoded: Tensor,
    orientation: Tensor | int,
    place: Callable[[Tensor], _Placement],
    all_upright_jpeg: bool,
    may_halve: bool,
) -> Tensor:
    """Decode the window of an image that `place` names for its sides, int32 [2], and resize it.

    Returns:
        uint8 [height, width, 3] in [0, 255], as large as `place` says.
    """

    def part() -> tuple[Tensor, Tensor]:
        placed = place(tf.io.extract_jpeg_shape(encoded)[:2])
        return _decode_part(encoded, placed, may_halve=may_halve), placed.sides

    def whole() -> tuple[Tensor, Tensor]:
        image = decode_image(encoded, orientation)
        placed = place(tf.shape(image)[:2])
        cut = placed.window
        image = tf.slice(image, tf.concat([cut[:2], [0]], 0), tf.concat([cut[2:], [3]], 0))
        # As many pixels are averaged beforehand as libjpeg averages of a JPEG.
        reduced = tf.cond(
            placed.halvings > 0,
            lambda: _to_levels(tf.image.resize(image, placed.sides, antialias=True)),
            lambda: image,
        )
        return reduced, placed.sides

    upright_jpeg = (tf.strings.substr(encoded, 0, 2) == b"\xff\xd8") & (
        tf.cast(orientation, tf.int32) == 1
    )
    image, sides = part() if all_upright_jpeg else tf.cond(upright_jpeg, part, whole)
    return _resize(tf.ensure_shape(image, (None, None, 3)), sides)


def _decode_part(encoded: Tensor, placed: _Placement, *, may_halve: bool) -> Tensor:
    """Return uint8 [height, width, 3] of an upright JPEG's window.

    Reduced 2, 4 or 8 times where it is that much larger than needed: libjpeg then leaves out the
    fine frequencies, which takes less time than to average their pixels. The rest is less than
    twice as large as needed, so that bilinear sampling misses no pixel.
    """

    def reduced(ratio: int) -> Callable[[], Tensor]:
        # INTEGER_ACCURATE gives the pixels that every other decoder gives; TensorFlow's default may
        # not.
        window = placed.window
        return lambda: tf.io.decode_and_crop_jpeg(
            encoded,
            # Of an image that is thinner than `ratio` libjpeg leaves one pixel.
            tf.maximum(window // ratio, [0, 0, 1, 1]) if ratio > 1 else window,
            channels=3,
            dct_method="INTEGER_ACCURATE",
            ratio=ratio,
        )

    return (
        reduced(1)()
        if not may_halve
        else tf.switch_case(placed.halvings, [reduced(1), reduced(2), reduced(4), reduced(8)])
    )


def _count_halvings(times: Tensor) -> Tensor:
    """Return the number of times that sides can be halved which are so many times too long, 0..3.

    Args:
        times: whole times, int [].
    """
    return tf.reduce_sum(tf.cast(times >= [2, 4, 8], tf.int32))


def stretch(image: Tensor, size: ImageSize) -> Tensor:
    """Stretch an image to a size by bilinear sampling.

    Args:
        image: uint8 [height, width, 3] in [0, 255], less than twice as large as needed.
        size: height and width of the result.

    Returns:
        uint8 [height, width, 3] in [0, 255].
    """
    sides = sides_of(size)
    return tf.ensure_shape(_resize(image, sides), (*sides, 3))


def _resize(image: Tensor, sides: Tensor | tuple[int, int]) -> Tensor:
    return _to_levels(tf.image.resize(image, sides))


def _pad_to_square(image: Tensor, side: int) -> Tensor:
    """Lay uint8 [height, width, 3] in the middle of a square of the mean color of its four edges.

    The mean is one of integers, rounded, so that it is the same everywhere.

    Returns:
        uint8 [side, side, 3] in [0, 255].
    """
    border = tf.concat([image[0], image[-1], image[:, 0], image[:, -1]], axis=0)
    total, count = tf.reduce_sum(tf.cast(border, tf.int32), axis=0), tf.shape(border)[0]
    color = tf.cast((2 * total + count) // (2 * count), tf.uint8)
    sides = tf.shape(image)[:2]
    before = (side - sides) // 2
    after = side - sides - before

    def fill(height: Tensor | int, width: Tensor | int) -> Tensor:
        return tf.broadcast_to(color, tf.stack([height, width, 3]))

    column = tf.concat([fill(before[0], sides[1]), image, fill(after[0], sides[1])], axis=0)
    square = tf.concat([fill(side, before[1]), column, fill(side, after[1])], axis=1)
    return tf.ensure_shape(square, (side, side, 3))


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
