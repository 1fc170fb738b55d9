"""The images of the report that show what a network looks at, drawn as those of `images` are.

No pyplot, all text literal and fitted.

Everything is placed in inches from the top left corner inside the margin. What is enlarged more
than twice is not smoothed: every pixel can be seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from pipeline.evaluate.metrics import Floats, Integers
from pipeline.reports.figures import (
    CENTERED,
    DPI,
    FAINT,
    INK,
    LITERAL,
    fit_class_name,
    save_figure,
)

if TYPE_CHECKING:
    from pipeline.evaluate.explain import Maps, Patches

_SAME, _UNLIKE = (
    "#2460c8",
    "#ef8a2c",
)  # the blue and the orange of the other images, as strong as a thin line needs
# In inches.
_MARGIN = 0.12
_GAP = 0.08  # between images
_HAIR = 0.03  # between images that belong together
_LAYER = 0.95  # room for a layer's name
_LINE = 0.2  # room for a line of small letters
_FILTERS_A_ROW = 16
_GROUPS_A_ROW = 3
_PAIRS_A_ROW = 4


def draw_filters(kernel: Any, towers: int, path: Path) -> None:
    """Draw the filters that see the pixels in color, as the paper's figure 3.

    Gray is zero, each is stretched to its own largest weight.

    Args:
        kernel: float [height, width, 3, filters], unbounded.
        towers: 2 draws the halves apart, the first one above, each under its name.
        path: the PNG file to write.
    """
    sheets = [_sheet(filters) for filters in np.split(_stretched(kernel), towers)]
    high, wide = sheets[0].shape[0] / DPI, sheets[0].shape[1] / DPI
    head = 0.3 if towers > 1 else 0.0
    each = head + high + _GAP
    figure = _figure(max(wide, 0.7), towers * each - _GAP)
    for tower, sheet in enumerate(sheets):
        if towers > 1:
            _word(
                figure, 0, tower * each + head / 2, f"tower {tower + 1}", ha="left", weight="bold"
            )
        _axes(figure, 0, tower * each + head, wide, high).imshow(sheet, interpolation="nearest")
    save_figure(figure, path)


def draw_activations(pixels: Any, maps: Mapping[str, Maps], path: Path) -> None:
    """Draw each image with its strongest feature maps at its right, a row a layer.

    Each map has colors of its own, from black at 0, or at the lowest if that is less, to its
    largest activation.

    Args:
        pixels: uint8 [images, size, size, 3] in [0, 255], at least one.
        maps: for each layer, the maps of these images.
        path: the PNG file to write.
    """
    image, tile, between = 2.0, 0.84, 0.2
    left, step, row = image + between + _LAYER, tile + _GAP, tile + _LINE + _GAP
    columns = max(layer.indices.shape[1] for layer in maps.values())
    block = max(len(maps) * row, image) + between
    figure = _figure(left + columns * step - _GAP, len(pixels) * block - between)
    for index, shown in enumerate(pixels):
        _show(_axes(figure, 0, index * block, image, image), shown)
        for place, (name, layer) in enumerate(maps.items()):
            top = index * block + place * row
            high, wide = layer.values.shape[2:]
            _layer(figure, image + between, top + tile / 2, name, f"{high} × {wide}")
            for column, (number, values) in enumerate(
                zip(layer.indices[index], layer.values[index], strict=True)
            ):
                _show(_axes(figure, left + column * step, top, tile, tile), _colored(values))
                _word(
                    figure,
                    left + column * step + tile / 2,
                    top + tile + _LINE / 2,
                    f"map {number}",
                    size=7,
                    color=FAINT,
                )
    save_figure(figure, path)


def draw_patches(patches: Mapping[str, Patches], path: Path) -> None:
    """Draw what excites some feature maps most.

    A band a layer, in it a group a map, from the most exciting on.

    A patch is smaller than others of its layer where the image ends within what the unit sees.

    Args:
        patches: for each layer.
        path: the PNG file to write.
    """
    tile, between = 0.54, 0.22
    row, group = (
        _LINE + tile + 0.06,
        max(layer.pixels.shape[1] for layer in patches.values()) * (tile + _HAIR) - _HAIR + between,
    )
    columns = min(_GROUPS_A_ROW, max(len(layer.maps) for layer in patches.values()))
    rows = [-(-len(layer.maps) // columns) for layer in patches.values()]
    figure = _figure(
        _LAYER + columns * group - between, sum(rows) * row + (len(rows) - 1) * between
    )
    top = 0.0
    for (name, layer), lines in zip(patches.items(), rows, strict=True):
        field = layer.pixels.shape[2]
        _layer(figure, 0, top + _LINE + tile / 2, name, f"sees {field} × {field}")
        for place, (number, tiles) in enumerate(
            zip(layer.maps, _trimmed(layer.pixels), strict=True)
        ):
            x, y = _LAYER + place % columns * group, top + place // columns * row
            _word(figure, x, y + _LINE / 2, f"map {number}", size=7, color=FAINT, ha="left")
            for index, pixels in enumerate(tiles):
                _show(_axes(figure, x + index * (tile + _HAIR), y + _LINE, tile, tile), pixels)
        top += lines * row + between
    save_figure(figure, path)


def draw_grad_cam(
    pixels: Any, heat: Floats, labels: Integers, answers: Integers, names: Sequence[str], path: Path
) -> None:
    """Draw each image beside itself in gray under its heat, over its answer.

    Ticked if right, else crossed and with the correct class.

    Args:
        pixels: uint8 [images, size, size, 3] in [0, 255], at least one.
        heat: float [images, size, size] in [0, 1].
        labels: int [images], the correct classes.
        answers: int [images], the network's.
        names: of all classes.
        path: the PNG file to write.
    """
    tile, between, mark = 1.12, 0.2, 0.16
    pair, row = 2 * tile + _HAIR, tile + (0.28 if np.array_equal(labels, answers) else 0.42)
    columns = min(_PAIRS_A_ROW, len(pixels))
    figure = _figure(columns * (pair + between) - between, -(-len(pixels) // columns) * row)
    for index, (label, answer) in enumerate(zip(map(int, labels), map(int, answers), strict=True)):
        x, y = index % columns * (pair + between), index // columns * row
        _show(_axes(figure, x, y, tile, tile), pixels[index])
        _show(_axes(figure, x + tile + _HAIR, y, tile, tile), _warmed(pixels[index], heat[index]))
        sign, color = ("✓", _SAME) if label == answer else ("✗", _UNLIKE)
        _word(figure, x, y + tile + 0.11, sign, color=color, ha="left", weight="bold")
        _word(
            figure,
            x + mark,
            y + tile + 0.11,
            fit_class_name(names, answer, (pair - mark) * 72, 9, bold=True),
            ha="left",
            weight="bold",
        )
        if label != answer:
            truth = fit_class_name(names, label, (pair - mark - 0.55) * 72, 8)
            _word(
                figure,
                x + mark,
                y + tile + 0.26,
                f"correct: {truth}",
                size=8,
                color=FAINT,
                ha="left",
            )
    save_figure(figure, path)


def draw_neighbors(
    queries: Any,
    query_labels: Integers,
    neighbors: Any,
    neighbor_labels: Integers,
    names: Sequence[str],
    path: Path,
) -> None:
    """Draw each test image with its nearest training images at its right, as the paper's figure 4.

    Those of its class have a blue frame, others an orange one and their name below.

    Args:
        queries: uint8 [queries, size, size, 3] in [0, 255], at least one.
        query_labels: int [queries].
        neighbors: uint8 [queries, count, size, size, 3] in [0, 255], the nearest first.
        neighbor_labels: int [queries, count].
        names: of all classes.
        path: the PNG file to write.
    """
    tile, between, head = 1.0, 0.3, 0.26
    left, step, row = tile + between, tile + _GAP, tile + 0.26
    figure = _figure(left + max(neighbors.shape[1] * step - _GAP, 1.5), head + len(queries) * row)
    for x, words in ((0, "test image"), (left, "nearest training images")):
        _word(figure, x, 0.08, words, size=8, color=FAINT, ha="left")
    for index, label in enumerate(query_labels):
        y = head + index * row
        _show(_axes(figure, 0, y, tile, tile), queries[index])
        _word(
            figure,
            tile / 2,
            y + tile + 0.11,
            fit_class_name(names, int(label), tile * 72, 8, bold=True),
            size=8,
            weight="bold",
        )
        for place, (image, other) in enumerate(
            zip(neighbors[index], neighbor_labels[index], strict=True)
        ):
            x = left + place * step
            _show(
                _axes(figure, x, y, tile, tile), image, frame=_SAME if other == label else _UNLIKE
            )
            if other != label:
                _word(
                    figure,
                    x + tile / 2,
                    y + tile + 0.11,
                    fit_class_name(names, int(other), tile * 72, 8),
                    size=8,
                )
    save_figure(figure, path)


def _stretched(kernel: Any) -> Floats:
    """Return float [filters, height, width, 3] in [0, 1], each filter's largest weight at 0 or 1 and zero in the middle."""
    filters = np.moveaxis(np.asarray(kernel, np.float64), -1, 0)
    largest = np.maximum(np.abs(filters).max(axis=(1, 2, 3), keepdims=True), 1e-12)
    return 0.5 + 0.5 * filters / largest


def _sheet(filters: Floats) -> Floats:
    """Return filters, float [filters, height, width, 3], side by side on white, enlarged by a whole number: [y, x, 3] in dots."""
    count, high, wide, _ = filters.shape
    rows = -(-count // _FILTERS_A_ROW)
    columns = -(-count // rows)
    scale, border = max(1, 72 // wide), 6
    sheet = np.ones(
        (rows * (high * scale + border) - border, columns * (wide * scale + border) - border, 3)
    )
    for index, filter_ in enumerate(filters):
        row, column = divmod(index, columns)
        top, left = row * (high * scale + border), column * (wide * scale + border)
        sheet[top : top + high * scale, left : left + wide * scale] = filter_.repeat(
            scale, axis=0
        ).repeat(scale, axis=1)
    return sheet


def _colored(values: Floats) -> Any:
    """Return a feature map, float [height, width], in colors, float [height, width, 4] in [0, 1], black at 0 or at a lowest below it."""
    lowest, highest = min(0.0, float(values.min())), float(values.max())
    return mpl.colormaps["magma"]((values - lowest) / max(highest - lowest, 1e-12))


def _warmed(pixels: Any, heat: Floats) -> Floats:
    """Return an image in gray under its heat, float [size, size, 3] in [0, 1].

    Where it is cold there is nothing over it.

    Heat goes from red to yellow: in black and violet it would look like a part of the image.
    """
    gray = pixels @ np.array([0.299, 0.587, 0.114])[:, np.newaxis] / 255
    color = mpl.colormaps["inferno"](0.4 + 0.55 * heat)[..., :3]
    cover = 0.9 * heat[..., np.newaxis] ** 1.5
    return (1 - cover) * (0.05 + 0.75 * gray) + cover * color


def _trimmed(patches: Any) -> Any:
    """Return patches, uint8 [maps, patches, size, size, 4], with the images in the middle and no more transparent around than needed."""
    inside = patches[..., 3] > 0
    shown = np.stack(
        [inside.any(axis=3), inside.any(axis=2)], axis=2
    )  # [maps, patches, 2, size], which rows and columns hold an image
    longest = int(shown.sum(axis=3).max())
    trimmed = np.zeros((*inside.shape[:2], longest, longest, 4), np.uint8)
    for place in np.ndindex(inside.shape[:2]):
        rows, columns = (np.flatnonzero(side) for side in shown[place])
        top, left = (longest - len(rows)) // 2, (longest - len(columns)) // 2
        trimmed[place][top : top + len(rows), left : left + len(columns)] = patches[place][
            np.ix_(rows, columns)
        ]
    return trimmed


def _figure(width: float, height: float) -> Any:
    """Return a figure with so much room inside its margin."""
    return Figure((width + 2 * _MARGIN, height + 2 * _MARGIN))


def _axes(figure: Any, left: float, top: float, width: float, height: float) -> Any:
    """Return axes without a frame at a place of a figure."""
    wide, high = figure.get_size_inches()
    axes = figure.add_axes(
        ((_MARGIN + left) / wide, 1 - (_MARGIN + top + height) / high, width / wide, height / high)
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return axes


def _show(axes: Any, pixels: Any, frame: str | None = None) -> None:
    """Draw an image, in a colored frame if one is asked for."""
    axes.imshow(pixels, interpolation="antialiased", aspect="auto")
    if frame:
        axes.spines[:].set(visible=True, color=frame, linewidth=2.5)


def _layer(figure: Any, left: float, middle: float, name: str, note: str) -> None:
    """Write a layer's name and a small note below it."""
    room = (_LAYER - 0.1) * 72
    _word(
        figure,
        left,
        middle - 0.08,
        fit_class_name([name], 0, room, 9, bold=True),
        ha="left",
        weight="bold",
    )
    _word(
        figure,
        left,
        middle + 0.08,
        fit_class_name([note], 0, room, 7.5),
        size=7.5,
        color=FAINT,
        ha="left",
    )


def _word(
    figure: Any,
    x: float,
    y: float,
    text: str,
    *,
    size: float = 9,
    color: str = INK,
    ha: str = "center",
    weight: str = "normal",
) -> None:
    """Write a text at a place of a figure, in the middle of its height."""
    wide, high = figure.get_size_inches()
    place = ((_MARGIN + x) / wide, 1 - (_MARGIN + y) / high)
    figure.text(
        *place,
        text,
        fontsize=size,
        color=color,
        fontweight=weight,
        **{**CENTERED, "ha": ha},
        **LITERAL,
    )
