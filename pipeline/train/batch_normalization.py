"""Batch normalization over a step's images on all replicas and workers, in two passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras
import tensorflow as tf

if TYPE_CHECKING:
    from pipeline.arrays import Tensor


class StepBatchNormalization(keras.layers.BatchNormalization):
    """Normalize by mean and variance of all images of the step, wherever they are.

    Keras's `synchronized=True` takes the variance as E[x^2] - E[x]^2, in which float32 loses what
    maps with a large mean or hardly any variance have: in a DenseNet two replicas were 240 times as
    far from one device as here, where the mean is known before the squares are summed. Weights,
    settings and inference are Keras's.
    """

    def call(
        self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Normalize float [batch, ...] along `axis`, in float32; same shape and dtype out."""
        if not (training and self.trainable) or mask is not None or self.renorm:
            return super().call(inputs, training=training, mask=mask)
        x = tf.cast(inputs, tf.float64 if inputs.dtype == tf.float64 else tf.float32)
        axis = self.axis % len(x.shape)
        others = [index for index in range(len(x.shape)) if index != axis]
        shape = [1] * axis + [-1] + [1] * (len(x.shape) - axis - 1)
        mean = _average_over_replicas(tf.reduce_mean(x, others))
        # As in `tf.nn.moments`: the sum of the deviations is 0, and so is its gradient.
        center = tf.reshape(tf.stop_gradient(mean), shape)
        squares = tf.reduce_mean(tf.math.squared_difference(x, center), others)
        variance = _average_over_replicas(squares)
        for kept, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            kept.assign(kept * self.momentum + new * (1 - self.momentum))
        outputs = keras.ops.batch_normalization(
            x, mean, variance, axis, offset=self.beta, scale=self.gamma, epsilon=self.epsilon
        )
        return tf.cast(outputs, self.compute_dtype)


def _average_over_replicas(values: Tensor) -> Tensor:
    """Return the mean of all replicas' values; they have the same number of images."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return values
    total = context.all_reduce(tf.distribute.ReduceOp.SUM, values)
    return total / context.num_replicas_in_sync
