"""docs/adding.md, followed to the letter in a copy of the package."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.package_copy import ROOT, copy_package, run_alexnet

PAGE = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
CODE = r"\n\n```python\n(?P<code>.*?)```"
NEW_FILE = re.compile(r"New file `(?P<file>pipeline/[^`]+)`:" + CODE, re.DOTALL)
CHANGE = re.compile(
    r"`(?P<file>pipeline/[^`]+)`, (?P<where>below|above|instead of) `(?P<anchor>[^`]+)`:" + CODE,
    re.DOTALL,
)


OWN_NETWORK = re.compile(r"`(?P<file>my_networks\.py)`:" + CODE, re.DOTALL)


def follow_page(folder):
    """Make every change of the page below a folder that holds the package."""
    for found in NEW_FILE.finditer(PAGE):
        path = folder / found["file"]
        path.parent.mkdir(exist_ok=True)
        path.write_text(found["code"], encoding="utf-8")
    for found in CHANGE.finditer(PAGE):
        path, anchor, code = folder / found["file"], f"{found['anchor']}\n", found["code"]
        text = path.read_text(encoding="utf-8")
        assert text.count(anchor) == 1, (found["file"], found["anchor"])
        new = {"below": anchor + code, "above": code + anchor, "instead of": code}[found["where"]]
        path.write_text(text.replace(anchor, new), encoding="utf-8")


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A copy of the package in which everything on the page was added."""
    folder = copy_package(tmp_path_factory.mktemp("copy"))
    follow_page(folder)
    return folder


def test_the_page_changes_what_it_says():
    files = {found["file"] for found in CHANGE.finditer(PAGE)}
    assert {
        "pipeline/config/train.py",
        "pipeline/data/augment.py",
        "pipeline/model/alexnet_rows.py",
        "pipeline/reproduce/claims/ablations.py",
        "pipeline/cli/stages.py",
    } <= files
    assert {found["file"] for found in NEW_FILE.finditer(PAGE)} >= {"pipeline/summary/stage.py"}


@pytest.mark.slow
def test_an_augmentation_a_network_and_a_stage_run(changed, tmp_path):
    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("bright", 190)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(30):
            pixels = np.clip(rng.normal(level, 25, (64, 64, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    result = run_alexnet(
        changed,
        tmp_path,
        *("ingest", "build", "train", "summarize", "--dataset", "photos"),
        *("--network", "narrow", "--image-size", "64", "--epochs", "1"),
        *("--set", "train.global_batch_size=16"),
        *("--set", "data.short_side=64", "--set", "train.inversion=0.5"),
        *("--set", "summary.classes=2", "--set", "tracking.enabled=no"),
        *("--set", "model.alexnet.width_multiplier=0.25"),
    )[-1]
    states = {stage["name"]: stage["state"] for stage in result["stages"]}
    assert states == dict.fromkeys(("ingest", "build", "train", "summarize"), "ran")
    assert result["model"]["network"] == "narrow"
    folder = tmp_path / result["stages"][-1]["directory"]
    assert len((folder / "report" / "classes.txt").read_text().split()) == 2
    account = json.loads(next(tmp_path.glob("mlruns/stages/train-*/run.json")).read_text())
    assert account["fingerprint"]["setting train.inversion"] == 0.5


@pytest.mark.slow
def test_a_network_of_ones_own_in_ten_lines(tmp_path):
    found = OWN_NETWORK.search(PAGE)
    assert len(found["code"].splitlines()) <= 10
    (tmp_path / found["file"]).write_text(found["code"], encoding="utf-8")
    result = run_alexnet(
        ROOT,
        tmp_path,
        *("run", "--network", "my_networks:build", "--image-size", "16", "--epochs", "1"),
        *("--set", "data.short_side=18", "--set", "tracking.enabled=no"),
        *("--set", "evaluate.report=short"),
    )[-1]
    assert {stage["state"] for stage in result["stages"]} == {"ran"}
    assert result["model"]["network"] == "my_networks:build"
    status = run_alexnet(ROOT, tmp_path, "status")[-1]
    assert {stage["state"] for stage in status["stages"]} == {"done"}
    edited = found["code"].replace("Conv2D(64", "Conv2D(48")
    assert edited != found["code"]
    (tmp_path / found["file"]).write_text(edited, encoding="utf-8")
    status = run_alexnet(ROOT, tmp_path, "status")[-1]
    states = {stage["stage"]: stage["state"] for stage in status["stages"]}
    assert (states["ingest"], states["build"]) == ("done", "stale")


def test_a_claim_is_planned_and_named_in_the_help(changed, tmp_path):
    (row,) = run_alexnet(
        changed, tmp_path, "reproduce", "decay", "--dry-run", "--dataset", "digits"
    )
    assert row["claim"] == "decay"
    assert row["trainings"] > 0
