"""The records that the ledger keeps: schedules, and their scheduled runs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pipeline.retrain.scheduled_run_key import format_scheduled_run_key
from pipeline.schedule.timing import Timing

RunKind = Literal["scheduled", "manual"]
RunState = Literal["pending", "claimed", "ran", "coalesced", "skipped", "failed"]
FINAL_STATES = ("ran", "coalesced", "skipped", "failed")


@dataclass(frozen=True)
class Schedule:
    """A schedule: a timing, and the arguments of its retrainings.

    Attributes:
        name: letters, digits and . _ -
        timing: its run times.
        arguments: of the command line of a retraining, such as ("--recipe", "folder").
        created: when it was added to the ledger, UTC.
        paused: whether its scheduled runs are skipped.
        recorded_until: the time up to which its run times are recorded, UTC.
    """

    name: str
    timing: Timing
    arguments: tuple[str, ...]
    created: datetime
    paused: bool
    recorded_until: datetime


@dataclass(frozen=True)
class ScheduledRun:
    """One run time of a schedule, and its state.

    Attributes:
        schedule: the name of the schedule, which may have been removed.
        run_time: UTC, whole seconds.
        kind: requested by the schedule, or by a person.
        state: see ledger.py.
        why: the reason of the state, one sentence.
        outcome: of the retraining: promoted, refused, unchanged, waiting, skipped; or empty.
        version: of the registered model, or empty.
        run_id: of the MLflow run, or empty.
        run_url: of that run's page, or empty.
        page: the file of the retraining's page, or empty.
        attempts: number of starts of its retraining.
        started: the first of them, UTC.
        ended: when it got its final state, UTC.
        owner: the process that claimed it; see `identify_this_process`.
        notification: how its notification ended; empty for not yet.
    """

    schedule: str
    run_time: datetime
    kind: RunKind
    state: RunState
    why: str
    outcome: str
    version: str
    run_id: str
    run_url: str
    page: str
    attempts: int
    started: datetime | None
    ended: datetime | None
    owner: str
    notification: str

    @property
    def key(self) -> str:
        """The key, and the folder below `retrainings/`: NAME/20261127T030000Z."""
        return format_scheduled_run_key(self.schedule, self.run_time)

    @property
    def final(self) -> bool:
        """Whether its state is final."""
        return self.state in FINAL_STATES
