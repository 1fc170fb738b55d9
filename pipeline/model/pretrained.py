"""A network that starts from weights of elsewhere: of a file, or those that ImageNet gave it.

Files are this project's, torchvision's or Caffe's. The pixels' mean and scale that the weights were
trained with come along, inside the network. The network of a `.keras` file must be the same as the
settings make, but for the classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import keras

from pipeline.artifacts import file_sha256
from pipeline.config.model import ModelConfig
from pipeline.errors import ConfigError
from pipeline.model.alexnet_rows import networks_with_weights
from pipeline.model.graph import assign_layer_weights
from pipeline.model.imagenet import IMAGENET_CLASSES, are_imagenet_classes
from pipeline.model.network_row import NetworkRow
from pipeline.model.networks import build_network, find_network
from pipeline.model.weight_sources import (
    IMAGENET,
    WeightSource,
    find_source,
    find_weights,
    keras_weights_found_here,
    networks_on_imagenet,
)
from pipeline.model.weights_files import read_tensors_file, read_weights_file

if TYPE_CHECKING:
    from pipeline.arrays import Array, Layer, Network

_SAME_SETTINGS = "Give the settings that it was made with"
# Of networks that come with weights, by family.
_OWN_WEIGHTS = {
    family: f"Leave --weights out: the {family} brings its own, and --set train.finetune=head tunes"
    " them"
    for family in ("file", "function")
}
_ORIGINS = {"torchvision": "torchvision's AlexNet", "caffe": "Caffe's AlexNet or CaffeNet"}
# What may differ between a file's network and the one that starts from it: how its weights began,
# and chance.
_MAY_DIFFER = frozenset(
    {"kernel_initializer", "bias_initializer", "seed", "rate", "dtype", "trainable", "mean", "std"}
)


@dataclass(frozen=True)
class PretrainedNetwork:
    """A network with weights of elsewhere.

    Attributes:
        network: uncompiled.
        fresh_layers: names of the layers that start afresh: the classifier, or none.
        weights: `imagenet`, or the file's name.
        sha256: of the file.
        licence: of the weights, by its SPDX name; empty where unknown.
    """

    network: Network
    fresh_layers: tuple[str, ...]
    weights: str
    sha256: str
    licence: str = ""


def load_pretrained_network(config: ModelConfig, class_names: tuple[str, ...]) -> PretrainedNetwork:
    """Return a network with the weights that `config.weights` names.

    Raises:
        ConfigError: the weights are not here, cannot be read, or are another network's than the
            settings describe.
        CheckpointError: a file is not the one that was published.
    """
    row = find_network(config.network)
    if row.family == "file" and not config.weights:
        return _load_own_network(row, config, class_names)
    if row.family == "keras" and config.weights == IMAGENET:
        return _load_application(row, config, class_names)
    file = None
    if config.weights == IMAGENET:
        file = find_weights(_require_source(config.network))
    path = Path(config.weights).expanduser() if file is None else file.path
    if row.family == "efficientnet_lite" and path.suffix != ".keras":
        network, fresh = _load_efficientnet_lite(config, class_names, path)
    else:
        network, fresh = _load_weights_file(config, class_names, path)
    if file is None:
        return PretrainedNetwork(network, fresh, path.name, file_sha256(path))
    return PretrainedNetwork(network, fresh, IMAGENET, file.sha256, file.licence)


def _load_own_network(
    row: NetworkRow, config: ModelConfig, class_names: tuple[str, ...]
) -> PretrainedNetwork:
    """Return the network in a file with its weights."""
    from pipeline.model.own_networks import load_own_network

    network, keeps = load_own_network(row, config, class_names)
    path = Path(row.name)
    fresh = () if keeps else (network.layers[-1].name,)
    return PretrainedNetwork(network, fresh, path.name, file_sha256(path))


def _load_application(
    row: NetworkRow, config: ModelConfig, class_names: tuple[str, ...]
) -> PretrainedNetwork:
    """Return a network of keras.applications with the weights that Keras publishes."""
    from pipeline.model.keras_networks import build_with_imagenet_weights

    keep = _decide_classifier(config, class_names, IMAGENET_CLASSES, None, Path(row.name))
    with keras_weights_found_here(row.licence) as found:
        network = build_with_imagenet_weights(
            row, config, num_classes=len(class_names), keeps_classifier=keep, files=found
        )
    fresh = () if keep else (network.layers[-1].name,)
    file = found[0]
    return PretrainedNetwork(network, fresh, IMAGENET, file.sha256, file.licence)


def _require_source(network: str) -> WeightSource:
    """Return where the ImageNet weights of a network come from; raise where it has none."""
    source = find_source(network)
    if source is None:
        raise ConfigError(
            f"There are no weights on ImageNet for network {network}",
            expected=f"--network {', '.join(networks_on_imagenet())}, or one of keras/...",
            hint=_OWN_WEIGHTS.get(
                find_network(network).family, "Name a file with --weights, or leave --weights out"
            ),
        )
    return source


def _load_efficientnet_lite(
    config: ModelConfig, class_names: tuple[str, ...], path: Path
) -> tuple[Network, tuple[str, ...]]:
    """Return a network with the weights of a file of PyTorch, and the layers that start afresh."""
    from pipeline.model.efficientnet_lite import assign_weights

    tensors = read_tensors_file(path)
    network = build_network(
        config, num_classes=len(class_names), channel_mean=(0, 0, 0), channel_std=(1, 1, 1)
    )
    # [classes, features]; a file without it is another network's.
    classes = len(tensors.get("_fc.bias", ()))
    keep = _decide_classifier(config, class_names, classes, None, path)
    try:
        assign_weights(network, tensors, with_classifier=keep)
    except ValueError as error:
        raise ConfigError(
            f"The weights in {path} are of another network: {error}",
            expected=f"those of {config.network}",
            hint="Choose the network that they were trained with",
        ) from error
    return network, () if keep else (network.layers[-1].name,)


def _load_weights_file(
    config: ModelConfig, class_names: tuple[str, ...], path: Path
) -> tuple[Network, tuple[str, ...]]:
    """Return a network with the weights of a file, and the layers that start afresh.

    Any network may start from a `.keras` file that was trained here; foreign weights are AlexNet's.
    """
    pretrained = read_weights_file(path)
    if pretrained.network is None:
        _require_layout(pretrained.layout, config, path)
    # A network of ours brings its own mean and std, which are 0 and 255, or 1, where it was not
    # made with `unit`.
    scale = "levels" if pretrained.layout == "caffe" else "unit"
    asked = config.alexnet.input_scale
    if pretrained.network is None and asked not in ("auto", scale):
        raise ConfigError(
            f"The weights in {path} were trained on another scale of pixels",
            expected=f"model.alexnet.input_scale={scale}",
            received=asked,
            hint="Leave the setting out",
        )
    alexnet = config.alexnet.model_copy(update={"input_scale": scale})
    network = build_network(
        config.model_copy(update={"alexnet": alexnet}),
        num_classes=len(class_names),
        channel_mean=pretrained.mean,
        channel_std=pretrained.std,
        weights_layout="" if pretrained.network is not None else pretrained.layout,
    )
    if pretrained.network is not None:
        _require_same_network(network, pretrained.network, path)
    classes = int(pretrained.layers[pretrained.classifier][-1].shape[0])
    keep = _decide_classifier(config, class_names, classes, pretrained.class_names, path)
    fresh = []
    for layer in network.layers:
        if not layer.weights or isinstance(layer, keras.layers.Dropout):
            continue
        if layer is network.layers[-1] and not keep:
            names = pretrained.class_names if config.classifier == "auto" else None
            arrays = pretrained.layers[pretrained.classifier]
            if names is None or not _keep_known_classes(layer, arrays, names, class_names):
                fresh.append(layer.name)
            continue
        _assign_weights(layer, pretrained.layers.get(layer.name), path)
    return network, tuple(fresh)


def _keep_known_classes(
    classifier: Layer, arrays: list[Array], known: Sequence[str], class_names: Sequence[str]
) -> bool:
    """Set the weights of the classes that a file knows by name; return whether these are all.

    The others stay as they are.

    Args:
        classifier: of `class_names`, kernel [features, classes].
        arrays: of the file's classifier, likewise, in the order of `known`.
        known: the file's classes.
        class_names: those of the network.
    """
    numbers = {name: number for number, name in enumerate(known)}
    own = [number for number, name in enumerate(class_names) if name in numbers]
    theirs = [numbers[class_names[number]] for number in own]
    weights = classifier.get_weights()
    for mine, array in zip(weights, arrays, strict=True):
        mine[..., own] = array[..., theirs]
    classifier.set_weights(weights)
    return len(own) == len(class_names)


def _require_layout(layout: str, config: ModelConfig, path: Path) -> None:
    """Raise a ConfigError where the network cannot take foreign weights of a layout."""
    known = networks_with_weights(layout)
    if config.network not in known:
        raise ConfigError(
            f"{path} holds the weights of {_ORIGINS[layout]}",
            expected=f"--network {' or '.join(known)}",
            received=f"network {config.network}",
        )


def _decide_classifier(
    config: ModelConfig,
    class_names: tuple[str, ...],
    classes: int,
    known: tuple[str, ...] | None,
    path: Path,
) -> bool:
    """Return whether the last layer's weights are taken.

    Args:
        config: the settings.
        class_names: of the dataset.
        classes: that the weights tell apart.
        known: their names; None: ImageNet's.
        path: the file, for messages.

    Raises:
        ConfigError: they must be kept, and are not as many.
    """
    if config.classifier == "keep" and classes != len(class_names):
        raise ConfigError(
            f"model.classifier=keep needs as many classes as {path} has",
            expected=f"{classes} classes",
            received=str(len(class_names)),
            hint="Leave the setting out and the last layer starts afresh",
        )
    same = are_imagenet_classes(class_names) if known is None else known == class_names
    return config.classifier == "keep" or (config.classifier == "auto" and same)


def _assign_weights(layer: Layer, arrays: list[Array] | None, path: Path) -> None:
    """Set the weights of a layer; raise a ConfigError where they are another network's."""
    expected = [tuple(weight.shape) for weight in layer.weights]
    found = None if arrays is None else [array.shape for array in arrays]
    if arrays is None or found != expected:
        raise ConfigError(
            f"The weights in {path} are of another network: layer {layer.name} expects other"
            " arrays",
            expected=f"shapes {expected}",
            received=str(found),
            hint="Choose the network, image_size and width_multiplier that they were trained with",
        )
    assign_layer_weights(layer, arrays)


def _require_same_network(network: Network, other: Network, path: Path) -> None:
    """Raise a ConfigError where two networks compute different functions."""
    mine, theirs = (
        {layer.name: layer.get_config() for layer in model.layers} for model in (network, other)
    )
    for name in [*mine, *theirs]:
        if name not in mine or name not in theirs:
            which = (
                "lacks one that the settings make"
                if name in mine
                else "has one that the settings do not make"
            )
            raise ConfigError(
                f"The network in {path} is another one: it {which}: layer {name}",
                hint=_SAME_SETTINGS,
            )
    for name, config in mine.items():
        for key in sorted(config.keys() - _MAY_DIFFER):
            if config[key] != theirs[name].get(key) and not (
                key == "units" and name == network.layers[-1].name
            ):
                raise ConfigError(
                    f"The network in {path} is another one: its layer {name} has"
                    f" {key}={theirs[name].get(key)}, the settings make {config[key]}",
                    hint=_SAME_SETTINGS,
                )
