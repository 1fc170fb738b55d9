"""Layout of the figures of a network's inside: images and labels at positions in inches.

Positions are measured from the top left corner inside the margin. What is enlarged more than twice
is not smoothed: every pixel can be seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

from pipeline.reports.figures import CENTERED, FAINT, INK, LITERAL, fit_class_name

if TYPE_CHECKING:
    from pipeline.arrays import Floats, Image

# In inches.
MARGIN = 0.12
_LAYER_NAME_WIDTH, _MAX_LAYER_NAME_WIDTH = 0.95, 2.0
_LETTER_WIDTH = 0.085  # of bold letters of 9 points, on average


def make_figure(width: float, height: float) -> Figure:
    """Return a figure with a width and a height, in inches, inside its margin.

    Its only axes cover it in inches from the top left corner: hundreds of axes, one for each image,
    would take seconds.
    """
    figure = Figure((width + 2 * MARGIN, height + 2 * MARGIN))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width + 2 * MARGIN)
    axes.set_ylim(height + 2 * MARGIN, 0)
    return figure


def draw_image(
    figure: Figure,
    pixels: Image | Floats,
    corner: tuple[float, float],
    size: tuple[float, float],
    *,
    frame: str | None = None,
    interpolation: str = "antialiased",
) -> tuple[float, float, float, float]:
    """Draw an image, in a frame if a color is given; return where, as left, top, width and height.

    One of other proportions than the place is drawn in its middle, as large as fits.

    Args:
        figure: of `make_figure`.
        pixels: uint8, or float in [0, 1], [height, width, 3 or 4].
        corner: left and top, in inches inside the margin.
        size: width and height, in inches.
        frame: the color of the frame.
        interpolation: of pixels that are enlarged or reduced.
    """
    (left, top), (width, height) = corner, size
    left, top = left + MARGIN, top + MARGIN
    scale = min(width / pixels.shape[1], height / pixels.shape[0])
    wide, high = pixels.shape[1] * scale, pixels.shape[0] * scale
    if max(width - wide, height - high) > 1e-6:  # inches: more than rounding
        left, top = left + (width - wide) / 2, top + (height - high) / 2
        width, height = wide, high
    (axes,) = figure.axes
    extent = (left, left + width, top + height, top)
    axes.imshow(pixels, extent=extent, interpolation=interpolation, aspect="auto")
    if frame:
        outline = Rectangle((left, top), width, height, fill=False, edgecolor=frame, linewidth=2.5)
        axes.add_patch(outline)
    return left, top, width, height


def draw_ring(figure: Figure, center: tuple[float, float], radius: float) -> None:
    """Draw a ring, white in black so that it is seen on every image; in inches, margin included."""
    (axes,) = figure.axes
    for color, line in (("black", 2.0), ("white", 1.0)):
        axes.add_patch(Circle(center, radius, fill=False, edgecolor=color, linewidth=line))


def find_name_width(names: Iterable[str]) -> float:
    """Return the width of a column of layers' names, in inches: 0.95, or up to 2 for long ones."""
    longest = max(map(len, names))
    return min(max(_LAYER_NAME_WIDTH, 0.1 + _LETTER_WIDTH * longest), _MAX_LAYER_NAME_WIDTH)


def write_layer_name(
    figure: Figure, left: float, middle: float, width: float, name: str, note: str
) -> None:
    """Write a layer's name and a small note below it, in a column of that width."""
    room = (width - 0.1) * 72
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
