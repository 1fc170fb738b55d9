import numpy as np
import pytest

from pipeline.data.crops import (
    cut_crops,
    draw_crops,
    draw_windows,
    find_frame,
    place_in_square,
    place_window,
)


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
        place_window(*draw_windows(5000, seed=1, epoch=2), shape, 28).numpy().T
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


def test_a_wide_crop_is_the_pixels_that_are_there():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 9, 9, 3), np.uint8)
    top, left, mirrored = np.array([3, 0]), np.array([0, 1]), np.array([False, True])
    found = cut_crops(pixels, np.array([1, 0]), top, left, mirrored, (6, 8))
    np.testing.assert_array_equal(found[0], pixels[1, 3:9, 0:8])
    np.testing.assert_array_equal(found[1], pixels[0, 0:6, 1:9][:, ::-1])
    assert found.flags.c_contiguous
    rows = draw_crops(2000, (3, 0), seed=0, epoch=0, random_crop=True, flip=False)
    assert (set(rows.top), set(rows.left)) == ({0, 1, 2, 3}, {0})
    center = draw_crops(2, (3, 9), seed=0, epoch=0, random_crop=False, flip=False)
    assert (set(center.top), set(center.left)) == ({1}, {4})


@pytest.mark.parametrize("size", [(100, 200), (200, 100), (32, 512)])
def test_windows_of_a_square_have_the_shape_of_the_crop(size):
    """What is drawn for a square crop is drawn for it, in units of the frame's sides."""
    drawn = draw_windows(5000, seed=1, epoch=2)
    top, left, height, width = place_in_square(*drawn, 600, size).numpy().T
    first, start, *frame = find_frame(600, size)
    assert (top >= first).all() and (left >= start).all()
    assert (top + height <= first + frame[0]).all() and (left + width <= start + frame[1]).all()
    stretch = np.log(width / height) - np.log(size[1] / size[0])
    assert np.abs(stretch).max() < np.log(4 / 3) + 0.1  # a narrow window has few pixels to round
    assert abs(stretch.mean()) < 0.03
    area = height * width / (frame[0] * frame[1])
    assert 0.07 < area.min() < 0.12
    assert abs(area.mean() - 0.5) < 0.08


@pytest.mark.parametrize("side", [36, 45, 256])
def test_crops_are_drawn_around_the_one_of_evaluation(side):
    assert find_frame(side, 28) == (0, 0, side, side)
    for height in range(16, side + 1):
        top, left, *frame = find_frame(side, (height, 32))
        for start, own, crop in zip((top, left), frame, (height, 32), strict=True):
            assert 0 <= start <= start + own <= side
            assert start + (own - crop) // 2 == (side - crop) // 2  # the center is evaluation's
            surplus = side - max(height, 32)
            assert abs((own - crop) / crop - surplus / max(height, 32)) <= 0.5 / crop + 1e-9


def test_an_image_that_takes_no_try_gives_the_largest_window_of_the_crops_shape():
    shapes, corner = np.full((1, 4, 2), 5, np.float32), np.full((1, 2), 0.5, np.float32)
    for sides, expected in (((60, 90), [8, 0, 45, 90]), ((90, 60), [30, 0, 30, 60])):
        assert place_window(shapes, corner, sides, (32, 64)).numpy().tolist() == [expected]
