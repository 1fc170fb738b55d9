"""The figures of the dataset card, as matplotlib figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from pipeline.reports.figures import load_font

if TYPE_CHECKING:
    from pipeline.arrays import Floats, Image, Images, Integers

_SPLIT_COLORS = {"train": "#2f6fde", "validation": "#e08a1e", "test": "#3a9d5d"}
_MANY_CLASSES = 30  # more are drawn as a curve
_LABEL_LENGTH = 22
_DUPLICATE_PAIRS = 3  # per row


def draw_samples(examples: Images, labels: Integers, class_names: Sequence[str]) -> Figure:
    """Draw some training images of some classes, one class per row.

    Args:
        examples: uint8 [images, side, side, 3] in [0, 255].
        labels: [images], ascending.
        class_names: in the order of class ids.
    """
    shown = sorted(set(labels.tolist()))
    figure, axes, middles, _ = _draw_grid([list(examples[labels == label]) for label in shown])
    axes.set_yticks(middles, [_label_text(class_names[label]) for label in shown])
    return figure


def draw_duplicates(thumbnails: Images) -> Figure:
    """Draw two images of some groups of duplicates, a few pairs per row.

    Args:
        thumbnails: uint8 [groups, 2, 64, 64, 3] in [0, 255].
    """
    side = thumbnails.shape[2]
    blank = np.full((side, side, 3), 255, np.uint8)
    cells = [[*pair, blank] for pair in thumbnails]
    rows = [
        [cell for pair in cells[start : start + _DUPLICATE_PAIRS] for cell in pair]
        for start in range(0, len(cells), _DUPLICATE_PAIRS)
    ]
    columns = 3 * _DUPLICATE_PAIRS
    return _draw_grid([[*row, *[blank] * (columns - len(row))][:-1] for row in rows])[0]


def draw_mean_and_colors(
    mean_image: Floats,
    mean_color: Sequence[float],
    stds: Sequence[float],
    directions: Floats,
    steps: int = 7,
) -> Figure:
    """Draw the mean training image, and its mean color moved along each principal direction.

    Args:
        mean_image: float32 [side, side, 3] in [0, 255].
        mean_color: RGB in [0, 255].
        stds: standard deviation along each principal direction, in levels.
        directions: float64 [3, 3] in RGB, one a row.
        steps: colors per direction.
    """
    figure = Figure(figsize=(9, 3), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 2))
    left.imshow(np.rint(mean_image).astype(np.uint8))
    left.set_title("mean image", fontsize=11)
    offsets = np.linspace(-3, 3, steps)
    colors = [
        [np.asarray(mean_color) + offset * std * direction for offset in offsets]
        for std, direction in zip(stds, directions, strict=True)
    ]
    right.imshow(np.clip(np.rint(colors), 0, 255).astype(np.uint8), aspect="auto")
    right.set_title("principal color directions", fontsize=11)
    right.set_yticks(range(3), [f"{std:.1f}" for std in stds])
    right.set_ylabel("standard deviation, levels")
    right.set_xticks(range(steps), [f"{offset:+g}" if offset else "mean" for offset in offsets])
    left.set(xticks=[], yticks=[])
    return figure


def draw_class_balance(
    class_counts: Mapping[str, Sequence[int]], class_names: Sequence[str]
) -> Figure:
    """Draw the number of images of each class, one panel per split.

    Many classes are drawn from the most common to the rarest.
    """
    classes, many = len(class_names), len(class_names) > _MANY_CLASSES
    figure = Figure(
        figsize=(9, 3.2 if many else 1.2 + 0.28 * classes), dpi=100, layout="constrained"
    )
    panels = figure.subplots(1, len(class_counts), sharey=not many, squeeze=False)[0]
    for axes, (split, counts) in zip(panels, class_counts.items(), strict=True):
        axes.set_title(f"{split}: {sum(counts):,}", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        if many:
            axes.fill_between(
                range(classes), sorted(counts, reverse=True), color=_SPLIT_COLORS[split], step="mid"
            )
            axes.set_xlabel("classes by size")
            axes.set_ylim(bottom=0)
        else:
            axes.barh(range(classes), counts, color=_SPLIT_COLORS[split])
            axes.set_xlabel("images")
    if not many:
        panels[0].set_yticks(range(classes), [_label_text(name) for name in class_names])
        panels[0].invert_yaxis()
    return figure


def draw_preview(preview: Images, columns: Sequence[str]) -> Figure:
    """Draw some images as evaluation sees them beside the same augmented, one image per row.

    Args:
        preview: uint8 [columns, images, crop, crop, 3] in [0, 255].
        columns: their headings.
    """
    rows = [list(preview[:, index]) for index in range(preview.shape[1])]
    figure, axes, _, middles = _draw_grid(rows)
    axes.set_xticks(middles, list(columns))
    return figure


def save_tight(figure: Figure, path: Path) -> Path:
    """Write a figure without empty margins; equal figures make equal files. Return the path."""
    # Without the library's version in it, the same dataset gives the same file.
    figure.savefig(path, bbox_inches="tight", metadata={"Software": None})
    return path


def _label_text(name: str) -> str:
    """Return a name as matplotlib can write it.

    `$` would start a formula, and letters that its own font lacks become `?`.
    """
    font = load_font()
    line = " ".join(name.split()) or repr(name)
    if len(line) > _LABEL_LENGTH:
        line = f"{line[: _LABEL_LENGTH // 2]}...{line[-_LABEL_LENGTH // 3 :]}"
    written = "".join(letter if font.get_char_index(ord(letter)) else "?" for letter in line)
    return written.replace("$", r"\$")


def _draw_grid(rows: Sequence[Sequence[Image]]) -> tuple[Figure, Any, list[float], list[float]]:
    """Draw images in rows.

    Returns:
        The figure, its axes, and the middles of the rows and of the columns.
    """
    columns = max(map(len, rows))
    sheet = _join_images(rows)
    figure = Figure(figsize=(9, 0.4 + 8 / columns * len(rows)), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.imshow(sheet, interpolation="antialiased")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=10, labeltop=True, labelbottom=False)
    axes.set(xticks=[], yticks=[])
    row_middles, column_middles = (
        [(index + 0.5) * length / count for index in range(count)]
        for length, count in zip(sheet.shape, (len(rows), columns), strict=False)
    )
    return figure, axes, row_middles, column_middles


def _join_images(rows: Sequence[Sequence[Image]]) -> Image:
    """Put square images of one size into rows and columns with white between them.

    One drawing is much faster than one for each. Rows may be of different lengths.

    Returns:
        uint8 [rows * cell, columns * cell, 3], small images enlarged with their pixels as they are.
    """
    side = rows[0][0].shape[0]
    factor = max(1, 96 // side)
    cell = side * factor + 8
    sheet = np.full((len(rows) * cell, max(map(len, rows)) * cell, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, pixels in enumerate(row):
            image = np.repeat(np.repeat(pixels, factor, axis=0), factor, axis=1)
            sheet[i * cell :, j * cell :][: side * factor, : side * factor] = image
    return sheet
