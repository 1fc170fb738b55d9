"""A fine-tuning that is killed in either phase ends with the bits of one that was not."""

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

ROOT = Path(__file__).parents[2]
COMMAND = (
    *(sys.executable, "-m", "pipeline", "--json", "ingest", "build", "train"),
    *("--dataset", "photos", "--image-size", "64", "--batch-size", "16"),
    *("--set", "data.short_side=72", "--set", "data.validation_fraction=0.2"),
    *("--set", "train.finetune=full", "--set", "train.finetune_epochs=3"),
    *("--set", "train.checkpoint_steps=1", "--set", "tracking.enabled=no"),
)


def start(cwd, *more):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("ALEXNET_")
    }
    return subprocess.Popen(
        [*COMMAND, *more],
        cwd=cwd,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(cwd, *more):
    """Return the stages of a command that comes to its end, and the record of its training."""
    process = start(cwd, *more)
    output, complaint = process.communicate(timeout=900)
    assert process.returncode == 0, complaint
    stages = json.loads(output.splitlines()[-1])["stages"]
    return json.loads((cwd / stages[-1]["directory"] / "artifact.json").read_text())


def kill_when(cwd, pattern):
    """Start the command and kill it with SIGKILL as soon as a file is there."""
    with start(cwd) as process:
        end = time.monotonic() + 600
        while not list(cwd.glob(pattern)):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)


@pytest.fixture
def photos(tmp_path):
    """Images of two classes that differ in the direction of stripes that noise hides.

    Phase one errs on so many that phase two is tried.
    """
    rng = np.random.default_rng(0)
    for name, axis in (("across", 0), ("along", 1)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(60):
            wave = 0.3 * np.sin(np.arange(80) / rng.uniform(2, 6) + rng.uniform(0, 6))
            stripes = np.expand_dims(wave, 1 - axis) + np.zeros((80, 80))
            pixels = 128 + stripes[..., np.newaxis] + rng.normal(0, 30, (80, 80, 3))
            image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            image.save(tmp_path / "photos" / name / f"{index}.png")
    return tmp_path


@pytest.mark.slow
def test_killed_in_either_phase_it_goes_on_with_the_same_bits(photos):
    whole = finish(photos, "--workdir", "whole")
    assert whole["epochs"] == 3
    kill_when(photos, "mlruns/stages/train-*.partial/scratch/features/train/*.npy")
    kill_when(photos, "mlruns/stages/train-*.partial/scratch/classifier.npz")
    kill_when(photos, "mlruns/stages/train-*.partial/scratch/checkpoint.npz")
    resumed = finish(photos)
    assert resumed == whole


@pytest.mark.slow
def test_two_devices_tune_as_one(photos):
    one = finish(photos, "--workdir", "one")
    two = finish(photos, "--workdir", "two", "--devices", "cpu:2")
    assert two["finetuned"] == one["finetuned"]
    assert two["validation_top1_error"] == one["validation_top1_error"]
    found = []
    for name in ("one", "two"):
        (path,) = photos.glob(f"{name}/stages/train-*/report/history.json")
        found.append(json.loads(path.read_text()))
    assert len(found[0]) == len(found[1]) == 3
    for epoch, other in zip(*found, strict=True):
        for number in ("train_loss", "validation_loss"):
            assert other[number] == pytest.approx(epoch[number], rel=1e-3)
