"""The plan of a command: what each of its claims trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.config.settings import Config
from pipeline.reproduce.arms import order_trainings
from pipeline.reproduce.budget import EXPECTED_RATES
from pipeline.reproduce.experiment import Experiment


def plan_trainings(
    experiments: Sequence[Experiment], config: Config
) -> Iterator[tuple[Experiment, str, dict[str, Any]]]:
    """Yield each training of the claims once: the first claim that needs it, its name and its spec.

    Learning rates are those of the settings, as they are not chosen yet.
    """
    seen: set[str] = set()
    for experiment in experiments:
        turns = list(order_trainings(experiment.list_arms(config), config.reproduce.seeds))
        trainings = [
            (f"{arm.name}-rate{seed}", arm.make_tuning_spec(config, seed)) for arm, seed in turns
        ]
        trainings += [
            (f"{arm.name}-seed{seed}", arm.make_spec(config, seed)) for arm, seed in turns
        ]
        for name, spec in trainings:
            if name not in seen:
                seen.add(name)
                yield experiment, name, spec


def tabulate_plan(experiments: Sequence[Experiment], config: Config) -> list[dict[str, Any]]:
    """Return for each claim what it trains, each training counted at the first claim that needs it.

    Keys: `claim`, `trainings`, `short_trainings`, `images` (seen).
    """
    rows = {
        experiment.name: dict.fromkeys(("trainings", "short_trainings", "images"), 0)
        for experiment in experiments
    }
    for experiment, _, spec in plan_trainings(experiments, config):
        kind, times = (
            ("short_trainings", EXPECTED_RATES) if "criterion" in spec else ("trainings", 1)
        )
        rows[experiment.name][kind] += times
        rows[experiment.name]["images"] += times * spec["images"] * spec["train"]["epochs"]
    return [{"claim": name, **row} for name, row in rows.items()]
