"""T1 and T2: what recording in MLflow costs a training, and what one number costs.

T1 trains a small network for four epochs through the program's own loop, recorded as the train
stage records it, and does the same with no tracker. To each epoch's numbers come the loss and the
error of every step, which the program itself leaves out. All trainings take turns in one process,
because what is looked for is less than the difference between two processes; the time is that from
the opening of the pipeline's run to the last delivered number, and what is told is the median over
the rounds of what tracking added. The import of MLflow and the making of its database come first
and are told apart, as `first_seconds`. "T1 http" sends to a local MLflow server, which has the same
cores. T2 is a point's way through journal and delivery, against one synchronous `log_metric` each,
on SQLite. One JSON object a line.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _harness
import bench_loop

EPOCHS, STEPS, BATCH, SIDE = 4, 20, 8, 32
OURS, PEER = "journal and delivery", "log_metric"
POINTS, DELIVERIES, SINGLE = (
    400,
    5,
    200,
)  # so many come together between two deliveries of a quick training
START_SECONDS = 90


def time_training(tracker: Any, images: tuple[Any, Any], folder: Path) -> tuple[float, str]:
    """Return how long a recorded training takes, and the key of its run."""
    from pipeline.config.resolution import resolve
    from pipeline.config.train import TrainConfig
    from pipeline.train import loop
    from pipeline.train.state import prepare_state
    from pipeline.train.strategy import Devices

    config, resolved = (
        TrainConfig(epochs=EPOCHS, global_batch_size=BATCH, learning_rate=1e-4),
        resolve(environment={}),
    )
    state, recorded = prepare_state(bench_loop.build_small_network, config, Devices()), 0
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        started = time.perf_counter()
        run = tracker.start_stage_run("train", "train", resolved)

        def log_steps(done: int, _total: int, _detail: str) -> None:
            nonlocal recorded
            loss, top1_error, _, seen = state.sums.numpy()
            for step in range(recorded + 1, done + 1):  # since the last compiled call
                run.log_metrics(
                    {"step_loss": loss / seen, "step_top1_error": top1_error / seen}, step=step
                )
            recorded = done

        training = loop.Training(
            *images, config, Devices(), Path(scratch, "checkpoint.npz"), report_progress=log_steps
        )
        with contextlib.closing(loop.train_epochs(state, training)) as epochs:
            for epoch in epochs:
                numbers = {
                    name: value for name, value in epoch.items() if name not in ("epoch", "time")
                }
                run.log_metrics(numbers, step=int(epoch["epoch"]), at=epoch["time"])
        run.close("FINISHED")
        tracker.close("FINISHED")
        seconds = time.perf_counter() - started
    assert tracker.problem is None, tracker.problem
    return seconds, run.key


def require_recorded(config: Any, workdir: Path, key: str) -> int:
    """Return how many numbers of a run the store has; each step's must be there."""
    import mlflow

    from pipeline.tracking.known_runs import read_known_runs
    from pipeline.tracking.store import get_store_uri

    client, run_id = (
        mlflow.MlflowClient(get_store_uri(config, workdir)),
        read_known_runs(workdir)[key]["run_id"],
    )
    counts = {
        name: len(client.get_metric_history(run_id, name))
        for name in client.get_run(run_id).data.metrics
    }
    assert counts["step_loss"] == EPOCHS * STEPS, counts
    assert counts["train_loss"] == EPOCHS, counts
    return sum(counts.values())


@contextlib.contextmanager
def start_server(workdir: Path) -> Iterator[str]:
    """Start an MLflow server that only this machine reaches, and yield its address.

    The address is empty if it does not start.
    """
    from pipeline.config.tracking import TrackingConfig
    from pipeline.tracking.store import build_server_command, open_experiment

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workdir.mkdir()
    open_experiment(TrackingConfig(), workdir)
    command, environment = build_server_command(TrackingConfig(), workdir, port)
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
    try:
        while (
            not (up := check_server(f"{address}/health"))
            and process.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.5)
        yield address if up else ""
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(
                process.pid, signal.SIGTERM
            )  # with the workers that it started; the group is its own
        process.wait(timeout=30)


def check_server(address: str) -> bool:
    """Return whether a page is there."""
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(address, timeout=2).status == 200  # noqa: S310 - our own server
    return False


def measure_tracking(rounds: int) -> Iterator[dict[str, Any]]:
    """Yield T1 for the database and for the server."""
    from pipeline.config.tracking import TrackingConfig
    from pipeline.config.train import TrainConfig
    from pipeline.train.strategy import configure_runtime

    configure_runtime(TrainConfig())
    images = (bench_loop.make_split(STEPS * BATCH, SIDE), bench_loop.make_split(2 * BATCH, SIDE))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = measure_first_run(folder)
        with start_server(folder / "server") as address:
            stores = {"T1": TrackingConfig()} | (
                {"T1 http": TrackingConfig(uri=address)} if address else {}
            )
            seconds, points = measure_in_turns(stores, images, folder, rounds)
    for row in stores:
        pairs = list(zip(seconds[row], seconds["off"], strict=True))
        yield {
            "id": row,
            "what": (
                f"training recorded in {'SQLite' if row == 'T1' else 'a local server'} / not"
                " recorded"
            ),
            "ratio": round(statistics.median(on / off for on, off in pairs), 3),
            "added_seconds": round(statistics.median(on - off for on, off in pairs), 3),
            "over_seconds": round(
                statistics.median(on - 1.02 * off for on, off in pairs), 3
            ),  # more than two hundredths
            "seconds": {
                "on": round(statistics.median(seconds[row]), 3),
                "off": round(statistics.median(seconds["off"]), 3),
            },
            "points": points[row],
        } | ({"first_seconds": round(first, 2)} if row == "T1" else {})
    if not address:
        yield {"id": "T1 http", "ratio": "skipped"}


def measure_first_run(folder: Path) -> float:
    """Return the duration of importing MLflow and making its database, beside TensorFlow."""
    from pipeline.config.tracking import TrackingConfig
    from pipeline.tracking.store import open_experiment

    started = time.perf_counter()
    import mlflow.keras  # noqa: F401

    (folder / "T1").mkdir()
    open_experiment(TrackingConfig(), folder / "T1")
    return time.perf_counter() - started


def measure_in_turns(
    stores: dict[str, Any], images: tuple[Any, Any], folder: Path, rounds: int
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Return the seconds of each round with every store and without one, `off`.

    Also how many numbers each store has of a training.
    """
    from pipeline.tracking.tracker import MlflowTracker, NoTracker

    names = ["off", *stores]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    points = {}
    for turn in range(rounds + 1):
        for name in names if turn % 2 else names[::-1]:
            tracker = MlflowTracker(folder / name, stores[name]) if name in stores else NoTracker()
            taken, key = time_training(tracker, images, folder)
            if turn:  # the one before warms up
                seconds[name].append(taken)
            elif name in stores:
                points[name] = require_recorded(stores[name], folder / name, key)
    return seconds, points


# -- one number ------------------------------------------------------------------------------------


def make_journal_writer(workdir: Path) -> Callable[[], int]:
    """Return numbers written into a journal, one an event, and its delivery."""
    from pipeline.config.tracking import TrackingConfig
    from pipeline.tracking.journal import JournalRun
    from pipeline.tracking.tracker import MlflowTracker

    tracker = MlflowTracker(workdir, TrackingConfig())
    tracker._journal.parent.mkdir(parents=True)
    run, steps = JournalRun(tracker._append, "benchmark"), itertools.count()
    run.start("benchmark", {}, {})

    def log_points() -> int:
        for _ in range(DELIVERIES):
            for step in itertools.islice(steps, POINTS):
                run.log_metrics({"loss": 1 / (step + 1)}, step=step)
            assert tracker._delivery.deliver(), tracker.problem
        return DELIVERIES * POINTS

    return log_points


def make_client_writer(workdir: Path) -> Callable[[], int]:
    """Return numbers told to MLflow as each comes."""
    import mlflow

    from pipeline.config.tracking import TrackingConfig
    from pipeline.tracking.store import get_store_uri, open_experiment

    workdir.mkdir()
    experiment, steps = open_experiment(TrackingConfig(), workdir), itertools.count()
    client = mlflow.MlflowClient(get_store_uri(TrackingConfig(), workdir))
    run_id = client.create_run(experiment).info.run_id

    def log_points() -> int:
        for step in itertools.islice(steps, SINGLE):
            client.log_metric(run_id, "loss", 1 / (step + 1), step=step, synchronous=True)
        return SINGLE

    return log_points


def measure_points(rounds: int) -> dict[str, Any]:
    """Return T2."""
    with tempfile.TemporaryDirectory() as folder:
        rates = _harness.alternate_variants(__file__, [OURS, PEER], rounds, [folder])
    microseconds = {name: round(1e6 / rate["wall"], 1) for name, rate in rates.items()}
    return {
        "id": "T2",
        "what": f"{OURS} / {PEER}",
        "ratio": _harness.compute_ratio(rates, OURS, PEER),
        "microseconds_per_point": microseconds,
    }


def main() -> None:
    """Print one JSON object per row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="11 rounds instead of 7")
    parser.add_argument("--only", choices=("T1", "T2"), help="one row, T1 with its server")
    parser.add_argument("--rounds", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("folder", nargs="?", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.path.insert(0, str(Path(__file__).parents[1]))
    if options.worker:
        make = {OURS: make_journal_writer, PEER: make_client_writer}[options.worker]
        _harness.serve_variant(make(options.folder / options.worker))
        return
    rounds = options.rounds or (11 if options.full else 7)
    if options.only in (None, "T1"):
        for row in measure_tracking(rounds):
            print(json.dumps(row), flush=True)
    if options.only in (None, "T2"):
        print(json.dumps(measure_points(rounds)))


if __name__ == "__main__":
    main()
