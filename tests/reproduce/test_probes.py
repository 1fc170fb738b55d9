"""Linear probes: the classifier, the features and the layers that are read."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.artifacts import file_sha256
from pipeline.model.weights import load_model
from pipeline.reproduce import probes
from pipeline.reproduce.measurement import Measurement

CLASSES = 3


def classes_of(count, seed=0):
    return np.random.default_rng(seed).integers(0, CLASSES, count)


def test_what_can_be_told_apart_is_and_noise_is_not():
    rng, labels, truth = np.random.default_rng(0), classes_of(400), classes_of(400, seed=1)
    noise = [rng.normal(size=(400, 30)).astype(np.float32) for _ in range(2)]
    assert np.mean(probes.classify_linearly(noise[0], labels, noise[1]) != truth) == pytest.approx(
        2 / 3, abs=0.08
    )
    separable = [
        100 + sheet + 4 * np.eye(30)[known]
        for sheet, known in zip(noise, (labels, truth), strict=True)
    ]
    assert np.mean(probes.classify_linearly(separable[0], labels, separable[1]) != truth) < 0.05


@pytest.mark.parametrize(("images", "units"), [(300, 40), (60, 90)])
def test_a_probe_is_the_ridge_classifier_of_scikit_learn(images, units):
    from sklearn.linear_model import RidgeClassifierCV

    rng = np.random.default_rng(3)
    x, directions = rng.normal(size=(images + 200, units)), rng.normal(size=(units, CLASSES))
    labels = (x @ directions + 5 * rng.normal(size=(len(x), CLASSES))).argmax(axis=1)
    known, asked = x[:images], x[images:]
    mean, std = known.mean(axis=0), known.std(axis=0)
    theirs = RidgeClassifierCV(
        alphas=[images * 10 ** (power / 2) for power in range(-6, 5)]
    )  # leaves each image out in turn
    theirs.fit((known - mean) / std, labels[:images])
    answers = probes.classify_linearly(known, labels[:images], asked)
    assert np.mean(answers == theirs.predict((asked - mean) / std)) > 0.95


def test_dead_units_and_loud_ones_do_not_matter():
    rng, labels = np.random.default_rng(0), classes_of(200)
    separable = (np.eye(CLASSES)[labels] + 0.5 * rng.normal(size=(200, CLASSES))).astype(np.float32)
    answers = probes.classify_linearly(separable, labels, separable)
    assert np.array_equal(
        answers,
        probes.classify_linearly(
            np.c_[1e4 * separable, np.full((200, 5), 7.0)],
            labels,
            np.c_[1e4 * separable, np.full((200, 5), 7.0)],
        ),
    )


def test_maps_are_averaged_over_a_grid_and_units_are_not():
    maps = np.random.default_rng(0).normal(size=(2, 8, 6, 3)).astype(np.float32)
    found = probes.average_over_grid(maps, 4).numpy().reshape(2, 4, 4, 3)
    assert found[:, 1, 0] == pytest.approx(maps[:, 2:4, :2].mean(axis=(1, 2)), abs=1e-6)
    assert found[:, 3, 1] == pytest.approx(
        maps[:, 6:, 1:3].mean(axis=(1, 2)), abs=1e-6
    )  # 6 positions in 4 windows: they overlap
    assert probes.average_over_grid(maps[:, :2, :2], 4).numpy() == pytest.approx(
        maps[:, :2, :2].reshape(2, -1), abs=1e-6
    )
    assert probes.average_over_grid(maps[:, 0, 0], 4) is not None
    assert np.array_equal(probes.average_over_grid(maps[:, 0, 0], 4), maps[:, 0, 0])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {},
            {
                "conv1": "conv1",
                "conv2": "conv2",
                "conv3": "conv3",
                "conv4": "conv4",
                "conv5": "conv5",
                "fc6": "fc6",
                "fc7": "fc7",
            },
        ),
        (
            {"layer_order": "code", "remove_layer": "conv4"},
            {
                "conv1": "relu1",
                "conv2": "conv2",
                "conv3": "conv3",
                "conv5": "conv5",
                "fc6": "fc6",
                "fc7": "fc7",
            },
        ),
        ({"network": "cifar"}, {"conv1": "relu1", "conv2": "conv2", "conv3": "conv3"}),
    ],
)
def test_every_layer_below_the_logits_is_read_after_its_activation(settings, expected, network):
    assert probes.list_probed_layers(network(**settings)) == expected


def test_a_fresh_copy_has_the_weights_that_training_began_with(tmp_path, network, saved):
    model = network(seed=5, normalization="batch")
    began = model.get_weights()
    saved(model, tmp_path / "trained")
    trained = load_model(tmp_path / "trained" / Measurement.MODEL_FILE)
    fresh = probes.copy_fresh_network(trained)
    assert all(
        np.array_equal(one, other) for one, other in zip(fresh.get_weights(), began, strict=True)
    )
    assert not np.array_equal(fresh.get_layer("conv1").kernel, trained.get_layer("conv1").kernel)


def test_each_depth_is_read_in_the_trained_and_the_fresh_network(
    context, dataset, serve, tmp_path, network, saved
):
    weights = saved(network(), tmp_path / "trained")
    before = file_sha256(tmp_path / "trained" / Measurement.MODEL_FILE)
    spec = {"training_images": 90, "test_images": 1000, "positions": 4, "features": True}
    made = probes.measure_probes(spec, dataset, context, tmp_path / "trained")
    layers = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"]
    assert [name for name in made.numbers if "/" in name] == [
        f"{kind}/{layer}" for kind in ("trained", "fresh") for layer in layers
    ]
    assert made.load_wrong().shape == (2, len(layers), 60)
    assert made.numbers["fresh/conv5"] == pytest.approx(made.load_wrong()[1, 4].mean())
    assert made.numbers["trained/conv1"] < 0.1  # the classes are colors
    assert made.files == ("wrong.npy", "report_data.json", "report_data.npz")
    assert all(path.stat().st_size for path in made.promised_files())
    assert file_sha256(tmp_path / "trained" / Measurement.MODEL_FILE) == before
    assert all(
        np.array_equal(*pair)
        for pair in zip(
            load_model(tmp_path / "trained" / Measurement.MODEL_FILE).get_weights(),
            weights,
            strict=True,
        )
    )
