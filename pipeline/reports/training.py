"""What training saw and how it went: sample images and learning curves, drawn from stored data."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.files import write_text
from pipeline.reports.store import read_report_data

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pipeline.arrays import Images
    from pipeline.artifacts import TrainingResult

CURVES_FILE = "learning_curves.png"
IMAGES_FILE = "training_images.png"
HISTORY_FILE = "history.json"
PENALTIES_FILE = "classifier_penalty.png"
FINETUNE_FILE = "finetune.json"
_MAX_NAME_LENGTH = 18


def draw_training_pages(record: TrainingResult, folder: Path) -> None:
    """Draw learning_curves.png and training_images.png into a folder, and write history.json.

    history.json is a list with the numbers of each epoch. A fine-tuning has classifier_penalty.png
    and finetune.json besides, and no curves where it trained no epoch.
    """
    values, arrays = read_report_data(record.directory)
    write_text(folder / HISTORY_FILE, json.dumps(values["history"], indent=1))
    if values["history"]:
        _draw_learning_curves(values["history"], record.best_epoch, folder / CURVES_FILE)
    if values["finetune"]:
        write_text(folder / FINETUNE_FILE, json.dumps(values["finetune"], indent=1))
        _draw_penalties(values["finetune"]["head"], folder / PENALTIES_FILE)
    captions = _caption_images(values["labels"], values["partners"], values["fractions"])
    _draw_training_images(arrays["images"], captions, folder / IMAGES_FILE)


def _draw_learning_curves(history: Sequence[dict[str, float]], best_epoch: int, path: Path) -> None:
    """Draw loss, error and learning rate of every epoch."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    loss, error, rate = figure.subplots(1, 3)
    _draw_both_splits(loss, history, "loss", "Cross-entropy (nats)")
    _draw_both_splits(error, history, "top1_error", "Top-1 error")
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
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _draw_penalties(head: Mapping[str, Any], path: Path) -> None:
    """Draw cross-entropy and error of held-out images against the strength of the penalty.

    Nothing is drawn where no image could be held out.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    if not head["scores"]:
        return
    penalties, losses, errors = zip(*head["scores"], strict=True)
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    loss, error = figure.subplots(1, 2)
    for axes, values, title in (
        (loss, losses, "Cross-entropy (nats)"),
        (error, errors, "Top-1 error"),
    ):
        axes.plot(penalties, values, color="#1f4fa3", linewidth=1.8, marker="o", markersize=4)
        axes.axvline(head["penalty"], color="0.6", linestyle=":", linewidth=1)
        axes.set_xscale("log")
        axes.set_title(f"{title} of {head['held_out']:,} held-out images", fontsize=10)
        axes.set_xlabel("inverse strength of the penalty (C)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    error.set_ylim(bottom=0)
    error.yaxis.set_major_formatter(PercentFormatter(1))
    if note := head["note"]:
        figure.suptitle(textwrap.fill(f"{note[:1].upper()}{note[1:]}.", 110), fontsize=8)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _caption_images(
    labels: Sequence[str], partners: Sequence[str], fractions: Sequence[float]
) -> list[str]:
    """Return each image's class, or of a mixed image both classes with their fractions."""
    names = [name[:_MAX_NAME_LENGTH] for name in labels]
    others = [name[:_MAX_NAME_LENGTH] for name in partners]
    if not others:
        return names
    return [
        f"{fraction:.0%} {name}\n{1 - fraction:.0%} {other}"
        for name, other, fraction in zip(names, others, fractions, strict=True)
    ]


def _draw_training_images(pixels: Images, captions: Sequence[str], path: Path) -> None:
    """Draw images as the network is shown them, each with its caption.

    Args:
        pixels: [images, size, size, 3].
        captions: one per image.
        path: the file.
    """
    from matplotlib.figure import Figure

    columns = min(8, len(captions))
    rows = -(-len(captions) // columns)
    figure = Figure(figsize=(1.4 * columns, 1.75 * rows), layout="constrained")
    for axes in (panels := figure.subplots(rows, columns, squeeze=False).reshape(-1)):
        axes.set_axis_off()
    for axes, image, caption in zip(panels, pixels, captions, strict=False):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(caption.replace("$", r"\$"), fontsize=7)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _draw_both_splits(
    axes: Axes, history: Sequence[dict[str, float]], name: str, title: str
) -> None:
    """Draw a number of the training and the validation split against the epoch.

    On a logarithmic scale for a loss that is never 0.
    """
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
