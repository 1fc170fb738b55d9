"""What a clean-up removes and what stays, in work directories beside a real MLflow store; and real
runs that go on working after it."""

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.config.settings import Config
from pipeline.config.tracking import TrackingConfig
from pipeline.errors import TrackingError
from pipeline.files import remove_folder
from pipeline.retrain import garbage_plan, inventory
from pipeline.retrain.garbage_collection import collect_garbage
from pipeline.retrain.garbage_plan import plan_garbage_collection
from pipeline.tracking.known_runs import forget_runs, read_known_runs, remove_delivered_journal
from pipeline.tracking.registry import RELEASE_TAG, Registry
from pipeline.tracking.store import (
    build_server_command,
    connect_store,
    get_or_create_experiment,
    get_store_uri,
)

LONG_AGO = time.time() - 100_000


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A database that is migrated: that takes seconds."""
    workdir = tmp_path_factory.mktemp("store")
    connect_store(TrackingConfig(), workdir)
    return workdir / "mlflow.db"


class World:
    """A work directory in which retrainings have been, with all that they leave: folders, runs,
    models, versions."""

    def __init__(self, workdir, empty_store):
        for file in empty_store.parent.glob("mlflow.db*"):
            shutil.copy(file, workdir / file.name)
        self.workdir, self.config = workdir, TrackingConfig()
        self.registry = Registry("alexnet", self.config, workdir)
        import mlflow

        self.client = connect_store(self.config, workdir)
        mlflow.set_tracking_uri(
            get_store_uri(self.config, workdir)
        )  # a registry in a database looks a logged model up there
        self.experiment = get_or_create_experiment(self.client, self.config, workdir)

    def stage(self, name, run_key="", **record):
        folder = self.workdir / "stages" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(json.dumps({"run_key": run_key, "fingerprint": {}}))
        (folder / "artifact.json").write_text(json.dumps(record))
        (folder / "data").write_bytes(b"x" * 1000)
        age(folder)
        return folder

    def runs(self, key, names, **tags):
        """Make a pipeline's run and those of some stages, with a report each, and return their ids
        by name."""
        ids = {}
        for name in ("", *names):
            own = {"alexnet.run_key": f"{key}-{name}"} | (
                {"mlflow.parentRunId": ids[""]} if name else tags
            )
            ids[name] = self.client.create_run(
                self.experiment, tags=own, run_name=name or "digits"
            ).info.run_id
            self.client.log_text(ids[name], "x" * 100, "report/page.html")
            self.client.set_terminated(ids[name])
        known = {f"{key}-{name}".removesuffix("-"): run_id for name, run_id in ids.items()}
        with (self.workdir / "journal" / "runs.index").open("a") as index:
            index.write(
                json.dumps({"offset": 1, "experiment_id": self.experiment, "run_ids": known}) + "\n"
            )
        return ids

    def model(self, name, run_id, files, **tags):
        files.mkdir(parents=True, exist_ok=True)
        (files / "model.keras").write_bytes(b"x" * 10_000)
        logged = self.client.create_logged_model(
            self.experiment, name=name, source_run_id=run_id, tags=tags
        )
        self.client.log_model_artifacts(logged.model_id, str(files))
        self.client.finalize_logged_model(logged.model_id, "READY")
        return logged.model_id

    def version(self, key, run_id, number, tags):
        digest = f"{number:064x}"
        model = self.model("alexnet", run_id, self.workdir / "scratch", **{RELEASE_TAG: digest})
        if number == 1:
            self.client.create_registered_model("alexnet")
        tags = {
            RELEASE_TAG: digest,
            "model_sha256": f"m{number}",
            "run_key": f"{key}-promote",
        } | tags
        made = self.client.create_model_version(
            "alexnet", f"models:/{model}", run_id, tags=tags, model_id=model
        )
        assert made.version == number
        return str(number)

    def training(
        self,
        number,
        *,
        gate="passed",
        error=0.5,
        data=None,
        outcome="promoted",
        scheduled_run="",
        **tags,
    ):
        """Make what one run of every stage leaves, by hand or of a scheduled run."""
        key, data = f"2026-{number}", data or f"d{number}"
        ids = self.runs(
            key,
            ("ingest", "train", "evaluate", "promote"),
            **({"scheduled_run": scheduled_run} if scheduled_run else {}),
        )
        self.model("model", ids["train"], self.workdir / "scratch")
        stages = {name: f"{name}-{number}" for name in ("train", "evaluate", "promote")} | {
            "ingest": f"ingest-{data}"
        }
        for name, folder in stages.items():
            if not (self.workdir / "stages" / folder).exists():
                record = (
                    {"digest": data, "builder_directory": "data"}
                    if name == "ingest"
                    else {"model_sha256": f"m{number}"}
                )
                self.stage(folder, f"{key}-{name}", **record)
        tags |= {"gate": gate, "top1_error": f"{error}", "dataset_digest": data} | (
            {"scheduled_run": scheduled_run} if scheduled_run else {}
        )
        version = self.version(key, ids["train"], number, tags)
        if scheduled_run:
            self.result(
                scheduled_run,
                outcome=outcome,
                name="alexnet",
                version=version,
                run_id=ids[""],
                stages=stages,
            )
        return ids

    def retraining(self, number, **how):
        return self.training(number, scheduled_run=f"main/202601{number:02d}T030000Z", **how)

    def result(self, scheduled_run, **result):
        folder = self.workdir / "retrainings" / scheduled_run
        (folder / "report").mkdir(parents=True)
        (folder / "output.log").write_text("a line\n")
        (folder / "report" / "retraining.html").write_text("<p>why</p>")
        if result:
            (folder / "result.json").write_text(
                json.dumps({"scheduled_run": scheduled_run} | result)
            )
        age(folder)

    def select(self, **stages):
        entries = {name: {"directory": folder, "settings": {}} for name, folder in stages.items()}
        (self.workdir / "current.json").write_text(
            json.dumps({"recipe": "digits", "stages": entries, "last": stages})
        )

    def alias(self, **aliases):
        for alias, number in aliases.items():
            self.client.set_registered_model_alias("alexnet", alias, number)

    def plan(self, keep=1, retrainings_only=True, **how):
        with contextlib.closing(sqlite3.connect(self.workdir / "mlflow.db")) as database, database:
            for table, column in (
                ("model_versions", "creation_time"),
                ("logged_models", "creation_timestamp_ms"),
            ):
                database.execute(f"UPDATE {table} SET {column} = ?", (int(LONG_AGO * 1000),))  # noqa: S608 - our own words
        return plan_garbage_collection(
            self.workdir, Config(), keep=keep, retrainings_only=retrainings_only, **how
        )

    def clean(self, **how):
        made = self.plan(**how)
        assert collect_garbage(made) == made.removals or made.removals
        return made

    def folders(self):
        return {path.name for path in (self.workdir / "stages").iterdir()}

    def versions(self):
        return [version.number for version in self.registry.list_versions()]

    def run_ids(self):
        from mlflow.entities import ViewType

        return {
            run.info.run_id
            for run in self.client.search_runs([self.experiment], run_view_type=ViewType.ALL)
        }

    def models(self):
        """The folders of models' files, which are the bulk."""
        return {path.name for path in (self.workdir / "artifacts" / "models").iterdir()}


def age(path):
    for file in (path, *path.rglob("*")):
        os.utime(file, (LONG_AGO, LONG_AGO))


@pytest.fixture
def world(empty_store, tmp_path):
    (tmp_path / "journal").mkdir()
    return World(tmp_path, empty_store)


def removed(made, kind):
    return {removal.what for removal in made.removals if removal.kind == kind}


def test_nothing_there_nothing_to_remove(tmp_path):
    for retrainings_only in (True, False):
        made = plan_garbage_collection(
            tmp_path, Config(), keep=1, retrainings_only=retrainings_only
        )
        assert (made.removals, made.kept, collect_garbage(made)) == ((), (), ())
    assert list(tmp_path.iterdir()) == []  # no store was made by asking


def test_champion_previous_best_and_the_last_stay_and_the_rest_goes_whole(world):
    ids = [
        world.retraining(number, error=error)
        for number, error in enumerate((0.1, 0.5, 0.4, 0.3, 0.3), 1)
    ]
    world.alias(previous="3", champion="4", candidate="4")
    world.select(train="train-5", ingest="ingest-d5")
    made = world.clean()
    assert world.versions() == ["5", "4", "3", "1"]
    reasons = {kept.what: kept.why for kept in made.kept if kept.kind == "model version"}
    assert reasons == {
        "alexnet 5": "it is of one of the last 1 retrainings",
        "alexnet 4": "it is the candidate and the champion",
        "alexnet 3": "it is the previous",
        "alexnet 1": "it has the lowest test error",
    }
    images = {"ingest-d3", "ingest-d4", "ingest-d5"}  # that the gate scores on
    assert world.folders() == images | {
        "evaluate-1",
        "evaluate-3",
        "evaluate-4",
        "evaluate-5",
        "train-5",
        "promote-5",
    }
    gone = set(ids[1].values())  # of the retraining of which nothing is left
    assert not gone & world.run_ids()
    assert {ids[0]["train"], ids[0]["promote"], ids[0][""], *ids[4].values()} <= world.run_ids()
    assert (
        len(world.models()) == 8
    )  # of each of four trainings, what it logged and what was released
    assert not [path for path in (world.workdir / "artifacts").iterdir() if path.name in gone]
    assert not gone & {known["run_id"] for known in read_known_runs(world.workdir).values()}
    for number in range(1, 6):
        folder = world.workdir / "retrainings" / "main" / f"202601{number:02d}T030000Z"
        assert {path.name for path in folder.iterdir()} - {"pruned.json"} == {
            "result.json",
            "report",
        } | ({"output.log"} if number > 1 else set())
        assert (folder / "pruned.json").exists() == (number == 2)
    assert world.plan().removals == ()


def test_what_is_freed_is_what_was_said(world):
    for number in (1, 2, 3):
        world.retraining(number)
    world.alias(champion="3")
    before = size(world.workdir)
    made = world.clean()
    assert removed(made, "model version") == {"alexnet 1", "alexnet 2"}
    assert made.bytes > 20_000
    assert (
        0 <= before - size(world.workdir) - made.bytes < 100_000 - made.bytes
    )  # what the database and the marks changed


def size(folder):
    return sum(
        file.stat().st_size
        for file in folder.rglob("*")
        if file.is_file() and "mlflow.db" not in file.name
    )


def test_what_a_person_made_stays_when_the_scheduler_cleans(world):
    by_hand = world.training(1, gate="refused")
    world.stage("train-9", "unknown-train")
    kept = world.folders()
    ids = world.retraining(2)
    world.training(3, data="d2")  # on the images that the retraining prepared
    world.retraining(4)
    world.alias(champion="4")
    world.clean()
    assert world.versions() == ["4", "3", "1"]
    assert kept <= world.folders()
    assert set(by_hand.values()) <= world.run_ids()
    assert ids["train"] not in world.run_ids()


def test_a_clean_by_hand_takes_unselected_folders_and_old_versions_but_no_run_of_a_person(world):
    by_hand = [world.training(number, gate="refused") for number in (1, 2, 3)]
    world.select(train="train-2", ingest="ingest-d2")
    world.stage("train-young")
    os.utime(world.workdir / "stages" / "train-young")
    world.clean(retrainings_only=False)
    assert world.versions() == ["3"]
    assert world.folders() == {"ingest-d2", "train-2", "evaluate-3", "train-young"}
    assert {run_id for ids in by_hand for run_id in ids.values()} == world.run_ids()
    assert len(world.models()) == 4  # what each training logged, and the version that is left


def test_waiting_stays_and_so_does_what_others_registered(world):
    world.retraining(1, gate="waiting", outcome="waiting")
    ids = world.retraining(2, gate="refused", outcome="refused")
    world.retraining(3, gate="refused", outcome="refused")
    world.retraining(4)
    world.alias(champion="4", beta="2")
    (logged,) = world.client.search_logged_models(
        [world.experiment], f"source_run_id = '{ids['train']}' AND name = 'model'"
    )
    world.client.create_registered_model("theirs")
    theirs = world.client.create_model_version("theirs", f"models:/{logged.model_id}", ids["train"])
    world.client.delete_registered_model_alias("alexnet", "beta")
    made = world.clean(retrainings_only=False)
    assert world.versions() == ["4", "1"]
    assert ids["train"] in world.run_ids()
    assert logged.model_id in world.models()
    assert (
        world.client.get_model_version("theirs", theirs.version).source
        == f"models:/{logged.model_id}"
    )
    assert "theirs 1 is made of it" in {kept.why for kept in made.kept}


def test_slots_without_a_reason_do_not_push_out_those_that_trained(world):
    world.retraining(1)
    world.alias(champion="1")
    for day in range(2, 8):
        key, scheduled_run = f"look-{day}", f"main/202601{day:02d}T030000Z"
        ids = world.runs(key, ("review",), scheduled_run=scheduled_run)
        world.stage(f"review-{day}", f"{key}-review")
        world.result(
            scheduled_run,
            outcome="skipped",
            run_id=ids[""],
            stages={"ingest": "ingest-d1", "review": f"review-{day}"},
        )
    made = world.clean()
    assert {name for name in world.folders() if name.startswith("review")} == {"review-7"}
    assert world.folders() >= {"train-1", "evaluate-1", "promote-1", "ingest-d1"}
    assert len(removed(made, "MLflow run")) == 2 * 5
    assert removed(made, "log") == {
        "main/20260102T030000Z/output.log",
        "main/20260103T030000Z/output.log",
    }


def test_the_pages_of_the_last_ones_stay(world, monkeypatch):
    monkeypatch.setattr(garbage_plan, "_PAGES_PER_RETRAINING", 3)
    for day in range(1, 6):
        scheduled_run = f"main/202601{day:02d}T030000Z"
        world.result(scheduled_run, outcome="skipped", run_id="", stages={})
        (world.workdir / "retrainings" / scheduled_run / "report").mkdir(exist_ok=True)
        (world.workdir / "retrainings" / scheduled_run / "report" / "retraining.html").write_text(
            "page"
        )
    made = world.clean()
    assert removed(made, "page") == {"main/20260101T030000Z/report", "main/20260102T030000Z/report"}
    left = sorted(world.workdir.glob("retrainings/*/*/report/retraining.html"))
    assert [page.parts[-3] for page in left] == [
        "20260103T030000Z",
        "20260104T030000Z",
        "20260105T030000Z",
    ]
    assert len(list(world.workdir.glob("retrainings/*/*/result.json"))) == 5


def test_a_retraining_that_was_killed_goes_with_all_its_attempts(world):
    """Its result was never written: the tag of its runs says whose they are. The newest such one
    may be carried on and stays."""
    for day in (1, 2):
        scheduled_run = f"main/202601{day:02d}T030000Z"
        world.result(scheduled_run)
        for attempt in ("a", "b"):
            world.runs(f"{day}{attempt}", ("ingest", "train"), scheduled_run=scheduled_run)
        world.stage(f"ingest-{day}", f"{day}a-ingest")
        partial = world.stage(f"train-{day}.partial")
        (partial / "run.json").unlink()
        (partial / "attempt.json").write_text(json.dumps({"run_key": f"{day}b-train"}))
        age(partial)
        world.stage(f"train-{day}.old")
    world.alias()
    made = world.clean()
    assert world.folders() == {"ingest-2", "train-2.partial"}
    assert removed(made, "interrupted stage") == {"train-1.old", "train-1.partial", "train-2.old"}
    assert len(world.run_ids()) == 6
    assert world.plan().removals == ()


def test_shards_that_lie_elsewhere_are_never_removed(world):
    datasets = world.workdir / "datasets" / "mnist"
    datasets.mkdir(parents=True)
    (datasets / "shard").write_text("x")
    age(world.workdir / "datasets")
    world.stage("ingest-far", digest="far", builder_directory=str(datasets))
    world.stage("ingest-owner", digest="other", builder_directory="shards")
    world.stage(
        "ingest-reader",
        digest="reader",
        builder_directory=str(world.workdir / "stages" / "ingest-owner" / "shards"),
    )
    world.select(ingest="ingest-reader")
    world.clean(retrainings_only=False)
    assert world.folders() == {"ingest-owner", "ingest-reader"}
    assert (datasets / "shard").exists()


def test_of_one_dataset_prepared_twice_one_is_enough(world):
    world.retraining(1)
    world.alias(champion="1")
    newer = world.stage("ingest-again", digest="d1")
    world.retraining(2)
    os.utime(newer, (LONG_AGO + 10, LONG_AGO + 10))
    world.clean(retrainings_only=False)
    assert {name for name in world.folders() if name.startswith("ingest")} == {
        "ingest-again",
        "ingest-d2",
    }


def test_an_alias_that_comes_after_the_look_saves_a_version_and_all_behind_it(world):
    ids = world.retraining(1)
    for number in (2, 3):
        world.retraining(number, error=0.1)
    world.alias(champion="3")
    made = world.plan()
    assert removed(made, "model version") == {"alexnet 1", "alexnet 2"}
    world.alias(champion="1")
    assert "alexnet 1" not in {removal.what for removal in collect_garbage(made)}
    assert world.versions() == ["3", "1"]
    assert ids["train"] in world.run_ids()
    source = world.registry.read_version("1").source.removeprefix("models:/")
    assert (world.workdir / "artifacts" / "models" / source / "artifacts" / "model.keras").exists()
    assert not list(world.workdir.glob("retrainings/main/*/pruned.json"))


CLEAN = """
import os, signal, sys
from pathlib import Path
from pipeline import files
from pipeline.config.settings import Config
from pipeline.retrain import garbage_collection, garbage_plan
left = int(sys.argv[2])
def counted(module, name):
    write = getattr(module, name)
    def call(*arguments, **named):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(*arguments, **named)
    setattr(module, name, call)
import mlflow
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
for name in ("delete_run", "delete_logged_model", "delete_model_version"):
    counted(mlflow.MlflowClient, name)
for name in ("_hard_delete_run", "_hard_delete_logged_model"):
    counted(SqlAlchemyStore, name)
counted(files.shutil, "rmtree")
counted(garbage_collection, "forget_runs")
counted(garbage_collection, "write_text")
plan = garbage_plan.plan_garbage_collection(
    Path(sys.argv[1]), Config(), keep=1, retrainings_only=True
)
garbage_collection.collect_garbage(plan)
"""


@pytest.mark.slow
def test_killed_before_any_write_the_next_clean_does_the_rest(world):
    """Each pass is killed one write later than the one before, until one comes through; nothing of
    what stays is ever hurt."""
    for number in (1, 2, 3):
        world.retraining(number, error=0.5 - number / 10)
    world.alias(champion="3")
    passes = 0
    while passes < 60:
        done = subprocess.run(
            [sys.executable, "-c", CLEAN, world.workdir, str(passes % 7)],
            capture_output=True,
            text=True,
            check=False,
        )
        passes += 1
        assert done.returncode in (0, -9), done.stderr
        assert "3" in world.versions()
        assert {"train-3", "ingest-d3", "evaluate-3"} <= world.folders()
        if done.returncode == 0:
            break
    assert passes > 5
    world.clean()  # a version's files whose entry was gone already
    assert world.plan().removals == ()
    assert world.versions() == ["3"]
    assert world.folders() == {"ingest-d3", "train-3", "evaluate-3", "promote-3"}
    assert len(world.run_ids()) == 5
    assert len(world.models()) == 2
    assert len(list(world.workdir.glob("retrainings/main/*/pruned.json"))) == 2
    assert not list(world.workdir.rglob(".removed-*"))


def test_copies_and_exports_of_versions_that_are_gone(world):
    world.training(1, gate="refused")
    world.training(2)
    world.alias(champion="2")
    for name in (f"{1:064x}", f"{2:064x}", "m-1234"):
        (world.workdir / "fetched" / name).mkdir(parents=True)
    for name, title in (("a", "alexnet 1"), ("b", "alexnet 2"), ("c", "flowers.keras")):
        folder = world.workdir / "exports" / name
        folder.mkdir(parents=True)
        (folder / "parity.json").write_text(json.dumps({"model": title}))
    for folder in ("fetched", "exports"):
        age(world.workdir / folder)
    assert removed(world.plan(), "copy") | removed(world.plan(), "export") == set()
    world.clean(retrainings_only=False)
    assert {path.name for path in (world.workdir / "fetched").iterdir()} == {f"{2:064x}"}
    assert {path.name for path in (world.workdir / "exports").iterdir()} == {"b", "c"}


def test_a_copy_of_a_work_directory_frees_no_files_of_the_other(world, tmp_path_factory):
    for number in (1, 2, 3):
        world.retraining(number, error=0.5 - number / 10)
    world.alias(champion="3")
    other = tmp_path_factory.mktemp("copy") / "w"
    shutil.copytree(world.workdir, other)
    before = world.models()
    made = plan_garbage_collection(other, Config(), keep=1, retrainings_only=True)
    collect_garbage(made)
    assert removed(made, "model version") == {"alexnet 1", "alexnet 2"}
    assert (world.models(), world.versions()) == (before, ["3", "2", "1"])


def test_versions_of_another_work_directory_stay(world):
    """Two machines share a registry."""
    world.retraining(1)
    world.retraining(2, error=0.1)
    world.alias(champion="2")
    shutil.rmtree(world.workdir / "retrainings")
    (world.workdir / "journal" / "runs.index").unlink()
    made = world.plan(retrainings_only=False)
    assert removed(made, "model version") == set()
    assert {kept.why for kept in made.kept if kept.what == "alexnet 1"} <= {
        "it was made in another work directory",
        "it has the lowest test error",
    }


def test_a_store_that_does_not_answer_removes_nothing(world):
    world.retraining(1)
    before = world.folders()
    config = Config(tracking=TrackingConfig(uri="http://127.0.0.1:9"))
    with pytest.raises(TrackingError, match="does not answer"):
        plan_garbage_collection(world.workdir, config, keep=1, retrainings_only=False)
    assert world.folders() == before


@pytest.mark.slow
def test_behind_a_server_entries_are_marked_as_deleted_and_files_are_the_servers(world):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ids = [world.retraining(number, error=0.5 - number / 10) for number in (1, 2)]
    world.alias(champion="2")
    models, config = world.models(), Config(tracking=TrackingConfig(uri=f"http://127.0.0.1:{port}"))
    world.plan()  # makes all look old
    command, environment = build_server_command(TrackingConfig(), world.workdir, port)
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            wait_for(port)
            made = plan_garbage_collection(world.workdir, config, keep=1, retrainings_only=True)
            assert removed(made, "model version") == {"alexnet 1"}
            assert collect_garbage(made) == made.removals
            assert (
                plan_garbage_collection(
                    world.workdir, config, keep=1, retrainings_only=True
                ).removals
                == ()
            )
        finally:
            server.terminate()
    assert (world.versions(), world.models()) == (["2"], models)
    active = {run.info.run_id for run in world.client.search_runs([world.experiment])}
    assert active == set(ids[1].values())
    assert "train-1" not in world.folders()


def wait_for(port):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)


def test_runs_are_forgotten_and_nothing_else_of_the_index(tmp_path):
    """A line that a full disk cut short, and state files of an earlier version, are no harm."""
    journals = tmp_path / "journal"
    journals.mkdir()
    forget_runs(tmp_path, ["x"])
    assert list(journals.iterdir()) == []
    for name in "abc":
        state = {
            "offset": 1,
            "experiment_id": "1",
            "run_ids": {name: f"run-{name}", f"{name}-train": f"run-{name}-train"},
        }
        (journals / f"{name}.state.json").write_text(json.dumps(state))
    (journals / "runs.index").write_bytes(b'{"offset": 1, "experi\xff')
    (journals / "c.jsonl").touch()  # not delivered yet
    (journals / "b.state.json").write_bytes(b"\xff")
    remove_delivered_journal(journals / "a.jsonl")
    assert {path.name for path in journals.iterdir()} == {"runs.index", "c.jsonl", "c.state.json"}
    assert set(read_known_runs(tmp_path)) == {"a", "a-train", "c", "c-train"}
    forget_runs(tmp_path, ["run-a-train"])
    assert set(read_known_runs(tmp_path)) == {"a", "c", "c-train"}
    assert len((journals / "runs.index").read_text().splitlines()) == 1


def test_a_folder_is_never_half_there(tmp_path):
    folder = tmp_path / "train-1"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").touch()
    (tmp_path / ".removed-train-1" / "rest").mkdir(parents=True)  # of a clean that was killed
    remove_folder(folder)
    remove_folder(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_two_names_counts_once(tmp_path):
    scene = inventory.Inventory(tmp_path, Config(), 1, True, 0)
    (tmp_path / "a").write_bytes(b"x" * 100)
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    assert scene.measure_bytes(tmp_path) == 100


PROGRAM = (sys.executable, "-m", "pipeline")
TINY = (
    "--epochs",
    "3",
    "--network",
    "small",
    "--set",
    "model.alexnet.width_multiplier=0.2",
    "--set",
    "evaluate.report=short",
)
LENIENT = (
    "margin=0.9",
    "class_margin=1",
    "max_calibration_error=1",
)  # the gate is not what is tried here


def alexnet(*arguments, cwd):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("ALEXNET_")
    }
    done = subprocess.run(
        [*PROGRAM, *arguments],
        check=False,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def promoted(seed, cwd):
    arguments = [word for setting in LENIENT for word in ("--set", f"release.{setting}")]
    done = alexnet("--json", "run", *TINY, "--seed", str(seed), *arguments, "promote", cwd=cwd)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["decision"]["outcome"] == "promoted", result["decision"]
    return result


@pytest.mark.slow
def test_after_a_clean_every_command_goes_on(tmp_path):
    """Three real trainings that were released; the first two were scheduled runs of a schedule."""
    workdir = tmp_path / "mlruns"
    for seed in (1, 2, 3):
        result = promoted(seed, tmp_path)
        client = connect_store(TrackingConfig(), workdir)
        if seed > 2:
            continue
        scheduled_run = f"main/2026010{seed}T030000Z"
        run_id = result["run_url"].rpartition("/runs/")[2].partition("?")[0]
        client.set_tag(run_id, "scheduled_run", scheduled_run)
        client.set_model_version_tag("alexnet", str(seed), "scheduled_run", scheduled_run)
        folder = workdir / "retrainings" / scheduled_run
        folder.mkdir(parents=True)
        stages = {stage["name"]: Path(stage["directory"]).name for stage in result["stages"]}
        told = {
            "scheduled_run": scheduled_run,
            "outcome": "promoted",
            "name": "alexnet",
            "version": str(seed),
            "run_id": run_id,
            "stages": stages,
        }
        (folder / "result.json").write_text(json.dumps(told))
    for version in ("1", "2"):
        client.set_model_version_tag(
            "alexnet", version, "top1_error", "0.9"
        )  # so that neither is the best
    before = size(workdir)
    made = plan_garbage_collection(workdir, Config(), keep=1, retrainings_only=True)
    assert collect_garbage(made) == made.removals
    assert removed(made, "model version") == {"alexnet 1"}
    assert before - size(workdir) == pytest.approx(made.bytes, abs=20_000)
    assert {name.partition("-")[0] for name in removed(made, "stage folder")} == {
        "build",
        "train",
        "evaluate",
        "promote",
    }
    assert (
        plan_garbage_collection(
            workdir, Config(), keep=1, retrainings_only=False, min_age_seconds=0
        ).removals
        == ()
    )

    assert "stale" not in alexnet("status", cwd=tmp_path).stdout
    versions = [
        json.loads(line)
        for line in alexnet("--json", "model", "list", cwd=tmp_path).stdout.splitlines()
    ]
    assert "champion" in json.dumps(versions)
    image = next(iter((workdir / "artifacts" / "models").rglob("golden/00")))
    shutil.copy(image, tmp_path / "digit.png")
    assert "digit.png" in alexnet("predict", "digit.png", cwd=tmp_path).stdout
    alexnet("model", "rollback", cwd=tmp_path)
    registry = Registry("alexnet", TrackingConfig(), workdir)
    assert registry.read_aliases().champion == "2"
    result = promoted(4, tmp_path)
    assert {stage["name"]: stage["state"] for stage in result["stages"]}["ingest"] == "skipped"
    assert result["not_recorded"] is None
