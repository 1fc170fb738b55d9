"""The ledger: every run time of a schedule is recorded once, with one final state.

    pending ----> claimed ----> ran        the retraining ended; `outcome` is its decision
     |    ^          |          failed     the retraining was started and did not end
     |    +----------+          skipped    nothing was to be done
     +------------------------> skipped, coalesced    the last of several missed runs runs for all

A scheduled run is identified by its schedule and its run time in UTC: any number of processes may
record a run time, and it is there once. A manual run takes the next free second; where that is a
run time of the schedule, it counts as that one. Every change is one immediate transaction of SQLite
(ledger_file.py), so a killed process has made it or has not. The process that claims a scheduled
run owns it until its final state; when the owner is dead, another process takes it over
(owners.py).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.retrain.scheduled_run_key import check_schedule_name, parse_scheduled_run_key
from pipeline.schedule.ledger_file import LedgerFile
from pipeline.schedule.ledger_rows import (
    OUTCOME_FIELDS,
    coalesce_pending,
    select_schedule,
    select_scheduled_runs,
    select_schedules,
    select_startable,
    skip_pending,
    to_datetime,
    to_seconds,
    update_claimed,
)
from pipeline.schedule.owners import is_owner_alive, utc_now
from pipeline.schedule.records import RunKind, RunState, Schedule, ScheduledRun
from pipeline.schedule.timing import Timing, iterate_run_times


@dataclass(frozen=True)
class Ledger:
    """The schedules of a work directory and their scheduled runs.

    The first change makes the file; a query where there is no file returns nothing. Times are UTC.
    Threads and processes may share one ledger.

    Raises:
        ConfigError: the file is damaged, or a newer version of this program wrote it; any method.
        BusyError: other processes lock the file for 30 s; any method.
        PipelineError: the disk refuses; any method.
    """

    path: Path
    now: Callable[[], datetime] = utc_now

    @property
    def _file(self) -> LedgerFile:
        return LedgerFile(self.path)

    # -- schedules ---------------------------------------------------------------------------------

    def put_schedule(
        self,
        name: str,
        timing: Timing,
        arguments: tuple[str, ...] = (),
        since: datetime | None = None,
    ) -> Schedule:
        """Add a schedule or change it, and return it; what is the same already stays untouched.

        A new timing counts from now, and pending runs of the earlier one are skipped. New arguments
        apply from the next retraining on.

        Args:
            name: of the schedule.
            timing: its run times.
            arguments: options of the command line of a retraining.
            since: run times of a new schedule count from then, by default from now.

        Raises:
            ConfigError: the name cannot name a folder.
        """
        check_schedule_name(name)
        with self._file.writing() as file:
            now = self.now()
            old = select_schedules(file, name)
            if old and old[0].timing != timing:
                _record_run_times(file, now)
                skip_pending(file, name, "the schedule was changed", now, begun=True)
            if not old or old[0].timing != timing:
                when = (timing.cron, timing.every_seconds, timing.timezone, timing.jitter_seconds)
                recorded_until = to_seconds(now if old or since is None else since)
                file.execute(
                    "INSERT INTO schedules (name, cron, every_seconds, timezone, jitter_seconds,"
                    " arguments, created, recorded_until) VALUES (?, ?, ?, ?, ?, '[]', ?, ?) ON"
                    " CONFLICT (name) DO UPDATE SET cron = excluded.cron, every_seconds ="
                    " excluded.every_seconds, timezone = excluded.timezone, jitter_seconds ="
                    " excluded.jitter_seconds, recorded_until = excluded.recorded_until",
                    (name, *when, to_seconds(now), recorded_until),
                )
            file.execute(
                "UPDATE schedules SET arguments = ? WHERE name = ?", (json.dumps(arguments), name)
            )
            return select_schedules(file, name)[0]

    def list_schedules(self) -> list[Schedule]:
        """Return all schedules, by name."""
        with self._file.reading() as file:
            return [] if file is None else select_schedules(file)

    def find_schedule(self, name: str) -> Schedule:
        """Return a schedule.

        Raises:
            ConfigError: there is no schedule of this name.
        """
        with self._file.reading() as file:
            return select_schedule(file, name)

    def pause_schedule(self, name: str) -> None:
        """Skip a schedule's run times from now on, pending runs included.

        A run whose retraining has begun waits until `resume_schedule`.

        Raises:
            ConfigError: there is no schedule of this name.
        """
        with self._file.writing() as file:
            select_schedule(file, name)
            _record_run_times(file, self.now())
            file.execute("UPDATE schedules SET paused = 1 WHERE name = ?", (name,))
            skip_pending(file, name, "paused", self.now())

    def resume_schedule(self, name: str) -> None:
        """Let a paused schedule go on with its next run time.

        Raises:
            ConfigError: there is no schedule of this name.
        """
        with self._file.writing() as file:
            select_schedule(file, name)
            _record_run_times(file, self.now())
            file.execute("UPDATE schedules SET paused = 0 WHERE name = ?", (name,))

    def remove_schedule(self, name: str) -> None:
        """Delete a schedule: pending runs are skipped, a claimed run ends normally.

        Its history stays.

        Raises:
            ConfigError: there is no schedule of this name.
        """
        with self._file.writing() as file:
            select_schedule(file, name)
            _record_run_times(file, self.now())
            skip_pending(
                file, name, "the schedule was removed", self.now(), begun=True, manual=True
            )
            file.execute("DELETE FROM schedules WHERE name = ?", (name,))

    # -- transitions of scheduled runs -------------------------------------------------------------

    def record_run_times(self) -> None:
        """Record every run time up to now; of several pending runs, the last stands for all."""
        with self._file.writing() as file:
            _record_run_times(file, self.now())

    def request_scheduled_run(self, name: str, kind: RunKind = "manual") -> ScheduledRun:
        """Add a pending run at this second, or at the next second that has none, and return it.

        Args:
            name: of the schedule.
            kind: "scheduled" where another engine is the clock and asks for a run of the schedule.

        Raises:
            ConfigError: there is no schedule of this name.
        """
        with self._file.writing() as file:
            select_schedule(file, name)
            _record_run_times(file, self.now())  # a run time at this second comes before it
            run_time = to_seconds(self.now())
            while file.execute(
                "SELECT 1 FROM scheduled_runs WHERE schedule = ? AND run_time = ?", (name, run_time)
            ).fetchone():
                run_time += 1
            file.execute(
                "INSERT INTO scheduled_runs (schedule, run_time, kind, state) VALUES (?, ?, ?,"
                " 'pending')",
                (name, run_time, kind),
            )
            return select_scheduled_runs(file, "schedule = ? AND run_time = ?", (name, run_time))[0]

    def claim_scheduled_run(
        self, owner: str, scheduled_run: ScheduledRun | None = None
    ) -> ScheduledRun | None:
        """Claim a pending run, and return it: the given one, or the oldest that may start.

        Args:
            owner: the process that will execute it.
            scheduled_run: this one alone, even before its jitter is over or while its schedule is
                paused.

        Returns:
            None where nothing is pending, or where a living owner has claimed any run of this
            ledger: one retraining at a time works in a work directory.
        """
        with self._file.writing() as file:
            now = self.now()
            claimed = file.execute(
                "SELECT owner, heartbeat FROM scheduled_runs WHERE state = 'claimed'"
            ).fetchall()
            if any(
                is_owner_alive(row["owner"], to_datetime(row["heartbeat"]), now) for row in claimed
            ):
                return None
            if scheduled_run is None:
                scheduled_run = select_startable(file, now)
            if scheduled_run is None:
                return None
            key = (scheduled_run.schedule, to_seconds(scheduled_run.run_time))
            changed = file.execute(
                "UPDATE scheduled_runs SET state = 'claimed', owner = ?, heartbeat = ? WHERE"
                " schedule = ? AND run_time = ? AND state = 'pending'",
                (owner, now.timestamp(), *key),
            ).rowcount
            return (
                select_scheduled_runs(file, "schedule = ? AND run_time = ?", key)[0]
                if changed
                else None
            )

    def take_over_scheduled_runs(self, owner: str) -> list[ScheduledRun]:
        """Claim the runs of dead owners, and return them, the oldest first."""
        with self._file.writing() as file:
            now = self.now()
            claimed = file.execute(
                "SELECT schedule, run_time, owner, heartbeat FROM scheduled_runs WHERE state ="
                " 'claimed' ORDER BY run_time"
            ).fetchall()
            keys = [
                (row["schedule"], row["run_time"])
                for row in claimed
                if row["owner"] != owner
                and not is_owner_alive(row["owner"], to_datetime(row["heartbeat"]), now)
            ]
            for key in keys:
                file.execute(
                    "UPDATE scheduled_runs SET owner = ?, heartbeat = ? WHERE schedule = ? AND"
                    " run_time = ?",
                    (owner, now.timestamp(), *key),
                )
            return [
                select_scheduled_runs(file, "schedule = ? AND run_time = ?", key)[0] for key in keys
            ]

    def begin_attempt(self, scheduled_run: ScheduledRun) -> ScheduledRun | None:
        """Count an attempt of a claimed run, and return the run; None where its owner lost it."""
        with self._file.writing() as file:
            now = self.now().timestamp()
            changed = update_claimed(
                file,
                scheduled_run,
                "attempts = attempts + 1, started = coalesce(started, ?), heartbeat = ?",
                (now, now),
            )
            key = (scheduled_run.schedule, to_seconds(scheduled_run.run_time))
            return (
                select_scheduled_runs(file, "schedule = ? AND run_time = ?", key)[0]
                if changed
                else None
            )

    def record_heartbeat(self, scheduled_run: ScheduledRun) -> bool:
        """Record that the owner is alive, for other hosts; False where it lost the run."""
        with self._file.writing() as file:
            return update_claimed(file, scheduled_run, "heartbeat = ?", (self.now().timestamp(),))

    def finish_scheduled_run(
        self,
        scheduled_run: ScheduledRun,
        state: RunState,
        why: str,
        result: Mapping[str, Any] | None = None,
    ) -> bool:
        """Give a claimed run its final state.

        Args:
            scheduled_run: as it was claimed.
            state: ran, skipped or failed.
            why: the reason, one sentence.
            result: outcome, version, run_id, run_url and page of the retraining; missing ones stay
                empty.

        Returns:
            False where it has a final state already, or its owner lost it: nothing is changed then.
        """
        known = [str((result or {}).get(name) or "") for name in OUTCOME_FIELDS]
        names = ", ".join(f"{name} = ?" for name in OUTCOME_FIELDS)
        with self._file.writing() as file:
            return update_claimed(
                file,
                scheduled_run,
                f"state = ?, why = ?, ended = ?, {names}",
                (state, why, self.now().timestamp(), *known),
            )

    def release_scheduled_run(self, scheduled_run: ScheduledRun, why: str) -> bool:
        """Make a claimed run pending again; False where its owner lost it.

        A run whose retraining has begun is not coalesced with later run times.
        """
        with self._file.writing() as file:
            released = update_claimed(
                file,
                scheduled_run,
                "state = 'pending', owner = '', heartbeat = NULL, why = ?",
                (why,),
            )
            if released and not select_schedules(file, scheduled_run.schedule):
                skip_pending(
                    file,
                    scheduled_run.schedule,
                    "the schedule was removed",
                    self.now(),
                    begun=True,
                    manual=True,
                )
            return released

    def record_notification(self, scheduled_run: ScheduledRun, text: str) -> None:
        """Record how the notification of a run ended; `text` is not empty."""
        with self._file.writing() as file:
            file.execute(
                "UPDATE scheduled_runs SET notification = ? WHERE schedule = ? AND run_time = ?",
                (text, scheduled_run.schedule, to_seconds(scheduled_run.run_time)),
            )

    # -- queries -----------------------------------------------------------------------------------

    def find_scheduled_run(self, key: str) -> ScheduledRun | None:
        """Return the scheduled run of a key, NAME/20261127T030000Z, or None.

        Raises:
            ConfigError: the text is not a key.
        """
        name, run_time = parse_scheduled_run_key(key)
        found = self._select("schedule = ? AND run_time = ?", (name, to_seconds(run_time)))
        return found[0] if found else None

    def list_unfinished_scheduled_runs(self) -> list[ScheduledRun]:
        """Return the runs without a final state, the oldest first."""
        return self._select("state IN ('pending', 'claimed')", (), "ORDER BY run_time, schedule")

    def list_unnotified_scheduled_runs(self) -> list[ScheduledRun]:
        """Return the runs that ran or failed without a recorded notification, the oldest first."""
        return self._select(
            "notification = '' AND state IN ('ran', 'failed')", (), "ORDER BY run_time, schedule"
        )

    def list_latest_scheduled_runs(self, name: str = "", limit: int = 50) -> list[ScheduledRun]:
        """Return the latest runs of a schedule, or of all schedules, the newest first."""
        if name:
            return self._select(
                "schedule = ?", (name,), f"ORDER BY run_time DESC LIMIT {int(limit)}"
            )
        return self._select("1", (), f"ORDER BY run_time DESC, schedule LIMIT {int(limit)}")

    def _select(
        self, condition: str, values: tuple[str | int, ...], order: str = ""
    ) -> list[ScheduledRun]:
        with self._file.reading() as file:
            return [] if file is None else select_scheduled_runs(file, condition, values, order)


def _record_run_times(file: sqlite3.Connection, now: datetime) -> None:
    for schedule in select_schedules(file):
        last = schedule.recorded_until
        for run_time in iterate_run_times(schedule.timing, schedule.recorded_until, now):
            file.execute(
                "INSERT OR IGNORE INTO scheduled_runs (schedule, run_time, kind, state) VALUES (?,"
                " ?, 'scheduled', 'pending')",
                (schedule.name, to_seconds(run_time)),
            )
            last = run_time
        if last == schedule.recorded_until:
            continue
        file.execute(
            "UPDATE schedules SET recorded_until = ? WHERE name = ?",
            (to_seconds(last), schedule.name),
        )
        if schedule.paused:
            skip_pending(file, schedule.name, "paused", now)
        else:
            coalesce_pending(file, schedule.name, now)
