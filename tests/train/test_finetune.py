"""Fine-tuning: resumable features, what is frozen, rates by block, and the choice of a phase."""

import dataclasses
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from pipeline.config.train import TrainConfig
from pipeline.errors import ConfigError
from pipeline.model.graph import find_classifier, find_feature_layer, list_blocks
from pipeline.model.layers import PixelNormalization
from pipeline.train.features import _run_batch, compute_features
from pipeline.train.finetune import (
    choose_mode,
    explain_left_out,
    find_wrong_answers,
    fit_classifier,
    freeze_lower_blocks,
    install_classifier,
    is_better,
    plan_phase_two,
)
from tests.train.test_loop import split

SIZE = 28


def small_network(classes=2):
    """A residual network with batch normalization, in four blocks."""
    keras.utils.set_random_seed(0)
    image = keras.Input((SIZE, SIZE, 3), dtype="uint8", name="image")
    x = PixelNormalization([125.0] * 3, [50.0] * 3, name="normalize")(image)
    x = keras.layers.Conv2D(8, 3, strides=2, name="stem")(x)
    for index in range(3):
        y = keras.layers.Conv2D(8, 3, padding="same", name=f"conv{index}")(x)
        y = keras.layers.BatchNormalization(name=f"norm{index}")(y)
        x = keras.layers.Add(name=f"sum{index}")([x, keras.layers.ReLU(name=f"relu{index}")(y)])
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dropout(0.5, name="drop")(x)
    return keras.Model(image, keras.layers.Dense(classes, name="logits")(x))


def test_features_are_what_the_classifier_reads_of_both_views(tmp_path):
    network, images = small_network(), split(70)
    done = []
    found = compute_features(network, images, tmp_path, mirror=True, report=done.append)
    assert found.shape == (70, 2, 8)
    assert done[-1] == 70
    crops = images.pixels[:, 2:30, 2:30]
    part = keras.Model(network.input, find_feature_layer(network).output)
    np.testing.assert_allclose(found[:, 0], part.predict(crops, verbose=0), atol=1e-5)
    np.testing.assert_allclose(found[:, 1], part.predict(crops[:, :, ::-1], verbose=0), atol=1e-5)


def test_features_go_on_after_an_interruption_with_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.train.features._CHUNK_BATCHES", 1)
    network, images = small_network(), split(200)
    whole = compute_features(network, images, tmp_path / "a", mirror=True, report=lambda _: None)

    def interrupt(done):
        if done >= 128:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute_features(network, images, tmp_path / "b", mirror=True, report=interrupt)
    kept = sorted(tmp_path.glob("b/*"))
    assert [path.name for path in kept] == ["0.npy", "64.npy"]
    before = [path.stat().st_mtime_ns for path in kept]
    again = compute_features(network, images, tmp_path / "b", mirror=True, report=lambda _: None)
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert again.tobytes() == whole.tobytes()


def test_large_layers_take_fewer_images_at_a_time(tmp_path, monkeypatch):
    network, images = small_network(), split(20)
    usual = compute_features(network, images, tmp_path / "a", mirror=False, report=lambda _: None)
    wrong = find_wrong_answers(network, images)
    seen = []
    largest = 4 * SIZE * SIZE * 3  # bytes of the pixels in float32
    monkeypatch.setattr("pipeline.model.batch_limit._MAX_OUTPUT_BYTES", 3 * largest)
    monkeypatch.setattr(
        "pipeline.train.features._run_batch",
        lambda *given: seen.append(given[2]) or _run_batch(*given),
    )
    found = compute_features(network, images, tmp_path / "b", mirror=False, report=lambda _: None)
    assert seen == [3] * 7
    np.testing.assert_allclose(found, usual, atol=1e-5)
    assert (find_wrong_answers(network, images) == wrong).all()


def test_the_classifier_learns_and_is_what_the_network_then_answers(tmp_path):
    network = small_network()
    train, validation = split(120), split(60, 1, "validation")
    train.dataset.class_names = ("dark", "bright")
    untouched = [np.array(weights) for weights in network.get_weights()]
    fitted = fit_classifier(network, (train, validation), TrainConfig(), tmp_path, lambda *_: None)
    assert all(np.array_equal(a, b) for a, b in zip(untouched, network.get_weights(), strict=True))
    install_classifier(network, (fitted.head.kernel, fitted.head.bias))
    wrong = find_wrong_answers(network, validation)
    assert (wrong == fitted.wrong).all()
    assert fitted.numbers["validation_top1_error"] == pytest.approx(wrong.mean())
    assert wrong.mean() < 0.05  # bright and dark are far apart


def test_lower_blocks_learn_more_slowly_and_the_lowest_not_at_all():
    network = small_network()
    assert len(list_blocks(network)) == 4
    rates = freeze_lower_blocks(network, 0.3)
    assert rates == pytest.approx({"logits": 1.0, "conv2": 0.3, "conv1": 0.09})
    trained = {layer.name for layer in network.layers if layer.trainable_weights}
    assert trained == {"logits", "conv2", "conv1"}
    norms = [layer for layer in network.layers if "norm" in layer.name and layer.weights]
    assert norms
    assert not any(layer.trainable for layer in norms)


@pytest.mark.parametrize(
    ("mended", "broken", "better"),
    [
        (5, 0, True),  # 1 in 32
        (4, 0, False),  # 1 in 16
        (30, 10, True),
        (24, 16, False),
        (0, 9, False),
        (0, 0, False),
    ],
)
def test_better_is_more_than_chance(mended, broken, better):
    before, after = np.zeros(100, bool), np.zeros(100, bool)
    before[:mended], after[mended : mended + broken] = True, True
    before[90:], after[90:] = True, True  # wrong in both: counts for neither
    found, p_value = is_better(before, after)
    assert found is better
    assert 0 <= p_value <= 1


@pytest.mark.parametrize(("wrong", "left_out"), [(0, True), (4, True), (5, False), (20, False)])
def test_phase_two_is_left_out_where_nothing_could_be_proven(wrong, left_out):
    before = np.arange(20) < wrong
    reason = explain_left_out(before, 32)
    assert bool(reason) == left_out
    if left_out and wrong:
        assert f"{wrong} of 20 validation images" in reason
        assert f"{0.5**wrong:.2g}" in reason
    assert "smaller than a step" in explain_left_out(before, 0)


def test_a_step_of_phase_two_takes_no_more_than_there_is():
    config = TrainConfig(global_batch_size=32)
    assert plan_phase_two(config, 400).global_batch_size == 32
    assert plan_phase_two(config, 21).global_batch_size == 21
    assert plan_phase_two(config, 21, replicas=4).global_batch_size == 20
    assert plan_phase_two(config, 3, replicas=4).global_batch_size == 0


@pytest.mark.parametrize(
    ("asked", "pretrained", "on_gpu", "mode"),
    [
        ("auto", "imagenet", False, "head"),
        ("auto", "imagenet", True, "full"),
        ("auto", "", True, "off"),
        ("auto", "photos.keras", False, "off"),
        ("head", "photos.keras", False, "head"),
        ("full", "imagenet", False, "full"),
        ("off", "imagenet", True, "off"),
    ],
)
def test_the_mode_follows_weights_and_device(asked, pretrained, on_gpu, mode):
    model = SimpleNamespace(pretrained=pretrained, network="small")
    assert choose_mode(TrainConfig(finetune=asked), model, on_gpu=on_gpu) == mode


@pytest.mark.parametrize("network", ["my_networks:build", "photos/net.keras"])
def test_weights_of_ones_own_are_tuned_where_asked(network):
    model = SimpleNamespace(pretrained="", network=network)
    assert choose_mode(TrainConfig(finetune="full"), model, on_gpu=False) == "full"
    assert choose_mode(TrainConfig(finetune="head"), model, on_gpu=True) == "head"
    assert choose_mode(TrainConfig(), model, on_gpu=True) == "off"


def test_fresh_weights_are_not_tuned():
    with pytest.raises(ConfigError, match="needs pretrained weights"):
        choose_mode(
            TrainConfig(finetune="head"),
            SimpleNamespace(pretrained="", network="small"),
            on_gpu=False,
        )


def test_phase_two_has_rates_and_epochs_of_its_own():
    config = plan_phase_two(TrainConfig(epochs=90, learning_rate=0.5, finetune_epochs=7), 500)
    assert (config.epochs, config.learning_rate) == (7, TrainConfig().finetune_learning_rate)
    assert config.ema_decay > 0
    assert plan_phase_two(TrainConfig(finetune_epochs=1), 500).warmup_epochs == 0


def test_a_classifier_is_installed_by_its_place():
    network = small_network(classes=3)
    kernel, bias = np.ones((8, 3), np.float32), np.arange(3, dtype=np.float32)
    install_classifier(network, (kernel, bias))
    found = find_classifier(network).get_weights()
    assert (found[0] == kernel).all()
    assert (found[1] == bias).all()


def test_images_of_a_group_are_held_out_together_and_an_edge_is_told(tmp_path):
    train, validation = split(40), split(20, 1, "validation")
    train.dataset.class_names = ("dark", "bright")
    train = dataclasses.replace(train, groups=train.labels)
    config, network = TrainConfig(), small_network()
    fitted = fit_classifier(network, (train, validation), config, tmp_path, lambda *_: None)
    assert fitted.head.scores == {}  # each class is one group
    assert fitted.describe()["note"] == ""
    train = dataclasses.replace(train, groups=None)
    fitted = fit_classifier(network, (train, validation), config, tmp_path, lambda *_: None)
    assert fitted.head.held_out == 40
    assert "weakest" in fitted.describe()["note"]  # bright and dark are far apart
