"""Progress of a command: a line as a stage starts, a bar while it works, a line as it ends."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.status import Status
from rich.text import Text

from pipeline.engine.stage import Outcome
from pipeline.reports.numbers import format_duration

_PLAIN_SECONDS = 30.0  # without a terminal, one line of progress so often
STATE_STYLES = {
    "done": "green",
    "ran": "green",
    "skipped": "dim",
    "failed": "red",
    "stale": "yellow",
    "interrupted": "yellow",
    "running": "cyan",
}


class _Rate(ProgressColumn):
    """Units a second."""

    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text(f"{rate:,.0f} {task.fields['unit']}/s" if rate else "", style="cyan")


class ConsoleObserver:
    """Shows a pipeline run: live on a terminal, plain lines elsewhere.

    Args:
        output: where lines go.
        explain: say in full why a stage runs, not only in short.
    """

    def __init__(self, output: Console, *, explain: bool = False):
        self.outcomes: list[Outcome] = []
        self._output = output
        self._explain = explain
        self._bar: Progress | Status | None = None
        self._task = TaskID(0)
        self._shown = time.monotonic()
        self._done: int | None = None
        self._counted_from = (self._shown, 0)  # when, and how many were done then

    def started(self, stage: str, why: Sequence[str]) -> None:
        """Say which stage begins, and why it is not skipped."""
        shown = list(why) if self._explain else [*why[:2], *(["..."] if len(why) > 2 else [])]
        self._output.print(
            f"[bold]{stage:<9}[/] runs: ", Text("; ".join(shown)), sep="", soft_wrap=True
        )
        self._shown, self._done = time.monotonic(), None
        if self._output.is_terminal:
            left = (TimeRemainingColumn(), TextColumn("left"))
            columns = (
                SpinnerColumn(),
                BarColumn(30),
                _Rate(),
                *left,
                TextColumn("{task.fields[detail]}", markup=False),
            )
            bar = Progress(*columns, console=self._output, transient=True)
            self._task = bar.add_task(stage, total=None, unit="", detail="preparing")
            bar.start()
            self._bar = bar

    def progressed(self, done: int, total: int, unit: str, detail: str) -> None:
        """Move the bar; a smaller number than before begins a new count, with a rate of its own."""
        now = time.monotonic()
        first = self._done is None or done < self._done
        if first:
            self._counted_from = (now, done)
        self._done = done
        if isinstance(self._bar, Progress):
            if first:
                self._bar.reset(self._task, completed=done)
            self._bar.update(self._task, completed=done, total=total, unit=unit, detail=detail)
        elif now - self._shown > _PLAIN_SECONDS:
            self._shown = now
            since, done_then = self._counted_from
            rate = (done - done_then) / max(now - since, 1e-9)
            left = f", {format_duration((total - done) / rate)} left" if rate else ""
            line = f"  {done:,} of {total:,} {unit}, {rate:,.0f} {unit}/s{left}  {detail}"
            self._output.print(line, markup=False, highlight=False, soft_wrap=True)

    def notified(self, text: str) -> None:
        """Print what a person should know, above the bar."""
        self._output.print(Text(f"  {text}", style="yellow"), soft_wrap=True)

    def finished(self, outcome: Outcome) -> None:
        """Say what a stage made, and where."""
        self.close()
        self.outcomes.append(outcome)
        made = outcome.artifact.headline() if outcome.artifact else "see the message below"
        line = Text(f"{outcome.stage:<9} ", style="bold")
        line.append(f"{outcome.state:<7} ", style=STATE_STYLES[outcome.state])
        line.append(
            f"{format_duration(outcome.seconds):>8}  " if outcome.state != "skipped" else " " * 10
        )
        line.append(made, style="")
        self._output.print(line, soft_wrap=True)
        if outcome.state == "ran" or self._explain:
            self._output.print(
                f"{'':<28}{outcome.directory}",
                markup=False,
                highlight=False,
                soft_wrap=True,
                style="dim",
            )

    def waiting(self, what: str) -> None:
        """Say, on a terminal, what is awaited after the last stage."""
        if self._output.is_terminal:
            self._bar = self._output.status(what)
            self._bar.start()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class JsonObserver(ConsoleObserver):
    """Prints one JSON object for each finished stage, and nothing else."""

    def started(self, stage: str, why: Sequence[str]) -> None:
        """Print nothing."""

    def progressed(self, done: int, total: int, unit: str, detail: str) -> None:
        """Print nothing."""

    def notified(self, text: str) -> None:
        """Print one JSON object with it."""
        print_json(self._output, {"note": text})

    def waiting(self, what: str) -> None:
        """Print nothing."""

    def finished(self, outcome: Outcome) -> None:
        """Print the stage's outcome."""
        self.outcomes.append(outcome)
        print_json(self._output, {"stage": outcome.as_dict({})})


class QuietObserver(ConsoleObserver):
    """Shows only failures, in the message that ends the command."""

    started = JsonObserver.started
    progressed = JsonObserver.progressed

    def notified(self, text: str) -> None:
        """Print nothing."""

    waiting = JsonObserver.waiting

    def finished(self, outcome: Outcome) -> None:
        """Print nothing."""
        self.outcomes.append(outcome)


class NoticeObserver(QuietObserver):
    """Prints notices alone, on standard error: for commands whose output is for programs.

    Args:
        silent: print nothing.
    """

    def __init__(self, *, silent: bool = False):
        super().__init__(Console(stderr=True, highlight=False))
        self._silent = silent

    def notified(self, text: str) -> None:
        """Print a notice as one line."""
        if not self._silent:
            self._output.file.write(f"{text}\n")
            self._output.file.flush()


def print_json(output: Console, value: object) -> None:
    """Print one JSON object on one line, as it is."""
    output.file.write(json.dumps(value, default=str, allow_nan=False) + "\n")
    output.file.flush()
