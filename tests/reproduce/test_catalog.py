"""The catalog of claims: it finds all of them, in one order."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from pipeline.config.settings import Config
from pipeline.errors import ConfigError
from pipeline.reports.claims_markdown import render_table
from pipeline.reproduce.catalog import (
    TABLE_MARKS,
    list_claim_names,
    list_experiments,
    select_experiments,
    tabulate_experiments,
)


def test_claims_come_in_one_order_whatever_the_order_they_are_named_in():
    assert [item.name for item in select_experiments(["size", "relu"])] == ["relu", "size"]
    assert [item.name for item in select_experiments(["all"])] == list(list_claim_names())
    with pytest.raises(
        ConfigError, match=r"There is no claim lnr\. Expected all, or some of relu, "
    ):
        select_experiments(["lnr"])


def test_every_claim_has_a_name_and_a_position_of_its_own():
    assert len(set(list_claim_names())) == len(list_experiments())
    assert len({item.position for item in list_experiments()}) == len(list_experiments())


@pytest.mark.parametrize("name", ["features", "towers", "replicas", "gpu", "relu", "size"])
def test_a_claim_with_a_file_of_its_own_is_named_as_that(name):
    (claim,) = import_module(f"pipeline.reproduce.claims.{name}").EXPERIMENTS
    assert claim.name == name
    if name not in ("relu", "size"):
        names = [arm.name for arm in claim.list_arms(Config())]
        assert names == (["baseline"] if name in ("features", "towers") else [])


def test_the_table_in_the_documentation_is_that_of_the_catalog():
    document = Path(__file__).parents[2] / "docs" / "reproduction.md"
    begin, end = TABLE_MARKS
    block = document.read_text(encoding="utf-8").partition(begin)[2].partition(end)[0]
    assert block.strip() == render_table(tabulate_experiments()), (
        "Type `python -m pipeline.reproduce.catalog docs/reproduction.md`."
    )
