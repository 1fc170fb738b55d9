"""Six small networks that have little in common, from pixels to the logits of two classes."""

from __future__ import annotations

import keras
import pytest
from keras.src.applications import convnext, densenet, efficientnet_v2, resnet

from pipeline.model.graph import inline_submodels
from pipeline.model.layers import PixelNormalization
from pipeline.model.networks import build_network
from tests.networks import model_config

SIDE = 32
CLASSES = 2


def build_unlike_network(name, size=SIDE, dropout=0.2, seed=0):
    """Return one of `UNLIKE_NETWORKS`, with fresh weights that follow from the seed."""
    keras.utils.set_random_seed(seed)
    if name == "alexnet":
        config = model_config(image_size=size, width_multiplier=0.1, dropout=dropout)
        colors = {"channel_mean": (125,) * 3, "channel_std": (50,) * 3}
        return build_network(config, num_classes=CLASSES, **colors)
    image = keras.Input((size, size, 3), dtype="uint8", name="image")
    pixels = PixelNormalization((125,) * 3, (50,) * 3, name="normalize")(image)
    features = keras.layers.GlobalAveragePooling2D(name="mean")(_BACKBONES[name](pixels))
    kept = keras.layers.Dropout(dropout, name="top_dropout")(features)
    logits = keras.layers.Dense(CLASSES, name="logits")(kept)
    return inline_submodels(keras.Model(image, logits, name=name))


_TOP = {"include_top": False, "weights": None, "pooling": None}


def _mobilenet(pixels):
    build = keras.applications.MobileNetV3Small
    return build(input_tensor=pixels, alpha=0.35, include_preprocessing=False, **_TOP).output


def _efficientnet(pixels):
    """Drop-connect: Dropout with `noise_shape`."""
    numbers = {"width_coefficient": 0.25, "depth_coefficient": 0.3, "default_size": SIDE}
    return efficientnet_v2.EfficientNetV2(
        **numbers,
        drop_connect_rate=0.5,
        blocks_args=efficientnet_v2.DEFAULT_BLOCKS_ARGS["efficientnetv2-b0"],
        input_tensor=pixels,
        include_preprocessing=False,
        **_TOP,
    ).output


def _resnet(pixels):
    """Normalization before the convolutions, which have biases."""

    def stack(x):
        x = resnet.stack_residual_blocks_v2(x, 8, 2, name="conv2")
        return resnet.stack_residual_blocks_v2(x, 16, 2, stride1=1, name="conv3")

    return resnet.ResNet(stack, preact=True, use_bias=True, input_tensor=pixels, **_TOP).output


def _densenet(pixels):
    return densenet.DenseNet([2, 2, 2, 2], input_tensor=pixels, **_TOP).output


def _convnext(pixels):
    """Layer normalization, LayerScale and stochastic depth."""
    return convnext.ConvNeXt(
        depths=(1, 2, 1, 1),
        projection_dims=(8, 16, 24, 32),
        drop_path_rate=0.5,
        include_preprocessing=False,
        input_tensor=pixels,
        **_TOP,
    ).output


def _handmade(pixels):
    """Everything random at once, depthwise convolutions and sums that are no layers."""
    layers = keras.layers
    x = layers.GaussianNoise(0.1, name="noise")(pixels)
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="stem")(x)
    x = layers.BatchNormalization(momentum=0.9, name="stem_norm")(x)
    x = layers.SpatialDropout2D(0.2, name="maps")(layers.Activation("relu", name="stem_act")(x))
    branch = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    branch = layers.BatchNormalization(momentum=0.9, name="branch_norm")(branch)
    branch = layers.SeparableConv2D(8, 3, padding="same", activation="selu", name="sep")(branch)
    branch = layers.AlphaDropout(0.1, name="alpha")(branch)
    branch = layers.Dropout(0.5, noise_shape=(None, 1, 1, 1), name="depth")(branch)
    x = x + branch
    x = layers.Conv2D(8, 1, activation="relu", name="last")(x)
    x = layers.GaussianDropout(0.1, name="gaussian")(0.5 * x)
    return layers.GroupNormalization(4, name="groups")(x)


_BACKBONES = {
    "mobilenet": _mobilenet,
    "efficientnet": _efficientnet,
    "resnet": _resnet,
    "densenet": _densenet,
    "convnext": _convnext,
    "handmade": _handmade,
}
UNLIKE_NETWORKS = ("alexnet", *_BACKBONES)
# Those with the most layers take seconds where a copy or many gradients are made.
QUICK_AND_SLOW_NETWORKS = tuple(
    pytest.param(name, marks=pytest.mark.slow) if name in ("mobilenet", "efficientnet") else name
    for name in UNLIKE_NETWORKS
)
