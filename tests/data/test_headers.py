import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipeline.data.headers import detect_format, is_animated, read_header_size, read_orientation

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def saved(image, kind, **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


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


@pytest.mark.parametrize("chroma", [False, True])
@pytest.mark.parametrize("kind", ["", "progressive"])
def test_header_size_is_that_of_the_pixels(chroma, kind):
    pixels = np.zeros((17, 300, 3), np.uint8)
    jpeg = tf.io.encode_jpeg(
        pixels, format=kind and "rgb", progressive=bool(kind), chroma_downsampling=chroma
    ).numpy()
    assert read_header_size(jpeg) == read_header_size(tf.io.encode_png(pixels).numpy()) == (17, 300)
    with pytest.raises(ValueError, match="header is damaged"):
        read_header_size(jpeg[:30])
