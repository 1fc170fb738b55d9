"""The figure of all effects of a page on one scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.reports.claim_axes import (
    GRAY,
    TEXT_STYLE,
    WIDTH,
    draw_empty_note,
    draw_legend_below,
    fit_two_lines,
    format_counts,
    label_axes,
    save_palette_figure,
)
from pipeline.reports.claim_records import Claim, ClaimFinding, ClaimVerdict, format_effect
from pipeline.reports.figures import BLUE, FAINT, INK, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_VERDICTS: dict[ClaimVerdict, tuple[str, str]] = {
    "reproduced": (BLUE, "o"),
    "not reproduced": (ORANGE, "s"),
    "not decidable": (GRAY, "D"),
}
_EFFECTS_SHOWN = (-2.0, 4.0)  # 0 is the null effect, 1 the published one


def draw_effects(claims: Sequence[Claim], path: Path) -> None:
    """Draw each claim's effect and its 95 % interval on one scale: 0 is null, 1 is published.

    Ratios are on a logarithmic scale. Claims without a published number are left out. An arrow at
    the edge stands for a value beyond -2 or 4; an effect that is a lower bound has one at its upper
    end.

    Args:
        claims: from top to bottom.
        path: the PNG file to write.
    """
    shown = [claim for claim in claims if has_scale(claim.main_finding)]
    height = 0.36 * max(1, len(shown)) + 1.1
    figure = Figure((WIDTH, height))
    axes = figure.add_axes((0.37, 0.82 / height, 0.44, 1 - 1.07 / height))
    for where, label, side in ((0.0, "no effect ", "right"), (1.0, " published", "left")):
        axes.axvline(
            where, color=FAINT, linewidth=0.9, dashes=(5, 3) if where else (1, 0), zorder=1
        )
        axes.annotate(
            label,
            (where, 1),
            (0, 2),
            ("data", "axes fraction"),
            "offset points",
            ha=side,
            fontsize=8,
            color=FAINT,
            **TEXT_STYLE,
        )
    for index, claim in enumerate(shown):
        _draw_effect(axes, index, claim.main_finding)
    axes.set_yticks(
        range(len(shown)),
        [fit_two_lines(claim.title, 0.35 * WIDTH, 8) for claim in shown],
        fontsize=8,
        color=INK,
        **TEXT_STYLE,
    )
    axes.set_ylim(max(1, len(shown)) - 0.4, -0.6)
    axes.set_xlim(_EFFECTS_SHOWN)
    format_counts(axes.xaxis)
    label_axes(axes, "effect: 0 is none, 1 is the published one", "")
    verdicts = [
        Line2D([], [], color=color, marker=marker, markersize=4.5, label=verdict)
        for verdict, (color, marker) in _VERDICTS.items()
    ]
    if shown:
        draw_legend_below(figure, verdicts, "lower center", (0.5, 0))
    else:
        draw_empty_note(axes)
    save_palette_figure(figure, path)


def has_scale(finding: ClaimFinding) -> bool:
    """Return whether `draw_effects` can show a finding: it has a published effect but the null."""
    return finding.published is not None and finding.published != finding.null_effect


def _draw_effect(axes: Axes, index: int, finding: ClaimFinding) -> None:
    """Draw one row of the forest plot."""
    across = ("axes fraction", "data")
    style = {"va": "center", "fontsize": 7.5, "color": INK, **TEXT_STYLE}
    if finding.ours is None or finding.published is None:
        axes.annotate(
            "not measured", (1, index), (6, 0), across, "offset points", **{**style, "color": FAINT}
        )
        return
    color, marker = _VERDICTS.get(finding.verdict, (GRAY, "D"))
    low, high = sorted(
        _scale_effect(finding, end) for end in finding.interval or (finding.ours, finding.ours)
    )
    if finding.is_lower_bound:
        high = math.inf
    lowest, highest = _EFFECTS_SHOWN
    axes.plot(
        np.clip((low, high), lowest, highest),
        (index, index),
        color=color,
        linewidth=1.6,
        alpha=0.7,
        solid_capstyle="butt",
    )
    for beyond, edge, arrow in ((low < lowest, lowest, "<"), (high > highest, highest, ">")):
        if beyond:
            axes.plot(edge, index, arrow, color=color, markersize=6, clip_on=False, zorder=5)
    ours = _scale_effect(finding, finding.ours)
    if lowest <= ours <= highest:
        axes.plot(ours, index, marker, color=color, markersize=5, zorder=4)
    bound = "≥ " if finding.is_lower_bound else ""
    axes.annotate(
        f"{bound}{format_effect(finding.ours, finding.unit)}",
        (1, index),
        (8, 0),
        across,
        "offset points",
        **style,
    )


def _scale_effect(finding: ClaimFinding, effect: float) -> float:
    """Return an effect on the scale on which the null effect is 0 and the published one 1."""
    null_effect, published = finding.null_effect, float(finding.published or 0)
    if finding.unit == "times" and min(effect, null_effect, published) > 0:
        effect, null_effect = math.log(effect), math.log(null_effect)
        published = math.log(published)
    return (effect - null_effect) / (published - null_effect)
