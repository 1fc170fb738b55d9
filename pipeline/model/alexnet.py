"""AlexNet, and which one: each variant is one function that reads from the pixels to the logits.

| variant | what it is                                                     | parameters at 1000 classes |
|---------|----------------------------------------------------------------|----------------------------|
| `paper` | two towers, Krizhevsky, Sutskever and Hinton 2012              | 60,965,224                 |
| `owt`   | one tower, "One weird trick" 2014, in torchvision's layout     | 61,100,840                 |
| `small` | the 2012 pattern with smaller strides, for 28-96 pixel images  | depends on the image size  |

Every network takes uint8 [batch, image_size, image_size, 3] RGB in [0, 255] and gives float32 logits [batch, classes]: the mean is
subtracted inside, so whoever has the file needs no other preparation than the cut.

Initial weights and input scale are chosen as a pair, because a mismatch does not learn. `paper` takes mean-subtracted pixels on the
0-255 scale with the deviations of the published 2012 code (0.03 for conv3-conv5), since the paper's own 0.01 everywhere leaves a
signal 14 times weaker. `owt` and `small` take unit-variance pixels with He's initialisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from pipeline.config import ModelConfig
from pipeline.model.layers import LocalResponseNormalization, TwoTowerConv2D


def build_network(config: ModelConfig, *, num_classes: int, channel_mean: Sequence[float], channel_std: Sequence[float]) -> Any:
    """Return an uncompiled Keras model with fresh weights.

    Args:
        config: which variant, its image size, width, dropout and seed.
        num_classes: number of logits.
        channel_mean: RGB mean of the training pixels, 0-255.
        channel_std: RGB standard deviation of the training pixels, 0-255.
    """
    networks = {"paper": _paper, "owt": _owt, "small": _small}
    centred = [1.0, 1.0, 1.0]
    scale = centred if config.variant == "paper" else [max(value, 1.0) for value in channel_std]  # a black set has no spread
    image = keras.Input((config.image_size, config.image_size, 3), dtype="uint8", name="image")
    pixels = keras.layers.Normalization(mean=list(channel_mean), variance=[value**2 for value in scale], name="normalize")(image)
    logits = networks[config.variant](pixels, config, num_classes)
    return keras.Model(image, logits, name=f"alexnet_{config.variant}")


def _paper(x: Any, config: ModelConfig, num_classes: int) -> Any:
    """The network of 2012: section 3.5 of the paper, with the initial weights of its published code. Sizes are for 224 pixels."""
    gaussian, width = _gaussians(config.seed), _widths(config.width_multiplier)

    # 224 pixels give 55 positions in the 2012 code because windows may fall off the right and bottom edge by 3.
    x = keras.layers.ZeroPadding2D(((0, 3), (0, 3)), name="edge")(x)
    x = keras.layers.Conv2D(width(96), 11, strides=4, activation="relu", kernel_initializer=gaussian(0.01), name="conv1")(x)  # 55 x 55 x 96
    x = LocalResponseNormalization(name="norm1")(x)
    x = keras.layers.MaxPooling2D(3, 2, name="pool1")(x)  # 27 x 27 x 96
    x = TwoTowerConv2D(width(256), 5, activation="relu", kernel_initializer=gaussian(0.01), bias_initializer="ones", name="conv2")(x)
    x = LocalResponseNormalization(name="norm2")(x)  # 27 x 27 x 256
    x = keras.layers.MaxPooling2D(3, 2, name="pool2")(x)  # 13 x 13 x 256
    x = keras.layers.Conv2D(width(384), 3, padding="same", activation="relu", kernel_initializer=gaussian(0.03), name="conv3")(x)
    x = TwoTowerConv2D(width(384), 3, activation="relu", kernel_initializer=gaussian(0.03), bias_initializer="ones", name="conv4")(x)
    x = TwoTowerConv2D(width(256), 3, activation="relu", kernel_initializer=gaussian(0.03), bias_initializer="ones", name="conv5")(x)
    x = keras.layers.MaxPooling2D(3, 2, name="pool5")(x)  # 6 x 6 x 256
    x = keras.layers.Flatten(name="flatten")(x)  # 9216
    for index, name in enumerate(("fc6", "fc7")):
        x = keras.layers.Dense(width(4096), activation="relu", kernel_initializer=gaussian(0.01), bias_initializer="ones", name=name)(x)
        x = keras.layers.Dropout(config.dropout, seed=index, name=f"drop{name[-1]}")(x)  # 4096
    return keras.layers.Dense(num_classes, kernel_initializer=gaussian(0.01), name="fc8")(x)


def _owt(x: Any, config: ModelConfig, num_classes: int) -> Any:
    """The one-tower network of 2014 in torchvision's layout, without normalisation; dropout where 2012 had it, after the ReLU."""
    he, width = _he_normals(config.seed), _widths(config.width_multiplier)

    x = keras.layers.ZeroPadding2D(2, name="edge")(x)
    x = keras.layers.Conv2D(width(64), 11, strides=4, activation="relu", kernel_initializer=he(), name="conv1")(x)  # 55 x 55 x 64
    x = keras.layers.MaxPooling2D(3, 2, name="pool1")(x)  # 27 x 27 x 64
    x = keras.layers.Conv2D(width(192), 5, padding="same", activation="relu", kernel_initializer=he(), name="conv2")(x)
    x = keras.layers.MaxPooling2D(3, 2, name="pool2")(x)  # 13 x 13 x 192
    for name, filters in (("conv3", 384), ("conv4", 256), ("conv5", 256)):
        x = keras.layers.Conv2D(width(filters), 3, padding="same", activation="relu", kernel_initializer=he(), name=name)(x)
    x = keras.layers.MaxPooling2D(3, 2, name="pool5")(x)  # 6 x 6 x 256
    return _classifier(x, config, num_classes, units=width(4096), initializer=he)


def _small(x: Any, config: ModelConfig, num_classes: int) -> Any:
    """The 2012 pattern for small images: same order, towers, normalisation and pooling; half the filters, a 5 x 5 first layer.

    Its stride is 1, or 2 from 64 pixels on, so that five convolutions and three pools have something left to see.
    """
    he, width = _he_normals(config.seed), _widths(config.width_multiplier)

    stride = 1 if config.image_size < 64 else 2
    x = keras.layers.Conv2D(width(48), 5, strides=stride, padding="same", activation="relu", kernel_initializer=he(), name="conv1")(
        x
    )  # 32 x 32 x 48
    x = LocalResponseNormalization(name="norm1")(x)
    x = keras.layers.MaxPooling2D(3, 2, name="pool1")(x)  # 15 x 15 x 48
    x = TwoTowerConv2D(width(128), 5, activation="relu", kernel_initializer=he(), name="conv2")(x)
    x = LocalResponseNormalization(name="norm2")(x)
    x = keras.layers.MaxPooling2D(3, 2, name="pool2")(x)  # 7 x 7 x 128
    x = keras.layers.Conv2D(width(192), 3, padding="same", activation="relu", kernel_initializer=he(), name="conv3")(x)
    x = TwoTowerConv2D(width(192), 3, activation="relu", kernel_initializer=he(), name="conv4")(x)
    x = TwoTowerConv2D(width(128), 3, activation="relu", kernel_initializer=he(), name="conv5")(x)
    x = keras.layers.MaxPooling2D(3, 2, name="pool5")(x)  # 3 x 3 x 128
    return _classifier(x, config, num_classes, units=width(1024), initializer=he)


def _classifier(x: Any, config: ModelConfig, num_classes: int, *, units: int, initializer: Any) -> Any:
    """Two hidden layers with dropout after each ReLU, then the logits."""
    x = keras.layers.Flatten(name="flatten")(x)
    for index, name in enumerate(("fc6", "fc7")):
        x = keras.layers.Dense(units, activation="relu", kernel_initializer=initializer(), name=name)(x)
        x = keras.layers.Dropout(config.dropout, seed=index, name=f"drop{name[-1]}")(x)
    return keras.layers.Dense(num_classes, kernel_initializer=initializer(), name="fc8")(x)


def _widths(multiplier: float) -> Any:
    """Return a function that scales a layer's width, to a multiple of 8 so that two towers can share it."""
    return lambda width: max(8, round(width * multiplier / 8) * 8)


def _seeds(seed: int) -> Any:
    """Yield a different seed for each layer: the layers' numbers must not repeat each other."""
    return iter(range(seed * 64, seed * 64 + 64))


def _gaussians(seed: int) -> Any:
    """Return a function from a standard deviation to the next layer's initializer."""
    seeds = _seeds(seed)
    return lambda stddev: keras.initializers.RandomNormal(stddev=stddev, seed=next(seeds))


def _he_normals(seed: int) -> Any:
    """Return a function that makes the next layer's initializer: variance 2 / fan-in keeps a ReLU network's signal constant."""
    seeds = _seeds(seed)
    return lambda: keras.initializers.HeNormal(seed=next(seeds))


def layer_table(network: Any) -> list[dict[str, Any]]:
    """Return name, output shape without the batch, and parameters of each layer, in order."""
    return [{"layer": layer.name, "output": list(layer.output.shape[1:]), "parameters": layer.count_params()} for layer in network.layers]
