"""The pages of a training are drawn from what it stored."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pipeline.reports.store import write_report_data
from pipeline.reports.training import draw_training_pages

HISTORY = [
    {
        "epoch": epoch,
        "learning_rate": 0.01,
        "train_loss": 1 / epoch,
        "validation_loss": 1.5 / epoch,
        "train_top1_error": 0.5 / epoch,
        "validation_top1_error": 0.6 / epoch,
    }
    for epoch in (1, 2)
]


HEAD = {
    "penalty": 0.1,
    "held_out": 40,
    "scores": [[0.01, 1.2, 0.3], [0.1, 0.9, 0.25], [1.0, 1.1, 0.275]],
    "note": "the strongest of the tried penalties is the best",
    "validation_top1_error": 0.2,
}


@pytest.mark.parametrize(("history", "scores"), [(HISTORY, HEAD["scores"]), ([], []), ([], None)])
def test_a_fine_tuning_shows_the_choice_of_its_penalty(tmp_path, history, scores):
    head = HEAD if scores is None else HEAD | {"scores": scores}
    values = {"labels": ["cat"], "partners": [], "fractions": []}
    values |= {"history": history, "finetune": {"head": head}}
    write_report_data(tmp_path, values, {"images": np.full((1, 8, 8, 3), 128, np.uint8)})
    folder = tmp_path / "report"
    folder.mkdir()
    draw_training_pages(SimpleNamespace(directory=tmp_path, best_epoch=0), folder)
    assert json.loads((folder / "finetune.json").read_text()) == {"head": head}
    assert (folder / "learning_curves.png").exists() == bool(history)
    # Nothing is held out of a single image per class, so there is nothing to show.
    assert (folder / "classifier_penalty.png").exists() == bool(head["scores"])


@pytest.mark.parametrize("mixed", [False, True])
def test_curves_images_and_the_history_are_drawn_from_stored_data(tmp_path, mixed):
    pixels = np.full((10, 8, 8, 3), 128, np.uint8)
    classes = {
        "labels": ["a cat of $5"] * 10,
        "partners": ["dog"] * 10 if mixed else [],
        "fractions": [0.75] * 10 if mixed else [],
    }
    write_report_data(tmp_path, {"history": HISTORY, "finetune": {}, **classes}, {"images": pixels})
    folder = tmp_path / "report"
    folder.mkdir()
    draw_training_pages(SimpleNamespace(directory=tmp_path, best_epoch=2), folder)
    assert json.loads((folder / "history.json").read_text()) == HISTORY
    for name in ("learning_curves.png", "training_images.png"):
        with Image.open(folder / name) as image:
            assert min(image.size) > 100
