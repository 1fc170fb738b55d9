"""The context of a scheduler: ledger, settings, name of this process, log."""

from __future__ import annotations

import contextlib
import functools
import logging
import logging.handlers
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.retrain import RetrainConfig
from pipeline.schedule.ledger import Ledger
from pipeline.schedule.owners import identify_this_process
from pipeline.schedule.records import Schedule, ScheduledRun

LEDGER_FILE = "schedule.db"
_LOG_BYTES, _LOG_FILES = 1_000_000, 5
_SAME_WARNING_SECONDS = 600.0

BuildArguments = Callable[[ScheduledRun, Schedule], Sequence[str]]
LoadConfig = Callable[[Schedule], RetrainConfig]


@dataclass(frozen=True)
class SchedulerContext:
    """The context in which scheduled runs are executed.

    Attributes:
        workdir: the work directory, whose scheduler lock this process holds.
        ledger: of the work directory.
        load_config: returns the settings of a schedule's retrainings.
        owner: this process, as the ledger names it.
        stop: set when the process is to stop.
        build_arguments: returns the command line of a retraining.
        log: shows a line and writes it into schedule.log.
        warn: the same for an error, at most every 10 minutes while it stays the same.
    """

    workdir: Path
    ledger: Ledger
    load_config: LoadConfig
    owner: str
    stop: threading.Event
    build_arguments: BuildArguments
    log: Callable[[str], None]
    warn: Callable[[Exception], None]

    def find_schedule(self, scheduled_run: ScheduledRun) -> Schedule | None:
        """Return the schedule of a run; None where it was removed."""
        schedules = self.ledger.list_schedules()
        return next((item for item in schedules if item.name == scheduled_run.schedule), None)


@contextlib.contextmanager
def open_context(
    workdir: Path,
    load_config: LoadConfig,
    show_line: Callable[[str], None],
    stop: threading.Event,
    build_arguments: BuildArguments | None,
) -> Iterator[SchedulerContext]:
    """Yield a context, whose log file is closed at the end.

    Args:
        workdir: the work directory.
        load_config: returns the settings of a schedule's retrainings.
        show_line: shows a line to a person.
        stop: set when the process is to stop.
        build_arguments: by default `build_child_arguments`.
    """
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
        show_line(line)

    try:
        yield SchedulerContext(
            workdir,
            Ledger(workdir / LEDGER_FILE),
            load_config,
            identify_this_process(),
            stop,
            build_arguments or functools.partial(build_child_arguments, workdir),
            log,
            _make_warner(log),
        )
    finally:
        handler.close()


def build_child_arguments(
    workdir: Path, scheduled_run: ScheduledRun, schedule: Schedule
) -> list[str]:
    """Return the command line of a retraining."""
    program = [sys.executable, "-P", "-m", "pipeline", "retrain"]
    options = ["--workdir", str(workdir), "--json", "--wait", "--scheduled-run", scheduled_run.key]
    return [*program, *options, *schedule.arguments]


class _LogFile(logging.handlers.RotatingFileHandler):
    """A log that drops lines while the disk is full, instead of a traceback for each."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - name of the library
        """Continue without the line, which was shown."""


def _make_warner(log: Callable[[str], None]) -> Callable[[Exception], None]:
    """Return a function that logs errors, the same text at most every 10 minutes."""
    last = ("", 0.0)

    def warn(error: Exception) -> None:
        nonlocal last
        text = f"{error}"
        if last[0] != text or time.monotonic() - last[1] > _SAME_WARNING_SECONDS:
            last = (text, time.monotonic())
            log(f"Error: {text}")

    return warn
