"""The command that exporters write, its exit codes, and cron fields that all engines read alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.errors import BusyError, ConfigError, GateError
from pipeline.schedule.timing import CronExpression, Timing, describe_timing, parse_cron

REFUSED_CODE, BUSY_CODE, TERMINATED_CODE = GateError.exit_code, BusyError.exit_code, 143
BUSY_PAUSE_MINUTES = 10  # before the next try, where another command holds the work directory
# For a graceful shutdown and the last checkpoint: the usual default of 30 to 90 seconds is short
# for slow storage
STOP_SECONDS = 180
_WEEK_SECONDS = 604_800


@dataclass(frozen=True)
class ExportJob:
    """A command to be started, and when.

    Attributes:
        name: of the schedule.
        timing: of the schedule.
        program: with which the command begins on this machine.
        arguments: the rest of the command.
        folder: its current directory.
    """

    name: str
    timing: Timing
    program: tuple[str, ...]
    arguments: tuple[str, ...]
    folder: str

    @property
    def command(self) -> tuple[str, ...]:
        """The program and its arguments."""
        return (*self.program, *self.arguments)


def convert_to_cron(timing: Timing) -> CronExpression | None:
    """Return the cron expression that means a timing, in the time zone `get_time_zone`.

    None where none does.
    """
    if timing.cron:
        return parse_cron(timing.cron)
    minutes, rest = divmod(timing.every_seconds, 60)
    if rest == 0 and 60 % minutes == 0:
        return parse_cron(f"*/{minutes} * * * *" if minutes < 60 else "0 * * * *")
    hours, rest = divmod(minutes, 60)
    if rest == 0 and hours and 24 % hours == 0:
        return parse_cron(f"0 */{hours} * * *" if hours < 24 else "0 0 * * *")
    return (
        parse_cron("0 0 * * 4") if timing.every_seconds == _WEEK_SECONDS else None
    )  # 1970 began on a Thursday


def get_time_zone(timing: Timing) -> str:
    """Return the time zone of `convert_to_cron`: an interval is counted in UTC."""
    return timing.timezone if timing.cron else "UTC"


def require_cron(job: ExportJob, engine: str) -> CronExpression:
    """Return the cron expression of a timing, or raise a ConfigError where there is none."""
    cron = convert_to_cron(job.timing)
    if cron is None:
        raise ConfigError(
            f"{engine} cannot express {describe_timing(job.timing)}",
            expected="a part of an hour or of a day, such as 15m, 1h, 6h or 1d, or 1w",
            hint="Type --cron with times of a day, or `alexnet schedule emit` with systemd,"
            " airflow or prefect",
        )
    return cron


def needs_both_days(cron: CronExpression) -> bool:
    """Return whether a date must fit a restricted day and a restricted weekday: `0 3 */2 * 1`."""
    return not cron.matches_either_day and len(cron.days) < 31 and len(cron.weekdays) < 7


def format_cron_fields(cron: CronExpression) -> str:
    """Return five fields that all engines read alike.

    Numbers, 0 for Sunday, and `*` only for everything.
    """
    days, weekdays = format_numbers(cron.days, 1, 31), format_numbers(cron.weekdays, 0, 6)
    if cron.matches_either_day and "*" in (days, weekdays):
        days = weekdays = "*"
    return " ".join(
        (
            format_numbers(cron.minutes, 0, 59),
            format_numbers(cron.hours, 0, 23),
            days,
            format_numbers(cron.months, 1, 12),
            weekdays,
        )
    )


def require_cron_fields(job: ExportJob, engine: str) -> str:
    """Return five cron fields; a ConfigError where the engine reads the days otherwise."""
    cron = require_cron(job, engine)
    if needs_both_days(cron):
        raise ConfigError(
            f"{engine} takes a day of the month or a weekday, where {job.timing.cron!r} means both",
            expected="one of the two to be *",
            hint="Type another --cron, or `alexnet schedule emit` with systemd, crontab or prefect",
        )
    return format_cron_fields(cron)


def format_numbers(numbers: Iterable[int], least: int, most: int, to: str = "-") -> str:
    """Return numbers as `*`, or as a list in which three or more in a row are a range."""
    rest = sorted(numbers)
    if len(rest) == most - least + 1:
        return "*"
    parts = []
    while rest:
        length = next(
            (size for size in range(len(rest), 2, -1) if rest[size - 1] - rest[0] == size - 1), 1
        )
        parts.append(f"{rest[0]}{to}{rest[length - 1]}" if length > 1 else str(rest[0]))
        rest = rest[length:]
    return ",".join(parts)


def format_jitter_sleep(job: ExportJob, then: str = " && ") -> str:
    """Return the shell command that waits up to the jitter, for engines without jitter."""
    return (
        f'sleep "$(shuf -i 0-{job.timing.jitter_seconds} -n 1)"{then}'
        if job.timing.jitter_seconds
        else ""
    )
