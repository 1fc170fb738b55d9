"""The plan of a command."""

from __future__ import annotations

from pipeline.reproduce.catalog import select_experiments
from pipeline.reproduce.planning import plan_trainings
from tests.claim_settings import reproduction_settings

CONFIG = reproduction_settings().config


def test_the_plan_counts_what_claims_share_once():
    names = [name for _, name, _ in plan_trainings(select_experiments(["all"]), CONFIG)]
    assert len(names) == len(set(names))
    assert names.count("baseline-seed0") == 1
