"""Figures of the inside of a network: filters, feature maps, patches, Grad-CAM and neighbors.

`pipeline.reports.figures` has what all figures share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np

from pipeline.reports.evaluation.layout import (
    draw_image,
    draw_ring,
    find_name_width,
    make_figure,
    write_label,
    write_layer_name,
)
from pipeline.reports.figures import (
    BLUE,
    DPI,
    FAINT,
    fit_class_name,
    save_figure,
)

if TYPE_CHECKING:
    from pipeline.arrays import Floats, Image, Images, Labels
    from pipeline.reports.evaluation.data import LayerMaps, LayerPatches

# The blue and the orange of the other figures, as strong as a thin line needs.
_SAME, _UNLIKE = BLUE, "#ef8a2c"
# In inches.
_IMAGE_GAP = 0.08  # between images
_HAIR = 0.03  # between images that belong together
_TEXT_LINE = 0.2  # room for a line of small letters
_FILTERS_A_ROW = 16
_GROUPS_A_ROW = 3
_PAIRS_A_ROW = 4


def draw_filters(kernel: Floats, towers: int, path: Path) -> None:
    """Draw the filters that see the pixels in color, as the paper's figure 3.

    Gray is zero, each is stretched to its own largest weight.

    Args:
        kernel: float [height, width, 3, filters], unbounded.
        towers: 2 draws the halves apart, the first one above, each under its name.
        path: the PNG file to write.
    """
    sheets = [_arrange_filters(filters) for filters in np.split(_stretch_filters(kernel), towers)]
    high, wide = sheets[0].shape[0] / DPI, sheets[0].shape[1] / DPI
    head = 0.3 if towers > 1 else 0.0
    each = head + high + _IMAGE_GAP
    figure = make_figure(max(wide, 0.7), towers * each - _IMAGE_GAP)
    for tower, sheet in enumerate(sheets):
        if towers > 1:
            write_label(
                figure, 0, tower * each + head / 2, f"tower {tower + 1}", ha="left", weight="bold"
            )
        draw_image(figure, sheet, (0, tower * each + head), (wide, high), interpolation="nearest")
    save_figure(figure, path)


def draw_activations(pixels: Images, maps: Mapping[str, LayerMaps], path: Path) -> None:
    """Draw each image with its strongest feature maps at its right, one row per layer.

    Each map has colors of its own, from black at 0, or at the lowest if that is less, to its
    largest activation.

    Args:
        pixels: uint8 [images, height, width, 3] in [0, 255], at least one.
        maps: for each layer, the maps of these images.
        path: the PNG file to write.
    """
    image, tile, between, named = 2.0, 0.84, 0.2, find_name_width(maps)
    left, step, row = (
        image + between + named,
        tile + _IMAGE_GAP,
        tile + _TEXT_LINE + _IMAGE_GAP,
    )
    columns = max(layer.indices.shape[1] for layer in maps.values())
    block = max(len(maps) * row, image) + between
    figure = make_figure(left + columns * step - _IMAGE_GAP, len(pixels) * block - between)
    for index, shown in enumerate(pixels):
        draw_image(figure, shown, (0, index * block), (image, image))
        for line, (name, layer) in enumerate(maps.items()):
            top = index * block + line * row
            high, wide = layer.values.shape[2:]
            write_layer_name(
                figure, image + between, top + tile / 2, named, name, f"{high} × {wide}"
            )
            for column, (number, values) in enumerate(
                zip(layer.indices[index], layer.values[index], strict=True)
            ):
                draw_image(figure, _color_map(values), (left + column * step, top), (tile, tile))
                write_label(
                    figure,
                    left + column * step + tile / 2,
                    top + tile + _TEXT_LINE / 2,
                    f"map {number}",
                    size=7,
                    color=FAINT,
                )
    save_figure(figure, path)


def draw_patches(patches: Mapping[str, LayerPatches], path: Path) -> None:
    """Draw the parts of images that excite some feature maps most.

    A band for each layer, in it a group for each map, the most exciting part first.

    A patch is smaller than others of its layer where the image ends within what the unit sees. On
    a whole image a ring marks the position of the unit.

    Args:
        patches: for each layer.
        path: the PNG file to write.
    """
    tile, between, named = 0.54, 0.22, find_name_width(patches)
    row, group = (
        _TEXT_LINE + tile + 0.06,
        max(layer.pixels.shape[1] for layer in patches.values()) * (tile + _HAIR) - _HAIR + between,
    )
    columns = min(_GROUPS_A_ROW, max(len(layer.maps) for layer in patches.values()))
    rows = [-(-len(layer.maps) // columns) for layer in patches.values()]
    figure = make_figure(
        named + columns * group - between, sum(rows) * row + (len(rows) - 1) * between
    )
    top = 0.0
    for (name, layer), lines in zip(patches.items(), rows, strict=True):
        high, wide = layer.pixels.shape[2:4]
        seen = f"sees {high} × {wide}" if layer.positions is None else "sees all"
        write_layer_name(figure, 0, top + _TEXT_LINE + tile / 2, named, name, seen)
        for group_index, (number, tiles) in enumerate(
            zip(layer.maps, _trim_patches(layer.pixels), strict=True)
        ):
            x = named + group_index % columns * group
            y = top + group_index // columns * row
            write_label(
                figure, x, y + _TEXT_LINE / 2, f"map {number}", size=7, color=FAINT, ha="left"
            )
            for index, pixels in enumerate(tiles):
                corner = (x + index * (tile + _HAIR), y + _TEXT_LINE)
                place = draw_image(figure, pixels, corner, (tile, tile))
                if layer.positions is not None:
                    radius, (left, above, across, down) = tile / 9, place
                    row_at, column_at = layer.positions[group_index, index] * across / wide
                    center = (
                        left + np.clip(column_at, radius, across - radius),
                        above + np.clip(row_at, radius, down - radius),
                    )
                    draw_ring(figure, center, radius)
        top += lines * row + between
    save_figure(figure, path)


def draw_grad_cam(
    pixels: Images, heat: Floats, labels: Labels, answers: Labels, names: Sequence[str], path: Path
) -> None:
    """Draw each image beside itself in gray under its heat, over its answer.

    The answer is ticked if right, else crossed and followed by the correct class.

    Args:
        pixels: uint8 [images, height, width, 3] in [0, 255], at least one.
        heat: float [images, height, width] in [0, 1].
        labels: int [images], the correct classes.
        answers: int [images], the network's.
        names: of all classes.
        path: the PNG file to write.
    """
    tile, between, mark = 1.12, 0.2, 0.16
    pair, row = 2 * tile + _HAIR, tile + (0.28 if np.array_equal(labels, answers) else 0.42)
    columns = min(_PAIRS_A_ROW, len(pixels))
    figure = make_figure(columns * (pair + between) - between, -(-len(pixels) // columns) * row)
    for index, (label, answer) in enumerate(zip(map(int, labels), map(int, answers), strict=True)):
        x, y = index % columns * (pair + between), index // columns * row
        draw_image(figure, pixels[index], (x, y), (tile, tile))
        draw_image(
            figure,
            _overlay_heat(pixels[index], heat[index]),
            (x + tile + _HAIR, y),
            (tile, tile),
        )
        sign, color = ("✓", _SAME) if label == answer else ("✗", _UNLIKE)
        write_label(figure, x, y + tile + 0.11, sign, color=color, ha="left", weight="bold")
        write_label(
            figure,
            x + mark,
            y + tile + 0.11,
            fit_class_name(names, answer, (pair - mark) * 72, 9, bold=True),
            ha="left",
            weight="bold",
        )
        if label != answer:
            truth = fit_class_name(names, label, (pair - mark - 0.55) * 72, 8)
            write_label(
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
    queries: Images,
    query_labels: Labels,
    neighbors: Images,
    neighbor_labels: Labels,
    names: Sequence[str],
    path: Path,
) -> None:
    """Draw each test image with its nearest training images at its right, as the paper's figure 4.

    Those of its class have a blue frame, others an orange one and their name below.

    Args:
        queries: uint8 [queries, height, width, 3] in [0, 255], at least one.
        query_labels: int [queries].
        neighbors: uint8 [queries, count, height, width, 3] in [0, 255], the nearest first.
        neighbor_labels: int [queries, count].
        names: of all classes.
        path: the PNG file to write.
    """
    tile, between, head = 1.0, 0.3, 0.26
    left, step, row = tile + between, tile + _IMAGE_GAP, tile + 0.26
    figure = make_figure(
        left + max(neighbors.shape[1] * step - _IMAGE_GAP, 1.5), head + len(queries) * row
    )
    for x, heading in ((0, "test image"), (left, "nearest training images")):
        write_label(figure, x, 0.08, heading, size=8, color=FAINT, ha="left")
    for index, label in enumerate(query_labels):
        y = head + index * row
        draw_image(figure, queries[index], (0, y), (tile, tile))
        write_label(
            figure,
            tile / 2,
            y + tile + 0.11,
            fit_class_name(names, int(label), tile * 72, 8, bold=True),
            size=8,
            weight="bold",
        )
        for rank, (image, other) in enumerate(
            zip(neighbors[index], neighbor_labels[index], strict=True)
        ):
            x = left + rank * step
            draw_image(
                figure,
                image,
                (x, y),
                (tile, tile),
                frame=_SAME if other == label else _UNLIKE,
            )
            if other != label:
                write_label(
                    figure,
                    x + tile / 2,
                    y + tile + 0.11,
                    fit_class_name(names, int(other), tile * 72, 8),
                    size=8,
                )
    save_figure(figure, path)


def _stretch_filters(kernel: Floats) -> Floats:
    """Return filters stretched to [0, 1], float [filters, height, width, 3].

    The largest weight of each is at 0 or 1, zero in the middle.
    """
    filters = np.moveaxis(np.asarray(kernel, np.float64), -1, 0)
    largest = np.maximum(np.abs(filters).max(axis=(1, 2, 3), keepdims=True), 1e-12)
    return 0.5 + 0.5 * filters / largest


def _arrange_filters(filters: Floats) -> Floats:
    """Return filters side by side on white, enlarged by a whole number: [y, x, 3] in dots.

    Args:
        filters: float [filters, height, width, 3].
    """
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


def _color_map(values: Floats) -> Floats:
    """Return a feature map, [height, width], in colors, float [height, width, 4] in [0, 1].

    Black is 0, or the lowest value if that is less.
    """
    lowest, highest = min(0.0, float(values.min())), float(values.max())
    return mpl.colormaps["magma"]((values - lowest) / max(highest - lowest, 1e-12))


def _overlay_heat(pixels: Image, heat: Floats) -> Floats:
    """Return an image in gray under its heat, float [height, width, 3] in [0, 1].

    Where it is cold the image is left uncovered.

    Heat goes from red to yellow: in black and violet it would look like a part of the image.
    """
    gray = pixels @ np.array([0.299, 0.587, 0.114])[:, np.newaxis] / 255
    color = mpl.colormaps["inferno"](0.4 + 0.55 * heat)[..., :3]
    cover = 0.9 * heat[..., np.newaxis] ** 1.5
    return (1 - cover) * (0.05 + 0.75 * gray) + cover * color


def _trim_patches(patches: Images) -> Images:
    """Return uint8 [maps, patches, height, width, 4] without needless transparent borders.

    The images are in the middle of the largest height and width of their layer.
    """
    inside = patches[..., 3] > 0
    if inside.all():
        return patches
    # Which rows and columns hold an image, [maps, patches, height] and [maps, patches, width].
    shown = [np.asarray(inside.any(axis=axis)) for axis in (3, 2)]
    high, wide = (int(side.sum(axis=2).max()) for side in shown)
    trimmed = np.zeros((*inside.shape[:2], high, wide, 4), np.uint8)
    for index in np.ndindex(inside.shape[:2]):
        rows, columns = (np.flatnonzero(side[index]) for side in shown)
        top, left = (high - len(rows)) // 2, (wide - len(columns)) // 2
        trimmed[index][top : top + len(rows), left : left + len(columns)] = patches[index][
            np.ix_(rows, columns)
        ]
    return trimmed
