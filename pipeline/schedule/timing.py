"""When a schedule is due: a cron expression in a time zone, or every so many seconds.

Pure functions; no clock of their own.

    minute hour day-of-month month weekday      numbers, names (mon, jan), *, lists 1,15, ranges
    1-5, steps */10 and 8-18/2
    @hourly @daily @midnight @weekly @monthly @yearly @annually

What cron means is meant: weekdays 0 and 7 are Sunday, 1 is Monday; where the day of the month and
the weekday are both restricted, either is enough, and one that begins with `*`, such as `*/2`, is
not a restriction in this sense.

When clocks change:

* An expression with an hour of its own (`30 2 * * *`) is due once for each of its wall-clock times.
  One that comes twice is due at its
  first occurrence; one that is skipped is due at the first instant after the gap. Several that fall
  on one instant are one run time.
* An expression for every hour (`*/15 * * * *`, `0 * * * *`) is due whenever the clock shows such a
  minute: in a repeated hour again, in a
  skipped one not at all, so that it goes on every quarter of an hour, or every hour, of real time.

An interval counts its multiples from 1970-01-01T00:00Z, so that run times do not depend on when
somebody started it: 1w comes on Thursdays.
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
    """When a schedule is due; made by `timing_of`.

    Without `cron` and `every_seconds` it never is: another engine has the clock.

    Attributes:
        cron: five fields, or a word such as @daily; empty for an interval.
        every_seconds: the interval; 0 for a cron expression.
        timezone: whose wall clock `cron` means, an IANA name.
        jitter_seconds: each start is up to so much later than it is due.
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
    """A cron expression: which minutes and hours, and on which dates."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]  # 0 is Sunday
    either: bool  # a day of the month or a weekday is enough

    @property
    def every_hour(self) -> bool:
        """Whether it is for every hour of the day."""
        return len(self.hours) == 24

    def has(self, day: date) -> bool:
        """Return whether it is due on a day."""
        of_month, of_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return day.month in self.months and (
            of_month or of_week if self.either else of_month and of_week
        )


# -- from words ------------------------------------------------------------------------------------


def parse_timing(cron: str, every: str, timezone: str, jitter: str = "") -> Timing:
    """Return when a schedule is due, from the words of a command line.

    Exactly one of `cron` and `every` is given.

    Args:
        cron: such as `0 3 * * 1`.
        every: a whole number and one of s, m, h, d, w, such as `6h`.
        timezone: such as `Europe/Madrid`.
        jitter: as `every`, or empty for none.

    Raises:
        ConfigError: one of them is not understood, or the expression never comes.
    """
    cron, every = " ".join(cron.lower().split()), every.strip()
    if bool(cron) == bool(every):
        received = "both" if cron else "neither"
        raise ConfigError(
            "A schedule needs one timing",
            expected="either --cron, such as --cron '0 3 * * 1', or --every, such as --every 6h",
            received=received,
        )
    _check_zone(timezone)
    if cron:
        _check_comes(parse_cron(cron), cron)
    jitter_seconds = _seconds(jitter, "--jitter", least=0) if jitter.strip() else 0
    return Timing(cron, _seconds(every, "--every") if every else 0, timezone, jitter_seconds)


def _check_zone(timezone: str) -> None:
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        guess = suggest_spelling(timezone, tuple(sorted(available_timezones())))
        raise ConfigError(
            f"There is no time zone {timezone[:80]!r}",
            expected="an IANA name, such as Europe/Madrid, or UTC",
            hint=f"{guess} Check --timezone",
        ) from error


def _seconds(arguments: str, option: str, least: int = 1) -> int:
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
    """Return what a cron expression in small letters means.

    Raises:
        ConfigError: it is none.
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
        _field(text, name, least, most, names)
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


def _field(text: str, name: str, least: int, most: int, names: Mapping[str, int]) -> set[int]:
    """Return the numbers of one field."""
    found: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if (
            match is None
            or (match[1] == "*" and match[2])
            or (match[3] and match[1] != "*" and not match[2])
        ):
            raise _not_a_field(part, name, least, most, names)
        low = least if match[1] == "*" else _number(match[1], names)
        high = (
            (6 if most == 7 else most) if match[1] == "*" else _number(match[2] or match[1], names)
        )
        if match[2] == "sun":  # `fri-sun`
            high = 7
        step = int(match[3] or 1)
        if not (least <= low <= high <= most and 1 <= step <= most):
            raise _not_a_field(part, name, least, most, names)
        found.update(range(low, high + 1, step))
    return found


def _number(word: str, names: Mapping[str, int]) -> int:
    """Return the number that a word of a field is; -1 for none."""
    return int(word[:9]) if word.isdecimal() else names.get(word, -1)


def _not_a_field(
    part: str, name: str, least: int, most: int, names: Mapping[str, int]
) -> ConfigError:
    spelled = f" or {', '.join(names)}" if names else ""
    return ConfigError(
        f"The {name} of the cron expression is not understood",
        expected=f"numbers from {least} to {most}{spelled}, as *, 1, 1-5, */2, 1-5/2 or several with"
        " commas between",
        received=repr(part[:80]),
        hint="Check --cron",
    )


def _check_comes(parsed: CronExpression, cron: str) -> None:
    if not parsed.either and not any(
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
    """Return when a scheduled run starts: when it is due, or later by its jitter, which is always the same and ends before the next is due.

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
    """Return a timing for people, such as `cron 0 3 * * 1, Europe/Madrid` or `every 6h`."""
    if not timing.has_run_times:
        return "when another engine asks"
    when = (
        f"cron {timing.cron}, {timing.timezone}"
        if timing.cron
        else f"every {_words(timing.every_seconds)}"
    )
    return f"{when}, up to {_words(timing.jitter_seconds)} later" if timing.jitter_seconds else when


def _words(seconds: int) -> str:
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
    for midnight in _midnights(cron, after - 2 * _DAY):  # no zone is a day away from UTC
        ready = {run_time for run_time in waiting if run_time < midnight - _DAY}
        yield from (run_time.replace(tzinfo=UTC) for run_time in sorted(ready) if run_time > after)
        waiting = (waiting - ready) | set(_of_date(cron, zone, midnight))
        after = max(after, *ready) if ready else after  # what two dates share is due once
    yield from (run_time.replace(tzinfo=UTC) for run_time in sorted(waiting) if run_time > after)


def _midnights(cron: CronExpression, moment: datetime) -> Iterator[datetime]:
    """Yield the midnights that begin the dates of an expression, as the wall clock shows them."""
    last = date.max - 3 * _DAY
    day = max(moment.date(), date.min)
    while day < last:
        if cron.has(day):
            yield datetime.combine(day, time())
        later = day + _DAY
        day = later if day.month in cron.months or later.day == 1 else _next_month(day)


def _next_month(day: date) -> date:
    return (
        date(day.year + day.month // 12, day.month % 12 + 1, 1)
        if (day.year, day.month) < (9999, 12)
        else date.max
    )


def _of_date(cron: CronExpression, zone: ZoneInfo, midnight: datetime) -> list[datetime]:
    """Return the run times of one date, in UTC without a time zone."""
    walls = [
        midnight + timedelta(hours=hour, minutes=minute)
        for hour in cron.hours
        for minute in cron.minutes
    ]
    offset = _offset(zone, midnight, fold=0)
    if offset == _offset(zone, midnight + _DAY, fold=1):  # the clocks do not change
        return [wall - offset for wall in walls]
    return [
        instant for wall in walls for instant in _instants(wall, zone, every_hour=cron.every_hour)
    ]


def _instants(wall: datetime, zone: ZoneInfo, *, every_hour: bool) -> list[datetime]:
    """Return when a wall-clock time is due: see the rule at the top."""
    first, second = (wall - _offset(zone, wall, fold) for fold in (0, 1))
    if _wall(zone, first) == wall:
        return [first, second] if every_hour else [first]
    return [] if every_hour else [_end_of_gap(zone, second, first)]


def _end_of_gap(zone: ZoneInfo, before: datetime, after: datetime) -> datetime:
    """Return the first instant with the new offset, between one before the change and one after it or at it; all in UTC."""
    old = _wall(zone, before) - before
    while after - before > timedelta(seconds=1):
        middle = before + timedelta(seconds=(after - before) // timedelta(seconds=2))
        before, after = (middle, after) if _wall(zone, middle) - middle == old else (before, middle)
    return after


def _offset(zone: ZoneInfo, wall: datetime, fold: int) -> timedelta:
    return wall.replace(tzinfo=zone, fold=fold).utcoffset() or timedelta()


def _wall(zone: ZoneInfo, instant: datetime) -> datetime:
    """Return what the clock shows at an instant in UTC."""
    return instant.replace(tzinfo=UTC).astimezone(zone).replace(tzinfo=None)
