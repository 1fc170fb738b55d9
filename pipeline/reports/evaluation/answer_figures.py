"""Figures of answers: confusion matrices, and images over their first guesses.

`pipeline.reports.figures` has what all figures share.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from pipeline.reports.evaluation.layout import MARGIN, draw_image, make_figure
from pipeline.reports.figures import (
    CENTERED,
    EDGE,
    FAINT,
    INK,
    LITERAL,
    fit_class_name,
    load_font,
    measure_text,
    save_figure,
)
from pipeline.reports.numbers import format_percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pipeline.arrays import Floats, Integers
    from pipeline.reports.evaluation.data import GuessedImage

ANNOTATED_CLASSES = 25  # more rows than this cannot be read with a number in each square
_OVERVIEW_SQUARES = 100  # along one side; more are thinner than a line
_RIGHT, _WRONG, _OTHER = "#8db8f5", "#f7b877", "#dde1e8"
_RIGHTS = LinearSegmentedColormap.from_list("rights", ["#ffffff", "#2460c8"])
_WRONGS = LinearSegmentedColormap.from_list("wrongs", ["#ffffff", "#f2a154", "#a63c06"])


def draw_confusion(
    confusion: Integers, names: Sequence[str], path: Path, classes: Sequence[int] | None = None
) -> None:
    """Draw counts of class pairs, right ones blue, wrong ones orange by fraction of the row.

    Args:
        confusion: int [all classes, all classes], rows the correct class, columns the answer.
        names: of all classes.
        path: the PNG file to write.
        classes: draw only these, in this order; by default all.
    """
    shown = list(range(len(names))) if classes is None else list(classes)
    counts = confusion[np.ix_(shown, shown)]
    fractions = counts / np.maximum(confusion[shown].sum(axis=1, keepdims=True), 1)
    labels = [fit_class_name(names, index, 1.8 * 72, 9) for index in shown]
    cell = max(2.6 / len(shown), 0.44 if len(shown) <= 12 else 0.38)
    longest = max(measure_text(load_font(), label, 9) for label in labels) / 72
    flat = longest < 0.9 * cell
    axes, figure = _add_square_axes(
        side=cell * len(shown), left=longest + 0.5, bottom=0.7 if flat else longest + 0.5
    )
    axes.imshow(_color_fractions(fractions), aspect="equal", interpolation="nearest")
    number = min(10.0, 0.85 * cell * 72 / (0.62 * max(len(str(counts.max())), 2)))
    for row, column in np.argwhere(counts > 0):
        dark = fractions[row, column] > (0.8 if row == column else 0.6)
        axes.text(
            column,
            row,
            str(counts[row, column]),
            color="white" if dark else INK,
            fontsize=number,
            ha="center",
            va="center_baseline",
            **LITERAL,
        )
    axes.set_yticks(range(len(shown)), labels, fontsize=9, color=INK, **LITERAL)
    axes.set_xticks(
        range(len(shown)), labels, fontsize=9, color=INK, rotation=0 if flat else 90, **LITERAL
    )
    axes.set_ylabel("correct class", fontsize=9, color=FAINT, **LITERAL)
    axes.set_xlabel("answer", fontsize=9, color=FAINT, **LITERAL)
    axes.set_xticks(np.arange(len(shown) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(shown) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="#e6e8ec", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_color(EDGE)
    save_figure(figure, path)


def draw_confusion_overview(confusion: Integers, path: Path) -> int:
    """Draw the wrong answers of many classes, and return how many classes a square's side has.

    Args:
        confusion: int [classes, classes], rows the correct class, columns the answer.
        path: the PNG file to write.
    """
    classes = len(confusion)
    step = -(-classes // _OVERVIEW_SQUARES)
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    edges = np.arange(0, classes, step)
    squares = np.add.reduceat(np.add.reduceat(wrong, edges, axis=0), edges, axis=1)
    figure = Figure((7.0, 6.0))
    axes = figure.add_axes((0.1, 0.1, 0.72, 0.84))
    extent = (-0.5, len(edges) * step - 0.5, len(edges) * step - 0.5, -0.5)
    drawn = axes.imshow(
        squares,
        cmap=_WRONGS,
        norm=PowerNorm(0.5, 0, max(1, squares.max())),
        extent=extent,
        interpolation="nearest",
    )
    axes.set_xlim(-0.5, classes - 0.5)
    axes.set_ylim(classes - 0.5, -0.5)
    axes.set_xlabel("answer, by class number", color=INK, **LITERAL)
    axes.set_ylabel("correct class number", color=INK, **LITERAL)
    if not squares.any():
        axes.text(
            0.5,
            0.5,
            "no wrong answer",
            transform=axes.transAxes,
            fontsize=14,
            color=FAINT,
            **CENTERED,
            **LITERAL,
        )
    bar = figure.colorbar(drawn, cax=figure.add_axes((0.85, 0.1, 0.025, 0.84)))
    bar.locator = MaxNLocator(nbins=6, integer=True)
    bar.set_label("images answered wrong", color=INK, **LITERAL)
    for part in (axes, bar.ax):
        part.spines[:].set_color(EDGE)
        part.tick_params(
            color=EDGE, labelcolor=INK, labelsize=9, labelfontfamily=LITERAL["fontfamily"]
        )
    save_figure(figure, path)
    return step


def draw_guesses(images: Sequence[GuessedImage], names: Sequence[str], path: Path) -> None:
    """Draw each image over its first guesses as bars, as the paper's figure 4.

    The correct guess is blue, bold and ticked.

    Args:
        images: at least one.
        names: of all classes.
        path: the PNG file to write.
    """
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    cell_width, image_height, bar, gap = 2.5, 2.0, 0.235, 0.16
    bars = max(len(image.answers) for image in images)
    cell_height = image_height + 0.34 + bars * bar + gap
    width, height = columns * (cell_width + gap) + gap, rows * cell_height + gap
    figure = make_figure(width - 2 * MARGIN, height - 2 * MARGIN)
    (axes,) = figure.axes
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        left, top = gap + column * (cell_width + gap), gap + row * cell_height
        draw_image(
            figure,
            image.pixels,
            (left - MARGIN, top - MARGIN),
            (cell_width, image_height),
            interpolation="nearest" if len(image.pixels) < 128 else "antialiased",
        )
        title = fit_class_name(names, image.label, cell_width * 72, 10, bold=True)
        x, y = left + cell_width / 2, top + image_height + 0.17
        axes.text(x, y, title, fontsize=10, fontweight="bold", color=INK, **CENTERED, **LITERAL)
        _draw_bars(axes, image, names, (left, top + image_height + 0.34), (cell_width, bar))
    save_figure(figure, path)


def _draw_bars(
    axes: Axes,
    image: GuessedImage,
    names: Sequence[str],
    corner: tuple[float, float],
    size: tuple[float, float],
) -> None:
    """Draw one image's guesses: a bar by probability, the name on it, the number at its right.

    Args:
        axes: of the figure, in inches from its top left corner.
        image: whose guesses these are.
        names: of all classes.
        corner: left and top of the first bar.
        size: width of a bar with its number, and height from one bar to the next.
    """
    (left, top), (width, height) = corner, size
    track = 0.79 * width  # a probability of 1; the number stands to its right
    for rank, (answer, probability) in enumerate(
        zip(image.answers, image.probabilities, strict=True)
    ):
        correct = answer == image.label
        color = _RIGHT if correct else _WRONG if rank == 0 else _OTHER
        start, middle = (left, top + (rank + 0.08) * height), top + (rank + 0.52) * height
        for length, own in ((track, "#f5f6f8"), (track * max(probability, 0.006), color)):
            bar = Rectangle(start, length, 0.84 * height, facecolor=own, linewidth=0)
            axes.add_patch(bar)
        mark = "✓ " if correct else "✗ " if rank == 0 else ""
        name = mark + fit_class_name(names, answer, (track - 0.3) * 72, 8.5, bold=correct)
        style: dict[str, Any] = {
            "fontsize": 8.5,
            "va": "center",
            "color": INK,
            "fontweight": "bold" if correct else "normal",
        }
        axes.text(left + 0.02 * width, middle, name, **style, **LITERAL)
        percent = format_percent(probability)
        axes.text(left + width, middle, percent, ha="right", **style, **LITERAL)


def _add_square_axes(side: float, left: float, bottom: float) -> tuple[Axes, Figure]:
    """Return axes of `side` inches with room for labels, in inches, and their figure."""
    width, height = left + side + 0.1, bottom + side + 0.1
    figure = Figure((width, height))
    return figure.add_axes((left / width, bottom / height, side / width, side / height)), figure


def _color_fractions(fractions: Floats) -> Floats:
    """Return the colors of fractions, RGBA float [n, n, 4] in [0, 1].

    Blue on the diagonal, orange elsewhere, deeper for larger fractions in [0, 1].

    Wrong fractions are drawn by their square root, so that one wrong answer in a hundred can be
    seen.
    """
    diagonal = np.eye(len(fractions), dtype=bool)[..., None]
    return np.where(diagonal, _RIGHTS(fractions), _WRONGS(np.sqrt(fractions)))
