"""AlexNet, and which one. Every network reads from the pixels to the logits in one function, after a plan that says what is in it.

| variant        | what it is                                                         | parameters,
1000 classes | MACs at 224 |
|----------------|--------------------------------------------------------------------|--------------------------|-------------|
| `paper`        | two towers: Krizhevsky, Sutskever and Hinton, 2012                 | 60,965,224
| 724.4 M     |
| `caffenet`     | the same in Caffe's CaffeNet: pool before normalization            | 60,965,224
| 724.4 M     |
| `ungrouped`    | the same without towers, as in most blogs                          | 62,378,344
| 1,135.3 M   |
| `single_tower` | half the filters on one GPU, the control of section 3.2            | 59,798,312
| 391.5 M     |
| `owt`          | "One weird trick", Krizhevsky, 2014, in torchvision's layout       | 61,100,840
| 714.2 M     |
| `small`        | the 2012 pattern with a smaller first layer, for 28-96 pixels      | depends on
the size      |             |
| `cifar`        | the four layers of figure 1, from cuda-convnet's CIFAR-10 files    | depends on
the size      |             |

Every network takes uint8 [batch, image_size, image_size, 3] RGB in [0, 255] and gives float32
logits [batch, classes]: the mean is subtracted inside, so whoever has the file needs no other
preparation than the cut.

The 2012 networks exist twice: as the paper describes them and as the published program computed
them (`fidelity`), which differ in more than the paper's readers were told; docs/model.md has the
list with its sources.

Initial weights and input scale are a pair, because a mismatch does not learn: Gaussians of fixed
deviation take mean-subtracted pixels on the 0-255 scale, He's initialization takes unit variance.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from pipeline.config.model import ModelConfig
from pipeline.model.layers import (
    LocalResponseNormalization,
    PixelNormalization,
    SpatialResponseNormalization,
    TwoTowerConv2D,
)

Triple = Sequence[float]
# conv2, conv4, conv5 and both hidden layers start with a bias "to provide the ReLUs with positive
# inputs" (paper, section 5).
_BIASED = frozenset({"conv2", "conv4", "conv5", "conv6", "fc6", "fc7"})


@dataclass(frozen=True)
class Plan:
    """What the variant, the fidelity and the settings add up to.

    `filters` are those of the convolutions, `units` of the two hidden layers, before the width
    multiplier. `stem` is the first layer: 11 x 11, 4 apart, with windows that fall off the edge
    (`2012`) or with a border of 2 (`2014`); or 5 x 5 (`small`).
    """

    filters: tuple[int, ...] = (96, 256, 384, 384, 256)
    units: int = 4096
    towers: int = 1
    stem: str = "2012"
    normalization: str = "lrn"
    lrn_bias: float = 2.0
    lrn_alpha: float = 1e-4
    lrn_across: str = "maps"
    layer_order: str = "paper"
    spatial_norm: bool = False
    initialization: str = "he"
    input_scale: str = "unit"
    pool_padding: str = "valid"


_VARIANTS = {
    "paper": Plan(towers=2),
    "ungrouped": Plan(),
    # Halves every convolution but the last: conv5 and the hidden layers keep the size that makes
    # both nets as large (paper, section 3.2).
    "single_tower": Plan(filters=(48, 128, 192, 192, 256)),
    # Caffe leaves out the paper's k = 2, so its k is 1, and divides alpha by the five maps of the
    # sum.
    "caffenet": Plan(
        towers=2, lrn_bias=1.0, lrn_alpha=2e-5, layer_order="caffe", initialization="caffenet"
    ),
    # With LRN it is cuda-convnet2's network; torchvision's has none.
    "owt": Plan(
        filters=(64, 192, 384, 256, 256),
        stem="2014",
        normalization="none",
        lrn_alpha=2e-5,
        layer_order="code",
    ),
    "small": Plan(filters=(48, 128, 192, 192, 128), units=1024, towers=2, stem="small"),
    # Its pools begin at the first position and may fall off the edge, as cuda-convnet's do: 32
    # positions become 16.
    "cifar": Plan(
        filters=(32, 32, 64), normalization="none", initialization="code", pool_padding="same"
    ),
}
_FIDELITIES: dict[str, dict[str, Any]] = {
    "code": {
        "lrn_alpha": 2e-5,
        "lrn_across": "tower",
        "layer_order": "code",
        "spatial_norm": True,
        "initialization": "code",
    },
    "paper": {"initialization": "paper"},
}
# bvlc_alexnet: the paper's order of layers with Caffe's constants.
_CAFFE_WEIGHTS: dict[str, Any] = {"lrn_bias": 1.0, "lrn_alpha": 2e-5, "initialization": "caffe"}
# What follows the first convolution, and what follows the second.
_ORDERS = {
    "code": (("norm", "pool", "act"), ("act", "norm", "spatial", "pool")),
    "paper": (("act", "norm", "pool"), ("act", "norm", "spatial", "pool")),
    "caffe": (("act", "pool", "norm"), ("act", "pool", "norm", "spatial")),
}


def plan_for(config: ModelConfig, *, caffe_weights: bool = False) -> Plan:
    """Return the network that the settings ask for, each `auto` decided.

    Args:
        config: the settings.
        caffe_weights: the weights are those of Caffe's AlexNet, which was the paper's with other
            constants.
    """
    plan = _VARIANTS[config.variant]
    if config.variant in ("paper", "ungrouped", "single_tower"):
        plan = dataclasses.replace(
            plan, **(_CAFFE_WEIGHTS if caffe_weights else _FIDELITIES[config.fidelity])
        )
    names = (
        "normalization",
        "lrn_alpha",
        "lrn_across",
        "layer_order",
        "spatial_norm",
        "initialization",
        "input_scale",
    )
    said = {name: value for name in names if (value := getattr(config, name)) != "auto"}
    plan = dataclasses.replace(plan, **said)
    changes: dict[str, Any] = {}
    if plan.normalization != "lrn":
        # Without normalization the orders are one network, as a pool of maxima commutes with rising
        # activations.
        changes |= {
            "spatial_norm": said.get("spatial_norm", False),
            "layer_order": said.get("layer_order", "paper"),
        }
    if config.input_scale == "auto":
        changes["input_scale"] = "unit" if plan.initialization in ("he", "glorot") else "levels"
    return dataclasses.replace(plan, **changes)


def build_network(
    config: ModelConfig,
    *,
    num_classes: int,
    channel_mean: Triple,
    channel_std: Triple,
    caffe_weights: bool = False,
) -> Any:
    """Return an uncompiled Keras model with fresh weights.

    Args:
        config: which variant, and every choice within it.
        num_classes: number of logits.
        channel_mean: RGB mean of the training pixels, 0-255.
        channel_std: RGB standard deviation of the training pixels, 0-255.
        caffe_weights: make the network that Caffe's weights were trained in.
    """
    plan = plan_for(config, caffe_weights=caffe_weights)
    means = {"levels": channel_mean, "unit": channel_mean, "fraction": (0.0, 0.0, 0.0)}
    spread = [max(value, 1.0) for value in channel_std]  # black images have none
    deviations = {"levels": (1.0, 1.0, 1.0), "unit": spread, "fraction": (255.0, 255.0, 255.0)}
    image = keras.Input((config.image_size, config.image_size, 3), dtype="uint8", name="image")
    normalize = PixelNormalization(
        means[plan.input_scale], deviations[plan.input_scale], name="normalize"
    )
    draft = _Draft(config, plan, _widths(config.width_multiplier), _starts(config, plan))
    network = _cifar if config.variant == "cifar" else _alexnet
    return keras.Model(
        image, network(normalize(image), draft, num_classes), name=f"alexnet_{config.variant}"
    )


@dataclass(frozen=True)
class _Draft:
    """What the functions below share while a network is drawn."""

    config: ModelConfig
    plan: Plan
    width: Callable[[int], int]
    starts: Iterator[dict[str, Any]]  # the initial weights of one layer after another


def _alexnet(x: Any, draft: _Draft, num_classes: int) -> Any:
    """Five convolutions, two hidden layers, the logits (paper, section 3.5).

    Sizes are those of `paper` at 224 pixels.
    """
    config, plan, towers = draft.config, draft.plan, draft.plan.towers
    first, second, other = _orders(plan)
    conv1, conv2, conv3, conv4, conv5 = plan.filters
    if plan.stem == "small":
        # The stride is 1, or 2 from 64 pixels on, so that five convolutions and three pools have
        # something left to see.
        x = _block(x, draft, 1, conv1, 5, first, stride=1 if config.image_size < 64 else 2)
    else:
        # 224 pixels give 55 positions in the 2012 code because windows may fall off the right and
        # bottom edge, there by 3; at 227 none do.
        over = (11 - config.image_size) % 4
        x = keras.layers.ZeroPadding2D(
            2 if plan.stem == "2014" else ((0, over), (0, over)), name="edge"
        )(x)  # 227 x 227 x 3
        x = _block(
            x, draft, 1, conv1, 11, first, stride=4, padding="valid"
        )  # 55 x 55 x 96, pooled to 27 x 27
    x = _block(x, draft, 2, conv2, 5, second, towers=towers)  # 27 x 27 x 256, pooled to 13 x 13
    x = _block(x, draft, 3, conv3, 3, other)  # 13 x 13 x 384, the only one that sees both towers
    x = _block(x, draft, 4, conv4, 3, other, towers=towers)  # 13 x 13 x 384
    x = _block(
        x, draft, 5, conv5, 3, (*other, "pool"), towers=towers
    )  # 13 x 13 x 256, pooled to 6 x 6
    if config.sixth_layer:
        x = _block(x, draft, 6, conv5, 3, other)  # 6 x 6 x 256, which sees both towers
    x = keras.layers.Flatten(name="flatten")(x)  # 9216
    for seed, name in enumerate(("fc6", "fc7")):
        drop = keras.layers.Dropout(config.dropout, seed=seed, name=f"drop{name[-1]}")
        x = drop(x) if config.dropout_place == "before" else x
        x = keras.layers.Dense(
            draft.width(plan.units), activation=config.activation, name=name, **next(draft.starts)
        )(x)  # 4096
        x = drop(x) if config.dropout_place == "after" else x
    return keras.layers.Dense(num_classes, name="fc8", **next(draft.starts))(x)


def _cifar(x: Any, draft: _Draft, num_classes: int) -> Any:
    """Three convolutions with pools, and the logits.

    `layers-18pct` of cuda-convnet's CIFAR-10 files. Sizes are for 32 pixels.

    The second and third pool take means. There is no hidden layer, so nothing to drop.
    """
    norm = ("norm",) if draft.plan.normalization == "lrn" else ()
    orders: tuple[tuple[str, ...], ...] = (
        ("pool", "act", *norm),
        ("act", "mean", *norm),
        ("act", "mean"),
    )
    if draft.plan.normalization == "batch":
        orders = (("norm", "act", "pool"), ("norm", "act", "mean"), ("norm", "act", "mean"))
    for number, (filters, order) in enumerate(
        zip(draft.plan.filters, orders, strict=True), start=1
    ):
        x = _block(
            x, draft, number, filters, 5, order
        )  # 32 x 32 x 32, 16 x 16 x 32, 8 x 8 x 64, each pooled to half
    return keras.layers.Dense(num_classes, name="fc4", **next(draft.starts))(
        keras.layers.Flatten(name="flatten")(x)
    )


def _orders(plan: Plan) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return what follows the first convolution, the second, and the others."""
    if plan.normalization == "batch":
        return ("norm", "act", "pool"), ("norm", "act", "pool"), ("norm", "act")
    return (*_ORDERS[plan.layer_order], ("act",))


def _block(
    x: Any,
    draft: _Draft,
    number: int,
    filters: int,
    window: int,
    order: Sequence[str],
    *,
    stride: int = 1,
    towers: int = 1,
    padding: str = "same",
) -> Any:
    """A convolution, in one tower or in two, and what follows it in that order.

    One that is left out leaves its pool.
    """
    config, plan, name = draft.config, draft.plan, f"conv{number}"
    if config.remove_layer == name:
        order = [step for step in order if step in ("pool", "mean")]
    else:
        fused = order[0] == "act"
        words = {
            "activation": config.activation if fused else None,
            "name": name,
            **next(draft.starts),
        }
        width = draft.width(filters)
        layer = TwoTowerConv2D(width, window, **words) if towers == 2 else None
        x = (layer or keras.layers.Conv2D(width, window, strides=stride, padding=padding, **words))(
            x
        )
        order = order[1:] if fused else order
    for step in order:
        if step == "act":
            x = keras.layers.Activation(config.activation, name=f"{config.activation}{number}")(x)
        elif step in ("pool", "mean"):
            pool = keras.layers.MaxPooling2D if step == "pool" else keras.layers.AveragePooling2D
            x = pool(
                3 if config.overlapping_pooling else 2,
                2,
                padding=plan.pool_padding,
                name=f"pool{number}",
            )(x)
        elif step == "spatial" and plan.spatial_norm:
            x = SpatialResponseNormalization(name=f"spatial{number}")(x)
        elif step == "norm" and plan.normalization == "batch":
            # Over all replicas: otherwise each keeps statistics of its own, and those of the first
            # are saved.
            x = keras.layers.BatchNormalization(synchronized=True, name=f"norm{number}")(x)
        elif step == "norm" and plan.normalization == "lrn":
            across = plan.towers if plan.lrn_across == "tower" else 1
            x = LocalResponseNormalization(
                bias=plan.lrn_bias, alpha=plan.lrn_alpha, towers=across, name=f"norm{number}"
            )(x)
    return x


def _widths(multiplier: float) -> Any:
    """Return a function that scales a layer's width, to a multiple of 8 so that two towers can share it."""
    return lambda width: max(8, round(width * multiplier / 8) * 8)


def _starts(config: ModelConfig, plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield, layer by layer, the initial weights and biases.

    Each layer has a seed of its own, or the numbers would repeat.
    """
    cifar = config.variant == "cifar"
    sixth = " conv6" if config.sixth_layer else ""
    names = (
        "conv1 conv2 conv3 fc4" if cifar else f"conv1 conv2 conv3 conv4 conv5{sixth} fc6 fc7 fc8"
    )
    for index, name in enumerate(name for name in names.split() if name != config.remove_layer):
        seed = config.seed * 64 + index
        if plan.initialization in ("he", "glorot"):
            make = (
                keras.initializers.HeNormal
                if plan.initialization == "he"
                else keras.initializers.GlorotUniform
            )
            yield {"kernel_initializer": make(seed=seed)}
            continue
        deviation, bias = (
            _cifar_start(name) if cifar else _gaussian_start(name, plan.initialization)
        )
        yield {
            "kernel_initializer": keras.initializers.RandomNormal(stddev=deviation, seed=seed),
            "bias_initializer": keras.initializers.Constant(bias),
        }


def _gaussian_start(name: str, initialization: str) -> tuple[float, float]:
    """Return the standard deviation of a layer's weights and its biases."""
    biases = {
        "code": 1.0,
        "paper": 1.0,
        "caffe": 0.1,
        "caffenet": 1.0,
    }  # Caffe's AlexNet: with 1 "gave flat loss"
    deviation = 0.01
    if initialization == "code" and name in ("conv3", "conv4", "conv5", "conv6"):
        deviation = 0.03
    if initialization in ("caffe", "caffenet") and name in ("fc6", "fc7"):
        deviation = 0.005
    return deviation, biases[initialization] if name in _BIASED else 0.0


def _cifar_start(name: str) -> tuple[float, float]:
    """Return the same for the CIFAR-10 network, whose files say nothing of biases."""
    return (1e-4 if name == "conv1" else 0.01), 0.0


def layer_table(network: Any) -> list[dict[str, Any]]:
    """Return one row a layer, in order.

    `layer` and `kind` name it, `output` is its shape without the batch, `parameters` are trainable;
    `macs`, multiplications with a weight, and `bytes`, which its output takes in float32, are those
    of one image.
    """
    rows = []
    for layer in network.layers:
        output = list(layer.output.shape[1:])
        kernel = getattr(layer, "kernel", None)
        positions = output[0] * output[1] if len(output) == 3 else 1
        rows.append(
            {
                "layer": layer.name,
                "kind": _kind(layer),
                "output": output,
                "parameters": sum(
                    math.prod(variable.shape) for variable in layer.trainable_variables
                ),
                "macs": 0 if kernel is None else positions * math.prod(kernel.shape),
                "bytes": math.prod(output) * (1 if layer.output.dtype == "uint8" else 4),
            }
        )
    return rows


def _kind(layer: Any) -> str:
    """Say what a layer is, with its window and stride."""
    name = type(layer).__name__
    if name == "TwoTowerConv2D":
        return f"convolution {layer.kernel_size} x {layer.kernel_size}, two towers"
    if name == "Conv2D":
        stride = f" / {layer.strides[0]}" if layer.strides[0] > 1 else ""
        return f"convolution {layer.kernel_size[0]} x {layer.kernel_size[1]}{stride}"
    if name.endswith("Pooling2D"):
        return (
            f"{name[:3].lower()} pool {layer.pool_size[0]} x {layer.pool_size[1]} /"
            f" {layer.strides[0]}"
        )
    details = {
        "InputLayer": "uint8 pixels",
        "PixelNormalization": "mean and scale",
        "ZeroPadding2D": "border",
        "LocalResponseNormalization": (
            "LRN" + (", each tower" if getattr(layer, "towers", 1) > 1 else "")
        ),
        "SpatialResponseNormalization": "LRN over 5 x 5 positions",
        "BatchNormalization": "batch normalization",
        "Dense": "fully connected",
        "Dropout": f"dropout {getattr(layer, 'rate', 0):g}",
        "Activation": getattr(getattr(layer, "activation", None), "__name__", ""),
    }
    return details.get(name, name.lower())
