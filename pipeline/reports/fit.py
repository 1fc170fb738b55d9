"""Sentences on how images become squares, for the terminal and the dataset card."""

from __future__ import annotations

from pipeline.reports.numbers import format_percent


def describe_fit(fit: str, asked: str, cut_fraction: float) -> str:
    """Return how the images become squares, and why, without a full stop.

    Args:
        fit: `crop` or `pad`, as decided.
        asked: `data.fit`.
        cut_fraction: of the training images that lose more than a quarter of their area when they
            are cropped, in [0, 1].
    """
    loss = f"{format_percent(cut_fraction)} of the images"
    area = "more than a quarter of their area, cropped to the central square"
    if asked == "auto":
        reason = f"because {loss} would lose" if fit == "pad" else f"because only {loss} lose"
        return f"fit: {fit}, {reason} {area}"
    if fit == "pad":
        return f"fit: pad, as data.fit says; {loss} would lose {area}"
    remedy = "; data.fit=pad keeps them whole" if cut_fraction else ""
    return f"fit: crop, as data.fit says; {loss} lose {area}{remedy}"
