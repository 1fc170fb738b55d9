import numpy as np
import pytest
import tensorflow as tf

from pipeline.errors import CheckpointError, DatasetError
from pipeline.evaluate.metrics import label_ranks
from pipeline.evaluate.scoring import (
    Predictions,
    decoded,
    first_kernel,
    pictures_at,
    require_counts,
    require_sound,
    save_predictions,
    score,
)


def batched(pixels, labels, size):
    return tf.data.Dataset.from_tensor_slices((pixels, labels.astype(np.int32))).batch(size)


def scored(model, pixels, labels, size, progress=lambda done, wrong: None):
    keys = [f"picture {index}".encode() for index in range(len(labels))]
    return score(model, batched(pixels, labels, size), keys, batch_size=size, progress=progress)


@pytest.fixture(scope="module")
def network(make_model):
    return make_model(classes=7)


PIXELS = np.random.default_rng(0).integers(0, 256, (53, 12, 12, 3), dtype=np.uint8)
LABELS = np.random.default_rng(1).integers(0, 7, 53)


def test_scores_equal_the_model_called_on_all_pictures(network):
    found = scored(network, PIXELS, LABELS, 16)
    assert found.logits == pytest.approx(np.asarray(network(PIXELS, training=False)), abs=1e-5)
    assert found.logits.dtype == np.float32
    assert np.array_equal(found.labels, LABELS)
    assert found.keys[0] == "picture 0"
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
    assert np.array_equal(label_ranks(parts.logits, LABELS), label_ranks(whole.logits, LABELS))


def test_place_in_the_batch_does_not_change_the_result(network):
    found = scored(network, np.repeat(PIXELS[:1], 19, axis=0), LABELS[:19], 8)
    assert found.logits == pytest.approx(np.repeat(found.logits[:1], 19, axis=0), abs=1e-5)


def test_one_program_is_traced_for_all_batches(network):
    traces = []

    class Watched:
        input_shape = network.input_shape

        def __call__(self, pixels, training):
            traces.append(pixels.shape)
            assert training is False
            return network(pixels, training=training)

    scored(Watched(), PIXELS, LABELS, 16)
    assert traces == [(16, 12, 12, 3)]


def test_progress_counts_each_picture_once(network):
    steps = []
    found = scored(network, PIXELS, LABELS, 16, lambda *step: steps.append(step))
    assert [done for done, _ in steps] == [16, 32, 48, 53]
    assert steps[-1][1] == np.count_nonzero(found.logits.argmax(axis=1) != LABELS)


def test_wrong_number_of_pictures_is_refused(network):
    with pytest.raises(DatasetError, match=r"Expected 4 pictures, at least one\. Received 3\..*ingest"):
        score(network, batched(PIXELS[:3], LABELS[:3], 2), list("abcd"), batch_size=2, progress=lambda *_: None)
    with pytest.raises(DatasetError, match=r"Received 0\."):
        score(network, [], [], batch_size=1, progress=lambda *_: None)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_numbers_are_refused(value):
    logits = np.zeros((3, 2), np.float32)
    logits[1, 0] = value
    with pytest.raises(CheckpointError, match=r"1 of 3 pictures\. Expected finite values\. Received .* for 'b'\. .*learning_rate"):
        require_sound(Predictions(logits, np.zeros(3, np.int32), ("a", "b", "c")))


def test_model_with_nan_weights_is_refused(make_model):
    broken = make_model(classes=3)
    broken.layers[-1].bias.assign([0.0, np.nan, 0.0])
    with pytest.raises(CheckpointError, match=r"5 of 5 pictures.*Received nan"):
        scored(broken, PIXELS[:5], LABELS[:5] % 3, 2)


@pytest.mark.parametrize("label", [-1, 7])
def test_labels_outside_the_classes_are_refused(network, label):
    labels = LABELS[:4].copy()
    labels[2] = label
    with pytest.raises(DatasetError, match=rf"Expected 0-6\. Received {label} for 'picture 2'"):
        scored(network, PIXELS[:4], labels, 4)


def test_other_pictures_than_promised_are_refused():
    predictions = Predictions(np.zeros((3, 2), np.float32), np.array([0, 0, 1], np.int32), ("a", "b", "c"))
    require_counts(predictions, (2, 1), "test")
    with pytest.raises(DatasetError, match=r"Expected 1 pictures of class 0\. Received 2\."):
        require_counts(predictions, (1, 2), "test")


def test_names_come_as_text_from_anything():
    for keys in (["a", "é"], [b"a", "é".encode()], np.array([b"a", "é".encode()], object), tf.constant(["a", "é"])):
        assert decoded(keys) == ("a", "é")
    assert decoded([b"\xff.png"]) == ("\\xff.png",)


def test_pictures_at_positions_and_no_further():
    read = []

    def batches():
        for start in range(0, 50, 10):
            read.append(start)
            yield PIXELS[start : start + 10], LABELS[start : start + 10]

    found = pictures_at(batches(), [3, 25, 3, 20])
    assert sorted(found) == [3, 20, 25]
    assert all(np.array_equal(found[position], PIXELS[position]) for position in found)
    assert read == [0, 10, 20]


def test_predictions_load_without_pickle_and_their_digest_is_of_content(tmp_path):
    keys = ("a\n<b>", "é" * 200)
    predictions = Predictions(np.ones((2, 2), np.float32), np.array([0, 1], np.int32), keys)
    save_predictions(predictions, tmp_path / "predictions.npz")
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as file:
        assert tuple(file["keys"]) == keys
        assert file["logits"].dtype == np.float32
        assert file["labels"].dtype == np.int32
    assert predictions.sha256() == Predictions(np.ones((2, 2), np.float32), np.array([0, 1], np.int32), keys).sha256()
    assert predictions.sha256() != Predictions(predictions.logits, np.array([1, 1], np.int32), keys).sha256()


def test_first_kernel_is_that_of_conv1(network):
    assert np.array_equal(first_kernel(network), network.get_layer("conv1").kernel.numpy())
