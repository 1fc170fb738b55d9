"""docs/results.md is what the recorded measurements say, by the rule as it is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipeline.reports.claim_records import Claim, ClaimQuestion
from pipeline.reports.claims_markdown import RESULTS_MARKS, render_results_markdown
from pipeline.reproduce.catalog import list_claim_names
from pipeline.reproduce.verdict import judge_effects

DOCS = Path(__file__).parents[2] / "docs"
RECORDS = json.loads((DOCS / "results" / "claims.json").read_text(encoding="utf-8"))
CLAIMS = [Claim.model_validate(record) for record in RECORDS["claims"]]
MEASURED = [
    (claim.name, finding)
    for claim in CLAIMS
    for finding in claim.findings
    if finding.verdict != "not measured"
]


def test_every_claim_is_there_in_order():
    assert tuple(claim.name for claim in CLAIMS) == list_claim_names()


@pytest.mark.parametrize(
    ("name", "finding"),
    MEASURED,
    ids=[f"{name}-{finding.quantity[:30]}" for name, finding in MEASURED],
)
def test_a_published_verdict_is_the_rules(name, finding):
    question = ClaimQuestion(
        **{field: getattr(finding, field) for field in ClaimQuestion.model_fields}
    )
    again = judge_effects(
        question,
        finding.effects,
        image_std=finding.image_std,
        is_lower_bound=finding.is_lower_bound,
    )
    assert (again.verdict, again.why) == (finding.verdict, finding.why)
    assert again.interval == pytest.approx(finding.interval)


def test_the_document_holds_what_the_records_say():
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    begin, end = RESULTS_MARKS
    block = text[text.index(begin) + len(begin) : text.index(end)].strip()
    assert block == render_results_markdown(CLAIMS, "results", RECORDS["machine"]).strip()


def test_the_race_has_three_seeds_an_arm_at_least_and_an_interval():
    race = CLAIMS[0]
    assert all(len(row.values["epochs"]) >= 3 for row in race.rows)
    assert race.main_finding.interval is not None


def test_images_are_there_and_of_moderate_size():
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[[^]]*\]\((results/[^)]+)\)", text)
    assert len(shown) == sum(len(claim.figures) for claim in CLAIMS)
    assert all(0 < (DOCS / path).stat().st_size < 250_000 for path in shown)
