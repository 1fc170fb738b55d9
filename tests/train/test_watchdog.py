"""Calls that hang are given up, signals are heard meanwhile."""

import os
import signal
import threading
import time

import pytest

from pipeline.errors import HungError, Terminated
from pipeline.train.watchdog import Watchdog, returns_within


def test_returns_and_raises_what_the_call_does():
    watchdog = Watchdog(5, lambda: HungError(""))
    assert watchdog.call(lambda a, b: a + b, 1, 2) == 3
    with pytest.raises(ZeroDivisionError):
        watchdog.call(lambda: 1 / 0)
    assert watchdog.call(threading.current_thread) is not threading.current_thread()
    watchdog.close()


def test_a_call_that_hangs_is_given_up_with_the_reason():
    watchdog, let_go = (
        Watchdog(0.3, lambda: HungError("the disk does not answer")),
        threading.Event(),
    )
    begun = time.monotonic()
    with pytest.raises(HungError, match=r"^the disk does not answer$"):
        watchdog.call(let_go.wait)
    assert 0.3 <= time.monotonic() - begun < 3
    let_go.set()


def test_a_signal_is_heard_during_a_call_and_the_call_can_still_be_waited_for():
    watchdog, done = Watchdog(0, lambda: HungError("")), []

    def handler(_number, _frame):
        raise Terminated

    def step():
        time.sleep(1.5)
        done.append(True)

    before = signal.signal(signal.SIGTERM, handler)
    try:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        begun = time.monotonic()
        with pytest.raises(Terminated):
            watchdog.call(step)
        assert time.monotonic() - begun < 1.2
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not watchdog.wait_until_idle(0.1)
    assert done == []
    assert watchdog.wait_until_idle(5)
    assert done == [True]


def test_what_a_call_that_failed_has_left_is_not_whole():
    watchdog = Watchdog(5, lambda: HungError(""))
    assert watchdog.wait_until_idle(1)
    with pytest.raises(ZeroDivisionError):
        watchdog.call(lambda: 1 / 0)
    assert not watchdog.wait_until_idle(1)


def test_whether_something_answers():
    never = threading.Event()
    assert returns_within(2, lambda: None)
    assert returns_within(2, lambda: 1 / 0)
    assert not returns_within(0.1, never.wait)
    never.set()
