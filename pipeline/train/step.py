"""One optimizer step and the scoring of a batch, compiled by TensorFlow for one device or many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from pipeline.config.train import TrainConfig
from pipeline.data.augment import augment_batch, compute_class_weights
from pipeline.data.loader import LoadedSplit
from pipeline.train.dropout import get_replica_number
from pipeline.train.optimizer import apply_update, get_loss_scale
from pipeline.train.state import TrainingState
from pipeline.train.strategy import Devices

if TYPE_CHECKING:
    from pipeline.arrays import Network, Tensor

    # Images, labels, and of mixed images the partners' labels and the fractions; else twice None.
    AugmentedBatch = Sequence[Tensor]
    # A batch of the loader, by name.
    LoadedBatch = Mapping[str, Tensor]


def compute_sums(
    labels: Tensor, logits: Tensor, losses: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the summed losses, and float64 [loss sum, top-1 errors, top-5 errors, images].

    Args:
        labels: integers [batch]; a label below 0 pads the batch and is not counted.
        logits: float32 [batch, classes].
        losses: float32 [batch]; the cross-entropies if None.
    """
    counted = labels >= 0
    labels = tf.maximum(labels, 0)
    if losses is None:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    # How many classes rank before the label; of equal logits the lower class does, as in
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


def compute_losses(
    labels: Tensor, logits: Tensor, weights: Tensor | None, smoothing: float = 0.0
) -> Tensor:
    """Return the cross-entropies, float32 [batch], times the weights of their classes.

    Args:
        labels: integers [batch].
        logits: float32 [batch, classes].
        weights: float32 [classes]; None for equal weights.
        smoothing: fraction of each label that is spread evenly over all classes (Szegedy and
            others, 2015, section 7).
    """
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    if smoothing:
        losses = (1 - smoothing) * losses - smoothing * tf.reduce_mean(
            tf.nn.log_softmax(logits), axis=1
        )
    return losses if weights is None else losses * tf.gather(weights, labels)


def make_gradient_function(
    state: TrainingState, train: LoadedSplit, config: TrainConfig
) -> Callable[[AugmentedBatch, Tensor, Tensor | int], tuple[list[Tensor], Tensor]]:
    """Return a function (batch, step, first row) -> gradients of loss sum / global batch, sums.

    The sums are those of `compute_sums`. A batch is what `augment_batch` gives; the first row is
    the index of its first image in the global batch. In float16 the loss, and so each gradient, is
    multiplied by the optimizer's scale.
    """
    network, optimizer, variables = (
        state.network,
        state.optimizer,
        state.network.trainable_variables,
    )
    weights = compute_class_weights(train.dataset) if config.class_weights else None

    def compute_gradients(
        batch: AugmentedBatch, step: Tensor, first: Tensor | int
    ) -> tuple[list[Tensor], Tensor]:
        state.batch_position.step, state.batch_position.first[get_replica_number()] = step, first
        images, labels, partners, fractions = batch
        # Of these alone: through layers that are frozen no gradient is computed.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in variables])
            logits = tf.cast(network(images, training=True), tf.float32)
            losses = compute_losses(labels, logits, weights, config.label_smoothing)
            if partners is not None:
                losses = fractions * losses + (1 - fractions) * compute_losses(
                    partners, logits, weights, config.label_smoothing
                )
            loss, sums = compute_sums(labels, logits, losses)
            loss = loss / config.global_batch_size * get_loss_scale(optimizer)
        zero = tf.UnconnectedGradients.ZERO
        return tape.gradient(loss, variables, unconnected_gradients=zero), sums

    return compute_gradients


def compile_training(
    state: TrainingState, train: LoadedSplit, config: TrainConfig, devices: Devices
) -> Callable[[Iterator[LoadedBatch], Tensor, Tensor], Tensor]:
    """Return a function (iterator, steps, fresh) -> sums that does that many steps in one call.

    It does fewer if the loss is not finite. It goes on adding to the epoch's sums unless they are
    to be fresh, so that they do not depend on how many steps one call does.
    """
    compute_gradients, strategy, replicas = (
        make_gradient_function(state, train, config),
        devices.strategy,
        devices.replicas,
    )
    optimizer, variables = state.optimizer, state.network.trainable_variables
    multipliers = state.list_rate_multipliers()
    micro_batches = max(1, state.gradient_accumulation_steps)
    replica_batch = config.global_batch_size // replicas

    # What replicas exchange inside a network cannot be exchanged inside a loop of TensorFlow.
    unrolled = strategy is not None and any(
        isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        for layer in state.network.layers
    )

    def accumulate_gradients(
        batch: AugmentedBatch, number: Tensor, first: int
    ) -> tuple[list[Tensor], Tensor]:
        rows = replica_batch // micro_batches
        total, sums = (
            [tf.zeros(variable.shape) for variable in variables],
            tf.zeros(4, tf.float64),
        )
        for index in range(micro_batches) if unrolled else tf.range(micro_batches):
            micro_batch = [
                values if values is None else values[index * rows : (index + 1) * rows]
                for values in batch
            ]
            with tf.control_dependencies([sums, *total]):  # one after the other
                micro_batch[0] = tf.identity(micro_batch[0])
            micro_batch[0] = tf.ensure_shape(micro_batch[0], (rows, *batch[0].shape[1:]))
            gradients, counted = compute_gradients(micro_batch, number, first + index * rows)
            total = [tf.add(one, other) for one, other in zip(total, gradients, strict=True)]
            sums += counted
        return total, sums

    def do_step(batch: LoadedBatch, number: Tensor) -> Tensor:
        first = get_replica_number() * replica_batch
        ready = augment_batch(batch, config, train.dataset)
        gradients, sums = (
            compute_gradients(ready, number, first)
            if micro_batches == 1
            else accumulate_gradients(ready, number, first)
        )
        apply_update(optimizer, variables, gradients, config, replicas, multipliers)
        return sums

    @tf.function(reduce_retracing=True)
    def train_steps(iterator: Iterator[LoadedBatch], steps: Tensor, fresh: Tensor) -> Tensor:
        sums = tf.where(fresh, tf.zeros_like(state.sums), state.sums)
        done = tf.constant(0, tf.int64)
        while done < steps and tf.math.is_finite(sums[0]):
            number = state.steps + done
            if strategy is None:
                sums += do_step(next(iterator), number)
            else:
                sums += strategy.reduce(
                    tf.distribute.ReduceOp.SUM,
                    strategy.run(do_step, args=(next(iterator), number)),
                    axis=None,
                )
            if config.ema_decay:
                _update_ema(state, config.ema_decay, number + 1)
            done += 1
        state.sums.assign(sums)
        state.steps.assign_add(done)
        return sums

    return train_steps


def _update_ema(state: TrainingState, decay: float, steps: Tensor) -> None:
    """Move the averaged weights towards the weights.

    At first faster, so that the beginning does not linger (as TensorFlow's own does).
    """
    steps = tf.cast(steps, tf.float32)
    decay = tf.minimum(decay, (1 + steps) / (10 + steps))
    for averaged, weights in zip(
        state.ema_network.trainable_variables, state.network.trainable_variables, strict=True
    ):
        averaged.assign_sub((1 - decay) * (averaged - weights))


def copy_ema_statistics(state: TrainingState) -> None:
    """Copy to the EMA network what is not averaged, such as batch normalization's statistics."""
    if state.ema_network is not state.network:
        for kept, own in zip(
            state.ema_network.non_trainable_weights,
            state.network.non_trainable_weights,
            strict=True,
        ):
            kept.assign(own)


def compile_scoring(
    network: Network, devices: Devices
) -> Callable[[Iterator[LoadedBatch]], Tensor]:
    """Return a function (iterator) -> sums over this worker's next batch, without training.

    Batches are those of `make_scoring_batches`, by way of `Devices.distribute_batches`; the sums
    are those of `compute_sums`.
    """

    def score_replica(batch: LoadedBatch) -> Tensor:
        return compute_sums(
            batch["labels"], tf.cast(network(batch["pixels"], training=False), tf.float32)
        )[1]

    @tf.function(reduce_retracing=True)
    def score_batch(iterator: Iterator[LoadedBatch]) -> Tensor:
        if devices.strategy is None:
            return score_replica(next(iterator))
        sums = devices.strategy.run(score_replica, args=(next(iterator),))
        return tf.add_n(
            devices.strategy.experimental_local_results(sums)
        )  # of this worker alone: it waits for no other

    return score_batch
