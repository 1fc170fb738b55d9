"""The parts of an experiment that are plain functions: which rates are tried, what an arm changes,
when a goal is reached."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from pipeline.api import reproduction_settings
from pipeline.config.recipes import flatten
from pipeline.errors import ConfigError
from pipeline.reproduce.arms import baseline, next_step, rate_at, some
from pipeline.reproduce.catalog import NAMES, experiments
from pipeline.reproduce.claims import color, depth, dropout, gradients, lrn, pooling, relu, size
from pipeline.reproduce.claims.ablation import costs, crossing, image_deviation, widens
from pipeline.reproduce.lab import identity_of, planned
from pipeline.reproduce.measurement import Measurement
from pipeline.reproduce.verdict import Question

CONFIG = reproduction_settings().config
QUESTION = Question(what="an effect", unit="points", published=None, source="nowhere", least=0.0)


def searched(score) -> list[int]:
    """Return the rates, in steps, that the search tries for a function of the step."""
    scores: dict[int, float] = {}
    while (step := next_step(scores)) is not None and len(scores) < 12:
        scores[step] = score(step)
    return list(scores)


@pytest.mark.parametrize("best", [-4, -1, 0, 1, 3])
def test_the_search_for_a_rate_ends_with_the_best_between_two_worse_ones(best):
    tried = searched(lambda step: abs(step - best))
    assert {best - 1, best, best + 1} <= set(tried)
    assert len(tried) <= 3 + abs(best)


def test_rates_that_diverge_are_worse_than_any_other_and_lower_ones_are_tried():
    assert searched(lambda step: math.inf if step > -3 else 1.0)[-1] < -3


def test_rates_are_half_a_decade_apart():
    spec = {"train": {"learning_rate": 0.01}}
    assert [rate_at(spec, step) for step in (-2, -1, 0, 1, 2)] == [0.001, 0.0032, 0.01, 0.032, 0.1]


def test_a_goal_is_reached_between_epochs_by_a_straight_line():
    curve = [{"error": value} for value in (0.5, 0.3, 0.1)]
    assert crossing(curve, "error", 0.25) == pytest.approx(2.25)
    assert crossing(curve, "error", 0.3) == pytest.approx(2.0)
    assert crossing(curve, "error", 0.9) == 1.0
    assert crossing(curve, "error", 0.05) is None


def test_the_images_part_of_the_chance_is_that_of_a_mean_of_differences():
    rng = np.random.default_rng(0)
    first, second = ([rng.random(500) < share for _ in range(3)] for share in (0.3, 0.25))
    differences = np.mean(first, axis=0) - np.mean(second, axis=0)
    assert image_deviation(first, second) == pytest.approx(
        100 * differences.std(ddof=1) / math.sqrt(500)
    )


@pytest.mark.parametrize(
    ("module", "changed"),
    [
        (dropout, {"model.dropout"}),
        (lrn, {"model.alexnet.normalization"}),
        (pooling, {"model.alexnet.overlapping_pooling"}),
        (color, {"train.color_noise"}),
        (depth, {"model.alexnet.remove_layer"}),
    ],
)
def test_an_ablation_changes_one_thing_and_has_the_same_images_in_the_same_order(module, changed):
    whole, control = module.arms(CONFIG)
    assert whole == baseline(CONFIG)
    for seed in (0, 1):
        one, other = whole.spec(CONFIG, seed), control.spec(CONFIG, seed)
        assert different(one, other) == changed
        assert one["train"]["seed"] == other["train"]["seed"] == seed


def different(one, other) -> set[str]:
    flat, others = (
        flatten({part: spec[part] for part in ("model", "train")}) for spec in (one, other)
    )
    sections = {name for name in flat if flat[name] != others[name]}
    return sections | {name for name in ("images", "depth", "goal") if one[name] != other[name]}


def test_the_race_differs_in_the_activation_alone_and_nothing_regularizes():
    first, *others = (arm.spec(CONFIG, 0) for arm in relu.arms(CONFIG))
    assert all(different(first, other) == {"model.alexnet.activation"} for other in others)
    train = first["train"]
    assert (
        train["weight_decay"],
        train["crop"],
        train["flip"],
        train["mixup"],
        train["label_smoothing"],
    ) == (0, "center", False, 0, 0)
    assert first["goal"] == 0.25


def made(folder, wrong, train_error=0.1):
    """Return a measurement of a training that got these test images wrong."""
    folder.mkdir(parents=True)
    np.save(folder / Measurement.WRONG_FILE, wrong)
    numbers = {
        "test_top1_error": float(wrong.mean()),
        "train_top1_error": train_error,
        "images": 1000.0,
        "learning_rate": 0.01,
    }
    return Measurement(directory=folder, name="training", numbers=numbers)


def test_arms_that_are_one_network_are_not_measured_instead_of_refuted(tmp_path):
    wrong = np.arange(100) < 30
    arms = [[made(tmp_path / arm / str(seed), wrong) for seed in range(3)] for arm in "ab"]
    assert costs(QUESTION, *arms).verdict == "not measured"


def test_a_gap_is_test_error_less_training_error_and_knows_the_chance_of_both_sets_of_images(
    tmp_path,
):
    wrong = np.arange(100) < 30
    wide = [made(tmp_path / "wide" / str(seed), wrong, 0.1 + seed / 100) for seed in range(3)]
    narrow = [made(tmp_path / "narrow" / str(seed), wrong, 0.2) for seed in range(3)]
    found = widens(QUESTION, wide, narrow)
    assert found.effects == pytest.approx([10.0, 9.0, 8.0])
    assert found.image_deviation == pytest.approx(
        100 * math.sqrt((0.11 * 0.89 + 0.2 * 0.8) / 1000)
    )  # the test errors are the same


def test_the_race_gives_a_bound_where_one_arm_does_not_arrive():
    arrived, late = [(10.0, True)] * 3, [(70.0, False), (65.0, True), (72.0, False)]
    assert relu.ratio(
        QUESTION.model_copy(update={"unit": "times", "least": 2.0}), late, arrived
    ).at_least
    refuted = relu.ratio(
        QUESTION.model_copy(update={"unit": "times", "least": 2.0, "published": 6.0}), arrived, late
    )
    assert (refuted.at_most, refuted.verdict) == (True, "not reproduced")
    assert relu.ratio(QUESTION, late, late).verdict == "not measured"


def test_settings_that_leave_nothing_to_change_are_refused():
    config = reproduction_settings(
        settings={"model.network": "cifar", "model.image_size": 32}
    ).config
    with pytest.raises(
        ConfigError,
        match=r"The arm no-conv4 cannot be made of these settings: Network cifar has no layer conv4",
    ):
        depth.arms(config)[1].spec(config, 0)


@pytest.mark.parametrize("setting", [{"model.classes": 5}, {"evaluate.model": "x.keras"}])
def test_settings_that_are_not_of_a_training_are_refused(setting):
    with pytest.raises(ConfigError):
        reproduction_settings(settings=setting)


def test_a_claim_says_how_large_its_arms_are():
    assert (
        lrn.EXPERIMENT.size(CONFIG)
        == "small at width 0.5, 28 x 28 pixels, 10,000 training images, 10 epochs"
    )
    assert "4, 8, 12 and 16 layers" in gradients.EXPERIMENT.size(CONFIG)


def test_settings_that_change_nothing_are_no_reason_to_train_again():
    spec = baseline(CONFIG).spec(CONFIG, 0)
    other = {**spec, "train": {**spec["train"], "checkpoint_seconds": 5.0, "watchdog_seconds": 1.0}}
    assert identity_of(spec) == identity_of(other)
    assert identity_of(spec) != identity_of({**spec, "train": {**spec["train"], "epochs": 3}})


def test_the_race_is_not_run_on_images_that_are_no_cifar10():
    assert relu.arms(reproduction_settings("paper").config) == ()


def test_plain_networks_are_of_four_depths_and_three_activations():
    specs = [arm.spec(CONFIG, 0) for arm in gradients.arms(CONFIG)]
    assert {(spec["model"]["alexnet"]["activation"], spec["depth"]) for spec in specs} == {
        (activation, deep) for activation in ("relu", "tanh", "sigmoid") for deep in (4, 8, 12, 16)
    }


def test_every_size_has_as_many_steps():
    steps = {arm.spec(CONFIG, 0)["train"]["epochs"] * arm.images for arm in size.arms(CONFIG)}
    assert steps == {CONFIG.train.epochs * CONFIG.reproduce.images}


def test_rates_are_chosen_for_each_seed_by_one_that_is_not_measured():
    specs = [baseline(CONFIG).tuning_spec(CONFIG, seed) for seed in range(3)]
    seeds = [spec["train"]["seed"] for spec in specs]
    assert seeds == [spec["model"]["seed"] for spec in specs]
    assert len(set(seeds)) == 3
    assert min(seeds) >= 100  # the most that --seeds takes


def test_the_plan_counts_what_claims_share_once():
    names = [name for _, name, _ in planned(experiments(["all"]), CONFIG)]
    assert len(names) == len(set(names))
    assert names.count("baseline-seed0") == 1


def test_claims_come_in_one_order_whatever_the_order_they_are_named_in():
    assert [item.name for item in experiments(["size", "relu"])] == ["relu", "size"]
    assert [item.name for item in experiments(["all"])] == list(NAMES)
    with pytest.raises(
        ConfigError, match=r"There is no claim lnr\. Expected all, or some of relu, "
    ):
        experiments(["lnr"])


def test_some_images_are_the_first_ones_and_no_more_than_there_are():
    from types import SimpleNamespace

    from pipeline.data.loader import LoadedSplit

    dataset = SimpleNamespace(
        reads={"train": "train[:90%]"}, model_copy=lambda update: SimpleNamespace(**update)
    )
    images = LoadedSplit(
        dataset, "train", np.arange(10), tuple("abcdefghij"), np.zeros((10, 2, 2, 3), np.uint8)
    )
    few = some(images, 4)
    assert (len(few), few.keys, few.pixels.shape, few.dataset.reads) == (
        4,
        tuple("abcd"),
        (4, 2, 2, 3),
        {"train": "train[:4]"},
    )
    assert some(images, 0) is images
    assert some(images, 10) is images
    assert some(dataclasses.replace(images, pixels=None), 4).pixels is None
