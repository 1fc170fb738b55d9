"""After years: 10,000 runs and 500 versions in one store, and what our own commands take there,
beside an empty store.

The runs are written into MLflow's tables by SQL, in the shape in which the tracker leaves them:
through MLflow it would take an hour.
"""

import contextlib
import json
import shutil
import sqlite3
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.config.resolution import resolve
from pipeline.config.settings import Config
from pipeline.config.tracking import TrackingConfig
from pipeline.retrain.garbage_plan import plan_garbage_collection
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.journal import list_undelivered
from pipeline.tracking.known_runs import read_known_runs, remove_delivered_journal
from pipeline.tracking.registry import MODEL_TAG, RELEASE_TAG, Registry, list_files_in_use
from pipeline.tracking.store import connect_store, open_experiment
from pipeline.tracking.stored_runs import list_stored_runs
from pipeline.tracking.tracker import MlflowTracker

PIPELINES, STAGES, VERSIONS = 1667, ("ingest", "build", "train", "evaluate", "promote"), 500
PARAMS, METRICS, TAGS, STEPS, CURVES = 60, 100, 20, 30, 4
START = 1_700_000_000_000
CONFIG, RESOLVED = TrackingConfig(), resolve(environment={})
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """An empty store, and one after years."""
    empty, full = (tmp_path_factory.mktemp(name) for name in ("empty", "full"))
    open_experiment(CONFIG, empty)
    with contextlib.closing(sqlite3.connect(empty / "mlflow.db")) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for name in ("mlflow.db", "mlflow.db.version"):
        shutil.copy(empty / name, full / name)
    with contextlib.closing(sqlite3.connect(full / "mlflow.db")) as database, database:
        fill(database, full)
    return empty, full


def format_scheduled_run_key(pipeline):
    return f"2026{pipeline:04d}-{pipeline:08x}"


def run_ids(pipeline):
    return {name: f"{pipeline:024x}{place:08x}" for place, name in enumerate(("", *STAGES))}


def fill(database, workdir):
    tables = {
        name: [row[1] for row in database.execute(f"PRAGMA table_info({name})")]
        for name in ("runs", "params", "tags", "metrics")
    }
    assert tables["metrics"] == [
        "key",
        "value",
        "timestamp",
        "run_uuid",
        "step",
        "is_nan",
    ]  # another MLflow: look at what is written here
    for pipeline in range(PIPELINES):
        for name, run_id in run_ids(pipeline).items():
            write_run(database, workdir, pipeline, name, run_id)
    register(database, workdir)


def write_run(database, workdir, pipeline, name, run_id):
    at = START + pipeline * 100_000
    place = f"file://{workdir}/artifacts/{run_id}/artifacts"
    run = (
        run_id,
        name or "digits small",
        "UNKNOWN",
        "",
        "",
        "unknown",
        "FINISHED",
        at,
        at + 9000,
        "",
        "active",
        place,
        1,
        None,
    )
    insert(database, "runs", run)
    key = f"{format_scheduled_run_key(pipeline)}-{name}".removesuffix("-")
    tags = {"alexnet.run_key": key, "mlflow.runName": name or "digits small", "stage": name} | {
        f"package.{i}": "1.2.3" for i in range(TAGS)
    }
    tags |= (
        {"mlflow.parentRunId": run_ids(pipeline)[""]}
        if name
        else {"scheduled_run": f"main/{pipeline:08d}T000000Z", "schedule": "main"}
    )
    database.executemany(
        "INSERT INTO tags VALUES (?, ?, ?)", [(tag, value, run_id) for tag, value in tags.items()]
    )
    database.executemany(
        "INSERT INTO params VALUES (?, ?, ?)",
        [(f"setting_{i}", str(i), run_id) for i in range(PARAMS)],
    )
    latest = [
        (f"metric_{i}", 0.5, at, STEPS if i < CURVES else 0, 0, run_id) for i in range(METRICS)
    ]
    database.executemany("INSERT INTO latest_metrics VALUES (?, ?, ?, ?, ?, ?)", latest)
    points = [
        (f"metric_{i}", 0.5, at + step, run_id, step, 0)
        for i in range(METRICS)
        for step in range(STEPS if i < CURVES else 1)
    ]
    database.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?)", points)


def insert(database, table, row):
    database.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608 - our own words


def register(database, workdir):
    database.execute(
        "INSERT INTO registered_models (name, creation_time, workspace) VALUES ('alexnet', ?,"
        " 'default')",
        (START,),
    )
    for number in range(1, VERSIONS + 1):
        model, run_id, at = f"m-{number:032x}", run_ids(number)["train"], START + number * 100_000
        place = f"file://{workdir}/artifacts/models/{model}/artifacts"
        for name, model_id in (("model", f"m-{number + 10**6:032x}"), ("alexnet", model)):
            insert(
                database,
                "logged_models",
                (model_id, 1, name, place, at, at, 2, "active", None, run_id, None),
            )
        row = (
            "alexnet",
            number,
            at,
            at,
            None,
            None,
            "None",
            f"models:/{model}",
            run_id,
            "READY",
            None,
            None,
            place,
            "default",
        )
        insert(database, "model_versions", row)
        tags = {
            RELEASE_TAG: f"{number:064x}",
            MODEL_TAG: f"{number:064x}",
            "gate": "passed",
            "top1_error": "0.1",
        } | {f"t{i}": "x" for i in range(11)}
        database.executemany(
            "INSERT INTO model_version_tags VALUES (?, ?, 'alexnet', ?, 'default')",
            [(tag, value, number) for tag, value in tags.items()],
        )
    for alias, number in (
        ("champion", VERSIONS),
        ("candidate", VERSIONS),
        ("previous", VERSIONS - 1),
    ):
        database.execute(
            "INSERT INTO registered_model_aliases VALUES (?, ?, 'alexnet', 'default')",
            (alias, number),
        )


def seconds(call, times=3):
    """The middle one of some times that a call takes, the first aside: it opens the database."""
    call()
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def both(stores, call):
    """What something takes in the empty store and in the full one, said for the record."""
    times = [seconds(lambda workdir=workdir: call(workdir)) for workdir in stores]
    return (
        *times,
        f"{times[0] * 1000:.1f} ms in an empty store, {times[1] * 1000:.1f} ms in the full one",
    )


def page(workdir):
    client = connect_store(CONFIG, workdir)
    return client.search_runs(["1"], max_results=100, order_by=["attributes.start_time DESC"])


def record(workdir):
    """Deliver what a pipeline of five stages says, as the tracker's thread does."""
    tracker = MlflowTracker(workdir, CONFIG)
    tracker._deliver_until_closed = lambda: None
    for stage in STAGES:
        run = tracker.start_stage_run(stage, "train", RESOLVED)
        for step in range(1, 4):
            run.log_metrics({f"metric_{i}": 0.5 for i in range(30)}, step=step)
        run.set_tags({"devices": "CPU:0"}, summary=True)
        run.close("FINISHED")
    tracker.close("FINISHED")
    (path,) = list_undelivered(workdir)
    delivery = Delivery(path, workdir, CONFIG)
    started = time.perf_counter()
    assert delivery.deliver(), delivery.problem
    remove_delivered_journal(path)
    return time.perf_counter() - started


def test_recording_a_pipeline_takes_no_longer(stores):
    times = [statistics.median([record(workdir) for _ in range(4)][1:]) for workdir in stores]
    print(  # noqa: T201
        f"\nrecording a pipeline: {times[0]:.2f} s in an empty store, {times[1]:.2f} s in the"
        " full one"
    )
    assert times[1] < 2 * times[0] + 1


@pytest.mark.parametrize(
    ("what", "call", "max_seconds"),
    [
        ("aliases", lambda workdir: Registry("alexnet", CONFIG, workdir).read_aliases(), 0.2),
        (
            "one version",
            lambda workdir: Registry("alexnet", CONFIG, workdir).read_version(str(VERSIONS // 2)),
            0.2,
        ),
        (
            "the version of a release",
            lambda workdir: Registry("alexnet", CONFIG, workdir).find_release(f"{VERSIONS:064x}"),
            0.5,
        ),
        (
            "all 500 versions",
            lambda workdir: Registry("alexnet", CONFIG, workdir).list_versions(),
            2,
        ),
        ("what versions are made of", lambda workdir: list_files_in_use(CONFIG, workdir), 2),
        ("a page of 100 runs, as the UI asks", page, 2),
    ],
)
def test_asking_takes_no_longer(stores, what, call, max_seconds):
    _, full, text = both(stores, call)
    print(f"\n{what}: {text}")  # noqa: T201
    assert full < max_seconds


def test_the_runs_of_a_slot_are_found_quickly(stores):
    """Retention asks this for each retraining that it looks at."""
    _, workdir = stores
    found = list_stored_runs(
        CONFIG, workdir, "scheduled_run", f"main/{7:08d}T000000Z", run_ids(7)[""]
    )
    assert {run.run_id for run in found} == set(run_ids(7).values())
    taken = seconds(
        lambda: list_stored_runs(
            CONFIG, workdir, "scheduled_run", f"main/{7:08d}T000000Z", run_ids(7)[""]
        )
    )
    print(f"\nthe runs of one scheduled run: {taken * 1000:.0f} ms")  # noqa: T201
    assert taken < 1


def test_a_look_at_what_may_go_takes_seconds(stores):
    _, workdir = stores
    for pipeline in range(20):
        folder = workdir / "retrainings" / "main" / f"{pipeline:08d}T000000Z"
        folder.mkdir(parents=True, exist_ok=True)
        result = {
            "outcome": "refused",
            "name": "alexnet",
            "run_id": run_ids(pipeline)[""],
            "stages": {},
        }
        (folder / "result.json").write_text(json.dumps(result))
    taken = seconds(
        lambda: plan_garbage_collection(workdir, Config(), keep=5, retrainings_only=True), times=1
    )
    print(f"\na look at 20 retrainings: {taken:.1f} s")  # noqa: T201
    assert taken < 20


@pytest.mark.parametrize("how", ["as earlier versions left them", "now"])
def test_which_run_is_which_is_known_quickly(tmp_path, how):
    """10,000 pipelines, of six runs each."""
    journals = tmp_path / "journal"
    journals.mkdir()

    def leave(pipeline):
        known = {
            f"{format_scheduled_run_key(pipeline)}-{name}".removesuffix("-"): run_id
            for name, run_id in run_ids(pipeline).items()
        }
        state = {"offset": 22_000, "experiment_id": "1", "run_ids": known}
        (journals / f"{format_scheduled_run_key(pipeline)}.state.json").write_text(
            json.dumps(state)
        )

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(leave, range(10_000)))
    before = read_known_runs(tmp_path)
    if how == "now":
        (journals / "20270101-000000-abc.jsonl").touch()
        remove_delivered_journal(journals / "20270101-000000-abc.jsonl")
        assert [file.name for file in journals.iterdir()] == ["runs.index"]
    assert read_known_runs(tmp_path) == before
    assert len(before) == 60_000
    taken = seconds(lambda: read_known_runs(tmp_path))
    print(f"\nwhich run is which, {how}: {taken * 1000:.0f} ms")  # noqa: T201
    assert taken < (1 if how == "now" else 10)
