"""Claims that were made up."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.reports.claim_records import ArmRow, Claim, ClaimFigure, ClaimQuestion
from pipeline.reproduce.verdict import judge_effects, make_unmeasured_finding

BITING = "Dropout <b>helps</b> | a $lot$ & `more`_ *now* [x](y)"


@pytest.fixture
def make_question():
    def make(unit="points", published=1.4, null_effect=0.0):
        return ClaimQuestion(
            quantity=f"the effect in {unit}",
            unit=unit,
            published=published,
            source="paper, section 9",
            null_effect=null_effect,
        )

    return make


@pytest.fixture
def make_claim():
    def make(name, *findings, **others):
        fields = {
            "title": f"The claim of {name}",
            "text": "What the paper says.",
            "seeds": 3,
            "profile": "quick",
            "dataset": "digits: 3 images",
        }
        fields |= {
            "command": f"alexnet reproduce --only {name}",
            "seconds": 65.0,
            "digest": "0123456789abcdef",
        }
        return Claim(name=name, findings=findings, **(fields | others))

    return make


@pytest.fixture
def claims(tmp_path, make_claim, make_question):
    """One claim of each verdict, with names that bite and images of their own."""
    for name, color in (("first.png", "red"), ("second.png", "blue")):
        Image.new("RGB", (4, 3), color).save(tmp_path / name)
    rows = (
        ArmRow(
            arm="as in <2012>",
            setting="rate 0.01",
            values={"test_top1_error": (0.1, 0.2, 0.15), "epochs": (3.0, 4.0, 5.0)},
        ),
        ArmRow(arm="without", values={"test_top1_error": (0.25,)}),
    )
    shown = (
        ClaimFigure(file="first.png", caption="The <first>."),
        ClaimFigure(file="second.png", caption="The second."),
    )
    also = (
        judge_effects(make_question(published=None), (-1.0, -1.1, -1.2)),
        make_unmeasured_finding(make_question("times", 2.0, 1.0), "There was no time."),
    )
    return [
        make_claim(
            "dropout",
            judge_effects(make_question(), (2.0, 2.1, 1.9)),
            *also,
            title=BITING,
            rows=rows,
            figures=shown,
            notes=("Only <three> seeds.",),
        ),
        make_claim(
            "relu",
            judge_effects(make_question("times", 6.0, 1.0), (0.9, 1.0, 1.1)),
            figures=shown[:1],
        ),
        make_claim("pooling", judge_effects(make_question(), (0.5, -9.0, 9.0)), rows=rows[1:]),
        make_claim("towers", make_unmeasured_finding(make_question(), "It needs two towers.")),
    ]


@pytest.fixture
def check_drawing():
    def check(path, least=(900, 150), most=(1000, 900)):
        """An image of a sane size, with something on it and white around."""
        assert path.stat().st_size < 60_000
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert least <= (pixels.shape[1], pixels.shape[0]) <= most
        assert (pixels[[0, -1], [0, -1]] == 255).all()
        assert 0.002 < (pixels < 250).any(axis=2).mean() < 0.4
        return pixels

    return check
