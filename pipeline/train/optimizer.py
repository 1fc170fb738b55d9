"""Update rules, the 2012 one first, and the decisions between epochs, from the history so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.config.train import TrainConfig

if TYPE_CHECKING:
    from pipeline.arrays import Optimizer, Strategy, Tensor, Variable

# Of weights that shift or scale, as Keras's layers call them; alpha is PReLU's, which decay would
# push to zero (He and others, 2015, section 2.1).
_NAMES_WITHOUT_DECAY = ("bias", "beta", "gamma", "alpha")
_MAX_DROPS = 3  # "reduced three times prior to termination" (paper, section 5)

History = Sequence[Mapping[str, float]]


# -- decisions: pure functions of the settings and the recorded epochs, so that a resumed training
# decides as an uninterrupted one


def compute_learning_rate(config: TrainConfig, history: History, nan_restarts: int = 0) -> float:
    """Return the learning rate of the next epoch.

    Args:
        config: the schedule and its numbers.
        history: the finished epochs, each with `validation_top1_error`, a fraction in [0, 1], and
            `seconds`.
        nan_restarts: how often the training was started again from the last epoch after a loss that
            was not finite; each halves the rate.
    """
    epoch, warmup = len(history), config.warmup_epochs
    peak = (
        config.learning_rate
        * (config.global_batch_size / config.base_batch_size if config.base_batch_size else 1)
        / 2**nan_restarts
    )
    if epoch < warmup:
        return peak * (epoch + 1) / (warmup + 1)
    if config.schedule == "cosine":
        done = (epoch - warmup) / max(1, plan_epochs(config, history) - warmup)
        return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    if config.schedule == "step":
        return peak / 10 ** ((epoch - warmup) // config.step_epochs)
    if config.schedule == "constant":
        return peak
    errors = [entry["validation_top1_error"] for entry in history[warmup:]]
    return peak / 10 ** min(_count_drops(errors, config.patience), _MAX_DROPS)


def plan_epochs(config: TrainConfig, history: History) -> int:
    """Return how many epochs the training will have.

    Those of the settings, or as many as `max_minutes` allow at the speed so far.
    """
    if not (config.max_minutes and history):
        return config.epochs
    mean = sum(entry["seconds"] for entry in history) / len(history)
    return max(len(history), min(config.epochs, int(60 * config.max_minutes / mean)))


def is_finished(config: TrainConfig, history: History, *, by_loss: bool = False) -> bool:
    """Return whether the training is over.

    Its epochs are done, its time is spent, or the validation error, or loss, has stopped improving.
    """
    if history and len(history) >= plan_epochs(config, history):
        return True
    values = [entry["validation_loss" if by_loss else "validation_top1_error"] for entry in history]
    return (
        bool(config.early_stopping and values)
        and len(values) - 1 - values.index(min(values)) >= config.early_stopping
    )


def _count_drops(errors: Sequence[float], patience: int) -> int:
    """Count how often `patience` epochs in a row brought no better error.

    Each drop starts a new count.
    """
    best, waited, drops = math.inf, 0, 0
    for error in errors:
        best, waited = (error, 0) if error < best else (best, waited + 1)
        if waited == patience:
            waited, drops = 0, drops + 1
    return drops


# -- update rules ----------------------------------------------------------------------------------


def make_optimizer(config: TrainConfig, variables: Sequence[Variable]) -> Optimizer:
    """Return the optimizer, built for the variables.

    SGD with momentum is: v <- momentum v - rate g; w <- w + v.

    For SGD Keras's own `weight_decay` is not used: it acts outside the velocity and is about ten
    times weaker than the paper's; `apply_update` adds the decay to the gradient g. AdamW and LAMB
    are published with decoupled decay, which Keras has.
    """
    import keras

    if config.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(
            learning_rate=config.learning_rate, momentum=config.momentum
        )
    else:
        kind = {"adamw": keras.optimizers.AdamW, "lamb": keras.optimizers.Lamb}[config.optimizer]
        optimizer = kind(learning_rate=config.learning_rate, weight_decay=config.weight_decay)
        optimizer.exclude_from_weight_decay(
            var_list=[variable for variable in variables if not is_decayed(variable)]
        )
    if config.precision == "float16":
        optimizer = keras.optimizers.LossScaleOptimizer(
            optimizer
        )  # leaves out steps whose gradients overflow, and scales less then
    optimizer.build(variables)
    return optimizer


def get_loss_scale(optimizer: Optimizer) -> Variable | float:
    """Return the factor that the optimizer expects on the loss, and so on the gradients.

    1, or a variable in float16.
    """
    return getattr(optimizer, "dynamic_scale", 1.0)


def apply_update(
    optimizer: Optimizer,
    variables: Sequence[Variable],
    gradients: Sequence[Tensor],
    config: TrainConfig,
    replicas: int,
    rate_multipliers: Sequence[float] | None = None,
) -> None:
    """Update the weights, with SGD by the rule of 2012.

    v <- momentum v - rate (g + decay w); w <- w + v (paper, section 5).

    SGD on one device is one program of XLA, which passes over the weights once instead of five
    times: 61 million of them in a third of Keras's time. It compiles in 7 ms for each variable, so
    in 3 s for networks of 450. Under a strategy Keras applies it, and sums the gradients over the
    replicas.

    Args:
        optimizer: of `make_optimizer`.
        variables: the weights.
        gradients: of the replica's own images, divided by the images of all, times
            `get_loss_scale`.
        config: momentum, decay, clipping, and the rate of the biases.
        replicas: how many call this together; each adds its fraction of the decay.
        rate_multipliers: for each variable, its learning rate as a multiple of the optimizer's,
            decay included; None for 1.
    """
    import tensorflow as tf

    multipliers = rate_multipliers or [1.0] * len(variables)
    scale = get_loss_scale(optimizer)
    if replicas > 1 and (config.clip_norm or config.precision == "float16"):
        # Before Keras's own sum: the sum of short gradients may be long, and all replicas must see
        # an overflow of one of them.
        gradients = _average_gradients(gradients, replicas)
    if config.clip_norm:
        gradients, _ = tf.clip_by_global_norm(list(gradients), config.clip_norm * scale / replicas)
    if config.optimizer != "sgd":
        before = [tf.convert_to_tensor(variable) for variable in variables]
        optimizer.apply(gradients, variables)
        _shorten_steps(variables, before, multipliers)
        return
    decay = [config.weight_decay if is_decayed(variable) else 0.0 for variable in variables]
    # In a velocity, a gradient taken twice is a rate twice as high.
    factors = [
        2 * multiplier if config.bias_rate == "double" and not is_decayed(variable) else multiplier
        for variable, multiplier in zip(variables, multipliers, strict=True)
    ]
    if replicas > 1 or config.precision == "float16":
        triples = zip(gradients, variables, decay, strict=True)
        terms = [
            gradient + weight_decay * scale / replicas * variable if weight_decay else gradient
            for gradient, variable, weight_decay in triples
        ]
        optimizer.apply(
            [
                term if factor == 1 else factor * term
                for term, factor in zip(terms, factors, strict=True)
            ],
            variables,
        )
        return

    @tf.function(jit_compile=True)
    def update_fused(rate: Tensor, gradients: Sequence[Tensor]) -> None:
        slots = optimizer.momentums if config.momentum else [None] * len(variables)
        for variable, slot, gradient, weight_decay, factor in zip(
            variables, slots, gradients, decay, factors, strict=True
        ):
            step = (-rate if factor == 1 else -factor * rate) * (
                gradient + weight_decay * variable if weight_decay else gradient
            )
            if slot is not None:
                step += config.momentum * slot
                slot.assign(step)
            variable.assign_add(step)

    update_fused(tf.convert_to_tensor(optimizer.learning_rate), gradients)
    optimizer.iterations.assign_add(1)


def _shorten_steps(
    variables: Sequence[Variable], before: Sequence[Tensor], multipliers: Sequence[float]
) -> None:
    """Take back a part of what a step changed, where a multiplier is not 1.

    For AdamW and LAMB, which scale a gradient away: the rate multiplies all that they change.

    Args:
        variables: after the step.
        before: their values before it.
        multipliers: which part of the step stays.
    """
    import tensorflow as tf

    if all(multiplier == 1 for multiplier in multipliers):
        return

    def shorten(strategy: Strategy, before: Sequence[Tensor]) -> None:
        for variable, old, multiplier in zip(variables, before, multipliers, strict=True):
            if multiplier != 1:
                strategy.extended.update(
                    variable.value,
                    lambda new, old, multiplier=multiplier: new.assign(
                        old + multiplier * (new - old)
                    ),
                    args=(old,),
                )

    tf.distribute.get_replica_context().merge_call(shorten, args=(before,))


def _average_gradients(gradients: Sequence[Tensor], replicas: int) -> Sequence[Tensor]:
    """Return, on every replica, the sum of all replicas' gradients divided by their number."""
    import tensorflow as tf

    totals = tf.distribute.get_replica_context().all_reduce(
        tf.distribute.ReduceOp.SUM, list(gradients)
    )
    return [total / replicas for total in totals]


def is_decayed(variable: Variable) -> bool:
    """Return whether weight decay applies: to kernels, not to biases, as in the 2012 code.

    Kernels have two dimensions or more, also those of depthwise convolutions. Scales and shifts of
    normalization and ConvNeXt's LayerScale have one; those with more, such as the biases of
    attention's heads, are known by their names.
    """
    name = getattr(variable, "name", "")
    return len(variable.shape) > 1 and not any(word in name for word in _NAMES_WITHOUT_DECAY)
