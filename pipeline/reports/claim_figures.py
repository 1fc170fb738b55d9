"""The figures of the claims, drawn in the manner of a paper.

White ground, thin axes, colors that also differ for the color-blind.

As in `pipeline.reports.figures` they are made of matplotlib's objects only, without
pyplot, and all text is written literally. Errors are shares in [0, 1] and are written in %.
Whatever has more than one seed shows each of them.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator
from PIL import Image

from pipeline.reports.figures import (
    CENTERED,
    EDGE,
    FAINT,
    INK,
    LITERAL,
    fit_class_name,
    save_figure,
)
from pipeline.reproduce.records import Claim, Row
from pipeline.reproduce.verdict import Finding, Verdict, amount

_WIDTH, _HEIGHT = 6.5, 3.6
_FAMILY = [
    "DejaVu Serif",
    "DejaVu Sans",
]  # both come with matplotlib; the second has the letters that the first lacks
_WORDS: dict[str, Any] = {**LITERAL, "fontfamily": _FAMILY}
_SERIF_WIDTH = 1.08  # of a text, against the sans-serif letters that `fit_class_name` measures
_BLUE, _ORANGE, _GRAY, _GREEN = "#2460c8", "#d9772b", "#69707d", "#2a8f6a"
_COLORS, _DASHES = (
    (_BLUE, _ORANGE, _GREEN, _GRAY, INK),
    (
        "-",
        "--",
        ":",
        "-.",
        (0, (6, 1, 1, 1, 1, 1)),
    ),
)
_VERDICTS: dict[Verdict, tuple[str, str]] = {
    "reproduced": (_BLUE, "o"),
    "not reproduced": (_ORANGE, "s"),
    "not decidable": (_GRAY, "D"),
}
_EFFECTS_SHOWN = (-2.0, 4.0)  # 0 is no effect, 1 the published one


def draw_race(curves: Mapping[str, Sequence[Sequence[float]]], goal: float, path: Path) -> None:
    """Draw the training error of each epoch until a goal, as figure 1 of the paper does.

    An arm solid, the next dashed, the next dotted.

    A thin line is a seed, a dot where it came to the goal. The thick line is their median, to which
    a seed at the goal counts on as being there; it ends at the goal, too.

    Args:
        curves: by arm and seed, the error of each epoch from the first on, shares in [0, 1]; as
            long as that training went on.
        goal: the error that they race to, share in [0, 1].
        path: the PNG file to write.
    """
    figure, (axes,) = _panels(1)
    some = {arm: [seed for seed in seeds if len(seed)] for arm, seeds in curves.items()}
    some = {arm: seeds for arm, seeds in some.items() if seeds}
    for place, (arm, seeds) in enumerate(some.items()):
        style = _style(place)
        for seed in seeds:
            axes.plot(_epochs(seed), seed, linewidth=0.7, alpha=0.5, **style)
            reached = _first_at(seed, goal)
            if reached:
                axes.plot(
                    reached, seed[reached - 1], "o", color=style["color"], markersize=4, zorder=4
                )
        middle = _median(seeds, goal)
        marker = "o" if len(middle) == 1 else None
        axes.plot(
            _epochs(middle),
            middle,
            linewidth=1.9,
            marker=marker,
            label=f"{_short(arm)}: {_told(seeds, goal)}",
            **style,
        )
    highest = max((max(seed) for seeds in some.values() for seed in seeds), default=1.0)
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
        **_WORDS,
    )
    _percent(axes.yaxis)
    axes.set_xlim(
        0, 1.04 * max((len(seed) for seeds in some.values() for seed in seeds), default=1)
    )
    _count(axes.xaxis)
    _name(axes, "epoch", "training error")
    _legend(axes)
    _save(figure, path)


def draw_arms(rows: Sequence[Row], measure: str, path: Path, xlabel: str = "") -> None:
    """Draw what each seed of each arm gave as dots in a line, their mean as a bar across it and, at the right, as a number.

    Args:
        rows: from top to bottom; those that do not have the measure are left out.
        measure: which of their values; one that ends in `error` is a share in [0, 1].
        path: the PNG file to write.
        xlabel: what the values are; by default the measure's name.
    """
    shown = [row for row in rows if row.values.get(measure)]
    height = 0.36 * max(1, len(shown)) + 0.75
    figure = Figure((_WIDTH, height))
    axes = figure.add_axes((0.36, 0.52 / height, 0.52, 1 - 0.62 / height))
    share = measure.endswith("error")
    for place, row in enumerate(shown):
        values = row.values[measure]
        mean = float(np.mean(values))
        color = _BLUE if place == 0 else _ORANGE
        axes.plot(
            values,
            [place] * len(values),
            "o",
            color=color,
            markersize=4.5,
            alpha=0.6,
            markeredgewidth=0,
        )
        axes.plot((mean, mean), (place - 0.3, place + 0.3), color=color, linewidth=1.8)
        written = (
            f"{100 * mean:.2f} %"
            if share
            else f"{mean:,.0f}"
            if abs(mean) >= 1000
            else f"{mean:.4g}"
        )
        across = ("axes fraction", "data")
        axes.annotate(
            written,
            (1, place),
            (8, 0),
            across,
            "offset points",
            va="center",
            fontsize=8,
            color=INK,
            **_WORDS,
        )
    axes.set_yticks(
        range(len(shown)),
        [_lines(row.arm, 0.34 * _WIDTH, 8) for row in shown],
        fontsize=8,
        color=INK,
        **_WORDS,
    )
    axes.set_ylim(max(1, len(shown)) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if share:
        _percent(axes.xaxis)
    axes.grid(axis="x", color="#e6e8ec", linewidth=0.6)
    axes.set_axisbelow(True)
    _name(axes, xlabel or measure.replace("_", " "), "")
    if not shown:
        _nothing(axes)
    _save(figure, path)


def draw_curves(curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], path: Path) -> None:
    """Draw the training and the validation error of each epoch side by side.

    Thin lines are seeds, the thick one is their mean.

    Args:
        curves: by arm and seed, the numbers of each epoch: `epoch`, `train_top1_error` and
            `validation_top1_error`, shares in [0, 1]. The mean ends with the first seed that does.
        path: the PNG file to write.
    """
    figure, panels = _panels(2, same=True)
    for axes, split in zip(panels, ("train", "validation"), strict=True):
        measure = f"{split}_top1_error"
        for place, (arm, seeds) in enumerate(curves.items()):
            lines = [
                [(entry["epoch"], entry[measure]) for entry in seed if measure in entry]
                for seed in seeds
            ]
            _seeds_and_mean(axes, [line for line in lines if line], _short(arm, 1.9), place)
        _percent(axes.yaxis)
        _count(axes.xaxis)
        _name(axes, "epoch", "error" if split == "train" else "")
        axes.set_title(
            "training images, as trained on" if split == "train" else "validation images",
            fontsize=9,
            color=INK,
            **_WORDS,
        )
    panels[0].set_ylim(bottom=0)
    panels[0].set_xlim(left=0)
    _legend(panels[1])
    _save(figure, path)


def draw_depths(
    gradients: Mapping[str, Mapping[int, Sequence[float]]],
    errors: Mapping[str, Mapping[int, Sequence[float]]],
    chance: float,
    path: Path,
) -> None:
    """Draw how gradients fade through the deepest networks before training, and what networks of each depth come to.

    Args:
        gradients: by activation and depth, the norm of each layer's gradient, from the first layer
            to the last. Those of 0 have no place on the logarithmic scale and are left out.
        errors: by activation and depth, the training error of each seed, shares in [0, 1].
        chance: the error of always giving the commonest answer, share in [0, 1].
        path: the PNG file to write.
    """
    figure, (left, right) = _panels(2)
    for place, (activation, by_depth) in enumerate(gradients.items()):
        norms = np.asarray(by_depth[max(by_depth)] if by_depth else (), np.float64)
        norms = np.where((norms > 0) & np.isfinite(norms), norms, np.nan)
        left.plot(
            _epochs(norms),
            norms,
            linewidth=1.4,
            marker="o",
            markersize=3,
            label=_short(activation, 1.2),
            **_style(place),
        )
    deepest = max((depth for by_depth in gradients.values() for depth in by_depth), default=0)
    _decades(left)
    _count(left.xaxis)
    left.set_title(f"before training, {deepest} layers", fontsize=9, color=INK, **_WORDS)
    _name(left, "layer, from the first", "norm of its gradient")
    for place, (activation, seeds_by_depth) in enumerate(errors.items()):
        _dots_and_mean(right, seeds_by_depth, _short(activation, 1.2), place)
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
        **_WORDS,
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
                        for of_one in seeds.values()
                        for error in of_one
                    ),
                ]
            ),
        ),
    )
    right.xaxis.set_major_locator(
        FixedLocator(sorted({depth for by_depth in errors.values() for depth in by_depth}))
    )
    _percent(right.yaxis)
    right.set_title("after training", fontsize=9, color=INK, **_WORDS)
    _name(right, "layers", "training error")
    _legend(left)
    _save(figure, path)


def draw_sizes(errors: Mapping[int, Sequence[float]], path: Path) -> None:
    """Draw the test error against the number of training images, on a logarithmic scale of images.

    Args:
        errors: by number of training images, the test error of each seed, shares in [0, 1].
        path: the PNG file to write.
    """
    figure, (axes,) = _panels(1)
    _dots_and_mean(axes, errors, "", 0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted(errors)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0)
    _percent(axes.yaxis)
    axes.grid(axis="y", color="#e6e8ec", linewidth=0.6)
    _name(axes, "training images", "test error")
    _save(figure, path)


def draw_probes(errors: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Draw the test error of a linear classifier on each layer's features, a line a network.

    Args:
        errors: by network, such as `trained` and `fresh weights`, and by layer, from the first on,
            the test error of each seed, shares in [0, 1].
        path: the PNG file to write.
    """
    figure, (axes,) = _panels(1)
    layers = list(dict.fromkeys(layer for by_layer in errors.values() for layer in by_layer))
    for place, (network, by_layer) in enumerate(errors.items()):
        _dots_and_mean(
            axes,
            {layers.index(layer): seeds for layer, seeds in by_layer.items()},
            _short(network),
            place,
        )
    room = 5.4 / max(1, len(layers))
    axes.set_xticks(
        range(len(layers)),
        [_short(layer, room, 8.5) for layer in layers],
        fontsize=8.5,
        color=INK,
        **_WORDS,
    )
    axes.set_xlim(-0.4, max(1, len(layers)) - 0.6)
    axes.set_ylim(bottom=0)
    _percent(axes.yaxis)
    axes.grid(axis="y", color="#e6e8ec", linewidth=0.6)
    _name(axes, "layer that is read", "test error")
    _legend(axes)
    _save(figure, path)


def draw_towers(values: Sequence[tuple[Sequence[float], Sequence[float]]], path: Path) -> None:
    """Draw how colorful each filter of the first layer is, the two towers of each seed side by side, with their means as bars.

    Args:
        values: for each seed, of each filter of tower 1 and of tower 2.
        path: the PNG file to write.
    """
    figure, (axes,) = _panels(1)
    for seed, towers in enumerate(values):
        for side, tower in enumerate(towers):
            if not len(tower):
                continue
            middle, color = seed + (side - 0.5) * 0.36, (_BLUE, _ORANGE)[side]
            spread = (
                np.arange(len(tower)) * 0.618
            ) % 1 - 0.5  # by the golden ratio, neighbors lie apart and it is the same each time
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
    for side, color in enumerate((_BLUE, _ORANGE)):
        axes.plot([], [], "o", color=color, markersize=4, label=f"tower {side + 1}")
    axes.plot([], [], color=INK, linewidth=1.6, label="mean")
    axes.set_xticks(
        range(len(values)),
        [f"seed {seed}" for seed in range(len(values))],
        fontsize=8.5,
        color=INK,
        **_WORDS,
    )
    axes.set_xlim(-0.6, max(1, len(values)) - 0.4)
    axes.set_ylim(bottom=0)
    _name(axes, "", "colorfulness of a filter")
    _legend_below(
        axes, axes.get_legend_handles_labels()[0], loc="upper center", bbox_to_anchor=(0.5, -0.1)
    )
    _save(figure, path)


def draw_effects(claims: Sequence[Claim], path: Path) -> None:
    """Draw each claim's effect and its 95 % interval on one scale, on which 0 is no effect and 1 what was published.

    Ratios lie on a logarithmic scale. Claims without a published number have no place here and are
    left out. What lies beyond -2 or 4 is an arrow at the edge; an effect that is a lower bound has
    one at its upper end.

    Args:
        claims: from top to bottom.
        path: the PNG file to write.
    """
    shown = [claim for claim in claims if has_scale(claim.main)]
    height = 0.36 * max(1, len(shown)) + 1.1
    figure = Figure((_WIDTH, height))
    axes = figure.add_axes((0.37, 0.82 / height, 0.44, 1 - 1.07 / height))
    for where, word, side in ((0.0, "no effect ", "right"), (1.0, " published", "left")):
        axes.axvline(
            where, color=FAINT, linewidth=0.9, dashes=(5, 3) if where else (1, 0), zorder=1
        )
        axes.annotate(
            word,
            (where, 1),
            (0, 2),
            ("data", "axes fraction"),
            "offset points",
            ha=side,
            fontsize=8,
            color=FAINT,
            **_WORDS,
        )
    for place, claim in enumerate(shown):
        _draw_effect(axes, place, claim.main)
    axes.set_yticks(
        range(len(shown)),
        [_lines(claim.title, 0.35 * _WIDTH, 8) for claim in shown],
        fontsize=8,
        color=INK,
        **_WORDS,
    )
    axes.set_ylim(max(1, len(shown)) - 0.4, -0.6)
    axes.set_xlim(_EFFECTS_SHOWN)
    _count(axes.xaxis)
    _name(axes, "effect: 0 is none, 1 is what was published", "")
    verdicts = [
        Line2D([], [], color=color, marker=marker, markersize=4.5, label=word)
        for word, (color, marker) in _VERDICTS.items()
    ]
    if shown:
        _legend_below(figure, verdicts, loc="lower center", bbox_to_anchor=(0.5, 0))
    else:
        _nothing(axes)
    _save(figure, path)


def has_scale(finding: Finding) -> bool:
    """Return whether `draw_effects` has a place for a finding.

    Its published effect is known and is not none.
    """
    return finding.published is not None and finding.published != finding.least


def _draw_effect(axes: Any, place: int, finding: Finding) -> None:
    """Draw one line of the forest plot."""
    across = ("axes fraction", "data")
    style = {"va": "center", "fontsize": 7.5, "color": INK, **_WORDS}
    if finding.ours is None or finding.published is None:
        axes.annotate(
            "not measured", (1, place), (6, 0), across, "offset points", **{**style, "color": FAINT}
        )
        return
    color, marker = _VERDICTS.get(finding.verdict, (_GRAY, "D"))
    low, high = sorted(
        _on_scale(finding, end) for end in finding.interval or (finding.ours, finding.ours)
    )
    if finding.at_least:
        high = math.inf
    least, most = _EFFECTS_SHOWN
    axes.plot(
        np.clip((low, high), least, most),
        (place, place),
        color=color,
        linewidth=1.6,
        alpha=0.7,
        solid_capstyle="butt",
    )
    for beyond, edge, arrow in ((low < least, least, "<"), (high > most, most, ">")):
        if beyond:
            axes.plot(edge, place, arrow, color=color, markersize=6, clip_on=False, zorder=5)
    ours = _on_scale(finding, finding.ours)
    if least <= ours <= most:
        axes.plot(ours, place, marker, color=color, markersize=5, zorder=4)
    bound = "≥ " if finding.at_least else ""
    axes.annotate(
        f"{bound}{amount(finding.ours, finding.unit)}",
        (1, place),
        (8, 0),
        across,
        "offset points",
        **style,
    )


def _on_scale(finding: Finding, effect: float) -> float:
    """Return an effect on the scale on which `least` is 0 and the published one 1."""
    least, published = finding.least, float(finding.published or 0)
    if finding.unit == "times" and min(effect, least, published) > 0:
        effect, least, published = math.log(effect), math.log(least), math.log(published)
    return (effect - least) / (published - least)


def _first_at(errors: Sequence[float], goal: float) -> int:
    """Return the first epoch, counted from 1, with an error at the goal or below.

    0 where there is none.
    """
    return next((epoch for epoch, error in enumerate(errors, 1) if error <= goal), 0)


def _median(seeds: Sequence[Sequence[float]], goal: float) -> list[float]:
    """Return the median error of each epoch, to which a seed that ended counts on with its last error; no longer than to the goal."""
    longest = max(len(seed) for seed in seeds)
    middle = np.median(
        [[*seed, *[seed[-1]] * (longest - len(seed))] for seed in seeds], axis=0
    ).tolist()
    return middle[: _first_at(middle, goal) or longest]


def _told(seeds: Sequence[Sequence[float]], goal: float) -> str:
    """Say after how many epochs the seeds came to the goal."""
    reached = sorted(filter(None, (_first_at(seed, goal) for seed in seeds)))
    if not reached:
        return f"not at {100 * goal:g} % after {max(len(seed) for seed in seeds)} epochs"
    span = f"{reached[0]}" if reached[0] == reached[-1] else f"{reached[0]} to {reached[-1]}"
    missing = len(seeds) - len(reached)
    rest = f", {missing} of {len(seeds)} seeds never" if missing else ""
    return f"{100 * goal:g} % after {span} epoch{'' if span == '1' else 's'}{rest}"


def _seeds_and_mean(
    axes: Any, lines: Sequence[Sequence[tuple[float, float]]], label: str, place: int
) -> None:
    """Draw lines of (x, y), and their mean as far as all of them go."""
    if not lines:
        return
    style = _style(place)
    shortest = min(len(line) for line in lines)
    marker = "o" if shortest == 1 else None
    for line in lines:
        axes.plot(*zip(*line, strict=True), linewidth=0.7, alpha=0.5, **style)
    mean = np.mean([line[:shortest] for line in lines], axis=0)
    axes.plot(
        mean[:, 0], mean[:, 1], linewidth=1.9, marker=marker, markersize=4, label=label, **style
    )


def _dots_and_mean(axes: Any, seeds: Mapping[int, Sequence[float]], label: str, place: int) -> None:
    """Draw every seed's value as a dot over its x, and a line through the means."""
    some = {x: values for x, values in sorted(seeds.items()) if len(values)}
    style = _style(place)
    for x, values in some.items():
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
        list(some),
        [float(np.mean(values)) for values in some.values()],
        linewidth=1.5,
        label=label,
        **style,
    )


def _panels(count: int, *, same: bool = False) -> tuple[Figure, Sequence[Any]]:
    """Return a figure with some axes side by side, of the same scales if asked for."""
    figure = Figure((_WIDTH, _HEIGHT), layout="constrained")
    return figure, figure.subplots(1, count, sharex=same, sharey=same, squeeze=False)[0]


def _style(place: int) -> dict[str, Any]:
    """Return the color and the dashes of an arm, counted from 0."""
    return {"color": _COLORS[place % len(_COLORS)], "linestyle": _DASHES[place % len(_DASHES)]}


def _epochs(values: Sequence[float] | Any) -> list[int]:
    """Return 1, 2, 3, ... for so many values."""
    return list(range(1, len(values) + 1))


def _short(text: str, inches: float = 3.2, size: float = 8) -> str:
    """Return a text on one line, no wider than there is room."""
    return fit_class_name([text], 0, 72 * inches / _SERIF_WIDTH, size)


def _lines(text: str, inches: float, size: float) -> str:
    """Return a text on two lines at most, no wider than there is room."""
    first, *rest = textwrap.wrap(text, int(inches * 72 / (0.6 * size))) or [
        ""
    ]  # a letter is about 0.6 of its height wide
    return "\n".join(
        _short(line, inches, size) for line in (first, *filter(None, [" ".join(rest)]))
    )


def _percent(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g} %"))


def _count(axis: Any) -> None:
    axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))


def _decades(axes: Any) -> None:
    """Make the upright axis logarithmic and end it at powers of ten, so that at least two of them are written."""
    low, high = axes.dataLim.intervaly
    axes.set_yscale("log")
    if 0 < low <= high < math.inf:
        axes.set_ylim(
            10 ** (math.ceil(math.log10(low)) - 1), 10 ** (math.floor(math.log10(high)) + 1)
        )


def _name(axes: Any, x: str, y: str) -> None:
    """Name the axes, and draw them thin."""
    axes.set_xlabel(x, fontsize=8.5, color=INK, **_WORDS)
    axes.set_ylabel(y, fontsize=8.5, color=INK, **_WORDS)
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


def _legend(axes: Any) -> None:
    """Name the lines inside the axes, literally."""
    if axes.get_legend_handles_labels()[1]:
        _literal(
            axes.legend(
                frameon=False, handlelength=2.6, prop=FontProperties(family=_FAMILY, size=8)
            )
        )


def _legend_below(place: Any, handles: Sequence[Any], **options: Any) -> None:
    """Name the marks in one line below the axes or at a figure's foot, where they can hide nothing."""
    _literal(
        place.legend(
            handles=handles,
            frameon=False,
            ncols=len(handles),
            prop=FontProperties(family=_FAMILY, size=8),
            **options,
        )
    )


def _literal(legend: Any) -> None:
    for text in legend.get_texts():
        text.set(parse_math=False, color=INK)


def _nothing(axes: Any) -> None:
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
        **_WORDS,
    )


def _save(figure: Figure, path: Path) -> None:
    """Write a PNG with a palette.

    A third of the bytes, since a page holds many and they have few colors.
    """
    save_figure(figure, path)
    with Image.open(path) as drawn:
        few = drawn.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
