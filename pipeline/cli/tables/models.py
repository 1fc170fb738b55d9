"""Tables of models: versions, exports, comparisons."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.cli.tables.lines import print_location
from pipeline.image_size import write_image_size
from pipeline.reports.numbers import format_duration

if TYPE_CHECKING:
    from pipeline.evaluate.compare import Comparison
    from pipeline.export.record import ExportRecord
    from pipeline.model.network_list import ListedNetwork
    from pipeline.tracking.registry import Version


def show_networks(output: Console, networks: Sequence[ListedNetwork]) -> None:
    """Print the networks of the registry."""
    measured = any(network.images_per_second for network in networks)
    table = Table()
    for heading in (
        "network",
        "M parameters",
        "M MACs",
        "pixels",
        "ImageNet error",
        "licence of the weights",
        "weights",
        *(["images/s here"] if measured else []),
    ):
        is_text = heading in ("network", "licence of the weights", "weights")
        table.add_column(heading, justify="left" if is_text else "right")
    for network in networks:
        row = network.row
        error = row.imagenet_top1_error
        rate = network.images_per_second
        cells = (
            Text(row.name),
            f"{row.parameters / 1e6:,.1f}" if row.parameters else "",
            f"{row.macs / 1e6:,.0f}" if row.macs else "",
            str(write_image_size(row.image_size)),
            "" if error is None else f"{error:.1%}",
            row.licence,
            network.weights,
            *([f"{rate:,.1f}" if rate else ""] if measured else []),
        )
        table.add_row(*cells)
    output.print(table)


def show_versions(output: Console, versions: Sequence[Version]) -> None:
    """Print the versions of a registered model."""
    if not versions:
        output.print(
            "No version is registered yet. `alexnet run promote` makes one.", highlight=False
        )
        return
    table = Table(title=Text(versions[0].name), title_justify="left")
    for heading in ("version", "aliases", "gate", "top-1 error", "age", "model", "decision"):
        table.add_column(
            heading,
            justify="right" if heading in ("version", "top-1 error", "age") else "left",
            overflow="fold",
        )
    for version in versions:
        row = version_as_dict(version)
        error = f"{row['top1_error']:.2%}" if row["top1_error"] is not None else ""
        style = "green" if "champion" in version.aliases else "dim" if row["withdrawn"] else ""
        gate = f"{row['gate']}{', withdrawn' if row['withdrawn'] else ''}"
        cells = (
            version.number,
            ", ".join(version.aliases),
            gate,
            error,
            format_duration(row["age_seconds"]),
            version.model_sha256[:12],
        )
        table.add_row(*cells, Text(row["reason"]), style=style)
    output.print(table)


def version_as_dict(version: Version) -> dict[str, Any]:
    """Return a version as JSON can hold it."""
    error = version.tags.get("top1_error")
    return {
        "name": version.name,
        "version": version.number,
        "aliases": list(version.aliases),
        "gate": version.gate or "not judged",
        "withdrawn": version.withdrawn,
        "decision": version.tags.get("decision"),
        "reason": version.tags.get("decision_reason", ""),
        "top1_error": float(error) if error else None,
        "age_seconds": round(time.time() - version.created, 1),
        "model_sha256": version.model_sha256,
        "release_sha256": version.release_sha256,
        "dataset_digest": version.tags.get("dataset_digest"),
    }


def show_export(output: Console, exported: ExportRecord) -> None:
    """Print what was exported, how it compares, and where it is."""
    output.print(Text(exported.headline()), soft_wrap=True)
    print_location(output, "file", str(exported.file))
    print_location(output, "page", str(exported.page.resolve().as_uri()))


def show_comparison(output: Console, comparison: Comparison) -> None:
    """Print which of two models is better, the numbers of both, and where the page is."""
    from pipeline.reports.comparison import describe_verdict, tabulate_measures

    document = comparison.as_dict()
    output.print(Text(describe_verdict(document)))
    numbers = tabulate_measures(document)
    table = Table()
    for heading in numbers.headings:
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    for row in numbers.rows:
        table.add_row(*row)
    output.print(table)
    print_location(output, "page", str(comparison.page.resolve().as_uri()))


def show_version(output: Console, version: Version) -> None:
    """Print one version of a registered model."""
    row = version_as_dict(version)
    table = Table(title=Text(f"{version.name}, version {version.number}"), title_justify="left")
    table.add_column("what")
    table.add_column("value", overflow="fold")
    error = f"{row['top1_error']:.2%}" if row["top1_error"] is not None else "not recorded"
    rows = {
        "aliases": ", ".join(version.aliases) or "none",
        "gate": f"{row['gate']}{', withdrawn' if row['withdrawn'] else ''}",
        "decision": row["decision"] or "none",
        "reason": row["reason"],
        "test top-1 error": error,
        "age": format_duration(row["age_seconds"]),
        "model SHA-256": row["model_sha256"],
        "release SHA-256": row["release_sha256"],
        "dataset digest": row["dataset_digest"] or "",
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    output.print(table)
