"""What training saw and how it went: images for the stage's page, and the history as a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter


def write_history(history: Sequence[dict[str, float]], best_epoch: int, directory: Path) -> None:
    """Write history.json, a list with the numbers of each epoch, and learning_curves.png."""
    (directory / "history.json").write_text(json.dumps(list(history), indent=1), encoding="utf-8")
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    loss, error, rate = figure.subplots(1, 3)
    _curves(loss, history, "loss", "Cross-entropy (nats)")
    _curves(error, history, "top1_error", "Top-1 error")
    error.yaxis.set_major_formatter(PercentFormatter(1))
    error.axvline(best_epoch, color="0.6", linestyle=":", linewidth=1)
    error.annotate(
        f"kept: epoch {best_epoch}",
        (best_epoch, error.get_ylim()[1]),
        xytext=(-3, 0),
        textcoords="offset points",
        ha="right",
        va="top",
        rotation=90,
        fontsize=8,
        color="0.4",
    )
    rate.step(
        [entry["epoch"] for entry in history],
        [entry["learning_rate"] for entry in history],
        where="mid",
        color="0.3",
    )
    rate.set_title("Learning rate", fontsize=10)
    for axes in (loss, error, rate):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    figure.savefig(directory / "learning_curves.png", dpi=120, metadata={"Software": None})


def write_training_images(pixels: Any, words: Sequence[str], directory: Path) -> None:
    """Write training_images.png: images as the network is shown them, with their classes.

    Args:
        pixels: uint8 [images, size, size, 3] in [0, 255].
        words: what stands above each.
        directory: of the stage's page.
    """
    columns = min(8, len(words))
    rows = -(-len(words) // columns)
    figure = Figure(figsize=(1.4 * columns, 1.75 * rows), layout="constrained")
    for axes in (panels := figure.subplots(rows, columns, squeeze=False).reshape(-1)):
        axes.set_axis_off()
    for axes, image, word in zip(panels, pixels, words, strict=False):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(word.replace("$", r"\$"), fontsize=7)
    figure.savefig(directory / "training_images.png", dpi=120, metadata={"Software": None})


def _curves(axes: Any, history: Sequence[dict[str, float]], name: str, title: str) -> None:
    """Draw one number of the training and of the validation split against the epoch, on a logarithmic scale where it can be."""
    epochs = [entry["epoch"] for entry in history]
    series = {
        split: [entry[f"{split}_{name}"] for entry in history] for split in ("train", "validation")
    }
    for split, color in (("train", "#9db7e4"), ("validation", "#1f4fa3")):
        axes.plot(
            epochs,
            series[split],
            label=split,
            color=color,
            linewidth=1.8,
            marker="o" if len(epochs) < 3 else None,
        )
    if name == "loss" and min(min(values) for values in series.values()) > 0:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, fontsize=8)
