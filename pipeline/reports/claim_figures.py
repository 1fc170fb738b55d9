"""The figures of the claims, drawn in the manner of a paper.

Errors are fractions in [0, 1] and are written in %. A measure with several seeds shows each of
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from PIL import Image

from pipeline.reports.claim_axes import (
    GRID,
    TEXT_STYLE,
    WIDTH,
    choose_style,
    draw_empty_note,
    draw_legend,
    draw_legend_below,
    fit_line,
    fit_two_lines,
    format_counts,
    format_percents,
    label_axes,
    make_panels,
    number_epochs,
    save_palette_figure,
    scale_to_decades,
)
from pipeline.reports.claim_records import ArmRow
from pipeline.reports.evaluation.data import LayerPatches
from pipeline.reports.evaluation.inspection_figures import draw_patches
from pipeline.reports.figures import BLUE, FAINT, INK, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pipeline.arrays import Array


def draw_epochs_to_goal(
    curves: Mapping[str, Sequence[Sequence[float]]], goal: float, path: Path
) -> None:
    """Draw the training error of each epoch until a goal, as figure 1 of the paper does.

    The first arm is solid, the second dashed, the third dotted. A thin line is a seed, with a dot
    where it reached the goal. The thick line is their median, in which a seed stays at the goal
    once it is there; it ends at the goal, too.

    Args:
        curves: by arm and seed, the error of each epoch from the first on, fractions in [0, 1]; as
            long as that training took.
        goal: the error to reach, fraction in [0, 1].
        path: the PNG file to write.
    """
    figure, (axes,) = make_panels(1)
    shown = {arm: [seed for seed in seeds if len(seed)] for arm, seeds in curves.items()}
    shown = {arm: seeds for arm, seeds in shown.items() if seeds}
    for index, (arm, seeds) in enumerate(shown.items()):
        style = choose_style(index)
        for seed in seeds:
            axes.plot(number_epochs(seed), seed, linewidth=0.7, alpha=0.5, **style)
            reached = _find_goal_epoch(seed, goal)
            if reached:
                axes.plot(
                    reached, seed[reached - 1], "o", color=style["color"], markersize=4, zorder=4
                )
        middle = _compute_median_curve(seeds, goal)
        marker = "o" if len(middle) == 1 else None
        axes.plot(
            number_epochs(middle),
            middle,
            linewidth=1.9,
            marker=marker,
            label=f"{fit_line(arm)}: {_describe_goal_epochs(seeds, goal)}",
            **style,
        )
    highest = max((max(seed) for seeds in shown.values() for seed in seeds), default=1.0)
    axes.set_ylim(0, min(1.0, 1.06 * max(highest, goal)))
    axes.axhline(goal, color=FAINT, linewidth=0.9, dashes=(5, 3), zorder=1)
    right = ("axes fraction", "data")
    axes.annotate(
        f"{100 * goal:g} %",
        (1, goal),
        (0, 3),
        right,
        "offset points",
        ha="right",
        fontsize=8,
        color=FAINT,
        **TEXT_STYLE,
    )
    format_percents(axes.yaxis)
    axes.set_xlim(
        0, 1.04 * max((len(seed) for seeds in shown.values() for seed in seeds), default=1)
    )
    format_counts(axes.xaxis)
    label_axes(axes, "epoch", "training error")
    draw_legend(axes)
    save_palette_figure(figure, path)


def draw_arms(rows: Sequence[ArmRow], measure: str, path: Path, xlabel: str = "") -> None:
    """Draw the values of each arm's seeds as dots, and their mean as a bar and as a number.

    Args:
        rows: from top to bottom; those that do not have the measure are left out.
        measure: which of their values; one that ends in `error` is a fraction in [0, 1].
        path: the PNG file to write.
        xlabel: label of the values; by default the measure's name.
    """
    shown = [row for row in rows if row.values.get(measure)]
    height = 0.36 * max(1, len(shown)) + 0.75
    figure = Figure((WIDTH, height))
    axes = figure.add_axes((0.36, 0.52 / height, 0.52, 1 - 0.62 / height))
    is_error = measure.endswith("error")
    for index, row in enumerate(shown):
        values = row.values[measure]
        mean = float(np.mean(values))
        color = BLUE if index == 0 else ORANGE
        axes.plot(
            values,
            [index] * len(values),
            "o",
            color=color,
            markersize=4.5,
            alpha=0.6,
            markeredgewidth=0,
        )
        axes.plot((mean, mean), (index - 0.3, index + 0.3), color=color, linewidth=1.8)
        written = (
            f"{100 * mean:.2f} %"
            if is_error
            else f"{mean:,.0f}"
            if abs(mean) >= 1000
            else f"{mean:.4g}"
        )
        across = ("axes fraction", "data")
        axes.annotate(
            written,
            (1, index),
            (8, 0),
            across,
            "offset points",
            va="center",
            fontsize=8,
            color=INK,
            **TEXT_STYLE,
        )
    axes.set_yticks(
        range(len(shown)),
        [fit_two_lines(row.arm, 0.34 * WIDTH, 8) for row in shown],
        fontsize=8,
        color=INK,
        **TEXT_STYLE,
    )
    axes.set_ylim(max(1, len(shown)) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if is_error:
        format_percents(axes.xaxis)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    label_axes(axes, xlabel or measure.replace("_", " "), "")
    if not shown:
        draw_empty_note(axes)
    save_palette_figure(figure, path)


def draw_curves(curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], path: Path) -> None:
    """Draw the training and the validation error of each epoch side by side.

    Thin lines are seeds, the thick one is their mean.

    Args:
        curves: by arm and seed, the numbers of each epoch: `epoch`, `train_top1_error` and
            `validation_top1_error`, fractions in [0, 1]. The mean ends with the shortest seed.
        path: the PNG file to write.
    """
    figure, panels = make_panels(2, same=True)
    for axes, split in zip(panels, ("train", "validation"), strict=True):
        measure = f"{split}_top1_error"
        for index, (arm, seeds) in enumerate(curves.items()):
            lines = [
                [(entry["epoch"], entry[measure]) for entry in seed if measure in entry]
                for seed in seeds
            ]
            _draw_seeds_and_mean(axes, [line for line in lines if line], fit_line(arm, 1.9), index)
        format_percents(axes.yaxis)
        format_counts(axes.xaxis)
        label_axes(axes, "epoch", "error" if split == "train" else "")
        axes.set_title(
            "training images, as trained on" if split == "train" else "validation images",
            fontsize=9,
            color=INK,
            **TEXT_STYLE,
        )
    panels[0].set_ylim(bottom=0)
    panels[0].set_xlim(left=0)
    draw_legend(panels[1])
    save_palette_figure(figure, path)


def draw_depths(
    gradients: Mapping[str, Mapping[int, Sequence[float]]],
    errors: Mapping[str, Mapping[int, Sequence[float]]],
    chance: float,
    path: Path,
) -> None:
    """Draw the gradients of the deepest networks before training, and the errors after training.

    Args:
        gradients: by activation and depth, the norm of each layer's gradient, from the first layer
            to the last. Zeros are left out of the logarithmic scale.
        errors: by activation and depth, the training error of each seed, fractions in [0, 1].
        chance: the error of always answering the commonest class, fraction in [0, 1].
        path: the PNG file to write.
    """
    figure, (left, right) = make_panels(2)
    for index, (activation, by_depth) in enumerate(gradients.items()):
        norms = np.asarray(by_depth[max(by_depth)] if by_depth else (), np.float64)
        norms = np.where((norms > 0) & np.isfinite(norms), norms, np.nan)
        left.plot(
            number_epochs(norms),
            norms,
            linewidth=1.4,
            marker="o",
            markersize=3,
            label=fit_line(activation, 1.2),
            **choose_style(index),
        )
    deepest = max((depth for by_depth in gradients.values() for depth in by_depth), default=0)
    scale_to_decades(left)
    format_counts(left.xaxis)
    left.set_title(f"before training, {deepest} layers", fontsize=9, color=INK, **TEXT_STYLE)
    label_axes(left, "layer, from the first", "norm of its gradient")
    for index, (activation, seeds_by_depth) in enumerate(errors.items()):
        _draw_dots_and_mean(right, seeds_by_depth, fit_line(activation, 1.2), index)
    right.axhline(chance, color=FAINT, linewidth=0.9, dashes=(5, 3), zorder=1)
    across = ("axes fraction", "data")
    right.annotate(
        "chance",
        (1, chance),
        (0, 3),
        across,
        "offset points",
        ha="right",
        fontsize=8,
        color=FAINT,
        **TEXT_STYLE,
    )
    right.set_ylim(
        0,
        min(
            1.12,
            1.2
            * max(
                [
                    chance,
                    *(
                        error
                        for seeds in errors.values()
                        for values in seeds.values()
                        for error in values
                    ),
                ]
            ),
        ),
    )
    right.xaxis.set_major_locator(
        FixedLocator(sorted({depth for by_depth in errors.values() for depth in by_depth}))
    )
    format_percents(right.yaxis)
    right.set_title("after training", fontsize=9, color=INK, **TEXT_STYLE)
    label_axes(right, "layers", "training error")
    draw_legend(left)
    save_palette_figure(figure, path)


def draw_sizes(errors: Mapping[int, Sequence[float]], path: Path) -> None:
    """Draw the test error against the number of training images, on a logarithmic scale of images.

    Args:
        errors: by number of training images, the test error of each seed, fractions in [0, 1].
        path: the PNG file to write.
    """
    figure, (axes,) = make_panels(1)
    _draw_dots_and_mean(axes, errors, "", 0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted(errors)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0)
    format_percents(axes.yaxis)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    label_axes(axes, "training images", "test error")
    save_palette_figure(figure, path)


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
        _draw_dots_and_mean(
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


def _find_goal_epoch(errors: Sequence[float], goal: float) -> int:
    """Return the first epoch, counted from 1, with an error at or below the goal; 0 for none."""
    return next((epoch for epoch, error in enumerate(errors, 1) if error <= goal), 0)


def _compute_median_curve(seeds: Sequence[Sequence[float]], goal: float) -> list[float]:
    """Return the median error of each epoch, no longer than to the goal.

    A seed that ended counts with its last error.
    """
    longest = max(len(seed) for seed in seeds)
    middle = np.median(
        [[*seed, *[seed[-1]] * (longest - len(seed))] for seed in seeds], axis=0
    ).tolist()
    return middle[: _find_goal_epoch(middle, goal) or longest]


def _describe_goal_epochs(seeds: Sequence[Sequence[float]], goal: float) -> str:
    """Return after how many epochs the seeds reached the goal, as text."""
    reached = sorted(filter(None, (_find_goal_epoch(seed, goal) for seed in seeds)))
    if not reached:
        return f"not at {100 * goal:g} % after {max(len(seed) for seed in seeds)} epochs"
    span = f"{reached[0]}" if reached[0] == reached[-1] else f"{reached[0]} to {reached[-1]}"
    missing = len(seeds) - len(reached)
    rest = f", {missing} of {len(seeds)} seeds never" if missing else ""
    return f"{100 * goal:g} % after {span} epoch{'' if span == '1' else 's'}{rest}"


def _draw_seeds_and_mean(
    axes: Axes, lines: Sequence[Sequence[tuple[float, float]]], label: str, index: int
) -> None:
    """Draw lines of (x, y), and their mean up to the end of the shortest."""
    if not lines:
        return
    style = choose_style(index)
    shortest = min(len(line) for line in lines)
    marker = "o" if shortest == 1 else None
    for line in lines:
        axes.plot(*zip(*line, strict=True), linewidth=0.7, alpha=0.5, **style)
    mean = np.mean([line[:shortest] for line in lines], axis=0)
    axes.plot(
        mean[:, 0], mean[:, 1], linewidth=1.9, marker=marker, markersize=4, label=label, **style
    )


def _draw_dots_and_mean(
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
