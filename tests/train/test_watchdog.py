"""Calls that hang are given up, signals are heard meanwhile."""

import os
import signal
import threading
import time

import pytest

from pipeline.errors import HungError, Terminated
from pipeline.train.watchdog import Patience, answers_within


def test_returns_and_raises_what_the_call_does():
    patience = Patience(5, lambda: "")
    assert patience(lambda a, b: a + b, 1, 2) == 3
    with pytest.raises(ZeroDivisionError):
        patience(lambda: 1 / 0)
    assert patience(threading.current_thread) is not threading.current_thread()
    patience.close()


def test_a_call_that_hangs_is_given_up_with_the_reason():
    patience, let_go = Patience(0.3, lambda: "the disk does not answer"), threading.Event()
    begun = time.monotonic()
    with pytest.raises(HungError, match=r"^the disk does not answer$"):
        patience(let_go.wait)
    assert 0.3 <= time.monotonic() - begun < 3
    let_go.set()


def test_a_signal_is_heard_during_a_call_and_the_call_can_still_be_waited_for():
    patience, done = Patience(0, lambda: ""), []

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
            patience(step)
        assert time.monotonic() - begun < 1.2
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not patience.settle(0.1)
    assert done == []
    assert patience.settle(5)
    assert done == [True]


def test_what_a_call_that_failed_has_left_is_not_whole():
    patience = Patience(5, lambda: "")
    assert patience.settle(1)
    with pytest.raises(ZeroDivisionError):
        patience(lambda: 1 / 0)
    assert not patience.settle(1)


def test_whether_something_answers():
    never = threading.Event()
    assert answers_within(2, lambda: None)
    assert answers_within(2, lambda: 1 / 0)
    assert not answers_within(0.1, never.wait)
    never.set()
