"""The copy of a network that is trained: it can be repeated bit for bit, and on many devices.

Neither the copy nor what is set on it reaches a file: what is kept is the network that `build`
made, with the trained weights.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from pipeline.errors import ConfigError
from pipeline.train.batch_normalization import StepBatchNormalization
from pipeline.train.dropout import BatchPosition, make_stateless

if TYPE_CHECKING:
    from pipeline.arrays import Layer, Network, Tensor

# Types of TensorFlow's operations that draw, such as StatelessRandomUniformV2.
_DRAWING_OPERATION = re.compile(
    r"Random|Multinomial|TruncatedNormal|Stateful(Uniform|Standard)|^Rng"
)
# Modules whose layers draw from generators of their own or not at all.
_KNOWN_MODULES = ("keras.src.layers.", "pipeline.")


def copy_network(network: Network, position: BatchPosition) -> Network:
    """Return a copy of a network, weights and all, for training.

    Its random layers draw by row (`make_stateless`), and its batch normalization takes the mean and
    variance of a step's images on all replicas and workers. With micro-batches these are of a
    micro-batch, as in every framework, and the moving statistics move after each one: the
    training is another one than with the whole batch, where a network without batch normalization
    is trained the same. What is frozen stays frozen. Variables are made in the scope that is
    active.

    Args:
        network: functional, without other networks inside.
        position: where the random layers read the step.

    Raises:
        ConfigError: a layer draws in a way that cannot be repeated.
    """
    drawing = 0

    def copy_layer(layer: Layer) -> Layer:
        nonlocal drawing
        config = layer.get_config()
        if not isinstance(layer, keras.layers.Layer):  # an operation, such as `x + 3`
            return layer.__class__.from_config(config)
        if (replacement := make_stateless(layer, position, drawing)) is not None:
            drawing += 1
            return replacement
        _require_no_drawing(layer)
        if type(layer) is keras.layers.BatchNormalization and not layer.synchronized:
            return StepBatchNormalization.from_config(config)
        return layer.__class__.from_config(config)

    copy = keras.models.clone_model(network, clone_function=copy_layer)
    for layer, copied in zip(network.layers, copy.layers, strict=True):
        copied.set_weights(layer.get_weights())
        if isinstance(copied, keras.layers.Normalization):
            copied.finalize_state()  # it computes with tensors that it made of its weights
    return copy


def _require_no_drawing(layer: Layer) -> None:
    """Refuse a layer that draws random numbers by itself or by a layer inside it.

    Its own generators are among its variables. Keras's global one, which `keras.random` uses
    without a seed, belongs to no layer: it is found in the graph of a layer whose code is not
    known, traced by itself.
    """
    drawing = len(layer.variables) > len(layer.weights)
    if not drawing and not type(layer).__module__.startswith(_KNOWN_MODULES):
        alone = keras.Model(layer.input, layer.output)
        spec = keras.tree.map_structure(_describe_tensor, alone.input)
        traced = tf.function(lambda inputs: alone(inputs, training=True), autograph=False)
        graph = traced.get_concrete_function(spec).graph.as_graph_def()
        functions = [node for function in graph.library.function for node in function.node_def]
        nodes = (*graph.node, *functions)
        drawing = any(_DRAWING_OPERATION.search(node.op) for node in nodes)
    if drawing:
        raise _make_error(layer.name, type(layer))


def _describe_tensor(tensor: Tensor) -> tf.TensorSpec:
    return tf.TensorSpec(tensor.shape, tensor.dtype)


def _make_error(name: str, kind: type) -> ConfigError:
    """Return the error for a layer that draws in a way that cannot be repeated."""
    if ".preprocessing." in kind.__module__:
        return ConfigError(
            f"The network's layer {name} ({kind.__name__}) changes training images at random,"
            " which is done outside the network, so that it can be repeated",
            hint=(
                "Remove it from the network, and use train.flip, train.crop, train.randaugment or"
                " train.random_erasing"
            ),
        )
    return ConfigError(
        f"The network's layer {name} ({kind.__name__}) draws random numbers that cannot be repeated"
        " after an interruption or on other devices",
        expected="Keras's dropout, spatial dropout, Gaussian or alpha dropout, or Gaussian noise",
        hint="Stochastic depth is Dropout(rate, noise_shape=(None, 1, 1, 1))",
    )
