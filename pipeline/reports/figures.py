"""Figures: the letters, colors and saving that all of them share.

Figures are made of matplotlib's objects alone, without pyplot and without a state that another
figure could see. Names come from folders and files and may hold anything, so all text is written
literally (`$` starts no formula), on one line, cut to its room, and as `class 12` where the font
lacks a letter. The page beside a figure has every name whole.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FONT = "DejaVu Sans"  # comes with matplotlib, so a figure is the same everywhere
LITERAL: dict[str, Any] = {"parse_math": False, "usetex": False, "fontfamily": _FONT}
CENTERED: dict[str, Any] = {"ha": "center", "va": "center"}
DPI = 150
INK, FAINT, EDGE = "#1d2330", "#69707d", "#c9cdd5"
# Blue and orange also differ for the color-blind.
BLUE, ORANGE = "#2460c8", "#d9772b"


def fit_class_name(
    names: Sequence[str], index: int, points: float, size: float, *, bold: bool = False
) -> str:
    """Return a class name on one line no wider than `points`, shortened in its middle if need be.

    A name that is empty or that the font cannot write is replaced by `class 12`.

    Args:
        names: of all classes.
        index: which one.
        points: room, in 1/72 inch.
        size: of the letters, in points.
        bold: measure bold letters.
    """
    font = load_font(bold=bold)
    text = " ".join(names[index].split())
    if (
        not text
        or any(font.get_char_index(ord(letter)) == 0 for letter in text)
        or not text.isprintable()
    ):
        return f"class {index}"
    if measure_text(font, text, size) <= points:
        return text
    kept = bisect.bisect_right(
        range(1, len(text)),
        points,
        key=lambda letters: measure_text(font, _shorten_text(text, letters), size),
    )
    return _shorten_text(text, kept)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG whose bytes depend on the drawing only: without version and time."""
    figure.savefig(path, dpi=DPI, facecolor="white", metadata={"Software": None})


@functools.cache
def load_font(*, bold: bool = False) -> FT2Font:
    """Return the font of figures."""
    return FT2Font(
        font_manager.findfont(
            font_manager.FontProperties(family=_FONT, weight="bold" if bold else "normal")
        )
    )


def measure_text(font: FT2Font, text: str, size: float) -> float:
    """Return the width of a text in points, for letters of a size in points."""
    font.set_size(size, 72)
    font.set_text(text)
    return float(font.get_width_height()[0]) / 64


def _shorten_text(text: str, kept: int) -> str:
    """Return a text with `kept` of its letters, two thirds of them from its start."""
    tail = kept // 3
    return f"{text[: kept - tail].rstrip()}…{text[len(text) - tail :].lstrip()}"
