"""The dataset card, drawn from stored data alone."""

import json
import subprocess
import sys

import numpy as np
import pytest

from pipeline.artifacts import DatasetArtifact
from pipeline.reports.dataset import draw_dataset_pages
from pipeline.reports.store import write_report_data

NAMES = ["cat", "<b>dog</b>", "two\nlines $x^2$"]
CARD = {
    "name": "pets",
    "digest": "0" * 64,
    "found": 18,
    "accepted": 12,
    "quarantined": [{"file": "a/b.jpg", "reason": "empty file"}],
    "excluded_duplicates": ["copy.jpg"],
    "duplicates": {
        "groups": [["one.jpg", "copy.jpg"]],
        "groups_in_several_splits": 1,
        "equal_images_with_several_labels": [],
    },
    "excluded": {"hidden": 4},
    "empty_folders": 1,
    "how_split": "assigned",
    "reads": {"train": "train"},
    "class_names": NAMES,
    "class_counts": {"train": [3, 2, 1], "validation": [1, 1, 1], "test": [1, 1, 1]},
    "original_pixels": {"height": [8, 9, 10], "width": [8, 9, 10]},
    "short_side": 16,
    "channel_mean": [10.0, 20.0, 30.0],
    "channel_std": [1.0, 2.0, 3.0],
    "channel_covariance": [[1.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 9.0]],
    "contents_in_several_splits": 0,
    "contents_with_several_labels": 0,
}


@pytest.fixture
def record(tmp_path):
    """A finished stage of which there is only what the card is drawn from."""
    rng = np.random.default_rng(0)
    values = {
        "card": CARD,
        "measured_images": 20_000,
        "preview_columns": ["center", "crop 1"],
        "crop_fraction": "7/8",
        "color_noise": 0.1,
        "principal_std": [3.0, 2.0, 1.0],
    }
    arrays = {
        "examples": rng.integers(0, 256, (6, 16, 16, 3), np.uint8),
        "example_labels": np.asarray([0, 0, 0, 1, 1, 2], np.int32),
        "mean_image": rng.random((16, 16, 3), np.float32) * 255,
        "principal_directions": np.eye(3),
        "preview": rng.integers(0, 256, (2, 3, 14, 14, 3), np.uint8),
        "duplicates": rng.integers(0, 256, (1, 2, 64, 64, 3), np.uint8),
    }
    (tmp_path / "stage").mkdir()
    write_report_data(tmp_path / "stage", values, arrays)
    return DatasetArtifact.model_construct(directory=tmp_path / "stage")


def draw(record, folder):
    folder.mkdir()
    draw_dataset_pages(record, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_card_has_every_section_and_escapes_names(record, tmp_path):
    files = draw(record, tmp_path / "report")
    page = files["dataset_card.html"].decode()
    for heading in ("Images", "Files", "Left out", "Duplicates", "Splits", "Classes", "Pixels"):
        assert f"<h2>{heading}</h2>" in page
    assert "12 images of 3 classes: 6 train, 3 validation, 3 test." in page
    assert "&lt;b&gt;dog&lt;/b&gt;" in page
    assert "<b>dog" not in page
    assert "<td>50.0 %</td>" in page
    assert page.count("<img") == 5
    assert json.loads(files["dataset_card.json"]) == CARD


def test_a_card_drawn_again_is_the_same(record, tmp_path):
    assert draw(record, tmp_path / "one") == draw(record, tmp_path / "two")


def test_without_duplicates_there_is_no_section_of_them(record, tmp_path):
    card = CARD | {"duplicates": CARD["duplicates"] | {"groups": []}, "quarantined": []}
    stored = json.loads((record.directory / "report_data.json").read_text())
    (record.directory / "report_data.json").write_text(json.dumps(stored | {"card": card}))
    page = draw(record, tmp_path / "report")["dataset_card.html"].decode()
    assert "<h2>Duplicates</h2>" not in page
    assert "<h2>Left out</h2>" not in page


def test_drawing_needs_neither_tensorflow_nor_other_rooms():
    code = (
        "import sys, pipeline.reports.dataset; print([name for name in sys.modules if name in"
        " ('tensorflow', 'keras') or name.startswith(('pipeline.data', 'pipeline.train'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
