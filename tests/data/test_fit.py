"""Images of any shape become squares: what `auto` decides, and that all see the same."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipeline.config.data import DataConfig
from pipeline.data.decoding import decode_and_resize
from pipeline.data.fit import measure_cut_fraction
from pipeline.data.headers import read_orientation
from pipeline.data.loader import load_split
from pipeline.data.stage import ingest
from pipeline.engine.stage import Context
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


def prepare(folder, workdir, **settings):
    """Return the record of an ingest, the sentences that it showed, and the tags of its run."""
    directory = workdir / "stages" / "ingest-0.partial"
    directory.mkdir(parents=True)
    shown, tags = [], {}
    run = SimpleNamespace(
        key="test", log_metrics=lambda *_, **__: None, set_tags=lambda new, **_: tags.update(new)
    )
    observer = SimpleNamespace(progressed=lambda *_: None, notified=shown.append)
    config = DataConfig(dataset=str(folder), duplicates="report", **settings)
    record = ingest.function(config, Context(directory, run, observer))
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
    for path in folder.glob("[tv]*[tn]/*/*.webp"):  # other splits decide nothing
        Image.new("RGB", (200, 20)).save(path)
    record, shown, tags = prepare(folder, tmp_path / "w", short_side=32, fit="auto")
    area = "more than a quarter of their area in the central square"
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


@pytest.fixture(params=["crop", "pad"])
def both_stores(request, tmp_path):
    """The same images, prepared twice: their files alone, and with stored pixels."""
    folder = write_images(tmp_path / "images", SHAPES)
    encoded, _, _ = prepare(folder, tmp_path / "e", short_side=36, fit=request.param)
    pixels, _, _ = prepare(folder, tmp_path / "p", short_side=36, fit=request.param, store="pixels")
    assert encoded.fit == pixels.fit == request.param
    return encoded, pixels


def test_memory_shards_and_stored_pixels_hold_the_same(both_stores, tmp_path):
    encoded, pixels = both_stores
    loaded = load_split(encoded, "train", in_memory=True)
    for key, found in zip(loaded.keys, loaded.pixels, strict=True):
        file = (tmp_path / "images" / key).read_bytes()
        expected = decode_and_resize(file, 36, read_orientation(file), fit=encoded.fit)
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(load_split(pixels, "train", in_memory=False).pixels, loaded.pixels)
    channels = loaded.pixels.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(encoded.channel_mean, channels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(
        encoded.channel_covariance, np.cov(channels.T, bias=True), rtol=1e-9
    )
    with np.load(encoded.sample_path) as sample:
        stored = {image.tobytes() for image in loaded.pixels}
        assert {image.tobytes() for image in sample["pixels"]} <= stored


@pytest.mark.parametrize("crop", ["random", "resized", "center"])
def test_training_cuts_the_same_from_either_store(both_stores, crop):
    encoded, pixels = both_stores
    how = {"global_batch_size": 4, "crop": crop}
    in_memory = batches_of(load_split(encoded, "train", in_memory=True), **how)
    mapped = batches_of(load_split(pixels, "train", in_memory=False), **how)
    assert_same(in_memory, mapped)


def test_streamed_crops_are_windows_of_the_padded_square(tmp_path):
    folder = write_images(tmp_path / "images", SHAPES)
    record, _, _ = prepare(folder, tmp_path / "w", short_side=36, fit="pad")
    squares = load_split(record, "train", in_memory=True).pixels
    streamed = load_split(record, "train", in_memory=False)
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


def test_ten_crops_are_cut_from_the_padded_square(tmp_path):
    from pipeline.data.evaluation_batches import make_evaluation_batches

    folder = write_images(tmp_path / "images", SHAPES)
    record, _, _ = prepare(folder, tmp_path / "w", short_side=36, fit="pad")
    images = load_split(record, "test", in_memory=True)
    batches = make_evaluation_batches(images, image_size=(32, 32), batch_size=16, view="ten")
    pixels = next(iter(batches))[0].numpy()
    np.testing.assert_array_equal(pixels[:16], images.pixels[:, :32, :32])


def test_a_service_sees_what_evaluation_saw(tmp_path):
    """The classifier of `predict`, `serve` and the gate, and an export's endpoint for files."""
    from pipeline.release.classify import _compile_cutter

    folder = write_images(tmp_path / "images", SHAPES)
    record, _, _ = prepare(folder, tmp_path / "w", short_side=36, fit="pad")
    images, cut = load_split(record, "test", in_memory=True), _compile_cutter(36, 32, "pad")
    for key, square in zip(images.keys, images.pixels, strict=True):
        file = (folder / key).read_bytes()
        found = cut(tf.constant(file), tf.constant(read_orientation(file)))
        np.testing.assert_array_equal(found, square[2:34, 2:34])


def test_settings_of_other_words_are_refused():
    with pytest.raises(ValueError, match="'crop', 'pad' or 'auto'"):
        DataConfig(fit="stretch")
    assert DataConfig().fit == "crop"
