"""The figure of all effects, from numbers that were made up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline.reports import claim_effects
from pipeline.reproduce.verdict import judge_effects


def test_the_effects_are_drawn_by_verdict_and_without_what_has_no_scale(
    claims, tmp_path, make_claim, make_question, check_drawing
):
    claim_effects.draw_effects(claims, tmp_path / "all.png")
    pixels = check_drawing(tmp_path / "all.png").astype(int)
    for color in ((0x24, 0x60, 0xC8), (0xD9, 0x77, 0x2B), (0x69, 0x70, 0x7D)):
        assert (abs(pixels - color).max(axis=2) < 12).sum() > 50, color
    unpublished = make_claim("none", judge_effects(make_question(published=None), (1.0, 2.0)))
    claim_effects.draw_effects([*claims, unpublished], tmp_path / "more.png")
    assert (tmp_path / "all.png").read_bytes() == (tmp_path / "more.png").read_bytes()
    claim_effects.draw_effects([unpublished], tmp_path / "none.png")
    check_drawing(tmp_path / "none.png")


def test_effects_lie_between_none_and_the_published_one(make_question):
    points = judge_effects(make_question("points", 2.0, 0.0), (0.9, 1.1))
    times = judge_effects(make_question("times", 9.0, 1.0), (3.0, 3.0))
    assert claim_effects._scale_effect(points, points.ours) == pytest.approx(0.5)
    assert claim_effects._scale_effect(times, times.ours) == pytest.approx(0.5)
    assert [claim_effects._scale_effect(times, effect) for effect in (1.0, 9.0)] == pytest.approx(
        [0, 1]
    )


def test_a_claim_at_its_bound_is_drawn_open(make_question):
    closed = judge_effects(make_question("times", 6.0, 1.0), (2.0, 2.1, 2.2))
    drawn = []
    axes = SimpleNamespace(
        plot=lambda *values, **_: drawn.append(values),
        annotate=lambda *text, **_: drawn.append(text),
    )
    for bound in (False, True):
        claim_effects._draw_effect(axes, 0, closed.model_copy(update={"is_lower_bound": bound}))
    assert [values[0] for values in drawn if str(values[-1]) == ">"] == [4.0]
    assert [text[0] for text in drawn if isinstance(text[0], str)] == [
        "2.1 times",
        "≥ 2.1 times",
    ]
