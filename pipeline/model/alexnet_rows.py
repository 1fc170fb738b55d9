"""The rows of AlexNet: the numbers of each network's layers, and the settings that it has.

A network with the pattern of 2012 is one row of `ALEXNET_ROWS` and nothing else: the command line,
the checks of its settings, its fingerprint and its page follow from the row.

This module imports neither TensorFlow nor Keras.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import ConfigError
from pipeline.model.network_row import NetworkRow

if TYPE_CHECKING:
    from pipeline.config.model import ModelConfig


@dataclass(frozen=True)
class Convolution:
    """One convolution, before the width multiplier, and the pool that follows it.

    Attributes:
        filters: channels out.
        window: height and width, in pixels.
        stride: pixels between two windows.
        double_stride_from: the stride is twice as long for inputs whose shorter side has so many
            pixels or more; 0: never.
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


@dataclass(frozen=True, kw_only=True)
class AlexNetRow(NetworkRow):
    """A network of the family.

    Attributes:
        layers: its numbers; settings that are not `auto` replace them.
        fidelities: for each `model.alexnet.fidelity`, the numbers that it changes; empty where
            the network has one fidelity.
        weights_layouts: for each layout of foreign weights that it can take (`torchvision`,
            `caffe`), the numbers that they were trained with, in place of the fidelity's.
        without_effect: settings below `model.` that change nothing here, each with the reason.
        choices: settings below `model.` that may have only these values besides the default.
    """

    family: str = "alexnet"
    layers: AlexNetLayers
    fidelities: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    weights_layouts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    without_effect: Mapping[str, str] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def numbers(self) -> list[Any]:
        """Return what decides the network, as JSON can hold it."""
        layers = dataclasses.asdict(self.layers)
        return [self.name, self.family, layers, self.fidelities, self.weights_layouts]


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

ALEXNET_ROWS = (
    AlexNetRow(
        name="small",
        parameters=3_834_024,
        macs=48_604_160,
        summary="the 2012 pattern for images of 28-96 pixels",
        min_image_size=16,
        image_size=64,
        # The stride is 1, or 2 from 64 pixels on, so that five convolutions and three pools have
        # something left to see.
        layers=AlexNetLayers(
            _pattern_of_2012(Convolution(48, 5, double_stride_from=64), 128, 192, 192, 128),
            hidden=(1024, 1024),
            towers=2,
        ),
    ),
    AlexNetRow(
        name="paper",
        parameters=60_965_224,
        macs=724_406_816,
        summary="two towers: Krizhevsky, Sutskever and Hinton, 2012",
        min_image_size=64,
        image_size=224,
        layers=AlexNetLayers(_CONVOLUTIONS_OF_2012, towers=2),
        fidelities=_FIDELITIES_OF_2012,
        imagenet_top1_error=0.407,  # its table 2, one network, mean of ten crops
        # bvlc_alexnet: the paper's order of layers with Caffe's constants.
        weights_layouts={"caffe": {"lrn_bias": 1.0, "lrn_alpha": 2e-5, "initialization": "caffe"}},
    ),
    AlexNetRow(
        name="caffenet",
        parameters=60_965_224,
        macs=724_406_816,
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
    AlexNetRow(
        name="owt",
        parameters=61_100_840,
        macs=714_188_480,
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
        # pytorch.org/vision, AlexNet_Weights.IMAGENET1K_V1.
        imagenet_top1_error=0.435,
        licence="BSD-3-Clause",
    ),
    AlexNetRow(
        name="ungrouped",
        parameters=62_378_344,
        macs=1_135_256_096,
        summary="2012 without towers, as in most blogs",
        min_image_size=64,
        image_size=224,
        layers=AlexNetLayers(_CONVOLUTIONS_OF_2012),
        fidelities=_FIDELITIES_OF_2012,
    ),
    AlexNetRow(
        name="single_tower",
        parameters=59_798_312,
        macs=391_514_384,
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
    AlexNetRow(
        name="cifar",
        parameters=1_104_328,
        macs=13_312_000,
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


def networks_with_weights(layout: str) -> tuple[str, ...]:
    """Return the names of the networks that take foreign weights of a layout such as `caffe`."""
    return tuple(row.name for row in ALEXNET_ROWS if layout in row.weights_layouts)


# -- which settings a network has ------------------------------------------------------------------


def require_alexnet_settings(row: AlexNetRow, model: ModelConfig) -> None:
    """Check that the network has the settings that were changed.

    Raises:
        ConfigError: a setting of the network would change nothing.
    """
    defaults = type(model)()
    fidelity = model.alexnet.fidelity
    if fidelity != defaults.alexnet.fidelity and fidelity not in row.fidelities:
        those = ", ".join(other.name for other in ALEXNET_ROWS if fidelity in other.fidelities)
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


def _settings_without_effect(row: AlexNetRow, model: ModelConfig) -> Iterator[tuple[str, str]]:
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
