"""Keras layers that AlexNet needs and Keras does not have."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

_PACKAGE = "alexnet"


@keras.saving.register_keras_serializable(_PACKAGE)
class LocalResponseNormalization(keras.layers.Layer):
    """Divides each activation by a power of the energy of its neighbouring channels (paper, section 3.3).

    b[c] = a[c] / (bias + alpha * sum of a[j]^2 for |j - c| <= depth_radius) ** beta, where the sum is over existing channels.
    TensorFlow's kernel has the paper's formula: alpha is not divided by the number of channels summed.

    Args:
        depth_radius: channels on each side; 2 makes the paper's n = 5.
        bias: the paper's k.
        alpha: weight of the energy.
        beta: exponent.
    """

    def __init__(self, *, depth_radius: int = 2, bias: float = 2.0, alpha: float = 1e-4, beta: float = 0.75, **kwargs: Any):
        super().__init__(**kwargs)
        self.depth_radius, self.bias, self.alpha, self.beta = depth_radius, bias, alpha, beta

    def call(self, inputs: Any) -> Any:
        """Normalise float [batch, height, width, channels]; same shape and dtype out."""
        # There is no bfloat16 kernel on the CPU, and squares overflow float16: compute in float32.
        wide = tf.cast(inputs, tf.float32)
        normalized = tf.nn.local_response_normalization(
            wide, depth_radius=self.depth_radius, bias=self.bias, alpha=self.alpha, beta=self.beta
        )
        return tf.cast(normalized, inputs.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The input's shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return super().get_config() | {"depth_radius": self.depth_radius, "bias": self.bias, "alpha": self.alpha, "beta": self.beta}


@keras.saving.register_keras_serializable(_PACKAGE)
class TwoTowerConv2D(keras.layers.Layer):
    """A convolution of two towers that do not see each other: the 2012 network's layers 2, 4 and 5.

    The first half of the filters sees the first half of the input's channels, the second half the second. The mathematics and the
    kernel's layout are those of `Conv2D(groups=2)`, which TensorFlow on a CPU computes 5-7 times slower.

    Args:
        filters: channels out, even.
        kernel_size: height and width of the window, in pixels.
        activation: name of the activation.
        kernel_initializer: initial weights of `kernel`, float32 [kernel_size, kernel_size, channels / 2, filters].
        bias_initializer: initial weights of `bias`, float32 [filters].
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        *,
        activation: Any = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if filters % 2:
            raise ValueError(f"Two towers need an even number of filters. Received filters={filters}.")
        self.filters, self.kernel_size = filters, kernel_size
        self.activation = keras.activations.get(activation)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)

    def build(self, input_shape: Any) -> None:
        """Make the weights for [batch, height, width, channels] with an even number of channels."""
        channels = input_shape[-1]
        if channels % 2:
            raise ValueError(f"Two towers need an even number of input channels. Received shape {tuple(input_shape)}.")
        shape = (self.kernel_size, self.kernel_size, channels // 2, self.filters)
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer=self.kernel_initializer)
        self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer=self.bias_initializer)

    def call(self, inputs: Any) -> Any:
        """Convolve float [batch, height, width, channels] into [batch, height, width, filters], 'same' padding."""
        halves = zip(keras.ops.split(inputs, 2, axis=-1), keras.ops.split(self.kernel, 2, axis=-1), strict=True)
        towers = [keras.ops.conv(pixels, kernel, padding="same") for pixels, kernel in halves]
        return self.activation(keras.ops.concatenate(towers, axis=-1) + self.bias)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The input's shape with `filters` channels."""
        return (*input_shape[:-1], self.filters)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return super().get_config() | {
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "activation": keras.activations.serialize(self.activation),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }
