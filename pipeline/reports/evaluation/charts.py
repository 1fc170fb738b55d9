"""Charts of the evaluation's page: reliability, slices and robustness.

`pipeline.reports.figures` has what all figures share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from pipeline.reports.figures import (
    BLUE,
    CENTERED,
    EDGE,
    FAINT,
    INK,
    LITERAL,
    ORANGE,
    fit_class_name,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pipeline.arrays import Image
    from pipeline.reports.evaluation.data import ReliabilityCurve, SliceRow


def draw_reliability(
    uncalibrated: ReliabilityCurve, calibrated: ReliabilityCurve, path: Path
) -> None:
    """Draw accuracy by confidence, before and after calibration, over the number of images.

    Args:
        uncalibrated: of the probabilities as the network gives them.
        calibrated: of those with the fitted temperature.
        path: the PNG file to write.
    """
    figure = Figure((9.0, 4.6))
    both = ((uncalibrated, "as the network gives them", ORANGE), (calibrated, "calibrated", BLUE))
    for column, (bins, title, color) in enumerate(both):
        upper = figure.add_axes((0.08 + 0.48 * column, 0.36, 0.41, 0.56))
        lower = figure.add_axes((0.08 + 0.48 * column, 0.11, 0.41, 0.19))
        edges = np.linspace(0, 1, len(bins.images) + 1)
        some = bins.images > 0
        upper.plot((0, 1), (0, 1), color=EDGE, linewidth=1.2)
        upper.vlines(
            bins.confidence[some],
            bins.confidence[some],
            bins.accuracy[some],
            color=color,
            linewidth=2,
            alpha=0.4,
        )
        upper.plot(bins.confidence[some], bins.accuracy[some], "o", color=color, markersize=5)
        lower.bar(
            edges[:-1],
            bins.images / max(1, bins.images.sum()),
            width=np.diff(edges),
            align="edge",
            color=color,
            alpha=0.55,
        )
        upper.set_title(f"probabilities {title}", fontsize=10, color=INK, **LITERAL)
        lower.set_xlabel("probability of the first guess", fontsize=9, color=FAINT, **LITERAL)
        for axes, label in ((upper, "fraction right"), (lower, "fraction of images")):
            axes.set_ylabel(label if column == 0 else "", fontsize=9, color=FAINT, **LITERAL)
            axes.set_xlim(0, 1)
            _style_axes(axes)
        upper.set_ylim(0, 1.03)
        upper.set_xticklabels([])
    save_figure(figure, path)


def draw_slices(slices: Sequence[SliceRow], overall: float, path: Path) -> None:
    """Draw the error of each slice with its interval, and that of all images as a line.

    Args:
        slices: at least one, from top to bottom.
        overall: error of all images, fraction in [0, 1].
        path: the PNG file to write.
    """
    height = 0.32 * len(slices) + 0.7
    figure = Figure((9.0, height))
    axes = figure.add_axes((0.34, 0.5 / height, 0.62, 1 - 0.6 / height))
    rows = np.arange(len(slices))
    for row, item in zip(rows, slices, strict=True):
        color = ORANGE if item.clearly_worse else FAINT
        axes.plot(
            [100 * end for end in item.interval],
            (row, row),
            color=color,
            linewidth=2.2,
            alpha=0.5,
            solid_capstyle="round",
        )
        axes.plot(100 * item.top1_error, row, "o", color=color, markersize=5)
    axes.axvline(100 * overall, color=BLUE, linewidth=1.2)
    labels = [f"{item.attribute}: {item.value}  ({item.images:,})" for item in slices]
    axes.set_yticks(
        rows,
        [fit_class_name(labels, index, 2.9 * 72, 9) for index in range(len(labels))],
        fontsize=9,
        color=INK,
        **LITERAL,
    )
    axes.set_ylim(len(slices) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel(
        "top-1 error, %, with its 95 % interval; the line is that of all images",
        fontsize=9,
        color=FAINT,
        **LITERAL,
    )
    _style_axes(axes)
    axes.grid(axis="x", color="#e6e8ec", linewidth=0.6)
    save_figure(figure, path)


def draw_robustness(clean: float, errors: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """Draw the error by severity of each corruption; severity 0 is the clean images.

    Args:
        clean: top-1 error of the same images as they are, fraction in [0, 1].
        errors: by kind, then by severity.
        path: the PNG file to write.
    """
    columns = 4
    rows = -(-len(errors) // columns)
    figure = Figure((9.0, 2.0 * rows + 0.4))
    top = 100 * max(clean, *(value for of_kind in errors.values() for value in of_kind.values()))
    for index, (kind, of_kind) in enumerate(errors.items()):
        row, column = divmod(index, columns)
        height = 2.0 * rows + 0.4
        box = (0.06 + 0.238 * column, (height - 2.0 * row - 1.7) / height, 0.2, 1.3 / height)
        axes = figure.add_axes(box)
        axes.axhline(100 * clean, color=EDGE, linewidth=1.2)
        axes.plot(
            [0, *of_kind],
            [100 * clean, *(100 * value for value in of_kind.values())],
            "o-",
            color=ORANGE,
            markersize=4,
        )
        axes.set_title(kind, fontsize=10, color=INK, **LITERAL)
        axes.set_xticks([0, *of_kind])
        axes.set_ylim(0, max(1.0, 1.08 * top))
        if column == 0:
            axes.set_ylabel("top-1 error, %", fontsize=9, color=FAINT, **LITERAL)
        _style_axes(axes)
    save_figure(figure, path)


def draw_corruptions(images: Mapping[str, Sequence[Image]], path: Path) -> None:
    """Draw an image as each corruption leaves it: a row a severity, a column a kind.

    Args:
        images: uint8 [height, width, 3] in [0, 255] for each kind, the mildest first.
        path: the PNG file to write.
    """
    rows = max(len(of_kind) for of_kind in images.values())
    side, top = 1.12, 0.3
    width, height = side * len(images) + 0.1, side * rows + top + 0.1
    figure = Figure((width, height))
    for column, (kind, of_kind) in enumerate(images.items()):
        figure.text(
            (side * (column + 0.5) + 0.05) / width,
            1 - top / 2 / height,
            kind,
            fontsize=9,
            color=INK,
            **CENTERED,
            **LITERAL,
        )
        for row, pixels in enumerate(of_kind):
            box = (
                (side * column + 0.1) / width,
                1 - (top + side * (row + 1)) / height,
                (side - 0.1) / width,
                (side - 0.1) / height,
            )
            axes = figure.add_axes(box)
            axes.imshow(pixels, interpolation="nearest")
            axes.axis("off")
    save_figure(figure, path)


def _style_axes(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(EDGE)
    axes.tick_params(
        color=EDGE, labelcolor=INK, labelsize=8.5, labelfontfamily=LITERAL["fontfamily"]
    )
