import shutil

import numpy as np
import pytest
import tensorflow as tf

from pipeline.config.train import TrainConfig
from pipeline.data.augment import augment_batch
from pipeline.data.crops import cut_squares, draw_crops, draw_windows, place_window
from pipeline.data.decoding import DecodingHints, decode_and_resize, decode_image, decode_window
from pipeline.data.evaluation_batches import make_evaluation_batches
from pipeline.data.headers import read_header_size
from pipeline.data.loader import load_split
from pipeline.data.training_batches import iterate_training_epochs, make_training_batches
from pipeline.errors import ConfigError, DatasetError

SETTINGS = {"global_batch_size": 55, "seed": 3}
EVERYTHING = {
    "color_noise": 0.1,
    "crop": "resized",
    "randaugment": 2,
    "random_erasing": 0.5,
    "mixup": 0.2,
    "cutmix": 1.0,
}


def batches_of(
    images, epoch=0, image_size=32, start=0, worker=(0, 1), parallel_calls=None, **change
):
    """Return an epoch's batches as training sees them: lists of arrays, images first and labels
    second."""
    config = TrainConfig(**SETTINGS | change)
    how = {"start": start, "worker": worker, "parallel_calls": parallel_calls}
    batches = make_training_batches(images, config, image_size=image_size, epoch=epoch, **how)
    found = [augment_batch(batch, config, images.dataset) for batch in batches]
    return [[part.numpy() for part in batch if part is not None] for batch in found]


def epoch_of(images, **how):
    """Return all images of an epoch and all labels."""
    pixels, labels, *_ = (
        np.concatenate(parts) for parts in zip(*batches_of(images, **how), strict=True)
    )
    return pixels, labels


def arrays(batches):
    """Return all images and all labels."""
    images, labels = zip(*batches.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def rows(images):
    """Return each image as bytes."""
    return [image.tobytes() for image in images]


@pytest.fixture(scope="module")
def train(digits):
    return load_split(digits, "train")


@pytest.fixture(scope="module")
def streamed(digits):
    return load_split(digits, "train", in_memory=False)


@pytest.fixture
def stored(digits, tmp_path):
    """The digits with their pixels stored, too."""
    shutil.copytree(digits.directory, tmp_path / "ingest-pixels")
    dataset = digits.model_copy(update={"directory": tmp_path / "ingest-pixels", "store": "pixels"})
    (dataset.directory / "pixels").mkdir()
    for split in digits.reads:
        np.save(dataset.pixels_path(split), load_split(digits, split).pixels)
    return dataset


@pytest.fixture
def mapped(stored):
    return load_split(stored, "train", in_memory=False)


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


KINDS = ["train", "streamed", "mapped"]


@pytest.mark.parametrize("change", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("kind", KINDS)
def test_same_bytes_for_any_parallelism_and_on_every_load(kind, change, request):
    images = request.getfixturevalue(kind)
    again = load_split(images.dataset, "train", in_memory=kind == "train")
    how = SETTINGS | {"global_batch_size": 54} | change
    assert_same(
        batches_of(images, **how, parallel_calls=1), batches_of(again, **how, parallel_calls=7)
    )


@pytest.mark.parametrize("change", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_a_batch_is_what_would_have_followed(kind, change, request):
    images = request.getfixturevalue(kind)
    how = {"global_batch_size": 54, "epoch": 2} | change
    whole = batches_of(images, **how)
    assert len(whole) == 23
    for start in (1, 9, 22):
        assert_same(batches_of(images, **how, start=start, parallel_calls=3), whole[start:])
    assert batches_of(images, **how, start=23) == []


@pytest.mark.parametrize("change", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("kind", KINDS)
def test_workers_share_the_batches_of_one(kind, change, request):
    images = request.getfixturevalue(kind)
    how = {"global_batch_size": 108, "epoch": 1, "start": 4} | change
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
        how = {"global_batch_size": 54} | change
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


def test_stored_pixels_of_another_shape_are_a_damaged_dataset(stored):
    path = stored.pixels_path("test")
    whole = np.load(path)
    np.save(path, whole[:-1])
    with pytest.raises(DatasetError, match=r"is damaged \(test.npy holds"):
        load_split(stored, "test")
    path.unlink()
    with pytest.raises(DatasetError, match="is damaged"):
        load_split(stored, "test")


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


def test_cut_takes_the_pixels_that_are_there():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 9, 9, 3), np.uint8)
    top, left, mirrored = (
        np.array([0, 2, 1, 2], np.int32),
        np.array([0, 1, 2, 2], np.int32),
        np.array([False, True, False, True]),
    )
    places = np.array([3, 0, 0, 2])
    found = cut_squares(pixels, places, top, left, mirrored, 7)
    for index in range(4):
        expected = pixels[places[index], top[index] : top[index] + 7, left[index] : left[index] + 7]
        np.testing.assert_array_equal(
            found[index], expected[:, ::-1] if mirrored[index] else expected
        )


def test_cuts_cover_every_corner_evenly_and_switches_are_independent():
    both = draw_crops(50_000, 4, seed=0, epoch=0, random_crop=True, flip=True)
    assert np.bincount(both.top).size == np.bincount(both.left).size == 5
    assert np.abs(np.bincount(both.top) / 10_000 - 1).max() < 0.05
    assert abs(both.mirrored.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(both.top, both.left)[0, 1]) < 0.02
    crop_only = draw_crops(50_000, 4, seed=0, epoch=0, random_crop=True, flip=False)
    np.testing.assert_array_equal(crop_only.top, both.top)
    assert not crop_only.mirrored.any()
    flip_only = draw_crops(50_000, 4, seed=0, epoch=0, random_crop=False, flip=True)
    assert set(flip_only.top) == set(flip_only.left) == {2}
    np.testing.assert_array_equal(flip_only.mirrored, both.mirrored)


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
        DecodingHints(upright_jpeg=True, short_side=50 * ratio),
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


@pytest.mark.parametrize("shape", [(300, 400), (36, 36), (20, 1000), (3, 2), (1, 1)])
def test_windows_lie_inside_and_have_the_shapes_of_the_paper(shape):
    top, left, height, width = place_window(*draw_windows(5000, seed=1, epoch=2), shape).numpy().T
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


@pytest.mark.parametrize("kind", ["train", "mapped"])
def test_windows_of_prepared_images_are_those_of_a_resize(kind, request):
    images = request.getfixturevalue(kind)
    pixels, labels = batches_of(images, crop="resized", image_size=30)[0]
    drawn, coins = (
        draw_windows(1265, seed=3, epoch=0),
        draw_crops(1265, 6, seed=3, epoch=0, random_crop=False, flip=True).mirrored,
    )
    order = np.random.default_rng([3, 0, 0]).permutation(1265)[:55]
    np.testing.assert_array_equal(labels, images.labels[order])
    for place, (top, left, height, width) in enumerate(
        place_window(drawn[0][:55], drawn[1][:55], (36, 36)).numpy()
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
            r"multiple of the 2 workers that share it. Received 55. Type --set"
            r" train.global_batch_size=56"
        ),
    ):
        batches_of(train, worker=(0, 2))
    with pytest.raises(ConfigError, match=r"Expected at most 36. Received 37"):
        make_evaluation_batches(train, image_size=37, batch_size=10)


def test_missing_shards_are_a_damaged_dataset(digits, tmp_path):
    shutil.copytree(digits.directory, tmp_path / "ingest-x")
    dataset = digits.model_copy(update={"directory": tmp_path / "ingest-x"})
    (dataset.shards / "dataset_info.json").unlink()
    with pytest.raises(DatasetError, match="is damaged"):
        load_split(dataset, "train")
    (dataset.directory / "index" / "train.parquet").unlink()
    with pytest.raises(DatasetError, match="is damaged"):
        load_split(dataset, "train")


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


@pytest.mark.parametrize("change", [{}, EVERYTHING], ids=["plain", "everything"])
def test_small_epochs_share_an_iterator_and_are_the_same(train, change):
    """In the first of them training goes on within an epoch, and a worker takes its share."""
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
