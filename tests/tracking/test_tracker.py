"""Runs in a real MLflow store: what arrives."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.config.resolution import resolve
from pipeline.config.tracking import TrackingConfig
from pipeline.tracking.journal import list_undelivered
from pipeline.tracking.known_runs import read_known_runs
from pipeline.tracking.store import get_run_url
from pipeline.tracking.tracker import MlflowTracker
from tests.tracking.recording import RESOLVED, client, record_a_run, runs


def test_an_attempt_that_is_carried_on_goes_on_in_its_run(workdir):
    """Killed after two epochs, of which the first is told again; a setting that changes nothing was
    changed meanwhile."""
    first = MlflowTracker(workdir, TrackingConfig())
    run = first.start_stage_run("train", "train", RESOLVED)
    for step in (1, 2):
        run.log_metrics({"train_loss": 1 / step}, step=step, at=1000.0 + step)
    run.close("KILLED")
    first.close("KILLED")
    again = MlflowTracker(workdir, TrackingConfig())
    settings = resolve(
        overrides={"train.epochs": 3, "train.checkpoint_seconds": 77}, environment={}
    )
    run = again.start_stage_run("train", "train", settings, run.key)
    for step in (1, 2, 3):
        run.log_metrics({"train_loss": 1 / step}, step=step, at=1000.0 + step)
    run.close("FINISHED")
    again.close("FINISHED")
    assert again.problem is None
    store = client(workdir)
    found = store.search_runs([store.get_experiment_by_name("alexnet").experiment_id])
    (train,) = (run for run in found if run.info.run_name == "train")
    parents = {
        read_known_runs(workdir)[tracker.pipeline_key]["run_id"]: tracker
        for tracker in (first, again)
    }
    assert parents[train.data.tags["mlflow.parentRunId"]] is again
    assert train.info.status == "FINISHED"
    assert train.data.params["checkpoint_seconds"] == "10.0"
    points = store.get_metric_history(train.info.run_id, "train_loss")
    assert [(point.step, point.timestamp) for point in points] == [
        (1, 1001000),
        (2, 1002000),
        (3, 1003000),
    ]


def test_a_run_arrives_whole(workdir):
    tracker = record_a_run(workdir)
    found = runs(workdir)
    parent, stage = found["digits small"], found["train"]
    assert stage.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (parent.info.status, stage.info.status) == ("FINISHED", "FINISHED")
    assert stage.data.params["epochs"] == "3"
    assert parent.data.params["train.epochs"] == "3"
    assert len(parent.data.params) == len(RESOLVED.flat())
    points = client(workdir).get_metric_history(stage.info.run_id, "train_loss")
    assert [(point.step, point.value) for point in points] == [
        (1, 1.0),
        (2, 0.5),
        (3, pytest.approx(1 / 3)),
    ]
    assert parent.data.metrics["test_top1_error"] == stage.data.metrics["test_top1_error"] == 0.25
    assert parent.data.tags["devices"] == "CPU:0"
    assert parent.data.tags["skipped.ingest"] == "earlier-run-ingest"
    assert parent.data.tags["package.tensorflow"].startswith("2.")
    assert not (Path.cwd() / "mlruns" / parent.info.experiment_id).exists()
    (used,) = stage.inputs.dataset_inputs
    assert len(parent.inputs.dataset_inputs) == 1
    assert (used.dataset.name, used.dataset.digest) == ("digits", ("ab" * 32)[:36])
    assert [file.path for file in client(workdir).list_artifacts(stage.info.run_id, "report")] == [
        "report/page.html"
    ]
    assert tracker.problem is None
    assert read_known_runs(workdir)[tracker.pipeline_key]["run_id"] == parent.info.run_id
    assert get_run_url(TrackingConfig(), "1", "abc").endswith(
        "/experiments/1/runs/abc?workflowType=machine_learning"
    )
    assert list_undelivered(workdir) == []


def test_the_run_of_a_model_from_elsewhere_bears_its_name_and_no_settings_of_a_training(workdir):
    tracker = MlflowTracker(workdir, TrackingConfig())
    run = tracker.start_stage_run(
        "evaluate_model", "evaluate", resolve("digits", {"evaluate.model": "/far/flowers.keras"})
    )
    run.close("FINISHED")
    tracker.close("FINISHED")
    parent = runs(workdir)["digits flowers.keras"]
    assert parent.data.params["evaluate.model"] == "/far/flowers.keras"
    assert not [name for name in parent.data.params if name.startswith(("train.", "model."))]


def test_nothing_executed_opens_no_run(workdir):
    tracker = MlflowTracker(workdir, TrackingConfig())
    tracker.link_skipped_stage("ingest", "x")
    tracker.close("FINISHED")
    assert runs(workdir) == {}
    assert (tracker.problem, tracker.pipeline_key, read_known_runs(workdir)) == (None, "", {})


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_a_bad_end_is_recorded_as_such(workdir, status):
    tracker = MlflowTracker(workdir, TrackingConfig())
    run = tracker.start_stage_run("train", "train", RESOLVED)
    run.close(status, "DatasetError: it is gone")
    tracker.close(status)
    found = runs(workdir)
    assert {found[name].info.status for name in ("train", "digits small")} == {status}
    assert found["train"].data.tags["error"] == "DatasetError: it is gone"


def test_a_dead_server_is_given_up_quickly(tmp_path):
    started = time.monotonic()
    tracker = record_a_run(tmp_path, TrackingConfig(uri="http://127.0.0.1:9", experiment="none"))
    assert tracker.problem
    assert time.monotonic() - started < 30


FIRST_USE = """
import sys
from pathlib import Path
from pipeline.tracking import tracker as tracker_module
from pipeline.tracking.tracker import MlflowTracker
from pipeline.config.tracking import TrackingConfig
from pipeline.config.resolution import resolve
# Only a process that holds the work directory delivers leftovers.
tracker_module.deliver_leftovers = lambda *_, **__: (0, {})
tracker = MlflowTracker(Path(sys.argv[1]), TrackingConfig())
run = tracker.start_stage_run("build", "model", resolve(environment={}))
for step in range(10):
    run.log_metrics({"value": step}, step=step)
run.close("FINISHED")
tracker.close("FINISHED")
sys.exit(tracker.problem)
"""


@pytest.mark.slow
def test_first_use_by_eight_processes_at_once(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST_USE, tmp_path], stderr=subprocess.PIPE, text=True
        )
        for _ in range(8)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, errors
    store = client(tmp_path)
    found = store.search_runs([store.get_experiment_by_name("alexnet").experiment_id])
    assert len(found) == 16
    points = [
        [point.step for point in store.get_metric_history(run.info.run_id, "value")]
        for run in found
        if run.info.run_name == "build"
    ]
    assert points == [list(range(10))] * 8
    assert len(list(tmp_path.glob("*.db"))) == 1
