"""Random layers whose numbers follow from the seed, the step and an image's row in the batch.

Keras's own layers count their calls in a state that no checkpoint keeps, and draw the same numbers
on every replica. Here they are drawn for the whole global batch and each device takes the rows of
its images: several replicas, or micro-batches one after the other, train as one device does, and
nothing need be saved.

`make_stateless` knows dropout of every kind, stochastic depth and noise. Other layers that draw are
refused by `pipeline.train.network_copy`, which never trains with numbers that cannot be repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from pipeline.random_streams import dropout_key

if TYPE_CHECKING:
    from pipeline.arrays import Layer, Tensor

# The negative saturation of SELU, -alpha * scale (Klambauer and others, 2017, section 2), to which
# AlphaDropout sets what it drops.
_SELU_SATURATION = -1.6732632423543772 * 1.0507009873554805


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


class StatelessLayer(keras.layers.Layer):
    """A layer that draws by the row of an image in the global batch, while training.

    Args:
        position: seed and global batch; `step` and `first` are set while tracing.
        index: of the layer among the network's random layers, so that no two share numbers.
    """

    def __init__(self, position: BatchPosition, index: int, **kwargs: Any):
        super().__init__(**kwargs)
        self._position = position
        self._index = index

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Return [rows, ...] of the same dtype; the inputs as they are while not training."""
        return self.disturb(inputs) if training else inputs

    def disturb(self, inputs: Tensor) -> Tensor:
        """Return the inputs, [rows, ...], with the step's random numbers applied."""
        raise NotImplementedError

    def draw(
        self,
        distribution: Callable[[Sequence[int], Tensor], Tensor],
        inputs: Tensor,
        noise_shape: Sequence[int | None] | None = None,
    ) -> Tensor:
        """Return the random numbers of the replica's images, float32.

        Args:
            distribution: function (shape, seed) -> numbers, of `tf.random`.
            inputs: [rows, ...].
            noise_shape: shape of the numbers, None where it is that of the inputs; 1 shares one
                number along an axis, in the first place among all images.
        """
        wanted = tuple(noise_shape or (None,) * len(inputs.shape))
        shape = [given or size for given, size in zip(wanted, inputs.shape, strict=True)][1:]
        position = self._position
        seed = tf.stack(
            [
                tf.constant(dropout_key(seed=position.seed, layer=self._index), tf.int64),
                tf.cast(position.step, tf.int64),
            ]
        )
        if wanted[0] == 1:
            return distribution([1, *shape], seed)
        first, rows = position.first[get_replica_number()], tf.shape(inputs)[0]
        return distribution([position.batch, *shape], seed)[first : first + rows]


class StatelessDropout(StatelessLayer):
    """Set a fraction of the inputs to zero while training, and scale the others to keep the mean.

    Args:
        rate: the fraction, in [0, 1).
        position: as of `StatelessLayer`.
        index: as of `StatelessLayer`.
        noise_shape: as of `StatelessLayer.draw`: (None, 1, 1, 1) drops whole images' branches, as
            stochastic depth does, and (None, 1, 1, None) whole maps.
    """

    def __init__(
        self,
        rate: float,
        position: BatchPosition,
        index: int,
        noise_shape: Sequence[int | None] | None = None,
        **kwargs: Any,
    ):
        super().__init__(position, index, **kwargs)
        self.rate, self.noise_shape = rate, noise_shape

    def disturb(self, inputs: Tensor) -> Tensor:
        """Return the inputs, [rows, ...], a fraction of them zero."""
        kept = self.draw(tf.random.stateless_uniform, inputs, self.noise_shape) >= self.rate
        return tf.where(kept, inputs / tf.cast(1 - self.rate, inputs.dtype), tf.zeros_like(inputs))


class StatelessAlphaDropout(StatelessDropout):
    """Set a fraction of the inputs to SELU's saturation, and keep mean and variance.

    An affine map follows (Klambauer and others, 2017, section 3). Arguments as of
    `StatelessDropout`.
    """

    def disturb(self, inputs: Tensor) -> Tensor:
        """Return the inputs, [rows, ...], a fraction of them saturated."""
        kept = self.draw(tf.random.stateless_uniform, inputs, self.noise_shape) >= self.rate
        slope = ((1 - self.rate) * (1 + self.rate * _SELU_SATURATION**2)) ** -0.5
        offset = -slope * _SELU_SATURATION * self.rate
        return slope * tf.where(kept, inputs, tf.cast(_SELU_SATURATION, inputs.dtype)) + offset


class StatelessNoise(StatelessLayer):
    """Add Gaussian noise of mean 0, or multiply by Gaussian noise of mean 1.

    Args:
        deviation: standard deviation of the noise.
        position: as of `StatelessLayer`.
        index: as of `StatelessLayer`.
        multiply: whether to multiply, as `GaussianDropout` does.
    """

    def __init__(
        self,
        deviation: float,
        position: BatchPosition,
        index: int,
        *,
        multiply: bool,
        **kwargs: Any,
    ):
        super().__init__(position, index, **kwargs)
        self.deviation, self.multiply = deviation, multiply

    def disturb(self, inputs: Tensor) -> Tensor:
        """Return the inputs, [rows, ...], with noise."""
        drawn = self.draw(tf.random.stateless_normal, inputs)
        noise = tf.cast(self.deviation * drawn, inputs.dtype)
        return inputs * (1 + noise) if self.multiply else inputs + noise


def make_stateless(layer: Layer, position: BatchPosition, index: int) -> Layer | None:
    """Return the layer that does by row what a random layer of Keras does; None for other layers.

    Subclasses of Keras's layers are other layers: what they draw is not known.

    Args:
        layer: of the network.
        position: as of `StatelessLayer`.
        index: as of `StatelessLayer`.
    """
    kind, layers = type(layer), keras.layers
    options: dict[str, Any] = {"name": layer.name, "dtype": layer.dtype_policy}
    if kind in (layers.Dropout, layers.AlphaDropout):
        replacement = StatelessDropout if kind is layers.Dropout else StatelessAlphaDropout
        return replacement(layer.rate, position, index, layer.noise_shape, **options)
    spatial = (layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D)
    if kind in spatial:
        axes = (1,) * (1 + spatial.index(kind))
        first = getattr(layer, "data_format", "channels_last") == "channels_first"
        noise_shape = (None, None, *axes) if first else (None, *axes, None)
        return StatelessDropout(layer.rate, position, index, noise_shape, **options)
    if _is_stochastic_depth(layer):
        rate, noise_shape = layer.drop_path_rate, (None, 1, 1, 1)
        return StatelessDropout(rate, position, index, noise_shape, **options)
    if kind is layers.GaussianDropout:
        deviation = math.sqrt(layer.rate / (1 - layer.rate))
        return StatelessNoise(deviation, position, index, multiply=True, **options)
    if kind is layers.GaussianNoise:
        return StatelessNoise(layer.stddev, position, index, multiply=False, **options)
    return None


def _is_stochastic_depth(layer: Layer) -> bool:
    """Return whether a layer is the one of Keras's ConvNeXt, of which Keras has no public name."""
    kind = type(layer)
    return kind.__name__ == "StochasticDepth" and kind.__module__.startswith("keras.")
