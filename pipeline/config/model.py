"""Settings of the `model` section: what every network has, and what only AlexNet has."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PlainSerializer, PlainValidator, field_validator

from pipeline.config.section import Section
from pipeline.image_size import ImageSize, read_image_size, sides_of, write_image_size

# Of a side, in pixels.
_MIN_SIDE, _MAX_SIDE = 16, 1024


class AlexNetConfig(Section):
    """Choices within AlexNet. docs/model.md says what each was in 2012 and where it comes from."""

    fidelity: Literal["code", "paper"] = Field(
        "code",
        description=(
            "For the networks of the 2012 paper: `code`, the program that made the published"
            " numbers, or the `paper`'s text. Decides lrn_alpha, lrn_across, layer_order,"
            " spatial_norm, initialization and train.color_mode where they are `auto`."
        ),
    )
    width_multiplier: float = Field(
        1.0,
        gt=0,
        le=4,
        description=(
            "Scales the width of every layer but the last, rounded to a multiple of 8; less is"
            " faster."
        ),
    )
    activation: Literal["relu", "tanh", "sigmoid", "leaky_relu", "elu", "gelu", "silu"] = Field(
        "relu",
        description=(
            "Activation of each layer but the last; the paper's figure 1 compares relu and tanh."
        ),
    )
    normalization: Literal["auto", "lrn", "batch", "none"] = Field(
        "auto",
        description=(
            "`lrn` after the first two convolutions, as in 2012; `batch`: after every convolution,"
            " over all replicas; `none`. `auto`: the network's own."
        ),
    )
    lrn_alpha: Literal["auto"] | float = Field(
        "auto",
        description=(
            "LRN's alpha in the paper's formula: 1e-4 in its text; 2e-5 in its code and in Caffe,"
            " which divide by 5 maps."
        ),
    )
    lrn_across: Literal["auto", "maps", "tower"] = Field(
        "auto",
        description=(
            "LRN sums over all neighboring `maps`, as the paper and Caffe, or over those of one"
            " `tower`, as the code of 2012."
        ),
    )
    layer_order: Literal["auto", "code", "paper", "caffe"] = Field(
        "auto",
        description=(
            "First layers: `code` conv, LRN, pool, ReLU; `paper` conv, ReLU, LRN, pool; `caffe`"
            " conv, ReLU, pool, LRN."
        ),
    )
    spatial_norm: Literal["auto"] | bool = Field(
        "auto",
        description=(
            "The unpublished normalization over 5 x 5 positions after the second LRN, which the"
            " code of 2012 has."
        ),
    )
    overlapping_pooling: bool = Field(
        True, description="Pools of 3 x 3, 2 apart, as in 2012; without, 2 x 2."
    )
    dropout_position: Literal["after", "before"] = Field(
        "after", description="`after` fc6 and fc7, as in 2012; `before` them, as in torchvision."
    )
    remove_layer: Literal["none", "conv2", "conv3", "conv4", "conv5"] = Field(
        "none", description="Leave out one convolution, as section 7 of the paper does."
    )
    sixth_layer: bool = Field(
        False,
        description=(
            "One more convolution, over the last pool, as in the pre-trained networks of the"
            " paper's table 2."
        ),
    )
    initialization: Literal["auto", "code", "paper", "caffe", "caffenet", "he", "glorot"] = Field(
        "auto",
        description=(
            "Fresh weights: Gaussians of the 2012 `code`, of the `paper`, of Caffe's AlexNet or"
            " CaffeNet; `he`; `glorot`, Keras's."
        ),
    )
    input_scale: Literal["auto", "levels", "unit", "fraction"] = Field(
        "auto",
        description=(
            "Pixels inside the network: `levels` 0-255 less the mean; `unit` also divided by the"
            " standard deviation; `fraction`: 0-1. A pair with initialization; `auto` is unit for"
            " he and glorot, else levels."
        ),
    )


def _read_allowed_size(value: object) -> ImageSize:
    """Return the size that a setting means; raise a ValueError where it is none or out of range."""
    size = read_image_size(value)
    if min(sides_of(size)) < _MIN_SIDE:
        raise ValueError(f"should be greater than or equal to {_MIN_SIDE}")
    if max(sides_of(size)) > _MAX_SIDE:
        raise ValueError(f"should be less than or equal to {_MAX_SIDE}")
    return size


class ModelConfig(Section):
    """Which network, and what every network has."""

    network: str = Field(
        "small",
        min_length=1,
        description=(
            "Which network: one of those that `alexnet networks` lists, a `.keras` file, or"
            " `package.module:function` of your own."
        ),
    )
    image_size: Annotated[
        ImageSize, PlainValidator(_read_allowed_size), PlainSerializer(write_image_size)
    ] = Field(
        32,
        description=(
            "Height and width of the network's input, in pixels: `224`, as in 2012, or `224x160`"
            " for images that are not square. From 16 to 1024."
        ),
    )
    classes: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Look at a network for so many classes, without a dataset; 0: the dataset's.",
    )
    dropout: float = Field(
        0.5,
        ge=0,
        lt=1,
        description=(
            "Fraction of units dropped while training, in [0, 1). Networks that are no AlexNet have"
            " 0.2 unless it is given."
        ),
    )
    weights: str = Field(
        "",
        description=(
            "`imagenet`: the network's own weights on ImageNet; `auto`: these where they are"
            " published, but for AlexNets; `none` or empty: fresh. Or a file to start from:"
            " `.keras`; torchvision's AlexNet, `.pth` or `.safetensors`; Caffe's, `.npy` or `.npz`."
        ),
    )
    classifier: Literal["auto", "keep", "fresh"] = Field(
        "auto",
        description=(
            "The last layer of `weights`: `auto` keeps the classes that a file of this project"
            " knows by name, and others start afresh; `keep` and `fresh`: all of it."
        ),
    )
    signal_check: Literal["stop", "warn", "off"] = Field(
        "stop",
        description=(
            "Action for a network whose signal vanishes or explodes, so that it would not learn:"
            " `stop`, `warn`, or `off` for no check."
        ),
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the initial weights.")
    alexnet: AlexNetConfig = AlexNetConfig()

    @field_validator("weights")
    @classmethod
    def _read_none(cls, weights: str) -> str:
        """Read `none` as no weights: fresh ones have one name."""
        return "" if weights == "none" else weights

    @field_validator("network")
    @classmethod
    def _remove_default_family(cls, network: str) -> str:
        """Read `alexnet/small` as `small`: one network has one name."""
        return network.removeprefix("alexnet/") or network
