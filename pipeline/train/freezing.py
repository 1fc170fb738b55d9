"""Freezing a part of a network: a layer or block, and everything that it depends on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras

from pipeline.errors import ConfigError
from pipeline.model.graph import find_classifier, list_blocks

if TYPE_CHECKING:
    from pipeline.arrays import Network

# Names that an error lists.
_MAX_LISTED = 16


def freeze_layers(network: Network, name: str) -> None:
    """Freeze weights and statistics of a layer, of all that it depends on and its normalization.

    Normalization, scales and activations that follow are part of it, up to the next kernels: they
    see nothing that is trained.

    Args:
        network: functional.
        name: of a layer, such as the last one of a block; `backbone` is all but the classifier,
            `none` nothing.

    Raises:
        ConfigError: there is no such layer, or it is the classifier.
    """
    if name == "none":
        return
    parents = _find_parents(network)
    frozen = _collect_ancestors(parents, _find_end(network, name))
    for operation, inputs in parents.items():  # in order, so that a chain of them follows
        if not _has_kernel(operation) and all(parent in frozen for parent in inputs):
            frozen.add(operation)
    for operation in frozen:
        if isinstance(operation, keras.layers.Layer):
            operation.trainable = False


def _find_end(network: Network, name: str) -> list[Any]:
    """Return the operations up to which a network is frozen, themselves included."""
    classifier = find_classifier(network)
    if name == "backbone":
        return _find_parents(network)[classifier]
    found = [layer for layer in network.layers if layer.name == name and layer is not classifier]
    if not found:
        raise ConfigError(
            f"The network has no layer {name} to freeze",
            expected=f"train.freeze to be none, backbone or one of {_list_names(network)}",
        )
    return found


def _list_names(network: Network) -> str:
    """Return the layers with weights, or where there are many, some ends of blocks."""
    weighted = [layer.name for layer in network.layers[:-1] if layer.weights]
    names = weighted if len(weighted) <= _MAX_LISTED else list(list_blocks(network))
    step = -(-len(names) // _MAX_LISTED)
    return ", ".join(names[step - 1 :: step])


def _find_parents(network: Network) -> dict[Any, list[Any]]:
    """Return each operation of a network, in order, with those whose outputs it reads."""
    maker = {
        id(tensor): operation
        for operation in network.operations
        for tensor in keras.tree.flatten(operation.output)
    }
    return {
        operation: []
        if isinstance(operation, keras.layers.InputLayer)
        else [maker[id(tensor)] for tensor in keras.tree.flatten(operation.input)]
        for operation in network.operations
    }


def _collect_ancestors(parents: dict[Any, list[Any]], ends: list[Any]) -> set[Any]:
    """Return the ends and every operation that they depend on."""
    found, waiting = set[Any](), list(ends)
    while waiting:
        operation = waiting.pop()
        if operation not in found:
            found.add(operation)
            waiting += parents[operation]
    return found


def _has_kernel(operation: Any) -> bool:
    """Return whether an operation has weights of two dimensions or more, so not norms alone."""
    return any(len(weight.shape) > 1 for weight in getattr(operation, "weights", ()))
