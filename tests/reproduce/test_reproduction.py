"""Claims from the command to MLflow: small ones on the built-in digits, in a real store."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import api
from pipeline.config.tracking import TrackingConfig
from pipeline.reports.claim_records import Claim, ClaimQuestion
from pipeline.reports.claims_markdown import RESULTS_MARKS
from pipeline.reproduce.verdict import judge_effects
from pipeline.tracking.store import connect_store
from pipeline.workspace.workspace import Workspace

# A network of four layers, and a rate near which the best one lies: few are tried.
TINY = {
    "data.dataset": "digits",
    "model.network": "cifar",
    "model.alexnet.width_multiplier": 0.25,
    "model.alexnet.initialization": "he",
    "train.learning_rate": 0.03,
    "train.epochs": 1,
    "train.global_batch_size": 32,
    "reproduce.images": 96,
    "reproduce.tuning_epochs": 1,
    "reproduce.seeds": 2,
}
CLAIMS = ("pooling", "tencrop")


class Notes:
    """An observer that keeps what was logged and which stages ran."""

    def __init__(self):
        self.ran, self.texts = [], []

    def started(self, stage, why):
        self.ran.append(stage)

    def notified(self, text):
        self.texts.append(text)

    def progressed(self, done, total, unit, detail): ...

    def finished(self, outcome): ...

    def waiting(self, what): ...


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("claims")


SETTINGS = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def output_lines(workdir):
    """The command's own output: in a process of its own, as another test may have started
    TensorFlow otherwise in this one."""
    arguments = [
        sys.executable,
        "-m",
        "pipeline",
        "--json",
        "reproduce",
        *CLAIMS,
        "--workdir",
        str(workdir),
        *SETTINGS,
    ]
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.fixture(scope="module")
def found(workdir, output_lines):
    """The same as a function gives it, which has nothing left to do."""
    return api.reproduce(CLAIMS, workspace=Workspace(workdir, settings=TINY))


def stored(workdir):
    """Return every run of the store by its id."""
    client = connect_store(TrackingConfig(), workdir)
    experiment = client.get_experiment_by_name("alexnet")
    return {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}


def families(workdir):
    """Return the names of the children of each claim's run, by claim."""
    runs = stored(workdir)
    parents = {key: run.data.tags["claim"] for key, run in runs.items() if "claim" in run.data.tags}
    found = {name: set() for name in parents.values()}
    for run in runs.values():
        if (parent := run.data.tags.get("mlflow.parentRunId")) in parents:
            found[parents[parent]].add(run.info.run_name)
    return found


def test_a_claim_is_a_run_with_a_child_for_each_arm_and_seed(workdir, found):
    children = families(workdir)
    assert children["pooling"] >= {
        f"{arm}-seed{seed}" for arm in ("baseline", "no-overlap") for seed in (0, 1)
    }
    assert children["tencrop"] >= {
        "baseline-seed0",
        "baseline-seed1",
        "ten-crops-seed0",
        "ten-crops-seed1",
    }


def test_a_child_says_what_its_arm_changes_and_what_came_out(workdir, found):
    runs = {
        run.info.run_name: run for run in stored(workdir).values() if run.data.tags.get("stage")
    }
    control = runs["no-overlap-seed1"]
    assert control.data.params["arm.model.alexnet.overlapping_pooling"] == "False"
    assert control.data.params["arm.model.seed"] == control.data.params["arm.train.seed"] == "1"
    assert control.data.params["arm.images"] == "96"
    row = next(row for row in found.claims[0].rows if row.arm == "pools of 2 x 2")
    assert control.data.metrics["test_top1_error"] == pytest.approx(
        row.values["test_top1_error"][1]
    )
    assert control.info.status == "FINISHED"


def test_a_claims_run_bears_its_verdict_and_its_page(workdir, found):
    (parent,) = (run for run in stored(workdir).values() if run.data.tags.get("claim") == "pooling")
    assert parent.info.run_name == f"pooling: {found.claims[0].main_finding.verdict}"
    assert parent.data.tags["verdict"] == found.claims[0].main_finding.verdict
    assert parent.data.metrics["ours"] == pytest.approx(found.claims[0].main_finding.ours)
    client = connect_store(TrackingConfig(), workdir)
    files = {file.path for file in client.list_artifacts(parent.info.run_id, "report")}
    assert {"report/claim.json", "report/arms.png"} <= files


def test_an_arm_of_two_claims_is_trained_once_and_the_second_says_where(workdir, found):
    runs = stored(workdir)
    twins = [run for run in runs.values() if run.info.run_name == "baseline-seed0"]
    assert len(twins) == 2
    (copy,) = (run for run in twins if "measured_by" in run.data.tags)
    assert (
        copy.data.metrics["test_top1_error"]
        == next(run for run in twins if run is not copy).data.metrics["test_top1_error"]
    )


def test_the_effect_is_the_difference_of_the_arms_seed_by_seed(found):
    claim = found.claims[0]
    whole, control = (row.values["test_top1_error"] for row in claim.rows)
    assert claim.main_finding.effects == pytest.approx(
        [100 * (one - other) for one, other in zip(control, whole, strict=True)]
    )
    question = {name: getattr(claim.main_finding, name) for name in ClaimQuestion.model_fields}
    assert (
        judge_effects(
            ClaimQuestion(**question),
            claim.main_finding.effects,
            image_std=claim.main_finding.image_std,
        )
        == claim.main_finding
    )


def test_json_ends_with_an_object_for_each_claim(found, output_lines):
    objects = [json.loads(line) for line in output_lines[-2:]]
    assert objects == json.loads(json.dumps(found.as_dicts()))
    assert all(
        {"claim", "published", "ours", "interval", "seeds", "verdict"} <= object_.keys()
        for object_ in objects
    )
    assert (objects[1]["claim"], objects[1]["published"], objects[1]["seeds"]) == (
        "tencrop",
        1.55,
        2,
    )


def test_the_page_shows_every_claim(found):
    page = found.page.read_text(encoding="utf-8")
    assert all(claim.title in page and claim.main_finding.verdict in page for claim in found.claims)
    assert page.count("data:image/png;base64,") >= 2


def test_the_whole_is_a_run_of_its_own_with_the_page(workdir, found):
    (whole,) = (
        run for run in stored(workdir).values() if run.data.tags.get("claims") == "pooling, tencrop"
    )
    assert whole.info.run_name.endswith("of 2 claims reproduced")
    client = connect_store(TrackingConfig(), workdir)
    assert "report/claims.html" in {
        file.path for file in client.list_artifacts(whole.info.run_id, "report")
    }


def test_the_same_command_again_trains_nothing_and_records_nothing(workdir, found):
    before, notes = set(stored(workdir)), Notes()
    again = api.reproduce(CLAIMS, workspace=Workspace(workdir, settings=TINY, observer=notes))
    assert again.claims == found.claims
    assert notes.ran == []
    assert set(stored(workdir)) == before


def test_a_budget_that_is_spent_begins_nothing_and_says_what_is_left(workdir, found):
    notes = Notes()
    settings = {**TINY, "reproduce.max_minutes": 1e-9}
    spent = api.reproduce(
        ("pooling", "lrn", "color"),
        workspace=Workspace(workdir, settings=settings, observer=notes),
    )
    assert [claim.name for claim in spent.claims] == ["pooling"]
    assert spent.unfinished == ("lrn", "color")
    assert [(item["claim"], item["verdict"]) for item in spent.as_dicts()] == [
        ("lrn", "unfinished"),
        ("pooling", found.claims[0].main_finding.verdict),
        ("color", "unfinished"),
    ]
    assert notes.ran == []


def test_a_claim_says_under_which_settings_it_was_measured(found):
    command = found.claims[0].command
    assert command.startswith(
        "alexnet reproduce pooling --profile quick --dataset digits --seeds 2 "
    )
    assert "--set reproduce.images=96" in command
    assert "96 training images, 1 epochs" in found.claims[0].size


def test_claims_under_other_settings_are_kept_apart(workdir, found):
    other = api.reproduce(
        ("color",),
        workspace=Workspace(
            workdir, settings={**TINY, "train.epochs": 2, "reproduce.max_minutes": 1e-9}
        ),
    )
    assert other.folder != found.folder
    assert other.claims == ()


def test_a_claim_whose_arm_is_lost_is_told_and_the_others_go_on(workdir, found, monkeypatch):
    from pipeline.errors import TrainingDivergedError
    from pipeline.reproduce import catalog

    def lost(_run, _measured):
        raise TrainingDivergedError("the loss became nan")

    experiments = tuple(
        dataclasses.replace(item, conclude=lost) if item.name == "tencrop" else item
        for item in catalog.list_experiments()
    )
    monkeypatch.setattr(catalog, "list_experiments", lambda: experiments)
    after = api.reproduce(CLAIMS, workspace=Workspace(workdir, settings=TINY))
    assert [claim.name for claim in after.claims] == ["pooling"]
    assert after.failed == {"tencrop": "the loss became nan"}
    assert after.as_dicts()[-1]["verdict"] == "failed"


@pytest.mark.parametrize(
    "text", [f"{RESULTS_MARKS[0]}\n", f"{RESULTS_MARKS[1]}\n{RESULTS_MARKS[0]}\n"]
)
def test_a_document_with_marks_that_are_no_pair_is_refused_before_anything_is_measured(
    tmp_path, text
):
    (tmp_path / "results.md").write_text(text, encoding="utf-8")
    arguments = [
        sys.executable,
        "-m",
        "pipeline",
        "reproduce",
        "all",
        "--dataset",
        "digits",
        "--workdir",
        "w",
        "--results",
        "results.md",
    ]
    done = subprocess.run(
        arguments,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "not one pair" in done.stderr
    assert not (tmp_path / "w").exists()


def test_results_are_put_between_the_marks_of_a_document_and_can_be_judged_again(
    workdir, found, tmp_path
):
    document = tmp_path / "results.md"
    document.write_text(
        f"# Mine\n\n{RESULTS_MARKS[0]}\nold\n{RESULTS_MARKS[1]}\n\nkept\n", encoding="utf-8"
    )
    api.publish_claims(found, document)
    text = document.read_text(encoding="utf-8")
    assert text.startswith("# Mine\n")
    assert text.endswith("kept\n")
    assert "old" not in text
    records = json.loads((tmp_path / "results" / "claims.json").read_text(encoding="utf-8"))
    assert [Claim.model_validate(record) for record in records["claims"]] == list(found.claims)
    assert all(
        (tmp_path / "results" / f"{claim.name}-{figure.file}").exists()
        for claim in found.claims
        for figure in claim.figures
    )


COMMAND = [sys.executable, "-m", "pipeline", "--json", "reproduce", "pooling", "crops"]


@pytest.mark.slow
def test_killed_again_and_again_it_comes_to_the_same_claims(tmp_path):
    small = ("model.network=small", "model.alexnet.initialization=auto", "train.learning_rate=0.01")
    changed = (*small, "train.epochs=3", "train.checkpoint_steps=1")
    arguments = [*SETTINGS, *(word for setting in changed for word in ("--set", setting))]
    whole = subprocess.run(
        [*COMMAND, "--workdir", tmp_path / "whole", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    kills = 0
    for seconds in (6, 9, 12, 15, 18, 21, 30, 60, 300):
        process = subprocess.Popen(
            [*COMMAND, "--workdir", tmp_path / "killed", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            output, _ = process.communicate(timeout=seconds)
            break
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
            time.sleep(0.2)
    assert kills >= 2
    assert process.returncode == 0
    output_lines = [
        [json.loads(line) for line in text.splitlines()[-2:]]
        for text in (whole.stdout, output.decode())
    ]
    for one, other in zip(*output_lines, strict=True):
        assert {name: one[name] for name in one if name != "seconds"} == {
            name: other[name] for name in other if name != "seconds"
        }
