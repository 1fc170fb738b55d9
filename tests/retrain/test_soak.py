"""Fifty retrainings in a row, by one scheduler: it stays as it was, and the disk stays bounded.

A scheduled run comes every second, so there is always one to be run, and many that are missed. Each
finds a new image. The number is that of retrainings that were done: `ALEXNET_SOAK=5` for a shorter
look.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.schedule.ledger import Ledger

RETRAININGS = int(os.environ.get("ALEXNET_SOAK", "50"))
SETTINGS = {
    "data.short_side": 16,
    "model.image_size": 16,
    "model.network": "small",
    "model.alexnet.width_multiplier": 0.1,
    "train.epochs": 1,
    "train.flip": "no",
    "evaluate.report": "short",
    "release.margin": 0.9,
    "release.class_margin": 1,
    "release.max_calibration_error": 1,
    "retrain.triggers": "always",
    "retrain.keep": 3,
}


def megabytes_below(folder):
    return (
        sum(
            path.lstat().st_size
            for path in folder.rglob("*")
            if path.is_file() or path.is_symlink()
        )
        / 1e6
    )


def resident_megabytes(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def zombies_of(pid):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[1] == str(pid) and fields[0] == "Z":
            found.append(stat.parent.name)
    return found


@pytest.mark.slow
def test_fifty_retrainings_leave_the_scheduler_as_it_was(tmp_path):
    digits = load_digits()

    def add(index):
        folder = tmp_path / "photos" / str(digits.target[index])
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (digits.images[index] * 15).astype(np.uint8)
        Image.fromarray(pixels).resize((16, 16)).save(folder / f"{index}.png")

    for index in range(400):
        add(index)
    arguments = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("ALEXNET_")
    }
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    program = (sys.executable, "-m", "pipeline", "schedule")
    add_schedule = (*program, "add", "--every", "1s", "--dataset", "photos", *arguments)
    subprocess.run(add_schedule, cwd=tmp_path, env=environment, check=True)
    ledger, seen = Ledger(tmp_path / "mlruns" / "schedule.db"), []
    with (tmp_path / "log").open("w") as log:
        scheduler = subprocess.Popen([*program, "serve"], cwd=tmp_path, env=environment, stderr=log)
        try:
            while len(seen) < RETRAININGS:
                time.sleep(0.5)
                assert scheduler.poll() is None, (tmp_path / "log").read_text()
                done = [
                    scheduled_run
                    for scheduled_run in ledger.list_latest_scheduled_runs(limit=1_000_000)
                    if scheduled_run.state in ("ran", "failed")
                ]
                if len(done) > len(seen):
                    add(400 + len(done))
                    time.sleep(0.5)
                    assert zombies_of(scheduler.pid) == []
                    seen.append(
                        {
                            "resident": resident_megabytes(scheduler.pid),
                            "descriptors": len(list(Path(f"/proc/{scheduler.pid}/fd").iterdir())),
                            "threads": len(list(Path(f"/proc/{scheduler.pid}/task").iterdir())),
                            "disk": megabytes_below(tmp_path / "mlruns"),
                        }
                    )
        finally:
            scheduler.send_signal(signal.SIGTERM)
            assert scheduler.wait(timeout=120) == 0
    scheduled_runs = ledger.list_latest_scheduled_runs(limit=1_000_000)
    assert {scheduled_run.state for scheduled_run in scheduled_runs} <= {
        "ran",
        "coalesced",
        "pending",
    }, [scheduled_run.why for scheduled_run in scheduled_runs if scheduled_run.state == "failed"]
    # One epoch makes worse ones, too, and a scheduled run that comes before the next image makes
    # the same again.
    assert {
        scheduled_run.outcome for scheduled_run in scheduled_runs if scheduled_run.state == "ran"
    } <= {
        "promoted",
        "refused",
        "unchanged",
    }
    sys.stdout.write(
        json.dumps({"first": seen[0], "second": seen[min(4, len(seen) - 1)], "last": seen[-1]})
    )
    early, last = seen[min(4, len(seen) - 1)], seen[-1]
    assert last["resident"] - seen[0]["resident"] <= 20
    assert last["descriptors"] <= early["descriptors"]
    assert last["threads"] <= early["threads"]
    # The disk after five is what keep=3, the champion and the one before need; the rest is MLflow's
    # and the ledger's history.
    assert last["disk"] <= 1.5 * early["disk"] + 10
