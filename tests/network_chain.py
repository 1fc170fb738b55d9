"""The whole chain for one network, for tests/test_networks.py: a process of its own for each.

    python tests/network_chain.py NETWORK IMAGE_SIZE FOLDER [full]

With `full` it has pretrained weights, both phases of fine-tuning and a strict check of the signal.
Images of three colors are prepared, learned, evaluated, promoted, predicted and exported with the
public functions; what became of it is printed as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import keras
import numpy as np
from PIL import Image

COLORS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (210, 50, 40)}
IMAGES = 40  # of each class


def build(image_size, classes):
    """Return a network of a user's own: no chain, no square window, two kinds of normalization."""
    layers = keras.layers
    image = keras.Input((image_size, image_size, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1)(image)
    x = layers.Conv2D(12, (3, 5), strides=2, padding="same", activation="silu")(x)
    y = layers.GroupNormalization(4)(layers.DepthwiseConv2D(3, padding="same")(x))
    x = layers.Concatenate()([x, layers.LeakyReLU()(y)])
    x = layers.Add()([x, layers.SeparableConv2D(24, 3, padding="same", activation="gelu")(x)])
    x = layers.LayerNormalization()(layers.MaxPooling2D()(x))
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, layers.Dense(classes)(x))


def write_images(folder, side, noise=40):
    """Write noisy images of one color each, a folder a class, unless they are there."""
    if folder.exists():
        return folder
    rng = np.random.default_rng(0)
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for number in range(IMAGES):
            pixels = rng.normal(color, noise, (side, side, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")
    return folder


def run_chain(network, image_size, folder, *, full=False):
    """Return what the stages and commands made of a network."""
    from pipeline import api
    from pipeline.api import Workspace

    images = write_images(folder / "images", image_size + 8, noise=4000 if full else 40)
    workspace = Workspace(
        folder / "mlruns",
        settings={
            "data.dataset": str(images),
            "data.short_side": image_size + 8,
            "model.network": network,
            "model.weights": "imagenet" if full else "none",
            "model.image_size": image_size,
            "model.signal_check": "stop" if full else "warn",
            "train.finetune": "full" if full else "auto",
            "train.finetune_epochs": 2,
            "data.validation_fraction": 0.3 if full else 0.1,
            "train.epochs": 1,
            "train.global_batch_size": 16,
            "release.max_top1_error": 1.0,
            "release.min_class_recall": 0.0,
            "release.max_calibration_error": 1.0,
            "release.max_latency_milliseconds": 60_000,
            "release.max_megabytes": 1_000,
        },
    )
    result = api.run(["ingest", "build", "train", "evaluate", "promote"], workspace=workspace)
    checks = {check.name: check.passed for check in result.decision.checks}
    trained = result.model.model_path
    (prediction,) = api.predict(
        [images / "red" / "00.png"], model=str(trained), workspace=workspace, top=3
    )
    exports = {}
    for target, int8 in (("savedmodel", False), ("onnx", False), ("litert", False)):
        record = api.export(
            target,
            str(trained),
            int8=int8,
            output=folder / f"{target}{'-int8' if int8 else ''}",
            workspace=workspace,
        )
        exports[target] = max(check.difference for check in record.checks)
    page = (result.report.directory / "report" / "report.html").read_text(encoding="utf-8")
    return {
        "outcome": result.decision.outcome,
        "finetuned": result.model.finetuned,
        "epochs": result.model.epochs,
        "checks": checks,
        "guesses": [guess.name for guess in prediction.guesses],
        "exports": exports,
        "headings": [part.partition("</h2>")[0] for part in page.split("<h2>")[1:]],
    }


if __name__ == "__main__":
    name, size, place, *more = sys.argv[1:]
    found = run_chain(name, int(size), Path(place), full=more == ["full"])
    sys.stdout.write(f"{json.dumps(found)}\n")
