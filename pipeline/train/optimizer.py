"""The 2012 update rule, and the learning rate as a function of what has happened so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config import TrainConfig

_MAX_DROPS = 3  # "reduced three times prior to termination" (paper, section 5)


def learning_rate(config: TrainConfig, history: Sequence[Mapping[str, float]]) -> float:
    """Return the learning rate of the next epoch.

    A pure function of the settings and the recorded epochs, so that a resumed training decides as an uninterrupted one.

    Args:
        config: the schedule and its numbers.
        history: the finished epochs, each with `validation_top1_error`, a fraction in [0, 1].
    """
    epoch = len(history)
    if epoch < config.warmup_epochs:
        return config.learning_rate * (epoch + 1) / (config.warmup_epochs + 1)
    if config.schedule == "cosine":
        done = (epoch - config.warmup_epochs) / max(1, config.epochs - config.warmup_epochs)
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    errors = [entry["validation_top1_error"] for entry in history[config.warmup_epochs :]]
    return config.learning_rate / 10 ** min(_drops(errors, config.patience), _MAX_DROPS)


def _drops(errors: Sequence[float], patience: int) -> int:
    """Count how often `patience` epochs in a row brought no better error; each drop starts a new count."""
    best, waited, drops = math.inf, 0, 0
    for error in errors:
        best, waited = (error, 0) if error < best else (best, waited + 1)
        if waited == patience:
            waited, drops = 0, drops + 1
    return drops


def make_optimizer(config: TrainConfig) -> Any:
    """Return SGD with momentum: v <- momentum v - rate g; w <- w + v.

    Keras's own `weight_decay` acts outside the velocity and is about ten times weaker than the paper's, so the decay is not set
    here: `apply_update` adds it to the gradient g.
    """
    import keras

    return keras.optimizers.SGD(learning_rate=config.learning_rate, momentum=config.momentum)


def apply_update(optimizer: Any, variables: Sequence[Any], gradients: Sequence[Any], config: TrainConfig, replicas: int) -> None:
    """Change the weights by the rule of 2012: v <- momentum v - rate (g + decay w); w <- w + v (paper, section 5).

    On one device as one program of XLA, which passes over the weights once instead of five times: 61 million of them in a third of
    Keras's time. Under a strategy through Keras, which sums the gradients over the replicas.

    Args:
        optimizer: of `make_optimizer`, built for the variables.
        variables: the weights.
        gradients: of the replica's own images, divided by the images of all.
        config: momentum and decay.
        replicas: how many call this together; each adds its share of the decay.
    """
    import tensorflow as tf

    decay = [config.weight_decay if decayed(variable) else 0.0 for variable in variables]
    if replicas > 1:
        triples = zip(gradients, variables, decay, strict=True)
        optimizer.apply([gradient + share / replicas * variable if share else gradient for gradient, variable, share in triples], variables)
        return

    @tf.function(jit_compile=True)
    def fused(rate: Any, gradients: Sequence[Any]) -> None:
        slots = optimizer.momentums if config.momentum else [None] * len(variables)
        for variable, slot, gradient, share in zip(variables, slots, gradients, decay, strict=True):
            step = -rate * (gradient + share * variable if share else gradient)
            if slot is not None:
                step += config.momentum * slot
                slot.assign(step)
            variable.assign_add(step)

    fused(tf.convert_to_tensor(optimizer.learning_rate), gradients)
    optimizer.iterations.assign_add(1)


def decayed(variable: Any) -> bool:
    """Return whether weight decay applies: to kernels, not to biases, as in the 2012 code."""
    return len(variable.shape) > 1
