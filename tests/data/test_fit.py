"""Images of any shape become squares: what `auto` decides, and that all see the same."""

import io
import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipeline.artifacts import file_sha256
from pipeline.config.data import DataConfig
from pipeline.data.decoding import decode_and_resize
from pipeline.data.evaluation_batches import make_evaluation_batches
from pipeline.data.fit import measure_cut_fraction
from pipeline.data.headers import read_orientation
from pipeline.data.loader import load_split
from pipeline.data.stage import ingest
from pipeline.engine.stage import Context
from pipeline.export.formats import _decode_files, describe_release
from pipeline.export.pixels import read_pixels
from pipeline.model.weights import save_model
from pipeline.release.classify import load_classifier
from pipeline.release.package import Release
from pipeline.reports.fit import describe_fit
from tests.data.test_training_batches import assert_same, batches_of

KINDS = (("PNG", "RGB"), ("JPEG", "RGB"), ("PNG", "RGBA"), ("PNG", "L"), ("WEBP", "RGB"))


def write_images(folder, shapes, seed=0):
    """Write images of some (height, width) in turn into train, validation and test of two classes,
    of every kind; some JPEGs lie on their side."""
    rng = np.random.default_rng(seed)
    for split in ("train", "validation", "test"):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
            for index, (height, width) in enumerate(shapes):
                kind, mode = KINDS[index % len(KINDS)]
                pixels = rng.integers(0, 256, (6, 6, 4), np.uint8)
                image = Image.fromarray(pixels).convert("RGB" if mode == "L" else mode)
                exif = Image.Exif()
                exif[0x0112] = 6 if kind == "JPEG" else 1
                image.convert(mode).resize((width, height)).save(
                    folder / split / label / f"{index}.{kind.lower()}", exif=exif
                )
    return folder


def prepare(folder, workdir, *, draw=False, **settings):
    """Return the record of an ingest, the sentences that it showed, and the tags of its run; draw
    its pages where they are wanted."""
    directory = workdir / "stages" / "ingest-0.partial"
    directory.mkdir(parents=True)
    shown, tags = [], {}
    run = SimpleNamespace(
        key="test", log_metrics=lambda *_, **__: None, set_tags=lambda new, **_: tags.update(new)
    )
    observer = SimpleNamespace(progressed=lambda *_: None, notified=shown.append)
    config = DataConfig(dataset=str(folder), duplicates="report", **settings)
    record = ingest.function(config, Context(directory, run, observer))
    if draw:
        (directory / "report").mkdir()
        ingest.draw(record, directory / "report")
    return record, shown, tags


@pytest.mark.parametrize(
    ("sides", "cut"),
    [((30, 40), False), ((40, 30), False), ((30, 41), True), ((299, 400), True), ((7, 7), False)],
)
def test_four_to_three_is_kept_and_what_is_longer_is_cut(sides, cut):
    height, width = np.asarray([sides]).T
    assert measure_cut_fraction(height, width) == cut


@pytest.mark.parametrize(
    ("wide", "fit", "sentence"),
    [
        (2, "crop", "fit: crop, because only 25.0 % of the images lose"),
        (3, "pad", "fit: pad, because 37.5 % of the images would lose"),
    ],
)
def test_auto_pads_where_more_than_a_quarter_would_be_cut(tmp_path, wide, fit, sentence):
    shapes = [(20, 60)] * (wide - 1) + [(60, 20)] + [(24, 24)] * (8 - wide)
    folder = write_images(tmp_path / "images", shapes)
    for path in [*folder.glob("test/*/*"), *folder.glob("validation/*/*")]:
        Image.new("RGB", (200, 20)).save(path)  # they decide nothing
    record, shown, tags = prepare(folder, tmp_path / "w", draw=True, short_side=32, fit="auto")
    area = "more than a quarter of their area, cropped to the central square"
    assert (record.fit, shown) == (fit, [f"{sentence} {area}"])
    assert tags["fit"] == fit
    assert ("padded to squares" in record.headline()) == (fit == "pad")
    card = json.loads((record.directory / "report" / "dataset_card.json").read_text())
    assert (card["fit"], card["asked_fit"], card["cut_fraction"]) == (fit, "auto", wide / 8)
    page = (record.directory / "report" / "dataset_card.html").read_text()
    assert f"F{sentence[1:]} {area}." in page


def test_cropping_most_images_is_said_and_cropping_few_is_not(tmp_path):
    folder = write_images(tmp_path / "wide", [(20, 60)] * 5)
    record, shown, _ = prepare(folder, tmp_path / "w", short_side=32)
    assert record.fit == "crop"
    (sentence,) = shown
    assert sentence == describe_fit("crop", "crop", 1.0)
    assert "data.fit=pad keeps them whole" in sentence
    folder = write_images(tmp_path / "square", [(20, 20)] * 5)
    assert prepare(folder, tmp_path / "s", short_side=32)[1] == []


SHAPES = [(20, 90), (90, 20), (50, 50), (1, 40), (200, 70), (41, 33), (130, 260), (300, 10)]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("shapes") / "images", SHAPES)


@pytest.fixture(scope="module")
def padded(images, tmp_path_factory):
    """Their files alone, padded."""
    return prepare(images, tmp_path_factory.mktemp("encoded"), short_side=36, fit="pad")[0]


@pytest.fixture(scope="module")
def padded_pixels(images, tmp_path_factory):
    """The same, with stored pixels."""
    workdir = tmp_path_factory.mktemp("pixels")
    return prepare(images, workdir, short_side=36, fit="pad", store="pixels")[0]


def test_memory_shards_and_stored_pixels_hold_the_same(padded, padded_pixels, images):
    encoded, pixels = padded, padded_pixels
    assert encoded.fit == pixels.fit == "pad"
    loaded = load_split(encoded, "train", in_memory=True)
    for key, found in zip(loaded.keys, loaded.pixels, strict=True):
        file = (images / key).read_bytes()
        expected = decode_and_resize(file, 36, read_orientation(file), fit="pad")
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(
        load_split(pixels, "train", in_memory=False).pixels, loaded.pixels
    )
    channels = loaded.pixels.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(encoded.channel_mean, channels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(encoded.channel_covariance, np.cov(channels.T, bias=True), rtol=1e-9)
    with np.load(encoded.sample_path) as sample:
        stored = {image.tobytes() for image in loaded.pixels}
        assert {image.tobytes() for image in sample["pixels"]} <= stored


@pytest.mark.parametrize("crop", ["random", "resized", "center"])
def test_training_cuts_the_same_from_either_store(padded, padded_pixels, crop):
    encoded, pixels = padded, padded_pixels
    how = {"global_batch_size": 4, "crop": crop}
    in_memory = batches_of(load_split(encoded, "train", in_memory=True), **how)
    mapped = batches_of(load_split(pixels, "train", in_memory=False), **how)
    assert_same(in_memory, mapped)


def test_streamed_crops_are_windows_of_the_padded_square(padded):
    squares = load_split(padded, "train", in_memory=True).pixels
    streamed = load_split(padded, "train", in_memory=False)
    how = {"global_batch_size": 16, "flip": False}
    ((pixels, _),) = batches_of(streamed, crop="random", **how)
    windows = {
        square[top : top + 32, left : left + 32].tobytes()
        for square in squares
        for top in range(5)
        for left in range(5)
    }
    assert all(image.tobytes() in windows for image in pixels)
    ((pixels, _),) = batches_of(streamed, crop="resized", **how)
    assert pixels.shape == (16, 32, 32, 3)


def test_ten_crops_are_cut_from_the_padded_square(padded):
    test = load_split(padded, "test", in_memory=True)
    batches = make_evaluation_batches(test, image_size=(32, 32), batch_size=16, view="ten")
    pixels = next(iter(batches))[0].numpy()
    np.testing.assert_array_equal(pixels[:, 0], test.pixels[:, :32, :32])


def test_a_service_and_an_export_see_what_evaluation_saw(padded, images, tmp_path):
    """The classifier of `predict`, `serve` and the gate, an export's endpoint, and pixels.py."""
    image = keras.Input((32, 32, 3), dtype="uint8")
    flat = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(image))
    save_model(keras.Model(image, keras.layers.Dense(2)(flat)), tmp_path / "model.keras")
    release = Release(
        directory=tmp_path,
        model_file="model.keras",
        model_sha256=file_sha256(tmp_path / "model.keras"),
        class_names=("a", "b"),
        short_side=36,
        fit="pad",
    )
    classifier, test = load_classifier(release), load_split(padded, "test", in_memory=True)
    files = [(images / key).read_bytes() for key in test.keys]
    expected = test.pixels[:, 2:34, 2:34]
    for file, crop in zip(files, expected, strict=True):
        np.testing.assert_array_equal(classifier.prepare_pixels(file), crop)
        difference = np.abs(read_pixels(io.BytesIO(file), 36, 32, "pad")[0].astype(int) - crop)
        assert difference.mean() < 1.5
    exported = _decode_files(tf.constant(files), classifier.release)
    np.testing.assert_array_equal(exported, expected)
    assert describe_release(classifier.release)["fit"] == "pad"


def test_settings_of_other_words_are_refused():
    with pytest.raises(ValueError, match="'crop', 'pad' or 'auto'"):
        DataConfig(fit="stretch")
    assert DataConfig().fit == "crop"
