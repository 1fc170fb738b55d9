import numpy as np
import pytest
import tensorflow as tf

from pipeline.config.train import TrainConfig
from pipeline.data.augment import augment_batch
from pipeline.data.crops import draw_crops, draw_windows, place_in_square, place_window
from pipeline.data.evaluation_batches import make_evaluation_batches
from pipeline.data.loader import load_split
from pipeline.data.training_batches import iterate_training_epochs, make_training_batches
from pipeline.errors import ConfigError

SETTINGS = {"global_batch_size": 55, "seed": 3}


EVERYTHING = {
    "color_noise": 0.1,
    "crop": "resized",
    "randaugment": 2,
    "random_erasing": 0.5,
    "mixup": 0.2,
    "cutmix": 1.0,
}


# Mapped pixels take the way of those in memory: `test_stored_pixels_give_the_batches_of_memory`.
KINDS = ["train", "streamed"]


_COMPILED = {}


def _compile_augmentation(config, dataset):
    """Return `augment_batch` as a training step has it: compiled."""
    key = config.model_dump_json(), tuple(dataset.channel_mean)
    if key not in _COMPILED:
        _COMPILED[key] = tf.function(
            lambda batch: augment_batch(batch, config, dataset), reduce_retracing=True
        )
    return _COMPILED[key]


def arrays(batches):
    """Return all images and all labels."""
    images, labels = zip(*batches.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def batches_of(
    images, epoch=0, image_size=32, start=0, worker=(0, 1), parallel_calls=None, **change
):
    """Return an epoch's batches as training sees them: lists of arrays, images first and labels
    second."""
    config = TrainConfig(**SETTINGS | change)
    how = {"start": start, "worker": worker, "parallel_calls": parallel_calls}
    batches = make_training_batches(images, config, image_size=image_size, epoch=epoch, **how)
    augment = _compile_augmentation(config, images.dataset)
    found = [augment(batch) for batch in batches]
    return [[part.numpy() for part in batch if part is not None] for batch in found]


def epoch_of(images, **how):
    """Return all images of an epoch and all labels."""
    pixels, labels, *_ = (
        np.concatenate(parts) for parts in zip(*batches_of(images, **how), strict=True)
    )
    return pixels, labels


def rows(images):
    """Return each image as bytes."""
    return [image.tobytes() for image in images]


def test_batches_are_uint8_images_and_int32_labels(train):
    batch = next(
        iter(make_training_batches(train, TrainConfig(**SETTINGS), image_size=32, epoch=0))
    )
    assert set(batch) == {"pixels", "labels"}
    assert (batch["pixels"].dtype, batch["pixels"].shape) == (tf.uint8, (55, 32, 32, 3))
    assert (batch["labels"].dtype, batch["labels"].shape) == (tf.int32, (55,))


def assert_same(ours, theirs):
    """Compare lists of batches, bit for bit."""
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        for part, same in zip(one, other, strict=True):
            assert part.dtype == same.dtype
            np.testing.assert_array_equal(part, same)


@pytest.mark.parametrize("change", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("kind", KINDS)
def test_same_bytes_for_any_parallelism_and_on_every_load(kind, change, request):
    images = request.getfixturevalue(kind)
    again = load_split(images.dataset, "train", in_memory=kind == "train")
    how = SETTINGS | {"global_batch_size": 54, "image_size": 16} | change
    assert_same(
        batches_of(images, **how, parallel_calls=1), batches_of(again, **how, parallel_calls=7)
    )


@pytest.mark.parametrize("change", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("kind", [*KINDS, "mapped"])
def test_what_follows_a_batch_is_what_would_have_followed(kind, change, request):
    images = request.getfixturevalue(kind)
    how = {"global_batch_size": 54, "epoch": 2, "image_size": 16} | change
    whole = batches_of(images, **how)
    assert len(whole) == 23
    for start in (9, 22):
        assert_same(batches_of(images, **how, start=start, parallel_calls=3), whole[start:])
    assert batches_of(images, **how, start=23) == []


@pytest.mark.parametrize("change", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("kind", KINDS)
def test_workers_share_the_batches_of_one(kind, change, request):
    images = request.getfixturevalue(kind)
    how = {"global_batch_size": 108, "epoch": 1, "start": 4, "image_size": 16} | change
    shares = [batches_of(images, **how, worker=(index, 3)) for index in range(3)]
    together = [
        [np.concatenate(parts) for parts in zip(*batches, strict=True)]
        for batches in zip(*shares, strict=True)
    ]
    assert_same(together, batches_of(images, **how))


@pytest.mark.parametrize("kind", KINDS)
def test_epochs_that_are_made_ready_ahead_are_the_same(kind, request):
    images = request.getfixturevalue(kind)
    config = TrainConfig(epochs=4, global_batch_size=54, seed=3)
    epochs = iterate_training_epochs(images, config, image_size=32, first=1)
    ahead = [[next(batches) for _ in range(23)] for batches in epochs]
    assert len(ahead) == 3
    for epoch, batches in enumerate(ahead, start=1):
        found = [[batch[name].numpy() for name in ("pixels", "labels")] for batch in batches]
        assert_same(found, batches_of(images, global_batch_size=54, epoch=epoch))
    assert list(iterate_training_epochs(images, config, image_size=32, first=4)) == []


def test_stored_pixels_give_the_batches_of_memory(train, mapped, digits):
    assert isinstance(mapped.pixels, np.memmap)
    assert "mapped from the disk" in mapped.location
    assert "in memory" in train.location
    assert "decoded" in load_split(digits, "train", in_memory=False).location
    for change in ({}, EVERYTHING, {"epoch": 3, "color_noise": 0.2, "color_mode": "paper"}):
        how = {"global_batch_size": 54, "image_size": 16} | change
        assert_same(batches_of(mapped, **how, parallel_calls=5), batches_of(train, **how))


def test_color_noise_moves_colors_and_neither_order_nor_cuts(train):
    plain, labels = epoch_of(train)
    noisy, same_labels = epoch_of(train, color_noise=0.1)
    np.testing.assert_array_equal(labels, same_labels)
    flat = plain.astype(float) - np.asarray(train.dataset.channel_mean)
    moved = noisy - np.asarray(train.dataset.channel_mean) - flat / 1.1
    inside = (noisy > 0) & (noisy < 255)
    spread = np.where(inside, moved, np.nan)
    assert (
        np.nanmax(np.nanmax(spread, (1, 2)) - np.nanmin(spread, (1, 2))) <= 1.01
    )  # one shift an image, rounded
    assert np.nanstd(np.nanmean(spread, (1, 2))) > 3


@pytest.mark.parametrize("kind", ["train", "streamed"])
def test_an_epoch_holds_every_image_once_in_its_own_order(kind, request):
    images = request.getfixturevalue(kind)
    assert len(images) == 1265 == 23 * 55
    plain = {"crop": "center", "flip": False}
    stored, stored_labels = arrays(make_evaluation_batches(images, image_size=32, batch_size=100))
    orders = []
    for change in ({}, {"epoch": 1}, {"seed": 4}):
        pixels, labels = epoch_of(images, **plain | change)
        assert sorted(zip(rows(pixels), labels, strict=True)) == sorted(
            zip(rows(stored), stored_labels, strict=True)
        )
        orders.append(rows(pixels))
    assert len({tuple(order) for order in [*orders, rows(stored)]}) == 4


def test_images_that_do_not_fill_a_batch_are_left_out(train):
    pixels, _ = epoch_of(train, global_batch_size=500)
    assert len(pixels) == 1000


@pytest.mark.parametrize("kind", ["train", "mapped"])
def test_windows_of_prepared_images_are_those_of_a_resize(kind, request):
    images = request.getfixturevalue(kind)
    pixels, labels = batches_of(images, crop="resized", image_size=30)[0]
    drawn, coins = (
        draw_windows(1265, seed=3, epoch=0),
        draw_crops(1265, (6, 6), seed=3, epoch=0, random_crop=False, flip=True).mirrored,
    )
    order = np.random.default_rng([3, 0, 0]).permutation(1265)[:55]
    np.testing.assert_array_equal(labels, images.labels[order])
    for place, (top, left, height, width) in enumerate(
        place_window(drawn[0][:55], drawn[1][:55], (36, 36), 30).numpy()
    ):
        whole = np.array(images.pixels[order[place]])
        expected = tf.image.resize(whole[top : top + height, left : left + width], (30, 30)).numpy()
        found = pixels[place][:, ::-1] if coins[place] else pixels[place]
        assert np.abs(found - expected).max() <= 0.51


def test_an_epoch_of_windows_is_every_image_once(train, streamed):
    for images in (train, streamed):
        pixels, labels = epoch_of(images, crop="resized")
        assert pixels.shape == (1265, 32, 32, 3)
        assert tuple(np.bincount(labels)) == train.dataset.class_counts["train"]
        again, _ = epoch_of(images, crop="resized", parallel_calls=7)
        np.testing.assert_array_equal(pixels, again)


def test_impossible_batches_are_refused(train):
    with pytest.raises(
        ConfigError,
        match=r"Expected at most 1265. Received 1266. Type --set train.global_batch_size=1265",
    ):
        batches_of(train, global_batch_size=1266)
    with pytest.raises(
        ConfigError,
        match=(
            r"divided among 2 workers. Expected a multiple of 2. Received 55. Type --set"
            r" train.global_batch_size=56"
        ),
    ):
        batches_of(train, worker=(0, 2))
    with pytest.raises(ConfigError, match=r"Expected at most 36. Received 37"):
        make_evaluation_batches(train, image_size=37, batch_size=10)


@pytest.mark.parametrize("change", [{}, EVERYTHING], ids=["plain", "everything"])
def test_small_epochs_share_an_iterator_and_are_the_same(train, change):
    """In the first of them training goes on within an epoch, and a worker takes its part."""
    config, how = (
        TrainConfig(**{"epochs": 5, "global_batch_size": 54, "seed": 3} | change),
        {
            "image_size": 32,
            "worker": (1, 3),
        },
    )
    iterators, found = [], []
    for epoch, batches in enumerate(
        iterate_training_epochs(train, config, first=1, start=20, **how), start=1
    ):
        iterators.append(batches)
        found.append([next(batches) for _ in range(3 if epoch == 1 else 23)])
    assert len(set(map(id, iterators))) == 1
    assert next(iterators[-1], None) is None
    for epoch, together in enumerate(found, start=1):
        alone = make_training_batches(
            train, config, epoch=epoch, start=20 if epoch == 1 else 0, **how
        )
        for one, other in zip(alone, together, strict=True):
            assert one.keys() == other.keys()
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])


WIDE = (24, 34)


@pytest.mark.parametrize("kind", KINDS)
def test_wide_crops_are_pixels_of_the_squares_mirrored_and_not(kind, request):
    images = request.getfixturevalue(kind)
    squares, labels = epoch_of(images, image_size=36, crop="center", flip=False)
    pixels, same = epoch_of(images, image_size=WIDE)
    np.testing.assert_array_equal(labels, same)
    cut = draw_crops(1265, (1, 2), seed=3, epoch=0, random_crop=True, flip=True)
    for index in range(0, 1265, 20):
        top, left = 6 + cut.top[index], cut.left[index]
        expected = squares[index, top : top + 24, left : left + 34]
        expected = expected[:, ::-1] if cut.mirrored[index] else expected
        np.testing.assert_array_equal(pixels[index], expected)
    assert {cut.mirrored[index] for index in range(0, 1265, 20)} == {True, False}


def test_the_center_of_wide_crops_is_that_of_evaluation(train, streamed):
    for images in (train, streamed):
        pixels, _ = epoch_of(images, image_size=WIDE, crop="center", flip=False)
        seen, _ = arrays(make_evaluation_batches(images, image_size=WIDE, batch_size=100))
        assert sorted(rows(pixels)) == sorted(rows(seen))


def test_everything_is_drawn_for_wide_images(train, mapped, streamed):
    how = {"global_batch_size": 54, "image_size": WIDE} | EVERYTHING
    for images, other in ((train, mapped), (streamed, streamed)):
        ours = batches_of(images, **how, start=20)
        assert ours[0][0].shape == (54, *WIDE, 3)
        assert_same(batches_of(other, **how, start=20, parallel_calls=5), ours)
        assert_same(batches_of(images, **how, start=22, parallel_calls=3), ours[2:])


def test_windows_of_wide_images_are_those_of_a_resize(train):
    pixels, _ = batches_of(train, crop="resized", image_size=WIDE, flip=False)[0]
    drawn = draw_windows(1265, seed=3, epoch=0)
    order = np.random.default_rng([3, 0, 0]).permutation(1265)[:55]
    windows = place_in_square(drawn[0][:55], drawn[1][:55], 36, WIDE).numpy()
    for index, (top, left, height, width) in enumerate(windows):
        window = train.pixels[order[index], top : top + height, left : left + width]
        assert np.abs(pixels[index] - tf.image.resize(window, WIDE).numpy()).max() <= 0.51


def test_wide_crops_larger_than_the_squares_are_refused(train):
    with pytest.raises(
        ConfigError, match=r"at most 36. Received 24x37. Type --set data.short_side=37"
    ):
        batches_of(train, image_size=(24, 37))
