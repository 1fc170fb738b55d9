"""One optimizer step, and the scoring of a batch, as TensorFlow compiles them for one device or many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from pipeline.config.train import TrainConfig
from pipeline.data.augment import augment_batch, compute_class_weights
from pipeline.data.loader import LoadedSplit
from pipeline.train.dropout import replica_number
from pipeline.train.optimizer import apply_update, loss_scale
from pipeline.train.state import State
from pipeline.train.strategy import Devices


def sums_of(labels: Any, logits: Any, losses: Any = None) -> tuple[Any, Any]:
    """Return the summed losses, cross-entropy unless others are given, and float64 [loss sum, top-1 errors, top-5 errors, images].

    A label below 0 stands for no image.
    """
    counted = labels >= 0
    labels = tf.maximum(labels, 0)
    if losses is None:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    # How many classes stand before the label; of equal logits the lower class does, as in
    # evaluation. `in_top_k` would forgive ties.
    own = tf.gather(logits, labels, axis=1, batch_dims=1)[:, tf.newaxis]
    before = (logits > own) | (
        (logits == own) & (tf.range(logits.shape[-1]) < labels[:, tf.newaxis])
    )
    rank = tf.reduce_sum(tf.cast(before, tf.int32), axis=1)
    each = tf.stack(
        [
            tf.cast(value, tf.float64)
            for value in (losses, rank >= 1, rank >= 5, tf.ones_like(losses))
        ]
    )
    return tf.reduce_sum(losses), tf.reduce_sum(tf.where(counted, each, 0.0), axis=1)


def losses_of(labels: Any, logits: Any, weights: Any, smoothing: float = 0.0) -> Any:
    """Return the cross-entropies [batch], each times the weight of its class where there are weights, float32 [classes].

    Of a smoothed label a share is the same for every class (Szegedy and others, 2015, section 7).
    """
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    if smoothing:
        losses = (1 - smoothing) * losses - smoothing * tf.reduce_mean(
            tf.nn.log_softmax(logits), axis=1
        )
    return losses if weights is None else losses * tf.gather(weights, labels)


def gradient_function(
    state: State, train: LoadedSplit, config: TrainConfig
) -> Callable[[Sequence[Any], Any, Any], tuple[list[Any], Any]]:
    """Return a function (batch, step, first row) -> the gradients of loss sum / global batch, and the summed numbers.

    A batch is what `augment_batch` gives; the first row is the place of its first image in the global
    batch. In float16 the loss, and so each gradient, is multiplied by the optimizer's scale.
    """
    network, optimizer, variables = (
        state.network,
        state.optimizer,
        state.network.trainable_variables,
    )
    weights = compute_class_weights(train.dataset) if config.class_weights else None

    def gradients_of(batch: Sequence[Any], step: Any, first: Any) -> tuple[list[Any], Any]:
        state.place.step, state.place.first[replica_number()] = step, first
        images, labels, partners, shares = batch
        with tf.GradientTape() as tape:
            logits = tf.cast(network(images, training=True), tf.float32)
            losses = losses_of(labels, logits, weights, config.label_smoothing)
            if partners is not None:
                losses = shares * losses + (1 - shares) * losses_of(
                    partners, logits, weights, config.label_smoothing
                )
            loss, numbers = sums_of(labels, logits, losses)
            loss = loss / config.global_batch_size * loss_scale(optimizer)
        return tape.gradient(loss, variables), numbers

    return gradients_of


def compiled_training(
    state: State, train: LoadedSplit, config: TrainConfig, devices: Devices
) -> Callable[[Any, Any, Any], Any]:
    """Return a function (iterator, steps, fresh) -> sums that does that many optimizer steps in one call, fewer if the loss is not finite.

    It goes on adding to the epoch's sums unless they are to be fresh, so that they do not depend on
    how many steps one call does.
    """
    gradients_of, strategy, replicas = (
        gradient_function(state, train, config),
        devices.strategy,
        devices.replicas,
    )
    optimizer, variables = state.optimizer, state.network.trainable_variables
    parts, share = max(1, state.parts), config.global_batch_size // replicas

    def in_parts(batch: Sequence[Any], number: Any, first: Any) -> tuple[list[Any], Any]:
        rows = share // parts
        total, numbers = (
            [tf.zeros(variable.shape) for variable in variables],
            tf.zeros(4, tf.float64),
        )
        for part in tf.range(parts):
            piece = [
                values if values is None else values[part * rows : (part + 1) * rows]
                for values in batch
            ]
            piece[0] = tf.ensure_shape(piece[0], (rows, *batch[0].shape[1:]))
            gradients, counted = gradients_of(piece, number, first + part * rows)
            total = [tf.add(one, other) for one, other in zip(total, gradients, strict=True)]
            numbers += counted
        return total, numbers

    def step(batch: Any, number: Any) -> Any:
        first = replica_number() * share
        given = augment_batch(batch, config, train.dataset)
        gradients, numbers = (
            gradients_of(given, number, first) if parts == 1 else in_parts(given, number, first)
        )
        apply_update(optimizer, variables, gradients, config, replicas)
        return numbers

    @tf.function(reduce_retracing=True)
    def train_steps(iterator: Any, steps: Any, fresh: Any) -> Any:
        sums = tf.where(fresh, tf.zeros_like(state.sums), state.sums)
        done = tf.constant(0, tf.int64)
        while done < steps and tf.math.is_finite(sums[0]):
            number = state.steps + done
            if strategy is None:
                sums += step(next(iterator), number)
            else:
                sums += strategy.reduce(
                    tf.distribute.ReduceOp.SUM,
                    strategy.run(step, args=(next(iterator), number)),
                    axis=None,
                )
            if config.ema_decay:
                _average(state, config.ema_decay, number + 1)
            done += 1
        state.sums.assign(sums)
        state.steps.assign_add(done)
        return sums

    return train_steps


def _average(state: State, share: float, steps: Any) -> None:
    """Move the averaged weights towards the weights.

    At first faster, so that the beginning does not linger (as TensorFlow's own does).
    """
    steps = tf.cast(steps, tf.float32)
    share = tf.minimum(share, (1 + steps) / (10 + steps))
    for averaged, weights in zip(
        state.judged.trainable_variables, state.network.trainable_variables, strict=True
    ):
        averaged.assign_sub((1 - share) * (averaged - weights))


def finish_average(state: State) -> None:
    """Give the judged network what is not averaged, such as the statistics of batch normalization."""
    if state.judged is not state.network:
        for kept, own in zip(
            state.judged.non_trainable_weights, state.network.non_trainable_weights, strict=True
        ):
            kept.assign(own)


def compiled_scoring(network: Any, devices: Devices) -> Callable[[Any], Any]:
    """Return a function (iterator) -> summed numbers of this worker's next batch, without training.

    Batches are `evaluation_batches` as `Devices.spread` gives them.
    """

    def scored(batch: Mapping[str, Any]) -> Any:
        return sums_of(
            batch["labels"], tf.cast(network(batch["pixels"], training=False), tf.float32)
        )[1]

    @tf.function(reduce_retracing=True)
    def score(iterator: Any) -> Any:
        if devices.strategy is None:
            return scored(next(iterator))
        shares = devices.strategy.run(scored, args=(next(iterator),))
        return tf.add_n(
            devices.strategy.experimental_local_results(shares)
        )  # of this worker alone: it waits for no other

    return score
