"""Layout of the figures of a network's inside: images and labels at positions in inches.

Positions are measured from the top left corner inside the margin. What is enlarged more than twice
is not smoothed: every pixel can be seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from pipeline.reports.figures import CENTERED, FAINT, INK, LITERAL, fit_class_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pipeline.arrays import Floats, Image

# In inches.
MARGIN = 0.12
LAYER_NAME_WIDTH = 0.95


def make_figure(width: float, height: float) -> Figure:
    """Return a figure with a width and a height, in inches, inside its margin."""
    return Figure((width + 2 * MARGIN, height + 2 * MARGIN))


def add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Return axes without a frame at a position of a figure."""
    wide, high = figure.get_size_inches()
    axes = figure.add_axes(
        ((MARGIN + left) / wide, 1 - (MARGIN + top + height) / high, width / wide, height / high)
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return axes


def draw_image(axes: Axes, pixels: Image | Floats, frame: str | None = None) -> None:
    """Draw an image, in a frame if a color is given."""
    axes.imshow(pixels, interpolation="antialiased", aspect="auto")
    if frame:
        axes.spines[:].set(visible=True, color=frame, linewidth=2.5)


def write_layer_name(figure: Figure, left: float, middle: float, name: str, note: str) -> None:
    """Write a layer's name and a small note below it."""
    room = (LAYER_NAME_WIDTH - 0.1) * 72
    write_label(
        figure,
        left,
        middle - 0.08,
        fit_class_name([name], 0, room, 9, bold=True),
        ha="left",
        weight="bold",
    )
    write_label(
        figure,
        left,
        middle + 0.08,
        fit_class_name([note], 0, room, 7.5),
        size=7.5,
        color=FAINT,
        ha="left",
    )


def write_label(
    figure: Figure,
    x: float,
    y: float,
    text: str,
    *,
    size: float = 9,
    color: str = INK,
    ha: str = "center",
    weight: str = "normal",
) -> None:
    """Write a text at a position of a figure, in the middle of its height."""
    wide, high = figure.get_size_inches()
    position = ((MARGIN + x) / wide, 1 - (MARGIN + y) / high)
    figure.text(
        position[0],
        position[1],
        text,
        fontsize=size,
        color=color,
        fontweight=weight,
        **{**CENTERED, "ha": ha},
        **LITERAL,
    )
