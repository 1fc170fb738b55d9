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

from pipeline.reports.claim_axes import (
    GRID,
    TEXT_STYLE,
    WIDTH,
    choose_style,
    draw_dots_and_mean,
    draw_empty_note,
    draw_legend,
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
from pipeline.reports.figures import BLUE, FAINT, INK, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
        draw_dots_and_mean(right, seeds_by_depth, fit_line(activation, 1.2), index)
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
    draw_dots_and_mean(axes, errors, "", 0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted(errors)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0)
    format_percents(axes.yaxis)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    label_axes(axes, "training images", "test error")
    save_palette_figure(figure, path)


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
