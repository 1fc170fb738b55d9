"""The tables of the claims."""

from __future__ import annotations

from pipeline.reports import claim_tables


def test_the_headline_adds_up():
    """ILSVRC-2012 in table 2 of the paper; the networks' numbers are also in the diaries of the
    program of 2012."""
    table = claim_tables.tabulate_ilsvrc_entries()
    errors = {row[0]: float(row[2].removesuffix(" %")) for row in table.rows}
    assert list(errors.values()) == [26.2, 18.2, 16.4, 16.6, 15.3]
    assert [row[4] for row in table.rows] == ["none", "1", "5", "1", "7"]
    assert [row[5] for row in table.rows[:3]] == ["none known", "none", "none"]
    assert all("2011" in row[5] for row in table.rows[3:])
    second, one, five, winning = (
        errors[name]
        for name in ("second-best entry", "1 CNN", "5 CNNs", "7 CNNs*, the winning entry")
    )
    assert (round(second - winning), round(second - one)) == (11, 8)
    assert round(one - five) == 2
    assert round(five - winning, 1) == 1.1
    for number in (second, one, five, winning):
        assert f"{number} " in claim_tables.HEADLINE_TEXT
