"""The training loop, explicit: several optimiser steps in each compiled call, on one device or many.

    for each epoch:
        rate  = learning_rate(settings, history)
        for each step:                                     # several a call, inside one tf.function
            on every replica, with its share of the batch:
                images, labels = augmented(batch)          # as drawn ahead on the host
                gradient = d(sum of losses / global batch) + decay * kernels
                sum the gradients over the replicas; momentum; update
        score the validation split
        history += the epoch's numbers; keep the weights if they are the best

Every epoch starts from what is recorded, so a training that was killed and taken up again goes the same way, bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipeline.config import TrainConfig
from pipeline.data.augment import augmented, class_weights
from pipeline.data.loader import Images, evaluation_batches, training_epochs
from pipeline.errors import ConfigError, TrainingDivergedError
from pipeline.model.signal import IMAGES, named_signal, signal_numbers
from pipeline.train.checkpoint import read_checkpoint, save_checkpoint
from pipeline.train.optimizer import apply_update, learning_rate, make_optimizer

Progress = Callable[[int, int, str], None]
# A compiled call takes about this long: long enough that its overhead is nothing, short enough that Ctrl-C is answered.
_CALL_SECONDS = 0.5
_MAX_STEPS_PER_CALL = 64
# After a kill, at most this much work and one epoch are done again; saving more often would cost more than it saves.
_CHECKPOINT_SECONDS = 10.0


@dataclass
class State:
    """What training changes: the network, its optimiser, the finished epochs and the best weights so far."""

    network: Any
    optimizer: Any
    history: list[dict[str, float]]
    best: list[np.ndarray[Any, Any]]

    def variables(self) -> dict[str, Any]:
        """Return every variable by a stable name: weights, dropout's random states, optimiser slots."""
        return {f"model/{i}": variable for i, variable in enumerate(self.network.variables)} | {
            f"optimizer/{i}": variable for i, variable in enumerate(self.optimizer.variables)
        }

    def save(self, path: Path) -> None:
        """Write everything into one file."""
        arrays = {name: np.asarray(variable.numpy()) for name, variable in self.variables().items()}
        arrays |= {f"best/{i}": weights for i, weights in enumerate(self.best)}
        save_checkpoint(path, arrays, self.history)

    def restore(self, path: Path) -> None:
        """Take up what a killed training left, if it left anything."""
        found = read_checkpoint(path)
        if found is None:
            return
        arrays, self.history = found
        for name, variable in self.variables().items():
            variable.assign(arrays[name])
        self.best = [arrays[f"best/{i}"] for i in range(len(self.best))]


def prepare(load_network: Callable[[], Any], config: TrainConfig, strategy: Any) -> State:
    """Return the state at the first step, its variables made inside the strategy's scope.

    Args:
        load_network: returns the uncompiled network.
        config: the seed of dropout, and the optimiser's settings.
        strategy: a `tf.distribute` strategy, or None for one device.
    """
    with strategy.scope() if strategy is not None else tf.init_scope():
        network = load_network()
        _freeze(network, config.freeze)
        _set_precision(network, config.precision)
        optimizer = make_optimizer(config)
        optimizer.build(network.trainable_variables)
    for index, layer in enumerate(layer for layer in network.layers if isinstance(layer, keras.layers.Dropout) and layer.rate > 0):
        layer.seed_generator.state.assign(np.array([config.seed, index], dtype="uint32"))
    return State(network, optimizer, [], [np.asarray(value) for value in network.get_weights()])


def fit(
    state: State, train: Images, validation: Images, config: TrainConfig, strategy: Any, checkpoint: Path, progress: Progress
) -> Iterator[dict[str, float]]:
    """Train from where the state is, and yield each epoch's numbers; epochs taken up from the checkpoint are yielded first.

    `state` holds the weights of the last epoch and `state.best` those of the best one when the iterator ends.

    Raises:
        TrainingDivergedError: the loss became NaN or infinite.
    """
    train_steps, score = _compiled_training(state, train, config, strategy), _compiled_scoring(state.network)
    size = state.network.input_shape[1]
    state.restore(checkpoint)
    yield from state.history
    saved = time.monotonic()
    spread = iter if strategy is None else lambda batches: iter(strategy.experimental_distribute_dataset(batches))
    steps = len(train) // config.global_batch_size
    signal = _compiled_signal(state.network, validation)
    for batches in training_epochs(train, config, image_size=size, first=len(state.history), opened=spread):
        epoch = len(state.history)
        started = time.monotonic()
        rate = learning_rate(config, state.history)
        state.optimizer.learning_rate.assign(rate)
        trained = _run_epoch(train_steps, batches, steps, config, epoch, progress)
        seconds = time.monotonic() - started
        scored = _score_split(score, validation, size, config.global_batch_size)
        _require_finite(scored[0], f"on the validation split after epoch {epoch + 1}", config)
        entry = {"epoch": epoch + 1, "learning_rate": rate, **_means("train", trained), **_means("validation", scored)}
        entry |= signal(rate)
        entry |= {"images_per_second": float(trained[3]) / seconds, "seconds": time.monotonic() - started}
        if _is_better(entry, state.history):
            state.best = [np.asarray(value) for value in state.network.get_weights()]
        state.history.append(entry)
        if time.monotonic() - saved > _CHECKPOINT_SECONDS:
            state.save(checkpoint)
            saved = time.monotonic()
        yield entry


def _freeze(network: Any, last: str) -> None:
    """Make the layers up to and including `last` and its normalisation keep their weights and statistics."""
    names = [layer.name for layer in network.layers]
    if last not in ("none", *names):
        known = ", ".join(layer.name for layer in network.layers[:-1] if layer.weights)
        raise ConfigError(f"The network has no layer {last} to freeze. Expected train.freeze to be none or one of {known}.")
    if last == "none":
        return
    place = names.index(last)
    end = next((index for index, layer in enumerate(network.layers) if index > place and hasattr(layer, "kernel")), len(names))
    for layer in network.layers[:end]:
        layer.trainable = False


def _set_precision(network: Any, precision: str) -> None:
    """Make the layers compute in bfloat16 and keep their weights in float32."""
    if precision == "bfloat16":
        for layer in network.layers:
            if not isinstance(layer, keras.layers.InputLayer):
                layer.dtype_policy = "mixed_bfloat16"


def best_epoch(history: list[dict[str, float]]) -> dict[str, float]:
    """Return the epoch with the lowest validation error; of equals the one with the lowest validation loss, then the first."""
    return min(history, key=lambda entry: (entry["validation_top1_error"], entry["validation_loss"]))


def _is_better(entry: dict[str, float], history: list[dict[str, float]]) -> bool:
    return best_epoch([*history, entry]) is entry


def _sums(labels: Any, logits: Any, losses: Any = None) -> tuple[Any, Any]:
    """Return the summed losses, cross-entropy unless others are given, and float64 [loss sum, top-1 errors, top-5 errors, images]."""
    if losses is None:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    # How many classes stand before the label; of equal logits the lower class does, as in evaluation. `in_top_k` would forgive ties.
    own = tf.gather(logits, labels, axis=1, batch_dims=1)[:, tf.newaxis]
    before = (logits > own) | ((logits == own) & (tf.range(logits.shape[-1]) < labels[:, tf.newaxis]))
    rank = tf.reduce_sum(tf.cast(before, tf.int32), axis=1)
    wrong1, wrong5 = rank >= 1, rank >= 5
    counts = [tf.reduce_sum(tf.cast(value, tf.float64)) for value in (losses, wrong1, wrong5, tf.ones_like(losses))]
    return tf.reduce_sum(losses), tf.stack(counts)


def _compiled_training(state: State, train: Images, config: TrainConfig, strategy: Any) -> Callable[[Any, Any, Any], Any]:
    """Return a function (iterator, steps, totals) -> totals that does that many optimiser steps in one call.

    It goes on adding to the totals it is given, so that an epoch's sums do not depend on how many steps one call does.
    """
    replicas = strategy.num_replicas_in_sync if strategy is not None else 1
    network, optimizer = state.network, state.optimizer
    weights = class_weights(train.dataset) if config.class_weights else None

    def step(batch: Any) -> Any:
        images, labels, partners, shares = augmented(batch, config, train.dataset)
        with tf.GradientTape() as tape:
            logits = tf.cast(network(images, training=True), tf.float32)
            losses = _losses(labels, logits, weights)
            if partners is not None:
                losses = shares * losses + (1 - shares) * _losses(partners, logits, weights)
            loss, numbers = _sums(labels, logits, losses)
            loss = loss / config.global_batch_size
        variables = network.trainable_variables
        apply_update(optimizer, variables, tape.gradient(loss, variables), config, replicas)
        return numbers

    @tf.function(reduce_retracing=True)
    def train_steps(iterator: Any, steps: Any, totals: Any) -> Any:
        for _ in tf.range(steps):
            if strategy is None:
                totals += step(next(iterator))
            else:
                totals += strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(step, args=(next(iterator),)), axis=None)
        return totals

    return train_steps


def _losses(labels: Any, logits: Any, weights: Any) -> Any:
    """Return the cross-entropies [batch], each times the weight of its class where there are weights, float32 [classes]."""
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    return losses if weights is None else losses * tf.gather(weights, labels)


def _compiled_scoring(network: Any) -> Callable[[Any, Any], Any]:
    """Return a function (images, labels) -> summed numbers, without training."""

    @tf.function(reduce_retracing=True)
    def score(images: Any, labels: Any) -> Any:
        return _sums(labels, tf.cast(network(images, training=False), tf.float32))[1]

    return score


def _compiled_signal(network: Any, validation: Images) -> Callable[[float], dict[str, float]]:
    """Return a function of the learning rate that says what passes through each layer, for some of the validation images."""
    images, labels = next(iter(evaluation_batches(validation, image_size=network.input_shape[1], batch_size=IMAGES)))
    numbers = tf.function(signal_numbers(network, training=False))
    return lambda rate: named_signal(network, numbers(images, labels), rate).metrics()


def _run_epoch(
    train_steps: Callable[[Any, Any, Any], Any],
    iterator: Iterator[Any],
    steps: int,
    config: TrainConfig,
    epoch: int,
    progress: Progress,
) -> Any:
    """Do one epoch's steps, in calls of about half a second; return the summed numbers, float64 [4]."""
    totals, done, per_call = tf.zeros(4, tf.float64), 0, 1
    while done < steps:
        count = min(per_call, steps - done)
        started = time.monotonic()
        totals = train_steps(iterator, tf.constant(count), totals)
        numbers = totals.numpy()
        elapsed = time.monotonic() - started
        _require_finite(numbers[0], f"in epoch {epoch + 1}, between steps {done + 1} and {done + count} of {steps}", config)
        done += count
        per_call = max(1, min(_MAX_STEPS_PER_CALL, 2 * count, int(_CALL_SECONDS * count / elapsed)))
        detail = f"epoch {epoch + 1}/{config.epochs}  loss {numbers[0] / numbers[3]:.3f}  error {numbers[1] / numbers[3]:.1%}"
        progress(epoch * steps + done, config.epochs * steps, detail)
    return numbers


def _require_finite(loss: float, where: str, config: TrainConfig) -> None:
    """Refuse to go on with a network whose numbers are lost."""
    if not math.isfinite(loss):
        raise TrainingDivergedError(
            f"The loss became {loss} {where}. Expected a finite number. The learning rate {config.learning_rate:g} is probably too "
            f"high: try --set train.learning_rate={config.learning_rate / 10:g}, or --set train.warmup_epochs=2."
        )


def _score_split(score: Callable[[Any, Any], Any], images: Images, size: int, batch_size: int) -> Any:
    """Return the summed numbers over a split, each image once, float64 [4]."""
    batches = evaluation_batches(images, image_size=size, batch_size=batch_size)
    return sum(score(*batch).numpy() for batch in batches)


def _means(prefix: str, sums: Any) -> dict[str, float]:
    """Return mean loss and errors, as fractions, from summed numbers."""
    names = ("loss", "top1_error", "top5_error")
    return {f"{prefix}_{name}": float(value / sums[3]) for name, value in zip(names, sums, strict=False)}
