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

from pipeline.artifacts import Decision, EvaluationReport, ModelArtifact
from pipeline.cli.progress import STATE_STYLES
from pipeline.cli.tables.lines import print_location
from pipeline.config.description import describe_setting
from pipeline.config.resolution import Resolved
from pipeline.engine.runner import StageStatus
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
    """Print the layers of a network: shape, parameters, multiplications, memory of a batch."""
    table = Table(
        title=Text(f"{model.variant}, {len(model.class_names):,} classes"), title_justify="left"
    )
    for heading in (
        "layer",
        "what",
        "output",
        "parameters",
        "M MACs",
        f"MB, batch of {batch_size:,}",
    ):
        table.add_column(heading, justify="left" if heading in ("layer", "what") else "right")
    for layer in model.layers:
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


def show_status(
    output: Console, resolved: Resolved, findings: Iterable[StageStatus], pages: dict[str, str]
) -> None:
    """Print a table of the stages: state, age, size, run, and what changed."""
    table = Table(
        title=Text(f"recipe {resolved.recipe}, dataset {resolved.config.data.dataset}"),
        title_justify="left",
    )
    for heading in ("stage", "state", "age", "size", "result or reason", "run"):
        table.add_column(
            heading, overflow="fold", justify="right" if heading in ("age", "size") else "left"
        )
    for finding in findings:
        row = stage_status_as_dict(finding, pages)
        age = format_duration(row["age_seconds"]) if row["age_seconds"] is not None else ""
        size = f"{row['bytes'] / 1e6:,.1f} MB" if row["bytes"] is not None else ""
        text = str(finding.directory) if finding.state == "done" else "; ".join(finding.why)
        state = f"[{STATE_STYLES.get(finding.state, 'dim')}]{finding.state}[/]"
        table.add_row(finding.stage, state, age, size, Text(text), Text(row["run_url"] or ""))
    output.print(table)


def stage_status_as_dict(finding: StageStatus, pages: dict[str, str]) -> dict[str, Any]:
    """Return what was found of a stage as JSON can hold it: ages in seconds, sizes in bytes."""
    folder = (
        finding.directory if finding.directory and finding.directory.exists() else None
    )  # a stage at work is renamed at its end
    return {
        "stage": finding.stage,
        "state": finding.state,
        "why": list(finding.why),
        "directory": str(folder) if folder else None,
        "age_seconds": round(time.time() - folder.stat().st_mtime, 1) if folder else None,
        "bytes": _size(folder) if folder else None,
        "run_url": pages.get(finding.run_key),
    }


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # renamed meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total


def show_settings(output: Console, resolved: Resolved) -> None:
    """Print every setting with its value, where it came from and what it means."""
    from pipeline.config.settings import Config

    table = Table(title=Text(f"recipe {resolved.recipe}"), title_justify="left")
    for heading in ("setting", "value", "from", "meaning"):
        table.add_column(heading, overflow="fold")
    for key, value in resolved.flat().items():
        section, _, name = key.partition(".")
        fields = type(getattr(Config(), section)).model_fields
        origin = resolved.origins[key]
        table.add_row(
            key,
            Text(repr(value) if value == "" else str(value)),
            Text(origin),
            Text(fields[name].description or ""),
            style="dim" if origin == "default" else "",
        )
    output.print(table)
