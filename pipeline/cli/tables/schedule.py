"""Tables of schedules, scheduled runs, retrainings and what is deleted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.cli.tables.lines import print_location
from pipeline.reports.numbers import format_duration

if TYPE_CHECKING:
    from pipeline.retrain.garbage_plan import GarbagePlan, KeptItem, Removal
    from pipeline.retrain.retraining import Retraining
    from pipeline.schedule.records import Schedule, ScheduledRun
    from pipeline.schedule.timing import Timing

_STYLES = {"ran": "green", "failed": "red", "claimed": "cyan", "pending": "yellow"}


def show_retraining(output: Console, result: Retraining) -> None:
    """Print what became of a scheduled run, and where to read why."""
    style = {"promoted": "green", "refused": "red", "waiting": "yellow"}.get(result.outcome, "bold")
    output.print(Text(result.outcome, style=style), Text(f": {result.why}"), sep="", soft_wrap=True)
    if result.page:
        print_location(output, "page", Path(result.page).resolve().as_uri())
    if result.run_url:
        print_location(output, "MLflow", result.run_url)


def show_run_times(
    output: Console, found: Schedule, times: Sequence[tuple[datetime, datetime]]
) -> None:
    """Print a schedule: its timing, its next run times and its settings."""
    state = " (paused)" if found.paused else ""
    show_timing(output, found.timing, times, title=f"{found.name}{state}: ")
    output.print(Text(f"settings: {' '.join(found.arguments)}"), soft_wrap=True)
    output.print("Run it with `alexnet schedule serve`.", highlight=False)


def show_timing(
    output: Console,
    timing: Timing,
    times: Sequence[tuple[datetime, datetime]],
    *,
    title: str = "",
) -> None:
    """Print the next run times of a timing, in its own zone and in UTC."""
    from pipeline.schedule.timing import describe_timing

    heading = Text(f"{title}{describe_timing(timing)}")
    if not times:
        output.print(heading)
        return
    table = Table(title=heading, title_justify="left")
    for name in (timing.timezone, "UTC"):
        table.add_column(name)
    for local, utc in times:
        table.add_row(f"{local:%a %Y-%m-%d %H:%M:%S %z}", f"{utc:%a %Y-%m-%d %H:%M:%S}")
    output.print(table)


def run_times_as_list(times: Sequence[tuple[datetime, datetime]]) -> list[dict[str, str]]:
    """Return run times as JSON can hold them: ISO 8601, in the schedule's zone and in UTC."""
    return [{"local": local.isoformat(), "utc": _format_utc(utc)} for local, utc in times]


def schedule_as_dict(
    found: Schedule, next_times: Sequence[tuple[datetime, datetime]], last: Sequence[ScheduledRun]
) -> dict[str, Any]:
    """Return a schedule as JSON can hold it, with its next run time and its last run."""
    from pipeline.schedule.timing import describe_timing

    waits = bool(next_times) and not found.paused
    return {
        "name": found.name,
        "timing": describe_timing(found.timing),
        "timezone": found.timing.timezone,
        "state": "paused" if found.paused else "on",
        "next_run_time": _format_utc(next_times[0][1]) if waits else None,
        "next_run_time_local": next_times[0][0].isoformat() if waits else None,
        "last": scheduled_run_as_dict(last[0]) if last else None,
        "arguments": list(found.arguments),
    }


def show_schedules(output: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print schedules, as `schedule_as_dict` returns them."""
    if not rows:
        output.print(
            "There is no schedule yet. Type `alexnet schedule add --every 6h`.", highlight=False
        )
        return
    table = Table()
    for heading in ("schedule", "timing", "state", "next run time", "last run", "outcome"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        last = row["last"] or {"run_time": "", "state": "", "outcome": ""}
        outcome = " ".join(dict.fromkeys(filter(None, (last["state"], last["outcome"]))))
        next_time = row["next_run_time_local"] or ""
        table.add_row(
            row["name"], row["timing"], row["state"], next_time, last["run_time"], outcome
        )
    output.print(table)


def scheduled_run_as_dict(scheduled_run: ScheduledRun) -> dict[str, Any]:
    """Return a scheduled run as JSON can hold it; times are UTC, durations in seconds."""
    took = (
        (scheduled_run.ended - scheduled_run.started).total_seconds()
        if scheduled_run.started and scheduled_run.ended
        else None
    )
    return {
        "scheduled_run": scheduled_run.key,
        "schedule": scheduled_run.schedule,
        "run_time": _format_utc(scheduled_run.run_time),
        "kind": scheduled_run.kind,
        "state": scheduled_run.state,
        "outcome": scheduled_run.outcome,
        "why": scheduled_run.why,
        "version": scheduled_run.version,
        "attempts": scheduled_run.attempts,
        "started": _format_utc(scheduled_run.started) if scheduled_run.started else None,
        "ended": _format_utc(scheduled_run.ended) if scheduled_run.ended else None,
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
            "No run time has come yet. `alexnet schedule list` shows when the next one is.",
            highlight=False,
        )
        return
    table = Table()
    for heading in ("run time, UTC", "schedule", "state", "outcome", "took", "why"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "took" else "left")
    for scheduled_run in scheduled_runs:
        row = scheduled_run_as_dict(scheduled_run)
        took = format_duration(row["seconds"]) if row["seconds"] is not None else ""
        version = f", version {scheduled_run.version}" if scheduled_run.version else ""
        outcome = f"{scheduled_run.outcome}{version}"
        state = f"[{_STYLES.get(scheduled_run.state, 'dim')}]{scheduled_run.state}[/]"
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
        print_location(output, "page", Path(scheduled_runs[0].page).resolve().as_uri())


def _format_utc(moment: datetime) -> str:
    """Return a moment as ISO 8601 in UTC."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def plan_as_dict(plan: GarbagePlan, *, dry_run: bool) -> dict[str, Any]:
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
