"""Six days of a classifier that looks after itself, with real processes: a scheduler, its
retrainings, a service, and a person.

The images are scikit-learn's digits, scans of real handwriting; later ones are by other writers
than earlier ones. As a program, it tells the story in a folder of your choice, for
docs/retraining.md: `python tests/test_story.py FOLDER`.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.config.tracking import TrackingConfig
from pipeline.tracking.registry import Registry

PROGRAM = (sys.executable, "-m", "pipeline")
# A network that learns these in seconds; the margin is what some 200 test images can decide.
SETTINGS = {
    "data.short_side": 32,
    "model.image_size": 28,
    "model.network": "small",
    "model.alexnet.width_multiplier": 0.3,
    "train.epochs": 20,
    "train.flip": "no",
    "evaluate.report": "short",
    "release.margin": 0.04,
    "serve.reload_seconds": 1,
}


class House:
    """A folder of images and what works with it."""

    def __init__(self, folder):
        self.folder = folder
        self.photos = folder / "photos"
        self.digits = load_digits()
        self.scheduler = self.service = None
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("ALEXNET_")
        }
        self.environment = environment | {"PYTHONPATH": str(Path(__file__).parents[1])}

    def add(
        self, start, stop, name="digit", change=lambda pixels: pixels, label=lambda label: label
    ):
        """Add images; `change` takes and returns float [8, 8] in [0, 255], `label` is the class."""
        for index in range(start, stop):
            pixels = np.clip(change(self.digits.images[index] / 16 * 255), 0, 255).astype(np.uint8)
            place = self.photos / str(label(int(self.digits.target[index])))
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).resize((32, 32), Image.Resampling.NEAREST).save(
                place / f"{name}{index:04d}.png"
            )

    def take_away(self, name):
        for path in self.photos.glob(f"*/{name}*.png"):
            path.unlink()

    def alexnet(self, *arguments, code=0):
        done = subprocess.run(
            [*PROGRAM, "--json", *arguments],
            cwd=self.folder,
            env=self.environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, (
            f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        # A failure follows the result as an object of its own, with the one key "error".
        shown: dict[str, object] = {}
        for line in done.stdout.splitlines():
            shown |= json.loads(line)
        return shown

    def start(self, *arguments):
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(
                [*PROGRAM, *arguments],
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def day(self, code=0):
        """Let a day's scheduled run come: what the running scheduler makes of it."""
        scheduled_run = self.alexnet("schedule", "now", code=code)
        return scheduled_run, json.loads(
            (
                self.folder
                / "mlruns"
                / "retrainings"
                / scheduled_run["scheduled_run"]
                / "result.json"
            ).read_text()
        )

    def serving(self, version=None):
        """The version that the service answers with; waits until it is the one that is named."""
        until = time.monotonic() + 60
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            try:
                connection.request("GET", "/model")
                found = json.loads(connection.getresponse().read()).get("version")
            except OSError:
                found = None
            finally:
                connection.close()
            if found is not None and version in (None, found):
                return found
            assert time.monotonic() < until, f"the service answers with version {found}"
            time.sleep(0.5)

    def close(self):
        for process in (self.scheduler, self.service):
            if process is not None:
                process.send_signal(signal.SIGTERM)
                assert process.wait(timeout=60) == 0


def dim(pixels):
    """What a worn camera sees."""
    return 90 + pixels * 0.3


def run_story(house, port):
    """Live through the six days; return what became of each."""
    dice = np.random.default_rng(0)
    settings = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    story = {}

    house.add(0, 1000)
    # A day is when the story says: no time of the clock comes due meanwhile.
    house.alexnet("schedule", "add", "--every", "366d", "--dataset", "photos", *settings)
    house.scheduler = house.start("schedule", "serve")
    until = time.monotonic() + 60
    while not (house.folder / "mlruns" / "schedule.owner").exists():
        assert time.monotonic() < until, "the scheduler does not start"
        time.sleep(0.2)
    story["day 1"] = house.day()
    house.port = port
    house.service = house.start("serve", "--port", str(port), "--set", "serve.reload_seconds=1")
    story["serving 1"] = house.serving()

    story["day 2"] = house.day()

    house.add(1000, 1300)
    story["day 3"] = house.day()
    story["serving 3"] = house.serving("2")

    house.add(1300, 1600, "poison", label=lambda _label: int(dice.integers(10)))
    story["day 4"] = house.day(code=3)
    story["serving 4"] = house.serving()

    house.take_away("poison")
    house.add(1300, 1600, "dim", change=dim)
    story["day 5"] = house.day()
    story["serving 5"] = house.serving("4")

    story["rollback"] = house.alexnet("model", "rollback")
    story["serving 6"] = house.serving("2")
    story["day 6"] = house.day()
    return story


def free_port():
    with socket.socket() as candidate:
        candidate.bind(("127.0.0.1", 0))
        return candidate.getsockname()[1]


@pytest.mark.slow
def test_six_days(tmp_path):
    house = House(tmp_path)
    try:
        story = run_story(house, free_port())
    finally:
        house.close()
    outcomes = {
        day: (story[day][0]["state"], story[day][0]["outcome"])
        for day in story
        if day.startswith("day")
    }
    assert outcomes == {
        "day 1": ("ran", "promoted"),
        "day 2": ("skipped", "skipped"),
        "day 3": ("ran", "promoted"),
        "day 4": ("ran", "refused"),
        "day 5": ("ran", "promoted"),
        "day 6": ("skipped", "skipped"),
    }
    results = {day: story[day][1] for day in outcomes}
    assert results["day 1"]["triggers"] == ["first"]
    assert results["day 2"]["numbers"]["new_data.images"] == 0
    assert story["day 2"][0]["why"].startswith(
        "No reason to train again: 0 images changed (0.00 %); "
    )
    assert "new_data" in results["day 3"]["triggers"]
    assert results["day 4"]["triggers"] == ["new_data", "degraded_champion"]
    assert "failed checks: against_champion" in results["day 4"]["why"]
    assert "drift" in results["day 5"]["triggers"]
    assert results["day 5"]["numbers"]["drift.contrast.p_value"] == pytest.approx(0.001)
    assert results["day 6"]["triggers"] == []
    assert "version 4 was withdrawn" in results["day 6"]["why"]
    assert [story[f"serving {day}"] for day in (1, 3, 4, 5, 6)] == ["1", "2", "2", "4", "2"]
    # Each scheduled run has one run in MLflow, with its schedule, triggers and page.
    client = Registry("alexnet", TrackingConfig(), tmp_path / "mlruns").connect()
    runs = client.search_runs(["1"], "tags.schedule = 'main'", order_by=["attributes.start_time"])
    assert len(runs) == 6
    assert [run.data.tags["retrain"] for run in runs] == ["yes", "no", "yes", "yes", "yes", "no"]
    assert [run.info.run_name.partition(":")[0] for run in runs] == [
        story[day][0]["outcome"] for day in outcomes
    ]
    assert [run.info.status for run in runs] == ["FINISHED"] * 6
    for run, result in zip(runs, results.values(), strict=True):
        assert run.data.tags["scheduled_run"] == result["scheduled_run"]
        assert run.info.run_id == result["run_id"]
        assert "retraining.html" in [
            item.path.rpartition("/")[2]
            for item in client.list_artifacts(run.info.run_id, "report")
        ]
        assert Path(tmp_path, result["page"]).is_file()


if __name__ == "__main__":
    (folder,) = map(Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    house = House(folder.resolve())
    try:
        for day, (scheduled_run, _) in {
            name: value for name, value in run_story(house, 8099).items() if name.startswith("day")
        }.items():
            sys.stdout.write(
                f"{day} {' '.join(scheduled_run[key] for key in ('state', 'outcome', 'why'))}\n"
            )
    finally:
        house.close()
