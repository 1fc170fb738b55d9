"""Tables of stages: results, layers, decisions, status, settings, diagnoses."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.artifacts import Decision, ModelArtifact
from pipeline.cli.progress import STATE_STYLES
from pipeline.cli.tables.lines import print_location
from pipeline.cli.tables.models import show_comparison
from pipeline.config.description import describe_setting
from pipeline.config.resolution import Resolved
from pipeline.engine.runner import StageStatus
from pipeline.reports.layer_blocks import group_layers
from pipeline.reports.numbers import format_duration

if TYPE_CHECKING:
    from pipeline.workspace.chain import PipelineResult
    from pipeline.workspace.diagnosis import Diagnosis
    from pipeline.workspace.looking import Status


def show_result(output: Console, result: PipelineResult) -> None:
    """Print the scores or, of a command that ends with `build`, the layers; and where to look."""
    report = result.report
    last = result.outcomes[-1]
    if isinstance(last.artifact, ModelArtifact):
        show_layers(output, last.artifact, result.resolved.config.train.global_batch_size)
        print_location(
            output, "page", str((last.directory / "report" / "network.html").resolve().as_uri())
        )
    if report is not None:
        low, high = report.top1_error_interval
        table = Table(
            title=Text(f"{report.split} split, {report.images:,} images, {report.view}"),
            title_justify="left",
        )
        table.add_column("measure")
        table.add_column("value", justify="right")
        table.add_column("")
        table.add_row(
            "top-1 error", f"{report.top1_error:.2%}", f"95 % interval {low:.2%} to {high:.2%}"
        )
        table.add_row("top-5 error", f"{report.top5_error:.2%}", "")
        table.add_row("cross-entropy", f"{report.loss:.4f}", "nats")
        calibration = f"expected, of the probabilities; fitted temperature {report.temperature:.3f}"
        table.add_row("calibration error", f"{report.calibration_error:.2%}", calibration)
        table.add_row(
            "majority class",
            f"{report.majority_error:.2%}",
            "error of always giving the commonest answer",
        )
        output.print(table)
        print_location(
            output, "report", str((report.directory / report.REPORT_FILE).resolve().as_uri())
        )
    if result.comparison is not None:
        show_comparison(output, result.comparison)
    if result.decision is not None:
        show_decision(output, result.decision)
    if result.model is not None:
        print_location(output, "model", str(result.model.model_path))
    if result.run_url is not None:
        hint = (
            ""
            if result.resolved.config.tracking.uri.startswith("http")
            else "   (after `alexnet ui`)"
        )
        print_location(output, "MLflow", f"{result.run_url}{hint}")


def show_decision(output: Console, decision: Decision) -> None:
    """Print what the gate looked at and what became of the candidate."""
    if decision.checks:
        against = (
            f"judged against version {decision.champion}" if decision.champion else "the first"
        )
        table = Table(title=Text(f"release of {decision.name}, {against}"), title_justify="left")
        for heading in ("check", "", "found", "required"):
            table.add_column(heading)
        for check in decision.checks:
            style = "green" if check.passed else "red"
            table.add_row(
                check.name,
                f"[{style}]{'holds' if check.passed else 'fails'}[/]",
                Text(check.measured),
                Text(check.required),
            )
        output.print(table)
    print_location(output, "page", str(decision.page.resolve().as_uri()))


def show_layers(output: Console, model: ModelArtifact, batch_size: int) -> None:
    """Print the layers of a network, or its blocks: shape, parameters, MACs, memory of a batch."""
    rows = group_layers(model.layers)
    table = Table(
        title=Text(f"{model.network}, {len(model.class_names):,} classes"), title_justify="left"
    )
    for heading in (
        "layer" if len(rows) == len(model.layers) else "block",
        "what",
        "output",
        "parameters",
        "M MACs",
        f"MB, batch of {batch_size:,}",
    ):
        is_text = heading in ("layer", "block", "what")
        table.add_column(heading, justify="left" if is_text else "right")
    for layer in rows:
        numbers = (
            f"{layer.parameters:,}" if layer.parameters else "",
            f"{layer.macs / 1e6:,.1f}" if layer.macs else "",
        )
        shape = " x ".join(str(side) for side in layer.output)
        table.add_row(
            layer.layer, layer.kind, shape, *numbers, f"{batch_size * layer.bytes / 1e6:,.1f}"
        )
    table.add_section()
    total = model.activation_bytes(batch_size) / 1e6
    table.add_row(
        "total", "", "", f"{model.parameters:,}", f"{model.macs / 1e6:,.1f}", f"{total:,.1f}"
    )
    output.print(table)


def show_status(output: Console, found: Status) -> None:
    """Print a table of the stages: state, age, size, run, and what changed."""
    resolved = found.resolved
    table = Table(
        title=Text(f"recipe {resolved.recipe}, dataset {resolved.config.data.dataset}"),
        title_justify="left",
    )
    for heading in ("stage", "state", "age", "size", "result or reason", "run"):
        is_number = heading in ("age", "size")
        table.add_column(heading, overflow="fold", justify="right" if is_number else "left")
    for item in found.stages:
        row = stage_status_as_dict(item, found.run_urls)
        age = format_duration(row["age_seconds"]) if row["age_seconds"] is not None else ""
        size = f"{row['bytes'] / 1e6:,.1f} MB" if row["bytes"] is not None else ""
        text = str(item.directory) if item.state == "done" else "; ".join(item.why)
        if item.accepted:
            text += " (changed code was accepted)"
        state = f"[{STATE_STYLES.get(item.state, 'dim')}]{item.state}[/]"
        table.add_row(item.stage, state, age, size, Text(text), Text(row["run_url"] or ""))
    output.print(table)


def stage_status_as_dict(item: StageStatus, run_urls: Mapping[str, str]) -> dict[str, Any]:
    """Return what was found of a stage as JSON can hold it: ages in seconds, sizes in bytes."""
    # A stage at work is renamed at its end.
    folder = item.directory if item.directory and item.directory.exists() else None
    return {
        "stage": item.stage,
        "state": item.state,
        "why": list(item.why),
        "directory": str(folder) if folder else None,
        "age_seconds": round(time.time() - folder.stat().st_mtime, 1) if folder else None,
        "bytes": _measure_size(folder) if folder else None,
        "run_url": run_urls.get(item.run_key),
        "accepted": list(item.accepted),
    }


def _measure_size(folder: Path) -> int:
    """Return the bytes of the files in a folder."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # renamed meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total


def show_settings(output: Console, resolved: Resolved) -> None:
    """Print every setting with its value, where it came from and what it means."""
    table = Table(title=Text(f"recipe {resolved.recipe}"), title_justify="left")
    for heading in ("setting", "value", "from", "meaning"):
        table.add_column(heading, overflow="fold")
    for key, value in resolved.flat().items():
        origin = resolved.origins[key]
        table.add_row(
            key,
            Text(repr(value) if value == "" else str(value)),
            Text(origin),
            Text(describe_setting(key)),
            style="dim" if origin == "default" else "",
        )
    output.print(table)


def show_diagnoses(output: Console, found: Sequence[Diagnosis]) -> None:
    """Print what was found of the machine, and what to do."""
    styles = {"ok": "green", "note": "yellow", "problem": "red"}
    table = Table()
    for heading in ("what", "", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for item in found:
        state = f"[{styles[item.state]}]{item.state}[/]"
        table.add_row(item.subject, state, Text(item.found), Text(item.advice))
    output.print(table)
