"""A network of 24 x 40 pixels from images to a release, and what it answers then."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.cli.test_stages import SHORT, alexnet, last_line

NETWORK = """
from keras import layers


def build(image_size, classes):
    height, width = image_size
    return [layers.Conv2D(8, 3, strides=2, activation="relu"), layers.Flatten(),
            layers.Dense(classes)]
"""
COMMON = (
    *("--dataset", "photos", "--image-size", "24x40", "--epochs", "4", "--batch-size", "16"),
    *("--set", "data.validation_fraction=0.3", "--set", "train.finetune=off"),
    *("--set", "release.max_calibration_error=1"),
    *SHORT,
)


@pytest.fixture
def photos(tmp_path):
    """A folder of 60 x 100 images in two colors, and a network of one's own beside it."""
    rng = np.random.default_rng(0)
    for number, name in enumerate("ab"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(60):
            pixels = np.kron(rng.integers(60, 196, (6, 10, 3)), np.ones((10, 10, 1)))
            pixels[..., number] = 220
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(tmp_path / "photos" / name / f"{index:02d}.png")
    (tmp_path / "my_wide.py").write_text(NETWORK)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("--network", "small", "--set", "model.alexnet.width_multiplier=0.2"),
        ("--network", "my_wide:build", "--set", "train.crop=resized", "--set", "train.cutmix=1"),
    ],
    ids=["small", "own"],
)
def test_from_images_to_answers(words, photos):
    stages = ("ingest", "build", "train", "evaluate", "promote")
    done = alexnet("--json", *stages, *words, *COMMON, cwd=photos)
    (built,) = (photos / "mlruns" / "stages").glob("build-*/artifact.json")
    known = json.loads(built.read_text())
    assert (known["image_size"], known["short_side"], known["fit"]) == ([24, 40], 45, "pad")
    assert known["layers"][0]["output"] == [24, 40, 3]
    assert "24 x 40 pixels" in (built.parent / "report" / "network.html").read_text()
    assert last_line(done)["test"]["top1_error"] < 0.4
    remembered = (photos / "mlruns" / "current.json").read_text()
    assert '"model.image_size": "24x40"' in remembered
    again = alexnet("--json", *stages[:-1], *words, *COMMON, cwd=photos)
    assert {stage["state"] for stage in last_line(again)["stages"]} == {"skipped"}
    answer = alexnet("--json", "predict", "photos/a/00.png", cwd=photos)
    assert '"a"' in answer.stdout
    alexnet("export", "savedmodel", "--output", "out", cwd=photos)
    told = json.loads(next((photos / "out").rglob("model.json")).read_text())
    assert (told["image_size"], told["short_side"]) == ([24, 40], 45)
