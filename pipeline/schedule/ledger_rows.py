"""The rows of a ledger's file, read as records, and the changes that transitions share."""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, datetime

from pipeline.config.recipes import suggest_spelling
from pipeline.errors import ConfigError
from pipeline.retrain.scheduled_run_key import format_scheduled_run_key
from pipeline.schedule.records import Schedule, ScheduledRun
from pipeline.schedule.timing import Timing, compute_start_time

OUTCOME_FIELDS = ("outcome", "version", "run_id", "run_url", "page")
Values = tuple[str | int | float, ...]


def to_seconds(moment: datetime) -> int:
    """Return whole seconds since 1970, rounded down."""
    return int(moment.timestamp() // 1)


def to_datetime(seconds: float | None) -> datetime | None:
    """Return the time, in UTC, of seconds since 1970."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def select_schedules(file: sqlite3.Connection, name: str = "") -> list[Schedule]:
    """Return the schedule of a name, or all schedules, by name."""
    rows = file.execute("SELECT * FROM schedules WHERE ? IN (name, '') ORDER BY name", (name,))
    return [
        Schedule(
            name=row["name"],
            timing=Timing(
                row["cron"], row["every_seconds"], row["timezone"], row["jitter_seconds"]
            ),
            arguments=tuple(json.loads(row["arguments"])),
            created=datetime.fromtimestamp(row["created"], UTC),
            paused=bool(row["paused"]),
            recorded_until=datetime.fromtimestamp(row["recorded_until"], UTC),
        )
        for row in rows
    ]


def select_schedule(file: sqlite3.Connection | None, name: str) -> Schedule:
    """Return the schedule of a name.

    Raises:
        ConfigError: there is no schedule of this name.
    """
    known = {} if file is None else {schedule.name: schedule for schedule in select_schedules(file)}
    if name in known:
        return known[name]
    listed = ", ".join(list(known)[:10]) or "there is none yet"
    raise ConfigError(
        f"There is no schedule {name[:80]!r}",
        expected=f"one of this work directory: {listed}",
        hint=f"{suggest_spelling(name, tuple(known))} `alexnet schedule list` lists them",
    )


def select_scheduled_runs(
    file: sqlite3.Connection, condition: str, values: Values, order: str = ""
) -> list[ScheduledRun]:
    """Return the scheduled runs that meet an SQL condition of this package."""
    rows = file.execute(f"SELECT * FROM scheduled_runs WHERE {condition} {order}", values)  # noqa: S608 - conditions of this package
    return [
        ScheduledRun(
            schedule=row["schedule"],
            run_time=datetime.fromtimestamp(row["run_time"], UTC),
            kind=row["kind"],
            state=row["state"],
            why=row["why"],
            **{name: row[name] for name in OUTCOME_FIELDS},
            attempts=row["attempts"],
            started=to_datetime(row["started"]),
            ended=to_datetime(row["ended"]),
            owner=row["owner"],
            notification=row["notification"],
        )
        for row in rows
    ]


def select_startable(file: sqlite3.Connection, now: datetime) -> ScheduledRun | None:
    """Return the oldest pending run that may start now, or None."""
    schedules = {schedule.name: schedule for schedule in select_schedules(file)}
    for scheduled_run in select_scheduled_runs(
        file,
        "state = 'pending' AND (run_time <= ? OR kind = 'manual')",
        (to_seconds(now),),
        "ORDER BY run_time, schedule",
    ):
        schedule = schedules.get(scheduled_run.schedule)
        if scheduled_run.kind == "manual":
            return scheduled_run
        if schedule is None or schedule.paused:
            continue
        if scheduled_run.started is not None:
            return scheduled_run
        if compute_start_time(schedule.timing, schedule.name, scheduled_run.run_time) <= now:
            return scheduled_run
    return None


def update_claimed(
    file: sqlite3.Connection, scheduled_run: ScheduledRun, change: str, values: Values
) -> bool:
    """Change a run that its owner has claimed; False, without a change, where the owner lost it."""
    statement = (
        f"UPDATE scheduled_runs SET {change} WHERE schedule = ? AND run_time = ?"  # noqa: S608 - changes of this package
        " AND state = 'claimed' AND owner = ?"
    )
    key = (scheduled_run.schedule, to_seconds(scheduled_run.run_time), scheduled_run.owner)
    return file.execute(statement, (*values, *key)).rowcount == 1


def skip_pending(
    file: sqlite3.Connection,
    name: str,
    why: str,
    now: datetime,
    *,
    begun: bool = False,
    manual: bool = False,
) -> None:
    """Skip the pending runs of a schedule.

    Args:
        file: of the ledger.
        name: of the schedule.
        why: the reason, one sentence.
        now: the time of the change.
        begun: also runs whose retraining has begun.
        manual: also manual runs.
    """
    file.execute(
        "UPDATE scheduled_runs SET state = 'skipped', why = ?, ended = ? WHERE schedule = ? AND"
        " state = 'pending' AND (kind = 'scheduled' OR ?) AND (started IS NULL OR ?)",
        (why, now.timestamp(), name, manual, begun),
    )


def coalesce_pending(file: sqlite3.Connection, name: str, now: datetime) -> None:
    """Let the last pending run of a schedule stand for the earlier ones.

    Manual runs, and runs whose retraining has begun, are left alone.
    """
    pending = "schedule = ? AND state = 'pending' AND kind = 'scheduled' AND started IS NULL"
    query = f"SELECT max(run_time) FROM scheduled_runs WHERE {pending}"  # noqa: S608 - text of this file
    last = file.execute(query, (name,)).fetchone()[0]
    if last is None:
        return
    why = f"{format_scheduled_run_key(name, datetime.fromtimestamp(last, UTC))} stands for it"
    statement = (
        "UPDATE scheduled_runs SET state = 'coalesced', why = ?, ended = ?"  # noqa: S608 - text of this file
        f" WHERE {pending} AND run_time < ?"
    )
    file.execute(statement, (why, now.timestamp(), name, last))
