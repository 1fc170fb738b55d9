"""Delivery to a real MLflow store, when the store or the process dies."""

import json
import subprocess
import sys
import time

import pytest

from pipeline.config.tracking import TrackingConfig
from pipeline.tracking.delivery import Delivery, deliver_leftovers
from pipeline.tracking.journal import list_undelivered
from pipeline.tracking.known_runs import read_known_runs
from pipeline.tracking.store import connect_store
from pipeline.tracking.tracker import MlflowTracker
from tests.tracking.recording import RESOLVED, client, record_a_run, runs


def test_an_unreachable_store_costs_seconds_and_sync_sends_it_later(tmp_path):
    """Where the store's folder should be there is a file at first."""
    share = tmp_path / "share"
    share.touch()
    config = TrackingConfig(uri=f"sqlite:///{share}/mlflow.db", experiment="later")
    workdir = tmp_path / "work"
    workdir.mkdir()
    started = time.monotonic()
    tracker = record_a_run(workdir, config)
    assert time.monotonic() - started < 30
    assert tracker.problem
    assert read_known_runs(workdir) == {}
    assert len(list_undelivered(workdir)) == 1
    sent, problems = deliver_leftovers(workdir)
    assert (sent, len(problems)) == (0, 1)
    share.unlink()
    assert deliver_leftovers(workdir) == (1, {})
    store = connect_store(config, workdir)
    found = store.search_runs([store.get_experiment_by_name("later").experiment_id])
    assert {run.info.status for run in found} == {"FINISHED"}
    stage = next(run for run in found if run.info.run_name == "train")
    assert len(store.get_metric_history(stage.info.run_id, "train_loss")) == 3
    assert (
        stage.info.end_time - stage.info.start_time < 10_000
    )  # its own times, not those of the delivery
    assert list_undelivered(workdir) == []
    assert len(read_known_runs(workdir)) == 2


def test_a_journal_whose_target_cannot_be_read_is_kept(workdir):
    """A later version may write a setting that this one does not know."""
    tracker = MlflowTracker(workdir, TrackingConfig())
    tracker._deliver_until_closed = lambda: None
    tracker.start_stage_run("train", "train", RESOLVED).close("FINISHED")
    tracker.close("FINISHED")
    (path,) = list_undelivered(workdir)
    path.with_suffix(".target.json").write_text('{"uri": "", "color": "blue"}')
    sent, problems = deliver_leftovers(workdir)
    assert (sent, list(problems)) == (0, [path.stem])
    assert "cannot be read" in problems[path.stem]
    assert list_undelivered(workdir) == [path]


@pytest.mark.slow
def test_several_leftovers_ask_a_hanging_store_once(tmp_path):
    """A server that takes connections and never answers: one time-out for all journals, not one
    each."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as hole:
        config = TrackingConfig(uri=f"http://127.0.0.1:{hole.getsockname()[1]}")
        for _ in range(3):
            tracker = MlflowTracker(tmp_path, config)
            tracker._deliver_until_closed = lambda: None
            tracker.start_stage_run("train", "train", RESOLVED).close("FINISHED")
            tracker.close("FINISHED")
        started = time.monotonic()
        sent, problems = deliver_leftovers(tmp_path)
    assert (sent, len(problems)) == (0, 3)
    assert time.monotonic() - started < 45


KILLED_RUN = """
import os, sys, time
from importlib import metadata
from pathlib import Path
from pipeline.tracking.tracker import MlflowTracker
from pipeline.config.tracking import TrackingConfig
from pipeline.config.resolution import resolve
tracker = MlflowTracker(Path(sys.argv[1]), TrackingConfig())
run = tracker.start_stage_run("train", "train", resolve(environment={}))
run.log_metrics({"train_loss": 1.0}, step=1)
time.sleep(float(sys.argv[2]))
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("seconds", [0, pytest.param(8, marks=pytest.mark.slow)])
def test_a_killed_process_is_ended_as_killed_by_the_next(workdir, seconds):
    """Killed before the sender started, and long after: the run is there once, with what was
    written, and KILLED."""
    subprocess.run(
        [sys.executable, "-c", KILLED_RUN, workdir, str(seconds)], check=False, capture_output=True
    )
    (path,) = list_undelivered(workdir)
    with path.open("ab") as file:
        file.write(
            b'garbage\n{}\n{"event": "metr'
        )  # lines that are no events, and a last one that was cut
    assert deliver_leftovers(workdir) == (1, {})
    found = runs(workdir)
    assert {name: run.info.status for name, run in found.items()} == {
        "digits small": "KILLED",
        "train": "KILLED",
    }
    assert found["train"].data.metrics == {"train_loss": 1.0}
    assert list_undelivered(workdir) == []


def test_delivery_that_died_after_creating_a_run_does_not_create_it_again(workdir):
    tracker = MlflowTracker(workdir, TrackingConfig())
    tracker._deliver_until_closed = lambda: None  # nobody delivers: the test does, twice
    run = tracker.start_stage_run("train", "train", RESOLVED)
    run.close("FINISHED")
    tracker.close("FINISHED")
    (path,) = list_undelivered(workdir)
    state = path.with_suffix(".state.json")
    assert Delivery(path, workdir, TrackingConfig()).deliver()
    state.write_text(
        json.dumps({"offset": 0, "experiment_id": "", "run_ids": {}})
    )  # as if it had never been written
    assert Delivery(path, workdir, TrackingConfig()).deliver()
    store = client(workdir)
    assert len(store.search_runs([store.get_experiment_by_name("alexnet").experiment_id])) == 2
