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
    from pipeline.retrain.retention import Kept, Plan, Removal
    from pipeline.retrain.retraining import Retraining
    from pipeline.schedule.ledger import Schedule, Slot
    from pipeline.schedule.timing import Timing

_SLOT_STYLES = {"ran": "green", "failed": "red", "claimed": "cyan", "due": "yellow"}


def show_retraining(output: Console, result: Retraining) -> None:
    """Print what became of a slot, and where to read why."""
    style = {"promoted": "green", "refused": "red", "waiting": "yellow"}.get(result.outcome, "bold")
    output.print(Text(result.outcome, style=style), Text(f": {result.why}"), sep="", soft_wrap=True)
    if result.page:
        print_location(output, "page", Path(result.page).resolve().as_uri())
    if result.run_url:
        print_location(output, "MLflow", result.run_url)


def show_due_times(
    output: Console, timing: Timing, times: Sequence[tuple[datetime, datetime]]
) -> None:
    """Print due times, in the schedule's own zone and in UTC."""
    from pipeline.schedule.timing import describe

    table = Table(title=Text(describe(timing)), title_justify="left")
    for heading in (timing.timezone, "UTC"):
        table.add_column(heading)
    for local, utc in times:
        table.add_row(f"{local:%a %Y-%m-%d %H:%M:%S %z}", f"{utc:%a %Y-%m-%d %H:%M:%S}")
    output.print(table)


def schedule_as_dict(
    found: Schedule, next_due: Sequence[tuple[datetime, datetime]], last: Sequence[Slot]
) -> dict[str, Any]:
    """Return a schedule as JSON can hold it, with its next due time and what became of its last slot."""
    from pipeline.schedule.timing import describe

    return {
        "name": found.name,
        "timing": describe(found.timing),
        "state": "paused" if found.paused else "on",
        "next_due": _utc(next_due[0][1]) if next_due and not found.paused else None,
        "next_due_local": next_due[0][0].isoformat() if next_due and not found.paused else None,
        "last": scheduled_run_as_dict(last[0]) if last else None,
        "words": list(found.words),
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
    for heading in ("schedule", "timing", "", "next due", "last slot", "what became of it"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        last = row["last"] or {"due": "", "state": "", "outcome": ""}
        became = " ".join(dict.fromkeys(filter(None, (last["state"], last["outcome"]))))
        table.add_row(
            row["name"],
            row["timing"],
            row["state"],
            row["next_due_local"] or "",
            last["due"],
            became,
        )
    output.print(table)


def scheduled_run_as_dict(slot: Slot) -> dict[str, Any]:
    """Return a slot as JSON can hold it; times are UTC, durations in seconds."""
    took = (slot.ended - slot.started).total_seconds() if slot.started and slot.ended else None
    return {
        "slot": slot.key,
        "schedule": slot.schedule,
        "due": _utc(slot.due),
        "kind": slot.kind,
        "state": slot.state,
        "outcome": slot.outcome,
        "why": slot.why,
        "version": slot.version,
        "attempts": slot.attempts,
        "started": _utc(slot.started) if slot.started else None,
        "ended": _utc(slot.ended) if slot.ended else None,
        "seconds": took,
        "run_id": slot.run_id,
        "run_url": slot.run_url,
        "page": slot.page,
        "hook": slot.hook,
    }


def show_scheduled_runs(output: Console, slots: Sequence[Slot]) -> None:
    """Print what became of slots."""
    if not slots:
        output.print(
            "No due time has come yet. `alexnet schedules` shows when the next one is.",
            highlight=False,
        )
        return
    table = Table()
    for heading in ("due, UTC", "schedule", "state", "outcome", "took", "why"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "took" else "left")
    for slot in slots:
        row = scheduled_run_as_dict(slot)
        took = format_duration(row["seconds"]) if row["seconds"] is not None else ""
        outcome = f"{slot.outcome}{f', version {slot.version}' if slot.version else ''}"
        state = f"[{_SLOT_STYLES.get(slot.state, 'dim')}]{slot.state}[/]"
        table.add_row(
            f"{slot.due:%Y-%m-%d %H:%M:%S}", slot.schedule, state, outcome, took, Text(slot.why)
        )
    output.print(table)
    if len(slots) == 1 and slots[0].page:
        print_location(output, "page", Path(slots[0].page).resolve().as_uri())


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def plan_as_dict(plan: Plan, *, dry_run: bool) -> dict[str, Any]:
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


def show_plan(output: Console, plan: Plan, *, dry_run: bool) -> None:
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


def _plan_table(heading: str, items: Sequence[Removal | Kept]) -> Table:
    table = Table()
    for name in (heading, "", "size", "why"):
        table.add_column(name, overflow="fold", justify="right" if name == "size" else "left")
    for item in items:
        table.add_row(item.kind, Text(item.what), f"{item.bytes / 1e6:,.1f} MB", Text(item.why))
    return table
