"""Six networks that have little in common, through every stage: tests/network_chain.py for each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
USERS_OWN = "tests.network_chain:build"
SECTIONS = {
    "Grad-CAM",
    "Nearest training images",
    "First-layer filters",
    "Most exciting patches",
    "Feature maps",
    "Corrupted images",
    "Speed",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "image_size", "tuning"),
    [
        ("alexnet/small", 32, ""),
        ("keras/MobileNetV3Small", 64, ""),
        ("keras/EfficientNetV2B0", 32, ""),
        ("keras/ResNet50V2", 64, ""),
        ("keras/ConvNeXtTiny", 64, ""),
        (USERS_OWN, 32, ""),
        ("efficientnet_lite0", 96, "full"),
    ],
)
def test_every_stage_takes_the_network(tmp_path, network, image_size, tuning):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("ALEXNET_")
    }
    done = subprocess.run(
        [sys.executable, "tests/network_chain.py", network, str(image_size), str(tmp_path)]
        + [tuning] * bool(tuning),
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["checks"]["as evaluated"]
    assert found["checks"]["serving"]
    assert sorted(found["guesses"]) == ["blue", "green", "red"]
    if tuning:  # in images of noise alone phase one errs, so that phase two is tried
        assert found["finetuned"] in ("head", "full")
        assert found["epochs"] >= 1
    assert set(found["exports"]) == {"savedmodel", "onnx", "litert"}
    assert set(found["headings"]) >= SECTIONS
