"""Dropout whose masks follow from the seed, the step and an image's row in the global batch.

Keras's own layer counts its calls in a state that no checkpoint keeps, and draws the same mask on
every replica. Here a mask is drawn for the whole global batch and each device takes the rows of its
images: several replicas, or micro-batches one after the other, train as one device does, and
nothing need be saved.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from pipeline.random_streams import MAX_DROPOUT_LAYERS, dropout_key

if TYPE_CHECKING:
    from pipeline.arrays import Layer, Network, Tensor


@dataclass
class BatchPosition:
    """Which images of the training each replica works on, as tensors of the graph being traced.

    Attributes:
        seed: of the training.
        batch: images in the global batch.
        step: number of the optimizer step, int64.
        first: replica number -> row of the global batch with which its images begin. By replica,
            as TensorFlow traces the replicas in turns where they exchange sums inside a network.
    """

    seed: int
    batch: int
    step: Tensor | int = 0
    first: dict[int, Tensor | int] = field(default_factory=dict)


@tf.autograph.experimental.do_not_convert
def get_replica_number() -> int:
    """Return the number of the replica that is being traced, from 0; 0 without a strategy."""
    context = tf.distribute.get_replica_context()
    return int(tf.get_static_value(context.replica_id_in_sync_group)) if context is not None else 0


class StatelessDropout(keras.layers.Layer):
    """Set a fraction of the inputs to zero while training, and scale the others to keep the mean.

    Args:
        rate: the fraction, in [0, 1).
        position: seed and global batch; `step` and `first` are set while tracing.
        index: of the layer among the network's dropout layers, so that no two share masks.
    """

    def __init__(self, rate: float, position: BatchPosition, index: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.rate = rate
        self._position = position
        self._index = index

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Return [rows, ...] of the same dtype; the inputs as they are while not training."""
        if not training:
            return inputs
        position, rows = self._position, tf.shape(inputs)[0]
        first = position.first[get_replica_number()]
        seed = tf.stack(
            [
                tf.constant(dropout_key(seed=position.seed, layer=self._index), tf.int64),
                tf.cast(position.step, tf.int64),
            ]
        )
        drawn = tf.random.stateless_uniform([position.batch, *inputs.shape[1:]], seed)
        kept = drawn[first : first + rows] >= self.rate
        return tf.where(kept, inputs / tf.cast(1 - self.rate, inputs.dtype), tf.zeros_like(inputs))


def use_stateless_dropout(network: Network, position: BatchPosition) -> Network:
    """Return a copy of a network, weights and all, whose dropout is stateless.

    Variables are made in the scope that is active.
    """
    index = iter(range(MAX_DROPOUT_LAYERS))

    def copy_layer(layer: Layer) -> Layer:
        if isinstance(layer, keras.layers.Dropout):
            return StatelessDropout(
                layer.rate, position, next(index), name=layer.name, dtype=layer.dtype_policy
            )
        return layer.__class__.from_config(layer.get_config())

    copy = keras.models.clone_model(network, clone_function=copy_layer)
    copy.set_weights(network.get_weights())
    return copy
