import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from pipeline.errors import CheckpointError, DatasetError
from pipeline.evaluate.logits import rank_labels
from pipeline.evaluate.predictions import (
    PredictionChunk,
    read_columns,
    read_logits,
    read_logits_at,
    write_predictions,
)
from pipeline.evaluate.scoring import (
    ScoringModel,
    compile_first_guesses,
    decode_keys,
    read_images_at,
    require_class_counts,
    score_batches,
)


def batched(pixels, labels, size):
    return tf.data.Dataset.from_tensor_slices((pixels, labels.astype(np.int32))).batch(size)


def joined(chunks):
    chunks = list(chunks)
    arrays = (
        np.concatenate([getattr(chunk, name) for chunk in chunks])
        for name in ("labels", "logits", "brightness", "contrast")
    )
    return PredictionChunk(tuple(key for chunk in chunks for key in chunk.keys), *arrays)


def scored(model, pixels, labels, size, progress=lambda done, wrong: None):
    keys = [f"image {index}".encode() for index in range(len(labels))]
    return joined(
        score_batches(
            ScoringModel(model),
            batched(pixels, labels, size),
            keys,
            batch_size=size,
            progress=progress,
        )
    )


@pytest.fixture(scope="module")
def network(make_model):
    return make_model(classes=7)


PIXELS = np.random.default_rng(0).integers(0, 256, (53, 12, 12, 3), dtype=np.uint8)
LABELS = np.random.default_rng(1).integers(0, 7, 53)


def test_scores_equal_the_model_called_on_all_images(network):
    found = scored(network, PIXELS, LABELS, 16)
    assert found.logits == pytest.approx(np.asarray(network(PIXELS, training=False)), abs=1e-5)
    assert found.logits.dtype == np.float32
    assert np.array_equal(found.labels, LABELS)
    assert found.keys[0] == "image 0"
    assert len(found.keys) == 53


@pytest.mark.parametrize("size", [1, 7, 53, 64])
def test_several_views_give_the_mean_probability(network, size):
    views = np.stack([np.roll(PIXELS, shift, axis=2) for shift in range(5)], axis=1)
    each = tf.nn.softmax([network(views[:, view], training=False) for view in range(5)]).numpy()
    found = scored(network, views, LABELS, size)
    np.testing.assert_allclose(tf.nn.softmax(found.logits), each.mean(0), atol=1e-5)
    assert found.logits.shape == (53, 7)


@pytest.mark.parametrize("size", [1, 2, 7, 52, 53, 64])
def test_batch_size_does_not_change_the_result(network, size):
    whole, parts = scored(network, PIXELS, LABELS, 16), scored(network, PIXELS, LABELS, size)
    assert parts.logits == pytest.approx(whole.logits, abs=1e-5)
    assert np.array_equal(rank_labels(parts.logits, LABELS), rank_labels(whole.logits, LABELS))


def test_place_in_the_batch_does_not_change_the_result(network):
    found = scored(network, np.repeat(PIXELS[:1], 19, axis=0), LABELS[:19], 8)
    assert found.logits == pytest.approx(np.repeat(found.logits[:1], 19, axis=0), abs=1e-5)


def test_one_program_is_traced_for_all_batches(network):
    traces = []

    class Watched:
        input_shape, layers = network.input_shape, network.layers

        def __call__(self, pixels, training):
            traces.append(pixels.shape)
            assert training is False
            return network(pixels, training=training)

    scored(Watched(), PIXELS, LABELS, 16)
    assert traces == [(16, 12, 12, 3)]


def test_progress_counts_each_image_once(network):
    steps = []
    found = scored(network, PIXELS, LABELS, 16, lambda *step: steps.append(step))
    assert [done for done, _ in steps] == [16, 32, 48, 53]
    assert steps[-1][1] == np.count_nonzero(found.logits.argmax(axis=1) != LABELS)


def test_wrong_number_of_images_is_refused(network):
    with pytest.raises(
        DatasetError, match=r"Expected 4 images, at least one\. Received 3\..*ingest"
    ):
        list(
            score_batches(
                ScoringModel(network),
                batched(PIXELS[:3], LABELS[:3], 2),
                list("abcd"),
                batch_size=2,
                progress=lambda *_: None,
            )
        )
    with pytest.raises(DatasetError, match=r"Received 0\."):
        list(score_batches(ScoringModel(network), [], [], batch_size=1, progress=lambda *_: None))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_numbers_are_refused(make_model, value):
    broken = make_model(classes=2)
    broken.layers[-1].bias.assign([0.0, value])
    with pytest.raises(
        CheckpointError,
        match=r"3 of 3 images\. Expected finite values\. .* for 'image 0'\. .*learning_rate",
    ):
        scored(broken, PIXELS[:3], LABELS[:3] % 2, 4)


def test_model_with_nan_weights_is_refused(make_model):
    broken = make_model(classes=3)
    broken.layers[-1].bias.assign([0.0, np.nan, 0.0])
    with pytest.raises(CheckpointError, match=r"2 of 2 images.*Received nan"):
        scored(broken, PIXELS[:5], LABELS[:5] % 3, 2)


@pytest.mark.parametrize("label", [-1, 7])
def test_labels_outside_the_classes_are_refused(network, label):
    labels = LABELS[:4].copy()
    labels[2] = label
    with pytest.raises(DatasetError, match=rf"Expected 0-6\. Received {label} for 'image 2'"):
        scored(network, PIXELS[:4], labels, 4)


def test_other_images_than_promised_are_refused():
    require_class_counts(np.array([0, 0, 1]), (2, 1), "test")
    with pytest.raises(DatasetError, match=r"Expected 1 images of class 0\. Received 2\."):
        require_class_counts(np.array([0, 0, 1]), (1, 2), "test")


def test_brightness_and_contrast_are_those_of_the_pixels(network):
    found = scored(network, PIXELS, LABELS, 16)
    np.testing.assert_allclose(found.brightness, PIXELS.mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found.contrast, PIXELS.std((1, 2, 3)), rtol=1e-4)


def test_answers_are_the_first_guesses(network):
    expected = np.asarray(network(PIXELS, training=False)).argmax(axis=1)
    assert np.array_equal(compile_first_guesses(ScoringModel(network), 16)(PIXELS), expected)


SEVERAL = """
import numpy as np, sys, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 3
)
from pipeline.evaluate.predictions import write_predictions
from pipeline.evaluate.scoring import ScoringModel, load_on_devices, score_batches
from pipeline.model.weights import load_model
from pathlib import Path
load = lambda: load_model(Path(sys.argv[1]))
one, several = ScoringModel(load()), load_on_devices(load)
assert (one.device_count, several.device_count) == (1, 3)
pixels = np.random.default_rng(0).integers(0, 256, (53, 12, 12, 3), dtype=np.uint8)
labels = np.random.default_rng(1).integers(0, 7, 53)
batches = tf.data.Dataset.from_tensor_slices((pixels, labels.astype(np.int32))).batch(8)
names = [str(index) for index in range(53)]
for network in (one, several):
    chunks = score_batches(network, batches, names, batch_size=8, progress=lambda *_: None)
    print(write_predictions(chunks, 7, Path(sys.argv[2])))
"""


@pytest.mark.slow
def test_several_devices_give_the_same_digits_as_one(network, tmp_path):
    network.save(tmp_path / "model.keras")
    arguments = [sys.executable, "-c", SEVERAL, tmp_path / "model.keras", tmp_path / "p.parquet"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    one, several = done.stdout.splitlines()
    assert one == several


def test_names_come_as_text_from_anything():
    for keys in (
        ["a", "é"],
        [b"a", "é".encode()],
        np.array([b"a", "é".encode()], object),
        tf.constant(["a", "é"]),
    ):
        assert decode_keys(keys) == ("a", "é")
    assert decode_keys([b"\xff.png"]) == ("\\xff.png",)


def test_images_at_positions_and_no_further():
    read = []

    def batches():
        for start in range(0, 50, 10):
            read.append(start)
            yield PIXELS[start : start + 10], LABELS[start : start + 10]

    found = read_images_at(batches(), [3, 25, 3, 20])
    assert sorted(found) == [3, 20, 25]
    assert all(np.array_equal(found[position], PIXELS[position]) for position in found)
    assert read == [0, 10, 20]


# -- the file --------------------------------------------------------------------------------------


def chunks_of(count, size, classes=3):
    rng = np.random.default_rng(0)
    logits, labels = (
        rng.normal(0, 1, (count, classes)).astype(np.float32),
        rng.integers(0, classes, count).astype(np.int32),
    )
    keys, light = tuple(f"é\n{index}" for index in range(count)), np.arange(count, dtype=np.float32)
    for start in range(0, count, size):
        rows = slice(start, start + size)
        yield PredictionChunk(keys[rows], labels[rows], logits[rows], light[rows], light[rows])


def test_predictions_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "predictions.parquet"
    write_predictions(chunks_of(10_000, 300), 3, path)
    whole = joined(chunks_of(10_000, 10_000))
    keys, labels, ranks, light = read_columns(path, "key", "label", "rank", "contrast")
    assert tuple(keys) == whole.keys
    assert np.array_equal(labels, whole.labels)
    assert np.array_equal(ranks, rank_labels(whole.logits, whole.labels))
    assert np.array_equal(light, whole.contrast)
    parts = list(read_logits(path))
    assert [len(rows) for _, rows in parts] == [4096, 4096, 1808]
    assert np.array_equal(np.concatenate([logits for logits, _ in parts]), whole.logits)
    assert np.array_equal(read_logits_at(path, [9999, 3, 5000]), whole.logits[[9999, 3, 5000]])


def test_their_digest_is_of_content_and_not_of_batches(tmp_path):
    digests = {
        write_predictions(chunks_of(5000, size), 3, tmp_path / "p.parquet")
        for size in (1, 300, 5000)
    }
    assert len(digests) == 1
    assert write_predictions(chunks_of(4999, 300), 3, tmp_path / "p.parquet") not in digests
