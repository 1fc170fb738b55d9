"""The execution of one claimed scheduled run: child process, attempts, final state.

end what an earlier child of this run left result.json is there already, the schedule is gone or
paused: record that warn where the disk is nearly full repeat: count an attempt, run `alexnet
retrain` in a process of its own, read its result.json
    no result and the failure is retryable (retry.py): pause, and again
record the final state, or release the run; notify
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.retrain import RetrainConfig
from pipeline.errors import PipelineError
from pipeline.retrain.retraining import locate_retraining
from pipeline.schedule.context import SchedulerContext
from pipeline.schedule.disk_space import warn_of_low_disk
from pipeline.schedule.outcome_notifications import notify_outcome
from pipeline.schedule.process import TICK_SECONDS, ChildEnd, end_orphan, run_child_process
from pipeline.schedule.records import RunState, Schedule, ScheduledRun
from pipeline.schedule.result import read_retraining_result
from pipeline.schedule.retry import MAX_ATTEMPTS, compute_retry_pause, is_tried_again
from pipeline.schedule.waiting import wait_for_stop

HEARTBEAT_SECONDS = 60.0
_NOTIFY_OPTION = "retrain.notify="


@dataclass(frozen=True)
class ExecutionEnd:
    """How an execution ended: the state of its run, `pending` where it is released, and why."""

    state: RunState
    why: str
    result: Mapping[str, Any] | None = None


def execute_scheduled_run(context: SchedulerContext, scheduled_run: ScheduledRun) -> ScheduledRun:
    """Execute a claimed run, unless its result is there already, and record how it ended.

    Args:
        context: of this scheduler.
        scheduled_run: claimed by this process.

    Returns:
        The run as it is then; not final where the process is to stop, or another owner has it now.

    Raises:
        BusyError: other processes lock the ledger for long.
        PipelineError: the disk refuses.
    """
    folder = locate_retraining(context.workdir, scheduled_run.key)
    end_orphan(folder, context.log)
    schedule = context.find_schedule(scheduled_run)
    config, failure = load_retrain_config(context, schedule)
    end = _read_end(folder, scheduled_run) or failure or _check_schedule(schedule, scheduled_run)
    if end is None:
        warn_of_low_disk(context, scheduled_run, config)
        end = _attempt_until_end(context, scheduled_run, config, folder)
    if end is None:
        context.log(f"{scheduled_run.key}: another process has it now.")
    elif end.state == "pending":
        context.ledger.release_scheduled_run(scheduled_run, end.why)
        context.log(f"{scheduled_run.key}: {end.why}.")
    else:
        _finish(context, scheduled_run, config, end)
    return context.ledger.find_scheduled_run(scheduled_run.key) or scheduled_run


def set_down_scheduled_run(context: SchedulerContext, scheduled_run: ScheduledRun) -> None:
    """Record a claimed run whose result is there, and release any other, without executing it."""
    end = _read_end(locate_retraining(context.workdir, scheduled_run.key), scheduled_run)
    if end is not None:
        config, _ = load_retrain_config(context, context.find_schedule(scheduled_run))
        _finish(context, scheduled_run, config, end)
    elif context.ledger.release_scheduled_run(scheduled_run, "its owner is gone"):
        context.log(f"{scheduled_run.key}: waits for the next scheduler.")


def load_retrain_config(
    context: SchedulerContext, schedule: Schedule | None
) -> tuple[RetrainConfig, ExecutionEnd | None]:
    """Return the settings of a schedule, and the failure where they cannot be loaded.

    The settings are then the defaults, with the schedule's own `retrain.notify`.
    """
    if schedule is None:
        return RetrainConfig(), None
    try:
        return context.load_config(schedule), None
    except PipelineError as error:  # such as a recipe file that is gone
        options = (item for item in schedule.arguments if item.startswith(_NOTIFY_OPTION))
        notify = next(options, "").removeprefix(_NOTIFY_OPTION)
        return RetrainConfig(notify=notify), ExecutionEnd("failed", str(error))


def _read_end(folder: Path, scheduled_run: ScheduledRun) -> ExecutionEnd | None:
    """Return the end that result.json records, or None."""
    result = read_retraining_result(folder, scheduled_run)
    if result is None:
        return None
    state: RunState = "skipped" if result["outcome"] == "skipped" else "ran"
    return ExecutionEnd(state, str(result.get("why") or ""), result)


def _check_schedule(schedule: Schedule | None, scheduled_run: ScheduledRun) -> ExecutionEnd | None:
    """Return the end of a claimed run whose schedule was paused or removed meanwhile, or None."""
    if schedule is None:
        return ExecutionEnd("skipped", "the schedule was removed")
    if not schedule.paused or scheduled_run.kind != "scheduled":
        return None
    if scheduled_run.attempts:
        return ExecutionEnd("pending", "paused; it goes on after `alexnet schedule resume`")
    return ExecutionEnd("skipped", "paused")


def _finish(
    context: SchedulerContext, scheduled_run: ScheduledRun, config: RetrainConfig, end: ExecutionEnd
) -> None:
    """Record the final state of a run, and notify."""
    if not context.ledger.finish_scheduled_run(scheduled_run, end.state, end.why, end.result):
        context.log(f"{scheduled_run.key}: another process has recorded it.")
        return
    finished = context.ledger.find_scheduled_run(scheduled_run.key) or scheduled_run
    shown = finished.outcome if finished.state == "ran" else finished.state
    context.log(f"{finished.key}: {shown}: {finished.why}")
    notify_outcome(context, finished, config)


# -- attempts --------------------------------------------------------------------------------------


def _attempt_until_end(
    context: SchedulerContext, scheduled_run: ScheduledRun, config: RetrainConfig, folder: Path
) -> ExecutionEnd | None:
    """Start the retraining until it ends, or fails for a reason that is not tried again.

    None where another owner has the run now.
    """
    failures = 0
    while True:
        begun = context.ledger.begin_attempt(scheduled_run)
        schedule = context.find_schedule(scheduled_run)
        if begun is None:
            return None
        if schedule is None:
            return ExecutionEnd("skipped", "the schedule was removed")
        if begun.attempts > MAX_ATTEMPTS:
            return ExecutionEnd("failed", f"it was started {MAX_ATTEMPTS} times and never ended")
        context.log(f"{scheduled_run.key}: attempt {begun.attempts}.")
        child = _run_child(context, begun, schedule, config, folder)
        end = _read_end(folder, scheduled_run)
        if end is not None or child.how == "lost":
            return end
        if not is_tried_again(config, child, failures):
            return _describe_failure(config, child)
        pause = compute_retry_pause(config, failures)
        failures += 1
        context.log(
            f"{scheduled_run.key}: {child.why} Retry {failures} of {config.retries} in"
            f" {pause:,.0f} s."
        )
        if not _wait(context, scheduled_run, pause):
            return ExecutionEnd("pending", f"stopped before the next retry; {child.why}")


def _describe_failure(config: RetrainConfig, child: ChildEnd) -> ExecutionEnd:
    """Return the end of a run whose child left no result and is not tried again."""
    if child.how == "stopped":
        return ExecutionEnd("pending", "stopped; the next start goes on with it")
    if child.how == "too long":
        limit = f"{config.timeout_hours:g} hours (retrain.timeout_hours)"
        return ExecutionEnd("failed", f"it took longer than {limit}")
    return ExecutionEnd("failed", child.why)


def _run_child(
    context: SchedulerContext,
    scheduled_run: ScheduledRun,
    schedule: Schedule,
    config: RetrainConfig,
    folder: Path,
) -> ChildEnd:
    arguments = context.build_arguments(scheduled_run, schedule)
    tick = make_tick(context, scheduled_run)
    return run_child_process(arguments, folder, config, context.stop, tick)


def _wait(context: SchedulerContext, scheduled_run: ScheduledRun, seconds: float) -> bool:
    """Wait before a retry; False where the process is to stop."""
    until, tick = time.monotonic() + seconds, make_tick(context, scheduled_run)
    while (left := until - time.monotonic()) > 0:
        if wait_for_stop(context.stop, min(left, TICK_SECONDS)):
            return False
        tick()
    return True


def make_tick(context: SchedulerContext, scheduled_run: ScheduledRun) -> Callable[[], bool]:
    """Return a function to be called every second while a run is executed.

    It records run times that come meanwhile, and a heartbeat each minute; it returns False where
    another owner has the run. An error of the ledger is a warning: it does not end the child.
    """
    last = time.monotonic()

    def tick() -> bool:
        nonlocal last
        try:
            context.ledger.record_run_times()
            if time.monotonic() - last > HEARTBEAT_SECONDS:
                last = time.monotonic()
                return context.ledger.record_heartbeat(scheduled_run)
        except PipelineError as error:
            context.warn(error)
        return True

    return tick
