"""The process that carries out the schedules of a work directory, one slot at a time, for years.

    hold the work directory's schedule (else: another scheduler is at work) until asked to end,
    every second and whenever a schedule is due:
        record what came due                                               the ledger
        take over what dead processes had claimed claim a slot; is its result there already? then
        only record it run `alexnet retrain` in a process of its own; again, with longer and longer
        pauses, where the reason may pass record how it ended; tell the hook

A killed scheduler takes its child with it (`die_with_parent`), and the next one goes on with the
slot: the child carries on in its folder, and its result.json, written last, says that the work is
done. APScheduler is the clock; which slots there are, and who has which, is the ledger's alone.
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
from pipeline.retrain.retraining import RESULT_FILE, Became, folder_of
from pipeline.schedule.ledger import (
    Ledger,
    Schedule,
    Slot,
    State,
    is_alive,
    key_of,
    owner_of_this_process,
    owner_text,
)
from pipeline.schedule.notifications import fire
from pipeline.schedule.process import BEAT_SECONDS, Run, end_orphan, run_child
from pipeline.schedule.timing import Timing, describe, due_after, start_of

_LOOK_SECONDS = 1.0
_SAME_COMPLAINT_SECONDS = 600.0
_MIN_FREE_BYTES = 500_000_000
# Of one slot: starts that neither end nor fail take the scheduler, or the machine, with them
_MAX_ATTEMPTS = 100
_LOG_BYTES, _LOG_FILES = 1_000_000, 5
_TOLD = ("promoted", "refused", "waiting")  # the last waits for a person
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

Command = Callable[[Slot, Schedule], Sequence[str]]
Settings = Callable[[Schedule], RetrainConfig]


@dataclass(frozen=True)
class Work:
    """What carrying out slots needs.

    Attributes:
        workdir: the work directory, whose schedule this process holds.
        ledger: of the work directory.
        config: returns the settings of a schedule's retrainings.
        owner: this process, as the ledger names it.
        stop: set where the process is asked to end.
        command: the command line of a slot's work.
        tell: says a line, and writes it into schedule.log.
        complain: the same of an error, once where it comes again and again.
    """

    workdir: Path
    ledger: Ledger
    config: Settings
    owner: str
    stop: threading.Event
    command: Command
    tell: Callable[[str], None]
    complain: Callable[[Exception], None]


# -- commands --------------------------------------------------------------------------------------


def serve(
    workdir: Path,
    config: Settings,
    say: Callable[[str], None],
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
        say: takes a line for people.
        stop: ends it.
        wait: stand by while another scheduler is at work, and take its place when it is gone.
        command: returns the command line of a slot's work; by default that of `child_words`.

    Raises:
        BusyError: another scheduler is at work, and `wait` is False.
        ConfigError: the ledger is damaged or of a newer version, or the folder cannot be written.
    """
    with _only_one(workdir, say, stop, wait=wait) as held:
        if held:
            with _working(workdir, config, say, stop, command) as work:
                _serve(work)


def _serve(work: Work) -> None:
    known = work.ledger.schedules()
    listed = "; ".join(
        f"{schedule.name}: {describe(schedule.timing)}{', paused' if schedule.paused else ''}"
        for schedule in known
    )
    work.tell(f"Scheduling in {work.workdir}. {listed or 'No schedule yet'}.")
    for slot in work.ledger.untold():
        _tell_hook(work, slot, _settings(work, _schedule(work, slot))[0])
    with _clock(work) as (clock, wake, bugs):
        while not work.stop.is_set():
            try:
                _match_jobs(clock, work.ledger.schedules(), wake)
                _work_through(work)
            except PipelineError as error:  # of the ledger or the disk: everything is tried again
                work.complain(error)
            if not work.stop.is_set():
                wake.wait(_LOOK_SECONDS)
            wake.clear()
            if bugs:
                raise bugs[0]
    work.tell("Stopped.")


def run_once(
    workdir: Path,
    name: str,
    config: Settings,
    say: Callable[[str], None],
    stop: threading.Event,
    *,
    wait: bool = False,
    command: Command | None = None,
) -> Slot | None:
    """Run what is due of one schedule, for cron and other engines, and return it.

    None where nothing is.

    Its jitter is left to the engine. A slot whose work had begun comes first, then the one that
    came due later; the last is returned. A schedule without a timing of its own is due each time.

    Args:
        workdir: the work directory.
        name: of the schedule.
        config: returns the settings of a schedule's retrainings.
        say: takes a line for people.
        stop: ends it.
        wait: until another scheduler has finished.
        command: as for `serve`.

    Raises:
        BusyError: another scheduler is at work, and `wait` is False.
        ConfigError: there is no such schedule.
    """
    ledger, done = Ledger(workdir / "schedule.db"), None
    ledger.schedule(name)
    with _only_one(workdir, say, stop, wait=wait) as held:
        if held:
            with _working(workdir, config, say, stop, command) as work:
                done = _run_due(work, name)
    return done


def _run_due(work: Work, name: str) -> Slot | None:
    work.ledger.sweep()
    done = None
    for slot in _taken_over(work):
        if slot.schedule == name:
            done = run_slot(work, slot)
        else:
            _set_down(work, slot)
    others = [
        slot
        for slot in work.ledger.open_slots()
        if slot.state == "claimed" and slot.owner != work.owner
    ]
    if others:
        raise BusyError(
            f"The slot {others[0].key} is claimed by {owner_text(others[0].owner)}, which was heard"
            " of lately. Expected one at a time. Type the command again when it has ended, or 15"
            " minutes after it was lost."
        )
    schedule = work.ledger.schedule(name)
    waiting = [
        slot for slot in work.ledger.open_slots() if slot.schedule == name and slot.state == "due"
    ]
    if not schedule.timing.by_itself and not schedule.paused and not waiting and done is None:
        waiting = [work.ledger.ask(name, "scheduled")]
    for slot in waiting:
        wanted = not (schedule.paused and slot.kind == "scheduled") and not work.stop.is_set()
        claimed = work.ledger.claim(work.owner, slot) if wanted else None
        done = run_slot(work, claimed) if claimed else done
    return done


def run_now(
    workdir: Path,
    name: str,
    config: Settings,
    say: Callable[[str], None],
    stop: threading.Event,
    *,
    command: Command | None = None,
) -> Slot:
    """Retrain now: a manual slot, which the scheduler at work runs, or this process where there is none; one that waits already goes on.

    Returns:
        The slot with its final state; without one where `stop` came first, and then the next
        scheduler goes on with it.

    Args:
        workdir: the work directory.
        name: of the schedule.
        config: returns the settings of a schedule's retrainings.
        say: takes a line for people.
        stop: ends it.
        command: as for `serve`.

    Raises:
        ConfigError: there is no such schedule.
    """
    ledger = Ledger(workdir / "schedule.db")
    ledger.schedule(name)  # without it nothing is made
    waiting = (
        found
        for found in ledger.open_slots()
        if found.schedule == name and found.kind == "manual" and _is_left(found)
    )
    slot, told = next(waiting, None) or ledger.ask(name), False
    while not slot.final and not stop.is_set():
        with _instance(workdir) as held:
            if held:
                with _working(workdir, config, say, stop, command) as work:
                    for taken in _taken_over(work):
                        if taken.key == slot.key:
                            run_slot(work, taken)
                        else:
                            _set_down(work, taken)
                    claimed = ledger.claim(work.owner, slot)
                    if claimed:
                        run_slot(work, claimed)
            elif not told:
                say(f"{slot.key} is left to the scheduler at work, {_holder(workdir)}.")
                told = True
        slot = ledger.slot(slot.key) or slot
        if not slot.final:
            stop.wait(_LOOK_SECONDS / 2)
    return slot


def _is_left(slot: Slot) -> bool:
    """Return whether nobody works on an open slot, as far as this machine can tell."""
    host = owner_of_this_process().partition("/")[0]
    return slot.state == "due" or (
        slot.owner.partition("/")[0] == host and not is_alive(slot.owner)
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
        write_text(owner, owner_of_this_process())
        yield True
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def _only_one(
    workdir: Path, say: Callable[[str], None], stop: threading.Event, *, wait: bool
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
            say(f"Standing by: {holder} is at work in {workdir}.")
            told = True
        stop.wait(_LOOK_SECONDS / 2)
    yield False


def _holder(workdir: Path) -> str:
    with contextlib.suppress(OSError):
        return owner_text((workdir / "schedule.owner").read_text(encoding="utf-8"))
    return "a process that has not written its name yet"


@contextlib.contextmanager
def _working(
    workdir: Path,
    config: Settings,
    say: Callable[[str], None],
    stop: threading.Event,
    command: Command | None,
) -> Iterator[Work]:
    """Make what carrying out slots needs; the log file is closed at the end."""
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

    def tell(line: str) -> None:
        handler.handle(logging.LogRecord("schedule", logging.INFO, "", 0, line, None, None))
        say(line)

    ledger, words = (
        Ledger(workdir / "schedule.db"),
        command or functools.partial(child_words, workdir),
    )
    try:
        yield Work(
            workdir, ledger, config, owner_of_this_process(), stop, words, tell, _complainer(tell)
        )
    finally:
        handler.close()


class _LogFile(logging.handlers.RotatingFileHandler):
    """A log that a full disk silences, instead of a traceback for each line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """Go on without the line; people have seen it."""


def _complainer(tell: Callable[[str], None]) -> Callable[[Exception], None]:
    """Return what tells of errors, the same again only after a while."""
    last = ("", 0.0)

    def complain(error: Exception) -> None:
        nonlocal last
        text = f"{error}"
        if last[0] != text or time.monotonic() - last[1] > _SAME_COMPLAINT_SECONDS:
            last = (text, time.monotonic())
            tell(f"Error: {text}")

    return complain


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
        due = due_after(self.timing, moment - timedelta(seconds=self.timing.jitter_seconds + 1))
        while due is not None and start_of(self.timing, self.name, due) <= moment:
            due = due_after(self.timing, due)
        return None if due is None else start_of(self.timing, self.name, due)


@contextlib.contextmanager
def _clock(work: Work) -> Iterator[tuple[Any, threading.Event, list[BaseException]]]:
    """Run APScheduler beside: it records what came due every second, also while a slot is at work, and wakes the caller at each start.

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
            work.ledger.sweep()
        except PipelineError as error:
            work.complain(error)

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
        if schedule.timing.by_itself and not schedule.paused
    }
    there = {job.id: job for job in clock.get_jobs() if job.id.startswith("due ")}
    for name, job in there.items():
        if name not in wanted or job.trigger.timing != wanted[name].timing:
            with contextlib.suppress(LookupError):  # one that comes no more took itself away
                clock.remove_job(name)
    for name, schedule in wanted.items():
        if name not in there or there[name].trigger.timing != schedule.timing:
            clock.add_job(wake.set, DueTrigger(schedule.timing, schedule.name), id=name)


# -- slots -----------------------------------------------------------------------------------------


def _work_through(work: Work) -> None:
    """Run every slot that may start now."""
    work.ledger.sweep()
    for slot in _taken_over(work):
        if not work.stop.is_set():
            run_slot(work, slot)
    while not work.stop.is_set() and (claimed := work.ledger.claim(work.owner)) is not None:
        run_slot(work, claimed)
        work.ledger.sweep()


def _taken_over(work: Work) -> list[Slot]:
    """Return the claimed slots that nobody works on.

    Of dead owners, and of this one where an error came between.
    """
    for slot in work.ledger.take_over(work.owner):
        work.tell(f"{slot.key}: its owner is gone; this scheduler goes on with it.")
    return [
        slot
        for slot in work.ledger.open_slots()
        if slot.state == "claimed" and slot.owner == work.owner
    ]


def _set_down(work: Work, slot: Slot) -> None:
    """Record a claimed slot whose work is done, and let another one wait."""
    ending = _ending_of(read_result(slot_folder(work.workdir, slot), slot))
    if ending is not None:
        _finish(work, slot, _settings(work, _schedule(work, slot))[0], ending)
    elif work.ledger.release(slot, "its owner is gone"):
        work.tell(f"{slot.key}: waits for the next scheduler.")


@dataclass(frozen=True)
class _Ending:
    """What became of a slot's work; `due`: it stays open."""

    state: State
    why: str
    result: Mapping[str, Any] | None = None


def run_slot(work: Work, slot: Slot) -> Slot:
    """Do the work of a claimed slot, if its result is not there already, and record how it ended.

    Returns:
        The slot as it is then; still open where the process is asked to end, or where it is another
        owner's now.

    Args:
        work: what it needs.
        slot: claimed by this process.

    Raises:
        BusyError: the ledger is held by others for long.
        PipelineError: the disk refuses.
    """
    folder = slot_folder(work.workdir, slot)
    end_orphan(folder, work.tell)
    schedule = _schedule(work, slot)
    config, wrong = _settings(work, schedule)
    ending = _ending_of(read_result(folder, slot)) or wrong or _not_to_run(schedule, slot)
    if ending is None:
        _look_at_disk(work, slot, config)
        ending = _attempts(work, slot, config, folder)
    if ending is None:
        work.tell(f"{slot.key}: another process has it now.")
    elif ending.state == "due":
        work.ledger.release(slot, ending.why)
        work.tell(f"{slot.key}: {ending.why}.")
    else:
        _finish(work, slot, config, ending)
    return work.ledger.slot(slot.key) or slot


def _settings(work: Work, schedule: Schedule | None) -> tuple[RetrainConfig, _Ending | None]:
    """Return the settings of a schedule, or why they are not to be had, such as for a recipe that is gone; the defaults then."""
    try:
        return work.config(schedule) if schedule else RetrainConfig(), None
    except PipelineError as error:
        hook = (
            next(
                (
                    word.partition("=")[2]
                    for word in schedule.words
                    if word.startswith("retrain.hook=")
                ),
                "",
            )
            if schedule
            else ""
        )
        return RetrainConfig(hook=hook), _Ending("failed", str(error))


def _ending_of(result: Mapping[str, Any] | None) -> _Ending | None:
    if result is None:
        return None
    return _Ending(
        "skipped" if result["outcome"] == "skipped" else "ran", str(result.get("why") or ""), result
    )


def _not_to_run(schedule: Schedule | None, slot: Slot) -> _Ending | None:
    """Return why a claimed slot is not to be run now.

    Its schedule was paused or removed meanwhile.
    """
    if schedule is None:
        return _Ending("skipped", "the schedule was removed")
    if schedule.paused and slot.kind == "scheduled":
        return (
            _Ending("due", "paused; it goes on after `alexnet resume`")
            if slot.attempts
            else _Ending("skipped", "paused")
        )
    return None


def _schedule(work: Work, slot: Slot) -> Schedule | None:
    return next(
        (schedule for schedule in work.ledger.schedules() if schedule.name == slot.schedule), None
    )


def _finish(work: Work, slot: Slot, config: RetrainConfig, ending: _Ending) -> None:
    """Record the final state of a slot, and tell the hook of it."""
    if not work.ledger.finish(slot, ending.state, ending.why, ending.result):
        work.tell(f"{slot.key}: another process has recorded it.")
        return
    slot = work.ledger.slot(slot.key) or slot
    work.tell(f"{slot.key}: {slot.outcome if slot.state == 'ran' else slot.state}: {slot.why}")
    _tell_hook(work, slot, config)


def _tell_hook(work: Work, slot: Slot, config: RetrainConfig) -> None:
    """Tell the hook of a slot that got its final state, and note that.

    A scheduler killed between the two tells it again.
    """
    event = "failed" if slot.state == "failed" else slot.outcome
    if slot.state not in ("ran", "failed"):
        return
    if event not in (*_TOLD, "failed") or not config.hook:
        work.ledger.note_hook(slot, "no hook" if not config.hook else "nothing to tell")
        return
    reason = fire(config.hook, _event(work, slot, event))
    if reason:
        work.tell(f"{slot.key}: the hook was not told: {reason}.")
    work.ledger.note_hook(slot, f"not told: {reason}" if reason else "told")


def _event(work: Work, slot: Slot, event: str) -> dict[str, str]:
    known = {
        name: getattr(slot, name)
        for name in ("schedule", "outcome", "why", "version", "run_url", "page")
    }
    return {"event": event, "slot": slot.key, **known, "workdir": str(work.workdir)}


# -- the work of a slot ----------------------------------------------------------------------------


def slot_folder(workdir: Path, slot: Slot) -> Path:
    """Return the folder of a slot's work.

    Output.log, result.json and what the retraining writes.
    """
    return folder_of(workdir, slot.key)


def child_words(workdir: Path, slot: Slot, schedule: Schedule) -> list[str]:
    """Return the command line of a slot's work."""
    words = [
        sys.executable,
        "-P",
        "-m",
        "pipeline",
        "retrain",
        "--workdir",
        str(workdir),
        "--json",
        "--wait",
        "--slot",
        slot.key,
    ]
    return [*words, *schedule.words]


def read_result(folder: Path, slot: Slot) -> dict[str, Any] | None:
    """Return the result.json of a slot's work.

    None where there is none, or what is there is not its.
    """
    with contextlib.suppress(OSError, ValueError):
        result = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        if isinstance(result, dict) and result.get("outcome") in get_args(Became):
            named = key_of(slot.schedule, slot.due).partition("/")[2]
            return result if result.get("slot", named) in (named, slot.key) else None
    return None


def _attempts(work: Work, slot: Slot, config: RetrainConfig, folder: Path) -> _Ending | None:
    """Start the work of a slot until it ends, or fails for a reason that does not pass.

    None where the slot is another's now.
    """
    failures = 0
    while True:
        begun, schedule = work.ledger.begin_attempt(slot), _schedule(work, slot)
        if begun is None:
            return None
        if schedule is None:
            return _Ending("skipped", "the schedule was removed")
        if begun.attempts > _MAX_ATTEMPTS:
            return _Ending(
                "failed", f"it was started {_MAX_ATTEMPTS} times and never came to its end"
            )
        work.tell(f"{slot.key}: start {begun.attempts}.")
        run = _run_child(work, begun, config, work.command(begun, schedule), folder)
        ending = _ending_of(read_result(folder, slot)) or _ending_without_result(
            config, run, failures
        )
        if ending is not None or run.how == "lost":
            return ending
        pause = min(config.backoff_seconds * 2**failures, 86_400)
        failures += 1
        work.tell(
            f"{slot.key}: {run.why} Tried again in {pause:,.0f} s, {failures} of {config.retries}."
        )
        if not _pause(work, slot, pause):
            return _Ending("due", f"stopped while it waited to be tried again; {run.why}")


def _ending_without_result(config: RetrainConfig, run: Run, failures: int) -> _Ending | None:
    """Return what follows from a start that left no result.

    None: another start, or the slot is another's.
    """
    if run.how == "stopped":
        return _Ending("due", "stopped; the next start goes on with it")
    if run.how == "too long":
        return _Ending(
            "failed", f"it took longer than {config.timeout_hours:g} hours (retrain.timeout_hours)"
        )
    if run.how == "lost" or (run.cause in _MAY_PASS and failures < config.retries):
        return None
    return _Ending("failed", run.why)


def _pause(work: Work, slot: Slot, seconds: float) -> bool:
    """Wait, with signs of life for processes on other hosts.

    False where the process is asked to end.
    """
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if work.stop.wait(min(left, BEAT_SECONDS)):
            return False
        _beat(work, slot)
    return True


def _beat(work: Work, slot: Slot) -> bool:
    """Return whether the slot is this owner's still.

    A ledger that does not answer is no reason to end what runs.
    """
    try:
        return work.ledger.beat(slot)
    except PipelineError as error:
        work.complain(error)
        return True


def _run_child(
    work: Work, slot: Slot, config: RetrainConfig, words: Sequence[str], folder: Path
) -> Run:
    return run_child(words, folder, config, work.stop, functools.partial(_beat, work, slot))


# -- room ------------------------------------------------------------------------------------------


def _look_at_disk(work: Work, slot: Slot, config: RetrainConfig) -> None:
    """Say it, and tell the hook, where the disk has less room than a retraining may need.

    It is tried all the same.
    """
    needed, free = room_needed(work.workdir, work.ledger), shutil.disk_usage(work.workdir).free
    if free >= needed:
        return
    why = (
        f"Only {free:,} bytes are free on the disk of {work.workdir}. Expected {needed:,}, twice"
        " what the last retraining takes, or 500 MB. Make room: `alexnet clean` removes what is"
        " not kept."
    )
    work.tell(why)
    reason = fire(config.hook, {**_event(work, slot, "disk_low"), "why": why})
    if reason:
        work.tell(f"{slot.key}: the hook was not told: {reason}.")


def room_needed(workdir: Path, ledger: Ledger) -> int:
    """Return how many bytes a retraining may need.

    Twice the stages of the last one, and 500 MB at least.
    """
    for slot in ledger.history(limit=100):
        result = read_result(slot_folder(workdir, slot), slot) if slot.state == "ran" else None
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
