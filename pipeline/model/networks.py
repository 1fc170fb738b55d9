"""The registry of networks: one row each, with the numbers of its layers and the settings it has.

A network with the pattern of 2012 is one row of `_ROWS` and nothing else: the command line, the
checks of its settings, its fingerprint and its page follow from the row. Each family has a module
that builds its rows (`_BUILDERS`); AlexNet is one.

This module imports neither TensorFlow nor Keras, and it is no part of a fingerprint: `network_code`
returns the part that counts, the row of the network in use and the code that builds it. So a new
row makes no result stale. The file is longer than 400 lines because the rows are its content.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.arrays import Network
    from pipeline.config.model import ModelConfig
    from pipeline.config.settings import Config

# Family -> the module with its `build_family_network` and `describe_family_start`.
_BUILDERS = {"alexnet": "pipeline.model.alexnet"}


@dataclass(frozen=True)
class Convolution:
    """One convolution, before the width multiplier, and the pool that follows it.

    Attributes:
        filters: channels out.
        window: height and width, in pixels.
        stride: pixels between two windows.
        double_stride_from: the stride is twice as long for inputs of so many pixels or more; 0:
            never.
        border: zeros around the input: as many as keep its size (`same`), as many at the right and
            the bottom as the last window needs (`edge`), or a number of pixels on each side.
        in_towers: each half of the filters sees half of the channels, in a network of two towers.
        pool: `max`, `mean`, or empty for none.
        positive_bias: biases start positive, "to provide the ReLUs with positive inputs" (paper,
            section 5).
        code_std: standard deviation of its initial weights in the published code.
    """

    filters: int
    window: int
    stride: int = 1
    double_stride_from: int = 0
    border: Literal["same", "edge"] | int = "same"
    in_towers: bool = False
    pool: Literal["max", "mean", ""] = ""
    positive_bias: bool = False
    code_std: float = 0.01


@dataclass(frozen=True)
class AlexNetLayers:
    """The numbers of an AlexNet: those of a row, or those that the settings make of it.

    Attributes:
        convolutions: in order.
        hidden: units of the hidden layers, before the width multiplier.
        towers: 2 where convolutions that are `in_towers` see half of the channels.
        normalization: `lrn`, `batch` or `none`.
        lrn_bias: the k of the paper's formula.
        lrn_alpha: its alpha.
        lrn_across: LRN sums over neighboring `maps`, or over those of one `tower`.
        layer_order: what follows the first two convolutions, by the names of alexnet.py.
        spatial_norm: a normalization over 5 x 5 positions after the second LRN.
        initialization: how weights start.
        input_scale: the scale of pixels inside the network; `auto`: as the initialization needs it.
        pool_padding: as Keras means it.
    """

    convolutions: tuple[Convolution, ...]
    hidden: tuple[int, ...] = (4096, 4096)
    towers: int = 1
    normalization: str = "lrn"
    lrn_bias: float = 2.0
    lrn_alpha: float = 1e-4
    lrn_across: str = "maps"
    layer_order: str = "paper"
    spatial_norm: bool = False
    initialization: str = "he"
    input_scale: str = "auto"
    pool_padding: str = "valid"


@dataclass(frozen=True)
class NetworkRow:
    """One network.

    Attributes:
        name: what `model.network` calls it.
        summary: what it is, in at most 60 characters.
        min_image_size: smallest input, in pixels; below, the pools have nothing left to see.
        image_size: the input that it was made for, in pixels.
        layers: its numbers; settings that are not `auto` replace them.
        family: which module builds it.
        fidelities: for each `model.alexnet.fidelity`, the numbers that it changes; empty where
            there is no such choice.
        weights_layouts: for each layout of foreign weights that it can take (`torchvision`,
            `caffe`), the numbers that they were trained with, in place of the fidelity's.
        without_effect: settings below `model.` that change nothing here, each with the reason.
        choices: settings below `model.` that may have only these values besides the default.
    """

    name: str
    summary: str
    min_image_size: int
    image_size: int
    layers: AlexNetLayers
    family: str = "alexnet"
    fidelities: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    weights_layouts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    without_effect: Mapping[str, str] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _pattern_of_2012(
    first: Convolution, second: int, third: int, fourth: int, fifth: int
) -> tuple[Convolution, ...]:
    """Return five convolutions and three pools (paper, section 3.5), given their filters."""
    return (
        dataclasses.replace(first, pool="max"),
        Convolution(second, 5, in_towers=True, pool="max", positive_bias=True),
        Convolution(third, 3, code_std=0.03),  # the only one that sees both towers
        Convolution(fourth, 3, in_towers=True, positive_bias=True, code_std=0.03),
        Convolution(fifth, 3, in_towers=True, pool="max", positive_bias=True, code_std=0.03),
    )


# 224 pixels give 55 positions in the 2012 code because windows may fall off the right and bottom
# edge, there by 3; at 227 none do.
_FIRST_OF_2012 = Convolution(96, 11, stride=4, border="edge")
_CONVOLUTIONS_OF_2012 = _pattern_of_2012(_FIRST_OF_2012, 256, 384, 384, 256)
# The networks of the paper exist twice: as its text describes them, and as the published program
# computed them. docs/model.md lists the differences with their sources.
_FIDELITIES_OF_2012: Mapping[str, Mapping[str, Any]] = {
    "code": {
        "lrn_alpha": 2e-5,
        "lrn_across": "tower",
        "layer_order": "code",
        "spatial_norm": True,
        "initialization": "code",
    },
    "paper": {"initialization": "paper"},
}

_ROWS = (
    NetworkRow(
        name="small",
        summary="the 2012 pattern for images of 28-96 pixels",
        min_image_size=16,
        image_size=32,
        # The stride is 1, or 2 from 64 pixels on, so that five convolutions and three pools have
        # something left to see.
        layers=AlexNetLayers(
            _pattern_of_2012(Convolution(48, 5, double_stride_from=64), 128, 192, 192, 128),
            hidden=(1024, 1024),
            towers=2,
        ),
    ),
    NetworkRow(
        name="paper",
        summary="two towers: Krizhevsky, Sutskever and Hinton, 2012",
        min_image_size=64,
        image_size=224,
        layers=AlexNetLayers(_CONVOLUTIONS_OF_2012, towers=2),
        fidelities=_FIDELITIES_OF_2012,
        # bvlc_alexnet: the paper's order of layers with Caffe's constants.
        weights_layouts={"caffe": {"lrn_bias": 1.0, "lrn_alpha": 2e-5, "initialization": "caffe"}},
    ),
    NetworkRow(
        name="caffenet",
        summary="Caffe's CaffeNet: pool before normalization",
        min_image_size=64,
        image_size=224,
        # Caffe leaves out the paper's k = 2, so its k is 1, and divides alpha by the five maps of
        # the sum.
        layers=AlexNetLayers(
            _CONVOLUTIONS_OF_2012,
            towers=2,
            lrn_bias=1.0,
            lrn_alpha=2e-5,
            layer_order="caffe",
            initialization="caffenet",
        ),
        weights_layouts={"caffe": {}},
    ),
    NetworkRow(
        name="owt",
        summary='"One weird trick", one tower, 2014, torchvision\'s layout',
        min_image_size=63,
        image_size=224,
        # With LRN it is cuda-convnet2's network; torchvision's has none.
        layers=AlexNetLayers(
            _pattern_of_2012(Convolution(64, 11, stride=4, border=2), 192, 384, 256, 256),
            normalization="none",
            lrn_alpha=2e-5,
            layer_order="code",
        ),
        weights_layouts={"torchvision": {}},
    ),
    NetworkRow(
        name="ungrouped",
        summary="2012 without towers, as in most blogs",
        min_image_size=64,
        image_size=224,
        layers=AlexNetLayers(_CONVOLUTIONS_OF_2012),
        fidelities=_FIDELITIES_OF_2012,
    ),
    NetworkRow(
        name="single_tower",
        summary="half of 2012, the one-GPU control of section 3.2",
        min_image_size=64,
        image_size=224,
        # Halves every convolution but the last: conv5 and the hidden layers keep the size that
        # makes both nets as large (paper, section 3.2).
        layers=AlexNetLayers(
            _pattern_of_2012(dataclasses.replace(_FIRST_OF_2012, filters=48), 128, 192, 192, 256)
        ),
        fidelities=_FIDELITIES_OF_2012,
    ),
    NetworkRow(
        name="cifar",
        summary="the four layers of figure 1, cuda-convnet's layers-18pct",
        min_image_size=16,
        image_size=32,
        # Its pools begin at the first position and may fall off the edge, as cuda-convnet's do: 32
        # positions become 16. Its files say nothing of biases.
        layers=AlexNetLayers(
            (
                Convolution(32, 5, pool="max", code_std=1e-4),
                Convolution(32, 5, pool="mean"),
                Convolution(64, 5, pool="mean"),
            ),
            hidden=(),
            normalization="none",
            layer_order="cifar",
            initialization="code",
            pool_padding="same",
        ),
        without_effect={
            "alexnet.layer_order": "network cifar has one order of its layers",
            "alexnet.spatial_norm": "network cifar has one order of its layers",
            "alexnet.sixth_layer": "network cifar has three convolutions",
        },
        choices={"alexnet.initialization": ("code", "he", "glorot")},
    ),
)
_BY_NAME = {row.name: row for row in _ROWS}


def network_names() -> tuple[str, ...]:
    """Return the names of all networks."""
    return tuple(_BY_NAME)


def find_network(name: str) -> NetworkRow:
    """Return the row of a network.

    Raises:
        ConfigError: there is no such network.
    """
    if name not in _BY_NAME:
        from pipeline.config.recipes import suggest_spelling

        raise ConfigError(
            f"Unknown network `{name}`",
            expected=f"one of {', '.join(_BY_NAME)}",
            hint=f"{suggest_spelling(name, network_names())} Type --network NAME",
        )
    return _BY_NAME[name]


def networks_with_weights(layout: str) -> tuple[str, ...]:
    """Return the names of the networks that take foreign weights of a layout such as `caffe`."""
    return tuple(row.name for row in _ROWS if layout in row.weights_layouts)


def build_network(
    config: ModelConfig,
    *,
    num_classes: int,
    channel_mean: Sequence[float],
    channel_std: Sequence[float],
    weights_layout: str = "",
) -> Network:
    """Return an uncompiled Keras model with fresh weights.

    It takes uint8 [batch, image_size, image_size, 3] RGB in [0, 255] and returns float32 logits
    [batch, num_classes].

    Args:
        config: which network, and every choice within it.
        num_classes: number of logits.
        channel_mean: RGB mean of the training pixels, 0-255.
        channel_std: RGB standard deviation of the training pixels, 0-255.
        weights_layout: build the network that foreign weights of this layout were trained in.
    """
    row = find_network(config.network)
    builder = importlib.import_module(_BUILDERS[row.family])
    network: Network = builder.build_family_network(
        row,
        config,
        num_classes=num_classes,
        channel_mean=channel_mean,
        channel_std=channel_std,
        weights_layout=weights_layout,
    )
    return network


def describe_start(config: ModelConfig) -> dict[str, str]:
    """Return what decides whether a signal passes through fresh weights, by the setting's name."""
    row = find_network(config.network)
    builder = importlib.import_module(_BUILDERS[row.family])
    start: dict[str, str] = builder.describe_family_start(row, config)
    return start


def network_code(config: ModelConfig) -> dict[str, str]:
    """Return the `code` parts of a fingerprint for the network in use.

    The digest of what its row says of layers and weights, and of the modules that build it.
    """
    from pipeline.artifacts import digest_of
    from pipeline.engine.fingerprint import code_parts

    row = find_network(config.network)
    numbers = [row.name, row.family, dataclasses.asdict(row.layers)]
    numbers += [row.fidelities, row.weights_layouts]
    builder = code_parts(_BUILDERS[row.family], frozenset({__name__}))
    parts = {name: digest for name, digest in builder.items() if name.startswith("code ")}
    return {f"code network {row.name}": digest_of(numbers)[:16], **parts}


# -- which settings a network has ------------------------------------------------------------------


def require_network_settings(config: Config) -> None:
    """Check that the network exists, sees enough pixels, and has the settings that were changed.

    Raises:
        ConfigError: it does not, or a setting of the network would change nothing.
    """
    model, row = config.model, find_network(config.model.network)
    defaults = type(model)()
    if model.image_size < row.min_image_size:
        size = row.image_size
        raise ConfigError(
            f"model.network={row.name} needs a model.image_size of at least {row.min_image_size}"
            f" pixels, and was made for {size}",
            received=str(model.image_size),
            hint=f"Type --set data.short_side={size * 8 // 7} --image-size {size}, or keep"
            f" --network {defaults.network}",
        )
    fidelity = model.alexnet.fidelity
    if fidelity != defaults.alexnet.fidelity and fidelity not in row.fidelities:
        those = ", ".join(other.name for other in _ROWS if fidelity in other.fidelities)
        raise ConfigError(
            f"model.alexnet.fidelity={fidelity} is a choice between the text and the code of 2012",
            expected=f"it with model.network {those}",
            received=f"network {row.name}",
            hint="Leave fidelity out",
        )
    for name, why in _settings_without_effect(row, model):
        value = attrgetter(name)(model)
        if value != attrgetter(name)(defaults):
            raise ConfigError(
                f"model.{name} would change nothing: {why}",
                received=str(value),
                hint=f"Leave {name.rpartition('.')[2]} out",
            )
    removed = model.alexnet.remove_layer
    existing = [f"conv{number}" for number in range(1, len(row.layers.convolutions) + 1)]
    if removed not in ("none", *existing):
        raise ConfigError(
            f"Network {row.name} has no layer {removed}",
            expected=f"model.alexnet.remove_layer to be one of {', '.join(existing[1:])}",
            received=removed,
            hint="Leave remove_layer out",
        )


def _settings_without_effect(row: NetworkRow, model: ModelConfig) -> Iterator[tuple[str, str]]:
    """Yield the settings below `model.` that change nothing in this network, with the reason."""
    asked = model.alexnet.normalization
    normalization = row.layers.normalization if asked == "auto" else asked
    yield from row.without_effect.items()
    if normalization in ("none", "batch"):
        why = (
            f"network {row.name} with normalization={asked} has no LRN (add --set"
            " model.alexnet.normalization=lrn)"
        )
        yield from (("alexnet.lrn_alpha", why), ("alexnet.lrn_across", why))
    if normalization == "batch":
        why = "with batch normalization the order is convolution, normalization, activation, pool"
        yield from (("alexnet.layer_order", why), ("alexnet.spatial_norm", why))
    if not row.layers.hidden:
        why = f"network {row.name} has no hidden layer, so no dropout"
        yield from (("dropout", why), ("alexnet.dropout_position", why))
    for name, values in row.choices.items():
        if attrgetter(name)(model) not in values:
            yield name, f"network {row.name} knows auto, {', '.join(values)}"
