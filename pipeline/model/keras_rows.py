"""The rows of `keras.applications`, as Keras 3.15 has them; a test compares them with it.

Sizes, and what the published weights need of pixels, are those of Keras's code
(`keras/src/applications/*.py`: `default_size`, `min_size`, `preprocess_input`, and the layers that
`include_preprocessing` adds). Top-1 errors are those of https://keras.io/api/applications, for
ImageNet's validation images; of MobileNetV3, which that page leaves out, of its docstring in Keras.

Licences are those under which the weights were published: Google's models (Apache-2.0), ResNet
(MIT, KaimingHe/deep-residual-networks), ResNetV2 (BSD, facebook/fb.resnet.torch), VGG (CC BY,
Oxford), DenseNet (BSD, liuzhuang13/DenseNet), ConvNeXt (MIT, facebookresearch/ConvNeXt), Xception
(MIT, Keras's author).
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.model.network_row import NetworkRow, Triple


@dataclass(frozen=True)
class _Pixels:
    """What published weights were trained on: (pixel - mean) / std of levels 0-255."""

    mean: Triple
    std: Triple
    bgr: bool = False


# `imagenet_utils.preprocess_input`: mode="tf", mode="torch" and mode="caffe", which takes blue
# first; the means here are red first.
_PLUS_MINUS_ONE = _Pixels((127.5,) * 3, (127.5,) * 3)
_TORCH = _Pixels((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_CAFFE = _Pixels((123.68, 116.779, 103.939), (1.0,) * 3, bgr=True)
# efficientnet_v2.py, of S, M and L: Rescaling(1 / 128, offset=-1).
_PER_128 = _Pixels((128.0,) * 3, (128.0,) * 3)


# Trainable parameters and MACs with 1,000 classes at the natural size, which
# tests/model/test_keras_networks.py measures again.
_SIZES = {
    "ConvNeXtBase": (88_591_464, 15_354_729_472),
    "ConvNeXtLarge": (197_767_336, 34_361_433_600),
    "ConvNeXtSmall": (50_223_688, 8_683_712_256),
    "ConvNeXtTiny": (28_589_128, 4_455_531_264),
    "ConvNeXtXLarge": (350_196_968, 60_921_030_656),
    "DenseNet121": (7_978_856, 2_834_161_664),
    "DenseNet169": (14_149_480, 3_359_843_328),
    "DenseNet201": (20_013_928, 4_291_365_888),
    "EfficientNetB0": (5_288_548, 385_814_752),
    "EfficientNetB1": (7_794_184, 686_802_832),
    "EfficientNetB2": (9_109_994, 993_561_872),
    "EfficientNetB3": (12_233_232, 1_827_141_392),
    "EfficientNetB4": (19_341_616, 4_393_771_024),
    "EfficientNetB5": (30_389_784, 10_266_384_752),
    "EfficientNetB6": (43_040_704, 19_067_593_536),
    "EfficientNetB7": (66_347_960, 37_745_884_192),
    "EfficientNetV2B0": (7_139_704, 718_086_176),
    "EfficientNetV2B1": (8_141_052, 1_196_819_360),
    "EfficientNetV2B2": (10_096_086, 1_697_542_832),
    "EfficientNetV2B3": (14_358_406, 3_011_458_816),
    "EfficientNetV2L": (118_515_272, 56_079_699_008),
    "EfficientNetV2M": (54_139_356, 24_582_460_384),
    "EfficientNetV2S": (21_458_488, 8_365_617_152),
    "InceptionResNetV2": (55_813_192, 13_155_794_016),
    "InceptionV3": (23_817_352, 5_713_216_096),
    "MobileNet": (4_231_976, 568_740_352),
    "MobileNetV2": (3_504_872, 300_774_272),
    "MobileNetV3Large": (3_932_952, 215_040_960),
    "MobileNetV3Small": (1_504_008, 55_472_576),
    "NASNetLarge": (88_753_150, 23_783_414_658),
    "NASNetMobile": (5_289_978, 563_638_816),
    "ResNet101": (44_601_832, 7_570_194_432),
    "ResNet101V2": (44_577_896, 7_194_476_544),
    "ResNet152": (60_268_520, 11_282_415_616),
    "ResNet152V2": (60_236_904, 10_906_697_728),
    "ResNet50": (25_583_592, 3_857_973_248),
    "ResNet50V2": (25_568_360, 3_482_255_360),
    "VGG16": (15_227_688, 15_347_142_656),
    "VGG19": (20_537_384, 19_508_940_800),
    "Xception": (22_855_952, 8_357_403_496),
}


def _row(
    name: str,
    summary: str,
    image_size: int,
    pixels: _Pixels,
    error: float,
    licence: str,
    min_image_size: int = 32,
) -> NetworkRow:
    """Return the row of one network; `error` is its top-1 error in percent."""
    parameters, macs = _SIZES.get(name, (None, None))
    return NetworkRow(
        name=f"keras/{name}",
        summary=summary,
        family="keras",
        min_image_size=min_image_size,
        image_size=image_size,
        pixel_mean=pixels.mean,
        pixel_std=pixels.std,
        bgr=pixels.bgr,
        licence=licence,
        imagenet_top1_error=round(error / 100, 4),
        parameters=parameters,
        macs=macs,
    )


_APACHE = "Apache-2.0"  # Google's, released with its models
_MIT, _BSD, _CC = "MIT", "BSD-3-Clause", "CC-BY-4.0"
_EFFICIENT = "EfficientNet: depthwise, with gates; Tan, Le, 2019"
_EFFICIENT_2 = "EfficientNetV2: fused first blocks; Tan, Le, 2021"
_CONVNEXT = "ConvNeXt: a ResNet drawn after transformers; Liu et al., 2022"
_DENSE = "DenseNet: each layer reads all before; Huang et al., 2016"
_RESIDUAL = "ResNet: sums over every three layers; He et al., 2015"
_RESIDUAL_2 = "ResNet with activations first; He et al., 2016"
_INCEPTION = "Inception: windows side by side; Szegedy et al., 2015"

KERAS_ROWS = (
    _row("ConvNeXtBase", _CONVNEXT, 224, _TORCH, 14.7, _MIT),
    _row("ConvNeXtLarge", _CONVNEXT, 224, _TORCH, 13.7, _MIT),
    _row("ConvNeXtSmall", _CONVNEXT, 224, _TORCH, 17.7, _MIT),
    _row("ConvNeXtTiny", _CONVNEXT, 224, _TORCH, 18.7, _MIT),
    _row("ConvNeXtXLarge", _CONVNEXT, 224, _TORCH, 13.3, _MIT),
    _row("DenseNet121", _DENSE, 224, _TORCH, 25.0, _BSD),
    _row("DenseNet169", _DENSE, 224, _TORCH, 23.8, _BSD),
    _row("DenseNet201", _DENSE, 224, _TORCH, 22.7, _BSD),
    _row("EfficientNetB0", _EFFICIENT, 224, _TORCH, 22.9, _APACHE),
    _row("EfficientNetB1", _EFFICIENT, 240, _TORCH, 20.9, _APACHE),
    _row("EfficientNetB2", _EFFICIENT, 260, _TORCH, 19.9, _APACHE),
    _row("EfficientNetB3", _EFFICIENT, 300, _TORCH, 18.4, _APACHE),
    _row("EfficientNetB4", _EFFICIENT, 380, _TORCH, 17.1, _APACHE),
    _row("EfficientNetB5", _EFFICIENT, 456, _TORCH, 16.4, _APACHE),
    _row("EfficientNetB6", _EFFICIENT, 528, _TORCH, 16.0, _APACHE),
    _row("EfficientNetB7", _EFFICIENT, 600, _TORCH, 15.7, _APACHE),
    _row("EfficientNetV2B0", _EFFICIENT_2, 224, _TORCH, 21.3, _APACHE),
    _row("EfficientNetV2B1", _EFFICIENT_2, 240, _TORCH, 20.2, _APACHE),
    _row("EfficientNetV2B2", _EFFICIENT_2, 260, _TORCH, 19.5, _APACHE),
    _row("EfficientNetV2B3", _EFFICIENT_2, 300, _TORCH, 18.0, _APACHE),
    _row("EfficientNetV2L", _EFFICIENT_2, 480, _PER_128, 14.3, _APACHE),
    _row("EfficientNetV2M", _EFFICIENT_2, 480, _PER_128, 14.7, _APACHE),
    _row("EfficientNetV2S", _EFFICIENT_2, 384, _PER_128, 16.1, _APACHE),
    _row(
        "InceptionResNetV2",
        "Inception with sums; Szegedy et al., 2016",
        299,
        _PLUS_MINUS_ONE,
        19.7,
        _APACHE,
        min_image_size=75,
    ),
    _row("InceptionV3", _INCEPTION, 299, _PLUS_MINUS_ONE, 22.1, _APACHE, min_image_size=75),
    _row(
        "MobileNet",
        "depthwise convolutions for phones; Howard et al., 2017",
        224,
        _PLUS_MINUS_ONE,
        29.6,
        _APACHE,
    ),
    _row(
        "MobileNetV2",
        "inverted residuals; Sandler et al., 2018",
        224,
        _PLUS_MINUS_ONE,
        28.7,
        _APACHE,
    ),
    _row(
        "MobileNetV3Large",
        "searched for phones, with gates; Howard et al., 2019",
        224,
        _PLUS_MINUS_ONE,
        24.4,
        _APACHE,
    ),
    _row(
        "MobileNetV3Small",
        "the smallest here; Howard et al., 2019",
        224,
        _PLUS_MINUS_ONE,
        31.9,
        _APACHE,
    ),
    _row(
        "NASNetLarge",
        "cells that were searched for; Zoph et al., 2017",
        331,
        _PLUS_MINUS_ONE,
        17.5,
        _APACHE,
    ),
    _row(
        "NASNetMobile",
        "cells that were searched for; Zoph et al., 2017",
        224,
        _PLUS_MINUS_ONE,
        25.6,
        _APACHE,
    ),
    _row("ResNet101", _RESIDUAL, 224, _CAFFE, 23.6, _MIT),
    _row("ResNet101V2", _RESIDUAL_2, 224, _PLUS_MINUS_ONE, 22.8, _BSD),
    _row("ResNet152", _RESIDUAL, 224, _CAFFE, 23.4, _MIT),
    _row("ResNet152V2", _RESIDUAL_2, 224, _PLUS_MINUS_ONE, 22.0, _BSD),
    _row("ResNet50", _RESIDUAL, 224, _CAFFE, 25.1, _MIT),
    _row("ResNet50V2", _RESIDUAL_2, 224, _PLUS_MINUS_ONE, 24.0, _BSD),
    _row("VGG16", "3 x 3 windows alone; Simonyan, Zisserman, 2014", 224, _CAFFE, 28.7, _CC),
    _row("VGG19", "3 x 3 windows alone; Simonyan, Zisserman, 2014", 224, _CAFFE, 28.7, _CC),
    _row(
        "Xception",
        "depthwise convolutions with sums; Chollet, 2016",
        299,
        _PLUS_MINUS_ONE,
        21.0,
        _MIT,
        min_image_size=71,
    ),
)
