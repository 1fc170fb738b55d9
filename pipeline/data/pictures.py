"""From a picture file's bytes to pixels: the one decoder and the one resize that training, evaluation and the audit share."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def decode(encoded: Any) -> Any:
    """Decode a JPEG, PNG or BMP file.

    Args:
        encoded: string tensor [], the file's bytes.

    Returns:
        uint8 [height, width, 3] in [0, 255]; grayscale is repeated, transparency is dropped.
    """
    # INTEGER_ACCURATE gives the pixels that every other decoder gives; TensorFlow's default may not.
    image = tf.cond(
        tf.strings.substr(encoded, 0, 2) == b"BM",
        lambda: tf.io.decode_bmp(encoded, channels=3),
        lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),  # decodes PNG, too
    )
    return tf.ensure_shape(image, (None, None, 3))


def decode_and_resize(encoded: Any, short_side: int) -> Any:
    """Decode a picture, rescale its shorter side and cut out the central square (paper, section 2).

    Rescaling and cutting are one operation, so that a very long picture costs no more than a square one.

    Args:
        encoded: string tensor [], the bytes of a JPEG, PNG or BMP file.
        short_side: height and width of the result.

    Returns:
        uint8 [short_side, short_side, 3] in [0, 255].
    """
    image = decode(encoded)
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    scale = short_side / tf.reduce_min(size)
    surplus = tf.round((size * scale - short_side) / 2)
    # What tf.image.resize(..., "bilinear", antialias=True) calls, with the offset of the central square.
    resized = tf.raw_ops.ScaleAndTranslate(
        images=image[tf.newaxis],
        size=[short_side, short_side],
        scale=tf.stack([scale, scale]),
        translation=-surplus,
        kernel_type="triangle",
        antialias=True,
    )
    pixels = tf.cast(tf.clip_by_value(tf.round(resized[0]), 0, 255), tf.uint8)
    return tf.ensure_shape(pixels, (short_side, short_side, 3))


def header_size(encoded: bytes) -> tuple[int, int]:
    """Return (height, width) as a picture's header says, without decoding it.

    Raises:
        ValueError: the bytes are no JPEG, PNG or BMP file.
    """
    if encoded[:8] == b"\x89PNG\r\n\x1a\n" and len(encoded) >= 24:
        return int.from_bytes(encoded[20:24], "big"), int.from_bytes(encoded[16:20], "big")
    if encoded[:2] == b"BM" and len(encoded) >= 26:
        return abs(int.from_bytes(encoded[22:26], "little", signed=True)), int.from_bytes(encoded[18:22], "little", signed=True)
    if encoded[:3] == b"\xff\xd8\xff":
        return _jpeg_size(encoded)
    raise ValueError("empty file" if not encoded else "not a JPEG, PNG or BMP file")


def _jpeg_size(encoded: bytes) -> tuple[int, int]:
    """Return (height, width) from a JPEG's frame header (ITU T.81, B.2.2)."""
    at = 2
    while at + 9 <= len(encoded):
        if encoded[at] != 0xFF:
            break
        marker = encoded[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(encoded[at + 5 : at + 7], "big"), int.from_bytes(encoded[at + 7 : at + 9], "big")
        else:
            at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    raise ValueError("its JPEG header is damaged")
