import io
import itertools

import numpy as np
import pytest
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_image

from pipeline.evaluate.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    compute_mean_corruption_error,
    corrupt_images,
)

RANDOM = ("noise", "occlusion")


@pytest.fixture(scope="module")
def photos():
    """Returns what cuts [count, side, side, 3] out of a photograph."""
    image = Image.fromarray(load_sample_image("flower.jpg"))

    def cut(side, count=8):
        boxes = [
            (40 * index, 10 * index, 40 * index + 300, 10 * index + 300) for index in range(count)
        ]
        pixels = np.stack(
            [np.asarray(image.resize((side, side), Image.Resampling.BOX, box)) for box in boxes]
        )
        pixels.flags.writeable = (
            False  # so every test also asks that the images passed in are not changed
        )
        return pixels

    return cut


def change(pixels, kind, severity, *, seed=3, first=0):
    return corrupt_images(
        pixels, kind, severity, seed=seed, positions=np.arange(first, first + len(pixels))
    )


def plain(level, shape=(1, 28, 28, 3)):
    return np.full(shape, level, np.uint8)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_bytes_do_not_depend_on_the_batch(photos, kind):
    pixels = photos(64, 8)[np.arange(30) % 8]  # more than are computed at once
    together = change(pixels, kind, 3)
    order = np.random.default_rng(0).permutation(30)
    np.testing.assert_array_equal(
        corrupt_images(pixels[order], kind, 3, seed=3, positions=order), together[order]
    )
    for index in (0, 13, 29):
        np.testing.assert_array_equal(
            change(pixels[index : index + 1], kind, 3, first=index)[0], together[index]
        )


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_chance_is_in_seed_and_position_alone(photos, kind):
    pixels = photos(28)[:1].repeat(6, axis=0)
    usual = change(pixels, kind, 3)
    np.testing.assert_array_equal(change(pixels, kind, 3), usual)
    for other in (
        change(pixels, kind, 3, seed=4),
        change(pixels, kind, 3, first=100),
        np.roll(usual, 1, axis=0),
    ):
        assert (other != usual).any() == (kind in RANDOM)


def test_kinds_and_severities_draw_from_different_streams():
    noise = [
        change(plain(128), "noise", severity).astype(float).ravel() - 128 for severity in (2, 3)
    ]
    assert abs(np.corrcoef(noise)[0, 1]) < 0.1


@pytest.mark.parametrize("side", [28, 64])
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_each_severity_is_stronger(photos, kind, side):
    pixels = photos(side)
    strengths = [
        np.abs(change(pixels, kind, severity).astype(int) - pixels).mean()
        for severity in range(1, 6)
    ]
    assert strengths[0] > 1
    assert all(later > 1.04 * earlier for earlier, later in itertools.pairwise(strengths))


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_size_hardly_matters(photos, kind):
    small, large = photos(28, 4), photos(224, 4)
    strengths = [
        np.abs(change(pixels, kind, 3).astype(int) - pixels).mean() for pixels in (small, large)
    ]
    assert max(strengths) < 3 * min(strengths)


@pytest.mark.parametrize("shape", [(2, 17, 17, 3), (2, 13, 40, 3), (1, 1, 1, 3), (0, 28, 28, 3)])
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_any_size_keeps_its_shape(kind, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for severity in SEVERITIES:
        found = change(pixels, kind, severity)
        assert (found.dtype, found.shape) == (np.uint8, shape)
        assert shape[1] < 13 or not len(pixels) or (found != pixels).any()


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("level", [0, 128, 255])
def test_plain_images_survive(kind, level):
    found = change(plain(level), kind, 5)
    if kind in ("blur", "contrast", "pixelate"):
        np.testing.assert_array_equal(found, plain(level))


@pytest.mark.parametrize(("side", "std"), [(224, 0.18 * 255), (56, 0.09 * 255)])
def test_noise_has_the_std_of_its_severity(side, std):
    errors = change(plain(128, (2, side, side, 3)), "noise", 3).astype(float) - 128
    assert errors.std() == pytest.approx(std, rel=0.02)
    assert abs(np.corrcoef(errors.reshape(2, -1))[0, 1]) < 0.05
    assert abs(np.corrcoef(errors[..., 0].ravel(), errors[..., 1].ravel())[0, 1]) < 0.05


@pytest.mark.parametrize(("severity", "std", "radius"), [(1, 0.7, 3), (3, 1.35, 5), (5, 2.1, 7)])
def test_blur_equals_scipy(photos, severity, std, radius):
    pixels = photos(56, 2)
    expected = gaussian_filter(
        pixels.astype(float),
        (0, std, std, 0),
        mode="reflect",
        radius=(0, radius, radius, 0),
    )
    assert np.abs(change(pixels, "blur", severity) - expected).max() < 0.501


def test_brightness_is_the_value_of_hue_and_saturation(photos):
    pixels = np.concatenate([photos(28, 2), plain(0)])
    colors = rgb_to_hsv(pixels / 255)
    colors[..., 2] = np.minimum(colors[..., 2] + 0.3, 1)
    assert np.abs(change(pixels, "brightness", 3) - hsv_to_rgb(colors) * 255).max() < 0.51


def test_contrast_shrinks_towards_the_mean_color():
    pixels = plain(0, (1, 2, 2, 3)).copy()
    pixels[0, 0, 0] = 200, 100, 40  # mean 50, 25, 10
    found = change(pixels, "contrast", 2)
    assert found[0, 0, 0].tolist() == [125, 62, 25]
    assert found[0, 1, 1].tolist() == [25, 12, 5]


@pytest.mark.parametrize(
    ("side", "severity", "quality"),
    [(224, 1, 25), (224, 5, 7), (56, 1, 50), (56, 5, 14), (28, 1, 65)],
)
def test_jpeg_is_as_coarse_as_pillows(photos, side, severity, quality):
    pixels = photos(side, 1)
    file = io.BytesIO()
    Image.fromarray(pixels[0]).save(file, "JPEG", quality=quality)
    np.testing.assert_array_equal(change(pixels, "jpeg", severity)[0], np.asarray(Image.open(file)))


def test_blocks_have_their_mean_color(photos):
    pixels = photos(56, 2)
    found = change(pixels, "pixelate", 5)  # blocks of 4.5: 4 and 5 pixels by turns
    np.testing.assert_array_equal(
        found[:, 4:9, 9:13],
        np.rint(pixels[:, 4:9, 9:13].mean(axis=(1, 2), keepdims=True)).repeat(5, 1).repeat(4, 2),
    )
    assert len(np.unique(found[0], axis=0)) == len(np.unique(found[0], axis=1)[0]) == 13


def test_one_gray_square_hides_a_share_anywhere():
    found = change(plain(0, (300, 40, 40, 3)), "occlusion", 5) == 128
    assert (found.sum(axis=(1, 2, 3)) == 3 * 400).all()
    rows, columns = found.any(axis=(2, 3)), found.any(axis=(1, 3))
    assert (rows.sum(1) == 20).all()
    assert (columns.sum(1) == 20).all()
    for hidden in (rows, columns):
        assert set(hidden.argmax(1)) == set(range(21))


def test_mean_error_counts_kinds_the_same():
    found = compute_mean_corruption_error(
        0.1, {"noise": {1: 0.2, 3: 0.3, 5: 0.7}, "blur": {1: 0.6}}
    )
    assert (found.error, found.relative) == pytest.approx((0.5, 0.4))


@pytest.mark.parametrize(
    ("kind", "severity", "message"),
    [
        ("rain", 1, r"Unknown corruption. Expected one of noise, .*occlusion. Received 'rain'"),
        ("noise", 0, r"Unknown severity of a corruption. Expected 1 to 5. Received 0"),
        ("noise", 6, r"Received 6"),
    ],
)
def test_unknown_kinds_and_severities_are_refused(kind, severity, message):
    with pytest.raises(ValueError, match=message):
        change(plain(0), kind, severity)
