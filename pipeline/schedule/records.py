"""The records that the ledger keeps: schedules, and their scheduled runs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pipeline.retrain.scheduled_run_key import format_scheduled_run_key
from pipeline.schedule.timing import Timing

Kind = Literal["scheduled", "manual"]
State = Literal["pending", "claimed", "ran", "coalesced", "skipped", "failed"]
FINAL_STATES = ("ran", "coalesced", "skipped", "failed")


@dataclass(frozen=True)
class Schedule:
    """What is retrained when.

    Attributes:
        name: letters, digits and . _ -
        timing: when it is due.
        arguments: what the command line of a retraining gets, such as ("--recipe", "folder").
        created: when it was first put into the ledger, UTC.
        paused: whether its scheduled runs are skipped.
        recorded_until: up to when its run times are recorded, UTC.
    """

    name: str
    timing: Timing
    arguments: tuple[str, ...]
    created: datetime
    paused: bool
    recorded_until: datetime


@dataclass(frozen=True)
class ScheduledRun:
    """One run time of a schedule, and what became of it.

    Attributes:
        schedule: its name; it may be gone from the ledger.
        run_time: UTC, whole seconds.
        kind: whether the schedule or a person wanted it.
        state: see the top of this file.
        why: a sentence on the state.
        outcome: of a retraining: promoted, refused, unchanged, waiting, skipped; or empty.
        version: of the registered model, or empty.
        run_id: of the MLflow run, or empty.
        run_url: where the run is looked at, or empty.
        page: the file of the page on the retraining, or empty.
        attempts: how often its work was begun.
        started: when it was begun first, UTC.
        ended: when it got its final state, UTC.
        owner: the process that claimed it; see `owner_of_this_process`.
        notification: what became of telling the hook; empty for not yet.
    """

    schedule: str
    run_time: datetime
    kind: Kind
    state: State
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
        """Its name, and its folder below `retrainings/`: NAME/20261127T030000Z."""
        return format_scheduled_run_key(self.schedule, self.run_time)

    @property
    def final(self) -> bool:
        """Whether nothing more becomes of it."""
        return self.state in FINAL_STATES
