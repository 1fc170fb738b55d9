"""Edits in a copy of the package that make a result stale, and that do not, seen by `status`."""

from pathlib import Path

import pytest

from tests.package_copy import ROOT, copy_package, run_alexnet

SMALL = (
    *("--set", "model.alexnet.width_multiplier=0.1"),
    *("--set", "tracking.enabled=no"),
    *("--set", "evaluate.report=short"),
    *("--epochs", "1"),
)


def alexnet(package, cwd, *arguments):
    return run_alexnet(package, cwd, *arguments)[-1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A work directory in which the digits were trained by the package as it is."""
    cwd = tmp_path_factory.mktemp("finished")
    result = alexnet(ROOT, cwd, "run", *SMALL)
    assert {stage["state"] for stage in result["stages"]} == {"ran"}
    return cwd


@pytest.fixture
def package(tmp_path):
    return copy_package(tmp_path)


def states(package, cwd):
    return {stage["stage"]: stage["state"] for stage in alexnet(package, cwd, "status")["stages"]}


def replace(package, file, old, new):
    path = package / "pipeline" / file
    text = path.read_text(encoding="utf-8")
    assert old in text, (file, old)
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


DONE = dict.fromkeys(("ingest", "build", "train", "evaluate"), "done")


def test_another_word_in_an_error_of_ingest_leaves_the_training(package, finished):
    replace(package, "data/audit.py", "There is no usable image in", "Nothing usable is in")
    found = states(package, finished)
    # Ingest must be run again to know that it makes the same: what comes after waits for it.
    assert found["ingest"] == "stale"
    again = alexnet(package, finished, "run", *SMALL)
    assert {stage["name"]: stage["state"] for stage in again["stages"]} == {
        "ingest": "ran",
        "build": "skipped",
        "train": "skipped",
        "evaluate": "skipped",
    }
    assert states(package, finished) == DONE


def test_colors_and_headings_make_nothing_stale(package, finished):
    replace(package, "reports/training.py", "#1f4fa3", "#123456")
    replace(package, "reports/evaluation/sections.py", '"Confusions"', '"What is confused"')
    assert states(package, finished) == DONE


def test_a_new_row_of_networks_makes_nothing_stale(package, finished):
    row = """ALEXNET_ROWS = (
    AlexNetRow(
        name="narrow",
        summary="a quarter of the filters",
        min_image_size=64,
        image_size=224,
        layers=AlexNetLayers(_CONVOLUTIONS_OF_2012, hidden=(1024, 1024)),
    ),
"""
    replace(package, "model/alexnet_rows.py", "ALEXNET_ROWS = (\n", row)
    assert states(package, finished) == DONE


def test_a_comment_anywhere_makes_nothing_stale(package, finished):
    for path in (package / "pipeline").rglob("*.py"):
        path.write_text(path.read_text(encoding="utf-8") + "\n# A comment.\n", encoding="utf-8")
    assert states(package, finished) == DONE


def test_a_changed_constant_in_the_loss_makes_the_training_stale(package, finished):
    replace(package, "train/step.py", "losses = (1 - smoothing)", "losses = (1.001 - smoothing)")
    assert states(package, finished) == {
        "ingest": "done",
        "build": "done",
        "train": "stale",
        "evaluate": "waiting",
    }
    (accepted,) = alexnet(package, finished, "accept", "train")["accepted"]
    assert accepted["stage"] == "train"
    assert "code pipeline.train.step changed" in accepted["changes"]
    assert states(package, finished) == DONE
    status = alexnet(package, finished, "status")
    assert status["stages"][2]["accepted"][0]["changes"] == accepted["changes"]
    assert states(ROOT, finished) == DONE  # what was accepted is there under both codes


def test_pages_are_drawn_again_in_other_colors_without_tensorflow(package, finished):
    replace(package, "reports/evaluation/sections.py", '"Confusions"', '"What is confused"')
    (package / "tensorflow.py").write_text("raise ImportError('not needed')")
    (package / "keras.py").write_text("raise ImportError('not needed')")
    drawn = alexnet(package, finished, "report")["pages"]
    assert {page["stage"] for page in drawn} >= {"ingest", "build", "train", "evaluate"}
    (folder,) = (Path(page["folder"]) for page in drawn if page["stage"] == "evaluate")
    assert "What is confused" in (folder / "report.html").read_text(encoding="utf-8")
    assert states(ROOT, finished) == DONE
