"""Real retrainings whose processes are killed.

A scheduled run ends with one final state, one version and one decision.
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

from pipeline import api
from pipeline.api import Workspace
from pipeline.config.tracking import TrackingConfig
from pipeline.schedule.ledger import Ledger
from pipeline.tracking.registry import Registry

pytestmark = pytest.mark.slow
SETTINGS = {
    "data.short_side": "32",
    "model.image_size": "28",
    "model.network": "small",
    "model.alexnet.width_multiplier": "0.3",
    "train.epochs": "15",
    "train.flip": "no",
    "evaluate.report": "short",
    "train.checkpoint_seconds": "0",
    "release.max_calibration_error": "1",
}
# Kills its own process where the result of the scheduled run would be written: the registry has
# everything already.
BEFORE_THE_RESULT = """
import json, os, signal, sys
from pipeline import api
from pipeline.api import Workspace
from pipeline.workspace import retraining
retraining.write_retraining = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
api.retrain(sys.argv[2], workspace=Workspace(settings=json.loads(sys.argv[1])))
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    digits = load_digits()
    for index in range(800):
        folder = tmp_path / "photos" / str(digits.target[index])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[index] * 15).astype(np.uint8)).resize((32, 32)).save(
            folder / f"{index}.png"
        )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def process(*arguments, cwd):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("ALEXNET_")
    }
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def versions(place):
    return Registry("alexnet", TrackingConfig(), place / "mlruns").list_versions()


def count_attempts(ledger):
    """Return the attempts of the last scheduled run, 0 without one."""
    found = ledger.list_latest_scheduled_runs()
    return found[0].attempts if found else 0


def test_killed_every_few_seconds_a_slot_comes_to_one_end(place):
    api.add_schedule(
        every="366d", workspace=Workspace(settings={"data.dataset": "photos", **SETTINGS})
    )
    ledger, kills = Ledger(place / "mlruns" / "schedule.db"), 0
    # Longer and longer, so that each start comes further than the one before, and the last one to
    # the end.
    for seconds in (3, 8, 12, 16, 20, 25, 30, 40, 300):
        started = process("-m", "pipeline", "schedule", "now", cwd=place)
        try:
            # Its time counts from its attempt: on a busy machine it imports for longer than that.
            while count_attempts(ledger) <= kills and started.poll() is None:
                time.sleep(0.05)
            started.wait(timeout=seconds)
            break
        except subprocess.TimeoutExpired:
            kills += 1
            started.send_signal(signal.SIGKILL)
            started.wait()
    assert kills >= 3
    (scheduled_run,) = ledger.list_latest_scheduled_runs()
    assert (
        scheduled_run.state,
        scheduled_run.outcome,
        scheduled_run.version,
    ) == ("ran", "promoted", "1")
    assert scheduled_run.attempts == kills + 1
    (version,) = versions(place)
    assert (version.gate, set(version.aliases), version.tags["scheduled_run"]) == (
        "passed",
        {"champion", "candidate"},
        scheduled_run.key,
    )
    log = (place / "mlruns" / "retrainings" / scheduled_run.key / "output.log").read_text()
    lines = [
        json.loads(line) for line in log.splitlines() if line.startswith("{")
    ]  # TensorFlow writes others
    states = [(told["stage"]["name"], told["stage"]["state"]) for told in lines if "stage" in told]
    assert states.count(("ingest", "ran")) == 1  # what was finished is not done again
    assert states.count(("promote", "ran")) == 1


def test_killed_after_the_promotion_and_before_the_record_the_decision_stands(place):
    scheduled_run = "main/20261127T030000Z"
    settings = {"data.dataset": str(place / "photos"), **SETTINGS}
    killed = process("-c", BEFORE_THE_RESULT, json.dumps(settings), scheduled_run, cwd=place)
    assert killed.wait(timeout=300) == -signal.SIGKILL
    assert not (place / "mlruns" / "retrainings" / scheduled_run / "result.json").exists()
    assert [version.number for version in versions(place)] == ["1"]
    began = time.monotonic()
    result = api.retrain(scheduled_run, workspace=Workspace(settings=settings))
    assert time.monotonic() - began < 30  # nothing was trained
    assert (result.outcome, result.version) == ("promoted", "1")
    assert api.retrain(scheduled_run, workspace=Workspace(settings=settings)) == result
    (version,) = versions(place)
    assert set(version.aliases) == {"champion", "candidate"}
