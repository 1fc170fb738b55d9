import re
import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.schedule.timing import (
    Timing,
    compute_start_time,
    describe_timing,
    find_next_run_time,
    iterate_run_times,
    parse_timing,
)

# An expression, and by hand the minutes, hours, days of the month, months and weekdays (0: Sunday)
# that it names; `either`: cron's or.
EXPRESSIONS = {
    "30 2 * * *": ([30], [2], range(1, 32), range(1, 13), range(7), False),
    "*/15 * * * *": ([0, 15, 30, 45], range(24), range(1, 32), range(1, 13), range(7), False),
    "7,37 * * * *": ([7, 37], range(24), range(1, 32), range(1, 13), range(7), False),
    "*/20 1-3 * * *": ([0, 20, 40], [1, 2, 3], range(1, 32), range(1, 13), range(7), False),
    "0 0 * * 7": ([0], [0], range(1, 32), range(1, 13), [0], False),
    "15 0,2,23 * * Mon-Fri": ([15], [0, 2, 23], range(1, 32), range(1, 13), [1, 2, 3, 4, 5], False),
    "59 23 31 * *": ([59], [23], [31], range(1, 13), range(7), False),
    "0 4 13 * fri": ([0], [4], [13], range(1, 13), [5], True),
    "5 8-18/5 */10 * 1": ([5], [8, 13, 18], [1, 11, 21, 31], range(1, 13), [1], False),
    "10 3 29 feb,oct sat-sun": ([10], [3], [29], [2, 10], [6, 0], True),
    "@monthly": ([0], [0], [1], range(1, 13), range(7), False),
}
OTHER_ZONES = ("America/New_York", "Africa/Casablanca", "Asia/Kathmandu")
ZONES = ("Europe/Madrid", "Australia/Lord_Howe", *OTHER_ZONES)


def utc(*parts):
    return datetime(*parts, tzinfo=UTC)


def clock(zone, start, minutes, block):
    """What the clock on the wall shows in each minute of UTC: minutes from UTC, looked up once a
    block."""
    known = [
        (start + timedelta(minutes=int(at))).astimezone(ZoneInfo(zone)).utcoffset()
        // timedelta(minutes=1)
        for at in range(0, minutes, block)
    ]
    return np.repeat(np.asarray(known), block)[:minutes]


def walked(expression, offset, start):
    """Walk minute by minute of real time, and look at the clock: the run times, as minutes from the
    start."""
    minutes, hours, days, months, weekdays, either = EXPRESSIONS[expression]

    def shown(wall):
        stamp = np.datetime64(start.replace(tzinfo=None), "m") + wall
        date = stamp.astype("datetime64[D]")
        day = (date - stamp.astype("datetime64[M]").astype("datetime64[D]")).astype(int) + 1
        of_month = np.isin(day, list(days))
        of_week = np.isin((date.astype(int) + 4) % 7, list(weekdays))
        minute = (stamp - date.astype("datetime64[m]")).astype(int)
        month = stamp.astype("datetime64[M]").astype(int) % 12 + 1
        of_day = (of_month | of_week) if either else (of_month & of_week)
        return (
            np.isin(minute % 60, list(minutes))
            & np.isin(minute // 60, list(hours))
            & np.isin(month, list(months))
            & of_day
        )

    wall = np.arange(len(offset)) + offset
    run_time = shown(wall)
    if len(list(hours)) == 24:
        return np.flatnonzero(run_time)
    for at in np.flatnonzero(np.diff(offset)) + 1:
        moved = offset[at] - offset[at - 1]
        if moved > 0 and shown(np.arange(wall[at] - moved, wall[at])).any():
            run_time[at] = True  # a time that the clock left out
        if moved < 0:
            run_time[at : at - moved] = False  # shown before
    return np.flatnonzero(run_time)


def compare(expression, zone, start, minutes, block):
    expected = walked(expression, clock(zone, start, minutes, block), start)
    timing = parse_timing(expression, "", zone)
    found = [
        (run_time - start) // timedelta(minutes=1)
        for run_time in iterate_run_times(timing, start, start + timedelta(minutes=minutes - 1))
    ]
    assert found == [at for at in expected.tolist() if at > 0], (expression, zone)
    return len(found)


@pytest.mark.parametrize(
    "zone",
    [
        "Europe/Madrid",
        "Australia/Lord_Howe",  # by half an hour
        *(pytest.param(zone, marks=pytest.mark.slow) for zone in OTHER_ZONES),
    ],
)
def test_a_year_of_due_times_are_those_of_a_walk_along_the_clock(zone):
    assert all(
        compare(expression, zone, utc(2026, 1, 1), 366 * 1440, 15) >= 7
        for expression in EXPRESSIONS
    )


@pytest.mark.slow
@pytest.mark.parametrize("zone", ZONES)
def test_ten_years_of_due_times_are_those_of_a_walk_along_the_clock(zone):
    assert all(
        compare(expression, zone, utc(2025, 12, 31), 3654 * 1440, 15) >= 70
        for expression in EXPRESSIONS
    )


@pytest.mark.parametrize(
    ("zone", "start"),
    [
        ("Pacific/Apia", utc(2011, 12, 26)),  # a whole day left out
        ("America/St_Johns", utc(2009, 10, 28)),  # from 0:01 back to 23:01 of the day before
        ("America/St_Johns", utc(2010, 3, 10)),  # from 0:01 on to 1:01
        ("America/Nuuk", utc(2024, 10, 24)),  # from 0:00 back to 23:00
        ("America/Havana", utc(2024, 3, 7)),  # from 0:00 on to 1:00
        ("Antarctica/Troll", utc(2024, 10, 24)),  # two hours
    ],
)
def test_strange_changes_of_clocks(zone, start):
    for expression in EXPRESSIONS:
        compare(expression, zone, start, 8 * 1440, 1)


def due_texts(expression, zone, after, until):
    return [
        run_time.strftime("%d %H:%M")
        for run_time in iterate_run_times(parse_timing(expression, "", zone), after, until)
    ]


def test_the_rule_for_clocks_that_change_by_example():
    spring, autumn = (
        (utc(2026, 3, 28, 12), utc(2026, 3, 29, 12)),
        (
            utc(2026, 10, 24, 12),
            utc(2026, 10, 25, 12),
        ),
    )
    assert due_texts("30 2 * * *", "Europe/Madrid", *spring) == [
        "29 01:00"
    ]  # 3:00, when 2:30 does not exist
    assert due_texts("30 2 * * *", "Europe/Madrid", *autumn) == ["25 00:30"]  # the first 2:30
    assert due_texts("*/20 2 * * *", "Europe/Madrid", *spring) == ["29 01:00"]
    assert due_texts(
        "30 * * * *", "Europe/Madrid", utc(2026, 10, 24, 23), utc(2026, 10, 25, 2)
    ) == ["24 23:30", "25 00:30", "25 01:30"]
    assert due_texts("30 * * * *", "Europe/Madrid", utc(2026, 3, 29, 0), utc(2026, 3, 29, 2)) == [
        "29 00:30",
        "29 01:30",
    ]


def test_an_interval_counts_from_1970_whoever_starts_it_when():
    timing = parse_timing("", "6h", "Europe/Madrid")
    assert find_next_run_time(timing, utc(2026, 11, 27, 5, 59, 59, 999_999)) == utc(2026, 11, 27, 6)
    assert find_next_run_time(timing, utc(2026, 11, 27, 6)) == utc(2026, 11, 27, 12)
    assert (
        find_next_run_time(parse_timing("", "2w", "UTC"), utc(2026, 11, 27)).timestamp()
        % (14 * 86_400)
        == 0
    )
    assert list(
        iterate_run_times(parse_timing("", "1s", "UTC"), utc(2026, 1, 1), utc(2026, 1, 1, 0, 0, 2))
    ) == [
        utc(2026, 1, 1, 0, 0, 1),
        utc(2026, 1, 1, 0, 0, 2),
    ]


def test_due_is_strictly_after_and_in_utc():
    timing = parse_timing("0 3 * * 1", "", "Europe/Madrid")
    run_time = find_next_run_time(timing, datetime(2026, 11, 27, 12, tzinfo=ZoneInfo("Asia/Tokyo")))
    assert run_time == utc(2026, 11, 30, 2)
    assert run_time.tzinfo is UTC
    assert find_next_run_time(timing, run_time) == utc(2026, 12, 7, 2)
    assert list(iterate_run_times(timing, run_time, run_time)) == []


def test_rare_days_come_and_the_calendar_ends():
    assert find_next_run_time(parse_timing("0 0 29 2 *", "", "UTC"), utc(2096, 3, 1)) == utc(
        2104, 2, 29
    )
    assert find_next_run_time(parse_timing("0 0 29 2 */6", "", "UTC"), utc(2096, 3, 1)) == utc(
        2116, 2, 29
    )  # on a Saturday or Sunday
    assert find_next_run_time(parse_timing("0 0 29 2 *", "", "UTC"), utc(9998, 1, 1)) is None
    assert find_next_run_time(parse_timing("", "1d", "UTC"), utc(9999, 12, 31, 12)) is None
    assert find_next_run_time(Timing(cron="0 0 30 2 *"), utc(2026, 1, 1)) is None


def test_a_year_of_minutes_takes_seconds():
    begin = time.perf_counter()
    assert (
        sum(
            1
            for _ in iterate_run_times(
                parse_timing("* * * * *", "", "Europe/Madrid"), utc(2026, 1, 1), utc(2027, 1, 1)
            )
        )
        == 525_600
    )
    assert time.perf_counter() - begin < 10


def test_jitter_is_always_the_same_and_ends_before_the_next_slot():
    timing = parse_timing("", "1m", "UTC", "1h")
    run_times = list(iterate_run_times(timing, utc(2026, 1, 1), utc(2026, 1, 1, 12)))
    delays = [
        (compute_start_time(timing, "main", run_time) - run_time).total_seconds()
        for run_time in run_times
    ]
    assert delays == [
        (compute_start_time(timing, "main", run_time) - run_time).total_seconds()
        for run_time in run_times
    ]
    assert 0 <= min(delays) < 3
    assert 56 < max(delays) < 60
    assert delays != [
        (compute_start_time(timing, "other", run_time) - run_time).total_seconds()
        for run_time in run_times
    ]
    assert (
        compute_start_time(parse_timing("", "1s", "UTC", "1h"), "main", run_times[0])
        == run_times[0]
    )
    assert compute_start_time(parse_timing("", "1m", "UTC"), "main", run_times[0]) == run_times[0]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("0 3 * * 1", "", "Europe/Madrid"), "cron 0 3 * * 1, Europe/Madrid"),
        (("", "90m", "UTC"), "every 90m"),
        (("", "120m", "UTC", "300s"), "every 2h, up to 5m later"),
        (("", "7d", "UTC"), "every 1w"),
        (("  @Weekly ", "", "UTC", "0s"), "cron @weekly, UTC"),
    ],
)
def test_a_timing_in_words(arguments, text):
    assert describe_timing(parse_timing(*arguments)) == text


def test_without_a_timing_nothing_is_due():
    assert find_next_run_time(Timing(), utc(2026, 1, 1)) is None
    assert list(iterate_run_times(Timing(), utc(2026, 1, 1), utc(2027, 1, 1))) == []
    assert describe_timing(Timing()) == "when another engine asks"
    assert not Timing().has_run_times
    assert parse_timing("", "6h", "UTC").has_run_times


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("", "", "UTC"), "one timing.*neither"),
        (("* * * * *", "6h", "UTC"), "one timing.*both"),
        (
            ("0 3 * * 1", "", "Europe/Madird"),
            "no time zone 'Europe/Madird'.*Did you mean `Europe/Madrid`",
        ),
        (("0 3 * * 1", "", "Europe"), "no time zone 'Europe'"),
        (("0 3 * * 1", "", ""), "no time zone"),
        (("0 3 * *", "", "UTC"), "five fields.*Received 4"),
        (("0 0 3 * * 1", "", "UTC"), "five fields.*Received 6"),
        (("60 3 * * 1", "", "UTC"), "The minute .*from 0 to 59.*'60'"),
        (("0 24 * * 1", "", "UTC"), "The hour .*from 0 to 23.*'24'"),
        (("0 0 0 * *", "", "UTC"), "The day of the month .*'0'"),
        (("0 0 1 13 *", "", "UTC"), "The month .*'13'"),
        (("0 0 1 * 8", "", "UTC"), "The weekday .*'8'"),
        (("0 0 1 * monday", "", "UTC"), "The weekday .*sun, mon.*'monday'"),
        (("0 0 5-1 * *", "", "UTC"), "The day of the month .*'5-1'"),
        (("*/0 * * * *", "", "UTC"), r"The minute .*'\*/0'"),
        (("*/99 * * * *", "", "UTC"), r"The minute .*'\*/99'"),
        (("5/10 * * * *", "", "UTC"), "The minute .*'5/10'"),
        (("1,,2 * * * *", "", "UTC"), "The minute .*''"),
        (("*-5 * * * *", "", "UTC"), "The minute"),
        (("-1 * * * *", "", "UTC"), "The minute"),
        (("\u0663 * * * *", "", "UTC"), "The minute"),
        (("0 0 l * *", "", "UTC"), "The day of the month"),
        (("0 0 30 2 *", "", "UTC"), "never comes.*'0 0 30 2 *"),
        (("0 0 31 apr,jun *", "", "UTC"), "never comes"),
        (("@dayly", "", "UTC"), "no cron word '@dayly'.*Did you mean `@daily`"),
        (("", "6", "UTC"), "--every is not understood.*'6'"),
        (("", "0h", "UTC"), "--every"),
        (("", "1.5h", "UTC"), "--every"),
        (("", "9999w", "UTC"), "--every.*366d"),
        (("", "6h", "UTC", "-5m"), "--jitter"),
        (("", "6h", "UTC", "soon"), "--jitter.*'soon'"),
    ],
)
def test_what_is_not_understood_is_one_sentence(arguments, complaint):
    with pytest.raises(ConfigError) as refused:
        parse_timing(*arguments)
    assert re.search(complaint, str(refused.value)), refused.value
    assert "\n" not in str(refused.value)


def test_what_never_comes_by_date_comes_by_weekday():
    assert find_next_run_time(parse_timing("0 0 30 2 1", "", "UTC"), utc(2026, 1, 1)) == utc(
        2026, 2, 2
    )


def test_sunday_has_two_numbers_and_a_range_may_end_with_it():
    start, end = utc(2026, 1, 1), utc(2026, 3, 1)
    sundays = list(iterate_run_times(parse_timing("0 0 * * 0", "", "UTC"), start, end))
    assert [run_time.isoweekday() for run_time in sundays] == [7] * 9
    assert sundays == list(iterate_run_times(parse_timing("0 0 * * 7", "", "UTC"), start, end))
    weekends = list(iterate_run_times(parse_timing("0 0 * * sat-sun", "", "UTC"), start, end))
    assert {run_time.isoweekday() for run_time in weekends} == {6, 7}
    assert weekends == list(iterate_run_times(parse_timing("0 0 * * 6-7", "", "UTC"), start, end))
