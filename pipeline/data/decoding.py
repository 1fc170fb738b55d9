"""From an image file's bytes to pixels.

The one decoder and the one resize that training, evaluation and the audit share.

What becomes of the less usual files, the same everywhere: gray is repeated in three channels; CMYK
JPEGs are converted by libjpeg's rule; 16 bits a channel are cut to the upper 8; a palette is looked
up; what is transparent shows white; EXIF orientation is applied once. A color profile is not
applied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

_PNG = b"\x89PNG\r\n\x1a\n"
# EXIF calls it tag 0x0112 (CIPA DC-008, 4.6.4 A); 1 is upright, from 5 on the image lies on its
# side.
_ORIENTATION_TAG = 0x0112
# Segments, blocks or chunks of a header that are looked at; cameras write some dozens, and a file
# made to keep us busy millions.
_MAX_PARTS = 10_000
_OTHER_FORMATS = {
    b"II*\0": "a TIFF file",
    b"MM\0*": "a TIFF file",
    b"%PDF": "a PDF file",
    b"PK\3\4": "a ZIP archive",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 file",
    b"\xff\x4f\xff\x51": "a JPEG 2000 file",
    b"\0\0\1\0": "an icon",
    b"8BPS": "a Photoshop file",
    b"\x1f\x8b": "a gzip archive",
}


def decode(encoded: Any, orientation: Any = 1) -> Any:
    """Decode a JPEG, PNG, BMP, WebP or still GIF file.

    Args:
        encoded: string tensor [], the file's bytes.
        orientation: int [] in 1..8 as `orientation_of` says.

    Returns:
        uint8 [height, width, 3] in [0, 255], upright.
    """
    start = tf.strings.substr(encoded, 0, 4)
    image = tf.case(
        [
            (start == _PNG[:4], lambda: _decode_png(encoded)),
            (tf.strings.substr(start, 0, 2) == b"BM", lambda: _decode_bmp(encoded)),
            (start == b"GIF8", lambda: tf.io.decode_gif(encoded)[0]),
            (start == b"RIFF", lambda: _decode_webp(encoded)),
        ],
        # INTEGER_ACCURATE gives the pixels that every other decoder gives; TensorFlow's default may
        # not.
        default=lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),
        exclusive=False,
    )
    return tf.ensure_shape(upright(image, orientation), (None, None, 3))


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


def upright(image: Any, orientation: Any) -> Any:
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
class Known:
    """What is known of every image of a dataset.

    The fewer cases a graph must provide for, the faster it runs, to the same pixels.

    `upright_jpeg`: all are JPEGs that need not be turned. `short_side`: that of the largest image,
    in pixels.
    """

    upright_jpeg: bool = False
    short_side: int = 1 << 16


def decode_and_resize(
    encoded: Any, short_side: int, orientation: Any = 1, known: Known = Known()
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
    known: Known = Known(),
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
        image = decode(encoded, orientation)
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
    return resized(image, size)


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


def resized(image: Any, size: int) -> Any:
    """Stretch an image to a square by bilinear sampling.

    Args:
        image: uint8 [height, width, 3] in [0, 255], less than twice as large as needed.
        size: height and width of the result.

    Returns:
        uint8 [size, size, 3] in [0, 255].
    """
    return tf.ensure_shape(_to_levels(tf.image.resize(image, (size, size))), (size, size, 3))


def mirrored_where(mirrored: Any, image: Any) -> Any:
    """Mirror [height, width, channels] if so, bool [].

    Not by a slice with a negative step, which takes as long as decoding.
    """
    return tf.raw_ops.Reverse(tensor=image, dims=tf.stack([False, mirrored, False]))


def _to_levels(values: Any) -> Any:
    """Round means of pixels, which stay in [0, 255], to uint8.

    Cutting off after adding a half takes a third of the time.
    """
    return tf.cast(values + 0.5, tf.uint8)


# -- headers, read without decoding ----------------------------------------------------------------


def format_of(encoded: bytes) -> str:
    """Return `jpeg`, `png`, `bmp`, `gif` or `webp` by the first bytes, or nothing for other files."""
    starts = {
        b"\xff\xd8\xff": "jpeg",
        _PNG: "png",
        b"BM": "bmp",
        b"GIF87a": "gif",
        b"GIF89a": "gif",
    }
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        return "webp"
    return next((name for start, name in starts.items() if encoded.startswith(start)), "")


def header_size(encoded: bytes) -> tuple[int, int]:
    """Return (height, width) as an image's header says, before it is turned upright.

    Raises:
        ValueError: the bytes are no such file, or the header is cut off.
    """
    kind = format_of(encoded)
    if not kind:
        raise ValueError("empty file" if not encoded else "not a JPEG, PNG, BMP, GIF or WebP file")
    if kind == "jpeg":
        return _jpeg_size(encoded)
    if kind == "webp":
        return _webp_size(encoded)
    if len(encoded) < 26:
        raise ValueError(f"its {kind.upper()} header is cut off")
    if kind == "png":
        return int.from_bytes(encoded[20:24], "big"), int.from_bytes(encoded[16:20], "big")
    if kind == "gif":
        return int.from_bytes(encoded[8:10], "little"), int.from_bytes(encoded[6:8], "little")
    return abs(int.from_bytes(encoded[22:26], "little", signed=True)), int.from_bytes(
        encoded[18:22], "little", signed=True
    )


def require_usable(encoded: bytes, *, max_side: int, max_pixels: int) -> None:
    """Refuse, by its header, a file that must not be decoded.

    Raises:
        ValueError: the reason.
    """
    if encoded and not format_of(encoded):
        raise ValueError(_what_else(encoded))
    height, width = header_size(encoded)
    if height < 1 or width < 1:
        raise ValueError("no pixels")
    if max(height, width) > max_side:
        raise ValueError(f"a side of {max(height, width):,} pixels is longer than {max_side:,}")
    if height * width > max_pixels:
        raise ValueError(f"{width} x {height} pixels are more than {max_pixels:,}")
    if is_animated(encoded):
        raise ValueError("animated: more than one image")


def _what_else(encoded: bytes) -> str:
    """Name a file that is no image of ours."""
    for start, name in _OTHER_FORMATS.items():
        if encoded.startswith(start):
            return f"{name}, not a JPEG, PNG, BMP, GIF or WebP file"
    if encoded[4:8] == b"ftyp":
        return "an AVIF or HEIF file, not a JPEG, PNG, BMP, GIF or WebP file"
    text = encoded[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<html" in text or b"<!doctype html" in text:
        return "an HTML page, not an image"
    if b"<svg" in text or text.startswith(b"<?xml"):
        return "an SVG or XML file, not a JPEG, PNG, BMP, GIF or WebP file"
    if text and not text.translate(None, bytes(range(32, 127)) + b"\t\r\n"):
        return "text, not an image"
    return "not a JPEG, PNG, BMP, GIF or WebP file"


def reason_of(message: str) -> str:
    """Return what TensorFlow's message of a failed decoding says, without the names of operations and the places in the code."""
    return message.partition("\n\t [[")[0].rpartition("\n")[2].partition(" when decoding")[0][:120]


def _jpeg_size(encoded: bytes) -> tuple[int, int]:
    """Return (height, width) from a JPEG's frame header (ITU T.81, B.2.2)."""
    for marker, segment in _jpeg_segments(encoded):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(segment) >= 5:
            return int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
    raise ValueError("its JPEG header is damaged")


def _jpeg_segments(encoded: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (marker, content) of a JPEG's segments up to the first scan."""
    at = 2
    for _ in range(_MAX_PARTS):
        if at + 4 > len(encoded) or encoded[at] != 0xFF:
            return
        marker = encoded[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        length = int.from_bytes(encoded[at + 2 : at + 4], "big")
        yield marker, encoded[at + 4 : at + 2 + length]
        if marker == 0xDA or length < 2:
            return
        at += 2 + length


def _webp_size(encoded: bytes) -> tuple[int, int]:
    """Return (height, width) from a WebP's first chunk (Google's container specification; VP8 is RFC 6386, 9.1)."""
    kind, content = encoded[12:16], encoded[20:30]
    if len(content) == 10:
        if kind == b"VP8X":
            return (
                int.from_bytes(content[7:10], "little") + 1,
                int.from_bytes(content[4:7], "little") + 1,
            )
        if kind == b"VP8L":
            bits = int.from_bytes(content[1:5], "little")
            return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
        if kind == b"VP8 ":
            return (
                int.from_bytes(content[8:10], "little") & 0x3FFF,
                int.from_bytes(content[6:8], "little") & 0x3FFF,
            )
    raise ValueError("its WebP header is damaged")


def is_animated(encoded: bytes) -> bool:
    """Say whether a GIF, PNG or WebP file holds more than one image."""
    kind = format_of(encoded)
    if kind == "webp":
        return encoded[12:16] == b"VP8X" and len(encoded) > 20 and bool(encoded[20] & 2)
    if kind == "png":
        return any(name == b"acTL" for name, _ in _chunks(encoded, 8, "big"))
    return kind == "gif" and _gif_frames(encoded) > 1


def _gif_frames(encoded: bytes) -> int:
    """Return how many images a GIF holds, two for more, by walking over its blocks (GIF89a, 17-26)."""
    at = 13 + _palette_bytes(encoded[10:11])
    frames = 0
    for _ in range(_MAX_PARTS):
        if at >= len(encoded) or frames > 1:
            break
        block = encoded[at]
        if block == 0x2C:
            frames += 1
            at += 11 + _palette_bytes(encoded[at + 9 : at + 10])
        elif block == 0x21:
            at += 2
        else:
            break
        while at < len(encoded) and encoded[at]:
            at += 1 + encoded[at]
        at += 1
    return frames


def _palette_bytes(flags: bytes) -> int:
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def _chunks(encoded: bytes, at: int, order: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield (name, content) of the chunks of a PNG (`big`) up to its pixels, or of a WebP (`little`)."""
    for _ in range(_MAX_PARTS):
        if at + 8 > len(encoded):
            return
        if order == "big":
            length, name = int.from_bytes(encoded[at : at + 4], "big"), encoded[at + 4 : at + 8]
            following = at + 12 + length
        else:
            length, name = int.from_bytes(encoded[at + 4 : at + 8], "little"), encoded[at : at + 4]
            following = at + 8 + length + length % 2
        if name == b"IDAT":
            return
        yield name, encoded[at + 8 : at + 8 + length]
        at = following


def orientation_of(encoded: bytes) -> int:
    """Return the EXIF orientation of a JPEG, PNG or WebP file, 1..8.

    1, upright, where it says none or nonsense.
    """
    kind = format_of(encoded)
    found: Iterator[bytes] = iter(())
    if kind == "jpeg":
        found = (
            content[6:]
            for marker, content in _jpeg_segments(encoded)
            if marker == 0xE1 and content[:6] == b"Exif\0\0"
        )
    elif kind == "png":
        found = (content for name, content in _chunks(encoded, 8, "big") if name == b"eXIf")
    elif kind == "webp":
        found = (
            content.removeprefix(b"Exif\0\0")
            for name, content in _chunks(encoded, 12, "little")
            if name == b"EXIF"
        )
    return _tiff_orientation(next(found, b""))


def _tiff_orientation(exif: bytes) -> int:
    """Return the orientation from EXIF's first directory of tags (TIFF 6.0, section 2)."""
    if exif[:2] not in (b"II", b"MM"):
        return 1

    def number(at: int, length: int) -> int:
        return int.from_bytes(exif[at : at + length], "little" if exif[:2] == b"II" else "big")

    directory = number(4, 4)
    for entry in range(min(number(directory, 2), 1000)):
        at = directory + 2 + 12 * entry
        if number(at, 2) == _ORIENTATION_TAG:
            value = number(at + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1
