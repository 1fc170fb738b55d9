import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.evaluate import neighbors
from pipeline.evaluate.neighbors import compute_features, find_nearest
from pipeline.model.networks import build_network
from tests.networks import model_config


def network(size=32, classes=4, **settings):
    config = model_config(image_size=size, width_multiplier=0.125, **settings)
    return build_network(
        config, num_classes=classes, channel_mean=(120.0,) * 3, channel_std=(60.0,) * 3
    )


def noise(count, size=32):
    return np.random.default_rng(size).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [7, 64, 100])
def test_features_are_the_layers_whatever_the_batches(size):
    model, pixels = network(), noise(100)
    expected = np.asarray(
        keras.Model(model.input, model.get_layer("fc7").output)(pixels, training=False)
    )
    found = compute_features(
        model, tf.data.Dataset.from_tensor_slices((pixels, np.zeros(100))).batch(size), "fc7"
    )
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert expected.std() > 0.01


def test_features_of_maps_are_flat(make_model):
    assert compute_features(make_model(classes=3), [(noise(2, 12), None)], "conv1").shape == (
        2,
        8 * 8 * 8,
    )


def test_one_program_is_traced_for_all_batches(monkeypatch):
    traced = []
    outputs = neighbors.build_outputs

    def watched(model, layers):
        inner = outputs(model, layers)
        return lambda pixels: traced.append(pixels.shape) or inner(pixels)

    monkeypatch.setattr(neighbors, "build_outputs", watched)
    model = network()
    compute_features(model, [(noise(20), None), (noise(3), None), (noise(45), None)], "fc7")
    assert traced == [(20, 32, 32, 3)]


def brute_force(train, queries, count):
    distances = np.sqrt(
        np.square(queries[:, np.newaxis].astype(np.float64) - train.astype(np.float64)).sum(axis=2)
    )
    order = np.array(
        [
            sorted(range(len(train)), key=lambda row, far=far: (far[row], row))[:count]
            for far in distances
        ]
    )
    return order, np.take_along_axis(distances, order, axis=1)


@pytest.mark.parametrize("numbers", [1, 2**7, 2**22])
@pytest.mark.parametrize("offset", [0, 3000])
def test_nearest_is_brute_force(monkeypatch, numbers, offset):
    monkeypatch.setattr(neighbors, "_NUMBERS_AT_ONCE", numbers)
    rng = np.random.default_rng(offset)
    # Far from 0 and close together: squared lengths minus products would lose most digits.
    train, queries = (offset + rng.normal(size=(rows, 19)) for rows in (157, 9))
    indices, distances = find_nearest(train, queries, 6)
    expected = brute_force(train, queries, 6)
    assert np.array_equal(indices, expected[0])
    np.testing.assert_allclose(distances, expected[1], rtol=1e-12)
    assert indices.dtype == np.int64
    assert distances.dtype == np.float64


@pytest.mark.parametrize("numbers", [1, 8, 2**22])
def test_of_equally_near_rows_the_first_is_first(monkeypatch, numbers):
    monkeypatch.setattr(neighbors, "_NUMBERS_AT_ONCE", numbers)
    train = np.array([[3, 0], [0, 1], [1, 0], [0, -1], [0, 0], [0, 1], [0, 0]], np.float32)
    indices, distances = find_nearest(train, np.zeros((2, 2), np.float32), 5)
    assert indices.tolist() == [[4, 6, 1, 2, 3]] * 2
    assert distances.tolist() == [[0, 0, 1, 1, 1]] * 2


def test_nearest_of_few_rows_are_all():
    indices, _ = find_nearest(np.array([[1.0], [0.0]]), np.array([[0.2]]), 6)
    assert indices.tolist() == [[1, 0]]
