"""Questions about any functional network, answered from its graph and never from names.

copy_layers(network, tensor)     the same layers once more, behind another tensor, in one flat graph
inline_submodels(network)        the same network with the layers of submodels in their place
find_classifier(network)         the last layer: a Dense without activation
find_feature_layer(network)      the layer whose output the classifier reads, dropout aside
find_last_maps(network)          the last layer that still has height and width
list_blocks(network)             where the network can be cut in two, from input to classifier
list_cuts(network)               the operations, and which of them every path passes through
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import random
import re
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from pipeline.errors import ConfigError
from pipeline.random_streams import derive_layer_seed

if TYPE_CHECKING:
    from pipeline.arrays import Layer, Network, Tensor

# Layers that change no value at inference, and so stand between features and classifier.
TRAINING_ONLY = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.AlphaDropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.ActivityRegularization,
    keras.layers.Identity,
)
# What ends a block: sums and concatenations of paths. A product is no end: it is the gate of a
# squeeze-and-excitation in the middle of one.
_MERGES = ("Add", "Concatenate", "Average", "Maximum")


# -- copying ---------------------------------------------------------------------------------------


def _copy_operation(operation: Any, name: str) -> Any:
    """Return a new layer or operation with the same settings.

    Raises:
        ConfigError: it is code, or cannot be made of its settings.
    """
    try:
        return type(operation).from_config(operation.get_config() | {"name": name})
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ConfigError(
            f"The layer {operation.name}, a {type(operation).__name__}, cannot be copied or opened"
            " again without running code",
            expected="layers and operations of Keras alone",
            hint="Make it of Keras's layers, without Lambda and classes of your own",
        ) from error


def inline_submodels(network: Network) -> Network:
    """Return the network as one flat graph of copied layers, with the same weights and outputs.

    Raises:
        ConfigError: as of `copy_layers`.
    """
    tensor = require_one_path(network).inputs[0]
    image = keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=tensor.name)
    return keras.Model(image, copy_layers(network, image), name=network.name)


def copy_layers(
    network: Network,
    tensor: Tensor,
    *,
    seed: int | None = None,
    leave_out: Sequence[type] = (),
    taken: Collection[str] = (),
) -> Tensor:
    """Connect copies of a network's layers to a tensor; return what they make of it.

    The copies are one flat graph: those of a submodel take its place, and a layer without weights
    that is called several times becomes one layer for each call, so that every layer has one
    output. A convolution with a group for each map becomes a depthwise one, and a `Normalization`
    of channels a `Rescaling`. Names that Keras
    made up are counted anew (`add`, `add_1`, ...), as they otherwise depend on what the process
    built before.

    Args:
        network: a functional or sequential model with one input and one output.
        tensor: symbolic, of a shape that the network takes.
        seed: draw all weights anew, each layer's from this and its name; None: copy the weights.
        leave_out: classes of layers whose input passes unchanged.
        taken: names that no copy may have.

    Raises:
        ConfigError: the network is none of these, or a layer with weights is called twice.
    """
    copier = _Copier(seed, tuple(leave_out), set(taken))
    (output,) = copier.run(network, [tensor], "", None)
    return output


class _Copier:
    """Copies layers, each under a name that no other copy has."""

    def __init__(self, seed: int | None, leave_out: tuple[type, ...], taken: set[str]):
        self._seed, self._leave_out, self._taken = seed, leave_out, taken
        self._copied: set[int] = set()

    def run(
        self, network: Network, tensors: Sequence[Tensor], prefix: str, training: bool | None
    ) -> list[Tensor]:
        """Return the outputs of copies of a network's layers behind other tensors.

        Args:
            network: whose layers are copied.
            tensors: one for each input.
            prefix: that of names which are taken already: the submodel's.
            training: what the caller of a submodel said, for all layers in it.
        """
        graph = require_one_path(network)

        def call(operation: Any, *arguments: Any, **options: Any) -> Any:
            if isinstance(operation, keras.Model):
                mode = options.get("training", training)
                return self.run(operation, arguments[:1], f"{operation.name}_", mode)
            if isinstance(operation, self._leave_out):
                return arguments[0]
            if training is not None and _takes_training(operation):
                options.setdefault("training", training)
            return self._call_copy(operation, prefix, arguments, options)

        outputs = graph._run_through_graph(list(tensors), call_fn=call)
        return keras.tree.flatten(outputs)

    def _call_copy(
        self, operation: Any, prefix: str, arguments: Sequence[Any], options: dict[str, Any]
    ) -> Any:
        """Call a copy of a layer, or of an operation that is none."""
        name, seed = self._choose_name(operation, prefix), 0
        weighted = bool(getattr(operation, "weights", ()))
        if id(operation) in self._copied and weighted and not _is_chance_alone(operation):
            raise ConfigError(
                f"The layer {operation.name} is called twice, so that its weights are shared",
                expected="a network in which each layer with weights is called once",
            )
        self._copied.add(id(operation))
        if self._seed is not None:
            seed = derive_layer_seed(self._seed, name)
        depthwise, rescales = _is_depthwise(operation), _normalizes_channels(operation)
        with seed_python(seed):
            if depthwise:
                copy = _make_depthwise(operation, name)
            elif rescales:
                copy = _make_rescaling(operation, name)
            else:
                copy = _copy_operation(operation, name)
            output = copy(*arguments, **options)
        if self._seed is None and weighted and not rescales:
            weights = operation.get_weights()
            if depthwise:  # [height, width, 1, maps] -> [height, width, maps, 1]
                weights[0] = weights[0].swapaxes(2, 3)
            assign_layer_weights(copy, weights)
        return output

    def _choose_name(self, operation: Any, prefix: str) -> str:
        """Return a name for a copy: the layer's own unless Keras made it up, or it is taken."""
        own, kind = operation.name, _snake_case(type(operation).__name__)
        if re.fullmatch(rf"{re.escape(kind)}(_\d+)?", own):
            own, prefix = kind, ""
        name = own if own not in self._taken else f"{prefix}{own}"
        stem, number = name, 0
        while name in self._taken:
            number += 1
            name = f"{stem}_{number}"
        self._taken.add(name)
        return name


def assign_layer_weights(layer: Layer, arrays: Sequence[Any]) -> None:
    """Set the weights of a layer, and what it computed from them when it was built.

    An adapted `Normalization` computes with tensors that it made of its weights.
    """
    layer.set_weights(arrays)
    if hasattr(layer, "finalize_state"):
        layer.finalize_state()


def require_one_path(network: Network) -> Network:
    """Return a network as a functional one of the same layers, with one input and one output.

    Raises:
        ConfigError: its layers cannot be seen, or it has several inputs or outputs.
    """
    built = getattr(network, "outputs", None)
    if not built or not (isinstance(network, keras.Sequential) or hasattr(network, "operations")):
        raise ConfigError(
            f"The network {network.name} is of class {type(network).__name__}, whose layers"
            " cannot be seen",
            expected="a functional or a built sequential keras.Model",
            hint="Make it with keras.Model(inputs, outputs), and begin with a keras.Input",
        )
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        raise ConfigError(
            f"The network {network.name} has {len(network.inputs)} inputs and"
            f" {len(network.outputs)} outputs",
            expected="one input, the image, and one output",
        )
    if isinstance(network, keras.Sequential):
        return keras.Model(network.inputs, network.outputs, name=network.name)
    return network


def _is_depthwise(operation: Any) -> bool:
    """Return whether a layer is a convolution with a group for each map, as ConvNeXt has them."""
    return type(operation) is keras.layers.Conv2D and (
        1 < operation.groups == operation.filters == operation.input.shape[-1]
    )


def _make_depthwise(operation: Any, name: str) -> Layer:
    """Return a depthwise convolution that computes what one with a group for each map does.

    TensorFlow's kernel for it: Keras leaves groups to XLA, which takes several times as long on
    processors and which no export format can hold.
    """
    settings = operation.get_config() | {"name": name}
    for unused in ("filters", "groups"):
        del settings[unused]
    for what in ("initializer", "regularizer", "constraint"):
        settings[f"depthwise_{what}"] = settings.pop(f"kernel_{what}")
    return keras.layers.DepthwiseConv2D.from_config(settings)


def _normalizes_channels(operation: Any) -> bool:
    """Return whether a layer takes a mean from each channel and divides by a deviation."""
    if type(operation) is not keras.layers.Normalization or operation.invert:
        return False
    rank = len(operation.input.shape)
    return all(axis % rank == rank - 1 for axis in operation.axis)


def _make_rescaling(operation: Any, name: str) -> Layer:
    """Return what computes the same with its constants inside the graph.

    An ONNX file asks for those of `Normalization` as inputs.
    """
    mean = np.asarray(operation.mean, np.float64).ravel()
    std = np.sqrt(np.asarray(operation.variance, np.float64).ravel())
    std = np.maximum(std, keras.config.epsilon())
    return keras.layers.Rescaling(
        scale=(1 / std).tolist(), offset=(-mean / std).tolist(), name=name, dtype=operation.dtype
    )


def _takes_training(operation: Any) -> bool:
    return "training" in inspect.signature(operation.call).parameters


def _is_chance_alone(operation: Any) -> bool:
    """Return whether all that a layer keeps is the state of its random numbers."""
    return all("seed_generator" in weight.path for weight in operation.weights)


def _snake_case(name: str) -> str:
    """Return a class's name as Keras makes a layer's name of it, such as `conv2d`, `re_lu`."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


@contextlib.contextmanager
def seed_python(seed: int) -> Iterator[None]:
    """Seed what Keras takes its default seeds from, Python's random numbers, and put them back."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


# -- questions -------------------------------------------------------------------------------------


def find_producer(network: Network, tensor: Tensor) -> Any:
    """Return the operation of a network, a layer or not, whose output a tensor is."""
    return next(
        operation
        for operation in reversed(network.operations)
        if any(output is tensor for output in keras.tree.flatten(operation.output))
    )


def find_classifier(network: Network) -> Layer:
    """Return the last layer, a Dense without activation whose units are the classes.

    Raises:
        ConfigError: the network ends with something else.
    """
    last = find_producer(network, network.outputs[0])
    linear = keras.activations.linear
    if not isinstance(last, keras.layers.Dense) or last.activation is not linear:
        kind = type(last).__name__
        activation = getattr(getattr(last, "activation", None), "__name__", "")
        raise ConfigError(
            f"The network {network.name} ends with {last.name}, a {kind}"
            + (f" with activation {activation}" if activation not in ("", "linear") else ""),
            expected="a Dense layer without activation, which gives the logits",
        )
    return last


def find_feature_layer(network: Network) -> Layer:
    """Return the layer whose output [batch, features] the classifier reads, dropout aside.

    Raises:
        ConfigError: as of `find_classifier`.
    """
    layer = find_classifier(network)
    while True:
        layer = find_producer(network, keras.tree.flatten(layer.input)[0])
        if not isinstance(layer, TRAINING_ONLY):
            return layer


def find_last_maps(network: Network) -> Layer:
    """Return the last layer with output [batch, height, width, channels].

    The last of more than one position, where there is one: maps of a gate are one position.
    """
    maps = [layer for layer in network.layers if _rank(layer) == 4]
    wide = [layer for layer in maps if layer.output.shape[1:3] != (1, 1)]
    return (wide or maps)[-1]


def list_blocks(network: Network) -> tuple[str, ...]:
    """Return the names of layers at which the network can be cut in two, from input to classifier.

    A block is what lies between two of them in `network.layers`, the second included; each has
    weights, and is connected to the next by one tensor alone. Where paths part and meet again,
    blocks end with the sums or concatenations at which they meet (or with the layer before, where
    the sum is no layer, as in `x + y`); otherwise with the last layer before the next kernel. The
    last name is the feature layer: up to there is the backbone.
    """
    operations, cuts = list_cuts(network)
    last = operations.index(find_feature_layer(network))
    kernels = [index for index in range(last + 1) if _has_kernel(operations[index])]
    first_parting = next((index for index in range(last) if index not in cuts), last)
    merges = {index for index in cuts if type(operations[index]).__name__ in _MERGES}
    ends = []
    for kernel, following in itertools.pairwise([*kernels, last + 1]):
        between = [index for index in range(kernel, following) if index in cuts]
        wanted = not merges or kernel < first_parting or not merges.isdisjoint(between)
        if between and wanted:
            ends.append(between[-1])
    ends += [] if last in ends else [last]
    return tuple(_last_layer(operations[: index + 1]).name for index in ends)


def _last_layer(operations: Sequence[Any]) -> Layer:
    """Return the last operation that is a layer: a sum may be none (`x + y`)."""
    return next(one for one in reversed(operations) if isinstance(one, keras.layers.Layer))


def list_cuts(network: Network) -> tuple[list[Any], set[int]]:
    """Return all operations in order, and the indices of those that every path passes through."""
    operations = list(network.operations)
    made = {
        id(tensor): index
        for index, operation in enumerate(operations)
        for tensor in keras.tree.flatten(operation.output)
    }
    reads = [0] * len(operations)  # the last operation that reads each one
    for index, operation in enumerate(operations):
        for tensor in inputs_of(operation):
            reads[made[id(tensor)]] = index
    cuts, furthest = set[int](), 0
    for index, last in enumerate(reads):
        if furthest <= index:
            cuts.add(index)
        furthest = max(furthest, last)
    return operations, cuts


def inputs_of(operation: Any) -> list[Tensor]:
    """Return the tensors that an operation reads; none for an input of the network."""
    if isinstance(operation, keras.layers.InputLayer):
        return []
    return keras.tree.flatten(operation.input)


def _rank(layer: Layer) -> int:
    return len(getattr(layer.output, "shape", ()))


def _has_kernel(operation: Any) -> bool:
    """Return whether an operation has weights of two dimensions or more, so not norms alone."""
    return any(len(weight.shape) > 1 for weight in getattr(operation, "weights", ()))
