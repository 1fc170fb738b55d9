"""The training loop, explicit: several optimiser steps in each compiled call, on one device or many.

    for each epoch, until it is finished:
        rate  = learning_rate(settings, history)
        for each step:                                     # several a call, inside one tf.function
            on every replica, with its share of the batch:
                images, labels = augmented(batch)          # as drawn ahead on the host
                gradient = d(sum of losses / global batch) # in parts, where they are accumulated
                sum the gradients over the replicas; clip; decay; momentum; update
            averaged weights += (1 - share) (weights - averaged weights)
        score the validation split
        history += the epoch's numbers; keep the weights if they are the best

Whatever a step changes is a variable, also the count of steps and the epoch's sums, and one compiled call changes them all. So the state is
whole between any two calls: training can be stopped there, killed there and taken up there, and goes the same way, bit for bit.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
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
from pipeline.train.dropout import Place, replica_number, with_placed_dropout
from pipeline.train.optimizer import apply_update, is_finished, learning_rate, make_optimizer, planned_epochs

Progress = Callable[[int, int, str], None]
Say = Callable[[str], None]
# A compiled call takes about this long: long enough that its overhead is nothing, short enough that Ctrl-C is answered.
_CALL_SECONDS = 0.5
_MAX_STEPS_PER_CALL = 64
_CLOCK = frozenset({"seconds", "images_per_second", "time"})
# Checkpoints wait until they take no more than this share of the time.
_CHECKPOINT_SHARE = 0.025


@dataclass
class State:
    """What training changes.

    `network` and `optimizer`; `judged`, the network that is scored and kept, another one where weights are averaged; `place` of the next
    step; `steps` done since the beginning, int64; `sums` over the current epoch, float64 [4] as `_sums` gives them; the finished epochs;
    the weights of the best of them; seconds spent on the current one; and the epochs, from 1, from which training went back.
    """

    network: Any
    optimizer: Any
    judged: Any
    place: Place
    steps: Any
    sums: Any
    history: list[dict[str, float]]
    best: list[np.ndarray[Any, Any]]
    seconds: float = 0.0
    setbacks: list[int] = field(default_factory=list)

    def variables(self) -> dict[str, Any]:
        """Return every variable by a stable name: weights, averaged weights, optimiser slots, counts."""
        groups = {"model": self.network.variables, "optimizer": self.optimizer.variables, "count": [self.steps, self.sums]}
        if self.judged is not self.network:
            groups["judged"] = self.judged.weights
        return {f"{group}/{i}": variable for group, variables in groups.items() for i, variable in enumerate(variables)}

    def save(self, path: Path) -> None:
        """Write everything into one file."""
        arrays = {name: np.asarray(variable.numpy()) for name, variable in self.variables().items()}
        arrays |= {f"best/{i}": weights for i, weights in enumerate(self.best)}
        save_checkpoint(path, arrays, {"history": self.history, "seconds": self.seconds, "setbacks": self.setbacks})

    def restore(self, path: Path) -> str:
        """Take up what a training left, if it left anything; say what was wrong with its last file if the one before it was taken."""
        found = read_checkpoint(path)
        if found is None:
            return ""
        arrays, record, problem = found
        self.history, self.seconds, self.setbacks = record["history"], record["seconds"], record["setbacks"]
        for name, variable in self.variables().items():
            variable.assign(arrays[name])
        self.best = [arrays[f"best/{i}"] for i in range(len(self.best))]
        return problem


def prepare(load_network: Callable[[], Any], config: TrainConfig, strategy: Any) -> State:
    """Return the state at the first step, the trained variables made inside the strategy's scope.

    Args:
        load_network: returns the uncompiled network.
        config: seed, precision, what is frozen, and the optimiser's settings.
        strategy: a `tf.distribute` strategy, or None for one device.
    """
    loaded = load_network()
    place = Place(config.seed, config.global_batch_size)
    with strategy.scope() if strategy is not None else tf.init_scope():
        network = with_placed_dropout(loaded, place)
        _freeze(network, config.freeze)
        _set_precision(network, config.precision)
        optimizer = make_optimizer(config, network.trainable_variables)
    _freeze(loaded, config.freeze)
    steps, sums = tf.Variable(0, dtype=tf.int64, trainable=False), tf.Variable(tf.zeros(4, tf.float64), trainable=False)
    best = [np.asarray(value) for value in loaded.get_weights()]
    return State(network, optimizer, loaded if config.ema else network, place, steps, sums, [], best)


def fit(
    state: State, train: Images, validation: Images, config: TrainConfig, strategy: Any, checkpoint: Path, progress: Progress, say: Say
) -> Generator[dict[str, float]]:
    """Train from where the state is, and yield each epoch's numbers; epochs taken up from the checkpoint are yielded first.

    `state` holds the weights of the last epoch and `state.best` those of the best one when the iterator ends. When SIGINT or SIGTERM
    ends it, or it is closed, the checkpoint holds the last step.

    Raises:
        TrainingDivergedError: the loss became NaN or infinite, more often than `config.setbacks` forgives.
    """
    train_steps, score = _compiled_training(state, train, config, strategy), _compiled_scoring(state.judged)
    spread = iter if strategy is None else lambda batches: iter(strategy.experimental_distribute_dataset(batches))
    size, per_epoch = state.network.input_shape[1], len(train) // config.global_batch_size
    signal = _compiled_signal(state.judged, validation)
    if problem := state.restore(checkpoint):
        say(f"{problem}; the training goes on from step {int(state.steps.numpy())}, the checkpoint before it")
    yield from state.history
    keeper = _Keeper(state, checkpoint, config)

    def epochs() -> Iterator[dict[str, float]]:
        done, start = len(state.history), int(state.steps.numpy()) - len(state.history) * per_epoch
        for batches in training_epochs(train, config, image_size=size, first=done, start=start, opened=spread):
            if is_finished(config, state.history):
                return
            if config.setbacks and int(state.steps.numpy()) == len(state.history) * per_epoch:
                state.save(between_epochs(checkpoint))
            begun, processor = time.monotonic() - state.seconds, time.process_time()
            entered = time.monotonic()
            epoch = len(state.history)
            rate = learning_rate(config, state.history, len(state.setbacks))
            state.optimizer.learning_rate.assign(rate)
            images_per_second = _run_epoch(state, train_steps, batches, per_epoch, config, begun, keeper, progress)
            _finish_average(state)
            scored = _score_split(score, validation, size, config.global_batch_size)
            _require_finite(scored[0], f"on the validation split after epoch {epoch + 1}", rate)
            entry = {"epoch": epoch + 1, "learning_rate": rate, **_means("train", state.sums.numpy()), **_means("validation", scored)}
            entry |= signal(rate) | ({"setbacks": len(state.setbacks)} if config.setbacks else {})
            entry |= {"images_per_second": images_per_second, "seconds": time.monotonic() - begun, "time": time.time()}
            entry |= _usage((time.process_time() - processor) / (time.monotonic() - entered))
            if _is_better(entry, state.history):
                state.best = [np.asarray(value) for value in state.judged.get_weights()]
            state.history.append(entry)  # this alone ends the epoch: what was set before is found again if we are stopped before it
            state.seconds = 0.0
            keeper.save_if_due()
            yield entry

    yield from _with_ways_back(epochs, state, config, checkpoint, say)


def _with_ways_back(
    epochs: Callable[[], Iterator[dict[str, float]]], state: State, config: TrainConfig, checkpoint: Path, say: Say
) -> Iterator[dict[str, float]]:
    """Yield from `epochs`; begin them again from the last epoch's end when the loss is lost, and save when asked to stop."""
    try:
        finished = False
        while not finished:
            try:
                yield from epochs()
                finished = True
            except TrainingDivergedError as error:
                if len(state.setbacks) >= config.setbacks:
                    raise
                _go_back(state, between_epochs(checkpoint))
                state.save(checkpoint)
                place = f"the training goes back to the end of epoch {len(state.history)}, at half the rate"
                say(f"{str(error).partition('.')[0]}: {place} ({len(state.setbacks)} of {config.setbacks} times)")
    except (KeyboardInterrupt, GeneratorExit):  # here, or where the epoch's numbers are made use of
        with contextlib.suppress(TrainingDivergedError):  # what is not finite is not worth keeping
            state.save(checkpoint)
        raise


def between_epochs(checkpoint: Path) -> Path:
    """Return where the state at the end of the last epoch is, for going back."""
    return checkpoint.with_name(f"epoch-{checkpoint.name}")


def _go_back(state: State, whole: Path) -> None:
    """Return to the end of the last epoch, and remember that."""
    setbacks = [*state.setbacks, len(state.history) + 1]
    state.restore(whole)
    state.setbacks = setbacks


class _Keeper:
    """Saves checkpoints so often that little is lost and so seldom that little time is."""

    def __init__(self, state: State, path: Path, config: TrainConfig):
        self._state, self._path, self._least = state, path, config.checkpoint_seconds
        self._wait, self._saved = config.checkpoint_seconds, time.monotonic()

    def save_if_due(self) -> None:
        """Save if the last time is long enough ago."""
        begun = time.monotonic()
        if begun - self._saved < self._wait:
            return
        self._state.save(self._path)
        self._saved = time.monotonic()
        self._wait = max(self._least, (self._saved - begun) / _CHECKPOINT_SHARE) if self._least else 0.0


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
    """Return a function (iterator, steps, fresh) -> sums that does that many optimiser steps in one call, fewer if the loss is not finite.

    It goes on adding to the epoch's sums unless they are to be fresh, so that they do not depend on how many steps one call does.
    """
    replicas = strategy.num_replicas_in_sync if strategy is not None else 1
    network, optimizer, parts, share = state.network, state.optimizer, config.accumulate, config.global_batch_size // replicas
    weights = class_weights(train.dataset) if config.class_weights else None
    variables = network.trainable_variables

    def gradients_of(batch: Sequence[Any], first: Any) -> tuple[list[Any], Any]:
        state.place.step, state.place.first[replica_number()] = optimizer.iterations, first
        images, labels, partners, shares = batch
        with tf.GradientTape() as tape:
            logits = tf.cast(network(images, training=True), tf.float32)
            losses = _losses(labels, logits, weights, config.label_smoothing)
            if partners is not None:
                losses = shares * losses + (1 - shares) * _losses(partners, logits, weights, config.label_smoothing)
            loss, numbers = _sums(labels, logits, losses)
            loss = loss / config.global_batch_size
        return tape.gradient(loss, variables), numbers

    def in_parts(batch: Sequence[Any], first: Any) -> tuple[list[Any], Any]:
        rows = share // parts
        total, numbers = [tf.zeros(variable.shape) for variable in variables], tf.zeros(4, tf.float64)
        for part in tf.range(parts):
            piece = [values if values is None else values[part * rows : (part + 1) * rows] for values in batch]
            piece[0] = tf.ensure_shape(piece[0], (rows, *batch[0].shape[1:]))
            gradients, counted = gradients_of(piece, first + part * rows)
            total = [tf.add(one, other) for one, other in zip(total, gradients, strict=True)]
            numbers += counted
        return total, numbers

    def step(batch: Any) -> Any:
        first = replica_number() * share
        given = augmented(batch, config, train.dataset)
        gradients, numbers = gradients_of(given, first) if parts == 1 else in_parts(given, first)
        apply_update(optimizer, variables, gradients, config, replicas)
        return numbers

    @tf.function(reduce_retracing=True)
    def train_steps(iterator: Any, steps: Any, fresh: Any) -> Any:
        sums = tf.where(fresh, tf.zeros_like(state.sums), state.sums)
        done = tf.constant(0, tf.int64)
        while done < steps and tf.math.is_finite(sums[0]):
            if strategy is None:
                sums += step(next(iterator))
            else:
                sums += strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(step, args=(next(iterator),)), axis=None)
            if config.ema:
                _average(state, config.ema)
            done += 1
        state.sums.assign(sums)
        state.steps.assign_add(done)
        return sums

    return train_steps


def _average(state: State, share: float) -> None:
    """Move the averaged weights towards the weights; at first faster, so that the beginning does not linger (as TensorFlow's own does)."""
    steps = tf.cast(state.optimizer.iterations, tf.float32)
    share = tf.minimum(share, (1 + steps) / (10 + steps))
    for averaged, weights in zip(state.judged.trainable_variables, state.network.trainable_variables, strict=True):
        averaged.assign_sub((1 - share) * (averaged - weights))


def _finish_average(state: State) -> None:
    """Give the judged network what is not averaged, such as the statistics of batch normalisation."""
    if state.judged is not state.network:
        for kept, own in zip(state.judged.non_trainable_weights, state.network.non_trainable_weights, strict=True):
            kept.assign(own)


def _losses(labels: Any, logits: Any, weights: Any, smoothing: float = 0.0) -> Any:
    """Return the cross-entropies [batch], each times the weight of its class where there are weights, float32 [classes].

    Of a smoothed label a share is the same for every class (Szegedy and others, 2015, section 7).
    """
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    if smoothing:
        losses = (1 - smoothing) * losses - smoothing * tf.reduce_mean(tf.nn.log_softmax(logits), axis=1)
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
    state: State,
    train_steps: Callable[[Any, Any, Any], Any],
    batches: Iterator[Any],
    per_epoch: int,
    config: TrainConfig,
    begun: float,
    keeper: _Keeper,
    progress: Progress,
) -> float:
    """Do what is left of an epoch's steps, as many in one call as take about half a second; return images a second."""
    epoch, before, started, per_call = len(state.history), int(state.steps.numpy()), time.monotonic(), 1
    end, epochs = (epoch + 1) * per_epoch, planned_epochs(config, state.history)
    while (done := int(state.steps.numpy())) < end:
        count, called = min(per_call, end - done), time.monotonic()
        sums = train_steps(batches, tf.constant(count, tf.int64), tf.constant(done == epoch * per_epoch)).numpy()
        elapsed = time.monotonic() - called
        state.seconds = time.monotonic() - begun
        done = int(state.steps.numpy())
        _require_finite(sums[0], f"in epoch {epoch + 1}, at step {done - epoch * per_epoch} of {per_epoch}", state.optimizer.learning_rate)
        per_call = max(1, min(_MAX_STEPS_PER_CALL, 2 * count, int(_CALL_SECONDS * count / elapsed)))
        keeper.save_if_due()
        detail = f"epoch {epoch + 1}/{epochs}  loss {sums[0] / sums[3]:.3f}  error {sums[1] / sums[3]:.1%}"
        progress(done, epochs * per_epoch, detail)
    return float((end - before) * config.global_batch_size / (time.monotonic() - started))


def _usage(processors: float) -> dict[str, float]:
    """Return how much of the machine an epoch took: processors busy on average, GB of memory, and GB of each GPU's at most."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    used = {"system/processors": processors, "system/memory_gb": pages * os.sysconf("SC_PAGE_SIZE") / 1e9}
    for number, _ in enumerate(tf.config.list_logical_devices("GPU")):
        used[f"system/gpu{number}_memory_gb"] = tf.config.experimental.get_memory_info(f"GPU:{number}")["peak"] / 1e9
    return used


def without_clock(entry: dict[str, float]) -> dict[str, float]:
    """Return the numbers of an epoch that the same training has each time: all but readings of the clock and of the machine."""
    return {name: value for name, value in entry.items() if name not in _CLOCK and not name.startswith("system/")}


def _require_finite(loss: float, where: str, rate: Any) -> None:
    """Refuse to go on with a network whose numbers are lost."""
    if not math.isfinite(loss):
        rate = float(rate)
        raise TrainingDivergedError(
            f"The loss became {loss} {where}. Expected a finite number. The learning rate {rate:g} is probably too high: try "
            f"--set train.learning_rate={rate / 10:g}, or --set train.warmup_epochs=2, or --set train.setbacks=3 to go on from the last "
            "epoch at half the rate."
        )


def _score_split(score: Callable[[Any, Any], Any], images: Images, size: int, batch_size: int) -> Any:
    """Return the summed numbers over a split, each image once, float64 [4]."""
    batches = evaluation_batches(images, image_size=size, batch_size=batch_size)
    return sum(score(*batch).numpy() for batch in batches)


def _means(prefix: str, sums: Any) -> dict[str, float]:
    """Return mean loss and errors, as fractions, from summed numbers."""
    names = ("loss", "top1_error", "top5_error")
    return {f"{prefix}_{name}": float(value / sums[3]) for name, value in zip(names, sums, strict=False)}
