"""The budget of time of a command, and its progress."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.artifacts import DatasetArtifact

# Rates that a search is expected to try.
EXPECTED_RATES = 4
# A plain network sees an image in about a tenth of the time.
_PLAIN_NETWORK_COST = 0.1


class BudgetSpentError(Exception):
    """The time is over: no further experiment is started. Finished ones are kept."""


@dataclass
class WorkBudget:
    """The progress of a command and its time limit.

    Work is counted in training images seen.

    Attributes:
        minutes: from the start after which no experiment is started; 0 for no limit.
        planned: images of all experiments of the command.
        done: images of the experiments that are finished, now or earlier.
        worked: images of those that were done now.
        seconds: duration of those.
        started: reading of the monotonic clock.
    """

    minutes: float
    planned: float = 0.0
    done: float = 0.0
    worked: float = 0.0
    seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def require_time(self) -> None:
        """Raise a BudgetSpentError when the time is over."""
        if self.minutes and time.monotonic() - self.started > 60 * self.minutes:
            raise BudgetSpentError(f"the budget of {self.minutes:g} minutes is spent")

    def count_experiment(self, images: float, seconds: float, *, worked: bool) -> None:
        """Count a finished experiment, whether it was done now or earlier."""
        self.done += images
        if worked:
            self.worked, self.seconds = self.worked + images, self.seconds + seconds

    @property
    def seconds_left(self) -> float | None:
        """Estimated duration of the rest at the speed so far; None while there is no estimate."""
        return (
            max(0.0, self.planned - self.done) * self.seconds / self.worked if self.worked else None
        )


def count_images_seen(spec: Mapping[str, Any], dataset: DatasetArtifact) -> float:
    """Return about how many training images an experiment sees, which its duration depends on.

    0 for an experiment that trains nothing.
    """
    if "train" not in spec:
        return 0.0
    images = min(spec["images"] or dataset.count_images("train"), dataset.count_images("train"))
    rates = EXPECTED_RATES if "criterion" in spec else 1
    cost = _PLAIN_NETWORK_COST if spec["depth"] else 1.0
    return float(images * spec["train"]["epochs"] * rates) * cost
