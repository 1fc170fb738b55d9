"""Tables of the claims of 2012."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.cli.tables.lines import print_location

if TYPE_CHECKING:
    from pipeline.reproduce.reproduction import Reproduction


def show_claims(output: Console, found: Reproduction) -> None:
    """Print the verdict on each claim, and where the figures are."""
    from pipeline.reports.claim_tables import tabulate_claims

    summary = tabulate_claims(found.claims)
    table = Table(*summary.headings, box=None, header_style="bold", pad_edge=False)
    for row in summary.rows:
        table.add_row(*row)
    if found.claims:
        output.print(table)
        output.print()
        for claim in found.claims:
            output.print(
                Text(f"{claim.name}: {claim.main_finding.quantity}. {claim.main_finding.why}")
            )
    if found.unfinished:
        output.print(
            Text(
                f"The budget is spent; still to do: {', '.join(found.unfinished)}. Type the same"
                " command again to go on."
            )
        )
    if found.page != Path():
        print_location(output, "figures", str(found.page))


def show_claims_plan(output: Console, plan: Sequence[Mapping[str, Any]]) -> None:
    """Print what each claim would train; what claims share is counted at the first of them."""
    table = Table(
        "claim",
        "trainings",
        "short ones, for rates",
        "images seen",
        box=None,
        header_style="bold",
        pad_edge=False,
    )
    for row in plan:
        table.add_row(
            row["claim"], *(f"{row[name]:,}" for name in ("trainings", "short_trainings", "images"))
        )
    table.add_row(
        "all",
        *(
            f"{sum(row[name] for row in plan):,}"
            for name in ("trainings", "short_trainings", "images")
        ),
    )
    output.print(table)
