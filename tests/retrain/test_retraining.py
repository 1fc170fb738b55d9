"""What became of a scheduled run, as it is written down and found again."""

import json
from pathlib import Path

import pytest

from pipeline.engine.stage import Outcome
from pipeline.errors import ConfigError
from pipeline.retrain.retraining import (
    Retraining,
    locate_retraining,
    read_retraining,
    recover_retraining,
    write_retraining,
)
from pipeline.retrain.stage import _keep_if_tried
from pipeline.retrain.triggers import RetrainVerdict, TriggerResult
from pipeline.tracking.registry import SETTINGS_TAG, Registry, Version
from tests.retraining_records import make_decision, make_review

SLOT = "main/20261127T030000Z"


def of(review, decision=None):
    outcomes = {"review": Outcome("review", "ran", 1.0, Path("w/stages/review-1"), "k", review)}
    if decision:
        outcomes["promote"] = Outcome(
            "promote", "ran", 1.0, Path("w/stages/promote-1"), "k", decision
        )
    return Retraining.from_outcomes(
        SLOT, outcomes, name="alexnet", page=Path("page.html"), seconds=2.0, run_id="r"
    )


def test_a_slot_without_a_reason_is_skipped_and_says_why():
    result = of(make_review(retrain=False, brief="0 changed", triggers=()))
    assert (result.outcome, result.why, result.champion, result.version) == (
        "skipped",
        "No reason to train again: 0 changed.",
        "2",
        "",
    )
    assert result.stages == {"review": "review-1"}


def test_a_result_is_read_as_it_was_written(tmp_path):
    folder = locate_retraining(tmp_path, SLOT)
    assert folder == tmp_path / "retrainings" / "main" / "20261127T030000Z"
    assert read_retraining(folder) is None
    result = of(make_review(), make_decision())
    write_retraining(result, folder)
    assert read_retraining(folder) == result
    told = json.loads((folder / "result.json").read_text())
    assert (told["schedule"], told["scheduled_run"], told["outcome"], told["version"]) == (
        "main",
        SLOT,
        "promoted",
        "3",
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"scheduled_run": "x"}',
        '{"scheduled_run": "x", "outcome": "promoted", "why": "", "triggers": [], "more": 1}',
    ],
)
def test_a_result_that_cannot_be_read_is_none(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    assert read_retraining(tmp_path) is None


@pytest.mark.parametrize(
    "scheduled_run",
    [
        "",
        "main",
        "../x/20261127T030000Z",
        "main/../../x",
        "main/2026",
        "a b/20261127T030000Z",
        "/20261127T030000Z",
    ],
)
def test_a_slot_cannot_name_another_folder(tmp_path, scheduled_run):
    with pytest.raises(ConfigError, match="is not the key of a scheduled run"):
        locate_retraining(tmp_path, scheduled_run)


class Versions(Registry):
    """A registry that holds what a test says."""

    def list_versions(self):
        return [
            Version("alexnet", str(9 - place), "", "", "", 0.0, aliases, tags)
            for place, (aliases, tags) in enumerate(self.config)
        ]


def registry_of(*versions):
    return Versions("alexnet", versions, Path())


@pytest.mark.parametrize(
    ("aliases", "tags", "outcome"),
    [
        (("champion",), {"gate": "passed"}, "promoted"),
        (("previous",), {"gate": "passed"}, "promoted"),
        ((), {"gate": "passed", "withdrawn": "yes"}, "promoted"),
        (
            (),
            {"gate": "passed"},
            None,
        ),  # killed before the alias moved: the decision is not made to its end
        (("candidate",), {}, None),  # killed before the word was written
        (("candidate",), {"gate": "refused"}, "refused"),
        (("candidate",), {"gate": "waiting"}, "waiting"),
    ],
)
def test_a_decision_that_the_registry_knows_is_not_made_again(aliases, tags, outcome):
    known = {"scheduled_run": SLOT, "decision_reason": "because", "judged_against": "none"}
    found = recover_retraining(
        registry_of(
            (("x",), {"scheduled_run": "main/20200101T000000Z", "gate": "refused"}),
            (aliases, known | tags),
        ),
        SLOT,
    )
    assert (found and found.outcome) == outcome
    if found:
        assert (found.why, found.version, found.champion) == ("because", "8", "")


FIRED = RetrainVerdict(
    (
        TriggerResult(
            "new_data", fired=True, numbers={"images": 30.0}, text="30 changed.", brief="30"
        ),
    )
)
TRIED = {"dataset_digest": "d", SETTINGS_TAG: "t"}


@pytest.mark.parametrize(
    ("tags", "word"),
    [
        (TRIED | {"gate": "refused"}, "was refused"),
        (TRIED | {"gate": "waiting"}, "waits for approval"),
        (TRIED | {"gate": "passed", "withdrawn": "yes"}, "was withdrawn"),
    ],
)
def test_what_was_tried_is_not_tried_again(tags, word):
    found = _keep_if_tried(
        FIRED, registry_of(((), tags)), Version("alexnet", "1", "", "", "", 0.0), "d", "t"
    )
    assert not found.retrain
    assert f"version 9 {word}" in found.text
    assert found.numbers["new_data.images"] == 30.0


@pytest.mark.parametrize(
    "tags",
    [
        TRIED | {"gate": "passed"},
        TRIED | {"gate": "refused", "dataset_digest": "other"},
        TRIED | {"gate": "refused", SETTINGS_TAG: "other"},
        {"gate": "refused"},
    ],
)
def test_other_images_or_settings_are_another_try(tags):
    assert (
        _keep_if_tried(
            FIRED, registry_of(((), tags)), Version("alexnet", "1", "", "", "", 0.0), "d", "t"
        )
        is FIRED
    )
