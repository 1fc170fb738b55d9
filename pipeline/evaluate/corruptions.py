"""Corruptions: images with noise, blur and so on, to measure how robust a network is.

Pure NumPy, and Pillow for JPEG.

In the spirit of ImageNet-C (Hendrycks and Dietterich, Benchmarking Neural Network Robustness to
Common Corruptions and Perturbations, ICLR 2019), but neither its code nor its images: seven kinds
instead of fifteen, for images of any size. So errors on these are not to be compared with published
ones. Where a table below has numbers of that paper's authors, the comment names their set:
ImageNet-C has 224 pixels a side, Tiny-ImageNet-C 64, CIFAR-10-C 32.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipeline.arrays import Floats, Images, Integers

# The order numbers the kinds, and the numbers are drawn with: a new kind goes to the end.
CORRUPTIONS: tuple[str, ...] = (
    "noise",
    "blur",
    "brightness",
    "contrast",
    "jpeg",
    "pixelate",
    "occlusion",
)
SEVERITIES = (1, 3, 5)  # what evaluation uses: the two between would cost two thirds more time

# One number for each severity from 1 to 5. The first four are for images of 224 pixels a side and
# scaled for others, see `_scale_strength`.
_NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)  # standard deviation / 255: ImageNet-C's gaussian noise
_BLUR = (
    1.4,
    2.0,
    2.7,
    3.4,
    4.2,
)  # standard deviation in pixels: our choice, ImageNet-C's gaussian blur goes from 1 to 6
_JPEG = (25, 18, 15, 10, 7)  # libjpeg's quality: ImageNet-C
_PIXELATE = (
    3.6,
    4.5,
    5.6,
    7.0,
    9.0,
)  # side of a block in pixels: our choice, ImageNet-C's 4 at most are hardly seen once scaled to 28
_BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)  # added, as a fraction of 255: ImageNet-C
_CONTRAST = (
    0.75,
    0.5,
    0.4,
    0.3,
    0.15,
)  # the fraction that is left: CIFAR-10-C, since ImageNet-C's 0.05 leaves 13 levels of 256
_OCCLUSION = (
    0.03,
    0.06,
    0.1,
    0.16,
    0.25,
)  # hidden fraction of the area: our choice, ImageNet-C hides nothing

_OCCLUSION_GRAY = 128  # as far from black as from white
_VALUES_AT_ONCE = (
    2**18
)  # float32 copies of so many stay in a core's cache: one image of 224 pixels, a hundred of 28


@dataclass(frozen=True)
class MeanCorruptionError:
    """The mean error on corrupted images, in [0, 1], and its rise above that of clean ones."""

    error: float
    relative: float


def corrupt_images(
    pixels: Images, kind: str, severity: int, *, seed: int, positions: Integers
) -> Images:
    """Return the images corrupted, uint8 [batch, height, width, 3] in [0, 255].

    The images passed in are not changed.

    An image's result depends on the image, the kind, the severity, the seed and its position, not
    on the rest of the batch. It is the same to the byte with the same versions of NumPy and Pillow.

    Args:
        pixels: uint8 [batch, height, width, 3] in [0, 255].
        kind: one of `CORRUPTIONS`.
        severity: from 1, mild, to 5, hard.
        seed: at least 0.
        positions: int [batch] at least 0, each image's index in its split.

    Raises:
        ValueError: the kind or the severity is unknown.
    """
    if kind not in CORRUPTIONS:
        raise ValueError(
            f"Unknown corruption. Expected one of {', '.join(CORRUPTIONS)}. Received {kind!r}."
        )
    if severity not in range(1, 6):
        raise ValueError(
            f"Unknown severity of a corruption. Expected 1 to 5. Received {severity!r}."
        )
    number = CORRUPTIONS.index(kind)
    result = np.empty(pixels.shape, np.uint8)
    step = max(1, _VALUES_AT_ONCE // math.prod(pixels.shape[1:]))
    for start in range(0, len(pixels), step):
        some = slice(start, start + step)
        streams = (
            np.random.default_rng([seed, number, severity, position])
            for position in positions[some]
        )
        result[some] = _apply_corruption(pixels[some], kind, severity - 1, streams)
    return result


def compute_mean_corruption_error(
    clean_error: float, errors: Mapping[str, Mapping[int, float]]
) -> MeanCorruptionError:
    """Return the plain mean error over the kinds, each the mean over its severities.

    ImageNet-C divides each kind's error by AlexNet's before the mean, so that hard kinds do not
    outweigh easy ones. Other data lack such a reference: nothing is divided here, and the
    number compares networks on the same images only.

    Args:
        clean_error: fraction in [0, 1] of the same images uncorrupted.
        errors: fractions in [0, 1] by kind, then severity; at least one of each.
    """
    error = fmean(fmean(by_severity.values()) for by_severity in errors.values())
    return MeanCorruptionError(error, error - clean_error)


def _apply_corruption(
    pixels: Images, kind: str, level: int, streams: Iterable[np.random.Generator]
) -> Images:
    """Return images corrupted in one kind; `level` is the index in the tables.

    Kinds without chance leave the streams alone.
    """
    scale = _scale_strength(*pixels.shape[1:3])
    match kind:
        case "noise":
            result = _add_noise(pixels, 255 * _NOISE[level] * scale, streams)
        case "blur":
            result = _blur(pixels, _BLUR[level] * scale)
        case "brightness":
            result = _brighten(pixels, 255 * _BRIGHTNESS[level])
        case "contrast":
            result = _reduce_contrast(pixels, _CONTRAST[level])
        case "jpeg":
            result = _compress(pixels, _coarsen_quality(_JPEG[level], scale))
        case "pixelate":
            result = _pixelate(pixels, _PIXELATE[level] * scale)
        case _:
            result = _occlude(pixels, _OCCLUSION[level], streams)
    return result


def _scale_strength(height: int, width: int) -> float:
    """Return the factor of a strength for 224 pixels that suits images of another size.

    It is the root of the shorter side's ratio. The same blur in pixels would make 28 pixels
    hopeless, and the same fraction of the side would leave them as they are; of noise a small image
    has less to average over. The paper's authors did about the same by hand: mildest blur 1, 0.5
    and 0.4 pixels at 224, 64 and 32, strongest noise 0.38, 0.18 and 0.10. Sides below 28 count as
    28: blocks must exceed a pixel.
    """
    return math.sqrt(max(28, min(height, width)) / 224)


def _round_levels(values: Floats) -> Images:
    """Return values as uint8, rounded and clipped to [0, 255]; the argument is overwritten."""
    return np.clip(np.rint(values, out=values), 0, 255, out=values).astype(np.uint8)


def _add_noise(pixels: Images, std: float, streams: Iterable[np.random.Generator]) -> Images:
    """Add normal noise of a standard deviation in levels, independent in pixels and channels."""
    noise = np.stack([stream.standard_normal(pixels.shape[1:], np.float32) for stream in streams])
    noise *= np.float32(std)
    noise += pixels
    return _round_levels(noise)


def _blur(pixels: Images, std: float) -> Images:
    """Blur with a gaussian of a standard deviation in pixels, cut off at three of them.

    Borders are mirrored with the outermost pixel doubled, which keeps an image's mean. Shifted
    images are added, not multiplied with a matrix: that is quick enough, and the order in which a
    matrix product adds is the machine's choice.
    """
    radius = math.ceil(3 * std)
    weights = np.exp(-0.5 * (np.arange(radius + 1) / std) ** 2)
    weights = (weights / (2 * weights.sum() - weights[0])).astype(np.float32)
    return _round_levels(
        _smooth(_smooth(pixels.astype(np.float32), weights, axis=1), weights, axis=2)
    )


def _smooth(values: Floats, weights: Floats, *, axis: int) -> Floats:
    """Return float32 [batch, height, width, 3] smoothed along one axis.

    Weights are float32 [radius + 1], the middle one first.
    """
    radius, size = len(weights) - 1, values.shape[axis]
    border = [(radius, radius) if dimension == axis else (0, 0) for dimension in range(4)]
    padded = np.pad(values, border, mode="symmetric")

    def shift(by: int) -> Floats:
        return padded[(slice(None),) * axis + (slice(radius + by, radius + by + size),)]

    total = shift(0) * weights[0]
    pair = np.empty_like(total)
    for distance in range(1, radius + 1):
        np.add(shift(-distance), shift(distance), out=pair)
        pair *= weights[distance]
        total += pair
    return total


def _brighten(pixels: Images, levels: float) -> Images:
    """Add levels to each pixel's largest channel, up to 255, and scale the other two with it.

    Hue and saturation stay.

    As ImageNet-C only up. Black has no hue and becomes gray; a white image stays as it is.
    """
    value = pixels.max(axis=3, keepdims=True).astype(np.float32)
    target = np.minimum(value + np.float32(levels), np.float32(255))
    return _round_levels(np.where(value > 0, pixels * (target / np.maximum(value, 1)), target))


def _reduce_contrast(pixels: Images, fraction: float) -> Images:
    """Leave a fraction of each pixel's difference from its image's mean color."""
    # Sums of integers are exact: no order of adding can change a mean.
    mean = pixels.sum(axis=(1, 2), keepdims=True, dtype=np.int64) / math.prod(pixels.shape[1:3])
    return _round_levels(pixels * np.float32(fraction) + (mean * (1 - fraction)).astype(np.float32))


def _coarsen_quality(quality: int, factor: float) -> int:
    """Return the JPEG quality whose steps between levels are `factor` times as large.

    The quality passed in is at most 50.

    libjpeg multiplies its table of steps by 50 / quality up to 50, and by 2 - quality / 50 above.
    """
    steps = 50 / quality * factor
    return round(100 - 50 * steps) if steps < 1 else max(1, round(50 / steps))


def _compress(pixels: Images, quality: int) -> Images:
    """Return images read back from JPEG files, whose colors have half the resolution as usual."""
    from PIL import Image

    result = np.empty(pixels.shape, np.uint8)
    for source, target in zip(pixels, result, strict=True):
        file = io.BytesIO()
        Image.fromarray(source).save(file, "JPEG", quality=quality)
        with Image.open(file) as image:
            target[:] = image
    return result


def _pixelate(pixels: Images, side: float) -> Images:
    """Give blocks their mean color.

    Where `side` is not a whole number, some blocks are a pixel larger than others.
    """
    sums = pixels.astype(np.int32)
    starts = [np.arange(0, size, side).astype(np.int64) for size in pixels.shape[1:3]]
    for axis, edges in enumerate(starts, start=1):
        sums = np.add.reduceat(sums, edges, axis=axis)
    rows, columns = (
        np.diff(edges, append=size) for edges, size in zip(starts, pixels.shape[1:3], strict=True)
    )
    means = _round_levels(sums / np.outer(rows, columns)[..., np.newaxis])
    return means.repeat(rows, axis=1).repeat(columns, axis=2)


def _occlude(pixels: Images, fraction: float, streams: Iterable[np.random.Generator]) -> Images:
    """Lay a gray square of a fraction of the area on each image, wholly inside it."""
    height, width = pixels.shape[1:3]
    side = min(height, width, round(math.sqrt(fraction * height * width)))
    result = pixels.copy()
    for image, stream in zip(result, streams, strict=True):
        top, left = stream.integers(0, (height - side + 1, width - side + 1))
        image[top : top + side, left : left + side] = _OCCLUSION_GRAY
    return result
