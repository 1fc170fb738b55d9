"""All claims, in the order in which they are measured and told."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from pipeline.errors import ConfigError
from pipeline.reproduce.lab import Experiment

# Each is a module of this folder, with an `EXPERIMENT`.
NAMES = (
    "relu",
    "gradients",
    "dropout",
    "lrn",
    "pooling",
    "crops",
    "color",
    "tencrop",
    "towers",
    "replicas",
    "depth",
    "size",
    "features",
    "gpu",
)
ALL = "all"


def experiments(names: Sequence[str]) -> tuple[Experiment, ...]:
    """Return the claims of some names, or all, in the order of the table.

    Raises:
        ConfigError: there is no such claim.
    """
    unknown = [name for name in names if name not in (*NAMES, ALL)]
    if unknown or not names:
        raise ConfigError(
            f"There is no claim {', '.join(unknown) or 'named'}. Expected {ALL}, or some of"
            f" {', '.join(NAMES)}."
        )
    wanted = NAMES if ALL in names else [name for name in NAMES if name in names]
    return tuple(experiment(name) for name in wanted)


def experiment(name: str) -> Experiment:
    """Return the claim of a name."""
    found = import_module(f"pipeline.reproduce.claims.{name}").EXPERIMENT
    if not isinstance(found, Experiment):
        raise TypeError(f"{name} holds a {type(found).__name__}")
    return found
