"""Recording in a real MLflow store: what arrives, and what happens when the store or the process
dies."""

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts import DatasetArtifact, TrainingResult, file_sha256
from pipeline.config.resolution import resolve
from pipeline.config.tracking import TrackingConfig
from pipeline.errors import ConfigError, TrackingError
from pipeline.evaluate.external_model import ExternalModel, find_external_model
from pipeline.tracking.delivery import Delivery, deliver_leftovers
from pipeline.tracking.fetching import fetch_model_file
from pipeline.tracking.journal import list_undelivered
from pipeline.tracking.known_runs import read_known_runs
from pipeline.tracking.store import connect_store, get_run_url, get_store_uri, open_experiment
from pipeline.tracking.tracker import MlflowTracker
from tests.networks import model_config

RESOLVED = resolve(overrides={"train.epochs": "3"}, environment={})


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A work directory whose MLflow database is migrated: making one takes seconds, copying it
    none."""
    workdir = tmp_path_factory.mktemp("store")
    open_experiment(TrackingConfig(), workdir)
    return workdir


@pytest.fixture
def workdir(empty_store, tmp_path):
    for file in empty_store.glob("mlflow.db*"):  # with its write-ahead log
        shutil.copy(file, tmp_path / file.name)
    return tmp_path


def client(workdir):
    return connect_store(TrackingConfig(), workdir)


def runs(workdir, experiment="alexnet"):
    from mlflow.entities import ViewType

    store = client(workdir)
    found = store.search_runs(
        [store.get_experiment_by_name(experiment).experiment_id], run_view_type=ViewType.ALL
    )
    return {run.info.run_name: run for run in found}


def dataset():
    return DatasetArtifact(
        name="digits",
        digest="ab" * 32,
        class_names=("0", "1"),
        class_counts={"train": (5, 6), "validation": (1, 1), "test": (2, 3)},
        reads={"train": "train"},
        short_side=36,
        channel_mean=(1, 2, 3),
        channel_covariance=((1, 0, 0), (0, 4, 0), (0, 0, 9)),
        builder_directory=Path("shards"),
    )


def trained(folder):
    from pipeline.model.networks import build_network
    from pipeline.model.weights import save_model

    folder.mkdir(parents=True)
    network = build_network(
        model_config(width_multiplier=0.2),
        num_classes=2,
        channel_mean=(1, 2, 3),
        channel_std=(4, 5, 6),
    )
    save_model(network, folder / "model.keras")
    return network, TrainingResult(
        directory=folder,
        model_sha256=file_sha256(folder / "model.keras"),
        parameters=network.count_params(),
        network="small",
        image_size=32,
        short_side=36,
        class_names=("0", "1"),
        best_epoch=1,
        epochs=1,
        validation_top1_error=0.5,
        history_sha256="",
    )


def record_a_run(workdir, config=None):
    """Record one pipeline of one stage, as the Runner does."""
    tracker = MlflowTracker(workdir, config or TrackingConfig())
    tracker.link_skipped_stage("ingest", "earlier-run-ingest")
    run = tracker.start_stage_run("train", "train", RESOLVED)
    run.set_tags({"devices": "CPU:0"}, summary=True)
    for step in (1, 2, 3):
        run.log_metrics({"train_loss": 1 / step, "validation_top1_error": 0.5 / step}, step=step)
    run.log_metrics({"test_top1_error": 0.25}, summary=True)
    run.log_dataset(dataset(), "train")
    report = workdir / "report"
    report.mkdir(exist_ok=True)
    (report / "page.html").write_text("<p>a page</p>")
    run.log_files(report)
    run.close("FINISHED")
    tracker.close("FINISHED")
    return tracker


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


def test_a_model_is_logged_with_signature_and_example_and_loads_again(workdir):
    network, result = trained(workdir / "trained")
    tracker = MlflowTracker(workdir, TrackingConfig())
    run = tracker.start_stage_run("train", "train", RESOLVED)
    run.log_model(result)
    run.close("FINISHED")
    tracker.close("FINISHED")
    assert tracker.problem is None
    import mlflow

    store = client(workdir)
    mlflow.set_tracking_uri(get_store_uri(TrackingConfig(), workdir))
    (logged,) = store.search_logged_models([runs(workdir)["train"].info.experiment_id])
    info = mlflow.models.get_model_info(logged.model_uri)
    assert str(info.signature.inputs.inputs[0].type) == "uint8"
    assert info.signature.inputs.inputs[0].shape == (-1, 32, 32, 3)
    assert info.signature.outputs.inputs[0].shape == (-1, 2)
    assert list(info.saved_input_example_info) != []
    assert info.metadata == {
        "class_names": ["0", "1"],
        "sha256": result.model_sha256,
        "short_side": 36,
    }
    (file,) = (Path(mlflow.artifacts.download_artifacts(logged.model_uri)) / "data").glob("*.keras")
    assert file_sha256(file) == result.model_sha256
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    again = mlflow.keras.load_model(logged.model_uri)
    np.testing.assert_allclose(np.asarray(again(images)), np.asarray(network(images)), atol=1e-6)
    store.create_registered_model("digits")
    version = store.create_model_version("digits", logged.model_uri, model_id=logged.model_id)
    store.set_registered_model_alias("digits", "champion", version.version)
    found = runs(workdir)
    names = (
        logged.model_uri,
        "models:/digits@champion",
        found["train"].info.run_id,
        found["digits small"].info.run_id,
    )
    for name in names:
        file = fetch_model_file(name, TrackingConfig(), workdir)
        assert find_external_model(file) == ExternalModel(file, result.model_sha256, ("0", "1"), 36)
    with pytest.raises(
        ConfigError, match=r"There is no model `models:/digits@nobody`.*Check --model"
    ):
        fetch_model_file("models:/digits@nobody", TrackingConfig(), workdir)


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


def test_a_dead_server_is_given_up_quickly(tmp_path):
    started = time.monotonic()
    tracker = record_a_run(tmp_path, TrackingConfig(uri="http://127.0.0.1:9", experiment="none"))
    assert tracker.problem
    assert time.monotonic() - started < 30


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


def older_store(workdir):
    """A work directory whose database is as MLflow kept it some migrations ago, with a run in it;
    returns that revision."""
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    from pipeline.tracking.database import get_sqlite_uri

    client(workdir).create_run(open_experiment(TrackingConfig(), workdir), run_name="kept")
    config = _get_alembic_config(get_sqlite_uri(workdir / "mlflow.db"))
    script = ScriptDirectory.from_config(config)
    # The newest migration that can be taken back without losing a column that runs need is enough:
    # any older revision is refused.
    command.downgrade(config, "-1")
    with contextlib.closing(sqlite3.connect(workdir / "mlflow.db")) as connection:
        (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    assert revision != script.get_current_head()
    (workdir / "mlflow.db.version").write_text("3.16.0")
    return revision


@pytest.mark.slow
def test_a_database_of_an_earlier_mlflow_is_migrated_and_a_copy_stays(workdir):
    revision = older_store(workdir)
    assert "kept" in runs(workdir)
    assert (workdir / "mlflow.db.version").read_text() == metadata.version("mlflow")
    with contextlib.closing(sqlite3.connect(workdir / "mlflow.db.3.16.0.backup")) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (
            revision,
        )
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (1,)
    connect_store(TrackingConfig(), workdir)  # and that once
    assert [path.name for path in workdir.glob("*.backup")] == ["mlflow.db.3.16.0.backup"]


@pytest.mark.slow
def test_a_database_that_needs_no_migration_leaves_no_copy(workdir):
    (workdir / "mlflow.db.version").unlink()
    connect_store(TrackingConfig(), workdir)
    assert list(workdir.glob("*.backup")) == []
    assert (workdir / "mlflow.db.version").read_text() == metadata.version("mlflow")


@pytest.mark.slow
def test_a_database_of_a_later_mlflow_is_refused_and_stays_as_it_was(workdir):
    with contextlib.closing(sqlite3.connect(workdir / "mlflow.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    (workdir / "mlflow.db.version").write_text("99.0")
    with pytest.raises(TrackingError, match=r"which MLflow 99.0 kept .* Install MLflow 99.0 again"):
        connect_store(TrackingConfig(), workdir)
    assert (workdir / "mlflow.db.99.0.backup").exists()
    assert (workdir / "mlflow.db.version").read_text() == "99.0"
