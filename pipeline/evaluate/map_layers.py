"""The layers of a network that a report shows, found from its graph: maps, features and filters.

A network is any functional graph of layers from images to logits; `flatten_graph` puts the layers
of submodels in their place. A layer divides it if every path from the image to the logits passes
through that layer's output: in a chain every layer does, elsewhere residual sums and
concatenations, but not what lies beside a shortcut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras
import numpy as np

from pipeline.errors import ConfigError
from pipeline.model.graph import (
    TRAINING_ONLY,
    find_producer,
    inline_submodels,
    inputs_of,
    list_cuts,
)
from pipeline.model.layers import TwoTowerConv2D

if TYPE_CHECKING:
    from pipeline.arrays import Floats, Layer, Network

_CONVOLUTIONS = (
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv2D,
    TwoTowerConv2D,
)
_ACTIVATIONS = (
    keras.layers.Activation,
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ELU,
)
_MAX_DEPTH_LAYERS = 6  # AlexNet has five convolutions, its variant in the paper's table 2 six
_MIN_STAGES = 3


def flatten_graph(network: Network) -> Network:
    """Return a network without submodels, so that all its layers can be seen.

    It is the same one where it has none, or where they cannot be taken apart.
    """
    if not isinstance(network, keras.Sequential) and not any(
        isinstance(layer, keras.Model) for layer in network.layers
    ):
        return network
    try:
        return inline_submodels(network)
    except ConfigError:
        return network


def list_depth_layers(network: Network) -> list[str]:
    """Return the layers whose feature maps show a network by depth, from the first to the last.

    One for each convolution, or group of them beside a shortcut: the layer that gives its
    activated output and divides the network. That is the convolution or the sum if the activation
    is part of it, else the activation that follows, behind whatever lies between. Maps of a
    single position do not count.

    Of more than six, the last one of each size of maps is returned, at most six; where there are
    fewer than three sizes, six spread over the depth. The list is empty where no layer with maps
    divides the network.
    """
    groups: dict[int, list[Layer]] = {}
    for convolutions, layer in _list_dividing_layers(network):
        shape = layer.output.shape
        if convolutions and len(shape) == 4 and shape[1] * shape[2] > 1:
            groups.setdefault(convolutions, []).append(layer)
    layers = [_find_activated(group) for group in groups.values()]
    if len(layers) > _MAX_DEPTH_LAYERS:
        layers = _choose_stages(layers)
    return [layer.name for layer in layers]


def _list_dividing_layers(network: Network) -> list[tuple[int, Layer]]:
    """Return the dividing layers in order, each with the number of convolutions up to it."""
    operations, cuts = list_cuts(network)
    found, convolutions = [], 0
    for index, operation in enumerate(operations):
        convolutions += isinstance(operation, _CONVOLUTIONS)
        if index in cuts and isinstance(operation, keras.layers.Layer):
            found.append((convolutions, operation))
    return found


def _find_activated(group: list[Layer]) -> Layer:
    """Return the layer that gives the activated output, of those from one convolution to the next.

    The first of them if it has an activation, else the first activation, else the first.
    """
    linear = keras.activations.linear
    if getattr(group[0], "activation", linear) is not linear:
        return group[0]
    return next((layer for layer in group if isinstance(layer, _ACTIVATIONS)), group[0])


def _choose_stages(layers: list[Layer]) -> list[Layer]:
    """Return at most six of some layers: the last of each size of maps, always the last one."""
    ends: dict[tuple[int, int], Layer] = {}
    for layer in layers:
        size = tuple(layer.output.shape[1:3])
        ends.pop(size, None)
        ends[size] = layer
    chosen = list(ends.values()) if len(ends) >= _MIN_STAGES else layers
    count = min(_MAX_DEPTH_LAYERS, len(chosen))
    return [chosen[index] for index in np.linspace(0, len(chosen) - 1, count).round().astype(int)]


def find_embedding_layer(network: Network) -> str:
    """Return the name of the layer or operation whose output the classifier reads, dropout aside.

    The classifier is the last dense layer or convolution, whatever is behind it, as in files from
    elsewhere; `pipeline.model.graph.find_feature_layer` is for networks that end with it.
    """
    layer = find_producer(network, network.outputs[0])
    while not isinstance(layer, keras.layers.Dense | keras.layers.Conv2D):
        inputs = inputs_of(layer)
        if len(inputs) != 1:
            return str(layer.name)
        layer = find_producer(network, inputs[0])
    layer = find_producer(network, inputs_of(layer)[0])
    while isinstance(layer, TRAINING_ONLY):
        layer = find_producer(network, inputs_of(layer)[0])
    return str(layer.name)


def find_first_convolution(network: Network) -> Layer | None:
    """Return the first convolution if it sees the three colors of the image, else None."""
    first = next((layer for layer in network.layers if isinstance(layer, _CONVOLUTIONS)), None)
    colored = (
        isinstance(first, keras.layers.Conv2D)
        and first.input.shape[-1] == 3
        and first.kernel.shape[2] == 3
    )
    return first if colored else None


def read_first_filters(network: Network) -> tuple[Floats, int]:
    """Return the filters that see the pixels, and the number of towers that share them.

    The filters are float32 [height, width, 3, filters]. With 2 towers, the next layer reads the
    first half of the filters in the first tower and the second half in the second.

    Raises:
        ValueError: `find_first_convolution` finds none.
    """
    first = find_first_convolution(network)
    if first is None:
        raise ValueError("No convolution sees the three colors.")
    convolutions = [layer for layer in network.layers if isinstance(layer, _CONVOLUTIONS)]
    others = convolutions[convolutions.index(first) + 1 :]
    towers = 2 if others and isinstance(others[0], TwoTowerConv2D) else 1
    return np.asarray(first.kernel, np.float32), towers
