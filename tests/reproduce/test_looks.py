"""The claims that look at trained networks, and those that time them."""

import json
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.artifacts import DatasetArtifact, file_sha256
from pipeline.config.settings import Config
from pipeline.config.train import TrainConfig
from pipeline.data import loader
from pipeline.data.loader import LoadedSplit
from pipeline.engine.stage import Context
from pipeline.errors import PipelineError
from pipeline.model.networks import build_network
from pipeline.model.weights import load_model, save_model
from pipeline.reproduce.claims import features, gpu, replicas, towers
from pipeline.reproduce.measurement import Measurement
from pipeline.reproduce.verdict import Question, find
from tests.networks import model_config

SIZE, CLASSES = 16, 3
TINY = {"image_size": SIZE, "width_multiplier": 0.02}


class Silent:
    """A tracking run and an observer that forget."""

    key = ""

    def __getattr__(self, _name):
        return lambda *_, **__: None


@pytest.fixture
def context(tmp_path):
    folder = tmp_path / "look"
    folder.mkdir()
    return Context(folder, Silent(), Silent())


@pytest.fixture
def dataset(tmp_path):
    counts = {"train": (40, 40, 40), "validation": (2, 2, 2), "test": (20, 20, 20)}
    return DatasetArtifact(
        directory=tmp_path,
        name="tiny",
        digest="d" * 64,
        class_names=("red", "green", "blue"),
        class_counts=counts,
        reads={},
        short_side=SIZE + 4,
        channel_mean=(128, 128, 128),
        channel_covariance=((4000, 0, 0), (0, 4000, 0), (0, 0, 4000)),
        builder_directory=tmp_path,
    )


@pytest.fixture
def serve(monkeypatch, dataset):
    """Let the loader find noise with a touch of each class's color."""

    def load(_dataset, split, *, in_memory=None):
        count, rng = dataset.images(split), np.random.default_rng(len(split))
        labels = (np.arange(count) % CLASSES).astype(np.int32)
        pixels = rng.integers(0, 130, (count, SIZE + 4, SIZE + 4, 3), dtype=np.uint8)
        pixels[np.arange(count), ..., labels] += 90
        return LoadedSplit(dataset, split, labels, tuple(map(str, range(count))), pixels)

    monkeypatch.setattr(loader, "load_split", load)


def network(seed=0, **settings):
    config = model_config(**TINY | settings | {"seed": seed})
    return build_network(
        config, num_classes=CLASSES, channel_mean=(128, 128, 128), channel_std=(63, 63, 63)
    )


def saved(model, folder):
    """Save a network as if training had changed it, and return its weights."""
    folder.mkdir()
    model.set_weights([1.5 * weights + 0.01 for weights in model.get_weights()])
    save_model(model, folder / Measurement.MODEL_FILE)
    return model.get_weights()


def lab_for(tmp_path, numbers=None, **settings):
    """A laboratory that has measured already."""
    made = Measurement(directory=tmp_path, name="made", numbers=numbers or {})
    asked = []

    def perform(name, spec, _work, _trained=None):
        json.dumps(spec)
        asked.append((name, spec))
        return made

    dataset = SimpleNamespace(
        channel_covariance=((4000, 3500, 3300), (3500, 3800, 3700), (3300, 3700, 4400))
    )
    config = Config.model_validate(settings)
    return SimpleNamespace(
        config=config, dataset=dataset, folder=tmp_path, perform=perform, look=perform, asked=asked
    )


# Towers.


def filters(*colors, seed=0):
    """Filters of a random shape, each of one color: float [5, 5, 3, filters]."""
    shapes = np.random.default_rng(seed).normal(size=(5, 5, 1, len(colors)))
    return shapes * np.array(colors, float).T[np.newaxis, np.newaxis]


def test_gray_is_blind_to_color_and_opponents_are_blind_to_brightness():
    kernel = filters((1, 1, 1), (-2, -2, -2), (1, -1, 0), (-1, -1, 2), (1, 0, 0), (0, 0, 0))
    assert towers.colorfulness(kernel) == pytest.approx([0, 0, 1, 1, 2 / 3, 0])


def test_random_filters_are_two_thirds_color():
    assert towers.colorfulness(
        np.random.default_rng(0).normal(size=(5, 5, 3, 2000))
    ).mean() == pytest.approx(2 / 3, abs=0.01)


def test_a_planted_tower_is_found():
    rng = np.random.default_rng(1)
    kernel = filters(*[(1, 1, 1)] * 12, *[(1, -1, 0)] * 12) + 0.3 * rng.normal(size=(5, 5, 3, 24))
    found = towers.split_in_two(towers.colorfulness(kernel), splits=2000, seed=0)
    assert found.effect > 0.4
    assert found.p < 0.001
    mixed = (
        towers.colorfulness(kernel).reshape(2, 12).T.ravel()
    )  # the same filters, every second one in each half
    assert towers.split_in_two(mixed, splits=2000, seed=0).p > 0.05


def test_which_tower_is_the_gray_one_does_not_matter():
    values = towers.colorfulness(filters(*[(1, 1, 1)] * 4, *[(1, -1, 0)] * 4))
    assert towers.split_in_two(values, splits=500, seed=0) == towers.split_in_two(
        values[::-1], splits=500, seed=0
    )


def test_chance_gives_no_effect_and_is_seldom_called_one():
    rng = np.random.default_rng(2)
    found = [towers.split_in_two(rng.beta(8, 4, 24), splits=200, seed=0) for _ in range(900)]
    effects = np.array([one.effect for one in found])
    assert abs(effects.mean()) < 3 * effects.std() / 30
    assert 0.03 < np.mean([one.p < 0.05 for one in found]) < 0.07
    question = Question(what="x", unit="share", published=None, source="x", least=0.0)
    verdicts = [find(question, three).verdict for three in effects.reshape(300, 3)]
    assert verdicts.count("reproduced") <= 0.025 * 300 + 5


def test_the_filters_and_what_training_changed_in_them_are_looked_at(context, dataset, tmp_path):
    model = network()
    layer = model.get_layer("conv1")
    first = np.asarray(layer.kernel)
    half = first.shape[-1] // 2
    grown = filters(*[(1, 1, 1)] * half, *[(1, -1, 0)] * half)
    layer.set_weights([first + grown, layer.get_weights()[1]])
    (tmp_path / "trained").mkdir()
    save_model(model, tmp_path / "trained" / Measurement.MODEL_FILE)
    spec = {"splits": 500, "split_seed": 0, "images": True}
    made = towers.look_at_colors(spec, dataset, context, tmp_path / "trained")
    values = np.load(context.directory / "colorfulness.npy")
    assert values[0] == pytest.approx(towers.colorfulness(first + grown))
    assert values[1] == pytest.approx([0] * half + [1] * half, abs=1e-5)
    assert made.numbers["changes/difference"] == pytest.approx(1, abs=1e-5)
    assert made.numbers["moved"] == pytest.approx(
        np.linalg.norm(grown) / np.linalg.norm(first), rel=1e-5
    )
    assert [made.numbers["changes/tower 1"], made.numbers["changes/tower 2"]] == pytest.approx(
        [0, 1], abs=1e-5
    )
    assert set(made.files) == {"colorfulness.npy", "filters.png", "changes.png"}
    assert all(path.exists() for path in made.promised_files())
    assert [len(tower) for tower in towers.by_tower(made)] == [half, half]


def test_a_network_with_one_tower_is_not_asked(context, dataset, tmp_path):
    saved(network(network="cifar"), tmp_path / "trained")
    made = towers.look_at_colors(
        {"splits": 10, "split_seed": 0, "images": True}, dataset, context, tmp_path / "trained"
    )
    assert made.numbers["towers"] == 1
    concluded = towers.conclude(lab_for(tmp_path, made.numbers), {"baseline": [made]})
    assert concluded.findings[0].verdict == "not measured"
    assert "one tower" in concluded.findings[0].why


def test_gray_images_have_no_colors_to_share_out(tmp_path):
    lab = lab_for(tmp_path)
    lab.dataset.channel_covariance = ((4000.0,) * 3,) * 3
    assert "gray" in towers.conclude(lab, {"baseline": [None]}).findings[0].why
    assert not lab.asked


def test_the_towers_are_judged_by_seeds(context, dataset, tmp_path):
    saved(network(), tmp_path / "trained")
    made = towers.look_at_colors(
        {"splits": 100, "split_seed": 0, "images": True}, dataset, context, tmp_path / "trained"
    )
    lab = lab_for(tmp_path)
    lab.look = lambda *_: made
    concluded = towers.conclude(lab, {"baseline": [made, made]})
    assert [finding.effects for finding in concluded.findings] == [
        (made.numbers[f"{name}/effect"],) * 2 for name in ("filters", "changes")
    ]
    assert all((tmp_path / figure.file).stat().st_size for figure in concluded.figures)
    assert concluded.notes[0].startswith(("0 of 2", "2 of 2"))


# Features.


def classes_of(count, seed=0):
    return np.random.default_rng(seed).integers(0, CLASSES, count)


def test_what_can_be_told_apart_is_and_noise_is_not():
    rng, labels, truth = np.random.default_rng(0), classes_of(400), classes_of(400, seed=1)
    noise = [rng.normal(size=(400, 30)).astype(np.float32) for _ in range(2)]
    assert np.mean(features.probe(noise[0], labels, noise[1]) != truth) == pytest.approx(
        2 / 3, abs=0.08
    )
    told = [
        100 + sheet + 4 * np.eye(30)[known]
        for sheet, known in zip(noise, (labels, truth), strict=True)
    ]
    assert np.mean(features.probe(told[0], labels, told[1]) != truth) < 0.05


@pytest.mark.parametrize(("images", "units"), [(300, 40), (60, 90)])
def test_a_probe_is_the_ridge_classifier_of_scikit_learn(images, units):
    from sklearn.linear_model import RidgeClassifierCV

    rng = np.random.default_rng(3)
    x, directions = rng.normal(size=(images + 200, units)), rng.normal(size=(units, CLASSES))
    labels = (x @ directions + 5 * rng.normal(size=(len(x), CLASSES))).argmax(axis=1)
    known, asked = x[:images], x[images:]
    mean, deviation = known.mean(axis=0), known.std(axis=0)
    theirs = RidgeClassifierCV(
        alphas=[images * 10 ** (power / 2) for power in range(-6, 5)]
    )  # leaves each image out in turn
    theirs.fit((known - mean) / deviation, labels[:images])
    answers = features.probe(known, labels[:images], asked)
    assert np.mean(answers == theirs.predict((asked - mean) / deviation)) > 0.95


def test_dead_units_and_loud_ones_do_not_matter():
    rng, labels = np.random.default_rng(0), classes_of(200)
    told = (np.eye(CLASSES)[labels] + 0.5 * rng.normal(size=(200, CLASSES))).astype(np.float32)
    answers = features.probe(told, labels, told)
    assert np.array_equal(
        answers,
        features.probe(
            np.c_[1e4 * told, np.full((200, 5), 7.0)],
            labels,
            np.c_[1e4 * told, np.full((200, 5), 7.0)],
        ),
    )


def test_maps_are_averaged_over_a_grid_and_units_are_not():
    maps = np.random.default_rng(0).normal(size=(2, 8, 6, 3)).astype(np.float32)
    found = features._averaged(maps, 4).numpy().reshape(2, 4, 4, 3)
    assert found[:, 1, 0] == pytest.approx(maps[:, 2:4, :2].mean(axis=(1, 2)), abs=1e-6)
    assert found[:, 3, 1] == pytest.approx(
        maps[:, 6:, 1:3].mean(axis=(1, 2)), abs=1e-6
    )  # 6 positions in 4 windows: they overlap
    assert features._averaged(maps[:, :2, :2], 4).numpy() == pytest.approx(
        maps[:, :2, :2].reshape(2, -1), abs=1e-6
    )
    assert features._averaged(maps[:, 0, 0], 4) is not None
    assert np.array_equal(features._averaged(maps[:, 0, 0], 4), maps[:, 0, 0])


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
def test_every_layer_below_the_logits_is_read_after_its_activation(settings, expected):
    assert features.depths(network(**settings)) == expected


def test_a_fresh_copy_has_the_weights_that_training_began_with(tmp_path):
    model = network(seed=5, normalization="batch")
    began = model.get_weights()
    saved(model, tmp_path / "trained")
    trained = load_model(tmp_path / "trained" / Measurement.MODEL_FILE)
    fresh = features.fresh_copy(trained)
    assert all(
        np.array_equal(one, other) for one, other in zip(fresh.get_weights(), began, strict=True)
    )
    assert not np.array_equal(fresh.get_layer("conv1").kernel, trained.get_layer("conv1").kernel)


def test_each_depth_is_read_in_the_trained_and_the_fresh_network(context, dataset, serve, tmp_path):
    weights = saved(network(), tmp_path / "trained")
    before = file_sha256(tmp_path / "trained" / Measurement.MODEL_FILE)
    spec = {"training_images": 90, "test_images": 1000, "positions": 4, "images": True}
    made = features.read_off(spec, dataset, context, tmp_path / "trained")
    layers = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"]
    assert [name for name in made.numbers if "/" in name] == [
        f"{kind}/{layer}" for kind in ("trained", "fresh") for layer in layers
    ]
    assert made.wrong().shape == (2, len(layers), 60)
    assert made.numbers["fresh/conv5"] == pytest.approx(made.wrong()[1, 4].mean())
    assert made.numbers["trained/conv1"] < 0.1  # the classes are colors
    assert made.files == ("wrong.npy", "filters.png", "patches.png")
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


def test_the_drop_of_the_error_is_judged_and_what_training_adds_to_it(tmp_path):
    rng = np.random.default_rng(0)
    wrong = rng.random((2, 2, 500)) < np.array([[0.5, 0.3], [0.55, 0.6]])[..., np.newaxis]
    np.save(tmp_path / "wrong.npy", wrong)
    errors = wrong.mean(axis=2)
    numbers = {
        f"{name}/{layer}": errors[i, j]
        for i, name in enumerate(("trained", "fresh"))
        for j, layer in enumerate(("conv1", "fc7"))
    }
    lab = lab_for(tmp_path, numbers, reproduce={"images": 3000})
    concluded = features.conclude(lab, {"baseline": [None, None, None]})
    added, drop = concluded.findings
    assert drop.effects == pytest.approx([100 * (errors[0, 0] - errors[0, 1])] * 3)
    assert added.effects == pytest.approx(
        [100 * (errors[0, 0] - errors[0, 1] - errors[1, 0] + errors[1, 1])] * 3
    )
    difference = wrong[0, 0] * 1.0 - wrong[0, 1]
    assert drop.image_deviation == pytest.approx(100 * difference.std(ddof=1) / np.sqrt(500))
    assert added.image_deviation > drop.image_deviation
    assert drop.verdict == added.verdict == "reproduced"
    assert [spec["training_images"] for _, spec in lab.asked] == [
        3000
    ] * 3  # no more than the network was trained on
    assert [spec["images"] for _, spec in lab.asked] == [True, False, False]
    assert "at 1 of 1 steps." in concluded.notes[0]


# Timings.


def test_half_of_the_network():
    assert replicas.half_of(model_config(network="paper", image_size=224)).network == "single_tower"
    assert replicas.half_of(model_config(width_multiplier=0.5)) == model_config(
        width_multiplier=0.25
    )


def test_a_batch_that_two_devices_can_share():
    assert replicas.shared_by(2, TrainConfig(global_batch_size=101)).global_batch_size == 100
    assert replicas.shared_by(2, TrainConfig(global_batch_size=1)).global_batch_size == 2
    assert (
        replicas.shared_by(2, TrainConfig(global_batch_size=130, mixup=0.2)).global_batch_size
        == 128
    )


def test_noise_is_like_the_dataset(dataset):
    images = replicas.noise(dataset, 10)
    assert images.pixels.shape == (10, SIZE + 4, SIZE + 4, 3)
    assert images.dataset.images("train") == len(images) == 10
    assert images.pixels.std() > 60


def test_one_timing_in_this_process(dataset):
    from pipeline.train.strategy import Devices

    config = TrainConfig(global_batch_size=4, color_noise=0.1, class_weights=True)
    speed = replicas.images_per_second(
        model_config(**TINY), config, dataset, Devices(), steps=4, seconds=1.0
    )
    assert 1 < speed < 1e6


@pytest.mark.slow  # two processes that import TensorFlow
def test_each_timing_is_a_process_with_its_own_devices(dataset):
    model = model_config(**TINY).model_dump(mode="json")
    for devices, count in (("cpu", 1), ("cpu:2", 2)):
        settings = TrainConfig(global_batch_size=8, devices=devices).model_dump(mode="json")
        found = replicas.timing(
            {
                "networks": {"whole": model, "half": model},
                "settings": settings,
                "steps": 4,
                "seconds": 1.0,
            },
            dataset,
        )
        assert found["replicas"] == count
        assert set(found["images_per_second"]) == {"whole", "half"}
        assert all(1 < speed < 1e6 for speed in found["images_per_second"].values())
        assert "processor" in found["hardware"]


def test_a_timing_that_fails_says_why(monkeypatch, dataset):
    def run(words, **_):
        raise subprocess.CalledProcessError(
            1, words, stderr="Traceback\npipeline.errors.ConfigError: no such GPU\n"
        )

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(
        PipelineError, match=r"A timing on gpu:7 failed: pipeline\.errors\.ConfigError: no such GPU"
    ):
        replicas.timing({"settings": {"devices": "gpu:7"}}, dataset)


@pytest.fixture
def timings(monkeypatch):
    """Let the children's answers be known beforehand, and return what they were asked for."""
    asked = []

    def timing(spec, _dataset):
        asked.append((spec["settings"]["devices"], *spec["networks"]))
        return {
            "images_per_second": {name: 100.0 * len(asked) for name in spec["networks"]},
            "hardware": "none",
        }

    monkeypatch.setattr(replicas, "timing", timing)
    monkeypatch.setattr(gpu, "timing", timing)
    return asked


def test_timings_are_taken_by_turns(context, dataset, timings):
    networks = {"half": {}, "whole": {}}
    made = replicas.time_in_turns(
        {"devices": ["cpu", "cpu:2"], "networks": networks, "settings": {}, "pairs": 3},
        dataset,
        context,
    )
    one, two = ("cpu", "half", "whole"), ("cpu:2", "whole")
    assert timings == [one, two, two, one, one, two]
    assert {name: made.numbers[name] for name in ("half/1", "one/1", "two/1")} == {
        "half/1": 400,
        "one/1": 400,
        "two/1": 300,
    }
    assert len(made.numbers) == 9


def speeds(**pairs):
    return {
        f"{arm}/{pair}": value for arm, values in pairs.items() for pair, value in enumerate(values)
    }


@pytest.mark.parametrize(
    ("gpus", "devices", "verdict"),
    [
        ([], ["cpu", "cpu:2"], "not measured"),
        (["1"], ["cpu", "cpu:2"], "not measured"),
        (["0", "2", "3"], ["gpu:0", "gpu:0,2"], "reproduced"),
    ],
)
def test_two_replicas_on_one_processor_decide_nothing(
    monkeypatch, tmp_path, gpus, devices, verdict
):
    monkeypatch.setattr(replicas, "visible_gpus", lambda _: gpus)
    lab = lab_for(tmp_path, speeds(half=(100, 101, 102), one=(50, 51, 50), two=(110, 112, 111)))
    concluded = replicas.conclude(lab, {})
    assert concluded.findings[0].verdict == verdict
    assert lab.asked[0][1]["devices"] == devices
    assert [row.values["images_per_second"][0] for row in concluded.rows] == [100, 50, 110]
    assert "2.21 times" in concluded.notes[0]
    assert "1.10 times" in concluded.notes[0]
    assert (tmp_path / concluded.figures[0].file).exists()


def test_one_tower_has_no_half_on_each_device(monkeypatch, tmp_path):
    monkeypatch.setattr(replicas, "visible_gpus", lambda _: ["0", "1"])
    assert (
        "one tower"
        in replicas.conclude(lab_for(tmp_path, model={"network": "cifar"}), {}).findings[0].why
    )


def test_the_processor_is_timed_where_there_is_no_gpu(
    monkeypatch, tmp_path, context, dataset, timings
):
    monkeypatch.setattr(gpu, "visible_gpus", lambda _: [])
    lab = lab_for(tmp_path, {"cpu/0": 16.0})
    concluded = gpu.conclude(lab, {})
    assert concluded.findings[0].verdict == "not measured"
    assert "No GPU on this machine" in concluded.findings[0].why
    assert concluded.rows[0].values == {"images_per_second": (16.0,), "seconds_per_step": (2.0,)}
    assert "78 days on `cpu`" in concluded.notes[0]
    (_, spec), = lab.asked  # fmt: skip
    assert (
        spec["settings"]["global_batch_size"],
        spec["networks"]["paper"]["image_size"],
        spec["pairs"],
    ) == (32, 224, 1)
    assert gpu.time_on_each(spec, dataset, context).numbers == {"cpu/0": 100.0}


def test_a_gpu_is_compared_with_the_processor(monkeypatch, tmp_path, context, dataset, timings):
    monkeypatch.setattr(gpu, "visible_gpus", lambda _: ["1"])
    lab = lab_for(
        tmp_path,
        {
            f"{device}/{pair}": speed + pair
            for device, speed in (("cpu", 20.0), ("gpu:1", 2000.0))
            for pair in range(3)
        },
    )
    concluded = gpu.conclude(lab, {})
    assert concluded.findings[0].verdict == "reproduced"
    assert concluded.findings[0].effects[0] == pytest.approx(100)
    (_, spec), = lab.asked  # fmt: skip
    assert spec["settings"]["global_batch_size"] == 128
    assert list(gpu.time_on_each(spec, dataset, context).numbers) == [
        "cpu/0",
        "gpu:1/0",
        "gpu:1/1",
        "cpu/1",
        "cpu/2",
        "gpu:1/2",
    ]


@pytest.mark.parametrize("claim", [features, towers, replicas, gpu])
def test_a_claim_is_named_as_its_file(claim):
    assert claim.__name__.endswith(f".{claim.EXPERIMENT.name}")
    names = [arm.name for arm in claim.EXPERIMENT.arms(Config())]
    assert names == (["baseline"] if claim in (features, towers) else [])
