"""The pages of a review and of a retraining, and the sentence on its outcome."""

import json
from types import SimpleNamespace

import pytest

from pipeline.artifacts import GateCheck
from pipeline.reports.retraining import (
    describe_retraining_outcome,
    draw_retraining_page,
    draw_review_pages,
)
from tests.retraining_records import make_decision, make_review


@pytest.mark.parametrize(
    ("outcome", "begin"),
    [
        ("promoted", "Trained again, and version 3 is the champion now."),
        (
            "refused",
            "Trained again, and refused: the champion, version 2, stays: all 10 checks passed.",
        ),
        ("unchanged", "Trained again, and the result is the champion itself, version 2: "),
        ("waiting", "Trained again, and version 3 waits for approval: "),
    ],
)
def test_the_verdict_says_what_became_of_it_and_what_for(outcome, begin):
    text = describe_retraining_outcome(make_review(), make_decision(outcome))
    assert text.startswith(begin)
    assert text.endswith("Trained because: 30 changed.")


def test_a_refusal_names_the_checks_that_do_not_hold():
    failed = GateCheck(
        name="against_champion",
        passed=False,
        measured="",
        required="",
        text="Worse, in many words.",
    )
    text = describe_retraining_outcome(
        make_review(), make_decision("refused", checks=(failed,), reason="Worse, in many words.")
    )
    assert text.startswith(
        "Trained again, and refused: the champion, version 2, stays; failed checks:"
        " against_champion. Trained because"
    )


def test_the_page_tells_everything_and_escapes_what_others_wrote(tmp_path):
    review = make_review(
        directory=tmp_path,
        reasons={"new_data": "<b>30</b> changed."},
        notes=("No drift was measured.",),
    )
    draw_retraining_page(
        "Retraining main",
        {"review": review, "promote": make_decision(directory=tmp_path)},
        tmp_path / "report",
    )
    page = (tmp_path / "report" / "retraining.html").read_text()
    for words in (
        "version 3 is the champion now",
        "new images",
        "&lt;b&gt;30",
        "5.00 %",
        "6.00 %",
        "latency",
        "The old ones.",
        "No drift was",
    ):
        assert words in page
    draw_review_pages(review, tmp_path)
    assert "&lt;b&gt;30" in (tmp_path / "review.html").read_text()
    assert json.loads((tmp_path / "review.json").read_text())["triggers"] == ["new_data"]


def test_a_slot_that_did_not_retrain_has_a_page_too(tmp_path):
    review = make_review(directory=tmp_path, retrain=False, brief="0 changed", triggers=())
    assert review.ends_chain
    assert not make_review().ends_chain
    draw_retraining_page(
        "Retraining main",
        {"ingest": SimpleNamespace(directory=tmp_path), "review": review},
        tmp_path / "report",
    )
    assert (
        "No reason to train again: 0 changed."
        in (tmp_path / "report" / "retraining.html").read_text()
    )
