import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from pipeline.data.decoding import DecodingHints, decode_and_resize, decode_image, decode_window
from pipeline.data.headers import read_orientation

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


@pytest.mark.parametrize("sides", [(60, 100), (36, 36), (20, 9), (200, 151)])
def test_resize_is_that_of_tensorflow_and_cuts_the_center(sides):
    pixels = np.random.default_rng(0).integers(0, 256, (*sides, 3), np.uint8)
    side = min(sides)
    top, left = (sides[0] - side) // 2, (sides[1] - side) // 2
    square = pixels[top : top + side, left : left + side]
    reference = tf.image.resize(square, (36, 36), antialias=side >= 72).numpy()
    found = decode_and_resize(tf.io.encode_png(pixels), 36).numpy()
    assert found.shape == (36, 36, 3)
    assert np.abs(found - reference).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
def test_large_jpegs_are_reduced_while_they_are_decoded(ratio):
    """What libjpeg leaves out is what averaging pixels would take away."""
    smooth = tf.image.resize(
        np.random.default_rng(0).integers(0, 256, (9, 12, 3)),
        (50 * ratio, 60 * ratio),
        method="bicubic",
    )
    encoded = tf.io.encode_jpeg(tf.cast(tf.clip_by_value(smooth, 0, 255), tf.uint8), quality=95)
    whole = decode_image(encoded).numpy()[:, 5 * ratio : 55 * ratio]
    averaged = whole.reshape(50, ratio, 50, ratio, 3).mean((1, 3))
    expected = tf.image.resize(averaged, (36, 36)).numpy()
    for hints in (
        DecodingHints(),
        DecodingHints(upright_jpeg=True),
        DecodingHints(upright_jpeg=True, scaled_side=50 * ratio),
    ):
        found = decode_and_resize(encoded, 36, hints=hints).numpy()
        assert np.abs(found - expected).mean() < 1.5
        assert np.abs(found - expected).max() < 12


def test_a_square_of_the_right_size_is_not_touched():
    pixels = np.random.default_rng(0).integers(0, 256, (36, 36, 3), np.uint8)
    np.testing.assert_array_equal(decode_and_resize(tf.io.encode_png(pixels), 36), pixels)


@pytest.mark.parametrize("shape", [(1, 4000), (4000, 1), (8, 8), (7, 500)])
def test_no_shape_leaves_an_edge_without_pixels(shape):
    pixels = np.full((*shape, 3), 200, np.uint8)
    assert np.unique(decode_and_resize(tf.io.encode_png(pixels), 36)).tolist() == [200]


def test_decoding_agrees_with_pillow():
    import io

    from PIL import Image

    rng = np.random.default_rng(0)
    smooth = tf.cast(
        tf.image.resize(rng.integers(0, 256, (6, 8, 3)), (60, 80), method="bicubic"), tf.uint8
    )
    encoded = tf.io.encode_jpeg(smooth).numpy()
    np.testing.assert_array_equal(
        decode_image(tf.constant(encoded)),
        np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")),
    )
    gray = tf.io.encode_png(rng.integers(0, 256, (5, 6, 1), np.uint8)).numpy()
    np.testing.assert_array_equal(
        decode_image(tf.constant(gray)), np.asarray(Image.open(io.BytesIO(gray)).convert("RGB"))
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_only_the_window_is_decoded_and_it_is_the_same(kind, orientation):
    import io

    from PIL import Image

    smooth = tf.cast(
        tf.image.resize(
            np.random.default_rng(0).integers(0, 256, (6, 8, 3)), (60, 80), method="bicubic"
        ),
        tf.uint8,
    ).numpy()
    file = io.BytesIO()
    Image.fromarray(smooth).save(file, kind)
    whole = decode_image(tf.constant(file.getvalue()), orientation).numpy()
    window = (7, 11, 30, 40)
    found = decode_window(
        tf.constant(file.getvalue()), orientation, lambda sides: tf.constant(window), 24
    ).numpy()
    expected = tf.image.resize(whole[7:37, 11:51], (24, 24)).numpy()
    assert found.shape == (24, 24, 3)
    assert np.abs(found - expected).max() <= (
        3 if kind == "JPEG" else 0.51
    )  # chroma is interpolated across the window's edge


def padded(encoded, side, orientation=1, **how):
    return decode_and_resize(tf.constant(encoded), side, orientation, fit="pad", **how).numpy()


def pad_by_hand(image, side):
    """Pad an upright uint8 image, in NumPy: the reference."""
    longer_side, (height, width) = round(side * 7 / 8), image.shape[:2]
    ratio = longer_side / max(height, width)
    sides = [max(1, int(one * ratio + 0.5)) for one in (height, width)]
    small = max(height, width) >= 2 * longer_side
    scaled = tf.image.resize(image, sides, antialias=small).numpy()
    levels = (scaled + 0.5).astype(np.uint8)
    edges = np.concatenate([levels[0], levels[-1], levels[:, 0], levels[:, -1]]).astype(float)
    square = np.zeros((side, side, 3)) + np.floor(edges.mean(axis=0) + 0.5)
    top, left = ((side - one) // 2 for one in sides)
    square[top : top + sides[0], left : left + sides[1]] = scaled
    return square, (top, left, *sides)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize(
    "sides", [(60, 200), (200, 60), (63, 63), (300, 300), (9, 20), (1, 400), (400, 1), (1, 1)]
)
def test_a_padded_image_is_whole_and_in_the_middle(sides, mode):
    """Wide, tall, square, enlarged and as thin as can be."""
    pixels = np.random.default_rng(0).integers(0, 256, (*sides, 4), np.uint8)
    image = Image.fromarray(pixels).convert("RGB" if mode == "L" else mode).convert(mode)
    encoded = saved(image, "PNG")
    expected, (top, left, height, width) = pad_by_hand(decoded(encoded), 72)
    assert max(height, width) == 63
    assert (abs(2 * top + height - 72), abs(2 * left + width - 72)) <= (1, 1)
    found = padded(encoded, 72)
    assert (found.shape, found.dtype) == ((72, 72, 3), np.uint8)
    assert np.abs(found - expected).max() <= 0.5 + 1e-3
    around = np.ones((72, 72), bool)
    around[top : top + height, left : left + width] = False
    assert len(np.unique(found[around], axis=0)) == 1


def test_the_central_crop_shows_a_padded_image_whole():
    """Of 256 pixels 224 are seen, of 36 it is 32: the image touches the crop's edge."""
    for side, size in ((256, 224), (72, 64), (73, 64), (36, 32), (32, 28)):
        marked = np.zeros((size, size, 3), np.uint8)
        marked[[0, -1], :], marked[:, [0, -1]] = 255, 255
        margin = (side - size) // 2
        crop = padded(saved(Image.fromarray(marked), "PNG"), side)[margin:, margin:][:size, :size]
        longer_side = round(side * 7 / 8)
        if longer_side == size:
            np.testing.assert_array_equal(crop, marked)
        assert size - longer_side in (0, 1)


def test_the_border_is_the_mean_color_of_the_four_edges():
    pixels = np.full((7, 28, 3), 90, np.uint8)
    pixels[0] = (200, 0, 10)
    # 2 edges of 28 pixels and 2 of 7; one of 28 and two corners are 200.
    mean = [(30 * color + 40 * 90) / 70 for color in (200, 0, 10)]
    found = padded(saved(Image.fromarray(pixels), "PNG"), 32)
    assert found[0, 0].tolist() == [round(color) for color in mean]
    np.testing.assert_array_equal(found[12:19, 2:30], pixels)


def test_an_image_on_white_stays_on_white():
    image = Image.new("RGBA", (100, 30), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (40, 5, 60, 25))
    found = padded(saved(image, "PNG"), 32)
    assert (found[[0, -1]] == 255).all()
    assert (found[:, [0, -1]] == 255).all()
    assert found.min() == 0


@pytest.mark.parametrize("number", range(1, 9))
def test_padding_comes_after_turning_upright(number):
    smooth = Image.fromarray(PIXELS).resize((150, 50), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = number
    encoded = saved(smooth, "JPEG", exif=exif, quality=95)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB")
    expected, _ = pad_by_hand(np.asarray(upright), 72)
    found = padded(encoded, 72, read_orientation(encoded))
    assert np.abs(found - expected).mean() < 1  # one of eight is halved by libjpeg


@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
@pytest.mark.parametrize("tall", [False, True])
def test_the_longer_side_decides_how_small_a_jpeg_is_decoded(ratio, tall):
    small = np.random.default_rng(0).integers(0, 256, (4, 16, 3))
    smooth = tf.image.resize(small, (24 * ratio, 96 * ratio), method="bicubic").numpy()
    smooth = np.clip(smooth, 0, 255).astype(np.uint8)
    smooth = smooth.transpose(1, 0, 2) if tall else smooth
    encoded = tf.io.encode_jpeg(smooth, quality=97).numpy()
    whole = decode_image(encoded).numpy()
    height, width = (side // ratio for side in whole.shape[:2])
    averaged = whole.reshape(height, ratio, width, ratio, 3).mean((1, 3)).astype(np.uint8)
    expected, _ = pad_by_hand(averaged, 72)
    found = padded(encoded, 72)
    assert np.abs(found - expected).mean() < 1.5
    for hints in (
        DecodingHints(upright_jpeg=True),
        DecodingHints(upright_jpeg=True, scaled_side=96 * ratio),
    ):
        np.testing.assert_array_equal(padded(encoded, 72, hints=hints), found)


@pytest.mark.parametrize("sides", [(3, 4000), (4000, 3), (1, 1000)])
def test_a_thin_jpeg_is_padded_too(sides):
    encoded = tf.io.encode_jpeg(np.full((*sides, 3), 128, np.uint8)).numpy()
    for hints in (DecodingHints(), DecodingHints(upright_jpeg=True)):
        assert np.unique(padded(encoded, 36, hints=hints)).tolist() == [128]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_window_is_stretched_to_a_size_that_is_not_square(kind):
    import io

    from PIL import Image

    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3))
    smooth = tf.cast(tf.image.resize(coarse, (160, 240), method="bicubic"), tf.uint8).numpy()
    file = io.BytesIO()
    Image.fromarray(smooth).save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))
    encoded = tf.constant(file.getvalue())
    whole = decode_image(encoded).numpy()
    for window, halved in (((7, 11, 30, 60), False), ((0, 0, 160, 240), True)):
        top, left, height, width = window
        found = decode_window(encoded, 1, lambda _, at=window: tf.constant(at), (24, 40)).numpy()
        cut = whole[top : top + height, left : left + width]
        expected = tf.image.resize(cut, (24, 40), antialias=halved).numpy()
        assert found.shape == (24, 40, 3)
        difference = np.abs(found - expected)
        # libjpeg halves by leaving out fine frequencies.
        assert difference.mean() < 1.5 if halved else difference.max() <= 0.51
