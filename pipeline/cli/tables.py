"""What a person sees: a line as a stage starts, a bar while it works, a line as it ends, and tables."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.status import Status
from rich.table import Table
from rich.text import Text

from pipeline.api import PipelineResult, stage_dict
from pipeline.artifacts import Decision, ModelArtifact
from pipeline.config.resolution import Resolved
from pipeline.engine.runner import StageStatus
from pipeline.engine.stage import Outcome

if TYPE_CHECKING:
    from pipeline.evaluate.compare import Comparison
    from pipeline.export.record import ExportRecord
    from pipeline.reproduce.reproduction import Reproduction
    from pipeline.retrain.garbage_collection import GarbagePlan, KeptItem, Removal
    from pipeline.retrain.retraining import Retraining
    from pipeline.schedule.records import Schedule, ScheduledRun
    from pipeline.schedule.timing import Timing
    from pipeline.tracking.registry import Version

_PLAIN_SECONDS = 30.0  # without a terminal, one line of progress so often
_STATE_STYLES = {
    "done": "green",
    "ran": "green",
    "skipped": "dim",
    "failed": "red",
    "stale": "yellow",
    "interrupted": "yellow",
    "running": "cyan",
}


class _Rate(ProgressColumn):
    """Units a second."""

    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text(f"{rate:,.0f} {task.fields['unit']}/s" if rate else "", style="cyan")


class ConsoleObserver:
    """Shows a pipeline run: live on a terminal, plain lines elsewhere.

    Args:
        output: where lines go.
        explain: say in full why a stage runs, not only in short.
    """

    def __init__(self, output: Console, *, explain: bool = False):
        self.outcomes: list[Outcome] = []
        self._output = output
        self._explain = explain
        self._bar: Progress | Status | None = None
        self._task = TaskID(0)
        self._shown = time.monotonic()
        self._done: int | None = None
        self._counted_from = (self._shown, 0)  # when, and how many were done then

    def started(self, stage: str, why: Sequence[str]) -> None:
        """Say which stage begins, and why it is not skipped."""
        shown = list(why) if self._explain else [*why[:2], *(["..."] if len(why) > 2 else [])]
        self._output.print(
            f"[bold]{stage:<9}[/] runs: ", Text("; ".join(shown)), sep="", soft_wrap=True
        )
        self._shown, self._done = time.monotonic(), None
        if self._output.is_terminal:
            left = (TimeRemainingColumn(), TextColumn("left"))
            columns = (
                SpinnerColumn(),
                BarColumn(30),
                _Rate(),
                *left,
                TextColumn("{task.fields[detail]}", markup=False),
            )
            bar = Progress(*columns, console=self._output, transient=True)
            self._task = bar.add_task(stage, total=None, unit="", detail="preparing")
            bar.start()
            self._bar = bar

    def progressed(self, done: int, total: int, unit: str, detail: str) -> None:
        """Move the bar; a smaller number than before begins a new count, with a rate of its own."""
        now = time.monotonic()
        first = self._done is None or done < self._done
        if first:
            self._counted_from = (now, done)
        self._done = done
        if isinstance(self._bar, Progress):
            if first:
                self._bar.reset(self._task, completed=done)
            self._bar.update(self._task, completed=done, total=total, unit=unit, detail=detail)
        elif now - self._shown > _PLAIN_SECONDS:
            self._shown = now
            since, done_then = self._counted_from
            rate = (done - done_then) / max(now - since, 1e-9)
            left = f", {duration((total - done) / rate)} left" if rate else ""
            line = f"  {done:,} of {total:,} {unit}, {rate:,.0f} {unit}/s{left}  {detail}"
            self._output.print(line, markup=False, highlight=False, soft_wrap=True)

    def said(self, text: str) -> None:
        """Print what a person should know, above the bar."""
        self._output.print(Text(f"  {text}", style="yellow"), soft_wrap=True)

    def finished(self, outcome: Outcome) -> None:
        """Say what a stage made, and where."""
        self.close()
        self.outcomes.append(outcome)
        made = outcome.artifact.headline() if outcome.artifact else "see the message below"
        line = Text(f"{outcome.stage:<9} ", style="bold")
        line.append(f"{outcome.state:<7} ", style=_STATE_STYLES[outcome.state])
        line.append(f"{duration(outcome.seconds):>8}  " if outcome.state != "skipped" else " " * 10)
        line.append(made, style="")
        self._output.print(line, soft_wrap=True)
        if outcome.state == "ran" or self._explain:
            self._output.print(
                f"{'':<28}{outcome.directory}",
                markup=False,
                highlight=False,
                soft_wrap=True,
                style="dim",
            )

    def waiting(self, what: str) -> None:
        """Say, on a terminal, what is awaited after the last stage."""
        if self._output.is_terminal:
            self._bar = self._output.status(what)
            self._bar.start()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class JsonObserver(ConsoleObserver):
    """Prints one JSON object for each finished stage, and nothing else."""

    def started(self, stage: str, why: Sequence[str]) -> None:
        """Print nothing."""

    def progressed(self, done: int, total: int, unit: str, detail: str) -> None:
        """Print nothing."""

    def said(self, text: str) -> None:
        """Print one JSON object with it."""
        print_json(self._output, {"note": text})

    def waiting(self, what: str) -> None:
        """Print nothing."""

    def finished(self, outcome: Outcome) -> None:
        """Print the stage's outcome."""
        self.outcomes.append(outcome)
        print_json(self._output, {"stage": stage_dict(outcome, {})})


class QuietObserver(ConsoleObserver):
    """Shows only failures, in the message that ends the command."""

    started = JsonObserver.started
    progressed = JsonObserver.progressed

    def said(self, text: str) -> None:
        """Print nothing."""

    waiting = JsonObserver.waiting

    def finished(self, outcome: Outcome) -> None:
        """Print nothing."""
        self.outcomes.append(outcome)


def print_json(output: Console, value: object) -> None:
    """Print one JSON object on one line, as it is."""
    output.file.write(json.dumps(value, default=str, allow_nan=False) + "\n")
    output.file.flush()


def duration(seconds: float) -> str:
    """Return a length of time as people say it: `4.2 s`, `3 min 05 s`, `2 h 10 min`, `3 days`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} days"


def show_result(output: Console, result: PipelineResult) -> None:
    """Print the scores or, of a command that ends with `build`, the layers; and where to look."""
    report = result.report
    last = result.outcomes[-1]
    if isinstance(last.artifact, ModelArtifact):
        _show_layers(output, last.artifact, result.resolved.config.train.global_batch_size)
        _show_place(
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
        _show_place(
            output, "report", str((report.directory / report.REPORT_FILE).resolve().as_uri())
        )
    if result.decision is not None:
        _show_decision(output, result.decision)
    if result.model is not None:
        _show_place(output, "model", str(result.model.model_path))
    if result.run_url is not None:
        hint = (
            ""
            if result.resolved.config.tracking.uri.startswith("http")
            else "   (after `alexnet ui`)"
        )
        _show_place(output, "MLflow", f"{result.run_url}{hint}")


def _show_decision(output: Console, decision: Decision) -> None:
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
    _show_place(output, "page", str(decision.page.resolve().as_uri()))


def show_retraining(output: Console, result: Retraining) -> None:
    """Print what became of a scheduled run, and where to read why."""
    style = {"promoted": "green", "refused": "red", "waiting": "yellow"}.get(result.outcome, "bold")
    output.print(Text(result.outcome, style=style), Text(f": {result.why}"), sep="", soft_wrap=True)
    if result.page:
        _show_place(output, "page", Path(result.page).resolve().as_uri())
    if result.run_url:
        _show_place(output, "MLflow", result.run_url)


def show_due_times(
    output: Console, timing: Timing, times: Sequence[tuple[datetime, datetime]]
) -> None:
    """Print run times, in the schedule's own zone and in UTC."""
    from pipeline.schedule.timing import describe_timing

    table = Table(title=Text(describe_timing(timing)), title_justify="left")
    for heading in (timing.timezone, "UTC"):
        table.add_column(heading)
    for local, utc in times:
        table.add_row(f"{local:%a %Y-%m-%d %H:%M:%S %z}", f"{utc:%a %Y-%m-%d %H:%M:%S}")
    output.print(table)


def schedule_dict(
    found: Schedule, next_due: Sequence[tuple[datetime, datetime]], last: Sequence[ScheduledRun]
) -> dict[str, Any]:
    """Return a schedule as JSON can hold it, with its next run time and what became of its last scheduled run."""
    from pipeline.schedule.timing import describe_timing

    return {
        "name": found.name,
        "timing": describe_timing(found.timing),
        "state": "paused" if found.paused else "on",
        "next_due": _utc(next_due[0][1]) if next_due and not found.paused else None,
        "next_due_local": next_due[0][0].isoformat() if next_due and not found.paused else None,
        "last": scheduled_run_dict(last[0]) if last else None,
        "arguments": list(found.arguments),
    }


def show_schedules(output: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print schedules, as `schedule_dict` returns them."""
    if not rows:
        output.print(
            "There is no schedule yet. `alexnet schedule --every 6h` makes one and runs it.",
            highlight=False,
        )
        return
    table = Table()
    for heading in (
        "schedule",
        "timing",
        "",
        "next due",
        "last scheduled run",
        "what became of it",
    ):
        table.add_column(heading, overflow="fold")
    for row in rows:
        last = row["last"] or {"run_time": "", "state": "", "outcome": ""}
        became = " ".join(dict.fromkeys(filter(None, (last["state"], last["outcome"]))))
        table.add_row(
            row["name"],
            row["timing"],
            row["state"],
            row["next_due_local"] or "",
            last["run_time"],
            became,
        )
    output.print(table)


_SCHEDULED_RUN_STYLES = {"ran": "green", "failed": "red", "claimed": "cyan", "pending": "yellow"}


def scheduled_run_dict(scheduled_run: ScheduledRun) -> dict[str, Any]:
    """Return a scheduled run as JSON can hold it; times are UTC, durations in seconds."""
    took = (
        (scheduled_run.ended - scheduled_run.started).total_seconds()
        if scheduled_run.started and scheduled_run.ended
        else None
    )
    return {
        "scheduled_run": scheduled_run.key,
        "schedule": scheduled_run.schedule,
        "run_time": _utc(scheduled_run.run_time),
        "kind": scheduled_run.kind,
        "state": scheduled_run.state,
        "outcome": scheduled_run.outcome,
        "why": scheduled_run.why,
        "version": scheduled_run.version,
        "attempts": scheduled_run.attempts,
        "started": _utc(scheduled_run.started) if scheduled_run.started else None,
        "ended": _utc(scheduled_run.ended) if scheduled_run.ended else None,
        "seconds": took,
        "run_id": scheduled_run.run_id,
        "run_url": scheduled_run.run_url,
        "page": scheduled_run.page,
        "notification": scheduled_run.notification,
    }


def show_scheduled_runs(output: Console, scheduled_runs: Sequence[ScheduledRun]) -> None:
    """Print what became of scheduled runs."""
    if not scheduled_runs:
        output.print(
            "No run time has come yet. `alexnet schedules` shows when the next one is.",
            highlight=False,
        )
        return
    table = Table()
    for heading in ("due, UTC", "schedule", "state", "outcome", "took", "why"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "took" else "left")
    for scheduled_run in scheduled_runs:
        row = scheduled_run_dict(scheduled_run)
        took = duration(row["seconds"]) if row["seconds"] is not None else ""
        outcome = f"{scheduled_run.outcome}{f', version {scheduled_run.version}' if scheduled_run.version else ''}"
        state = f"[{_SCHEDULED_RUN_STYLES.get(scheduled_run.state, 'dim')}]{scheduled_run.state}[/]"
        table.add_row(
            f"{scheduled_run.run_time:%Y-%m-%d %H:%M:%S}",
            scheduled_run.schedule,
            state,
            outcome,
            took,
            Text(scheduled_run.why),
        )
    output.print(table)
    if len(scheduled_runs) == 1 and scheduled_runs[0].page:
        _show_place(output, "page", Path(scheduled_runs[0].page).resolve().as_uri())


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def plan_dict(plan: GarbagePlan, *, dry_run: bool) -> dict[str, Any]:
    """Return what is or would be removed, and what stays, as JSON can hold it; sizes in bytes."""
    return {
        "dry_run": dry_run,
        "removed": [
            {"kind": item.kind, "what": item.what, "bytes": item.bytes, "why": item.why}
            for item in plan.removals
        ],
        "kept": [
            {"kind": item.kind, "what": item.what, "bytes": item.bytes, "why": item.why}
            for item in plan.kept
        ],
        "bytes": plan.bytes,
    }


def show_plan(output: Console, plan: GarbagePlan, *, dry_run: bool) -> None:
    """Print what is or would be removed; in a dry run also what stays, and why."""
    if dry_run and plan.kept:
        output.print(_plan_table("stays", plan.kept))
    if plan.removals:
        output.print(_plan_table("would go" if dry_run else "is gone", plan.removals))
    output.print(
        f"{len(plan.removals):,} things, {plan.bytes / 1e6:,.1f} MB{' would be' if dry_run else ''}"
        " freed.",
        highlight=False,
    )


def _plan_table(heading: str, items: Sequence[Removal | KeptItem]) -> Table:
    table = Table()
    for name in (heading, "", "size", "why"):
        table.add_column(name, overflow="fold", justify="right" if name == "size" else "left")
    for item in items:
        table.add_row(item.kind, Text(item.what), f"{item.bytes / 1e6:,.1f} MB", Text(item.why))
    return table


def show_claims(output: Console, found: Reproduction) -> None:
    """Print the verdict on each claim, and where the figures are."""
    from pipeline.reports.claims import summary

    told = summary(found.claims)
    table = Table(*told.headings, box=None, header_style="bold", pad_edge=False)
    for row in told.rows:
        table.add_row(*row)
    if found.claims:
        output.print(table)
        output.print()
        for claim in found.claims:
            output.print(Text(f"{claim.name}: {claim.main.what}. {claim.main.why}"))
    if found.unfinished:
        output.print(
            Text(
                f"The budget is spent; still to do: {', '.join(found.unfinished)}. Type the same"
                " command again to go on."
            )
        )
    if found.page != Path():
        _show_place(output, "figures", str(found.page))


def show_plan_of_claims(output: Console, plan: Sequence[Mapping[str, Any]]) -> None:
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


def show_export(output: Console, exported: ExportRecord) -> None:
    """Print what was exported, how it compares, and where it is."""
    output.print(Text(exported.headline()), soft_wrap=True)
    _show_place(output, "file", str(exported.file))
    _show_place(output, "page", str(exported.page.resolve().as_uri()))


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
        row = version_dict(version)
        error = f"{row['top1_error']:.2%}" if row["top1_error"] is not None else ""
        style = "green" if "champion" in version.aliases else "dim" if row["withdrawn"] else ""
        gate = f"{row['gate']}{', withdrawn' if row['withdrawn'] else ''}"
        words = (
            version.number,
            ", ".join(version.aliases),
            gate,
            error,
            duration(row["age_seconds"]),
            version.model_sha256[:12],
        )
        table.add_row(*words, Text(row["reason"]), style=style)
    output.print(table)


def version_dict(version: Version) -> dict[str, Any]:
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
    _show_place(output, "page", str(comparison.page.resolve().as_uri()))


def _show_layers(output: Console, model: ModelArtifact, batch_size: int) -> None:
    """Print the layers of a network: shape, parameters, multiplications, memory of a batch."""
    table = Table(
        title=Text(f"{model.network}, {len(model.class_names):,} classes"), title_justify="left"
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


def _show_place(output: Console, name: str, place: str) -> None:
    output.print(f"{name:<7} {place}", markup=False, highlight=False, soft_wrap=True)


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
        row = status_dict(finding, pages)
        age = duration(row["age_seconds"]) if row["age_seconds"] is not None else ""
        size = f"{row['bytes'] / 1e6:,.1f} MB" if row["bytes"] is not None else ""
        text = str(finding.directory) if finding.state == "done" else "; ".join(finding.why)
        state = f"[{_STATE_STYLES.get(finding.state, 'dim')}]{finding.state}[/]"
        table.add_row(finding.stage, state, age, size, Text(text), Text(row["run_url"] or ""))
    output.print(table)


def status_dict(finding: StageStatus, pages: dict[str, str]) -> dict[str, Any]:
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
    from pipeline.config.resolution import setting_field

    table = Table(title=Text(f"recipe {resolved.recipe}"), title_justify="left")
    for heading in ("setting", "value", "from", "meaning"):
        table.add_column(heading, overflow="fold")
    for key, value in resolved.flat().items():
        origin = resolved.origins[key]
        table.add_row(
            key,
            Text(repr(value) if value == "" else str(value)),
            Text(origin),
            Text(setting_field(key).description or ""),
            style="dim" if origin == "default" else "",
        )
    output.print(table)
