"""The signal check: does what differs between two images still differ at the logits, and does the error find its way back?

A network whose signal dies on the way up answers the same to every image and cannot begin to learn;
its loss stays at log(classes) for epochs, which is why so many AlexNets in Keras "do not train".
One batch through the fresh network shows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipeline.config.model import ModelConfig
from pipeline.model.alexnet import plan_for

IMAGES = 32
# At this rate the 2012 networks were trained from the start (paper, section 5); update ratios
# before training are told for it.
RATE = 0.01
# Deviation of the logits across images. At initialization the configurations that are known to stay
# flat have 5e-5 to 8e-4; Caffe's AlexNet, which did learn, 2e-3; the code of 2012 0.1; He's
# initialization 0.3.
_NO_SPREAD, _LITTLE_SPREAD = 1e-3, 4e-3
# The first layer's update ratio: 3e-5 to 2e-4 in those that stay flat, 6e-4 in Caffe's, 4e-2 in the
# code of 2012.
_SMALL_STEP = 5e-4
# Cross-entropy above that of guessing, in nats: the code of 2012 starts with 1, He's weights on
# pixels of 0-255 with 80.
_MUCH_LOSS = 10.0


@dataclass(frozen=True)
class LayerSignal:
    """What passes through one layer with weights, measured on a batch.

    `spread` is the deviation of a neuron's output across images, mean over neurons; `gradient` the
    norm of the loss's gradient by the weights; `arriving` that by the layer's output, mean over
    images; `update_ratio` learning rate x gradient norm / weight norm; `idle` the share of neurons,
    in [0, 1], that no image moves: never positive for ReLU, on the flat ends of tanh and sigmoid.
    """

    layer: str
    spread: float
    gradient: float
    arriving: float
    update_ratio: float
    idle: float


@dataclass(frozen=True)
class Signal:
    """What passes through a network.

    Its layers with weights from the first to the logits, and the loss of the batch in nats.
    """

    layers: tuple[LayerSignal, ...]
    loss: float
    num_classes: int

    @property
    def spread(self) -> float:
        """Deviation of the logits across images."""
        return self.layers[-1].spread

    def metrics(self) -> dict[str, float]:
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
        if not math.isfinite(self.loss) or self.loss > math.log(self.num_classes) + _MUCH_LOSS:
            return "exploded"
        if self.spread < _NO_SPREAD and first_step < _SMALL_STEP:
            return "vanished"
        return "weak" if self.spread < _LITTLE_SPREAD and first_step < 10 * _SMALL_STEP else "alive"


def measure_signal(network: Any, images: Any, labels: Any, learning_rate: float = RATE) -> Signal:
    """Send a batch forward and back through a network, and leave the network as it was.

    Dropout is off, because its chance would be taken for a difference between images; batch
    normalization uses the batch.

    Args:
        network: a model of `build_network`.
        images: uint8 [batch, image_size, image_size, 3], two or more, different ones.
        labels: integers [batch].
        learning_rate: of which the update ratios are told.
    """
    dropouts = [layer for layer in network.layers if isinstance(layer, keras.layers.Dropout)]
    rates, state = (
        [layer.rate for layer in dropouts],
        [np.asarray(value) for value in network.non_trainable_variables],
    )
    for layer in dropouts:
        layer.rate = 0.0
    try:
        numbers = signal_numbers(network, training=True)(images, labels)
    finally:
        for layer, rate in zip(dropouts, rates, strict=True):
            layer.rate = rate
        for variable, value in zip(network.non_trainable_variables, state, strict=True):
            variable.assign(value)
    return named_signal(network, numbers, learning_rate)


def signal_numbers(network: Any, *, training: bool) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Return a function (images, labels) -> float32 [layers, 5] and the loss, which TensorFlow can compile; for `named_signal`.

    Args:
        network: a model of `build_network`.
        training: as Keras means it.
    """
    weighted = _weighted(network)
    activated = [_activated(network, layer) for layer in weighted]
    probe = keras.Model(network.input, [layer.output for layer in (*weighted, *activated)])

    def numbers(images: Any, labels: Any) -> tuple[Any, Any]:
        kernels = [layer.kernel for layer in weighted]
        with tf.GradientTape() as tape:
            outputs = probe(images, training=training)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                labels, tf.cast(outputs[len(weighted) - 1], tf.float32)
            )
            loss = tf.reduce_mean(losses)
        own, later = outputs[: len(weighted)], outputs[len(weighted) :]
        gradients = tape.gradient(loss, [*kernels, *own])
        rows = []
        for place, kernel in enumerate(kernels):
            arriving = tf.cast(gradients[len(kernels) + place], tf.float32) * tf.cast(
                tf.shape(labels)[0], tf.float32
            )
            each = tf.sqrt(tf.reduce_sum(arriving**2, axis=list(range(1, len(arriving.shape)))))
            spread = tf.reduce_mean(tf.math.reduce_std(tf.cast(own[place], tf.float32), axis=0))
            idle = tf.reduce_mean(
                tf.cast(tf.reduce_all(_flat(activated[place], later[place]), axis=0), tf.float32)
            )
            rows.append(
                [spread, tf.norm(gradients[place]), tf.reduce_mean(each), tf.norm(kernel), idle]
            )
        return tf.stack([tf.stack(row) for row in rows]), loss

    return numbers


def named_signal(network: Any, numbers: tuple[Any, Any], learning_rate: float) -> Signal:
    """Give names to what a function of `signal_numbers` returned."""
    layers = []
    for layer, row in zip(_weighted(network), np.asarray(numbers[0], np.float64), strict=True):
        spread, gradient, arriving, weight, idle = (float(value) for value in row)
        ratio = learning_rate * gradient / max(weight, 1e-30) if layer.trainable else 0.0
        layers.append(LayerSignal(layer.name, spread, gradient, arriving, ratio, idle))
    return Signal(tuple(layers), float(numbers[1]), int(network.output.shape[-1]))


def synthetic_images(count: int, size: int, seed: int = 0) -> Any:
    """Return uint8 [count, size, size, 3] noise whose amplitude falls with frequency as in photographs, deviation 65 about 128."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, np.newaxis], np.fft.fftfreq(size)) + 1 / size
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(count, 3, size, size))) / frequency).real
    noise = 128 + 65 * (noise - noise.mean()) / noise.std()
    return np.clip(noise, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def verdict(signal: Signal, config: ModelConfig) -> str:
    """Say what the check found in a network of these settings, and what to do where something is wrong."""
    guess, state = math.log(signal.num_classes), signal.state
    found = (
        f"The logits differ between images by {signal.spread:.1e} (deviation), the loss of a batch"
        f" is {signal.loss:.3g} nats (guessing: {guess:.2f}), a step at rate {RATE:g} changes the"
        f" first layer by {signal.layers[0].update_ratio:.1e} of its weights."
    )
    if state == "alive":
        return found
    plan = plan_for(config)
    pair = (
        f"initialization={plan.initialization}, input_scale={plan.input_scale},"
        f" activation={config.activation}"
    )
    remedies = [
        f"--set model.initialization={name} --set model.input_scale={scale}"
        for name, scale in (("he", "unit"), ("code", "levels"))
        if (name, scale) != (plan.initialization, plan.input_scale)
    ]
    remedies += [] if config.activation == "relu" else ["--set model.activation=relu"]
    remedies += [] if config.normalization == "batch" else ["--set model.normalization=batch"]
    remedy = f"Type {', or '.join(remedies)}."
    if state == "exploded":
        most = guess + _MUCH_LOSS
        return (
            f"The signal explodes on its way through the network ({pair}). {found} Expected a loss"
            f" of at most {most:.1f}. {remedy}"
        )
    word, least = ("vanishes", _NO_SPREAD) if state == "vanished" else ("is weak", _LITTLE_SPREAD)
    return (
        f"The signal {word} on its way through the network ({pair}). {found} Expected logits that"
        f" differ by {least:g} or more. {remedy}"
    )


def _weighted(network: Any) -> list[Any]:
    """Return the layers with a kernel, in order."""
    return [layer for layer in network.layers if hasattr(layer, "kernel")]


def _activated(network: Any, layer: Any) -> Any:
    """Return the layer whose output is this one's after the activation.

    Itself, or the next activation, which may come after a pool.
    """
    names = [other.name for other in network.layers]
    linear = keras.activations.linear
    later = network.layers[names.index(layer.name) :]
    return next(
        (other for other in later if getattr(other, "activation", linear) is not linear), layer
    )


def _flat(layer: Any, outputs: Any) -> Any:
    """Return where an activation is so flat that no gradient passes, bool of the outputs' shape."""
    name = getattr(layer.activation, "__name__", "")
    if name == "relu":
        return outputs <= 0
    if name == "tanh":
        return tf.abs(outputs) > 0.99
    if name == "sigmoid":
        return tf.abs(outputs - 0.5) > 0.49
    return outputs < -0.99 if name == "elu" else tf.zeros_like(outputs, tf.bool)
