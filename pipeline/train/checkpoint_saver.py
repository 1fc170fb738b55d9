"""When to save a checkpoint: so often that little is lost, so seldom that it takes little time."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path

from pipeline.config.train import TrainConfig
from pipeline.errors import TrainingDivergedError
from pipeline.train.state import TrainingState

# Checkpoints wait until they take no more than this fraction of the time.
_CHECKPOINT_FRACTION = 0.025


class CheckpointSaver:
    """Saves a training's state when a checkpoint is due.

    Args:
        state: of the training.
        path: the file.
        config: `checkpoint_seconds` and `checkpoint_steps`.
    """

    def __init__(self, state: TrainingState, path: Path, config: TrainConfig):
        self._state, self._path = state, path
        self._min_seconds, self._steps = config.checkpoint_seconds, config.checkpoint_steps
        self._wait, self._saved, self._saved_step = (
            self._min_seconds,
            time.monotonic(),
            int(state.steps.numpy()),
        )

    @property
    def steps_until_due(self) -> float:
        """The steps that may be done before `checkpoint_steps` asks for the next checkpoint."""
        if not self._steps:
            return math.inf
        step = int(self._state.steps.numpy())
        self._saved_step = min(self._saved_step, step)  # training may have gone back
        return self._saved_step + self._steps - step

    def save_if_due(self) -> None:
        """Save if the last checkpoint is old enough, or `checkpoint_steps` steps ago."""
        begun, step = time.monotonic(), int(self._state.steps.numpy())
        if begun - self._saved < self._wait and not (
            self._steps and step >= self._saved_step + self._steps
        ):
            return
        with contextlib.suppress(
            TrainingDivergedError
        ):  # the next loss, or the end of the epoch, reports it on all workers
            self._state.save_to(self._path)
        self._saved, self._saved_step = time.monotonic(), step
        self._wait = (
            max(self._min_seconds, (self._saved - begun) / _CHECKPOINT_FRACTION)
            if self._min_seconds
            else 0.0
        )
