"""Settings of the `model` section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config.section import Section


class ModelConfig(Section):
    """Which network. docs/model.md says what each choice was in 2012 and where it comes from."""

    variant: Literal["small", "paper", "caffenet", "owt", "ungrouped", "single_tower", "cifar"] = (
        Field(
            "small",
            description=(
                "`small`: the 2012 pattern for 28-96 pixel images; `paper`: two towers, 2012;"
                " `caffenet`: Caffe's; `owt`: one tower, 2014, torchvision's; `ungrouped`: 2012"
                " without towers; `single_tower`: half of 2012, its one-GPU control; `cifar`: four"
                " layers."
            ),
        )
    )
    fidelity: Literal["code", "paper"] = Field(
        "code",
        description=(
            "For paper, ungrouped, single_tower: `code`, the program that made the published"
            " numbers, or the `paper`'s text. Decides lrn_alpha, lrn_across, layer_order,"
            " spatial_norm, initialization and train.color_mode where they are `auto`."
        ),
    )
    image_size: int = Field(
        32,
        ge=16,
        le=512,
        description="Height and width of the network's input, in pixels; 224 in 2012.",
    )
    classes: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Look at a network for so many classes, without a dataset; 0: the dataset's.",
    )
    width_multiplier: float = Field(
        1.0,
        gt=0,
        le=4,
        description=(
            "Scales every layer's width but the last; less is faster. Recipes fit it to the"
            " machine's time."
        ),
    )
    activation: Literal["relu", "tanh", "sigmoid", "leaky_relu", "elu", "gelu", "silu"] = Field(
        "relu",
        description=(
            "What follows each layer but the last; the paper's figure 1 compares relu and tanh."
        ),
    )
    normalization: Literal["auto", "lrn", "batch", "none"] = Field(
        "auto",
        description=(
            "`lrn` after the first two convolutions, as in 2012; `batch`: after every convolution,"
            " over all replicas; `none`. `auto`: none for owt and cifar, else lrn."
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
    dropout: float = Field(
        0.5, ge=0, lt=1, description="Share of units dropped while training, in [0, 1)."
    )
    dropout_place: Literal["after", "before"] = Field(
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
            " deviation; `fraction`: 0-1. A pair with initialization; `auto` is unit for he and"
            " glorot, else levels."
        ),
    )
    weights: str = Field(
        "",
        description=(
            "File to start from: `.keras`; torchvision's AlexNet, `.pth` or `.safetensors`;"
            " Caffe's, `.npy` or `.npz`."
        ),
    )
    classifier: Literal["auto", "keep", "fresh"] = Field(
        "auto",
        description=(
            "The last layer of `weights`: `auto` keeps it where the classes are the same, else it"
            " starts afresh."
        ),
    )
    signal_check: Literal["stop", "warn", "off"] = Field(
        "stop",
        description=(
            "What becomes of a network through which no signal passes, so that it would not learn."
        ),
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the initial weights.")
