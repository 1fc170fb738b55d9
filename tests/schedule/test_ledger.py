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
from pipeline.schedule import ledger as ledger_module
from pipeline.schedule.ledger import (
    FINAL_STATES,
    Ledger,
    is_alive,
    key_of,
    owner_of,
    owner_of_this_process,
    owner_text,
    read_key,
)
from pipeline.schedule.timing import timing_of

START = datetime(2026, 11, 27, 12, 0, 0, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
ME = owner_of_this_process()
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
    made.put("main", timing_of("", "1h", "UTC"), ("--recipe", "folder"))
    return made


def states(ledger, name="main"):
    return [slot.state for slot in reversed(ledger.history(name, limit=1000))]


def run_one(ledger, owner=ME, state="ran", **result):
    slot = ledger.begin_attempt(ledger.claim(owner))
    assert ledger.finish(slot, state, "because", result)
    return ledger.slot(slot.key)


# -- schedules -------------------------------------------------------------------------------------


def test_a_question_makes_no_file(tmp_path):
    ledger = Ledger(tmp_path / "none" / "schedule.db")
    assert (
        ledger.schedules(),
        ledger.open_slots(),
        ledger.history(),
        ledger.untold(),
        ledger.slot("main/20261127T030000Z"),
    ) == (
        [],
        [],
        [],
        [],
        None,
    )
    with pytest.raises(ConfigError, match=r"no schedule 'main'.*there is none yet"):
        ledger.schedule("main")
    assert list(tmp_path.iterdir()) == []


def test_a_schedule_comes_back_as_it_was_put(ledger):
    schedule = ledger.schedule("main")
    assert schedule == ledger.schedules()[0]
    assert (schedule.name, schedule.timing, schedule.words) == (
        "main",
        timing_of("", "1h", "UTC"),
        ("--recipe", "folder"),
    )
    assert (schedule.created, schedule.seen, schedule.paused) == (START, START, False)


def test_putting_the_same_again_loses_nothing(ledger, clock):
    clock.move(hours=3)
    assert ledger.put("main", timing_of("", "1h", "UTC"), ("--recipe", "digits")).seen == START
    ledger.sweep()
    assert states(ledger) == ["coalesced", "coalesced", "due"]
    assert ledger.schedule("main").words == ("--recipe", "digits")


def test_a_new_timing_counts_from_now_and_what_waits_of_the_old_one_is_skipped(ledger, clock):
    clock.move(hours=2, minutes=30)
    ledger.put("main", timing_of("15 * * * *", "", "UTC"))
    assert ledger.history(limit=1)[0].why == "the schedule was changed"
    assert states(ledger) == ["coalesced", "skipped"]
    clock.move(hours=1)
    ledger.sweep()
    assert [slot.due for slot in ledger.open_slots()] == [START + timedelta(hours=3, minutes=15)]


def test_a_new_schedule_may_count_from_before(tmp_path, clock):
    ledger = Ledger(tmp_path / "schedule.db", clock)
    ledger.put("main", timing_of("", "1h", "UTC"), since=START - timedelta(minutes=1))
    ledger.sweep()
    assert [slot.due for slot in ledger.open_slots()] == [START]


def test_pausing_skips_and_resuming_goes_on_with_the_next(ledger, clock):
    clock.move(hours=1)
    ledger.sweep()
    ledger.pause("main")
    clock.move(hours=2)
    ledger.sweep()
    clock.move(hours=1)
    ledger.resume("main")
    clock.move(hours=1)
    ledger.sweep()
    assert states(ledger) == ["skipped"] * 4 + ["due"]
    assert {slot.why for slot in ledger.history() if slot.state == "skipped"} == {"paused"}


def test_a_manual_slot_of_a_paused_schedule_runs(ledger):
    ledger.pause("main")
    ledger.ask("main")
    assert run_one(ledger).kind == "manual"


def test_what_has_begun_waits_while_its_schedule_is_paused(ledger, clock):
    clock.move(hours=1)
    ledger.sweep()
    slot = ledger.begin_attempt(ledger.claim(ME))
    ledger.release(slot, "stopped")
    ledger.pause("main")
    assert ledger.claim(ME) is None
    ledger.resume("main")
    assert ledger.claim(ME).key == slot.key


def test_removing_keeps_the_history_and_lets_what_runs_end(ledger, clock):
    clock.move(hours=1)
    ledger.sweep()
    slot = ledger.claim(ME)
    clock.move(hours=1)
    ledger.ask("main")
    ledger.remove("main")
    assert states(ledger) == ["claimed", "skipped", "skipped"]
    assert ledger.finish(slot, "ran", "")
    clock.move(hours=5)
    ledger.sweep()
    assert states(ledger) == ["ran", "skipped", "skipped"]
    assert ledger.schedules() == []


def test_what_is_let_go_after_its_schedule_was_removed_is_not_open_for_ever(ledger, clock):
    ledger.ask("main")
    slot = ledger.begin_attempt(ledger.claim(ME))
    ledger.remove("main")
    ledger.release(slot, "stopped")
    assert [(slot.state, slot.why) for slot in ledger.history()] == [
        ("skipped", "the schedule was removed")
    ]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "-x", ".hidden", "a b", "ä", "x" * 65, "a\n"]
)
def test_a_name_that_cannot_name_a_folder_is_refused(ledger, name):
    with pytest.raises(ConfigError, match="cannot name a folder"):
        ledger.put(name, timing_of("", "1h", "UTC"))


@pytest.mark.parametrize("verb", ["pause", "resume", "remove", "ask", "schedule"])
def test_a_schedule_that_is_not_there_is_one_sentence(ledger, verb):
    with pytest.raises(
        ConfigError, match=r"no schedule 'mian'.*Did you mean `main`.*alexnet schedules"
    ):
        getattr(ledger, verb)("mian")


def test_keys(ledger):
    slot = ledger.ask("main")
    assert slot.key == "main/20261127T120000Z" == key_of("main", START)
    assert read_key(slot.key) == ("main", START)
    assert ledger.slot(slot.key) == slot
    for wrong in ("main", "main/", "main/2026", "../20261127T120000Z", "/20261127T120000Z"):
        with pytest.raises(ConfigError, match="names no slot"):
            read_key(wrong)


# -- slots -----------------------------------------------------------------------------------------


def test_of_several_missed_slots_the_last_one_runs(ledger, clock):
    clock.move(hours=5, minutes=1)
    ledger.sweep()
    assert states(ledger) == ["coalesced"] * 4 + ["due"]
    assert ledger.history()[-1].why == "main/20261127T170000Z stands for it"
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
    ledger.sweep()
    assert ledger.claim(ME) is None


def test_a_clock_that_goes_back_doubles_nothing(ledger, clock):
    clock.move(hours=2)
    ledger.sweep()
    run_one(ledger)
    clock.move(hours=-2)
    ledger.sweep()
    clock.move(hours=2, minutes=1)
    ledger.sweep()
    assert states(ledger) == ["coalesced", "ran"]


def test_one_at_a_time(ledger, clock):
    clock.move(hours=1)
    ledger.sweep()
    first = ledger.claim(ME)
    ledger.put("other", timing_of("", "1h", "UTC"))
    asked = ledger.ask("other")
    assert ledger.claim(ME) is None
    assert ledger.claim(ME, asked) is None
    assert ledger.claim(DEAD) is None
    ledger.finish(first, "ran", "")
    assert ledger.claim(ME).key == asked.key


def test_the_dead_are_no_hindrance_and_their_slots_are_taken_over(ledger, clock):
    clock.move(hours=1)
    ledger.sweep()
    begun = ledger.begin_attempt(ledger.claim(DEAD))
    ledger.ask("main")
    assert ledger.claim(ME).kind == "manual"
    [taken] = ledger.take_over(ME)
    assert (taken.key, taken.owner, taken.attempts, taken.state) == (begun.key, ME, 1, "claimed")
    assert ledger.take_over(ME) == []
    assert not ledger.finish(begun, "ran", "by a ghost")
    assert not ledger.beat(begun)
    assert ledger.begin_attempt(begun) is None
    assert not ledger.release(begun, "by a ghost")
    assert ledger.begin_attempt(taken).attempts == 2
    assert ledger.finish(taken, "failed", "no")
    assert not ledger.finish(taken, "ran", "too late")
    assert ledger.slot(taken.key).state == "failed"


def test_an_owner_on_another_host_lives_while_its_heart_beats(ledger, clock):
    ledger.ask("main")
    there = f"elsewhere/{os.getpid()}/boot/1"
    slot = ledger.claim(there)
    clock.move(minutes=14)
    assert ledger.take_over(ME) == []
    assert ledger.beat(slot)
    clock.move(minutes=14)
    assert ledger.take_over(ME) == []
    clock.move(minutes=2)
    assert [taken.key for taken in ledger.take_over(ME)] == [slot.key]


def test_a_released_slot_stays_itself_whatever_comes_due(ledger, clock):
    clock.move(hours=1)
    ledger.sweep()
    slot = ledger.begin_attempt(ledger.claim(ME))
    assert ledger.release(slot, "stopped")
    clock.move(hours=3)
    ledger.sweep()
    assert states(ledger) == ["due", "coalesced", "coalesced", "due"]
    assert run_one(ledger).key == slot.key
    run_one(ledger)
    assert states(ledger) == ["ran", "coalesced", "coalesced", "ran"]


def test_a_slot_that_was_claimed_and_not_begun_waits_as_before(ledger, clock):
    clock.move(hours=1)
    ledger.sweep()
    ledger.release(ledger.claim(ME), "stopped")
    clock.move(hours=1)
    ledger.sweep()
    assert states(ledger) == ["coalesced", "due"]


def test_manual_slots_take_free_seconds_and_are_not_coalesced(ledger, clock):
    asked = [ledger.ask("main") for _ in range(3)]
    assert [slot.due - START for slot in asked] == [
        timedelta(seconds=number) for number in range(3)
    ]
    assert ledger.claim(ME).key == asked[0].key
    clock.move(hours=2)
    ledger.sweep()
    assert Counter(slot.kind for slot in ledger.open_slots()) == {"manual": 3, "scheduled": 1}


def test_a_manual_slot_at_a_due_time_stands_for_it(ledger, clock):
    clock.move(minutes=59, seconds=59)
    ledger.ask("main")
    assert ledger.ask("main").due == START + HOUR
    clock.move(seconds=2)
    ledger.sweep()
    assert [slot.kind for slot in ledger.history()] == ["manual", "manual"]


def test_a_slot_starts_after_its_jitter_unless_it_is_named(ledger, clock):
    ledger.put("late", timing_of("0 13 * * *", "", "UTC", "2h"))
    starts = ledger_module.start_of(ledger.schedule("late").timing, "late", START + HOUR)
    assert starts > START + HOUR
    ledger.remove("main")
    clock.time = starts - timedelta(seconds=1)
    ledger.sweep()
    assert ledger.claim(ME) is None
    clock.time = starts
    assert ledger.claim(ME).due == START + HOUR
    ledger.release(ledger.history()[0], "")
    clock.time = START + HOUR
    assert ledger.claim(ME, ledger.open_slots()[0]).due == START + HOUR


def test_what_the_hook_was_told_is_noted_once(ledger):
    ledger.ask("main")
    ledger.ask("main")
    first = run_one(ledger, state="failed")
    assert ledger.untold() == [first]
    ledger.note_hook(first, "told")
    assert ledger.untold() == []
    assert ledger.slot(first.key).hook == "told"


def test_history_is_the_newest_first_and_limited(ledger, clock):
    ledger.put("other", timing_of("", "1h", "UTC"))
    for _ in range(3):
        clock.move(hours=1)
        ledger.sweep()
    assert [(slot.schedule, slot.due.hour) for slot in ledger.history(limit=3)] == [
        ("main", 15),
        ("other", 15),
        ("main", 14),
    ]
    assert [slot.due.hour for slot in ledger.history("other", limit=2)] == [15, 14]


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
        due = [
            at
            for at in (*left_out, wall)
            if at.minute == minute
            and at.hour in hours
            and at.weekday() in weekdays
            and at not in seen
        ]
        if due and moment > after:
            found.append(moment)
        seen.update(due)
        moment, before = moment + timedelta(minutes=5), wall
    return found


def years(tmp_path, start, days, seed):
    """Several schedulers with one file and one clock, with downtimes, crashes at any point, drains
    and runs that take long."""
    rng, clock = random.Random(seed), Clock(start)  # noqa: S311 - the same each time
    ledgers = [Ledger(tmp_path / "schedule.db", clock) for _ in range(3)]
    for zone in ZONES:
        ledgers[0].put(zone.replace("/", "_"), timing_of(EXPRESSIONS[zone][0], "", zone))
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
        ledger.sweep()
        rival.sweep()
        owner = rng.choice((ME, ME, DEAD))
        if owner == ME:
            ledger.take_over(ME)
        slots = [
            slot
            for slot in ledger.open_slots()
            if slot.state == "claimed" and slot.owner == owner == ME
        ]
        while (slot := slots.pop() if slots else ledger.claim(owner)) is not None:
            assert owner == DEAD or rival.claim(ME) is None
            if not worked(rng, clock, (ledger, rival), slot, (final, ghosts)):
                break
        for ghost in ghosts:
            # Only while nobody has taken it over may it still record its end.
            mine = (
                ledger.slot(ghost.key).owner == DEAD and ledger.slot(ghost.key).state == "claimed"
            )
            if rng.random() < 0.5:
                done = ledger.finish(ghost, "ran", "")
                assert done == mine
                final[ghost.key] += done
        ghosts = ghosts[-2:] if rng.random() < 0.5 else []
    ledgers[0].sweep()
    return ledgers[0], final, clock.time


def worked(rng, clock, ledgers, slot, told):
    """Run a claimed slot, or a part of it; return whether its owner goes on."""
    (ledger, rival), (final, ghosts), chance, dead = ledgers, told, rng.random(), slot.owner == DEAD
    if dead and chance < 0.3:
        return False  # killed after the claim
    slot = ledger.begin_attempt(slot)
    if dead and chance < 0.6:
        ghosts.append(slot)  # killed during the run; it will be heard of again
        return False
    clock.move(minutes=rng.choice((1, 20, 60 * 30)))
    rival.sweep()
    if chance > 0.9:
        assert ledger.release(slot, "stopped")
        return False
    final[slot.key] += ledger.finish(slot, "ran", "")
    final[slot.key] += rival.finish(slot, "failed", "twice")
    return not dead


def check_years(tmp_path, start, days, seed):
    ledger, final, end = years(tmp_path, start, days, seed)
    everything = ledger.history(limit=1_000_000)
    assert set(final.values()) <= {0, 1}  # once each
    for zone in ZONES:
        name = zone.replace("/", "_")
        slots = sorted(
            (slot for slot in everything if slot.schedule == name), key=lambda slot: slot.due
        )
        assert [slot.due for slot in slots] == expected_dues(
            zone, start, end
        )  # none twice, none lost
        ran = {slot.key for slot in slots if slot.state == "ran"}
        assert ran == {key for key, times in final.items() if times and key.startswith(name + "/")}
        by_key = {slot.key: slot for slot in slots}
        for slot in slots:
            assert slot.state in FINAL_STATES or slot.due > end - timedelta(days=30), slot
            if slot.state == "coalesced":
                other = slot
                while (
                    other.state == "coalesced"
                ):  # what stands for it comes later, and is run in the end
                    assert by_key[other.why.split()[0]].due > other.due
                    other = by_key[other.why.split()[0]]
                assert other.state in ("ran", "due", "claimed")
    return Counter(slot.state for slot in everything)


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
from pipeline.schedule.ledger import Ledger, owner_of_this_process
ledger, owner = Ledger(Path(sys.argv[1])), owner_of_this_process()
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    ledger.sweep()
    slot = ledger.claim(owner)
    if slot is not None:
        print("claimed", slot.key, time.time_ns(), flush=True)
        slot = ledger.begin_attempt(slot)
        time.sleep(0.002)
        end_ns = time.time_ns()
        print("finished", slot.key, end_ns, ledger.finish(slot, "ran", ""), flush=True)
"""


def test_processes_that_claim_at_once_never_get_the_same_slot_nor_two_at_a_time(tmp_path):
    ledger = Ledger(tmp_path / "schedule.db")
    ledger.put("main", timing_of("", "1s", "UTC"))
    for _ in range(60):
        ledger.ask("main")
    words = [sys.executable, "-c", CLAIMER, str(ledger.path), "3"]
    claimers = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(4)]
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
        "import sys; from pathlib import Path; from pipeline.schedule.timing import timing_of; from"
        " pipeline.schedule.ledger import Ledger; Ledger(Path(sys.argv[1])).put(sys.argv[2],"
        " timing_of('', '1h', 'UTC'))"
    )
    path = tmp_path / "new" / "schedule.db"
    makers = [
        subprocess.Popen([sys.executable, "-c", code, str(path), f"s{number}"])
        for number in range(4)
    ]
    assert [maker.wait(timeout=60) for maker in makers] == [0] * 4
    assert [schedule.name for schedule in Ledger(path).schedules()] == ["s0", "s1", "s2", "s3"]


def test_a_process_killed_in_a_change_has_not_made_it(ledger, tmp_path):
    code = """
import os, sys
from pathlib import Path
from pipeline.schedule import ledger
original = ledger._end_waiting
def half(file, *words, **more):
    original(file, *words, **more)
    os.kill(os.getpid(), 9)
ledger._end_waiting = half
ledger.Ledger(Path(sys.argv[1])).remove("main")
"""
    ledger.ask("main")
    before = (ledger.schedules(), ledger.history())
    assert (
        subprocess.run([sys.executable, "-c", code, str(ledger.path)], check=False).returncode == -9
    )
    assert (ledger.schedules(), ledger.history()) == before


def test_owners():
    assert is_alive(ME)
    assert ME.split("/")[:2] == [socket.gethostname(), str(os.getpid())]
    assert owner_text(ME) == f"process {os.getpid()} on {socket.gethostname()}"
    assert not is_alive(DEAD)
    host, pid, _, started = ME.split("/")
    assert not is_alive(f"{host}/{pid}/another-boot/{started}")
    assert not is_alive("elsewhere/1/boot/1")
    assert is_alive("elsewhere/1/boot/1", START, START + timedelta(minutes=14))
    assert not is_alive("elsewhere/1/boot/1", START, START + timedelta(minutes=16))
    for nobody in ("", "nobody", host, f"{host}/", f"{host}/x/y/z", f"{host}//boot/1"):
        assert not is_alive(nobody)


def test_what_is_left_of_a_process_that_nobody_waited_for_is_dead():
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    )
    owner = owner_of(child.pid)
    assert is_alive(owner)
    child.kill()
    until = time.monotonic() + 10
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_alive(owner)
    child.stdin.close()
    child.wait()


# -- the file --------------------------------------------------------------------------------------


def test_a_file_of_a_newer_version_is_refused_and_left_alone(ledger):
    with contextlib.closing(sqlite3.connect(ledger.path)) as file:
        file.execute("PRAGMA user_version = 99")
    before = ledger.path.read_bytes()
    for ask in (ledger.schedules, ledger.sweep):
        with pytest.raises(ConfigError, match="of version 99, of a newer alexnet"):
            ask()
    assert ledger.path.read_bytes() == before


def test_a_file_of_another_program_is_refused(tmp_path):
    path = tmp_path / "schedule.db"
    with contextlib.closing(sqlite3.connect(path)) as file:
        file.execute("CREATE TABLE theirs (x)")
    for ask in (Ledger(path).schedules, Ledger(path).sweep):
        with pytest.raises(ConfigError, match="another program's"):
            ask()


@pytest.mark.parametrize("verb", ["history", "sweep"])
def test_an_older_file_is_backed_up_and_brought_up_step_by_step(ledger, monkeypatch, verb):
    ledger.ask("main")
    before = (ledger.schedules(), ledger.history())
    steps = (
        *ledger_module._STEPS,
        ("ALTER TABLE slots ADD COLUMN second INTEGER NOT NULL DEFAULT 2",),
        ("UPDATE slots SET second = second + 1",),
    )
    monkeypatch.setattr(ledger_module, "_STEPS", steps)
    getattr(ledger, verb)()
    assert (ledger.schedules(), ledger.history()) == before
    with contextlib.closing(sqlite3.connect(ledger.path)) as file:
        assert file.execute("SELECT second FROM slots").fetchall() == [(3,)]
        assert file.execute("PRAGMA user_version").fetchone() == (3,)
    monkeypatch.undo()
    backup = Ledger(ledger.path.with_name("schedule.db.v1.backup"))
    assert (backup.schedules(), backup.history()) == before
    with pytest.raises(ConfigError, match="of version 3"):
        ledger.history()


def test_a_migration_that_fails_leaves_the_file_as_it_was(ledger, monkeypatch):
    before = ledger.path.read_bytes()
    monkeypatch.setattr(
        ledger_module,
        "_STEPS",
        (
            *ledger_module._STEPS,
            ("ALTER TABLE slots ADD COLUMN second", "INSERT INTO slots (due) VALUES (1)"),
        ),
    )
    with pytest.raises(sqlite3.IntegrityError):
        ledger.sweep()
    assert ledger.path.read_bytes() == before


@pytest.mark.parametrize("damage", ["overwritten", "cut", "head"])
def test_a_damaged_file_is_one_sentence(ledger, clock, damage):
    for number in range(60):
        ledger.put(f"s{number}", timing_of("", "1h", "UTC"), ("x" * 100,))
    content = bytearray(ledger.path.read_bytes())
    if damage == "overwritten":
        content[4096:] = os.urandom(len(content) - 4096)
    if damage == "head":
        content[:100] = b"\xff" * 100
    if damage == "cut":
        content = content[: len(content) // 2]
    ledger.path.write_bytes(content)
    with pytest.raises(ConfigError, match="is damaged"):
        ledger.schedules()
    clock.move(hours=1)
    with pytest.raises(ConfigError, match="is damaged"):
        ledger.sweep()


def test_a_file_that_others_hold_is_busy(ledger, monkeypatch):
    monkeypatch.setattr(ledger_module, "_BUSY_SECONDS", 0.2)
    with contextlib.closing(sqlite3.connect(ledger.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(BusyError, match="held by another process"):
            ledger.sweep()
        with pytest.raises(BusyError):
            ledger.history()
    ledger.sweep()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="work directory"):
        Ledger(tmp_path / "file" / "schedule.db").put("main", timing_of("", "1h", "UTC"))


def test_a_file_that_cannot_be_opened_is_one_sentence(tmp_path):
    (tmp_path / "schedule.db").mkdir()
    with pytest.raises(PipelineError, match="cannot be read or written"):
        Ledger(tmp_path / "schedule.db").sweep()


def test_no_descriptor_stays_open(ledger, clock):
    before = psutil.Process().num_fds()
    for _ in range(20):
        clock.move(hours=1)
        ledger.sweep()
        run_one(ledger)
    assert psutil.Process().num_fds() == before
    assert not list(ledger.path.parent.glob("*-journal"))


def test_a_month_of_missed_minutes_is_recorded_in_seconds(tmp_path):
    clock = Clock()
    ledger = Ledger(tmp_path / "schedule.db", clock)
    ledger.put("main", timing_of("* * * * *", "", "Europe/Madrid"))
    clock.move(days=30)
    begin = time.perf_counter()
    ledger.sweep()
    assert time.perf_counter() - begin < 10
    begin = time.perf_counter()
    assert ledger.open_slots() == ledger.history("main", limit=1) == ledger.history(limit=1)
    assert ledger.claim(ME).due == clock.time
    assert time.perf_counter() - begin < 1
    assert Counter(states_of_all(ledger)) == {"coalesced": 30 * 1440 - 1, "claimed": 1}


def states_of_all(ledger):
    return [slot.state for slot in ledger.history(limit=10**6)]


def test_the_words_may_hold_anything(ledger):
    words = ("--set", "data.path=/a b/ü'\"; DROP TABLE slots", json.dumps({"a": 1}))
    ledger.put("main", ledger.schedule("main").timing, words)
    assert ledger.schedule("main").words == words


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
