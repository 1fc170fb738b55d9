"""What is shown without a terminal: plain lines, honest rates, and text that is never markup."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.cli import progress
from pipeline.engine.stage import Outcome
from pipeline.reports.numbers import format_duration


@pytest.fixture
def shown(monkeypatch):
    """An observer on a plain stream, at a clock that the test moves, and what was printed."""
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    return progress.ConsoleObserver(Console(file=stream, width=100, highlight=False)), clock, stream


def test_rate_counts_from_the_first_progress_and_again_for_a_new_count(shown):
    observer, clock, stream = shown
    observer.started("ingest", ("no earlier result",))
    clock[0] += 50  # loading libraries
    observer.progressed(0, 1000, "images", "reading")
    clock[0] += 40
    observer.progressed(400, 1000, "images", "reading")
    assert "400 of 1,000 images, 10 images/s, 1 min 00 s left  reading" in stream.getvalue()
    clock[0] += 1
    observer.progressed(100, 1000, "images", "storing")  # a second pass begins
    clock[0] += 40
    observer.progressed(900, 1000, "images", "storing")
    assert "900 of 1,000 images, 20 images/s, 5.0 s left  storing" in stream.getvalue()


def test_words_of_people_are_not_markup(shown):
    observer, _, stream = shown
    observer.started("ingest", ("source folder [red]changed",))
    observer.finished(Outcome("ingest", "failed", 1.0, Path("[bold]folder"), "key"))
    assert "source folder [red]changed" in stream.getvalue()
    assert "[bold]folder" not in stream.getvalue()  # a failed stage has made nothing


def test_durations_as_people_say_them():
    assert [format_duration(seconds) for seconds in (4.21, 185, 7800, 300_000)] == [
        "4.2 s",
        "3 min 05 s",
        "2 h 10 min",
        "3 days",
    ]
