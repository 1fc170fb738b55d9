"""The figures of the claims about features and towers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pipeline.reports.claim_axes import (
    GRID,
    TEXT_STYLE,
    draw_dots_and_mean,
    draw_legend,
    draw_legend_below,
    fit_line,
    format_percents,
    label_axes,
    make_panels,
    save_palette_figure,
)
from pipeline.reports.evaluation.data import LayerPatches
from pipeline.reports.evaluation.inspection_figures import draw_patches
from pipeline.reports.figures import BLUE, INK, ORANGE

if TYPE_CHECKING:
    from pipeline.arrays import Array


def draw_probes(errors: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Draw the test error of a linear classifier on each layer's features, one line per network.

    Args:
        errors: by network, such as `trained` and `fresh weights`, and by layer, from the first on,
            the test error of each seed, fractions in [0, 1].
        path: the PNG file to write.
    """
    figure, (axes,) = make_panels(1)
    layers = list(dict.fromkeys(layer for by_layer in errors.values() for layer in by_layer))
    for index, (network, by_layer) in enumerate(errors.items()):
        draw_dots_and_mean(
            axes,
            {layers.index(layer): seeds for layer, seeds in by_layer.items()},
            fit_line(network),
            index,
        )
    room = 5.4 / max(1, len(layers))
    axes.set_xticks(
        range(len(layers)),
        [fit_line(layer, room, 8.5) for layer in layers],
        fontsize=8.5,
        color=INK,
        **TEXT_STYLE,
    )
    axes.set_xlim(-0.4, max(1, len(layers)) - 0.6)
    axes.set_ylim(bottom=0)
    format_percents(axes.yaxis)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    label_axes(axes, "layer that is read", "test error")
    draw_legend(axes)
    save_palette_figure(figure, path)


def draw_towers(values: Sequence[tuple[Sequence[float], Sequence[float]]], path: Path) -> None:
    """Draw the colorfulness of each first filter by seed and tower, with the means as bars.

    Args:
        values: for each seed, of each filter of tower 1 and of tower 2.
        path: the PNG file to write.
    """
    figure, (axes,) = make_panels(1)
    for seed, towers in enumerate(values):
        for side, tower in enumerate(towers):
            if not len(tower):
                continue
            middle, color = seed + (side - 0.5) * 0.36, (BLUE, ORANGE)[side]
            # By the golden ratio neighbors lie apart, and equal in each repetition.
            spread = (np.arange(len(tower)) * 0.618) % 1 - 0.5
            axes.plot(
                middle + 0.2 * spread,
                sorted(tower),
                "o",
                color=color,
                markersize=3.2,
                alpha=0.6,
                markeredgewidth=0,
            )
            axes.plot(
                (middle - 0.15, middle + 0.15),
                [float(np.mean(tower))] * 2,
                color=INK,
                linewidth=1.6,
                zorder=4,
            )
    for side, color in enumerate((BLUE, ORANGE)):
        axes.plot([], [], "o", color=color, markersize=4, label=f"tower {side + 1}")
    axes.plot([], [], color=INK, linewidth=1.6, label="mean")
    axes.set_xticks(
        range(len(values)),
        [f"seed {seed}" for seed in range(len(values))],
        fontsize=8.5,
        color=INK,
        **TEXT_STYLE,
    )
    axes.set_xlim(-0.6, max(1, len(values)) - 0.4)
    axes.set_ylim(bottom=0)
    label_axes(axes, "", "colorfulness of a filter")
    draw_legend_below(axes, axes.get_legend_handles_labels()[0], "upper center", (0.5, -0.1))
    save_palette_figure(figure, path)


def draw_stored_patches(layers: Sequence[str], arrays: Mapping[str, Array], path: Path) -> None:
    """Draw the patches that excite some maps of a network most.

    Args:
        layers: names of the layers, from the first on.
        arrays: for each layer `NAME maps` and `NAME patches`, as `LayerPatches` has them.
        path: the PNG file to write.
    """
    patches = {
        name: LayerPatches(arrays[f"{name} maps"], arrays[f"{name} patches"]) for name in layers
    }
    draw_patches(patches, path)
    # In fewer bytes, as a page holds many images.
    with Image.open(path) as drawn:
        reduced = drawn.convert("RGB")
    reduced.save(path, optimize=True)
