"""The scheduler: executes the schedules of a work directory, one scheduled run at a time.

    hold the scheduler lock (else: another scheduler is at work) until asked to stop;
    at every full second, and after each run:
        record the run times that have come                                 the ledger
        take over the runs that dead processes had claimed
        claim a run and execute it (execution.py): `alexnet retrain` as a child process
        a failure that may pass is tried again (retry.py)
        record how it ended, and notify

A killed scheduler takes its child with it (`die_with_parent`), and the next one goes on with the
run: the child resumes in its folder, and its result.json, written last, says that the retraining is
done. Which runs there are, and which process has which, is in the ledger alone; run times and
jitter are whole seconds, so a look at each full second is clock enough.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import BusyError, PipelineError
from pipeline.schedule.context import (
    LEDGER_FILE,
    BuildArguments,
    LoadConfig,
    SchedulerContext,
    open_context,
)
from pipeline.schedule.execution import (
    execute_scheduled_run,
    load_retrain_config,
    set_down_scheduled_run,
)
from pipeline.schedule.ledger import Ledger
from pipeline.schedule.outcome_notifications import notify_outcome
from pipeline.schedule.owners import describe_owner, identify_this_process, is_owner_alive
from pipeline.schedule.records import ScheduledRun
from pipeline.schedule.scheduler_lock import (
    LOCK_POLL_SECONDS,
    describe_holder,
    hold_scheduler_lock,
    try_scheduler_lock,
)
from pipeline.schedule.timing import describe_timing
from pipeline.schedule.waiting import wait_for_stop


def serve_schedules(
    workdir: Path,
    load_config: LoadConfig,
    show_line: Callable[[str], None],
    stop: threading.Event,
    *,
    wait: bool = False,
    command: BuildArguments | None = None,
) -> None:
    """Execute all schedules of a work directory until `stop` is set.

    A retraining that runs then may end within `drain_seconds`, or is resumed by the next scheduler.

    Args:
        workdir: the work directory.
        load_config: returns the settings of a schedule's retrainings.
        show_line: shows a line to a person.
        stop: ends it.
        wait: stand by while another scheduler is at work, and take its place when it is gone.
        command: returns the command line of a retraining, by default `build_child_arguments`.

    Raises:
        BusyError: another scheduler is at work, and `wait` is False.
        ConfigError: the ledger is damaged or of a newer version, or the folder cannot be written.
    """
    with hold_scheduler_lock(workdir, show_line, stop, wait=wait) as held:
        if held:
            with open_context(workdir, load_config, show_line, stop, command) as context:
                _serve_until_stopped(context)


def _serve_until_stopped(context: SchedulerContext) -> None:
    listed = "; ".join(
        f"{schedule.name}: {describe_timing(schedule.timing)}"
        f"{', paused' if schedule.paused else ''}"
        for schedule in context.ledger.list_schedules()
    )
    context.log(f"Scheduling in {context.workdir}. {listed or 'No schedule yet'}.")
    for scheduled_run in context.ledger.list_unnotified_scheduled_runs():
        config, _ = load_retrain_config(context, context.find_schedule(scheduled_run))
        notify_outcome(context, scheduled_run, config)
    while not context.stop.is_set():
        try:
            _execute_startable(context)
        except PipelineError as error:  # of the ledger or the disk: everything is tried again
            context.warn(error)
        wait_for_stop(context.stop, 1.0 - time.time() % 1.0)
    context.log("Stopped.")


def _execute_startable(context: SchedulerContext) -> None:
    """Execute every run that may start now."""
    context.ledger.record_run_times()
    for scheduled_run in _take_over_abandoned(context):
        if not context.stop.is_set():
            execute_scheduled_run(context, scheduled_run)
    while not context.stop.is_set():
        claimed = context.ledger.claim_scheduled_run(context.owner)
        if claimed is None:
            break
        execute_scheduled_run(context, claimed)
        context.ledger.record_run_times()


def _take_over_abandoned(context: SchedulerContext) -> list[ScheduledRun]:
    """Return the claimed runs that no process executes, as runs of this owner.

    Those of dead owners, and those of this one whose execution an error interrupted.
    """
    for scheduled_run in context.ledger.take_over_scheduled_runs(context.owner):
        context.log(f"{scheduled_run.key}: its owner is gone; this scheduler goes on with it.")
    return [
        scheduled_run
        for scheduled_run in context.ledger.list_unfinished_scheduled_runs()
        if scheduled_run.state == "claimed" and scheduled_run.owner == context.owner
    ]


# -- one run of one schedule -----------------------------------------------------------------------


def run_schedule_once(
    workdir: Path,
    name: str,
    load_config: LoadConfig,
    show_line: Callable[[str], None],
    stop: threading.Event,
    *,
    wait: bool = False,
    command: BuildArguments | None = None,
) -> ScheduledRun | None:
    """Execute the pending runs of one schedule, for cron and other engines, and return the last.

    The jitter is left to the engine. A run whose retraining had begun comes first, then the later
    one. A schedule without a timing of its own gets a run at each call.

    Args:
        workdir: the work directory.
        name: of the schedule.
        load_config: returns the settings of a schedule's retrainings.
        show_line: shows a line to a person.
        stop: ends it.
        wait: until another scheduler has ended.
        command: as for `serve_schedules`.

    Returns:
        None where no run is pending.

    Raises:
        BusyError: another scheduler is at work, and `wait` is False.
        ConfigError: there is no such schedule.
    """
    done = None
    Ledger(workdir / LEDGER_FILE).find_schedule(name)
    with hold_scheduler_lock(workdir, show_line, stop, wait=wait) as held:
        if held:
            with open_context(workdir, load_config, show_line, stop, command) as context:
                done = _execute_pending(context, name)
    return done


def _execute_pending(context: SchedulerContext, name: str) -> ScheduledRun | None:
    ledger = context.ledger
    ledger.record_run_times()
    done = None
    for scheduled_run in _take_over_abandoned(context):
        if scheduled_run.schedule == name:
            done = execute_scheduled_run(context, scheduled_run)
        else:
            set_down_scheduled_run(context, scheduled_run)
    _refuse_foreign_claims(context)
    schedule = ledger.find_schedule(name)
    pending = [
        scheduled_run
        for scheduled_run in ledger.list_unfinished_scheduled_runs()
        if scheduled_run.schedule == name and scheduled_run.state == "pending"
    ]
    if not (schedule.timing.has_run_times or schedule.paused or pending or done):
        pending = [ledger.request_scheduled_run(name, "scheduled")]
    for scheduled_run in pending:
        is_paused = schedule.paused and scheduled_run.kind == "scheduled"
        if is_paused or context.stop.is_set():
            continue
        claimed = ledger.claim_scheduled_run(context.owner, scheduled_run)
        done = execute_scheduled_run(context, claimed) if claimed else done
    return done


def _refuse_foreign_claims(context: SchedulerContext) -> None:
    for scheduled_run in context.ledger.list_unfinished_scheduled_runs():
        if scheduled_run.state == "claimed" and scheduled_run.owner != context.owner:
            raise BusyError(
                f"The scheduled run {scheduled_run.key} is claimed by"
                f" {describe_owner(scheduled_run.owner)}, whose last heartbeat is recent",
                expected="one at a time",
                hint="Type the command again when it has ended, or 15 minutes after it was lost",
            )


def run_schedule_now(
    workdir: Path,
    name: str,
    load_config: LoadConfig,
    show_line: Callable[[str], None],
    stop: threading.Event,
    *,
    command: BuildArguments | None = None,
) -> ScheduledRun:
    """Have a manual run executed now, by the scheduler at work or else by this process.

    A manual run that is pending already is taken instead of a new one.

    Args:
        workdir: the work directory.
        name: of the schedule.
        load_config: returns the settings of a schedule's retrainings.
        show_line: shows a line to a person.
        stop: ends it.
        command: as for `serve_schedules`.

    Returns:
        The run with its final state; not final where `stop` came first, and the next scheduler
        goes on with it.

    Raises:
        ConfigError: there is no such schedule.
    """
    ledger = Ledger(workdir / LEDGER_FILE)
    ledger.find_schedule(name)  # before any file is made
    pending = (
        item
        for item in ledger.list_unfinished_scheduled_runs()
        if item.schedule == name and item.kind == "manual" and _is_abandoned(item)
    )
    scheduled_run, shown = next(pending, None) or ledger.request_scheduled_run(name), False
    while not scheduled_run.final and not stop.is_set():
        with try_scheduler_lock(workdir) as held:
            if held:
                with open_context(workdir, load_config, show_line, stop, command) as context:
                    _execute_requested(context, scheduled_run)
            elif not shown:
                show_line(
                    f"{scheduled_run.key} is left to the scheduler at work,"
                    f" {describe_holder(workdir)}."
                )
                shown = True
        scheduled_run = ledger.find_scheduled_run(scheduled_run.key) or scheduled_run
        if not scheduled_run.final:
            wait_for_stop(stop, LOCK_POLL_SECONDS)
    return scheduled_run


def _execute_requested(context: SchedulerContext, scheduled_run: ScheduledRun) -> None:
    for abandoned in _take_over_abandoned(context):
        if abandoned.key == scheduled_run.key:
            execute_scheduled_run(context, abandoned)
        else:
            set_down_scheduled_run(context, abandoned)
    claimed = context.ledger.claim_scheduled_run(context.owner, scheduled_run)
    if claimed:
        execute_scheduled_run(context, claimed)


def _is_abandoned(scheduled_run: ScheduledRun) -> bool:
    """Return whether no process executes an unfinished run, as far as this machine can tell."""
    host = identify_this_process().partition("/")[0]
    return scheduled_run.state == "pending" or (
        scheduled_run.owner.partition("/")[0] == host and not is_owner_alive(scheduled_run.owner)
    )
