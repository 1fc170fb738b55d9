"""Bytes to classes: the pixels and the logits are those of the evaluation."""

import io
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from PIL import Image

from pipeline.artifacts import file_sha256
from pipeline.data.decoding import decode_and_resize
from pipeline.errors import CheckpointError, DatasetError
from pipeline.model import batch_limit
from pipeline.model.weights import save_model
from pipeline.release.classify import (
    TOLERANCE,
    UnusableError,
    find_tolerance,
    load_classifier,
    measure_logit_difference,
    warm_up,
)
from pipeline.release.package import Release


def released(path, **known):
    return Release(
        directory=path.parent,
        model_file=path.name,
        name=path.name,
        model_sha256=file_sha256(path),
        **known,
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_pixels_are_the_middle_of_what_ingest_stores(classifier, image, kind):
    encoded = image(1, kind)
    side, size = classifier.release.short_side, classifier.release.image_size
    margin = (side - size) // 2
    square = decode_and_resize(encoded, side).numpy()
    np.testing.assert_array_equal(
        classifier.prepare_pixels(encoded), square[margin : margin + size, margin : margin + size]
    )


def test_an_image_is_turned_as_its_file_says_unless_somebody_knows_better(classifier, image):
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = image(1, "JPEG", exif=exif.tobytes(), quality=95)
    plain = image(1, "JPEG", quality=95)
    expected = classifier.prepare_pixels(plain)[::-1, ::-1]
    np.testing.assert_allclose(
        classifier.prepare_pixels(turned).astype(int), expected, atol=1
    )  # a half may be rounded to either side
    np.testing.assert_array_equal(
        classifier.prepare_pixels(turned, orientation=1), classifier.prepare_pixels(plain)
    )


def test_a_number_of_images_at_a_time_changes_no_logit(classifier, image):
    pixels = np.stack([classifier.prepare_pixels(image(seed)) for seed in range(11)])
    together = classifier.predict_logits(pixels)
    alone = np.concatenate(
        [classifier.predict_logits(pixels[place : place + 1]) for place in range(11)]
    )
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        together, classifier.model(pixels, training=False), rtol=0, atol=1e-5
    )
    assert classifier.predict_logits(pixels[:0]).shape == (0, 3)


def test_threads_get_the_answers_of_their_own_images(classifier, image):
    files = [image(seed) for seed in range(24)]
    expected = classifier.predict_logits(
        np.stack([classifier.prepare_pixels(file) for file in files])
    )

    def ask(file):
        return classifier.predict_logits(classifier.prepare_pixels(file)[np.newaxis])[0]

    with ThreadPoolExecutor(8) as threads:
        np.testing.assert_allclose(list(threads.map(ask, files)), expected, rtol=0, atol=1e-5)


def test_probabilities_are_those_of_the_fitted_temperature(classifier):
    logits = np.asarray([[1.0, 2.0, -3.0]], np.float32)
    powers = np.exp(np.asarray([1.0, 2.0, -3.0]) / 1.7)
    np.testing.assert_allclose(
        classifier.compute_probabilities(logits)[0], powers / powers.sum(), rtol=1e-6
    )


def test_guesses_come_with_the_likeliest_first_and_of_equals_the_lower_number(classifier):
    ((first, second),) = classifier.rank_classes(np.asarray([[1.0, 4.0, 1.0]], np.float32), top=2)
    assert (first.name, first.number) == ("dog", 1)
    assert (second.name, second.number) == ("cat", 0)
    assert first.probability > second.probability
    assert len(classifier.rank_classes(np.zeros((1, 3), np.float32), top=10)[0]) == 3


def huge_png():
    file = io.BytesIO()
    Image.new("1", (17_000, 17_000)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("encoded", "why"),
    [
        (b"", "empty file"),
        (b"hello, I am no image", "text, not an image"),
        (b"<html><body>404</body></html>", "an HTML page, not an image"),
        (huge_png(), "17000 x 17000 pixels are more than"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "no pixels"),
    ],
)
def test_what_is_no_image_is_named(classifier, encoded, why):
    with pytest.raises(UnusableError, match=why):
        classifier.prepare_pixels(encoded)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_a_cut_file_is_refused_with_a_reason(classifier, image, kind):
    encoded = image(1, kind)
    with pytest.raises(UnusableError, match=r"."):
        classifier.prepare_pixels(encoded[: len(encoded) // 3])


def test_the_limit_on_pixels_is_the_callers(classifier, image):
    with pytest.raises(UnusableError, match="50 x 40 pixels are more than 1,999"):
        classifier.prepare_pixels(image(0), max_pixels=1999)
    assert classifier.prepare_pixels(image(0), max_pixels=2000).dtype == np.uint8


def test_a_model_for_other_classes_is_refused(release):
    with pytest.raises(DatasetError, match="4 logits"):
        load_classifier(release.model_copy(update={"class_names": ("a", "b", "c", "d")}))


def test_a_model_for_images_of_another_size_is_refused(release):
    with pytest.raises(
        CheckpointError, match=r"Expected images of 30 pixels. Received a network for 24"
    ):
        load_classifier(release.model_copy(update={"image_size": 30}))


def test_logits_that_are_no_numbers_are_no_answer(tmp_path, make_model, image):
    model = make_model()
    model.layers[-1].kernel.assign(np.full(model.layers[-1].kernel.shape, np.nan))
    save_model(model, tmp_path / "model.keras")
    classifier = load_classifier(released(tmp_path / "model.keras"))
    with pytest.raises(CheckpointError, match=r"Expected finite logits. Received nan"):
        classifier.predict_logits(classifier.prepare_pixels(image())[np.newaxis])


def test_a_bare_file_names_its_classes_by_number(model_file, image):
    classifier = load_classifier(released(model_file))
    assert classifier.release.class_names == ("class 0", "class 1", "class 2")
    assert classifier.release.short_side == classifier.release.image_size == 24
    assert classifier.prepare_pixels(image()).shape == (24, 24, 3)


def test_a_model_that_ends_in_softmax_answers_with_the_same_guesses(tmp_path, make_model, image):
    model = make_model()
    both = [model, keras.Model(model.inputs, keras.layers.Softmax()(model.outputs[0]))]
    answers = []
    for number, one in enumerate(both):
        save_model(one, tmp_path / f"{number}.keras")
        classifier = load_classifier(released(tmp_path / f"{number}.keras"))
        answers.append(
            classifier.compute_probabilities(
                classifier.predict_logits(classifier.prepare_pixels(image(3))[np.newaxis])
            )
        )
    np.testing.assert_allclose(*answers, atol=1e-6)


def test_golden_images_are_answered_as_recorded(classifier, release):
    golden = [
        ((release.directory / item.file).read_bytes(), item.logits) for item in release.golden
    ]
    assert measure_logit_difference(classifier, golden) < 1e-5
    golden[1] = (golden[1][0], [value + 0.5 for value in golden[1][1]])
    assert measure_logit_difference(classifier, golden) == pytest.approx(0.5, abs=1e-4)
    warm_up(classifier)


def test_an_image_is_cut_higher_than_wide(tmp_path, image):
    pixels = keras.Input((24, 16, 3), dtype="uint8")
    x = keras.layers.Conv2D(4, 3, activation="relu")(keras.layers.Rescaling(1 / 255)(pixels))
    x = keras.layers.GlobalAveragePooling2D()(x)
    keras.Model(pixels, keras.layers.Dense(3)(x)).save(tmp_path / "high.keras")
    release = Release(directory=tmp_path, model_file="high.keras", model_sha256="", short_side=28)
    opened = load_classifier(release)
    assert opened.release.image_size == (24, 16)
    assert Release.model_validate_json(opened.release.to_json()).image_size == (24, 16)
    encoded = image(0, height=28, width=28)
    square = load_classifier(release.model_copy(update={"short_side": 40}))
    assert opened.prepare_pixels(encoded).shape == square.prepare_pixels(encoded).shape
    stored = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    np.testing.assert_array_equal(opened.prepare_pixels(encoded), stored[2:26, 6:22])
    warm_up(opened)


def test_a_batch_is_as_large_as_memory_allows(tmp_path, monkeypatch):
    pixels = keras.Input((16, 16, 3), dtype="uint8")
    x = keras.layers.Conv2D(64, 1)(keras.layers.Rescaling(1 / 255)(pixels))
    x = keras.layers.GlobalAveragePooling2D()(x)
    keras.Model(pixels, keras.layers.Dense(3)(x)).save(tmp_path / "wide.keras")
    release = Release(directory=tmp_path, model_file="wide.keras", model_sha256="")
    monkeypatch.setattr(batch_limit, "_MAX_OUTPUT_BYTES", 5 * 16 * 16 * 64 * 4)
    assert load_classifier(release, batch=32).batch == 5
    assert load_classifier(release, batch=3).batch == 3


def test_rounding_of_more_layers_is_allowed_more():
    def make(depth):
        pixels = keras.Input((8, 8, 3), dtype="uint8")
        x = keras.layers.Rescaling(1 / 255)(pixels)
        for _ in range(depth - 1):
            x = keras.layers.BatchNormalization()(keras.layers.Conv2D(2, 1)(x))
        return keras.Model(pixels, keras.layers.Dense(3)(keras.layers.Flatten()(x)))

    tolerances = [find_tolerance(make(depth)) for depth in (2, 8, 32)]
    assert tolerances == pytest.approx([TOLERANCE, TOLERANCE, 2 * TOLERANCE])
