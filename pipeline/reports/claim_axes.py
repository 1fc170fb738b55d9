"""The style of the claims' figures: white ground, thin axes, colors also for the color-blind.

As in `pipeline.reports.figures` they are made of matplotlib's objects alone, and all text is
written literally.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from PIL import Image

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
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.legend import Legend

    from pipeline.arrays import Floats

# In inches.
WIDTH, HEIGHT = 6.5, 3.6
# Both come with matplotlib; the second has the letters that the first lacks.
_FAMILY = ["DejaVu Serif", "DejaVu Sans"]
TEXT_STYLE: dict[str, Any] = {**LITERAL, "fontfamily": _FAMILY}
# Width of a text, against the sans-serif letters that `fit_class_name` measures.
_SERIF_WIDTH = 1.08
LegendLocation = Literal["upper center", "lower center"]
GRAY, _GREEN = "#69707d", "#2a8f6a"
GRID = "#e6e8ec"
_ARM_COLORS = (BLUE, ORANGE, _GREEN, GRAY, INK)
_ARM_DASHES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))


def make_panels(count: int, *, same: bool = False) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure with axes side by side.

    Args:
        count: of the axes.
        same: let them share both scales.
    """
    figure = Figure((WIDTH, HEIGHT), layout="constrained")
    return figure, figure.subplots(1, count, sharex=same, sharey=same, squeeze=False)[0]


def draw_dots_and_mean(
    axes: Axes, seeds: Mapping[int, Sequence[float]], label: str, index: int
) -> None:
    """Draw every seed's value as a dot over its x, and a line through the means."""
    shown = {x: values for x, values in sorted(seeds.items()) if len(values)}
    style = choose_style(index)
    for x, values in shown.items():
        axes.plot(
            [x] * len(values),
            values,
            "o",
            color=style["color"],
            markersize=4,
            alpha=0.55,
            markeredgewidth=0,
        )
    axes.plot(
        list(shown),
        [float(np.mean(values)) for values in shown.values()],
        linewidth=1.5,
        label=label,
        **style,
    )


def choose_style(index: int) -> dict[str, Any]:
    """Return the color and the dashes of an arm, by its index."""
    return {
        "color": _ARM_COLORS[index % len(_ARM_COLORS)],
        "linestyle": _ARM_DASHES[index % len(_ARM_DASHES)],
    }


def number_epochs(values: Sequence[float] | Floats) -> list[int]:
    """Return 1, 2, 3, ... with one number per value."""
    return list(range(1, len(values) + 1))


def fit_line(text: str, inches: float = 3.2, size: float = 8) -> str:
    """Return a text on one line no wider than some inches, in letters of a size in points."""
    return fit_class_name([text], 0, 72 * inches / _SERIF_WIDTH, size)


def fit_two_lines(text: str, inches: float, size: float) -> str:
    """Return a text on at most two lines no wider than some inches."""
    # A letter is about 0.6 of its height wide.
    first, *rest = textwrap.wrap(text, int(inches * 72 / (0.6 * size))) or [""]
    return "\n".join(
        fit_line(line, inches, size) for line in (first, *filter(None, [" ".join(rest)]))
    )


def format_percents(axis: Axis) -> None:
    """Write the fractions on an axis in %."""
    axis.set_major_formatter(FuncFormatter(lambda fraction, _: f"{100 * fraction:.4g} %"))


def format_counts(axis: Axis) -> None:
    """Write integers alone on an axis."""
    axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))


def scale_to_decades(axes: Axes) -> None:
    """Make the y axis logarithmic and end it at powers of ten, at least two of them."""
    low, high = axes.dataLim.intervaly
    axes.set_yscale("log")
    if 0 < low <= high < math.inf:
        axes.set_ylim(
            10 ** (math.ceil(math.log10(low)) - 1), 10 ** (math.floor(math.log10(high)) + 1)
        )


def label_axes(axes: Axes, x: str, y: str) -> None:
    """Label the axes and draw them thin."""
    axes.set_xlabel(x, fontsize=8.5, color=INK, **TEXT_STYLE)
    axes.set_ylabel(y, fontsize=8.5, color=INK, **TEXT_STYLE)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=EDGE, linewidth=0.8)
    axes.tick_params(
        which="both",
        color=EDGE,
        width=0.8,
        length=3,
        labelcolor=INK,
        labelsize=8,
        labelfontfamily=_FAMILY,
    )
    axes.yaxis.set_minor_formatter(NullFormatter())


def draw_legend(axes: Axes) -> None:
    """Draw the legend of the lines inside the axes."""
    if axes.get_legend_handles_labels()[1]:
        _make_literal(
            axes.legend(
                frameon=False, handlelength=2.6, prop=FontProperties(family=_FAMILY, size=8)
            )
        )


def draw_legend_below(
    owner: Axes | Figure,
    handles: Sequence[Artist],
    location: LegendLocation,
    anchor: tuple[float, float],
) -> None:
    """Draw a legend on one line below the axes or at the foot of a figure.

    Args:
        owner: axes or figure.
        handles: marks with labels.
        location: of the legend that lies at the anchor.
        anchor: in units of the owner's size.
    """
    _make_literal(
        owner.legend(
            handles=handles,
            frameon=False,
            ncols=len(handles),
            prop=FontProperties(family=_FAMILY, size=8),
            loc=location,
            bbox_to_anchor=anchor,
        )
    )


def _make_literal(legend: Legend) -> None:
    """Write the texts of a legend literally."""
    for text in legend.get_texts():
        text.set(parse_math=False, color=INK)


def draw_empty_note(axes: Axes) -> None:
    """Replace everything in the axes by a note that nothing was measured."""
    axes.clear()
    axes.set_axis_off()
    axes.text(
        0.5,
        0.5,
        "nothing was measured",
        transform=axes.transAxes,
        fontsize=9,
        color=FAINT,
        **CENTERED,
        **TEXT_STYLE,
    )


def save_palette_figure(figure: Figure, path: Path) -> None:
    """Write a PNG with a palette: a third of the bytes, as a page holds many figures."""
    save_figure(figure, path)
    with Image.open(path) as drawn:
        reduced = drawn.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    reduced.save(path, optimize=True)
