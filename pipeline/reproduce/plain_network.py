"""Plain fully connected networks that differ only in depth and activation.

The claim about vanishing gradients is measured with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.config.model import ModelConfig
from pipeline.image_size import sides_of
from pipeline.random_streams import derive_layer_seed

if TYPE_CHECKING:
    from pipeline.arrays import Network

# Units of each hidden layer: enough to average out the chance of single units, few enough to train
# in seconds.
_HIDDEN_UNITS = 128


def build_plain_network(
    depth: int,
    config: ModelConfig,
    *,
    num_classes: int,
    channel_mean: Sequence[float],
    channel_std: Sequence[float],
) -> Network:
    """Return an uncompiled network of `depth` fully connected layers with fresh weights.

    Each activation has its usual initial weights: Glorot's for sigmoid and tanh, He's for ReLU.
    Pixels are normalized to mean 0 and standard deviation 1.

    Args:
        depth: layers with weights including the logits, at least 2.
        config: image size, activation and seed.
        num_classes: number of logits.
        channel_mean: RGB mean of the training pixels, 0-255.
        channel_std: RGB standard deviation of the training pixels, 0-255.
    """
    import keras

    from pipeline.model.layers import PixelNormalization

    start = (
        keras.initializers.HeNormal
        if config.alexnet.activation == "relu"
        else keras.initializers.GlorotUniform
    )
    image = keras.Input((*sides_of(config.image_size), 3), dtype="uint8", name="image")
    x = PixelNormalization(
        channel_mean, [max(value, 1.0) for value in channel_std], name="normalize"
    )(image)
    x = keras.layers.Flatten(name="flatten")(x)
    for number in range(1, depth + 1):
        name, last = f"layer{number}", number == depth
        x = keras.layers.Dense(
            num_classes if last else _HIDDEN_UNITS,
            activation=None if last else config.alexnet.activation,
            kernel_initializer=start(seed=derive_layer_seed(config.seed, name)),
            name=name,
        )(x)
    return keras.Model(image, x, name=f"plain_{config.alexnet.activation}_{depth}")
