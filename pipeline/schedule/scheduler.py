"""The process that carries out the schedules of a work directory, one scheduled run at a time, for years.

    hold the work directory's schedule (else: another scheduler is at work) until asked to end,
    every second and whenever a schedule is due:
        record what came due                                               the ledger
        take over what dead processes had claimed claim a scheduled run; is its result there already? then
        only record it run `alexnet retrain` in a process of its own; again, with longer and longer
        pauses, where the reason may pass record how it ended; tell the hook

A killed scheduler takes its child with it (`die_with_parent`), and the next one goes on with the
scheduled run: the child carries on in its folder, and its result.json, written last, says that the work is
done. APScheduler is the clock; which scheduled runs there are, and who has which, is the ledger's alone.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import logging.handlers
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

from apscheduler.triggers.base import BaseTrigger
from filelock import FileLock, Timeout

from pipeline.config.retrain import RetrainConfig
from pipeline.engine.workdir import unwritable
from pipeline.errors import BusyError, PipelineError
from pipeline.files import write_text
from pipeline.retrain.retraining import RESULT_FILE, Became, locate_retraining
from pipeline.retrain.scheduled_run_key import format_scheduled_run_key
from pipeline.schedule.ledger import Ledger
from pipeline.schedule.notifications import send_notification
from pipeline.schedule.owners import describe_owner, identify_this_process, is_owner_alive
from pipeline.schedule.process import HEARTBEAT_SECONDS, Run, end_orphan, run_child_process
from pipeline.schedule.records import Schedule, ScheduledRun, State
from pipeline.schedule.timing import Timing, compute_start_time, describe_timing, find_next_run_time

_LOOK_SECONDS = 1.0
_SAME_COMPLAINT_SECONDS = 600.0
_MIN_FREE_BYTES = 500_000_000
# Of one scheduled run: starts that neither end nor fail take the scheduler, or the machine, with them
_MAX_ATTEMPTS = 100
_LOG_BYTES, _LOG_FILES = 1_000_000, 5
_NOTIFIED_OUTCOMES = ("promoted", "refused", "waiting")  # the last waits for a person
# Reasons that may pass, by the names of pipeline.errors; OSError is a folder or a process that
# could not be made.
_MAY_PASS = (
    "BusyError",
    "LostWorkerError",
    "TrackingError",
    "OutOfMemoryError",
    "HungError",
    "OSError",
    "signal",
)

Command = Callable[[ScheduledRun, Schedule], Sequence[str]]
Settings = Callable[[Schedule], RetrainConfig]


@dataclass(frozen=True)
class Work:
    """What carrying out scheduled runs needs.

    Attributes:
        workdir: the work directory, whose schedule this process holds.
        ledger: of the work directory.
        config: returns the settings of a schedule's retrainings.
        owner: this process, as the ledger names it.
        stop: set where the process is asked to end.
        command: the command line of a scheduled run's work.
        tell: says a line, and writes it into schedule.log.
        complain: the same of an error, once where it comes again and again.
    """

    workdir: Path
    ledger: Ledger
    config: Settings
    owner: str
    stop: threading.Event
    command: Command
    log: Callable[[str], None]
    warn: Callable[[Exception], None]


# -- commands --------------------------------------------------------------------------------------


def serve_schedules(
    workdir: Path,
    config: Settings,
    notify: Callable[[str], None],
    stop: threading.Event,
    *,
    wait: bool = False,
    command: Command | None = None,
) -> None:
    """Carry out all schedules of a work directory until `stop` is set.

    What runs then may end within `drain_seconds`, or is resumed later.

    Args:
        workdir: the work directory.
        config: returns the settings of a schedule's retrainings.
        notify: takes a line for people.
        stop: ends it.
        wait: stand by while another scheduler is at work, and take its place when it is gone.
        command: returns the command line of a scheduled run's work; by default that of `child_words`.

    Raises:
        BusyError: another scheduler is at work, and `wait` is False.
        ConfigError: the ledger is damaged or of a newer version, or the folder cannot be written.
    """
    with _only_one(workdir, notify, stop, wait=wait) as held:
        if held:
            with _working(workdir, config, notify, stop, command) as work:
                _serve_until_stopped(work)


def _serve_until_stopped(work: Work) -> None:
    known = work.ledger.list_schedules()
    listed = "; ".join(
        f"{schedule.name}: {describe_timing(schedule.timing)}{', paused' if schedule.paused else ''}"
        for schedule in known
    )
    work.log(f"Scheduling in {work.workdir}. {listed or 'No schedule yet'}.")
    for scheduled_run in work.ledger.list_unnotified_scheduled_runs():
        _notify_and_record(
            work, scheduled_run, _load_settings(work, _schedule(work, scheduled_run))[0]
        )
    with _clock(work) as (clock, wake, bugs):
        while not work.stop.is_set():
            try:
                _match_jobs(clock, work.ledger.list_schedules(), wake)
                _work_through(work)
            except PipelineError as error:  # of the ledger or the disk: everything is tried again
                work.warn(error)
            if not work.stop.is_set():
                wake.wait(_LOOK_SECONDS)
            wake.clear()
            if bugs:
                raise bugs[0]
    work.log("Stopped.")


def run_schedule_once(
    workdir: Path,
    name: str,
    config: Settings,
    notify: Callable[[str], None],
    stop: threading.Event,
    *,
    wait: bool = False,
    command: Command | None = None,
) -> ScheduledRun | None:
    """Run what is due of one schedule, for cron and other engines, and return it.

    None where nothing is.

    Its jitter is left to the engine. A scheduled run whose work had begun comes first, then the one that
    came due later; the last is returned. A schedule without a timing of its own is due each time.

    Args:
        workdir: the work directory.
        name: of the schedule.
        config: returns the settings of a schedule's retrainings.
        notify: takes a line for people.
        stop: ends it.
        wait: until another scheduler has finished.
        command: as for `serve`.

    Raises:
        BusyError: another scheduler is at work, and `wait` is False.
        ConfigError: there is no such schedule.
    """
    ledger, done = Ledger(workdir / "schedule.db"), None
    ledger.find_schedule(name)
    with _only_one(workdir, notify, stop, wait=wait) as held:
        if held:
            with _working(workdir, config, notify, stop, command) as work:
                done = _run_due(work, name)
    return done


def _run_due(work: Work, name: str) -> ScheduledRun | None:
    work.ledger.record_run_times()
    done = None
    for scheduled_run in _taken_over(work):
        if scheduled_run.schedule == name:
            done = execute_scheduled_run(work, scheduled_run)
        else:
            _set_down(work, scheduled_run)
    others = [
        scheduled_run
        for scheduled_run in work.ledger.list_unfinished_scheduled_runs()
        if scheduled_run.state == "claimed" and scheduled_run.owner != work.owner
    ]
    if others:
        raise BusyError(
            f"The scheduled run {others[0].key} is claimed by {describe_owner(others[0].owner)}, which was heard"
            " of lately. Expected one at a time. Type the command again when it has ended, or 15"
            " minutes after it was lost."
        )
    schedule = work.ledger.find_schedule(name)
    waiting = [
        scheduled_run
        for scheduled_run in work.ledger.list_unfinished_scheduled_runs()
        if scheduled_run.schedule == name and scheduled_run.state == "pending"
    ]
    if not schedule.timing.has_run_times and not schedule.paused and not waiting and done is None:
        waiting = [work.ledger.request_scheduled_run(name, "scheduled")]
    for scheduled_run in waiting:
        wanted = (
            not (schedule.paused and scheduled_run.kind == "scheduled") and not work.stop.is_set()
        )
        claimed = work.ledger.claim_scheduled_run(work.owner, scheduled_run) if wanted else None
        done = execute_scheduled_run(work, claimed) if claimed else done
    return done


def run_schedule_now(
    workdir: Path,
    name: str,
    config: Settings,
    notify: Callable[[str], None],
    stop: threading.Event,
    *,
    command: Command | None = None,
) -> ScheduledRun:
    """Retrain now: a manual scheduled run, which the scheduler at work runs, or this process where there is none; one that waits already goes on.

    Returns:
        The scheduled run with its final state; without one where `stop` came first, and then the next
        scheduler goes on with it.

    Args:
        workdir: the work directory.
        name: of the schedule.
        config: returns the settings of a schedule's retrainings.
        notify: takes a line for people.
        stop: ends it.
        command: as for `serve`.

    Raises:
        ConfigError: there is no such schedule.
    """
    ledger = Ledger(workdir / "schedule.db")
    ledger.find_schedule(name)  # without it nothing is made
    waiting = (
        found
        for found in ledger.list_unfinished_scheduled_runs()
        if found.schedule == name and found.kind == "manual" and _is_left(found)
    )
    scheduled_run, told = next(waiting, None) or ledger.request_scheduled_run(name), False
    while not scheduled_run.final and not stop.is_set():
        with _instance(workdir) as held:
            if held:
                with _working(workdir, config, notify, stop, command) as work:
                    for taken in _taken_over(work):
                        if taken.key == scheduled_run.key:
                            execute_scheduled_run(work, taken)
                        else:
                            _set_down(work, taken)
                    claimed = ledger.claim_scheduled_run(work.owner, scheduled_run)
                    if claimed:
                        execute_scheduled_run(work, claimed)
            elif not told:
                notify(f"{scheduled_run.key} is left to the scheduler at work, {_holder(workdir)}.")
                told = True
        scheduled_run = ledger.find_scheduled_run(scheduled_run.key) or scheduled_run
        if not scheduled_run.final:
            stop.wait(_LOOK_SECONDS / 2)
    return scheduled_run


def _is_left(scheduled_run: ScheduledRun) -> bool:
    """Return whether nobody works on an open scheduled run, as far as this machine can tell."""
    host = identify_this_process().partition("/")[0]
    return scheduled_run.state == "pending" or (
        scheduled_run.owner.partition("/")[0] == host and not is_owner_alive(scheduled_run.owner)
    )


# -- one at a time ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _instance(workdir: Path) -> Iterator[bool]:
    """Hold the schedule of a work directory, if no other process does; yields whether."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(workdir / "schedule.lock", mode=0o644)
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
    except OSError as error:
        raise unwritable(workdir, error) from error
    if not lock.is_locked:
        yield False
        return
    owner = workdir / "schedule.owner"
    try:
        write_text(owner, identify_this_process())
        yield True
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def _only_one(
    workdir: Path, notify: Callable[[str], None], stop: threading.Event, *, wait: bool
) -> Iterator[bool]:
    """Hold the schedule of a work directory, where it has to be waited for until then.

    Yields False where `stop` came first.
    """
    told = False
    while not stop.is_set():
        with _instance(workdir) as held:
            if held:
                yield True
                return
        holder = _holder(workdir)
        if not wait:
            raise BusyError(
                f"Another scheduler is at work in {workdir}: {holder}. Expected one at a time. Stop"
                " that one, or type the command with --wait to stand by."
            )
        if not told:
            notify(f"Standing by: {holder} is at work in {workdir}.")
            told = True
        stop.wait(_LOOK_SECONDS / 2)
    yield False


def _holder(workdir: Path) -> str:
    with contextlib.suppress(OSError):
        return describe_owner((workdir / "schedule.owner").read_text(encoding="utf-8"))
    return "a process that has not written its name yet"


@contextlib.contextmanager
def _working(
    workdir: Path,
    config: Settings,
    notify: Callable[[str], None],
    stop: threading.Event,
    command: Command | None,
) -> Iterator[Work]:
    """Make what carrying out scheduled runs needs; the log file is closed at the end."""
    workdir = workdir.resolve()
    handler = _LogFile(
        workdir / "schedule.log",
        maxBytes=_LOG_BYTES,
        backupCount=_LOG_FILES - 1,
        encoding="utf-8",
        delay=True,
    )
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)

    def log(line: str) -> None:
        handler.handle(logging.LogRecord("schedule", logging.INFO, "", 0, line, None, None))
        notify(line)

    ledger, arguments = (
        Ledger(workdir / "schedule.db"),
        command or functools.partial(build_child_arguments, workdir),
    )
    try:
        yield Work(
            workdir,
            ledger,
            config,
            identify_this_process(),
            stop,
            arguments,
            log,
            _make_warner(log),
        )
    finally:
        handler.close()


class _LogFile(logging.handlers.RotatingFileHandler):
    """A log that a full disk silences, instead of a traceback for each line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """Go on without the line; people have seen it."""


def _make_warner(log: Callable[[str], None]) -> Callable[[Exception], None]:
    """Return what tells of errors, the same again only after a while."""
    last = ("", 0.0)

    def warn(error: Exception) -> None:
        nonlocal last
        text = f"{error}"
        if last[0] != text or time.monotonic() - last[1] > _SAME_COMPLAINT_SECONDS:
            last = (text, time.monotonic())
            log(f"Error: {text}")

    return warn


# -- the clock -------------------------------------------------------------------------------------


class DueTrigger(BaseTrigger):
    """APScheduler's question when a schedule starts next, answered by `pipeline.schedule.timing`."""

    def __init__(self, timing: Timing, name: str):
        self.timing, self.name = timing, name

    def get_next_fire_time(
        self, previous_fire_time: datetime | None, now: datetime
    ) -> datetime | None:
        """Return the first start after the one before, or after now, in UTC."""
        moment = max(previous_fire_time or now, now)  # what was missed is the ledger's to know
        run_time = find_next_run_time(
            self.timing, moment - timedelta(seconds=self.timing.jitter_seconds + 1)
        )
        while (
            run_time is not None and compute_start_time(self.timing, self.name, run_time) <= moment
        ):
            run_time = find_next_run_time(self.timing, run_time)
        return None if run_time is None else compute_start_time(self.timing, self.name, run_time)


@contextlib.contextmanager
def _clock(work: Work) -> Iterator[tuple[Any, threading.Event, list[BaseException]]]:
    """Run APScheduler beside: it records what came due every second, also while a scheduled run is at work, and wakes the caller at each start.

    No job calls APScheduler: it would wait for ever for a lock that `shutdown` holds.

    Yields:
        It, the event that wakes, and what a job raised that it should not have.
    """
    from apscheduler.events import EVENT_JOB_ERROR
    from apscheduler.executors.pool import ThreadPoolExecutor
    from apscheduler.schedulers.background import BackgroundScheduler

    wake, bugs = threading.Event(), list[BaseException]()
    quiet = logging.Logger(
        "apscheduler", logging.CRITICAL
    )  # its errors are raised below, and the rest is noise
    clock = BackgroundScheduler(
        timezone=UTC,
        executors={"default": ThreadPoolExecutor(1)},
        job_defaults={"coalesce": True, "misfire_grace_time": None, "max_instances": 1},
        logger=quiet,
    )

    def failed(event: Any) -> None:
        bugs.append(event.exception)
        wake.set()

    def look() -> None:
        try:
            work.ledger.record_run_times()
        except PipelineError as error:
            work.warn(error)

    clock.add_listener(failed, EVENT_JOB_ERROR)
    clock.add_job(look, "interval", seconds=_LOOK_SECONDS, id="look")
    clock.start()
    try:
        yield clock, wake, bugs
    finally:
        clock.shutdown(wait=True)


def _match_jobs(clock: Any, schedules: Sequence[Schedule], wake: threading.Event) -> None:
    """Give each schedule that is not paused a job that wakes at its starts, and take the others away."""
    wanted = {
        f"due {schedule.name}": schedule
        for schedule in schedules
        if schedule.timing.has_run_times and not schedule.paused
    }
    there = {job.id: job for job in clock.get_jobs() if job.id.startswith("due ")}
    for name, job in there.items():
        if name not in wanted or job.trigger.timing != wanted[name].timing:
            with contextlib.suppress(LookupError):  # one that comes no more took itself away
                clock.remove_job(name)
    for name, schedule in wanted.items():
        if name not in there or there[name].trigger.timing != schedule.timing:
            clock.add_job(wake.set, DueTrigger(schedule.timing, schedule.name), id=name)


# -- scheduled runs -----------------------------------------------------------------------------------------


def _work_through(work: Work) -> None:
    """Run every scheduled run that may start now."""
    work.ledger.record_run_times()
    for scheduled_run in _taken_over(work):
        if not work.stop.is_set():
            execute_scheduled_run(work, scheduled_run)
    while (
        not work.stop.is_set()
        and (claimed := work.ledger.claim_scheduled_run(work.owner)) is not None
    ):
        execute_scheduled_run(work, claimed)
        work.ledger.record_run_times()


def _taken_over(work: Work) -> list[ScheduledRun]:
    """Return the claimed scheduled runs that nobody works on.

    Of dead owners, and of this one where an error came between.
    """
    for scheduled_run in work.ledger.take_over_scheduled_runs(work.owner):
        work.log(f"{scheduled_run.key}: its owner is gone; this scheduler goes on with it.")
    return [
        scheduled_run
        for scheduled_run in work.ledger.list_unfinished_scheduled_runs()
        if scheduled_run.state == "claimed" and scheduled_run.owner == work.owner
    ]


def _set_down(work: Work, scheduled_run: ScheduledRun) -> None:
    """Record a claimed scheduled run whose work is done, and let another one wait."""
    ending = _ending_of(
        read_result_file(locate_retraining(work.workdir, scheduled_run.key), scheduled_run)
    )
    if ending is not None:
        _finish(
            work, scheduled_run, _load_settings(work, _schedule(work, scheduled_run))[0], ending
        )
    elif work.ledger.release_scheduled_run(scheduled_run, "its owner is gone"):
        work.log(f"{scheduled_run.key}: waits for the next scheduler.")


@dataclass(frozen=True)
class _Ending:
    """What became of a scheduled run's work; `due`: it stays open."""

    state: State
    why: str
    result: Mapping[str, Any] | None = None


def execute_scheduled_run(work: Work, scheduled_run: ScheduledRun) -> ScheduledRun:
    """Do the work of a claimed scheduled run, if its result is not there already, and record how it ended.

    Returns:
        The scheduled run as it is then; still open where the process is asked to end, or where it is another
        owner's now.

    Args:
        work: what it needs.
        scheduled_run: claimed by this process.

    Raises:
        BusyError: the ledger is held by others for long.
        PipelineError: the disk refuses.
    """
    folder = locate_retraining(work.workdir, scheduled_run.key)
    end_orphan(folder, work.log)
    schedule = _schedule(work, scheduled_run)
    config, wrong = _load_settings(work, schedule)
    ending = (
        _ending_of(read_result_file(folder, scheduled_run))
        or wrong
        or _not_to_run(schedule, scheduled_run)
    )
    if ending is None:
        _look_at_disk(work, scheduled_run, config)
        ending = _attempts(work, scheduled_run, config, folder)
    if ending is None:
        work.log(f"{scheduled_run.key}: another process has it now.")
    elif ending.state == "pending":
        work.ledger.release_scheduled_run(scheduled_run, ending.why)
        work.log(f"{scheduled_run.key}: {ending.why}.")
    else:
        _finish(work, scheduled_run, config, ending)
    return work.ledger.find_scheduled_run(scheduled_run.key) or scheduled_run


def _load_settings(work: Work, schedule: Schedule | None) -> tuple[RetrainConfig, _Ending | None]:
    """Return the settings of a schedule, or why they are not to be had, such as for a recipe that is gone; the defaults then."""
    try:
        return work.config(schedule) if schedule else RetrainConfig(), None
    except PipelineError as error:
        notification = (
            next(
                (
                    word.partition("=")[2]
                    for word in schedule.arguments
                    if word.startswith("retrain.notify=")
                ),
                "",
            )
            if schedule
            else ""
        )
        return RetrainConfig(notify=notification), _Ending("failed", str(error))


def _ending_of(result: Mapping[str, Any] | None) -> _Ending | None:
    if result is None:
        return None
    return _Ending(
        "skipped" if result["outcome"] == "skipped" else "ran", str(result.get("why") or ""), result
    )


def _not_to_run(schedule: Schedule | None, scheduled_run: ScheduledRun) -> _Ending | None:
    """Return why a claimed scheduled run is not to be run now.

    Its schedule was paused or removed meanwhile.
    """
    if schedule is None:
        return _Ending("skipped", "the schedule was removed")
    if schedule.paused and scheduled_run.kind == "scheduled":
        return (
            _Ending("pending", "paused; it goes on after `alexnet schedule resume`")
            if scheduled_run.attempts
            else _Ending("skipped", "paused")
        )
    return None


def _schedule(work: Work, scheduled_run: ScheduledRun) -> Schedule | None:
    return next(
        (
            schedule
            for schedule in work.ledger.list_schedules()
            if schedule.name == scheduled_run.schedule
        ),
        None,
    )


def _finish(
    work: Work, scheduled_run: ScheduledRun, config: RetrainConfig, ending: _Ending
) -> None:
    """Record the final state of a scheduled run, and tell the hook of it."""
    if not work.ledger.finish_scheduled_run(scheduled_run, ending.state, ending.why, ending.result):
        work.log(f"{scheduled_run.key}: another process has recorded it.")
        return
    scheduled_run = work.ledger.find_scheduled_run(scheduled_run.key) or scheduled_run
    work.log(
        f"{scheduled_run.key}: {scheduled_run.outcome if scheduled_run.state == 'ran' else scheduled_run.state}: {scheduled_run.why}"
    )
    _notify_and_record(work, scheduled_run, config)


def _notify_and_record(work: Work, scheduled_run: ScheduledRun, config: RetrainConfig) -> None:
    """Tell the hook of a scheduled run that got its final state, and note that.

    A scheduler killed between the two tells it again.
    """
    event = "failed" if scheduled_run.state == "failed" else scheduled_run.outcome
    if scheduled_run.state not in ("ran", "failed"):
        return
    if event not in (*_NOTIFIED_OUTCOMES, "failed") or not config.notify:
        work.ledger.record_notification(
            scheduled_run, "no hook" if not config.notify else "nothing to tell"
        )
        return
    reason = send_notification(config.notify, _event(work, scheduled_run, event))
    if reason:
        work.log(f"{scheduled_run.key}: the hook was not told: {reason}.")
    work.ledger.record_notification(scheduled_run, f"not told: {reason}" if reason else "told")


def _event(work: Work, scheduled_run: ScheduledRun, event: str) -> dict[str, str]:
    known = {
        name: getattr(scheduled_run, name)
        for name in ("schedule", "outcome", "why", "version", "run_url", "page")
    }
    return {
        "event": event,
        "scheduled_run": scheduled_run.key,
        **known,
        "workdir": str(work.workdir),
    }


# -- the work of a scheduled run ----------------------------------------------------------------------------


def build_child_arguments(
    workdir: Path, scheduled_run: ScheduledRun, schedule: Schedule
) -> list[str]:
    """Return the command line of a scheduled run's work."""
    arguments = [
        sys.executable,
        "-P",
        "-m",
        "pipeline",
        "retrain",
        "--workdir",
        str(workdir),
        "--json",
        "--wait",
        "--scheduled-run",
        scheduled_run.key,
    ]
    return [*arguments, *schedule.arguments]


def read_result_file(folder: Path, scheduled_run: ScheduledRun) -> dict[str, Any] | None:
    """Return the result.json of a scheduled run's work.

    None where there is none, or what is there is not its.
    """
    with contextlib.suppress(OSError, ValueError):
        result = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        if isinstance(result, dict) and result.get("outcome") in get_args(Became):
            named = format_scheduled_run_key(
                scheduled_run.schedule, scheduled_run.run_time
            ).partition("/")[2]
            return (
                result if result.get("scheduled_run", named) in (named, scheduled_run.key) else None
            )
    return None


def _attempts(
    work: Work, scheduled_run: ScheduledRun, config: RetrainConfig, folder: Path
) -> _Ending | None:
    """Start the work of a scheduled run until it ends, or fails for a reason that does not pass.

    None where the scheduled run is another's now.
    """
    failures = 0
    while True:
        begun, schedule = work.ledger.begin_attempt(scheduled_run), _schedule(work, scheduled_run)
        if begun is None:
            return None
        if schedule is None:
            return _Ending("skipped", "the schedule was removed")
        if begun.attempts > _MAX_ATTEMPTS:
            return _Ending(
                "failed", f"it was started {_MAX_ATTEMPTS} times and never came to its end"
            )
        work.log(f"{scheduled_run.key}: start {begun.attempts}.")
        run = _run_child(work, begun, config, work.command(begun, schedule), folder)
        ending = _ending_of(read_result_file(folder, scheduled_run)) or _ending_without_result(
            config, run, failures
        )
        if ending is not None or run.how == "lost":
            return ending
        pause = min(config.backoff_seconds * 2**failures, 86_400)
        failures += 1
        work.log(
            f"{scheduled_run.key}: {run.why} Tried again in {pause:,.0f} s, {failures} of {config.retries}."
        )
        if not _pause(work, scheduled_run, pause):
            return _Ending("pending", f"stopped while it waited to be tried again; {run.why}")


def _ending_without_result(config: RetrainConfig, run: Run, failures: int) -> _Ending | None:
    """Return what follows from a start that left no result.

    None: another start, or the scheduled run is another's.
    """
    if run.how == "stopped":
        return _Ending("pending", "stopped; the next start goes on with it")
    if run.how == "too long":
        return _Ending(
            "failed", f"it took longer than {config.timeout_hours:g} hours (retrain.timeout_hours)"
        )
    if run.how == "lost" or (run.cause in _MAY_PASS and failures < config.retries):
        return None
    return _Ending("failed", run.why)


def _pause(work: Work, scheduled_run: ScheduledRun, seconds: float) -> bool:
    """Wait, with signs of life for processes on other hosts.

    False where the process is asked to end.
    """
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if work.stop.wait(min(left, HEARTBEAT_SECONDS)):
            return False
        _send_heartbeat(work, scheduled_run)
    return True


def _send_heartbeat(work: Work, scheduled_run: ScheduledRun) -> bool:
    """Return whether the scheduled run is this owner's still.

    A ledger that does not answer is no reason to end what runs.
    """
    try:
        return work.ledger.record_heartbeat(scheduled_run)
    except PipelineError as error:
        work.warn(error)
        return True


def _run_child(
    work: Work,
    scheduled_run: ScheduledRun,
    config: RetrainConfig,
    arguments: Sequence[str],
    folder: Path,
) -> Run:
    return run_child_process(
        arguments,
        folder,
        config,
        work.stop,
        functools.partial(_send_heartbeat, work, scheduled_run),
    )


# -- room ------------------------------------------------------------------------------------------


def _look_at_disk(work: Work, scheduled_run: ScheduledRun, config: RetrainConfig) -> None:
    """Say it, and tell the hook, where the disk has less room than a retraining may need.

    It is tried all the same.
    """
    needed, free = (
        estimate_needed_bytes(work.workdir, work.ledger),
        shutil.disk_usage(work.workdir).free,
    )
    if free >= needed:
        return
    why = (
        f"Only {free:,} bytes are free on the disk of {work.workdir}. Expected {needed:,}, twice"
        " what the last retraining takes, or 500 MB. Make room: `alexnet clean` removes what is"
        " not kept."
    )
    work.log(why)
    reason = send_notification(
        config.notify, {**_event(work, scheduled_run, "disk_low"), "why": why}
    )
    if reason:
        work.log(f"{scheduled_run.key}: the hook was not told: {reason}.")


def estimate_needed_bytes(workdir: Path, ledger: Ledger) -> int:
    """Return how many bytes a retraining may need.

    Twice the stages of the last one, and 500 MB at least.
    """
    for scheduled_run in ledger.list_latest_scheduled_runs(limit=100):
        result = (
            read_result_file(locate_retraining(workdir, scheduled_run.key), scheduled_run)
            if scheduled_run.state == "ran"
            else None
        )
        stages = (result or {}).get("stages")
        if isinstance(stages, dict) and stages:
            taken = sum(
                _bytes_below(workdir / "stages" / Path(str(folder)).name)
                for folder in stages.values()
            )
            return max(2 * taken, _MIN_FREE_BYTES)
    return _MIN_FREE_BYTES


def _bytes_below(folder: Path) -> int:
    found = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):  # removed meanwhile
                found += (Path(parent) / file).lstat().st_size
    return found
