"""Building EfficientNet-Lite 0 to 2: inverted residuals for integer inference, and their weights.

    pixels (x - 127) / 128
    stem       3 x 3, stride 2, 32 maps
    blocks     expand 1 x 1, depthwise k x k, project 1 x 1; the input is added where shapes agree
    head       1 x 1, 1280 maps
    avg_pool   mean over positions: the features
    drop, logits

Every convolution pads as TensorFlow's `same` does, has no bias and is followed by batch
normalization, and by ReLU6 unless it projects. Unlike EfficientNet it lacks squeeze-excitation,
ReLU6 stands for swish, and stem and head keep their width: made for 8-bit integers on phones (Liu,
"Higher accuracy on vision models with EfficientNet-Lite", 2020; tensorflow/tpu,
models/official/efficientnet/lite).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from pipeline.config.model import ModelConfig
from pipeline.image_size import sides_of
from pipeline.model.layers import PixelNormalization
from pipeline.model.network_row import NetworkRow
from pipeline.random_streams import derive_layer_seed

if TYPE_CHECKING:
    from pipeline.arrays import Array, Layer, Network, Tensor

# What the published weights were trained with, for each of red, green and blue
# (efficientnet_lite_builder.py: MEAN_RGB, STDDEV_RGB).
_PIXEL_MEAN, _PIXEL_STD = (127.0,) * 3, (128.0,) * 3
_STEM_MAPS, _HEAD_MAPS = 32, 1280
_NORM_EPSILON, _NORM_MOMENTUM = 1e-3, 0.99  # efficientnet_lite_builder.py


@dataclass(frozen=True)
class _Group:
    """Blocks of one shape: how many, before the depth multiplier, and what they do.

    Attributes:
        repeats: blocks.
        window: of the depthwise convolution, in positions.
        stride: of the first block; the others have 1.
        expansion: maps inside a block per map that enters it; 1: no expanding convolution.
        maps: that leave a block, before the width multiplier.
    """

    repeats: int
    window: int
    stride: int
    expansion: int
    maps: int


# efficientnet_lite_builder.py, _DEFAULT_BLOCKS_ARGS.
_GROUPS = (
    _Group(1, 3, 1, 1, 16),
    _Group(2, 3, 2, 6, 24),
    _Group(2, 5, 2, 6, 40),
    _Group(3, 3, 2, 6, 80),
    _Group(3, 5, 1, 6, 112),
    _Group(4, 5, 2, 6, 192),
    _Group(1, 3, 1, 6, 320),
)


@dataclass(frozen=True)
class _Block:
    """One block of a network, with its numbers decided; `name` is such as `block3b`."""

    name: str
    window: int
    stride: int
    expansion: int
    maps: int


@dataclass(frozen=True)
class _Scale:
    """Multipliers of a network: of the maps, and of the blocks of a group."""

    width: float
    depth: float


# efficientnet_lite_builder.py, efficientnet_lite_params.
_SCALES = {
    "efficientnet_lite0": _Scale(1.0, 1.0),
    "efficientnet_lite1": _Scale(1.0, 1.1),
    "efficientnet_lite2": _Scale(1.1, 1.2),
}


def build_family_network(
    row: NetworkRow,
    config: ModelConfig,
    *,
    num_classes: int,
    channel_mean: Sequence[float],  # noqa: ARG001 - the network has constants of its own
    channel_std: Sequence[float],  # noqa: ARG001
    weights_layout: str = "",  # noqa: ARG001
) -> Network:
    """Return an EfficientNet-Lite with fresh weights; arguments as of `build_network`."""
    return build_efficientnet_lite(
        row.name,
        sides_of(config.image_size),
        num_classes=num_classes,
        dropout=config.dropout,
        seed=config.seed,
    )


def build_efficientnet_lite(
    name: str, size: tuple[int, int], *, num_classes: int, dropout: float, seed: int
) -> Network:
    """Return an uncompiled network from uint8 [batch, height, width, 3] to float32 logits.

    Args:
        name: such as `efficientnet_lite0`.
        size: height and width of the image, in pixels; each at least 32, so that the last maps
            have a position.
        num_classes: number of logits.
        dropout: fraction of the features dropped in training, in [0, 1).
        seed: of the initial weights.
    """
    image = keras.Input((*size, 3), dtype="uint8", name="image")
    x = PixelNormalization(_PIXEL_MEAN, _PIXEL_STD, name="normalize")(image)
    x = _convolve(x, seed, "stem", _STEM_MAPS, window=3, stride=2)
    for block in _list_blocks(_SCALES[name]):
        x = _add_block(x, seed, block)
    x = _convolve(x, seed, "head", _HEAD_MAPS)
    x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
    x = keras.layers.Dropout(dropout, seed=0, name="drop")(x)
    # Small logits at the start, as torchvision's MobileNets have; a classifier of ImageNet's is
    # assigned.
    start = keras.initializers.RandomNormal(stddev=0.01, seed=derive_layer_seed(seed, "logits"))
    logits = keras.layers.Dense(num_classes, kernel_initializer=start, name="logits")(x)
    return keras.Model(image, logits, name=name)


def describe_family_start(
    row: NetworkRow,  # noqa: ARG001
    config: ModelConfig,  # noqa: ARG001
) -> dict[str, str]:
    """Return what decides whether a signal passes through fresh weights: nothing can be chosen."""
    return {}


def assign_weights(
    network: Network, tensors: Mapping[str, Array], *, with_classifier: bool
) -> None:
    """Set the weights of a network to those of a state dict of `efficientnet_lite_pytorch`.

    Args:
        network: as `build_family_network` makes it.
        tensors: by PyTorch's names, such as `_blocks.0._bn1.weight`: kernels [out, in, height,
            width].
        with_classifier: also those of the last layer; without, it stays as it is.

    Raises:
        ValueError: the tensors are another network's: one is missing, left over, or of another
            shape.
    """
    # PyTorch counts the batches of each normalization; nothing is computed from that.
    left = {name: value for name, value in tensors.items() if not name.endswith("_batches_tracked")}
    for ours, theirs in _pair_names(_SCALES[network.name]):
        layer = network.get_layer(ours)
        norm = isinstance(layer, keras.layers.BatchNormalization)
        parts = ("weight", "bias", "running_mean", "running_var") if norm else ("weight", "bias")
        arrays = [
            _reorder_axes(left.pop(f"{theirs}.{part}"), layer)
            for part in parts[: len(layer.weights)]
            if f"{theirs}.{part}" in left
        ]
        if layer is network.layers[-1] and not with_classifier:
            continue
        expected = [tuple(weight.shape) for weight in layer.weights]
        found = [array.shape for array in arrays]
        if found != expected:
            raise ValueError(f"layer {ours} expects arrays {expected}, {theirs} has {found}")
        layer.set_weights(arrays)
    if left:
        raise ValueError(f"{len(left)} tensors belong to no layer, such as {min(left)}")


def _pair_names(scale: _Scale) -> Iterator[tuple[str, str]]:
    """Yield the name of each layer that has weights, and that of the same in PyTorch's code."""
    yield from (("stem", "_conv_stem"), ("stem_norm", "_bn0"))
    for number, block in enumerate(_list_blocks(scale)):
        for index, part in enumerate(("expand", "depthwise", "project")):
            if part != "expand" or block.expansion != 1:
                yield f"{block.name}_{part}", f"_blocks.{number}._{part}_conv"
                yield f"{block.name}_{part}_norm", f"_blocks.{number}._bn{index}"
    yield from (("head", "_conv_head"), ("head_norm", "_bn1"), ("logits", "_fc"))


def _reorder_axes(tensor: Array, layer: Layer) -> Array:
    """Return PyTorch's tensor with the axes of Keras, float32."""
    tensor = np.asarray(tensor, np.float32)
    if tensor.ndim == 4:  # [out, in, height, width]; depthwise: [maps, 1, height, width]
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        return tensor.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
    return tensor.T  # [classes, features]


def _list_blocks(scale: _Scale) -> tuple[_Block, ...]:
    """Return the blocks in order, named by group and letter: `block1a`, `block2a`, `block2b`."""
    blocks: list[_Block] = []
    for number, group in enumerate(_GROUPS, start=1):
        # The first and the last group keep their number of blocks, as stem and head their maps.
        fixed = number in (1, len(_GROUPS))
        repeats = group.repeats if fixed else math.ceil(group.repeats * scale.depth)
        blocks += [
            _Block(
                name=f"block{number}{chr(ord('a') + index)}",
                window=group.window,
                stride=group.stride if index == 0 else 1,
                expansion=group.expansion,
                maps=_scale_maps(group.maps, scale.width),
            )
            for index in range(repeats)
        ]
    return tuple(blocks)


def _scale_maps(maps: int, width: float) -> int:
    """Return a scaled number of maps: the nearest multiple of 8 that is not below 0.9 of it."""
    scaled = maps * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def _add_block(x: Tensor, seed: int, block: _Block) -> Tensor:
    """Add an inverted residual: expand, filter each map by itself, project, and add the input."""
    entered, maps = x, x.shape[-1]
    if block.expansion != 1:
        x = _convolve(x, seed, f"{block.name}_expand", maps * block.expansion)
    name = f"{block.name}_depthwise"
    x = keras.layers.DepthwiseConv2D(
        block.window,
        strides=block.stride,
        padding="same",
        use_bias=False,
        depthwise_initializer=_kernel_start(seed, name),
        name=name,
    )(x)
    x = _normalize(x, name)
    x = _convolve(x, seed, f"{block.name}_project", block.maps, activated=False)
    if block.stride == 1 and maps == block.maps:
        x = keras.layers.Add(name=f"{block.name}_add")([entered, x])
    return x


def _convolve(
    x: Tensor,
    seed: int,
    name: str,
    maps: int,
    *,
    window: int = 1,
    stride: int = 1,
    activated: bool = True,
) -> Tensor:
    """Apply a convolution with its normalization and, where asked for, ReLU6."""
    x = keras.layers.Conv2D(
        maps,
        window,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer=_kernel_start(seed, name),
        name=name,
    )(x)
    return _normalize(x, name, activated=activated)


def _normalize(x: Tensor, name: str, *, activated: bool = True) -> Tensor:
    """Normalize what a convolution gives, over all replicas, and apply ReLU6 where asked for."""
    x = keras.layers.BatchNormalization(
        epsilon=_NORM_EPSILON, momentum=_NORM_MOMENTUM, synchronized=True, name=f"{name}_norm"
    )(x)
    return keras.layers.ReLU(max_value=6.0, name=f"{name}_relu")(x) if activated else x


def _kernel_start(seed: int, name: str) -> Any:
    """Return the initializer of a kernel: variance 2 / fan-out (efficientnet_model.py)."""
    return keras.initializers.VarianceScaling(
        2.0, "fan_out", "untruncated_normal", seed=derive_layer_seed(seed, name)
    )
