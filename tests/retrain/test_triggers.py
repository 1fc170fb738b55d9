import hashlib
import math
import re
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from pipeline.config.retrain import RetrainConfig
from pipeline.retrain.drift import Drift, DriftTest
from pipeline.retrain.signals import (
    DatasetChanges,
    ErrorCount,
    ImageIndex,
    Signals,
    compare_datasets,
)
from pipeline.retrain.triggers import compute_degradation_p_value, decide_retraining

RULES = RetrainConfig()
EVERY = ("always", "new_data", "drift", "degraded_champion", "age")
SAME = DatasetChanges(before=(600, 400), new=(0, 0), removed=(0, 0), relabeled=(0, 0))
CALM = DriftTest("contrast", 0.05, 0.09, 0.31, drifted=False, note="median 0.21, was 0.2")
MOVED = DriftTest("brightness", 0.21, 0.09, 0.001, drifted=True, note="median 0.52, was 0.47")
KNOWN = Signals(
    has_champion=True,
    changes=SAME,
    drift=Drift((CALM, replace(CALM, name="embeddings", p_value=0.6, note="")), 400, 1000, 0.05),
    new_errors=ErrorCount(4, 100),
    test_errors=ErrorCount(40, 1000),
    champion_age_days=12.34,
)


def reason(name, signals, **settings):
    (only,) = decide_retraining(signals, RetrainConfig(triggers=(name,), **settings)).results
    return only


def index(images):
    """An index of (content, label) pairs."""
    return ImageIndex(
        np.array([hashlib.sha256(bytes([content])).digest() for content, _ in images]),
        np.array([label for _, label in images]),
    )


# -- what changed ----------------------------------------------------------------------------------


def test_images_are_new_removed_or_labelled_otherwise():
    old = index([(1, 0), (2, 0), (3, 1), (4, 1), (5, 1)])
    new = index([(1, 0), (2, 1), (3, 1), (6, 0), (7, 2), (8, 2)])
    assert compare_datasets(old, new, 3) == DatasetChanges(
        before=(2, 3, 0), new=(1, 0, 2), removed=(0, 2, 0), relabeled=(0, 1, 0)
    )


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        (
            [(1, 0), (1, 0)],
            [(1, 0)],
            DatasetChanges((1, 0), (0, 0), (0, 0), (0, 0)),
        ),  # copies under one label are one image
        (
            [(1, 0), (1, 1)],
            [(1, 0)],
            DatasetChanges((1, 1), (0, 0), (0, 1), (0, 0)),
        ),  # of two labels one is gone
        (
            [(1, 0)],
            [(1, 0), (1, 1)],
            DatasetChanges((1, 0), (0, 0), (0, 0), (0, 1)),
        ),  # a second label came
        (
            [(1, 0)],
            [(2, 0)],
            DatasetChanges((1, 0), (1, 0), (1, 0), (0, 0)),
        ),  # other bytes are another image
    ],
)
def test_copies_and_several_labels(old, new, changes):
    assert compare_datasets(index(old), index(new), 2) == changes


def counted(old, new, classes):
    """The same by dictionaries of sets."""
    were, are = defaultdict(set), defaultdict(set)
    for side, images in ((were, old), (are, new)):
        for content, label in images:
            side[content].add(label)
    before, fresh, removed, relabeled = ([0] * classes for _ in range(4))
    for content in were | are:
        for label in were[content]:
            before[label] += 1
            removed[label] += label not in are[content] and not are[content] - were[content]
        for label in are[content] - were[content]:
            (relabeled if were[content] else fresh)[label] += 1
    return DatasetChanges(*map(tuple, (before, fresh, removed, relabeled)))


def test_counts_are_those_of_sets():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        old, new = (
            [(int(content), int(label)) for content, label in rng.integers(0, (20, 4), (30, 2))]
            for _ in range(2)
        )
        assert compare_datasets(index(old), index(new), 4) == counted(old, new, 4)


def test_contents_come_as_bytes_or_as_an_array_of_any_kind():
    digests = [bytes(31) + b"\1", b"\1" + bytes(31), b"\1\2" + bytes(30), bytes(32)]
    changes = [
        compare_datasets(
            ImageIndex(kind(digests[:3]), np.arange(3)),
            ImageIndex(kind(digests[1:]), np.arange(1, 4)),
            4,
        )
        for kind in (np.array, list, lambda some: np.array(some, object))
    ]
    assert changes == [DatasetChanges((1, 1, 1, 0), (0, 0, 0, 1), (1, 0, 0, 0), (0, 0, 0, 0))] * 3


def test_an_empty_side_is_no_trouble():
    nothing, some = ImageIndex(np.zeros(0, "S32"), np.zeros(0, int)), index([(1, 0), (2, 1)])
    assert compare_datasets(nothing, some, 2) == DatasetChanges((0, 0), (1, 1), (0, 0), (0, 0))
    assert compare_datasets(some, nothing, 2) == DatasetChanges((1, 1), (0, 0), (1, 1), (0, 0))
    assert compare_datasets(nothing, some, 2).fraction == 2


@pytest.mark.slow
def test_a_million_images_take_seconds():
    rng = np.random.default_rng(0)
    contents, labels = (
        np.frombuffer(rng.bytes(32 * 1_100_000), "S32"),
        rng.integers(0, 1000, 1_100_000),
    )
    moved = np.where(np.arange(1_100_000) % 1000 == 500, (labels + 1) % 1000, labels)
    changes = compare_datasets(
        ImageIndex(contents[:1_000_000], labels[:1_000_000]),
        ImageIndex(contents[100_000:], moved[100_000:]),
        1000,
    )
    assert (
        sum(changes.before),
        sum(changes.new),
        sum(changes.removed),
        sum(changes.relabeled),
    ) == (1_000_000, 100_000, 100_000, 900)
    assert changes.images == 100_900


# -- the triggers ----------------------------------------------------------------------------------


def test_without_a_champion_a_slot_retrains_whatever_else_is_known():
    for signals in (Signals(has_champion=False), replace(KNOWN, has_champion=False)):
        verdict = decide_retraining(signals, RULES)
        assert verdict.retrain
        assert verdict.text == "Retrain. There is no champion yet."


def test_a_calm_slot_keeps_the_champion_and_says_why():
    verdict = decide_retraining(KNOWN, RULES)
    assert not verdict.retrain
    assert [reason.name for reason in verdict.results] == list(RULES.triggers)
    assert verdict.text.startswith(
        "Keep the champion. Since the champion's 1,000 images, 0 changed"
    )
    assert all(reason.text in verdict.text for reason in verdict.results)


def test_what_is_not_known_fires_nothing_and_is_said():
    verdict = decide_retraining(Signals(has_champion=True), RULES)
    assert not verdict.retrain
    assert all(
        re.search(" not | unknown", reason.text) and not reason.numbers
        for reason in verdict.results
    )


def test_one_trigger_is_enough_and_the_text_names_those_that_fired():
    verdict = decide_retraining(replace(KNOWN, champion_age_days=90.5), RULES)
    assert verdict.retrain
    assert verdict.text == "Retrain. The champion is 90.5 days old; more than 90 is too old."
    assert verdict.numbers["age.fired"] == 1
    assert verdict.numbers["drift.fired"] == 0


def test_only_the_triggers_of_the_settings_are_asked():
    aged = replace(KNOWN, champion_age_days=1000.0)
    assert not decide_retraining(aged, RetrainConfig(triggers=("drift", "new_data"))).retrain
    assert reason("always", KNOWN).fired
    assert reason("always", Signals(has_champion=True)).text == "Every scheduled run retrains."


def test_every_number_is_one_that_mlflow_can_keep():
    for signals in (
        KNOWN,
        replace(
            KNOWN, drift=Drift((MOVED, CALM), 400, 1000, 0.05), new_errors=ErrorCount(100, 100)
        ),
    ):
        numbers = decide_retraining(signals, RetrainConfig(triggers=EVERY)).numbers
        assert all(type(value) is float and math.isfinite(value) for value in numbers.values())
        assert {name.partition(".")[0] for name in numbers} == set(EVERY)
        assert numbers["drift.contrast.threshold"] == 0.09
        assert numbers["new_data.before"] == 1000


@pytest.mark.parametrize(
    ("changes", "settings", "fires"),
    [
        ({"new": (49, 0)}, {}, False),
        ({"new": (49, 1)}, {}, True),  # 5 % of 1,000
        ({"removed": (50, 0)}, {}, True),
        ({"relabeled": (0, 50)}, {}, True),
        ({"new": (30, 0), "removed": (30, 0)}, {}, False),  # replaced, not twice as many
        ({"new": (30, 0), "removed": (10, 0), "relabeled": (0, 20)}, {}, True),
        ({"new": (10, 0)}, {"min_new_images": 10}, True),
        ({"new": (9, 0)}, {"min_new_images": 10}, False),
        ({"new": (900, 0)}, {"min_new_images": 1000, "min_new_fraction": 0}, False),
        ({}, {"min_new_images": 1, "min_new_fraction": 0.001}, False),
    ],
)
def test_new_data_fires_from_a_number_or_from_a_share_on(changes, settings, fires):
    assert (
        reason("new_data", replace(KNOWN, changes=replace(SAME, **changes)), **settings).fired
        == fires
    )


def test_new_data_says_what_changed():
    changes = DatasetChanges(before=(1000, 0), new=(40, 12), removed=(3, 0), relabeled=(2, 0))
    found = reason("new_data", replace(KNOWN, changes=changes), min_new_images=1500)
    assert (
        found.text == "Since the champion's 1,000 images, 54 changed, 5.40 %: 52 new, 3 removed, 2"
        " relabeled; 1,500 or 5.00 % is enough. 12 are of classes that the champion does not"
        " know."
    )
    assert found.numbers["of_unknown_classes"] == 12
    assert found.numbers["fraction"] == pytest.approx(0.054)


def test_drift_names_what_drifted_and_else_what_was_nearest():
    found = reason("drift", replace(KNOWN, drift=Drift((CALM, MOVED), 400, 1000, 0.05)))
    assert found.fired
    assert (
        found.text == "Drift, comparing 400 new images with 1,000 that the champion was made for (2"
        " tests, family-wise false-alarm rate 5.00 %): brightness at distance 0.21"
        " (p = 0.001; median 0.52, was 0.47)."
    )
    calm = reason("drift", KNOWN)
    assert not calm.fired
    assert calm.text.endswith(
        "; the smallest p-value is that of contrast at distance 0.05 (p = 0.310; median 0.21, was"
        " 0.2), threshold 0.09."
    )
    assert calm.numbers["images"] == 400


def test_a_comparison_of_nothing_is_no_evidence():
    assert "not measured" in reason("drift", replace(KNOWN, drift=Drift((), 400, 1000, 0.05))).text


@pytest.mark.parametrize(
    ("new", "test", "fires"),
    [
        (ErrorCount(4, 100), ErrorCount(40, 1000), False),  # the same error
        (ErrorCount(12, 100), ErrorCount(40, 1000), True),
        (ErrorCount(2, 20), ErrorCount(40, 1000), False),  # as high, and likely by chance
        (
            ErrorCount(4600, 100_000),
            ErrorCount(4000, 100_000),
            False,
        ),  # certain, and within the margin
        (ErrorCount(6000, 100_000), ErrorCount(4000, 100_000), True),
        (ErrorCount(0, 1000), ErrorCount(400, 1000), False),  # better
        (
            ErrorCount(3, 3),
            ErrorCount(0, 1000),
            True,
        ),  # three of three, of a model that is never wrong
    ],
)
def test_a_fall_is_certain_and_larger_than_the_margin(new, test, fires):
    assert (
        reason("degraded_champion", replace(KNOWN, new_errors=new, test_errors=test)).fired == fires
    )


def test_a_fall_says_both_errors():
    found = reason("degraded_champion", replace(KNOWN, new_errors=ErrorCount(12, 100)))
    assert (
        found.text
        == "The champion is wrong on 12 of 100 newly labeled images, 12.00 %, and on 40 of 1,000"
        " test images, 4.00 %: +8.00 points, p = 0.0015; degraded is at least 2.00"
        " points with p at most 0.05."
    )
    assert found.numbers["increase"] == pytest.approx(0.08)


@pytest.mark.parametrize(
    ("new", "test"),
    [
        (None, ErrorCount(1, 9)),
        (ErrorCount(1, 9), None),
        (ErrorCount(0, 0), ErrorCount(1, 9)),
        (ErrorCount(1, 9), ErrorCount(0, 0)),
    ],
)
def test_no_answers_are_no_evidence_of_a_fall(new, test):
    found = reason("degraded_champion", replace(KNOWN, new_errors=new, test_errors=test))
    assert not found.fired
    assert "was not scored" in found.text


def test_the_chance_of_a_fall_is_that_of_fishers_test():
    for wrong, images, test_wrong, test_images in [
        (12, 100, 40, 1000),
        (0, 5, 0, 7),
        (5, 5, 0, 7),
        (3, 40, 300, 900),
        (1, 1, 1, 1),
    ]:
        table = [[wrong, images - wrong], [test_wrong, test_images - test_wrong]]
        expected = stats.fisher_exact(table, alternative="greater").pvalue
        assert compute_degradation_p_value(
            ErrorCount(wrong, images), ErrorCount(test_wrong, test_images)
        ) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("error", "images", "test_images"), [(0.02, 50, 385), (0.1, 200, 385), (0.4, 100, 385)]
)
def test_without_a_fall_5_slots_of_100_see_one_at_most(error, images, test_images):
    """Summed over every count there can be."""
    wrong, test_wrong = np.arange(images + 1)[:, None], np.arange(test_images + 1)[None, :]
    chances = stats.hypergeom.sf(wrong - 1, images + test_images, wrong + test_wrong, images)
    fires = (chances <= RULES.significance_level) & (
        wrong / images - test_wrong / test_images >= RULES.degradation_margin
    )
    weights = stats.binom.pmf(wrong, images, error) * stats.binom.pmf(
        test_wrong, test_images, error
    )
    assert 0.005 < weights[fires].sum() <= RULES.significance_level


def test_a_champion_of_an_age_is_kept_until_it_is_older():
    assert not reason("age", replace(KNOWN, champion_age_days=90.0)).fired
    assert reason("age", replace(KNOWN, champion_age_days=2.0), max_age_days=1.5).fired
    assert reason("age", KNOWN).numbers == {"days": 12.34}


# -- the settings ----------------------------------------------------------------------------------


def test_triggers_come_as_words():
    assert RetrainConfig.model_validate({"triggers": "drift, age"}).triggers == ("drift", "age")
    assert RetrainConfig.model_validate({"triggers": ["always"]}).triggers == ("always",)


@pytest.mark.parametrize(
    "settings",
    [
        {"triggers": ""},
        {"triggers": "moon"},
        {"min_new_images": 0, "min_new_fraction": 0},
        {"level": 0.001},  # fewer than the draws can show
        {"degradation_margin": 1},
        {"max_age_days": 0},
    ],
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(ValidationError):
        RetrainConfig.model_validate(settings)


def test_no_new_data_needs_no_limit():
    assert RetrainConfig(triggers=("age",), min_new_images=0, min_new_fraction=0).triggers == (
        "age",
    )
