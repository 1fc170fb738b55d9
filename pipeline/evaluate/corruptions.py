"""Images made worse on purpose, to see whether a network's answers survive it.

Pure NumPy, and Pillow for JPEG.

In the spirit of ImageNet-C (Hendrycks and Dietterich, Benchmarking Neural Network Robustness to
Common Corruptions and Perturbations, ICLR 2019), but neither its code nor its images: seven kinds
instead of fifteen, for images of any size. So errors on these are not to be compared with published
ones. Where a table below has numbers of that paper's authors, it says of which of their sets:
ImageNet-C has 224 pixels a side, Tiny-ImageNet-C 64, CIFAR-10-C 32.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.metrics import Floats, Integers

Pixels = NDArray[np.uint8]

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
# scaled for others, see `_scale`.
_NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)  # deviation as a share of 255: ImageNet-C's gaussian noise
_BLUR = (
    1.4,
    2.0,
    2.7,
    3.4,
    4.2,
)  # deviation in pixels: our choice, ImageNet-C's gaussian blur goes from 1 to 6
_JPEG = (25, 18, 15, 10, 7)  # libjpeg's quality: ImageNet-C
_PIXELATE = (
    3.6,
    4.5,
    5.6,
    7.0,
    9.0,
)  # side of a block in pixels: our choice, ImageNet-C's 4 at most are hardly seen once scaled to 28
_BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)  # added, as a share of 255: ImageNet-C
_CONTRAST = (
    0.75,
    0.5,
    0.4,
    0.3,
    0.15,
)  # the share that is left: CIFAR-10-C, since ImageNet-C's 0.05 leaves 13 levels of 256
_OCCLUSION = (
    0.03,
    0.06,
    0.1,
    0.16,
    0.25,
)  # hidden share of the area: our choice, ImageNet-C hides nothing

_GRAY = 128  # as far from black as from white
_VALUES_AT_ONCE = (
    2**18
)  # float32 copies of so many stay in a core's cache: one image of 224 pixels, a hundred of 28


@dataclass(frozen=True)
class Robustness:
    """How often answers are wrong on corrupted images.

    The share in [0, 1], and how much that is above the clean images' error.
    """

    error: float
    relative: float


def corrupted(
    pixels: Pixels, kind: str, severity: int, *, seed: int, positions: Integers
) -> Pixels:
    """Return the images corrupted, uint8 [batch, height, width, 3] in [0, 255].

    The given ones are not changed.

    An image's result depends on the image, the kind, the severity, the seed and its position, not
    on the rest of the batch. It is the same to the byte with the same versions of NumPy and Pillow.

    Args:
        pixels: uint8 [batch, height, width, 3] in [0, 255].
        kind: one of `CORRUPTIONS`.
        severity: from 1, mild, to 5, hard.
        seed: at least 0.
        positions: int [batch] at least 0, each image's place in its split.

    Raises:
        ValueError: there is no such kind or severity.
    """
    if kind not in CORRUPTIONS:
        raise ValueError(
            f"There is no such corruption. Expected one of {', '.join(CORRUPTIONS)}. Received"
            f" {kind!r}."
        )
    if severity not in range(1, 6):
        raise ValueError(
            f"There is no such severity of a corruption. Expected 1 to 5. Received {severity!r}."
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
        result[some] = _changed(pixels[some], kind, severity - 1, streams)
    return result


def mean_corruption_error(
    clean_error: float, errors: Mapping[str, Mapping[int, float]]
) -> Robustness:
    """Return the plain mean error over the kinds, each the mean over its severities, and its rise over the clean error.

    ImageNet-C divides each kind's error by AlexNet's before the mean, so that hard kinds do not
    outweigh easy ones. For other data there is no such reference: nothing is divided here, and the
    number compares networks on the same images only.

    Args:
        clean_error: share in [0, 1] of the same images uncorrupted.
        errors: shares in [0, 1] by kind, then severity; at least one of each.
    """
    error = fmean(fmean(by_severity.values()) for by_severity in errors.values())
    return Robustness(error, error - clean_error)


def _changed(
    pixels: Pixels, kind: str, level: int, streams: Iterable[np.random.Generator]
) -> Pixels:
    """Return images of one kind; `level` is the place in the tables.

    Kinds without chance leave the streams alone.
    """
    scale = _scale(*pixels.shape[1:3])
    match kind:
        case "noise":
            result = _noisy(pixels, 255 * _NOISE[level] * scale, streams)
        case "blur":
            result = _blurred(pixels, _BLUR[level] * scale)
        case "brightness":
            result = _brightened(pixels, 255 * _BRIGHTNESS[level])
        case "contrast":
            result = _flattened(pixels, _CONTRAST[level])
        case "jpeg":
            result = _compressed(pixels, _coarser(_JPEG[level], scale))
        case "pixelate":
            result = _pixelated(pixels, _PIXELATE[level] * scale)
        case _:
            result = _occluded(pixels, _OCCLUSION[level], streams)
    return result


def _scale(height: int, width: int) -> float:
    """Return what to multiply a strength for 224 pixels with, so that images of another size suffer about as much.

    It is the root of the shorter side's ratio. The same blur in pixels would make 28 pixels
    hopeless, and the same share of the side would leave them as they are; of noise a small image
    has less to average over. The paper's authors did about the same by hand: mildest blur 1, 0.5
    and 0.4 pixels at 224, 64 and 32, strongest noise 0.38, 0.18 and 0.10. Sides below 28 count as
    28: blocks must exceed a pixel.
    """
    return math.sqrt(max(28, min(height, width)) / 224)


def _rounded(values: Floats) -> Pixels:
    """Return values as uint8, rounded and cut to [0, 255]; the argument is overwritten."""
    return np.clip(np.rint(values, out=values), 0, 255, out=values).astype(np.uint8)


def _noisy(pixels: Pixels, deviation: float, streams: Iterable[np.random.Generator]) -> Pixels:
    """Add normal noise of a deviation in levels, independent for each pixel and channel."""
    noise = np.stack([stream.standard_normal(pixels.shape[1:], np.float32) for stream in streams])
    noise *= np.float32(deviation)
    noise += pixels
    return _rounded(noise)


def _blurred(pixels: Pixels, deviation: float) -> Pixels:
    """Blur with a gaussian of a deviation in pixels, cut off at three.

    Borders are mirrored with the outermost pixel doubled, which keeps an image's mean. Shifted
    images are added, not multiplied with a matrix: that is quick enough, and the order in which a
    matrix product adds is the machine's choice.
    """
    radius = math.ceil(3 * deviation)
    weights = np.exp(-0.5 * (np.arange(radius + 1) / deviation) ** 2)
    weights = (weights / (2 * weights.sum() - weights[0])).astype(np.float32)
    return _rounded(
        _smoothed(_smoothed(pixels.astype(np.float32), weights, axis=1), weights, axis=2)
    )


def _smoothed(values: Floats, weights: Floats, *, axis: int) -> Floats:
    """Return float32 [batch, height, width, 3] smoothed along one axis.

    Weights are float32 [radius + 1], the middle one first.
    """
    radius, size = len(weights) - 1, values.shape[axis]
    border = [(radius, radius) if place == axis else (0, 0) for place in range(4)]
    padded = np.pad(values, border, mode="symmetric")

    def shifted(by: int) -> Any:
        return padded[(slice(None),) * axis + (slice(radius + by, radius + by + size),)]

    total = shifted(0) * weights[0]
    pair = np.empty_like(total)
    for distance in range(1, radius + 1):
        np.add(shifted(-distance), shifted(distance), out=pair)
        pair *= weights[distance]
        total += pair
    return total


def _brightened(pixels: Pixels, levels: float) -> Pixels:
    """Add levels to each pixel's largest channel, up to 255, and scale the other two with it.

    Hue and saturation stay.

    As ImageNet-C only up. Black has no hue and becomes gray; a white image stays as it is.
    """
    value = pixels.max(axis=3, keepdims=True).astype(np.float32)
    target = np.minimum(value + np.float32(levels), np.float32(255))
    return _rounded(np.where(value > 0, pixels * (target / np.maximum(value, 1)), target))


def _flattened(pixels: Pixels, share: float) -> Pixels:
    """Leave a share of each pixel's difference from its image's mean color."""
    # Sums of integers are exact: no order of adding can change a mean.
    mean = pixels.sum(axis=(1, 2), keepdims=True, dtype=np.int64) / math.prod(pixels.shape[1:3])
    return _rounded(pixels * np.float32(share) + (mean * (1 - share)).astype(np.float32))


def _coarser(quality: int, factor: float) -> int:
    """Return the JPEG quality whose steps between levels are `factor` times those of another quality, at most 50.

    libjpeg multiplies its table of steps by 50 / quality up to 50, and by 2 - quality / 50 above.
    """
    steps = 50 / quality * factor
    return round(100 - 50 * steps) if steps < 1 else max(1, round(50 / steps))


def _compressed(pixels: Pixels, quality: int) -> Pixels:
    """Return images as they come back from JPEG files, with colors at half the resolution as is usual."""
    from PIL import Image

    result = np.empty(pixels.shape, np.uint8)
    for source, target in zip(pixels, result, strict=True):
        file = io.BytesIO()
        Image.fromarray(source).save(file, "JPEG", quality=quality)
        with Image.open(file) as image:
            target[:] = image
    return result


def _pixelated(pixels: Pixels, side: float) -> Pixels:
    """Give blocks their mean color.

    Where `side` is no whole number, some blocks are a pixel larger than others.
    """
    sums = pixels.astype(np.int32)
    starts = [np.arange(0, size, side).astype(np.int64) for size in pixels.shape[1:3]]
    for axis, edges in enumerate(starts, start=1):
        sums = np.add.reduceat(sums, edges, axis=axis)
    rows, columns = (
        np.diff(edges, append=size) for edges, size in zip(starts, pixels.shape[1:3], strict=True)
    )
    means = _rounded(sums / np.outer(rows, columns)[..., np.newaxis])
    return means.repeat(rows, axis=1).repeat(columns, axis=2)


def _occluded(pixels: Pixels, share: float, streams: Iterable[np.random.Generator]) -> Pixels:
    """Lay a gray square of a share of the area somewhere on each image, never over its border."""
    height, width = pixels.shape[1:3]
    side = min(height, width, round(math.sqrt(share * height * width)))
    result = pixels.copy()
    for image, stream in zip(result, streams, strict=True):
        top, left = stream.integers(0, (height - side + 1, width - side + 1))
        image[top : top + side, left : left + side] = _GRAY
    return result
