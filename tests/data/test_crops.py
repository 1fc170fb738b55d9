import numpy as np
import pytest

from pipeline.data.crops import cut_crops, draw_crops, draw_windows, place_window


def test_cut_takes_the_pixels_that_are_there():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 9, 9, 3), np.uint8)
    top, left, mirrored = (
        np.array([0, 2, 1, 2], np.int32),
        np.array([0, 1, 2, 2], np.int32),
        np.array([False, True, False, True]),
    )
    places = np.array([3, 0, 0, 2])
    found = cut_crops(pixels, places, top, left, mirrored, 7)
    for index in range(4):
        expected = pixels[places[index], top[index] : top[index] + 7, left[index] : left[index] + 7]
        np.testing.assert_array_equal(
            found[index], expected[:, ::-1] if mirrored[index] else expected
        )


def test_cuts_cover_every_corner_evenly_and_switches_are_independent():
    both = draw_crops(50_000, (4, 4), seed=0, epoch=0, random_crop=True, flip=True)
    assert np.bincount(both.top).size == np.bincount(both.left).size == 5
    assert np.abs(np.bincount(both.top) / 10_000 - 1).max() < 0.05
    assert abs(both.mirrored.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(both.top, both.left)[0, 1]) < 0.02
    crop_only = draw_crops(50_000, (4, 4), seed=0, epoch=0, random_crop=True, flip=False)
    np.testing.assert_array_equal(crop_only.top, both.top)
    assert not crop_only.mirrored.any()
    flip_only = draw_crops(50_000, (4, 4), seed=0, epoch=0, random_crop=False, flip=True)
    assert set(flip_only.top) == set(flip_only.left) == {2}
    np.testing.assert_array_equal(flip_only.mirrored, both.mirrored)


@pytest.mark.parametrize("shape", [(300, 400), (36, 36), (20, 1000), (3, 2), (1, 1)])
def test_windows_lie_inside_and_have_the_shapes_of_the_paper(shape):
    top, left, height, width = (
        place_window(*draw_windows(5000, 28, seed=1, epoch=2), shape, 28).numpy().T
    )
    assert (top >= 0).all() and (left >= 0).all() and (height >= 1).all() and (width >= 1).all()
    assert (top + height <= shape[0]).all() and (left + width <= shape[1]).all()
    if min(shape) > 100:
        area = height * width / (shape[0] * shape[1])
        assert 0.079 < area.min() < 0.1
        assert 0.95 < area.max() <= 1
        assert (
            abs(area.mean() - 0.5) < 0.08
        )  # windows that do not fit are drawn again, and those are large
        assert np.abs(np.log(width / height)).max() < np.log(4 / 3) + 0.02
        assert len(set(top)) > 100
