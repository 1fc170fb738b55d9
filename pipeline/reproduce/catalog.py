"""The catalog of claims: every entry of an `EXPERIMENTS` in a module of `claims/`.

`python -m pipeline.reproduce.catalog docs/reproduction.md` writes their table into a document.
"""

from __future__ import annotations

import functools
import pkgutil
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.files import write_text
from pipeline.reports.claims_markdown import render_table, replace_block
from pipeline.reports.html import Table
from pipeline.reproduce.experiment import Experiment

ALL = "all"
TABLE_MARKS = ("<!-- table of claims: begin -->", "<!-- table of claims: end -->")
_CLAIMS = "pipeline.reproduce.claims"


@functools.cache
def list_experiments() -> tuple[Experiment, ...]:
    """Return every claim, in the order in which claims are measured and listed."""
    modules = sorted(
        module.name for module in pkgutil.iter_modules(import_module(_CLAIMS).__path__)
    )
    experiments: list[Experiment] = []
    for module in modules:
        experiments += import_module(f"{_CLAIMS}.{module}").EXPERIMENTS
    return tuple(sorted(experiments, key=lambda item: (item.position, item.name)))


def list_claim_names() -> tuple[str, ...]:
    """Return the names of all claims, in order."""
    return tuple(experiment.name for experiment in list_experiments())


def select_experiments(names: Sequence[str]) -> tuple[Experiment, ...]:
    """Return the claims of some names, or all, in the order of the catalog.

    Raises:
        ConfigError: there is no such claim.
    """
    known = list_claim_names()
    unknown = [name for name in names if name not in (*known, ALL)]
    if unknown or not names:
        raise ConfigError(
            f"There is no claim {', '.join(unknown) or 'named'}",
            expected=f"{ALL}, or some of {', '.join(known)}",
        )
    return tuple(item for item in list_experiments() if ALL in names or item.name in names)


def tabulate_experiments() -> Table:
    """Return the table of all claims: name, what is claimed, where, and what decides."""
    return Table(
        ("name", "what is claimed", "where", "what decides"),
        [(item.name, item.summary, item.section, item.criterion) for item in list_experiments()],
    )


def write_claims_table(document: Path) -> None:
    """Write the table of all claims into a Markdown document, between its marks."""
    text = document.read_text(encoding="utf-8")
    write_text(document, replace_block(text, render_table(tabulate_experiments()), TABLE_MARKS))


if __name__ == "__main__":
    write_claims_table(Path(sys.argv[1]))
