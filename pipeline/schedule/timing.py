"""The run times of a schedule: a cron expression in a time zone, or an interval in seconds.

Pure functions; no clock of their own.

    minute hour day-of-month month weekday      numbers, names (mon, jan), *, lists 1,15, ranges
    1-5, steps */10 and 8-18/2
    @hourly @daily @midnight @weekly @monthly @yearly @annually

What cron means is meant: weekdays 0 and 7 are Sunday, 1 is Monday; where the day of the month and
the weekday are both restricted, either is enough, and one that begins with `*`, such as `*/2`, is
not a restriction in this sense.

When clocks change:

* An expression with an hour of its own (`30 2 * * *`) is due once for each of its wall-clock times.
  One that comes twice is due at its first occurrence; one that is skipped is due at the first
  instant after the gap. Several that fall on one instant are one run time.
* An expression for every hour (`*/15 * * * *`, `0 * * * *`) is due whenever the clock shows such a
  minute: in a repeated hour again, in a skipped one not at all, so that it goes on every quarter of
  an hour, or every hour, of real time.

An interval counts its multiples from 1970-01-01T00:00Z, so that run times do not depend on when it
was started: 1w comes on Thursdays.

One file above 400 lines, as parsing and run times share these rules.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from pipeline.config.recipes import suggest_spelling
from pipeline.errors import ConfigError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY = timedelta(days=1)
_UNITS = {"w": 604_800, "d": 86_400, "h": 3600, "m": 60, "s": 1}
_LONGEST_SECONDS = 366 * 86_400
_NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_MONTHS = {
    name: number
    for number, name in enumerate(
        ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"], 1
    )
}
_WEEKDAYS = {
    name: number for number, name in enumerate(["sun", "mon", "tue", "wed", "thu", "fri", "sat"])
}
_MAX_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)  # of each month
_PART = re.compile(r"(\*|[0-9a-z]+)(?:-([0-9a-z]+))?(?:/([0-9]{1,4}))?", re.ASCII)


@dataclass(frozen=True)
class Timing:
    """The timing of a schedule; made by `parse_timing`.

    Without `cron` and `every_seconds` there are no run times: another engine is the clock.

    Attributes:
        cron: five fields, or a word such as @daily; empty for an interval.
        every_seconds: the interval; 0 for a cron expression.
        timezone: whose wall clock `cron` means, an IANA name.
        jitter_seconds: each start is up to so much later than its run time.
    """

    cron: str = ""
    every_seconds: int = 0
    timezone: str = "UTC"
    jitter_seconds: int = 0

    @property
    def has_run_times(self) -> bool:
        """Whether there are run times."""
        return bool(self.cron or self.every_seconds)


@dataclass(frozen=True)
class CronExpression:
    """A parsed cron expression: minutes, hours and dates."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]  # 0 is Sunday
    matches_either_day: bool  # a day of the month or a weekday is enough

    @property
    def every_hour(self) -> bool:
        """Whether it is for every hour of the day."""
        return len(self.hours) == 24

    def matches_date(self, day: date) -> bool:
        """Return whether a date has run times."""
        of_month, of_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return day.month in self.months and (
            of_month or of_week if self.matches_either_day else of_month and of_week
        )


# -- parsing ---------------------------------------------------------------------------------------


def parse_timing(cron: str, every: str, timezone: str, jitter: str = "") -> Timing:
    """Return the timing of the options of a command line.

    Exactly one of `cron` and `every` is given.

    Args:
        cron: such as `0 3 * * 1`.
        every: a whole number and one of s, m, h, d, w, such as `6h`.
        timezone: such as `Europe/Madrid`.
        jitter: as `every`, or empty for none.

    Raises:
        ConfigError: one of them cannot be parsed, or the expression has no run time.
    """
    cron, every = " ".join(cron.lower().split()), every.strip()
    if bool(cron) == bool(every):
        received = "both" if cron else "neither"
        raise ConfigError(
            "A schedule needs one timing",
            expected="either --cron, such as --cron '0 3 * * 1', or --every, such as --every 6h",
            received=received,
        )
    _check_time_zone(timezone)
    if cron:
        _check_has_run_times(parse_cron(cron), cron)
    jitter_seconds = _parse_duration(jitter, "--jitter", least=0) if jitter.strip() else 0
    return Timing(cron, _parse_duration(every, "--every") if every else 0, timezone, jitter_seconds)


def _check_time_zone(timezone: str) -> None:
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        guess = suggest_spelling(timezone, tuple(sorted(available_timezones())))
        raise ConfigError(
            f"There is no time zone {timezone[:80]!r}",
            expected="an IANA name, such as Europe/Madrid, or UTC",
            hint=f"{guess} Check --timezone",
        ) from error


def _parse_duration(arguments: str, option: str, least: int = 1) -> int:
    match = re.fullmatch(r"([0-9]{1,9})([a-z])", arguments.strip().lower(), re.ASCII)
    seconds = int(match[1]) * _UNITS.get(match[2], -1) if match else -1
    if not least <= seconds <= _LONGEST_SECONDS:
        raise ConfigError(
            f"{option} is not understood",
            expected=f"a whole number and a unit, s, m, h, d or w, such as 6h or 90m, from {least}s"
            " to 366d",
            received=repr(arguments[:80]),
        )
    return seconds


def parse_cron(cron: str) -> CronExpression:
    """Return a parsed cron expression; the text is in small letters.

    Raises:
        ConfigError: it is not a cron expression.
    """
    if cron.startswith("@") and cron not in _NICKNAMES:
        guess = suggest_spelling(cron, tuple(_NICKNAMES))
        raise ConfigError(
            f"There is no cron word {cron[:80]!r}",
            expected=f"one of {', '.join(_NICKNAMES)}",
            hint=f"{guess} Check --cron",
        )
    fields = _NICKNAMES.get(cron, cron).split()
    if len(fields) != 5:
        raise ConfigError(
            "A cron expression has five fields: minute, hour, day of the month, month, weekday",
            expected="one such as '0 3 * * 1'",
            received=f"{len(fields)} in {cron[:80]!r}",
            hint="Put it into quotes, so that the shell leaves `*` alone",
        )
    minutes, hours, days, months, weekdays = (
        _parse_field(text, name, least, most, names)
        for text, (name, least, most, names) in zip(
            fields,
            (
                ("minute", 0, 59, {}),
                ("hour", 0, 23, {}),
                ("day of the month", 1, 31, {}),
                ("month", 1, 12, _MONTHS),
                ("weekday", 0, 7, _WEEKDAYS),
            ),
            strict=True,
        )
    )
    either = not fields[2].startswith("*") and not fields[4].startswith("*")
    weekdays = {number % 7 for number in weekdays}
    return CronExpression(
        tuple(sorted(minutes)),
        tuple(sorted(hours)),
        frozenset(days),
        frozenset(months),
        frozenset(weekdays),
        either,
    )


def _parse_field(text: str, name: str, least: int, most: int, names: Mapping[str, int]) -> set[int]:
    """Return the numbers of one field."""
    found: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if (
            match is None
            or (match[1] == "*" and match[2])
            or (match[3] and match[1] != "*" and not match[2])
        ):
            raise _make_field_error(part, name, least, most, names)
        low = least if match[1] == "*" else _parse_number(match[1], names)
        high = (
            (6 if most == 7 else most)
            if match[1] == "*"
            else _parse_number(match[2] or match[1], names)
        )
        if match[2] == "sun":  # `fri-sun`
            high = 7
        step = int(match[3] or 1)
        if not (least <= low <= high <= most and 1 <= step <= most):
            raise _make_field_error(part, name, least, most, names)
        found.update(range(low, high + 1, step))
    return found


def _parse_number(word: str, names: Mapping[str, int]) -> int:
    """Return the number that a part of a field means; -1 for none."""
    return int(word[:9]) if word.isdecimal() else names.get(word, -1)


def _make_field_error(
    part: str, name: str, least: int, most: int, names: Mapping[str, int]
) -> ConfigError:
    spelled = f" or {', '.join(names)}" if names else ""
    return ConfigError(
        f"The {name} of the cron expression is not understood",
        expected=f"numbers from {least} to {most}{spelled}, as *, 1, 1-5, */2, 1-5/2 or several"
        " with commas between",
        received=repr(part[:80]),
        hint="Check --cron",
    )


def _check_has_run_times(parsed: CronExpression, cron: str) -> None:
    if not parsed.matches_either_day and not any(
        min(parsed.days) <= _MAX_DAYS[month - 1] for month in parsed.months
    ):
        raise ConfigError(
            "The cron expression never comes",
            expected="a day of the month that one of its months has",
            received=repr(cron),
            hint="Check --cron",
        )


# -- run times -------------------------------------------------------------------------------------


def find_next_run_time(timing: Timing, moment: datetime) -> datetime | None:
    """Return the first run time after a moment, in UTC.

    None where there is none, or the calendar ends before it.

    Args:
        timing: of the schedule.
        moment: with a time zone.
    """
    return next(_iterate_forever(timing, moment), None)


def iterate_run_times(timing: Timing, after: datetime, until: datetime) -> Iterator[datetime]:
    """Yield the run times with `after` < due <= `until`, in UTC, in order.

    A year of minutes takes about a second.

    Args:
        timing: of the schedule.
        after: with a time zone, not itself due.
        until: with a time zone.
    """
    for run_time in _iterate_forever(timing, after):
        if run_time > until:
            return
        yield run_time


def compute_start_time(timing: Timing, name: str, run_time: datetime) -> datetime:
    """Return the start of a scheduled run: its run time, or later by a constant jitter.

    The jitter ends before the next run time.

    Args:
        timing: of the schedule.
        name: of the schedule, so that two at the same time start at different ones.
        run_time: in UTC.
    """
    if not timing.jitter_seconds:
        return run_time
    following = find_next_run_time(timing, run_time)
    room = (
        timing.jitter_seconds
        if following is None
        else min(timing.jitter_seconds, int((following - run_time).total_seconds()) - 1)
    )
    digest = hashlib.sha256(f"{name} {run_time:%Y%m%dT%H%M%SZ}".encode()).digest()
    return run_time + timedelta(seconds=int.from_bytes(digest[:8]) % (room + 1))


def describe_timing(timing: Timing) -> str:
    """Return a timing as text, such as `cron 0 3 * * 1, Europe/Madrid` or `every 6h`."""
    if not timing.has_run_times:
        return "when another engine asks"
    when = (
        f"cron {timing.cron}, {timing.timezone}"
        if timing.cron
        else f"every {_format_interval(timing.every_seconds)}"
    )
    return (
        f"{when}, up to {_format_interval(timing.jitter_seconds)} later"
        if timing.jitter_seconds
        else when
    )


def _format_interval(seconds: int) -> str:
    unit, size = next(item for item in _UNITS.items() if seconds % item[1] == 0)
    return f"{seconds // size}{unit}"


def _iterate_forever(timing: Timing, after: datetime) -> Iterator[datetime]:
    """Yield the run times after a moment without end, or until the calendar ends."""
    after = after.astimezone(UTC)
    if not timing.has_run_times:
        return
    if timing.cron:
        yield from _iterate_cron(
            parse_cron(timing.cron), ZoneInfo(timing.timezone), after.replace(tzinfo=None)
        )
        return
    step = timedelta(seconds=timing.every_seconds)
    run_time = _EPOCH + ((after - _EPOCH) // step) * step
    while run_time <= datetime.max.replace(tzinfo=UTC) - step:
        run_time += step
        yield run_time


def _iterate_cron(cron: CronExpression, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
    """Yield in order what the dates have.

    Where clocks go back over midnight, a date ends after the next has begun.

    Args:
        cron: the expression.
        zone: whose wall clock it means.
        after: in UTC, without a time zone.
    """
    waiting: set[datetime] = set()
    for midnight in _iterate_midnights(cron, after - 2 * _DAY):  # no zone is a day away from UTC
        ready = {run_time for run_time in waiting if run_time < midnight - _DAY}
        yield from (run_time.replace(tzinfo=UTC) for run_time in sorted(ready) if run_time > after)
        waiting = (waiting - ready) | set(_list_run_times_of_date(cron, zone, midnight))
        after = max(after, *ready) if ready else after  # what two dates share is due once
    yield from (run_time.replace(tzinfo=UTC) for run_time in sorted(waiting) if run_time > after)


def _iterate_midnights(cron: CronExpression, moment: datetime) -> Iterator[datetime]:
    """Yield the midnights that begin the dates of an expression, as the wall clock shows them."""
    last = date.max - 3 * _DAY
    day = max(moment.date(), date.min)
    while day < last:
        if cron.matches_date(day):
            yield datetime.combine(day, time())
        later = day + _DAY
        day = later if day.month in cron.months or later.day == 1 else _get_next_month(day)


def _get_next_month(day: date) -> date:
    return (
        date(day.year + day.month // 12, day.month % 12 + 1, 1)
        if (day.year, day.month) < (9999, 12)
        else date.max
    )


def _list_run_times_of_date(
    cron: CronExpression, zone: ZoneInfo, midnight: datetime
) -> list[datetime]:
    """Return the run times of one date, in UTC without a time zone."""
    walls = [
        midnight + timedelta(hours=hour, minutes=minute)
        for hour in cron.hours
        for minute in cron.minutes
    ]
    offset = _get_offset(zone, midnight, fold=0)
    if offset == _get_offset(zone, midnight + _DAY, fold=1):  # the clocks do not change
        return [wall - offset for wall in walls]
    return [
        instant
        for wall in walls
        for instant in _find_instants(wall, zone, every_hour=cron.every_hour)
    ]


def _find_instants(wall: datetime, zone: ZoneInfo, *, every_hour: bool) -> list[datetime]:
    """Return the instants of a wall-clock time, by the rules at the top."""
    first, second = (wall - _get_offset(zone, wall, fold) for fold in (0, 1))
    if _get_wall_time(zone, first) == wall:
        return [first, second] if every_hour else [first]
    return [] if every_hour else [_find_end_of_gap(zone, second, first)]


def _find_end_of_gap(zone: ZoneInfo, before: datetime, after: datetime) -> datetime:
    """Return the first instant with the new offset, between two instants in UTC.

    Args:
        zone: whose clocks change.
        before: an instant before the change.
        after: an instant after the change, or at it.
    """
    old = _get_wall_time(zone, before) - before
    while after - before > timedelta(seconds=1):
        middle = before + timedelta(seconds=(after - before) // timedelta(seconds=2))
        before, after = (
            (middle, after) if _get_wall_time(zone, middle) - middle == old else (before, middle)
        )
    return after


def _get_offset(zone: ZoneInfo, wall: datetime, fold: int) -> timedelta:
    return wall.replace(tzinfo=zone, fold=fold).utcoffset() or timedelta()


def _get_wall_time(zone: ZoneInfo, instant: datetime) -> datetime:
    """Return what the clock shows at an instant in UTC."""
    return instant.replace(tzinfo=UTC).astimezone(zone).replace(tzinfo=None)
