"""The signal check: whether differences between images reach the logits, and gradients the layers.

A network whose signal vanishes on the way up answers the same to every image and cannot begin to
learn; its loss stays at log(classes) for epochs, which is why so many AlexNets in Keras "do not
train". One batch through the fresh network shows it. `pipeline.reports.network` words the finding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from pipeline.image_size import ImageSize, sides_of

if TYPE_CHECKING:
    from pipeline.arrays import Images, Labels, Layer, Network, Tensor, Variable

SIGNAL_IMAGES = 32
# At least so many, and for the others no more than this memory of a network's outputs: their
# gradients and what TensorFlow keeps for them take three times as much again.
_MIN_SIGNAL_IMAGES, _MAX_SIGNAL_BYTES = 4, 1 << 30
# The learning rate of the first steps of 2012 (paper, section 5); update ratios before training are
# those of a step at it.
_LEARNING_RATE = 0.01
# What layers that draw call the strength of chance: dropout, stochastic depth, noise.
_RANDOM_ATTRIBUTES = ("rate", "drop_path_rate", "stddev")
# Standard deviation of the logits across images. At initialization the configurations that are
# known to stay flat have 5e-5 to 8e-4; Caffe's AlexNet, which did learn, 2e-3; the code of 2012
# 0.1; He's initialization 0.3.
_VANISHED_SPREAD, _WEAK_SPREAD = 1e-3, 4e-3
# The first layer's update ratio: 3e-5 to 2e-4 in those that stay flat, 6e-4 in Caffe's, 4e-2 in the
# code of 2012.
_MIN_UPDATE_RATIO = 5e-4
# Standard deviation of an image's logits across classes, which starts so sure of a wrong class that
# the first steps destroy the weights: at initialization `owt`, which learns, has 5; He's weights on
# pixels of 0-255, with which the same networks diverge, 12 and more.
_MAX_LOGIT_SCALE = 8.0


@dataclass(frozen=True)
class LayerSignal:
    """The signal through one layer with weights, measured on a batch.

    Attributes:
        layer: its name.
        spread: standard deviation of a neuron's output across images, mean over neurons.
        gradient: norm of the loss's gradient by the weights.
        arriving: norm of the gradient by the layer's output, mean over images.
        update_ratio: learning rate x gradient norm / weight norm.
        idle: fraction of neurons, in [0, 1], that no image moves: never positive for ReLU, on the
            flat ends of tanh and sigmoid.
    """

    layer: str
    spread: float
    gradient: float
    arriving: float
    update_ratio: float
    idle: float


@dataclass(frozen=True)
class Signal:
    """The signal through a network.

    Attributes:
        layers: those with weights, from the first to the logits.
        loss: of the batch, in nats.
        num_classes: number of logits.
    """

    layers: tuple[LayerSignal, ...]
    loss: float
    num_classes: int

    @property
    def spread(self) -> float:
        """Standard deviation of the logits across images."""
        return self.layers[-1].spread

    @property
    def max_loss(self) -> float:
        """The loss, in nats, above which the signal counts as exploded.

        That of Gaussian logits of `_MAX_LOGIT_SCALE`, which grows with the number of classes: the
        mean log of the sum of c numbers exp(s z) is at most log(c) + s^2 / 2, and s sqrt(2 log(c))
        where s is larger than that root (Derrida, 1981, on the random energy model).
        """
        guess = math.log(self.num_classes)
        largest, scale = math.sqrt(2 * guess), _MAX_LOGIT_SCALE
        return guess + scale**2 / 2 if scale <= largest else scale * largest

    def to_metrics(self) -> dict[str, float]:
        """Return every number by a name such as `signal/spread/conv1`."""
        names = ("spread", "gradient", "update_ratio", "idle")
        return {
            f"signal/{name}/{layer.layer}": getattr(layer, name)
            for layer in self.layers
            for name in names
        }

    @property
    def state(self) -> str:
        """`alive`, `weak`, `vanished` or `exploded`.

        A small spread is no harm where the first layer's weights are so small that a few steps
        change them, as in cuda-convnet's networks for CIFAR-10.
        """
        first_step = self.layers[0].update_ratio
        if not math.isfinite(self.loss) or self.loss > self.max_loss:
            return "exploded"
        if self.spread < _VANISHED_SPREAD and first_step < _MIN_UPDATE_RATIO:
            return "vanished"
        weak = self.spread < _WEAK_SPREAD and first_step < 10 * _MIN_UPDATE_RATIO
        return "weak" if weak else "alive"

    def to_finding(self) -> dict[str, Any]:
        """Return the state, the numbers that it rests on and what they were expected to be."""
        return {
            "state": self.state,
            "spread": self.spread,
            "loss": self.loss,
            "num_classes": self.num_classes,
            "update_ratio": self.layers[0].update_ratio,
            "learning_rate": _LEARNING_RATE,
            "min_spread": _VANISHED_SPREAD if self.state == "vanished" else _WEAK_SPREAD,
            "max_loss": self.max_loss,
        }


def measure_signal(
    network: Network, images: Images, labels: Labels, learning_rate: float = _LEARNING_RATE
) -> Signal:
    """Send a batch forward and back through a network, and leave the network as it was.

    Dropout is off, because its chance would be taken for a difference between images; batch
    normalization uses the batch.

    Args:
        network: a model of `build_network`.
        images: uint8 [batch, height, width, 3], two or more, different ones.
        labels: integers [batch].
        learning_rate: of the step whose update ratios are returned.
    """
    rates = [
        (layer, name, getattr(layer, name))
        for layer in network.layers
        for name in _RANDOM_ATTRIBUTES
        if isinstance(getattr(layer, name, None), float)
    ]
    state = [np.asarray(value) for value in network.non_trainable_variables]
    for layer, name, _ in rates:
        setattr(layer, name, 0.0)
    try:
        numbers = build_signal_probe(network, training=True)(images, labels)
    finally:
        for layer, name, rate in rates:
            setattr(layer, name, rate)
        for variable, value in zip(network.non_trainable_variables, state, strict=True):
            variable.assign(value)
    return read_signal(network, numbers, learning_rate)


def build_signal_probe(
    network: Network, *, training: bool, layers: Sequence[Layer] | None = None
) -> Callable[[Images | Tensor, Labels | Tensor], tuple[Tensor, Tensor]]:
    """Return a function (images, labels) -> float32 [layers, 5] and the loss, for `read_signal`.

    TensorFlow can compile it.

    Args:
        network: a model of `build_network`.
        training: as Keras means it.
        layers: those of which the signal is wanted, the last one included; None for all.
    """
    weighted = layers or _weighted_layers(network)
    activated = [_activation_of(network, layer) for layer in weighted]
    probe = keras.Model(network.input, [layer.output for layer in (*weighted, *activated)])

    def measure(images: Images | Tensor, labels: Labels | Tensor) -> tuple[Tensor, Tensor]:
        kernels = [_kernel_of(layer) for layer in weighted]
        with tf.GradientTape() as tape:
            outputs = probe(images, training=training)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                labels, tf.cast(outputs[len(weighted) - 1], tf.float32)
            )
            loss = tf.reduce_mean(losses)
        own, later = outputs[: len(weighted)], outputs[len(weighted) :]
        gradients = tape.gradient(loss, [*kernels, *own])
        rows = []
        for index, kernel in enumerate(kernels):
            arriving = tf.cast(gradients[len(kernels) + index], tf.float32) * tf.cast(
                tf.shape(labels)[0], tf.float32
            )
            each = tf.sqrt(tf.reduce_sum(arriving**2, axis=list(range(1, len(arriving.shape)))))
            spread = tf.reduce_mean(tf.math.reduce_std(tf.cast(own[index], tf.float32), axis=0))
            idle = tf.reduce_mean(
                tf.cast(tf.reduce_all(_is_flat(activated[index], later[index]), axis=0), tf.float32)
            )
            rows.append(
                [spread, tf.norm(gradients[index]), tf.reduce_mean(each), tf.norm(kernel), idle]
            )
        return tf.stack([tf.stack(row) for row in rows]), loss

    return measure


def spread_weighted_layers(network: Network, count: int) -> list[Layer]:
    """Return layers with a kernel, at most so many, from the first to the last at equal steps."""
    layers = _weighted_layers(network)
    if len(layers) <= count:
        return layers
    return [layers[round(index)] for index in np.linspace(0, len(layers) - 1, count)]


def read_signal(
    network: Network,
    numbers: tuple[Tensor, Tensor],
    learning_rate: float,
    layers: Sequence[Layer] | None = None,
) -> Signal:
    """Return the signal in what a function of `build_signal_probe` returned, layers by name."""
    weighted, signals = layers or _weighted_layers(network), []
    for layer, row in zip(weighted, np.asarray(numbers[0], np.float64), strict=True):
        spread, gradient, arriving, weight, idle = (float(value) for value in row)
        ratio = learning_rate * gradient / max(weight, 1e-30) if layer.trainable else 0.0
        signals.append(LayerSignal(layer.name, spread, gradient, arriving, ratio, idle))
    return Signal(tuple(signals), float(numbers[1]), int(network.output.shape[-1]))


def count_signal_images(activation_bytes: int) -> int:
    """Return how many images the check of a network takes, from 4 to 32.

    Args:
        activation_bytes: what the outputs of all layers take for one image.
    """
    fitting = _MAX_SIGNAL_BYTES // max(activation_bytes, 1)
    return max(_MIN_SIGNAL_IMAGES, min(SIGNAL_IMAGES, fitting))


def make_photo_like_noise(count: int, size: ImageSize, seed: int = 0) -> Images:
    """Return noise as uint8 [count, height, width, 3], mean 128 and standard deviation 65.

    Its amplitude falls with frequency as in photographs.
    """
    rng, (height, width) = np.random.default_rng(seed), sides_of(size)
    rows, columns = np.fft.fftfreq(height)[:, np.newaxis], np.fft.fftfreq(width)
    frequency = np.hypot(rows, columns) + 1 / max(height, width)
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(count, 3, height, width))) / frequency).real
    noise = 128 + 65 * (noise - noise.mean()) / noise.std()
    return np.clip(noise, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def _weighted_layers(network: Network) -> list[Layer]:
    """Return the layers with a kernel, in order."""
    return [layer for layer in network.layers if _kernel_of(layer) is not None]


def _kernel_of(layer: Layer) -> Variable | None:
    """Return a layer's kernel, or the first of its weights that multiply; None without any."""
    others = (weight for weight in layer.weights if len(weight.shape) > 1)
    kernel: Variable | None = getattr(layer, "kernel", None)
    return next(others, None) if kernel is None else kernel


def _activation_of(network: Network, layer: Layer) -> Layer:
    """Return the layer whose output is this one's after the activation.

    Itself, or the next activation on its way, which may come after a normalization and a pool.
    Without one, itself.
    """
    readers: dict[int, list[Layer]] = {}
    for other in network.layers[1:]:
        for tensor in keras.tree.flatten(other.input):
            readers.setdefault(id(tensor), []).append(other)
    found = layer
    while not _is_activation(found):
        following = readers.get(id(found.output), [])
        if len(following) != 1 or _kernel_of(following[0]) is not None:
            return layer
        found = following[0]
    return found


def _is_activation(layer: Layer) -> bool:
    linear = keras.activations.linear
    return isinstance(layer, keras.layers.ReLU) or (
        getattr(layer, "activation", linear) is not linear
    )


def _is_flat(layer: Layer, outputs: Tensor) -> Tensor:
    """Return where an activation is so flat that no gradient passes, bool of the outputs' shape."""
    name = getattr(getattr(layer, "activation", None), "__name__", "")
    if name == "relu" or isinstance(layer, keras.layers.ReLU):
        return outputs <= 0
    if name == "tanh":
        return tf.abs(outputs) > 0.99
    if name == "sigmoid":
        return tf.abs(outputs - 0.5) > 0.49
    return outputs < -0.99 if name == "elu" else tf.zeros_like(outputs, tf.bool)
