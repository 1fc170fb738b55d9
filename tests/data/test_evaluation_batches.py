import numpy as np
import pytest

from pipeline.data.evaluation_batches import make_evaluation_batches
from pipeline.data.loader import load_split


def arrays(batches):
    """Return all images and all labels."""
    images, labels = zip(*batches.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def test_evaluation_gives_every_image_once_in_stored_order(digits):
    images = load_split(digits, "test")
    sizes = [
        len(labels) for _, labels in make_evaluation_batches(images, image_size=30, batch_size=100)
    ]
    pixels, labels = arrays(make_evaluation_batches(images, image_size=30, batch_size=100))
    assert sizes == [100, 100, 100, 85]
    np.testing.assert_array_equal(pixels, images.pixels[:, 3:33, 3:33])
    np.testing.assert_array_equal(labels, images.labels)
    assert tuple(np.bincount(labels)) == digits.class_counts["test"]


def test_streaming_gives_the_batches_of_memory(train, streamed):
    assert streamed.pixels is None
    assert streamed.keys == train.keys
    for ours, theirs in zip(
        arrays(make_evaluation_batches(train, image_size=32, batch_size=64)),
        arrays(make_evaluation_batches(streamed, image_size=32, batch_size=64)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("in_memory", [True, False])
def test_ten_views_are_corners_and_center_and_their_mirrors(digits, in_memory):
    images = load_split(digits, "test", in_memory=in_memory)
    squares, _ = arrays(make_evaluation_batches(images, image_size=36, batch_size=100))
    views, labels = arrays(
        make_evaluation_batches(images, image_size=30, batch_size=100, view="ten")
    )
    assert views.shape == (385, 10, 30, 30, 3)
    np.testing.assert_array_equal(labels, images.labels)
    for place, (top, left) in enumerate(((0, 0), (0, 6), (6, 0), (6, 6), (3, 3))):
        crop = squares[:, top : top + 30, left : left + 30]
        np.testing.assert_array_equal(views[:, place], crop)
        np.testing.assert_array_equal(views[:, 5 + place], crop[:, :, ::-1])


def test_crops_may_be_higher_than_wide(digits):
    images = load_split(digits, "test")
    pixels, _ = arrays(make_evaluation_batches(images, image_size=(34, 20), batch_size=100))
    np.testing.assert_array_equal(pixels, images.pixels[:, 1:35, 8:28])
    views, _ = arrays(
        make_evaluation_batches(images, image_size=(34, 20), batch_size=100, view="ten")
    )
    for place, (top, left) in enumerate(((0, 0), (0, 16), (2, 0), (2, 16), (1, 8))):
        crop = images.pixels[:, top : top + 34, left : left + 20]
        np.testing.assert_array_equal(views[:, place], crop)
        np.testing.assert_array_equal(views[:, 5 + place], crop[:, :, ::-1])
