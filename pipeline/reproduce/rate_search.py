"""The search for the learning rate of an arm and a seed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from pipeline.artifacts import DatasetArtifact
from pipeline.engine.stage import Context
from pipeline.errors import TrainingDivergedError
from pipeline.files import write_text
from pipeline.reproduce.arm_training import start_training
from pipeline.reproduce.measurement import Measurement

# Ratio of neighboring rates; the first rate is the recipe's.
_RATE_RATIO = 10**0.5
_MAX_RATES = 7


def choose_learning_rate(
    spec: Mapping[str, Any], dataset: DatasetArtifact, context: Context
) -> Measurement:
    """Try learning rates until the best has a worse one on either side, and return the best.

    The first is the one of the settings. A training that diverges counts as the worst.
    """
    tried = context.scratch_directory / "rates.json"
    scores: dict[int, float] = {}
    if tried.exists():
        scores = {
            int(step): score
            for step, score in json.loads(tried.read_text(encoding="utf-8")).items()
        }
    while (step := find_next_step(scores)) is not None and len(scores) < _MAX_RATES:
        scores[step] = _score_rate(spec, compute_rate(spec, step), dataset, context)
        write_text(tried, json.dumps(scores))
    best = min(scores, key=lambda step: (scores[step], abs(step)))
    numbers = {"learning_rate": compute_rate(spec, best)}
    numbers |= {
        f"{spec['criterion']}/{compute_rate(spec, step):.2g}": score
        for step, score in sorted(scores.items())
        if math.isfinite(score)
    }
    return Measurement(directory=context.directory, name="rate", numbers=numbers)


def find_next_step(scores: Mapping[int, float]) -> int | None:
    """Return the rate to try next, as a number of steps from the first one.

    None when the best one has a worse neighbor on both sides.

    Args:
        scores: by step, lower is better; infinite for a training that diverged.
    """
    for step in (0, 1, -1):
        if step not in scores:
            return step
    best = min(scores, key=lambda step: (scores[step], abs(step)))
    if not math.isfinite(scores[best]):
        return min(scores) - 1  # all diverged: try a lower one
    return next((step for step in (best + 1, best - 1) if step not in scores), None)


def compute_rate(spec: Mapping[str, Any], step: int) -> float:
    """Return the rate that is some steps above the one of the settings, to two digits."""
    return float(f"{spec['train']['learning_rate'] * _RATE_RATIO**step:.2g}")


def _score_rate(
    spec: Mapping[str, Any], rate: float, dataset: DatasetArtifact, context: Context
) -> float:
    """Return the criterion after a short training at a rate; infinity if it diverges."""
    own = {**spec, "train": {**spec["train"], "learning_rate": rate}}
    detail = f"tries rate {rate:.2g}"
    training = start_training(own, dataset, context, f"rate-{rate:.2g}.npz", detail)
    try:
        *_, last = training.epochs
    except TrainingDivergedError:
        return math.inf
    return float(last[spec["criterion"]])
