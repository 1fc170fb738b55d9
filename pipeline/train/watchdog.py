"""Calls of TensorFlow in a thread of their own: signals are heard, and hanging calls given up."""

from __future__ import annotations

import ctypes
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pipeline.errors import HungError

# Python handles a signal when the main thread runs Python; so often it does.
_SLICE_SECONDS = 0.2
_THREAD_NAME = "calls of TensorFlow"

_Returned = TypeVar("_Returned")


class Watchdog:
    """Runs calls, one at a time, in a thread of its own, and gives up those that take too long.

    A call into TensorFlow cannot be interrupted, and one whose input or device hangs never returns.
    Here the calling thread waits in slices: Ctrl-C is heard at once, and after `seconds` without an
    answer the wait ends with HungError. The hanging thread stays behind.

    Args:
        seconds: how long one call may take; 0 is for ever.
        diagnose: returns the error that names what hangs, when a call does.
    """

    def __init__(self, seconds: float, diagnose: Callable[[], HungError]):
        self._seconds, self._diagnose = seconds, diagnose
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._failed = False
        self._kept: object = None
        self._thread = threading.Thread(target=self._serve_calls, name=_THREAD_NAME, daemon=True)
        self._thread.start()

    def _serve_calls(self) -> None:
        while (call := self._calls.get()) is not None:
            function, arguments, answers = call
            try:
                answer: tuple[Any, BaseException | None] = (function(*arguments), None)
            except BaseException as error:  # noqa: BLE001 - raised where the call was made
                self._failed = True
                answer = (None, error)
            answers.put(answer)
            del (
                call,
                function,
                arguments,
                answers,
                answer,
            )  # nothing of a call is kept until the next one

    def call(self, function: Callable[..., _Returned], *arguments: object) -> _Returned:
        """Return what the function returns, or raise what it raises.

        Raises:
            HungError: it did neither in time.
        """
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._calls.put((function, arguments, answers))
        deadline = time.monotonic() + self._seconds
        while True:
            try:
                value, error = answers.get(timeout=_SLICE_SECONDS)
            except queue.Empty:
                if self._seconds and time.monotonic() > deadline:
                    raise self._diagnose() from None
                continue
            if error is not None:
                raise error
            return value

    def keep_alive(self, used: object) -> None:
        """Name what a hanging call works with, such as iterators.

        It is never released then, as that would wait for the call.
        """
        self._kept = used

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait for a call whose caller was interrupted.

        Return whether it has ended, and whether it and all before it returned: a call that failed
        may have done half of what it should.
        """
        after: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._calls.put((lambda: None, (), after))
        try:
            after.get(timeout=seconds)
        except queue.Empty:
            return False
        return not self._failed

    def close(self) -> None:
        """End the thread; if it hangs, leave it and what it works with to the process's end."""
        self._calls.put(None)
        self._thread.join(0.5)
        if self._kept is not None and self._thread.is_alive():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._kept))
        self._kept = None


def has_hanging_call() -> bool:
    """Return whether a call was left behind in this process.

    The end of the interpreter would wait for it.
    """
    left = [thread for thread in threading.enumerate() if thread.name == _THREAD_NAME]
    for thread in left:
        thread.join(0.5)
    return any(thread.is_alive() for thread in left)


def returns_within(seconds: float, function: Callable[..., object], *arguments: object) -> bool:
    """Return whether a function returns, or raises, within so many seconds."""
    thread = threading.Thread(target=_call_quietly, args=(function, *arguments), daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def _call_quietly(function: Callable[..., object], *arguments: object) -> None:
    try:
        function(*arguments)
    except Exception:  # noqa: BLE001 - an error is an answer; training itself reports it
        return
