"""Graceful shutdown: what SIGINT and SIGTERM ask for, and how a process leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from pipeline.errors import Interrupted, LostWorkerError, Terminated

if TYPE_CHECKING:
    from pipeline.cli.progress import ConsoleObserver
    from pipeline.engine.stage import Outcome

# A worker that is asked to end waits so long for the chief, whose signal comes at the same time, to
# save and to go.
_LINGER_SECONDS = 8.0
_END_SECONDS = 10.0  # for children to end before they are killed


class ShutdownRequest:
    """The end that SIGINT or SIGTERM asks for.

    It is raised at once, and again where a library swallowed it, as imports of C code do. A worker
    beside the chief `lingers`: it goes on while the chief needs it to save what both have done.
    """

    def __init__(self) -> None:
        self.lingers = False
        self._end: KeyboardInterrupt | None = None

    def install(self) -> None:
        """Handle SIGINT and SIGTERM, except where a shell set them to be ignored."""
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self)

    def __call__(self, number: int, _frame: object) -> None:
        """Note the signal; raise the end at once unless this process lingers."""
        self._end = Terminated() if number == signal.SIGTERM else Interrupted()
        if not self.lingers:
            raise self._end
        code = 143 if number == signal.SIGTERM else 130
        last = threading.Timer(_LINGER_SECONDS, os._exit, (code,))
        last.daemon = True
        last.start()

    def raise_if_requested(self) -> None:
        """Raise the end that was asked for, if it was."""
        if self._end is not None and not self.lingers:
            raise self._end

    def reason_instead_of(self, error: LostWorkerError) -> BaseException:
        """Return why a worker ended whose chief is gone: because both were asked to, if so."""
        return self._end or error


class InterruptibleObserver:
    """An observer that ends the run where that was asked for.

    Args:
        observer: shows what happens.
        request: the end that may have been asked for; None in a program that handles signals.
    """

    def __init__(self, observer: ConsoleObserver, request: ShutdownRequest | None):
        self._observer, self._request = observer, request

    def _check(self) -> None:
        if self._request is not None:
            self._request.raise_if_requested()

    def started(self, stage: str, why: Sequence[str]) -> None:
        """Check, and show that a stage begins."""
        self._check()
        self._observer.started(stage, why)

    def progressed(self, done: int, total: int, unit: str, detail: str) -> None:
        """Check, and show how far a stage is."""
        self._check()
        self._observer.progressed(done, total, unit, detail)

    def notified(self, text: str) -> None:
        """Show a notice."""
        self._observer.notified(text)

    def finished(self, outcome: Outcome) -> None:
        """Show what became of a stage."""
        self._observer.finished(outcome)

    def waiting(self, what: str) -> None:
        """Show what is awaited."""
        self._observer.waiting(what)


class StopEvent(threading.Event):
    """What SIGINT and SIGTERM set from now on, instead of ending the process at once."""

    def __init__(self) -> None:
        super().__init__()
        self._number = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._take)

    def _take(self, number: int, _frame: object) -> None:
        self._number = number
        # In a thread: this one may stand in the middle of `wait`, which holds what `set` wants.
        threading.Thread(target=self.set, daemon=True).start()

    def raise_if_set(self) -> None:
        """Raise the end that a signal asked for, if one came."""
        if self.is_set():
            raise Terminated if self._number == signal.SIGTERM else Interrupted


def end_session(leader: subprocess.Popen[bytes]) -> None:
    """End a process and its children, by force if they do not go within seconds."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            leader.wait(timeout=_END_SECONDS)


def leave_process(code: int) -> NoReturn:
    """End the process, at once where a call of TensorFlow hangs: a normal end would wait for it."""
    from pipeline.train.watchdog import has_hanging_call

    if has_hanging_call():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
