import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from pipeline.config.retrain import RetrainConfig
from pipeline.errors import BusyError, ConfigError
from pipeline.retrain.retraining import locate_retraining
from pipeline.schedule import disk_space
from pipeline.schedule.context import build_child_arguments, open_context
from pipeline.schedule.disk_space import estimate_needed_bytes
from pipeline.schedule.ledger import Ledger
from pipeline.schedule.owners import identify_process, identify_this_process, is_owner_alive
from pipeline.schedule.process import die_with_parent, end_child
from pipeline.schedule.result import read_retraining_result
from pipeline.schedule.scheduler import (
    run_schedule_now,
    run_schedule_once,
    serve_schedules,
)
from pipeline.schedule.timing import Timing, parse_timing

# The work of a scheduled run: it saves on SIGTERM, carries on, writes its result last, and notes a
# second run of what is done. The arguments are how long it works, how its starts end (an exit code,
# `json:TrackingError`, `kill`, `deaf`, or `ok`), and the outcome.
STAND_IN = """
import ctypes, json, os, pathlib, signal, sys, time
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
workdir, key, seconds, ends, outcome = pathlib.Path(sys.argv[1]), *sys.argv[2:6]
folder = workdir / "retrainings" / key
def note(word):
    with (workdir / "work.log").open("a") as file:
        file.write(f"{word} {key} {os.getpid()} {time.time()}\\n")
def save(*_):
    note("saved")
    (folder / "state").write_text(str(done))
    os._exit(143)
if os.getppid() != int(os.environ["ALEXNET_PARENT"]):
    os._exit(143)
if (folder / "result.json").exists():
    note("double")
state = folder / "state"
done = int(state.read_text()) if state.exists() else 0
signal.signal(signal.SIGTERM, save)
starts = folder / "starts"
number = int(starts.read_text()) if starts.exists() else 0
starts.write_text(str(number + 1))
end = ends.split(",")[min(number, len(ends.split(",")) - 1)]
if end == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
note("start")
print("at work", flush=True)
while done < float(seconds) * 20:
    time.sleep(0.05)
    done += 1
if end == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if end.startswith("json:"):
    error = {"message": f"{end[5:]} it was.", "retryable": end[5:] == "TrackingError"}
    print(json.dumps({"error": error}))
    print("Error: the same for people", file=sys.stderr)
    sys.exit(1)
if end != "ok":
    sys.exit(int(end))
signal.signal(signal.SIGTERM, signal.SIG_IGN)
name, _, scheduled_run = key.partition("/")
result = {"outcome": outcome, "why": "because", "version": "4", "run_id": "r"}
result |= {"schedule": name, "scheduled_run": scheduled_run}
(folder / ".result").write_text(json.dumps(result))
(folder / ".result").rename(folder / "result.json")
note("end")
sys.exit(3 if outcome == "refused" else 0)
"""

# A scheduler as a process of its own, which kills itself at the point that KILL_AT names.
DRIVER = """
import os, signal, sys, threading, time
from pathlib import Path
from pipeline.config.retrain import RetrainConfig
from pipeline.schedule import execution, process, scheduler
from pipeline.schedule.ledger import Ledger
workdir, stand_in = Path(sys.argv[1]), sys.argv[2]
def die(*_arguments, **_more):
    os.kill(os.getpid(), signal.SIGKILL)
def then_die(function):
    def run(*arguments, **more):
        if function(*arguments, **more) is not None:
            die()
    return run
def in_the_middle(*_arguments):
    while not (workdir / "work.log").exists():
        time.sleep(0.01)
    die()
where = os.environ.get("KILL_AT", "")
if where == "before the claim":
    Ledger.claim_scheduled_run = die
if where == "after the claim":
    Ledger.claim_scheduled_run = then_die(Ledger.claim_scheduled_run)
if where == "before the child":
    execution._run_child = die
if where == "during the run":
    process._watch = in_the_middle
if where == "after the run":
    Ledger.finish_scheduled_run = die
if where == "before the notification":
    execution.notify_outcome = scheduler.notify_outcome = die
if where == "after the notification":
    Ledger.record_notification = die
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
config = RetrainConfig(
    drain_seconds=float(os.environ.get("DRAIN", "0")),
    backoff_seconds=0.1,
    notify=os.environ.get("NOTIFY", ""),
)
def command(scheduled_run, schedule):
    start = [sys.executable, "-S", stand_in, str(workdir)]
    return [*start, scheduled_run.key, *schedule.arguments]
scheduler.serve_schedules(
    workdir,
    lambda _schedule: config,
    lambda line: print(line, flush=True),
    stop,
    wait=True,
    command=command,
)
"""


@pytest.fixture
def place(tmp_path):
    """A work directory, and the script of the stand-in."""
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(STAND_IN)
    (tmp_path / "driver.py").write_text(DRIVER)
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def ledger_of(place, *schedules, seconds="0.1", ends="ok", outcome="promoted", every="1s"):
    ledger = Ledger(place / "schedule.db")
    for name in schedules:
        ledger.put_schedule(name, parse_timing("", every, "UTC"), (seconds, ends, outcome))
    return ledger


def command_of(place):
    stand_in = str(place.parent / "stand_in.py")
    return lambda scheduled_run, schedule: [
        sys.executable,
        "-S",
        stand_in,
        str(place),
        scheduled_run.key,
        *schedule.arguments,
    ]


def quick(**settings):
    config = RetrainConfig(**{"backoff_seconds": 0.1, "drain_seconds": 0.0, **settings})
    return lambda _schedule: config


def noted(place):
    """What the stand-ins noted: (word, scheduled run, pid, time)."""
    log = place / "work.log"
    return (
        [
            (word, key, int(pid), float(at))
            for word, key, pid, at in map(str.split, log.read_text().splitlines())
        ]
        if log.exists()
        else []
    )


def until(condition, seconds=15.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return found


@contextlib.contextmanager
def serving(place, config=None, **more):
    """A scheduler in a thread; yields what it said, and ends it."""
    said, stop, raised = [], threading.Event(), []

    def run():
        try:
            serve_schedules(
                place,
                config or quick(),
                said.append,
                stop,
                **{"command": command_of(place), **more},
            )
        except BaseException as error:  # noqa: BLE001 - told to the test
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield said
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    if raised:
        raise raised[0]


def start(place, kill_at="", **environment):
    """A scheduler as a process."""
    arguments = [
        sys.executable,
        str(place.parent / "driver.py"),
        str(place),
        str(place.parent / "stand_in.py"),
    ]
    given = {**os.environ, "KILL_AT": kill_at, "PYTHONPATH": str(Path.cwd()), **environment}
    with (place.parent / "said.log").open("a") as said:
        return subprocess.Popen(arguments, env=given, stdout=said, stderr=subprocess.STDOUT)


def end(*processes):
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait(timeout=30)


def one_by_one(place):
    """Whether no two stand-ins worked at once, nor one on what was done."""
    working = {}
    for word, key, pid, _ in noted(place):
        if word == "start":
            working = {
                other: scheduled_run
                for other, scheduled_run in working.items()
                if psutil.pid_exists(other)
            }
            assert not working, (key, working)
            working[pid] = key
        elif word in ("end", "saved"):
            working.pop(pid, None)
        else:
            raise AssertionError((word, key))
    return True


def check_slots(place, ledger, name, first, last):
    """Each due second is there once, all but the last ones have a final state, and each that ran
    has run once; return the states."""
    scheduled_runs = {
        scheduled_run.run_time: scheduled_run
        for scheduled_run in ledger.list_latest_scheduled_runs(name, limit=100_000)
    }
    seconds = int((last - first).total_seconds())
    assert [first + timedelta(seconds=number) for number in range(seconds + 1)] == sorted(
        scheduled_runs
    ), "lost"
    ends = Counter(key for word, key, _, _ in noted(place) if word == "end")
    results = {
        str(file.parent.relative_to(place / "retrainings"))
        for file in (place / "retrainings").glob("*/*/result.json")
    }
    for scheduled_run in scheduled_runs.values():
        expected = 1 if scheduled_run.state == "ran" else 0
        if scheduled_run.final:
            assert (ends[scheduled_run.key], scheduled_run.key in results) == (
                expected,
                bool(expected),
            ), scheduled_run
    assert not [word for word, *_ in noted(place) if word == "double"]
    assert all(
        scheduled_run.final
        for run_time, scheduled_run in scheduled_runs.items()
        if run_time < last - timedelta(seconds=30)
    )
    return Counter(scheduled_run.state for scheduled_run in scheduled_runs.values())


def three_schedulers(place, seconds, kills):
    """Run three schedulers on one store with a scheduled run a second.

    The one at work is killed so many times, and another takes over.
    """
    ledger = ledger_of(place, "main", seconds="0.2")
    running = [start(place) for _ in range(3)]
    until(lambda: noted(place))
    begin = time.monotonic()  # starting takes seconds on a busy machine
    for number in range(kills):
        time.sleep(
            max(0.0, begin + seconds * (number + 1) / (kills + 1) - time.monotonic())
            + 0.37 * (number % 3)
        )
        owner = until(
            lambda: (place / "schedule.owner").exists() and (place / "schedule.owner").read_text()
        )
        victim = next(process for process in running if str(process.pid) == owner.split("/")[1])
        victim.kill()
        victim.wait()
        running = [process for process in running if process is not victim] + [start(place)]
    time.sleep(max(0.0, begin + seconds - time.monotonic()))
    end(*running)
    scheduled_runs = ledger.list_latest_scheduled_runs("main", limit=100_000)
    first = ledger.find_schedule("main").created + timedelta(seconds=1)
    states = check_slots(place, ledger, "main", first, scheduled_runs[0].run_time)
    assert one_by_one(place)
    assert set(states) <= {"ran", "coalesced", "pending"}
    assert states["pending"] <= 1 + 1  # begun and let go at the end, and the last
    return states


@pytest.mark.slow
def test_three_hundred_slots_with_three_schedulers(place):
    states = three_schedulers(place, seconds=305, kills=12)
    assert sum(states.values()) >= 300
    assert states["ran"] >= 250


@pytest.mark.parametrize(
    "where",
    [
        "before the claim",
        "after the claim",
        "before the child",
        "during the run",
        "after the run",
        "before the notification",
        "after the notification",
    ],
)
def test_killed_anywhere_a_slot_has_one_final_state_and_one_result(place, where):
    ledger = ledger_of(place, "main", seconds="0.3", every="1d")
    notify = f"cat >> {place.parent}/notified.log"
    scheduled_run = ledger.request_scheduled_run("main")
    killed = start(place, where, NOTIFY=notify)
    assert killed.wait(timeout=20) == -signal.SIGKILL
    second = start(place, NOTIFY=notify)
    until(lambda: ledger.find_scheduled_run(scheduled_run.key).notification)
    end(second)
    [ended] = ledger.list_latest_scheduled_runs("main")
    assert (ended.state, ended.outcome, ended.version, ended.notification) == (
        "ran",
        "promoted",
        "4",
        "sent",
    )
    assert Counter(word for word, *_ in noted(place))["end"] == 1
    assert one_by_one(place)
    told = (place.parent / "notified.log").read_text().count('"event": "promoted"')
    assert told == (2 if where == "after the notification" else 1)
    assert not list(place.glob("retrainings/*/*/child"))


def test_a_slot_runs_and_everything_is_recorded(place):
    ledger = ledger_of(place, "main", every="1d")
    scheduled_run = ledger.request_scheduled_run("main")
    with serving(place, quick(notify=f"cat > {place.parent}/notified.json")) as said:
        ended = until(
            lambda: next(
                (found for found in ledger.list_latest_scheduled_runs() if found.notification), None
            )
        )
    assert (ended.key, ended.state, ended.why, ended.attempts, ended.kind) == (
        scheduled_run.key,
        "ran",
        "because",
        1,
        "manual",
    )
    assert ledger.list_latest_scheduled_runs() == [ended]
    assert (locate_retraining(place, scheduled_run.key) / "output.log").read_text() == "at work\n"
    event = json.loads((place.parent / "notified.json").read_text())
    assert event["event"] == event["outcome"] == "promoted"
    assert (event["scheduled_run"], event["version"], event["workdir"]) == (
        scheduled_run.key,
        "4",
        str(place),
    )
    logged = (place / "schedule.log").read_text().splitlines()
    assert [line.partition("Z ")[2] for line in logged] == said
    assert said[-2:] == [f"{scheduled_run.key}: promoted: because", "Stopped."]
    assert not (place / "schedule.owner").exists()


@pytest.mark.parametrize(
    ("outcome", "state", "notification"),
    [
        ("refused", "ran", "sent"),
        ("unchanged", "ran", "not needed"),
        ("waiting", "ran", "sent"),
        ("skipped", "skipped", ""),
    ],
)
def test_what_a_retraining_comes_to(place, outcome, state, notification):
    ledger = ledger_of(place, "main", every="1d", outcome=outcome)
    scheduled_run = run_schedule_now(
        place,
        "main",
        quick(notify="true"),
        print,
        threading.Event(),
        command=command_of(place),
    )
    assert (scheduled_run.state, scheduled_run.outcome, scheduled_run.notification) == (
        state,
        outcome,
        notification,
    )
    assert ledger.list_unnotified_scheduled_runs() == []


def ran_now(place, **settings):
    said = []
    scheduled_run = run_schedule_now(
        place, "main", quick(**settings), said.append, threading.Event(), command=command_of(place)
    )
    return scheduled_run, said


def test_a_busy_folder_is_tried_again_with_longer_pauses(place):
    ledger_of(place, "main", every="1d", ends="75,json:TrackingError,kill,ok", seconds="0")
    scheduled_run, said = ran_now(place)
    assert (scheduled_run.state, scheduled_run.attempts) == ("ran", 4)
    starts = [at for word, _, _, at in noted(place) if word == "start"]
    pauses = [after - before for before, after in itertools.pairwise(starts)]
    assert [pause >= least for pause, least in zip(pauses, (0.1, 0.2, 0.4), strict=True)] == [
        True
    ] * 3
    assert "TrackingError it was. Retry 2 of 3 in 0 s." in "\n".join(said)
    assert "ended by SIGKILL" in "\n".join(said)


def test_what_does_not_pass_fails_after_the_retries(place):
    ledger_of(place, "main", every="1d", ends="75", seconds="0")
    scheduled_run, _ = ran_now(place, retries=2)
    assert (scheduled_run.state, scheduled_run.attempts) == ("failed", 3)
    assert scheduled_run.why == "it ended with exit code 75: at work."


@pytest.mark.parametrize(
    ("ends", "why"),
    [
        ("json:DatasetError", "DatasetError it was."),
        ("2", "it ended with exit code 2: at work."),
        ("0", "it ended without a result: at work."),
    ],
)
def test_other_errors_fail_at_once(place, ends, why):
    ledger_of(place, "main", every="1d", ends=ends, seconds="0")
    scheduled_run, _ = ran_now(place, notify=f"cat > {place.parent}/notified.json")
    assert (
        scheduled_run.state,
        scheduled_run.attempts,
        scheduled_run.why,
        scheduled_run.notification,
    ) == ("failed", 1, why, "sent")
    assert json.loads((place.parent / "notified.json").read_text())["event"] == "failed"


def test_a_program_that_is_not_there_fails_after_the_retries(place):
    ledger_of(place, "main", every="1d")
    scheduled_run = run_schedule_now(
        place,
        "main",
        quick(retries=1),
        print,
        threading.Event(),
        command=lambda *_: [str(place / "none")],
    )
    assert (scheduled_run.state, scheduled_run.attempts) == ("failed", 2)
    assert "could not be started" in scheduled_run.why


def test_what_takes_too_long_is_ended_and_fails(place):
    ledger_of(place, "main", every="1d", seconds="30")
    scheduled_run, _ = ran_now(place, timeout_hours=1 / 3600)
    assert (scheduled_run.state, scheduled_run.attempts) == ("failed", 1)
    assert "longer than 0.000277778 hours" in scheduled_run.why
    assert [word for word, *_ in noted(place)] == ["start", "saved"]


def test_a_deaf_child_and_its_own_children_are_killed(place):
    code = (
        "import signal, subprocess, time; signal.signal(15, signal.SIG_IGN);"
        " print(subprocess.Popen(['sleep', '60']).pid, flush=True)"
    )
    code += "; time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process.stdout as output:
        grandchild = int(output.readline())
    end_child(process, grace_seconds=0.3)
    assert process.returncode == -signal.SIGKILL
    until(
        lambda: (
            not is_owner_alive(identify_process(grandchild)) or not psutil.pid_exists(grandchild)
        )
    )


def test_what_a_child_leaves_behind_is_ended_with_it(place):
    ledger_of(place, "main", every="1d")
    scheduled_run = run_schedule_now(
        place,
        "main",
        quick(),
        print,
        threading.Event(),
        command=lambda scheduled_run, schedule: [
            "sh",
            "-c",
            f"sleep 60 & echo $! > {place}/pid;"
            f" {' '.join(command_of(place)(scheduled_run, schedule))}",
        ],
    )
    assert scheduled_run.state == "failed"  # its parent is sh, not the scheduler
    pid = int((place / "pid").read_text())
    until(
        lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    )


def test_asked_to_end_it_lets_the_child_save_and_the_next_one_resumes(place):
    ledger = ledger_of(place, "main", every="1d", seconds="1.5")
    scheduled_run = ledger.request_scheduled_run("main")
    first = start(place)
    until(lambda: [word for word, *_ in noted(place)] == ["start"])
    time.sleep(0.3)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=20) == 0
    open_slot = ledger.find_scheduled_run(scheduled_run.key)
    assert (open_slot.state, open_slot.attempts, open_slot.owner) == ("pending", 1, "")
    assert int((locate_retraining(place, scheduled_run.key) / "state").read_text()) > 2
    second = start(place)
    until(lambda: ledger.find_scheduled_run(scheduled_run.key).final)
    end(second)
    assert (
        ledger.find_scheduled_run(scheduled_run.key).state,
        ledger.find_scheduled_run(scheduled_run.key).attempts,
    ) == ("ran", 2)
    assert [word for word, *_ in noted(place)] == ["start", "saved", "start", "end"]


def test_asked_to_end_it_waits_for_what_is_nearly_done(place):
    ledger = ledger_of(place, "main", every="1d", seconds="1")
    scheduled_run = ledger.request_scheduled_run("main")
    first = start(place, DRAIN="20")
    until(lambda: noted(place))
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=20) == 0
    assert (
        ledger.find_scheduled_run(scheduled_run.key).state,
        ledger.find_scheduled_run(scheduled_run.key).attempts,
    ) == ("ran", 1)


def test_a_released_slot_is_neither_lost_nor_coalesced(place):
    ledger = ledger_of(place, "main", seconds="1.2")
    with serving(place):
        until(lambda: noted(place))
    [begun] = [
        scheduled_run
        for scheduled_run in ledger.list_unfinished_scheduled_runs()
        if scheduled_run.attempts
    ]
    time.sleep(2.5)
    ledger.record_run_times()
    assert next(iter(ledger.list_unfinished_scheduled_runs())).key == begun.key
    assert len(ledger.list_unfinished_scheduled_runs()) == 2
    with serving(place):
        until(lambda: ledger.find_scheduled_run(begun.key).final)
    assert ledger.find_scheduled_run(begun.key).state == "ran"
    assert one_by_one(place)


def test_a_manual_slot_waits_for_the_one_that_runs(place):
    ledger = ledger_of(place, "main", "other", every="1d", seconds="0.8")
    with serving(place):
        ledger.request_scheduled_run("main")
        until(lambda: noted(place))
        begin = time.monotonic()
        scheduled_run = run_schedule_now(
            place, "other", quick(), print, threading.Event(), command=lambda *_: ["false"]
        )
    assert scheduled_run.state == "ran"
    assert time.monotonic() - begin > 0.5
    assert one_by_one(place)


def test_a_manual_slot_is_run_here_when_the_scheduler_is_gone_meanwhile(place):
    ledger = ledger_of(place, "main", every="1d", seconds="20")
    first = start(place)
    ledger.request_scheduled_run("main")
    until(lambda: noted(place))
    ledger.put_schedule("main", parse_timing("", "1d", "UTC"), ("0.1", "ok", "promoted"))
    timer = threading.Timer(1.0, first.kill)
    timer.start()
    scheduled_run = run_schedule_now(
        place, "main", quick(), print, threading.Event(), command=command_of(place)
    )
    first.wait()
    timer.join()
    assert scheduled_run.state == "ran"
    [waiting] = ledger.list_unfinished_scheduled_runs()
    assert (waiting.state, waiting.attempts) == ("pending", 1)


def test_run_now_stopped_leaves_the_slot_to_the_next_scheduler(place):
    ledger = ledger_of(place, "main", every="1d", seconds="1")
    stop = threading.Event()
    timer = threading.Timer(0.6, stop.set)
    timer.start()
    scheduled_run = run_schedule_now(place, "main", quick(), print, stop, command=command_of(place))
    timer.join()
    assert (scheduled_run.state, scheduled_run.attempts) == ("pending", 1)
    with serving(place):
        until(lambda: ledger.find_scheduled_run(scheduled_run.key).state == "ran")


def test_run_now_of_no_schedule_is_one_sentence(place):
    ledger_of(place, "nightly")
    with pytest.raises(ConfigError, match=r"no schedule 'nightl'.*Did you mean `nightly`"):
        run_schedule_now(place, "nightl", quick(), print, threading.Event())


def test_a_paused_schedule_does_not_run_and_its_slots_are_recorded(place):
    ledger = ledger_of(place, "main", "other")
    ledger.pause_schedule("main")
    with serving(place):
        until(
            lambda: (
                sum(
                    scheduled_run.state == "ran"
                    for scheduled_run in ledger.list_latest_scheduled_runs("other")
                )
                >= 2
            )
        )
        ledger.resume_schedule("main")
        until(
            lambda: any(
                scheduled_run.state == "ran"
                for scheduled_run in ledger.list_latest_scheduled_runs("main")
            )
        )
    skipped = [
        scheduled_run.why
        for scheduled_run in ledger.list_latest_scheduled_runs("main")
        if scheduled_run.state == "skipped"
    ]
    assert len(skipped) >= 1
    assert set(skipped) == {"paused"}


def test_schedules_may_come_and_go_and_change_while_it_runs(place):
    ledger = ledger_of(place, "main", every="1d")
    with serving(place):
        time.sleep(0.3)
        ledger_of(place, "added")
        until(
            lambda: any(
                scheduled_run.state == "ran"
                for scheduled_run in ledger.list_latest_scheduled_runs("added")
            )
        )
        ledger.remove_schedule("added")
        ledger_of(place, "main", every="1s")
        until(
            lambda: any(
                scheduled_run.state == "ran"
                for scheduled_run in ledger.list_latest_scheduled_runs("main")
            )
        )
        count = len(ledger.list_latest_scheduled_runs("added", limit=1000))
        time.sleep(1.5)
    assert len(ledger.list_latest_scheduled_runs("added", limit=1000)) == count
    assert all(scheduled_run.final for scheduled_run in ledger.list_latest_scheduled_runs("added"))


def test_a_second_scheduler_is_refused_or_stands_by(place):
    ledger_of(place, "main", every="1d")
    first = start(place)
    until((place / "schedule.owner").exists)
    with pytest.raises(BusyError, match=r"Another scheduler is at work.*process \d+ on .*--wait"):
        serve_schedules(place, quick(), print, threading.Event())
    with pytest.raises(BusyError):
        run_schedule_once(place, "main", quick(), print, threading.Event())
    with serving(place, wait=True) as said:
        until(lambda: any(line.startswith(f"Standing by: process {first.pid}") for line in said))
        first.kill()
        first.wait()
        until(lambda: any(line.startswith("Scheduling in") for line in said))


def test_a_waiting_one_may_be_stopped(place):
    ledger_of(place, "main", every="1d")
    first = start(place)
    until((place / "schedule.owner").exists)
    with serving(place, wait=True) as said:
        until(lambda: said)
    assert run_once_stopped(place) is None
    end(first)


def run_once_stopped(place):
    stop = threading.Event()
    stop.set()
    return run_schedule_once(place, "main", quick(), print, stop, wait=True)


def test_once_runs_what_is_due_and_nothing_else(place):
    ledger = ledger_of(place, "main", "other", every="1d")
    once = {"command": command_of(place)}
    assert run_schedule_once(place, "main", quick(), print, threading.Event(), **once) is None
    ledger_of(place, "main", every="1s")
    time.sleep(2.2)
    scheduled_run = run_schedule_once(place, "main", quick(), print, threading.Event(), **once)
    assert (scheduled_run.state, scheduled_run.outcome) == ("ran", "promoted")
    assert Counter(item.state for item in ledger.list_latest_scheduled_runs("main"))["ran"] == 1
    ledger.pause_schedule("main")
    time.sleep(1.1)
    assert run_schedule_once(place, "main", quick(), print, threading.Event(), **once) is None
    with pytest.raises(ConfigError, match="no schedule"):
        run_schedule_once(place, "none", quick(), print, threading.Event())


def test_once_takes_over_what_a_dead_one_had_begun(place):
    ledger = ledger_of(place, "main", "other", every="1d")
    scheduled_runs = [ledger.request_scheduled_run("main"), ledger.request_scheduled_run("other")]
    dead = identify_this_process().rpartition("/")[0] + "/1"
    for scheduled_run in scheduled_runs:
        ledger.begin_attempt(ledger.claim_scheduled_run(dead, scheduled_run))
    done = run_schedule_once(
        place, "main", quick(), print, threading.Event(), command=command_of(place)
    )
    assert (done.key, done.state, done.attempts) == (scheduled_runs[0].key, "ran", 2)
    assert [
        (scheduled_run.key, scheduled_run.state, scheduled_run.attempts)
        for scheduled_run in ledger.list_unfinished_scheduled_runs()
    ] == [(scheduled_runs[1].key, "pending", 1)]


def test_a_schedule_without_a_timing_is_due_whenever_it_is_asked(place):
    ledger = ledger_of(place)
    ledger.put_schedule("main", Timing(), ("0", "ok", "promoted"))
    with serving(place):
        time.sleep(1.2)
    assert ledger.list_latest_scheduled_runs() == []
    for count in (1, 2):
        scheduled_run = run_schedule_once(
            place, "main", quick(), print, threading.Event(), command=command_of(place)
        )
        assert (
            scheduled_run.kind,
            scheduled_run.state,
            len(ledger.list_latest_scheduled_runs()),
        ) == ("scheduled", "ran", count)
    ledger.pause_schedule("main")
    assert (
        run_schedule_once(
            place, "main", quick(), print, threading.Event(), command=command_of(place)
        )
        is None
    )


def test_settings_that_are_not_to_be_had_fail_the_slot(place):
    ledger_of(place, "main", every="1d")

    def gone(schedule):
        raise ConfigError(f"There is no recipe for {schedule.name}.")

    scheduled_run = run_schedule_now(
        place, "main", gone, print, threading.Event(), command=command_of(place)
    )
    assert (scheduled_run.state, scheduled_run.why) == ("failed", "There is no recipe for main.")


def test_little_room_is_said_and_it_is_tried_all_the_same(place, monkeypatch):
    ledger_of(place, "main", every="1d")
    monkeypatch.setattr(disk_space, "MIN_FREE_BYTES", 10**18)
    scheduled_run, said = ran_now(
        place, notify=f"cat >> {place.parent}/notified.log; echo >> {place.parent}/notified.log"
    )
    assert scheduled_run.state == "ran"
    assert any("Only " in line and "Expected 1,000,000,000,000,000,000" in line for line in said)
    events = [
        json.loads(line)["event"]
        for line in (place.parent / "notified.log").read_text().splitlines()
    ]
    assert events == ["disk_low", "promoted"]


def test_the_room_that_is_needed_is_twice_the_last_retraining(place):
    ledger = ledger_of(place, "main", every="1d")
    assert estimate_needed_bytes(place, ledger) == 500_000_000
    scheduled_run, _ = ran_now(place)
    (place / "stages" / "train-1" / "deep").mkdir(parents=True)
    (place / "stages" / "train-1" / "deep" / "model").touch()
    os.truncate(place / "stages" / "train-1" / "deep" / "model", 400_000_000)
    result = locate_retraining(place, scheduled_run.key) / "result.json"
    result.write_text(
        json.dumps(
            json.loads(result.read_text()) | {"stages": {"train": "train-1", "gone": "gone-2"}}
        )
    )
    assert estimate_needed_bytes(place, ledger) == 800_000_000


def test_a_result_of_another_slot_or_damaged_is_none(place):
    ledger = ledger_of(place, "main", every="1d")
    scheduled_run = ledger.request_scheduled_run("main")
    folder = locate_retraining(place, scheduled_run.key)
    folder.mkdir(parents=True)
    for text in (
        "",
        "{",
        "[]",
        '{"outcome": "great"}',
        '{"outcome": "promoted", "scheduled_run": "20200101T000000Z"}',
    ):
        (folder / "result.json").write_text(text)
        assert read_retraining_result(folder, scheduled_run) is None
    (folder / "result.json").write_text('{"outcome": "promoted"}')
    assert read_retraining_result(folder, scheduled_run) == {"outcome": "promoted"}


def test_a_ledger_that_refuses_for_a_while_stops_nothing(place):
    ledger = ledger_of(place, "main")
    with serving(place) as said:
        until(
            lambda: any(
                scheduled_run.state == "ran"
                for scheduled_run in ledger.list_latest_scheduled_runs()
            )
        )
        count = sum(
            scheduled_run.state == "ran"
            for scheduled_run in ledger.list_latest_scheduled_runs(limit=1000)
        )
        (place / "schedule.db").rename(place / "away")
        (place / "schedule.db").write_bytes(b"not a database" * 100)
        until(lambda: any("is damaged" in line for line in said))
        time.sleep(1.2)
        (place / "away").replace(place / "schedule.db")
        until(
            lambda: (
                sum(
                    scheduled_run.state == "ran"
                    for scheduled_run in ledger.list_latest_scheduled_runs(limit=1000)
                )
                > count + 1
            )
        )
    assert sum("is damaged" in line for line in said) <= 3


def test_a_bug_ends_it_with_its_traceback(place, monkeypatch):
    ledger_of(place, "main", every="1d")
    record = Ledger.record_run_times
    shown = []
    monkeypatch.setattr(
        Ledger, "record_run_times", lambda ledger: 1 / 0 if shown else record(ledger)
    )
    with pytest.raises(ZeroDivisionError), serving(place, command=command_of(place)) as said:
        until(lambda: any("Scheduling" in line for line in said))
        shown.append(True)
        time.sleep(1.5)


def test_a_bug_while_a_child_works_ends_the_child_too(place, monkeypatch):
    ledger_of(place, "main", every="1s", seconds="30")
    record = Ledger.record_run_times
    monkeypatch.setattr(
        Ledger, "record_run_times", lambda ledger: 1 / 0 if noted(place) else record(ledger)
    )
    with pytest.raises(ZeroDivisionError), serving(place, command=command_of(place)):
        until(lambda: any(word == "saved" for word, *_ in noted(place)))


def test_run_times_are_recorded_while_a_child_works(place):
    ledger = ledger_of(place, "main", every="1s", seconds="4")
    with serving(place):
        until(lambda: noted(place))
        until(
            lambda: (
                {"claimed", "pending"}
                <= {item.state for item in ledger.list_unfinished_scheduled_runs()}
            )
        )


def test_it_ends_at_once_whatever_the_clock_does(place):
    ledger_of(place, "main", every="1d")
    for number in range(3):
        with serving(place) as said:
            until(lambda: said)
            time.sleep(0.93 + 0.05 * number)  # about when it looks


def test_nothing_is_left_behind(place):
    ledger = ledger_of(place, "main", every="1d", seconds="0")
    process = psutil.Process()
    with serving(place):
        ledger.request_scheduled_run("main")
        until(lambda: ledger.list_latest_scheduled_runs()[0].final)
        files, memory = process.num_fds(), process.memory_info().rss
        for _ in range(3):
            scheduled_run = ledger.request_scheduled_run("main")
            until(lambda: ledger.find_scheduled_run(scheduled_run.key).final)  # noqa: B023 - called at once
        assert abs(process.num_fds() - files) <= 2  # the ledger may be open this moment
        assert process.memory_info().rss - memory < 10_000_000
        assert [process.status() for child in process.children(recursive=True)] == []
    assert [
        thread.name
        for thread in threading.enumerate()
        if "Thread" in thread.name and thread is not threading.main_thread()
    ] == []


def test_the_log_rotates(place):
    with open_context(place, quick(), lambda _line: None, threading.Event(), None) as context:
        for _ in range(70):
            context.log("x" * 100_000)
    files = sorted(place.glob("schedule.log*"))
    assert len(files) == 5
    assert all(file.stat().st_size <= 1_000_000 for file in files)


def test_runs_start_within_the_second_of_their_run_time(place):
    ledger = ledger_of(place, "main", every="1s", seconds="0")
    with serving(place):
        until(lambda: len([item for item in ledger.list_latest_scheduled_runs() if item.final]) > 2)
    late = [
        (item.started - item.run_time).total_seconds()
        for item in ledger.list_latest_scheduled_runs()
        if item.state == "ran"
    ]
    assert min(late) >= 0
    assert sorted(late)[len(late) // 2] < 1


def test_a_child_of_a_dead_scheduler_is_told(place):
    code = """
import os, subprocess, sys, time
from pipeline.schedule.process import die_with_parent
if os.fork() == 0:
    os.environ["ALEXNET_PARENT"] = str(os.getppid())
    die_with_parent()
    assert "ALEXNET_PARENT" not in os.environ
    print(os.getpid(), flush=True)
    time.sleep(60)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as parent:
        child = int(parent.stdout.readline())
        assert is_owner_alive(identify_process(child))
        owner = identify_process(child)
        parent.kill()
        until(lambda: not is_owner_alive(owner))
    late = (
        "import os; os.environ['ALEXNET_PARENT'] = '1'; from pipeline.schedule.process import"
        " die_with_parent; die_with_parent()"
    )
    assert subprocess.run([sys.executable, "-c", late], check=False).returncode == -signal.SIGTERM


def test_without_a_scheduler_nobody_dies(monkeypatch):
    monkeypatch.delenv("ALEXNET_PARENT", raising=False)
    die_with_parent()


def test_the_command_line_of_a_slot(place):
    ledger = ledger_of(place, "main", every="1d")
    scheduled_run = ledger.request_scheduled_run("main")
    arguments = build_child_arguments(place, scheduled_run, ledger.find_schedule("main"))
    assert arguments[:7] == [
        sys.executable,
        "-P",
        "-m",
        "pipeline",
        "retrain",
        "--workdir",
        str(place),
    ]
    assert arguments[7:] == [
        "--json",
        "--wait",
        "--scheduled-run",
        scheduled_run.key,
        "0.1",
        "ok",
        "promoted",
    ]


def test_nothing_heavy_is_imported():
    code = (
        "import sys, pipeline.schedule.scheduler;"
        " print({'tensorflow', 'keras', 'mlflow', 'numpy'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
