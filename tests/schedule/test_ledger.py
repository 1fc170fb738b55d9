import contextlib
import itertools
import json
import os
import random
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import psutil
import pytest

from pipeline.errors import BusyError, ConfigError, PipelineError
from pipeline.retrain.scheduled_run_key import format_scheduled_run_key, parse_scheduled_run_key
from pipeline.schedule import ledger_file
from pipeline.schedule.ledger import Ledger
from pipeline.schedule.owners import (
    describe_owner,
    identify_process,
    identify_this_process,
    is_owner_alive,
)
from pipeline.schedule.records import FINAL_STATES
from pipeline.schedule.timing import compute_start_time, parse_timing

START = datetime(2026, 11, 27, 12, 0, 0, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
ME = identify_this_process()
DEAD = ME.rpartition("/")[0] + "/1"  # of this pid, started at another time
ZONES = ["Europe/Madrid", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca"]


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, time=START):
        self.time = time

    def __call__(self):
        return self.time

    def move(self, **by):
        self.time += timedelta(**by)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ledger(tmp_path, clock):
    """A ledger with the schedule `main`, due every hour."""
    made = Ledger(tmp_path / "schedule.db", clock)
    made.put_schedule("main", parse_timing("", "1h", "UTC"), ("--recipe", "folder"))
    return made


def states(ledger, name="main"):
    return [
        scheduled_run.state
        for scheduled_run in reversed(ledger.list_latest_scheduled_runs(name, limit=1000))
    ]


def run_one(ledger, owner=ME, state="ran", **result):
    scheduled_run = ledger.begin_attempt(ledger.claim_scheduled_run(owner))
    assert ledger.finish_scheduled_run(scheduled_run, state, "because", result)
    return ledger.find_scheduled_run(scheduled_run.key)


# -- schedules -------------------------------------------------------------------------------------


def test_a_question_makes_no_file(tmp_path):
    ledger = Ledger(tmp_path / "none" / "schedule.db")
    assert (
        ledger.list_schedules(),
        ledger.list_unfinished_scheduled_runs(),
        ledger.list_latest_scheduled_runs(),
        ledger.list_unnotified_scheduled_runs(),
        ledger.find_scheduled_run("main/20261127T030000Z"),
    ) == (
        [],
        [],
        [],
        [],
        None,
    )
    with pytest.raises(ConfigError, match=r"no schedule 'main'.*there is none yet"):
        ledger.find_schedule("main")
    assert list(tmp_path.iterdir()) == []


def test_a_schedule_comes_back_as_it_was_put(ledger):
    schedule = ledger.find_schedule("main")
    assert schedule == ledger.list_schedules()[0]
    assert (schedule.name, schedule.timing, schedule.arguments) == (
        "main",
        parse_timing("", "1h", "UTC"),
        ("--recipe", "folder"),
    )
    assert (schedule.created, schedule.recorded_until, schedule.paused) == (START, START, False)


def test_putting_the_same_again_loses_nothing(ledger, clock):
    clock.move(hours=3)
    assert (
        ledger.put_schedule(
            "main", parse_timing("", "1h", "UTC"), ("--recipe", "digits")
        ).recorded_until
        == START
    )
    ledger.record_run_times()
    assert states(ledger) == ["coalesced", "coalesced", "pending"]
    assert ledger.find_schedule("main").arguments == ("--recipe", "digits")


def test_a_new_timing_counts_from_now_and_what_waits_of_the_old_one_is_skipped(ledger, clock):
    clock.move(hours=2, minutes=30)
    ledger.put_schedule("main", parse_timing("15 * * * *", "", "UTC"))
    assert ledger.list_latest_scheduled_runs(limit=1)[0].why == "the schedule was changed"
    assert states(ledger) == ["coalesced", "skipped"]
    clock.move(hours=1)
    ledger.record_run_times()
    assert [
        scheduled_run.run_time for scheduled_run in ledger.list_unfinished_scheduled_runs()
    ] == [START + timedelta(hours=3, minutes=15)]


def test_a_new_schedule_may_count_from_before(tmp_path, clock):
    ledger = Ledger(tmp_path / "schedule.db", clock)
    ledger.put_schedule("main", parse_timing("", "1h", "UTC"), since=START - timedelta(minutes=1))
    ledger.record_run_times()
    assert [
        scheduled_run.run_time for scheduled_run in ledger.list_unfinished_scheduled_runs()
    ] == [START]


def test_pausing_skips_and_resuming_goes_on_with_the_next(ledger, clock):
    clock.move(hours=1)
    ledger.record_run_times()
    ledger.pause_schedule("main")
    clock.move(hours=2)
    ledger.record_run_times()
    clock.move(hours=1)
    ledger.resume_schedule("main")
    clock.move(hours=1)
    ledger.record_run_times()
    assert states(ledger) == ["skipped"] * 4 + ["pending"]
    assert {
        scheduled_run.why
        for scheduled_run in ledger.list_latest_scheduled_runs()
        if scheduled_run.state == "skipped"
    } == {"paused"}


def test_a_manual_slot_of_a_paused_schedule_runs(ledger):
    ledger.pause_schedule("main")
    ledger.request_scheduled_run("main")
    assert run_one(ledger).kind == "manual"


def test_what_has_begun_waits_while_its_schedule_is_paused(ledger, clock):
    clock.move(hours=1)
    ledger.record_run_times()
    scheduled_run = ledger.begin_attempt(ledger.claim_scheduled_run(ME))
    ledger.release_scheduled_run(scheduled_run, "stopped")
    ledger.pause_schedule("main")
    assert ledger.claim_scheduled_run(ME) is None
    ledger.resume_schedule("main")
    assert ledger.claim_scheduled_run(ME).key == scheduled_run.key


def test_removing_keeps_the_history_and_lets_what_runs_end(ledger, clock):
    clock.move(hours=1)
    ledger.record_run_times()
    scheduled_run = ledger.claim_scheduled_run(ME)
    clock.move(hours=1)
    ledger.request_scheduled_run("main")
    ledger.remove_schedule("main")
    assert states(ledger) == ["claimed", "skipped", "skipped"]
    assert ledger.finish_scheduled_run(scheduled_run, "ran", "")
    clock.move(hours=5)
    ledger.record_run_times()
    assert states(ledger) == ["ran", "skipped", "skipped"]
    assert ledger.list_schedules() == []


def test_what_is_let_go_after_its_schedule_was_removed_is_not_open_for_ever(ledger, clock):
    ledger.request_scheduled_run("main")
    scheduled_run = ledger.begin_attempt(ledger.claim_scheduled_run(ME))
    ledger.remove_schedule("main")
    ledger.release_scheduled_run(scheduled_run, "stopped")
    assert [
        (scheduled_run.state, scheduled_run.why)
        for scheduled_run in ledger.list_latest_scheduled_runs()
    ] == [("skipped", "the schedule was removed")]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "-x", ".hidden", "a b", "ä", "x" * 65, "a\n"]
)
def test_a_name_that_cannot_name_a_folder_is_refused(ledger, name):
    with pytest.raises(ConfigError, match="cannot name a folder"):
        ledger.put_schedule(name, parse_timing("", "1h", "UTC"))


@pytest.mark.parametrize(
    "verb",
    [
        "pause_schedule",
        "resume_schedule",
        "remove_schedule",
        "request_scheduled_run",
        "find_schedule",
    ],
)
def test_a_schedule_that_is_not_there_is_one_sentence(ledger, verb):
    with pytest.raises(
        ConfigError, match=r"no schedule 'mian'.*Did you mean `main`.*alexnet schedule list"
    ):
        getattr(ledger, verb)("mian")


def test_keys(ledger):
    scheduled_run = ledger.request_scheduled_run("main")
    assert scheduled_run.key == "main/20261127T120000Z" == format_scheduled_run_key("main", START)
    assert parse_scheduled_run_key(scheduled_run.key) == ("main", START)
    assert ledger.find_scheduled_run(scheduled_run.key) == scheduled_run
    for wrong in ("main", "main/", "main/2026", "../20261127T120000Z", "/20261127T120000Z"):
        with pytest.raises(ConfigError, match="is not the key of a scheduled run"):
            parse_scheduled_run_key(wrong)


# -- scheduled runs --------------------------------------------------------------------------------


def test_of_several_missed_slots_the_last_one_runs(ledger, clock):
    clock.move(hours=5, minutes=1)
    ledger.record_run_times()
    assert states(ledger) == ["coalesced"] * 4 + ["pending"]
    assert ledger.list_latest_scheduled_runs()[-1].why == "main/20261127T170000Z stands for it"
    ran = run_one(
        ledger,
        outcome="promoted",
        version=4,
        run_id="r",
        run_url="http://r",
        page="p.html",
        other="x",
    )
    assert (ran.state, ran.why, ran.outcome, ran.version, ran.run_id, ran.run_url, ran.page) == (
        "ran",
        "because",
        "promoted",
        "4",
        "r",
        "http://r",
        "p.html",
    )
    assert (ran.attempts, ran.started, ran.ended, ran.owner) == (1, clock.time, clock.time, ME)
    ledger.record_run_times()
    assert ledger.claim_scheduled_run(ME) is None


def test_a_clock_that_goes_back_doubles_nothing(ledger, clock):
    clock.move(hours=2)
    ledger.record_run_times()
    run_one(ledger)
    clock.move(hours=-2)
    ledger.record_run_times()
    clock.move(hours=2, minutes=1)
    ledger.record_run_times()
    assert states(ledger) == ["coalesced", "ran"]


def test_one_at_a_time(ledger, clock):
    clock.move(hours=1)
    ledger.record_run_times()
    first = ledger.claim_scheduled_run(ME)
    ledger.put_schedule("other", parse_timing("", "1h", "UTC"))
    asked = ledger.request_scheduled_run("other")
    assert ledger.claim_scheduled_run(ME) is None
    assert ledger.claim_scheduled_run(ME, asked) is None
    assert ledger.claim_scheduled_run(DEAD) is None
    ledger.finish_scheduled_run(first, "ran", "")
    assert ledger.claim_scheduled_run(ME).key == asked.key


def test_the_dead_are_no_hindrance_and_their_slots_are_taken_over(ledger, clock):
    clock.move(hours=1)
    ledger.record_run_times()
    begun = ledger.begin_attempt(ledger.claim_scheduled_run(DEAD))
    ledger.request_scheduled_run("main")
    assert ledger.claim_scheduled_run(ME).kind == "manual"
    [taken] = ledger.take_over_scheduled_runs(ME)
    assert (taken.key, taken.owner, taken.attempts, taken.state) == (begun.key, ME, 1, "claimed")
    assert ledger.take_over_scheduled_runs(ME) == []
    assert not ledger.finish_scheduled_run(begun, "ran", "by a ghost")
    assert not ledger.record_heartbeat(begun)
    assert ledger.begin_attempt(begun) is None
    assert not ledger.release_scheduled_run(begun, "by a ghost")
    assert ledger.begin_attempt(taken).attempts == 2
    assert ledger.finish_scheduled_run(taken, "failed", "no")
    assert not ledger.finish_scheduled_run(taken, "ran", "too late")
    assert ledger.find_scheduled_run(taken.key).state == "failed"


def test_an_owner_on_another_host_lives_while_its_heart_beats(ledger, clock):
    ledger.request_scheduled_run("main")
    there = f"elsewhere/{os.getpid()}/boot/1"
    scheduled_run = ledger.claim_scheduled_run(there)
    clock.move(minutes=14)
    assert ledger.take_over_scheduled_runs(ME) == []
    assert ledger.record_heartbeat(scheduled_run)
    clock.move(minutes=14)
    assert ledger.take_over_scheduled_runs(ME) == []
    clock.move(minutes=2)
    assert [taken.key for taken in ledger.take_over_scheduled_runs(ME)] == [scheduled_run.key]


def test_a_released_slot_stays_itself_whatever_comes_due(ledger, clock):
    clock.move(hours=1)
    ledger.record_run_times()
    scheduled_run = ledger.begin_attempt(ledger.claim_scheduled_run(ME))
    assert ledger.release_scheduled_run(scheduled_run, "stopped")
    clock.move(hours=3)
    ledger.record_run_times()
    assert states(ledger) == ["pending", "coalesced", "coalesced", "pending"]
    assert run_one(ledger).key == scheduled_run.key
    run_one(ledger)
    assert states(ledger) == ["ran", "coalesced", "coalesced", "ran"]


def test_a_slot_that_was_claimed_and_not_begun_waits_as_before(ledger, clock):
    clock.move(hours=1)
    ledger.record_run_times()
    ledger.release_scheduled_run(ledger.claim_scheduled_run(ME), "stopped")
    clock.move(hours=1)
    ledger.record_run_times()
    assert states(ledger) == ["coalesced", "pending"]


def test_manual_slots_take_free_seconds_and_are_not_coalesced(ledger, clock):
    asked = [ledger.request_scheduled_run("main") for _ in range(3)]
    assert [scheduled_run.run_time - START for scheduled_run in asked] == [
        timedelta(seconds=number) for number in range(3)
    ]
    assert ledger.claim_scheduled_run(ME).key == asked[0].key
    clock.move(hours=2)
    ledger.record_run_times()
    assert Counter(
        scheduled_run.kind for scheduled_run in ledger.list_unfinished_scheduled_runs()
    ) == {"manual": 3, "scheduled": 1}


def test_a_manual_slot_at_a_due_time_stands_for_it(ledger, clock):
    clock.move(minutes=59, seconds=59)
    ledger.request_scheduled_run("main")
    assert ledger.request_scheduled_run("main").run_time == START + HOUR
    clock.move(seconds=2)
    ledger.record_run_times()
    assert [scheduled_run.kind for scheduled_run in ledger.list_latest_scheduled_runs()] == [
        "manual",
        "manual",
    ]


def test_a_slot_starts_after_its_jitter_unless_it_is_named(ledger, clock):
    ledger.put_schedule("late", parse_timing("0 13 * * *", "", "UTC", "2h"))
    starts = compute_start_time(ledger.find_schedule("late").timing, "late", START + HOUR)
    assert starts > START + HOUR
    ledger.remove_schedule("main")
    clock.time = starts - timedelta(seconds=1)
    ledger.record_run_times()
    assert ledger.claim_scheduled_run(ME) is None
    clock.time = starts
    assert ledger.claim_scheduled_run(ME).run_time == START + HOUR
    ledger.release_scheduled_run(ledger.list_latest_scheduled_runs()[0], "")
    clock.time = START + HOUR
    assert (
        ledger.claim_scheduled_run(ME, ledger.list_unfinished_scheduled_runs()[0]).run_time
        == START + HOUR
    )


def test_what_the_hook_was_told_is_noted_once(ledger):
    ledger.request_scheduled_run("main")
    ledger.request_scheduled_run("main")
    first = run_one(ledger, state="failed")
    assert ledger.list_unnotified_scheduled_runs() == [first]
    ledger.record_notification(first, "told")
    assert ledger.list_unnotified_scheduled_runs() == []
    assert ledger.find_scheduled_run(first.key).notification == "told"


def test_history_is_the_newest_first_and_limited(ledger, clock):
    ledger.put_schedule("other", parse_timing("", "1h", "UTC"))
    for _ in range(3):
        clock.move(hours=1)
        ledger.record_run_times()
    assert [
        (scheduled_run.schedule, scheduled_run.run_time.hour)
        for scheduled_run in ledger.list_latest_scheduled_runs(limit=3)
    ] == [
        ("main", 15),
        ("other", 15),
        ("main", 14),
    ]
    assert [
        scheduled_run.run_time.hour
        for scheduled_run in ledger.list_latest_scheduled_runs("other", limit=2)
    ] == [15, 14]


# -- ten years -------------------------------------------------------------------------------------

# By hand: minute, hours, weekdays (0: Monday).
DAILY, WEEKDAYS, TWICE = (
    ("30 2 * * *", 30, (2,), range(7)),
    ("15 2 * * mon-fri", 15, (2,), range(5)),
    ("0 1,3 * * sun", 0, (1, 3), (6,)),
)
EXPRESSIONS = dict(
    zip(ZONES, (DAILY, WEEKDAYS, ("10 2 * * *", 10, (2,), range(7)), TWICE), strict=True)
)


def expected_dues(zone, after, until):
    """Walk along the real time in steps of five minutes and look at the clock on the wall."""
    _, minute, hours, weekdays = EXPRESSIONS[zone]
    found, seen, moment, before = [], set(), after, None
    while moment <= until:
        wall = moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
        left_out = []
        if before is not None and wall - before > timedelta(minutes=5):
            left_out = [
                before + timedelta(minutes=5 * step)
                for step in range(1, (wall - before) // timedelta(minutes=5))
            ]
        run_time = [
            at
            for at in (*left_out, wall)
            if at.minute == minute
            and at.hour in hours
            and at.weekday() in weekdays
            and at not in seen
        ]
        if run_time and moment > after:
            found.append(moment)
        seen.update(run_time)
        moment, before = moment + timedelta(minutes=5), wall
    return found


def years(tmp_path, start, days, seed):
    """Several schedulers with one file and one clock, with downtimes, crashes at any point, drains
    and runs that take long."""
    rng, clock = random.Random(seed), Clock(start)  # noqa: S311 - the same each time
    ledgers = [Ledger(tmp_path / "schedule.db", clock) for _ in range(3)]
    for zone in ZONES:
        ledgers[0].put_schedule(
            zone.replace("/", "_"), parse_timing(EXPRESSIONS[zone][0], "", zone)
        )
    final, ghosts = Counter(), []
    while clock.time < start + timedelta(days=days):
        clock.move(
            minutes=rng.choice(
                (
                    1,
                    7,
                    60,
                    60 * 5,
                    60 * 11,
                    60 * 24 * rng.randint(1, 9) if rng.random() < 0.1 else 30,
                )
            )
        )
        ledger, rival = rng.sample(ledgers, 2)
        ledger.record_run_times()
        rival.record_run_times()
        owner = rng.choice((ME, ME, DEAD))
        if owner == ME:
            ledger.take_over_scheduled_runs(ME)
        scheduled_runs = [
            scheduled_run
            for scheduled_run in ledger.list_unfinished_scheduled_runs()
            if scheduled_run.state == "claimed" and scheduled_run.owner == owner == ME
        ]
        while (
            scheduled_run := scheduled_runs.pop()
            if scheduled_runs
            else ledger.claim_scheduled_run(owner)
        ) is not None:
            assert owner == DEAD or rival.claim_scheduled_run(ME) is None
            if not worked(rng, clock, (ledger, rival), scheduled_run, (final, ghosts)):
                break
        for ghost in ghosts:
            # Only while nobody has taken it over may it still record its end.
            mine = (
                ledger.find_scheduled_run(ghost.key).owner == DEAD
                and ledger.find_scheduled_run(ghost.key).state == "claimed"
            )
            if rng.random() < 0.5:
                done = ledger.finish_scheduled_run(ghost, "ran", "")
                assert done == mine
                final[ghost.key] += done
        ghosts = ghosts[-2:] if rng.random() < 0.5 else []
    ledgers[0].record_run_times()
    return ledgers[0], final, clock.time


def worked(rng, clock, ledgers, scheduled_run, told):
    """Run a claimed scheduled run, or a part of it; return whether its owner goes on."""
    (ledger, rival), (final, ghosts), chance, dead = (
        ledgers,
        told,
        rng.random(),
        scheduled_run.owner == DEAD,
    )
    if dead and chance < 0.3:
        return False  # killed after the claim
    scheduled_run = ledger.begin_attempt(scheduled_run)
    if dead and chance < 0.6:
        ghosts.append(scheduled_run)  # killed during the run; it will be heard of again
        return False
    clock.move(minutes=rng.choice((1, 20, 60 * 30)))
    rival.record_run_times()
    if chance > 0.9:
        assert ledger.release_scheduled_run(scheduled_run, "stopped")
        return False
    final[scheduled_run.key] += ledger.finish_scheduled_run(scheduled_run, "ran", "")
    final[scheduled_run.key] += rival.finish_scheduled_run(scheduled_run, "failed", "twice")
    return not dead


def check_years(tmp_path, start, days, seed):
    ledger, final, end = years(tmp_path, start, days, seed)
    everything = ledger.list_latest_scheduled_runs(limit=1_000_000)
    assert set(final.values()) <= {0, 1}  # once each
    for zone in ZONES:
        name = zone.replace("/", "_")
        scheduled_runs = sorted(
            (scheduled_run for scheduled_run in everything if scheduled_run.schedule == name),
            key=lambda scheduled_run: scheduled_run.run_time,
        )
        assert [scheduled_run.run_time for scheduled_run in scheduled_runs] == expected_dues(
            zone, start, end
        )  # none twice, none lost
        ran = {
            scheduled_run.key for scheduled_run in scheduled_runs if scheduled_run.state == "ran"
        }
        assert ran == {key for key, times in final.items() if times and key.startswith(name + "/")}
        by_key = {scheduled_run.key: scheduled_run for scheduled_run in scheduled_runs}
        for scheduled_run in scheduled_runs:
            assert scheduled_run.state in FINAL_STATES or scheduled_run.run_time > end - timedelta(
                days=30
            ), scheduled_run
            if scheduled_run.state == "coalesced":
                other = scheduled_run
                while (
                    other.state == "coalesced"
                ):  # what stands for it comes later, and is run in the end
                    assert by_key[other.why.split()[0]].run_time > other.run_time
                    other = by_key[other.why.split()[0]]
                assert other.state in ("ran", "pending", "claimed")
    return Counter(scheduled_run.state for scheduled_run in everything)


def test_months_with_changes_of_clocks_lose_and_double_nothing(tmp_path):
    counted = check_years(tmp_path, datetime(2026, 2, 20, 12, tzinfo=UTC), 60, seed=1)
    assert counted["ran"] > 60
    assert counted["coalesced"] > 5


@pytest.mark.slow
def test_ten_years_lose_and_double_nothing(tmp_path):
    counted = check_years(tmp_path, datetime(2026, 1, 1, tzinfo=UTC), 3653, seed=2)
    assert sum(counted.values()) > 10_000
    assert counted["ran"] > 5000


# -- processes -------------------------------------------------------------------------------------

CLAIMER = """
import sys, time
from pathlib import Path
from pipeline.schedule.ledger import Ledger
from pipeline.schedule.owners import identify_this_process
ledger, owner = Ledger(Path(sys.argv[1])), identify_this_process()
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    ledger.record_run_times()
    scheduled_run = ledger.claim_scheduled_run(owner)
    if scheduled_run is not None:
        print("claimed", scheduled_run.key, time.time_ns(), flush=True)
        scheduled_run = ledger.begin_attempt(scheduled_run)
        time.sleep(0.002)
        end_ns = time.time_ns()
        ended = ledger.finish_scheduled_run(scheduled_run, "ran", "")
        print("finished", scheduled_run.key, end_ns, ended, flush=True)
"""


def test_processes_that_claim_at_once_never_get_the_same_slot_nor_two_at_a_time(tmp_path):
    ledger = Ledger(tmp_path / "schedule.db")
    ledger.put_schedule("main", parse_timing("", "1s", "UTC"))
    for _ in range(60):
        ledger.request_scheduled_run("main")
    arguments = [sys.executable, "-c", CLAIMER, str(ledger.path), "3"]
    claimers = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    lines = [
        line.split()
        for claimer in claimers
        for line in claimer.communicate(timeout=60)[0].splitlines()
    ]
    assert [claimer.returncode for claimer in claimers] == [0] * 4
    claimed, finished = (
        {key: int(at) for word, key, at, *_ in lines if word == wanted}
        for wanted in ("claimed", "finished")
    )
    assert len(claimed) == sum(word == "claimed" for word, *_ in lines) >= 60
    assert {done for word, *more in lines if word == "finished" for done in more[2:]} == {"True"}
    spans = sorted((at, finished[key]) for key, at in claimed.items())
    assert all(after >= before for (_, before), (after, _) in itertools.pairwise(spans))
    assert Counter(states(ledger))["ran"] == len(claimed)


def test_processes_that_make_the_file_at_once_make_one(tmp_path):
    code = (
        "import sys; from pathlib import Path;"
        " from pipeline.schedule.timing import parse_timing;"
        " from pipeline.schedule.ledger import Ledger;"
        " Ledger(Path(sys.argv[1])).put_schedule(sys.argv[2], parse_timing('', '1h', 'UTC'))"
    )
    path = tmp_path / "new" / "schedule.db"
    makers = [
        subprocess.Popen([sys.executable, "-c", code, str(path), f"s{number}"])
        for number in range(4)
    ]
    assert [maker.wait(timeout=60) for maker in makers] == [0] * 4
    assert [schedule.name for schedule in Ledger(path).list_schedules()] == ["s0", "s1", "s2", "s3"]


def test_a_process_killed_in_a_change_has_not_made_it(ledger, tmp_path):
    code = """
import os, sys
from pathlib import Path
from pipeline.schedule import ledger
original = ledger.skip_pending
def half(file, *words, **more):
    original(file, *words, **more)
    os.kill(os.getpid(), 9)
ledger.skip_pending = half
ledger.Ledger(Path(sys.argv[1])).remove_schedule("main")
"""
    ledger.request_scheduled_run("main")
    before = (ledger.list_schedules(), ledger.list_latest_scheduled_runs())
    assert (
        subprocess.run([sys.executable, "-c", code, str(ledger.path)], check=False).returncode == -9
    )
    assert (ledger.list_schedules(), ledger.list_latest_scheduled_runs()) == before


def test_owners():
    assert is_owner_alive(ME)
    assert ME.split("/")[:2] == [socket.gethostname(), str(os.getpid())]
    assert describe_owner(ME) == f"process {os.getpid()} on {socket.gethostname()}"
    assert not is_owner_alive(DEAD)
    host, pid, _, started = ME.split("/")
    assert not is_owner_alive(f"{host}/{pid}/another-boot/{started}")
    assert not is_owner_alive("elsewhere/1/boot/1")
    assert is_owner_alive("elsewhere/1/boot/1", START, START + timedelta(minutes=14))
    assert not is_owner_alive("elsewhere/1/boot/1", START, START + timedelta(minutes=16))
    for nobody in ("", "nobody", host, f"{host}/", f"{host}/x/y/z", f"{host}//boot/1"):
        assert not is_owner_alive(nobody)


def test_what_is_left_of_a_process_that_nobody_waited_for_is_dead():
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    )
    owner = identify_process(child.pid)
    assert is_owner_alive(owner)
    child.kill()
    until = time.monotonic() + 10
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_owner_alive(owner)
    child.stdin.close()
    child.wait()


# -- the file --------------------------------------------------------------------------------------


def test_a_file_of_a_newer_version_is_refused_and_left_alone(ledger):
    with contextlib.closing(sqlite3.connect(ledger.path)) as file:
        file.execute("PRAGMA user_version = 99")
    before = ledger.path.read_bytes()
    for ask in (ledger.list_schedules, ledger.record_run_times):
        with pytest.raises(ConfigError, match="of version 99, which a newer alexnet"):
            ask()
    assert ledger.path.read_bytes() == before


def test_a_file_of_another_program_is_refused(tmp_path):
    path = tmp_path / "schedule.db"
    with contextlib.closing(sqlite3.connect(path)) as file:
        file.execute("CREATE TABLE theirs (x)")
    for ask in (Ledger(path).list_schedules, Ledger(path).record_run_times):
        with pytest.raises(ConfigError, match="another program"):
            ask()


@pytest.mark.parametrize("verb", ["list_latest_scheduled_runs", "record_run_times"])
def test_an_older_file_is_backed_up_and_brought_up_step_by_step(ledger, monkeypatch, verb):
    ledger.request_scheduled_run("main")
    before = (ledger.list_schedules(), ledger.list_latest_scheduled_runs())
    steps = (
        *ledger_file._MIGRATIONS,
        ("ALTER TABLE scheduled_runs ADD COLUMN second INTEGER NOT NULL DEFAULT 2",),
        ("UPDATE scheduled_runs SET second = second + 1",),
    )
    monkeypatch.setattr(ledger_file, "_MIGRATIONS", steps)
    getattr(ledger, verb)()
    assert (ledger.list_schedules(), ledger.list_latest_scheduled_runs()) == before
    with contextlib.closing(sqlite3.connect(ledger.path)) as file:
        assert file.execute("SELECT second FROM scheduled_runs").fetchall() == [(3,)]
        assert file.execute("PRAGMA user_version").fetchone() == (3,)
    monkeypatch.undo()
    backup = Ledger(ledger.path.with_name("schedule.db.v1.backup"))
    assert (backup.list_schedules(), backup.list_latest_scheduled_runs()) == before
    with pytest.raises(ConfigError, match="of version 3"):
        ledger.list_latest_scheduled_runs()


def test_a_migration_that_fails_leaves_the_file_as_it_was(ledger, monkeypatch):
    before = ledger.path.read_bytes()
    monkeypatch.setattr(
        ledger_file,
        "_MIGRATIONS",
        (
            *ledger_file._MIGRATIONS,
            (
                "ALTER TABLE scheduled_runs ADD COLUMN second",
                "INSERT INTO scheduled_runs (run_time) VALUES (1)",
            ),
        ),
    )
    with pytest.raises(sqlite3.IntegrityError):
        ledger.record_run_times()
    assert ledger.path.read_bytes() == before


@pytest.mark.parametrize("damage", ["overwritten", "cut", "head"])
def test_a_damaged_file_is_one_sentence(ledger, clock, damage):
    for number in range(60):
        ledger.put_schedule(f"s{number}", parse_timing("", "1h", "UTC"), ("x" * 100,))
    content = bytearray(ledger.path.read_bytes())
    if damage == "overwritten":
        content[4096:] = os.urandom(len(content) - 4096)
    if damage == "head":
        content[:100] = b"\xff" * 100
    if damage == "cut":
        content = content[: len(content) // 2]
    ledger.path.write_bytes(content)
    with pytest.raises(ConfigError, match="is damaged"):
        ledger.list_schedules()
    clock.move(hours=1)
    with pytest.raises(ConfigError, match="is damaged"):
        ledger.record_run_times()


def test_a_file_that_others_hold_is_busy(ledger, monkeypatch):
    monkeypatch.setattr(ledger_file, "_BUSY_SECONDS", 0.2)
    with contextlib.closing(sqlite3.connect(ledger.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(BusyError, match="locked by another process"):
            ledger.record_run_times()
        with pytest.raises(BusyError):
            ledger.list_latest_scheduled_runs()
    ledger.record_run_times()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="work directory"):
        Ledger(tmp_path / "file" / "schedule.db").put_schedule(
            "main", parse_timing("", "1h", "UTC")
        )


def test_a_file_that_cannot_be_opened_is_one_sentence(tmp_path):
    (tmp_path / "schedule.db").mkdir()
    with pytest.raises(PipelineError, match="cannot be read or written"):
        Ledger(tmp_path / "schedule.db").record_run_times()


def test_no_descriptor_stays_open(ledger, clock):
    before = psutil.Process().num_fds()
    for _ in range(20):
        clock.move(hours=1)
        ledger.record_run_times()
        run_one(ledger)
    assert psutil.Process().num_fds() == before
    assert not list(ledger.path.parent.glob("*-journal"))


def test_a_month_of_missed_minutes_is_recorded_in_seconds(tmp_path):
    clock = Clock()
    ledger = Ledger(tmp_path / "schedule.db", clock)
    ledger.put_schedule("main", parse_timing("* * * * *", "", "Europe/Madrid"))
    clock.move(days=30)
    begin = time.perf_counter()
    ledger.record_run_times()
    assert time.perf_counter() - begin < 10
    begin = time.perf_counter()
    assert (
        ledger.list_unfinished_scheduled_runs()
        == ledger.list_latest_scheduled_runs("main", limit=1)
        == ledger.list_latest_scheduled_runs(limit=1)
    )
    assert ledger.claim_scheduled_run(ME).run_time == clock.time
    assert time.perf_counter() - begin < 1
    assert Counter(states_of_all(ledger)) == {"coalesced": 30 * 1440 - 1, "claimed": 1}


def states_of_all(ledger):
    return [scheduled_run.state for scheduled_run in ledger.list_latest_scheduled_runs(limit=10**6)]


def test_the_words_may_hold_anything(ledger):
    arguments = ("--set", "data.path=/a b/ü'\"; DROP TABLE scheduled runs", json.dumps({"a": 1}))
    ledger.put_schedule("main", ledger.find_schedule("main").timing, arguments)
    assert ledger.find_schedule("main").arguments == arguments


def test_it_starts_in_well_under_a_second():
    code = (
        "import sys, pipeline.schedule.ledger; print({'tensorflow', 'keras', 'mlflow', 'numpy'} &"
        " set(sys.modules))"
    )
    begin = time.perf_counter()
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    assert shown.stdout.strip() == "set()"
    assert time.perf_counter() - begin < 5
