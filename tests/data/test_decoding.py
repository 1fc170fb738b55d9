import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from pipeline.data.decoding import decode_image
from pipeline.data.headers import detect_format, is_animated, read_header_size, read_orientation

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def saved(image, kind, **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def decoded(encoded, orientation=1):
    return decode_image(tf.constant(encoded), orientation).numpy()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("number", range(1, 9))
def test_images_are_turned_as_pillow_turns_them(kind, number):
    exif = Image.Exif()
    exif[0x0112] = number
    encoded = saved(
        Image.fromarray(PIXELS), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {})
    )
    assert read_orientation(encoded) == number
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB"))
    np.testing.assert_array_equal(decoded(encoded, read_orientation(encoded)), expected)


def test_orientation_is_upright_where_there_is_none_or_nonsense():
    plain = saved(Image.fromarray(PIXELS), "JPEG")
    assert (
        read_orientation(plain)
        == read_orientation(b"")
        == read_orientation(b"\xff\xd8\xff\xe1\x00\x10Exif\0\0MM")
        == 1
    )
    big_endian = b"MM\0*\0\0\0\x08" + b"\0\x01" + b"\x01\x12\0\x03\0\0\0\x01\0\x05\0\0"
    exif = b"\xff\xe1" + (len(big_endian) + 8).to_bytes(2, "big") + b"Exif\0\0" + big_endian
    assert read_orientation(plain[:2] + exif + plain[2:]) == 5


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_shows_white(kind):
    opacity = np.linspace(0, 255, 35).round().astype(np.uint8).reshape(5, 7)
    image = Image.fromarray(np.dstack([PIXELS, opacity]))
    encoded = saved(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    expected = np.asarray(
        Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    ).astype(int)
    assert np.abs(decoded(encoded) - expected).max() <= 1
    assert (decoded(encoded)[0, 0] == 255).all()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("P", "PNG"),
        ("L", "PNG"),
        ("1", "PNG"),
        ("P", "GIF"),
        ("L", "BMP"),
        ("RGBA", "BMP"),
        ("RGB", "BMP"),
    ],
)
def test_other_kinds_agree_with_pillow(mode, kind):
    encoded = saved(Image.fromarray(PIXELS).convert(mode), kind)
    np.testing.assert_array_equal(
        decoded(encoded), np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    )


def test_of_sixteen_bits_the_upper_eight_are_taken():
    values = np.asarray([[0x0000, 0x00FF, 0x0100, 0x7FFF, 0x80FF, 0xFFFF]], np.uint16)
    np.testing.assert_array_equal(
        decoded(saved(Image.fromarray(values), "PNG"))[0, :, 0], values[0] >> 8
    )


def test_cmyk_is_close_to_pillow():
    encoded = saved(
        Image.fromarray(np.full((16, 16, 3), (200, 100, 50), np.uint8)).convert("CMYK"),
        "JPEG",
        quality=95,
    )
    assert (
        np.abs(
            decoded(encoded).astype(int)
            - np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
        ).max()
        <= 3
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (300, 2)])
def test_headers_say_the_size(kind, shape):
    image = Image.fromarray(np.zeros((*shape, 3), np.uint8))
    for how in ({}, {"lossless": True}) if kind == "WEBP" else ({},):
        encoded = saved(image, kind, **how)
        assert read_header_size(encoded) == shape
        assert detect_format(encoded) == kind.lower()
        assert not is_animated(encoded)
        for length in range(min(len(encoded), 60)):
            try:
                read_header_size(encoded[:length])
            except ValueError as error:
                assert str(error)
            is_animated(encoded[:length])
            read_orientation(encoded[:length])
