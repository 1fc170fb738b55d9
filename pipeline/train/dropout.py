"""Dropout whose masks follow from the seed, the step and the place of an image in the batch, and from nothing else.

Keras's own layer counts its calls in a state that no checkpoint keeps, and draws the same mask on
every replica. Here a mask is drawn for the whole global batch and each device takes the rows of its
images: several replicas, or parts of a batch one after the other, train as one device does, and
nothing need be saved.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf


@dataclass
class Place:
    """Which images of the training each replica works on, as tensors of the graph that is being traced.

    `first` is the row of the global batch with which a replica's images begin, by the replica's
    number: where replicas exchange sums in the middle of a network, TensorFlow traces them in
    turns.
    """

    seed: int
    batch: int
    step: Any = 0
    first: dict[int, Any] = field(default_factory=dict)


@tf.autograph.experimental.do_not_convert
def replica_number() -> int:
    """Return the number of the replica that is being traced, from 0; 0 without a strategy."""
    context = tf.distribute.get_replica_context()
    return int(tf.get_static_value(context.replica_id_in_sync_group)) if context is not None else 0


class PlacedDropout(keras.layers.Layer):
    """Set a share of the inputs to zero while training, and scale the others so that the mean stays.

    Args:
        rate: the share, in [0, 1).
        place: seed and global batch; `step` and `first` are set while tracing.
        index: of the layer among its kind, so that no two share their masks.
    """

    def __init__(self, rate: float, place: Place, index: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.rate = rate
        self._place = place
        self._index = index

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return [rows, ...] of the same dtype; while not training the inputs as they are."""
        if not training:
            return inputs
        place, rows = self._place, tf.shape(inputs)[0]
        first = place.first[replica_number()]
        seed = tf.stack(
            [tf.constant(place.seed * 64 + self._index, tf.int64), tf.cast(place.step, tf.int64)]
        )
        drawn = tf.random.stateless_uniform([place.batch, *inputs.shape[1:]], seed)
        kept = drawn[first : first + rows] >= self.rate
        return tf.where(kept, inputs / tf.cast(1 - self.rate, inputs.dtype), tf.zeros_like(inputs))


def with_placed_dropout(network: Any, place: Place) -> Any:
    """Return a copy of a network, weights and all, whose dropout is placed.

    Variables are made in the scope that is active.
    """
    index = iter(range(64))

    def copied(layer: Any) -> Any:
        if isinstance(layer, keras.layers.Dropout):
            return PlacedDropout(
                layer.rate, place, next(index), name=layer.name, dtype=layer.dtype_policy
            )
        return layer.__class__.from_config(layer.get_config())

    copy = keras.models.clone_model(network, clone_function=copied)
    copy.set_weights(network.get_weights())
    return copy
