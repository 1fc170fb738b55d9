"""Keras layers that AlexNet needs and Keras does not have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

if TYPE_CHECKING:
    from keras.initializers import Initializer

    from pipeline.arrays import Floats, Tensor

    Shape: TypeAlias = Sequence[int | None]

# The `kwargs` below are those of every Keras layer, such as name and dtype: Keras types them.
_PACKAGE = "alexnet"


@keras.saving.register_keras_serializable(_PACKAGE)
class PixelNormalization(keras.layers.Layer):
    """Scale pixels to (pixel - mean) / std for each of red, green and blue.

    Always in float32 (float64 under that policy): half precision has 8 bits for 256 levels. Keras's
    `Normalization` keeps its constants outside the graph, and an ONNX file asks for them as inputs;
    its `Rescaling` adds three numbers at each position, which takes twice as long as adding one
    long row to each line of the image.

    Args:
        mean: RGB, in levels of 0-255.
        std: RGB, in levels, positive.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], **kwargs: Any):
        super().__init__(**kwargs)
        self.mean, self.std = [float(value) for value in mean], [float(value) for value in std]

    def call(self, inputs: Tensor) -> Tensor:
        """Turn uint8 [batch, height, width, 3] in [0, 255] into float of the same shape."""
        _, height, width, channels = inputs.shape
        dtype = tf.float64 if self.compute_dtype == "float64" else tf.float32
        scale = tf.tile(1 / tf.constant(self.std, dtype), [width])
        offset = tf.tile(tf.constant(self.mean, dtype), [width]) * scale
        lines = tf.reshape(tf.cast(inputs, dtype), (-1, height, width * channels)) * scale - offset
        return tf.reshape(lines, (-1, height, width, channels))

    def compute_output_spec(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        """Return the input's shape, in float."""
        return keras.KerasTensor(
            inputs.shape, dtype="float64" if self.compute_dtype == "float64" else "float32"
        )

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return super().get_config() | {"mean": self.mean, "std": self.std}


@keras.saving.register_keras_serializable(_PACKAGE)
class LocalResponseNormalization(keras.layers.Layer):
    """Divide each activation by a power of its neighbors' energy (paper, section 3.3).

    Neighbors are channels.

    b[c] = a[c] / (bias + alpha * sum of a[j]^2 for |j - c| <= depth_radius) ** beta, where the sum
    is over existing channels. As in the paper, and as in TensorFlow's own kernel, alpha is not
    divided by the number of channels summed; Caffe, PyTorch and the code of 2012 divide it.

    The sum over neighbors is a product with a band matrix: 1.8 times as fast as TensorFlow's
    kernel, forward and backward, on a CPU.

    Args:
        depth_radius: channels on each side; 2 makes the paper's n = 5.
        bias: the paper's k.
        alpha: weight of the energy.
        beta: exponent.
        towers: 2 when each half of the channels is normalized by itself, as on the two GPUs of
            2012.
    """

    def __init__(
        self,
        *,
        depth_radius: int = 2,
        bias: float = 2.0,
        alpha: float = 1e-4,
        beta: float = 0.75,
        towers: int = 1,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.depth_radius, self.bias, self.alpha, self.beta, self.towers = (
            depth_radius,
            bias,
            alpha,
            beta,
            towers,
        )

    def call(self, inputs: Tensor) -> Tensor:
        """Normalize float [batch, height, width, channels]; same shape and dtype out."""
        band = tf.cast(self._band_matrix(inputs.shape[-1]), _widen(inputs).dtype)

        @tf.custom_gradient
        def normalize(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            energy = self.bias + self.alpha * tf.nn.conv2d(x * x, band, 1, "VALID")
            divisor = _inverse_power(energy, self.beta)

            def gradient(upstream: Tensor) -> Tensor:
                # The band is symmetric.
                spread = tf.nn.conv2d(upstream * x * divisor / energy, band, 1, "VALID")
                return upstream * divisor - (2 * self.alpha * self.beta) * x * spread

            return x * divisor, gradient

        return tf.cast(normalize(_widen(inputs)), inputs.dtype)

    def _band_matrix(self, channels: int) -> Floats:
        """Return float32 [1, 1, channels, channels]: 1 where one channel counts for another."""
        index = np.arange(channels)
        near = np.abs(index[:, np.newaxis] - index) <= self.depth_radius
        tower = index * self.towers // channels
        return (near & (tower[:, np.newaxis] == tower)).astype(np.float32)[np.newaxis, np.newaxis]

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the input's shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        names = ("depth_radius", "bias", "alpha", "beta", "towers")
        return super().get_config() | {name: getattr(self, name) for name in names}


@keras.saving.register_keras_serializable(_PACKAGE)
class SpatialResponseNormalization(keras.layers.Layer):
    """Divide each activation by a power of the energy around it in its own map.

    `rnorm`, which the code of 2012 has and the paper has not.

    b[y, x] = a[y, x] / (1 + alpha * sum of a[v, u]^2 over the size x size window around it) **
    beta, where the sum ends at the border.

    Args:
        size: side of the window, odd; 5 in 2012.
        alpha: weight of the energy; 0.001 / 25 in 2012.
        beta: exponent.
    """

    def __init__(self, *, size: int = 5, alpha: float = 4e-5, beta: float = 0.75, **kwargs: Any):
        super().__init__(**kwargs)
        self.size, self.alpha, self.beta = size, alpha, beta

    def call(self, inputs: Tensor) -> Tensor:
        """Normalize float [batch, height, width, channels]; same shape and dtype out."""
        x = _widen(inputs)
        edge = [self.size // 2] * 2
        # A mean over the window with zeros beyond the border, times its area, is the sum over what
        # is there.
        mean = tf.nn.avg_pool2d(tf.pad(x * x, ((0, 0), edge, edge, (0, 0))), self.size, 1, "VALID")
        return tf.cast(
            x * _inverse_power(1 + self.alpha * self.size**2 * mean, self.beta), inputs.dtype
        )

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the input's shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return super().get_config() | {"size": self.size, "alpha": self.alpha, "beta": self.beta}


def _widen(x: Tensor) -> Tensor:
    """Return half precision as float32.

    Squares overflow float16, and a sum in bfloat16 has two digits.
    """
    return x if x.dtype == tf.float64 else tf.cast(x, tf.float32)


def _inverse_power(x: Tensor, beta: float) -> Tensor:
    """Return x ** -beta for positive x.

    The published exponent by two roots, which are four times as fast as a power.
    """
    if beta == 0.75:
        root = tf.math.rsqrt(x)
        return root * tf.sqrt(root)
    return tf.pow(x, -beta)


@keras.saving.register_keras_serializable(_PACKAGE)
class TwoTowerConv2D(keras.layers.Layer):
    """Convolve in two towers that do not see each other: layers 2, 4 and 5 of 2012.

    The first half of the filters sees the first half of the input's channels, the second half the
    second. The mathematics and the kernel's layout are those of `Conv2D(groups=2)`, which
    TensorFlow on a CPU computes 5-7 times slower.

    Args:
        filters: channels out, even.
        kernel_size: height and width of the window, in pixels.
        activation: name of the activation.
        kernel_initializer: initial weights of `kernel`, float32 [kernel_size, kernel_size, channels
            / 2, filters].
        bias_initializer: initial weights of `bias`, float32 [filters].
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        *,
        activation: str | Mapping[str, Any] | Callable[[Tensor], Tensor] | None = None,
        kernel_initializer: str | Mapping[str, Any] | Initializer = "glorot_uniform",
        bias_initializer: str | Mapping[str, Any] | Initializer = "zeros",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if filters % 2:
            raise ValueError(
                f"Two towers need an even number of filters. Received filters={filters}."
            )
        self.filters, self.kernel_size = filters, kernel_size
        self.activation = keras.activations.get(activation)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)

    def build(self, input_shape: Shape) -> None:
        """Make the weights for [batch, height, width, channels] with an even number of channels."""
        channels = input_shape[-1]
        if channels is None or channels % 2:
            raise ValueError(
                "Two towers need an even number of input channels. Received shape"
                f" {tuple(input_shape)}."
            )
        shape = (self.kernel_size, self.kernel_size, channels // 2, self.filters)
        self.kernel = self.add_weight(
            name="kernel", shape=shape, initializer=self.kernel_initializer
        )
        self.bias = self.add_weight(
            name="bias", shape=(self.filters,), initializer=self.bias_initializer
        )

    def call(self, inputs: Tensor) -> Tensor:
        """Convolve float [batch, height, width, channels] into [..., filters], 'same' padding."""
        halves = zip(
            keras.ops.split(inputs, 2, axis=-1),
            keras.ops.split(self.kernel, 2, axis=-1),
            strict=True,
        )
        towers = [keras.ops.conv(pixels, kernel, padding="same") for pixels, kernel in halves]
        return self.activation(keras.ops.concatenate(towers, axis=-1) + self.bias)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the input's shape with `filters` channels."""
        return (*input_shape[:-1], self.filters)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return super().get_config() | {
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "activation": keras.activations.serialize(self.activation),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }
