"""Augmentation: what training changes in the pixels of its images, besides crops and mirroring.

All of it is drawn ahead on the host, and applied on the device where the network runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import tensorflow as tf

from pipeline.artifacts import DatasetArtifact
from pipeline.config.train import TrainConfig
from pipeline.image_size import ImageSize, sides_of
from pipeline.random_streams import RandomStream, open_stream

if TYPE_CHECKING:
    from pipeline.arrays import Array, Floats, Integers, Tensor

# `auto` is the code of 2012 here; training asks the network.
ColorMode = Literal["auto", "code", "paper"]


def find_principal_colors(covariance: Sequence[Sequence[float]]) -> tuple[Floats, Floats]:
    """Return the standard deviation along each principal direction of the colors, and these.

    Standard deviations are float64 [3], the largest first, directions float64 [3, 3] in RGB, one a
    row. Of a direction and its opposite, that is taken whose largest part is positive.

    Args:
        covariance: of RGB over the training pixels, 0-255 squared.
    """
    variances, directions = np.linalg.eigh(np.asarray(covariance, np.float64))
    rows = directions.T[::-1]
    signs = np.sign(rows[np.arange(3), np.abs(rows).argmax(1)])
    return np.sqrt(np.maximum(variances[::-1], 0)), rows * signs[:, None]


def draw_color_shifts(
    count: int,
    covariance: Sequence[Sequence[float]],
    *,
    seed: int,
    epoch: int,
    noise: float,
    mode: ColorMode,
) -> Floats:
    """Return the color that is added to every pixel of each image (paper, section 4.1).

    It is float32 [count, 3] in levels of 0-255: each principal direction of the training colors
    times a normally distributed number. The length of a direction differs between paper and code of
    2012: the published code takes the standard deviation, the paper the variance, which makes sense
    on the 0-1 scale only.

    Args:
        count: images, in the order of the epoch.
        covariance: of RGB over the training pixels, 0-255 squared.
        seed: of the training.
        epoch: counted from 0.
        noise: standard deviation of the normal distribution; 0.1 in 2012.
        mode: `code` or `paper`.
    """
    deviations, directions = find_principal_colors(covariance)
    lengths = (deviations / 255) ** 2 * 255 if mode == "paper" else deviations
    stream = open_stream(RandomStream.COLOR_NOISE, seed=seed, epoch=epoch)
    times = stream.normal(0, noise, (count, 3))
    return (times * lengths @ directions).astype(np.float32)


def compute_color_scale(noise: float, mode: ColorMode) -> float:
    """Return the factor of differences from the mean color.

    The code of 2012 undoes the spread that noise adds.
    """
    return 1.0 if mode == "paper" else 1 / (1 + noise)


def shift_colors(pixels: Tensor, shifts: Tensor, mean: Sequence[float], scale: float) -> Tensor:
    """Return (pixels - mean + shifts) * scale + mean, rounded and cut to 0-255.

    Args:
        pixels: uint8 [batch, height, width, 3] in [0, 255].
        shifts: float32 [batch, 3] in levels.
        mean: RGB mean of the training pixels, 0-255.
        scale: as `compute_color_scale` returns it.

    Returns:
        uint8 [batch, height, width, 3] in [0, 255].
    """
    offsets = shifts * scale + tf.constant(
        [(1 - scale) * value + 0.5 for value in mean], tf.float32
    )
    # Rows of width x 3 numbers: adding a long row is several times faster than adding three numbers
    # everywhere.
    shape = tf.shape(pixels)
    rows = tf.cast(tf.reshape(pixels, (shape[0], shape[1], -1)), tf.float32)
    moved = rows * scale + tf.tile(offsets, (1, shape[2]))[:, tf.newaxis]
    # The half was added above, so truncating rounds.
    return tf.reshape(tf.cast(tf.clip_by_value(moved, 0, 255), tf.uint8), shape)


@tf.function(jit_compile=True, reduce_retracing=False)
def _shift_colors_at_once(
    pixels: Tensor, shifts: Tensor, mean: tuple[float, ...], scale: float
) -> Tensor:
    """Return `shift_colors` as one loop over the pixels: a sixth of the time."""
    return shift_colors(pixels, shifts, mean, scale)


# -- all of it, drawn ahead and applied where the network runs -------------------------------------


def draw_augmentations(
    config: TrainConfig, dataset: DatasetArtifact, *, size: ImageSize, epoch: int
) -> dict[str, Array]:
    """Return the augmentation of each position in an epoch's order.

    Arrays [images, ...] for those of `augment_batch`'s options that are on. They are drawn on the
    host and all at once, from (seed, epoch) alone: neither threads nor replicas change them, and
    every purpose has a stream of its own, so that switching one off does not change the others.

    `shift` float32 [images, 3] is added to the colors. `warp` [images, 8] and `tone` [images, 6]
    are RandAugment's. `erased` int32 [images, 4] is a box to hide. `mixed` int32 [images, 4] is the
    box of the partner, and `own_fraction` float32 [images] the weight of the image itself there.

    Args:
        config: which options.
        dataset: the training images' number and colors.
        size: height and width of the images.
        epoch: counted from 0.
    """
    count, sides = dataset.count_images("train"), sides_of(size)

    def opened(stream: RandomStream) -> np.random.Generator:
        return open_stream(stream, seed=config.seed, epoch=epoch)

    drawn: dict[str, Array] = {}
    if config.color_noise:
        noise, mode = config.color_noise, config.color_mode
        drawn["shift"] = draw_color_shifts(
            count, dataset.channel_covariance, seed=config.seed, epoch=epoch, noise=noise, mode=mode
        )
    if config.randaugment:
        drawn["warp"], drawn["tone"] = _draw_randaugment(
            opened(RandomStream.RANDAUGMENT),
            count,
            sides,
            config.randaugment,
            config.randaugment_magnitude / 30,
        )
    if config.random_erasing:
        drawn["erased"] = _draw_boxes(opened(RandomStream.ERASED_BOX), count, sides) * (
            opened(RandomStream.ERASED_IMAGES).random((count, 1)) < config.random_erasing
        ).astype(np.int32)
    if config.mixup or config.cutmix:
        drawn["mixed"], drawn["own_fraction"] = _draw_mixtures(
            opened(RandomStream.MIXTURE), count, sides, config
        )
    return drawn


def _draw_randaugment(
    rng: np.random.Generator,
    count: int,
    sides: tuple[int, int],
    rounds: int,
    strength: float,
) -> tuple[Floats, Floats]:
    """Return each image's warp float32 [count, 8] and tone float32 [count, 6].

    Each is composed of some random changes. The changes and their greatest strengths are those of
    RandAugment (Cubuk and others, 2019) as torchvision has them, without sharpness and equalizing.
    A warp is the first eight numbers of the matrix that leads from points of the result to points
    of the image. A tone is factors of brightness, contrast and saturation, a fraction of stretching
    to the full range, the step of posterizing and the level from which on colors are inverted.
    """
    warps = np.broadcast_to(np.eye(3), (count, 3, 3))
    tones = np.tile(np.asarray([1, 1, 1, 0, 1, 256], np.float64), (count, 1))
    height, width = sides
    center = np.asarray([[1, 0, (width - 1) / 2], [0, 1, (height - 1) / 2], [0, 0, 1]])
    for _ in range(rounds):
        kind, sign = rng.integers(0, 12, count), rng.choice([-1.0, 1.0], count)
        amount = sign * strength
        change = np.tile(np.eye(3), (count, 1, 1))
        change[:, 0, 1] = np.where(kind == 1, 0.3 * amount, 0)  # shear, as tangents
        change[:, 1, 0] = np.where(kind == 2, 0.3 * amount, 0)
        # Shift, as a fraction of the image.
        change[:, 0, 2] = np.where(kind == 3, 150 / 331 * width * amount, 0)
        change[:, 1, 2] = np.where(kind == 4, 150 / 331 * height * amount, 0)
        angle = np.where(kind == 5, np.deg2rad(30) * amount, 0)
        turn = np.tile(np.eye(3), (count, 1, 1))
        turn[:, 0, 0] = turn[:, 1, 1] = np.cos(angle)
        turn[:, 0, 1], turn[:, 1, 0] = -np.sin(angle), np.sin(angle)
        warps = warps @ (center @ turn @ change @ np.linalg.inv(center))
        for column in range(3):  # brightness, contrast, saturation
            tones[:, column] *= np.where(kind == 6 + column, 1 + 0.9 * amount, 1)
        tones[:, 3] = np.where(kind == 9, 1, tones[:, 3])
        tones[:, 4] = np.where(kind == 10, 2 ** round(4 * strength), tones[:, 4])
        tones[:, 5] = np.where(kind == 11, 256 * (1 - strength), tones[:, 5])
    return warps.reshape(count, 9)[:, :8].astype(np.float32), tones.astype(np.float32)


def _draw_boxes(rng: np.random.Generator, count: int, sides: tuple[int, int]) -> Integers:
    """Return boxes to erase, int32 [count, 4]: top, left, bottom and right.

    2-33 % of an image, with a width / height of 0.3-3.3 times its own (Zhong and others, 2017).
    """
    height, width = sides
    area, aspect = (
        rng.uniform(0.02, 1 / 3, count) * (height * width),
        np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3), count)) * (width / height),
    )
    boxes = np.clip(np.rint(np.sqrt(np.stack([area / aspect, area * aspect], 1))), 1, sides)
    corner = np.floor(rng.random((count, 2)) * (np.asarray(sides) - boxes + 1))
    return np.concatenate([corner, corner + boxes], axis=1).astype(np.int32)


def _draw_mixtures(
    rng: np.random.Generator, count: int, sides: tuple[int, int], config: TrainConfig
) -> tuple[Integers, Floats]:
    """Return the box where an image's partner is mixed in, and the image's own fraction there.

    They are int32 [count, 4] and float32 [count]. MixUp (Zhang and others, 2017): everywhere, with
    a fraction from Beta(a, a). CutMix (Yun and others, 2019): the partner alone, in a box of the
    image's shape whose area is from Beta(a, a).
    """
    cuts = rng.random(count) < (0.5 if config.mixup and config.cutmix else bool(config.cutmix))
    own_fraction = rng.beta(config.mixup or 1, config.mixup or 1, count)
    whole = np.asarray(sides)
    boxes = whole * np.sqrt(rng.beta(config.cutmix or 1, config.cutmix or 1, count))[:, None]
    center = rng.random((count, 2)) * whole
    box = np.clip(np.concatenate([center - boxes / 2, center + boxes / 2], 1), 0, (*sides, *sides))
    everywhere = np.asarray([0, 0, *sides])
    return np.where(cuts[:, None], np.rint(box), everywhere).astype(np.int32), np.where(
        cuts, 0, own_fraction
    ).astype(np.float32)


def augment_batch(
    batch: Mapping[str, Tensor], config: TrainConfig, dataset: DatasetArtifact
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Apply the augmentation that was drawn for a batch, on the device where the network runs.

    Images are mixed with their neighbors, the first with the second, the third with the fourth: any
    even part of a batch, such as a replica's, holds both.

    Args:
        batch: `pixels` uint8 [batch, height, width, 3] in [0, 255], `labels` int32 [batch], and
            what `draw_augmentations` returned for these positions.
        config: which options.
        dataset: the training images' colors.

    Returns:
        uint8 [batch, height, width, 3] in [0, 255]; labels int32 [batch]; and where images are
        mixed the partners' labels int32 [batch] and the images' own fractions float32 [batch], else
        None.
    """
    pixels, labels = batch["pixels"], batch["labels"]
    mean = tf.constant(dataset.channel_mean, tf.float32)
    if "shift" in batch:
        scale = compute_color_scale(config.color_noise, config.color_mode)
        pixels = _shift_colors_at_once(
            pixels, batch["shift"], mean=tuple(dataset.channel_mean), scale=scale
        )
    if not {"warp", "erased", "mixed"} & set(batch):
        return pixels, labels, None, None
    values = tf.cast(pixels, tf.float32)
    if "warp" in batch:
        values = _change_tones(_warp_images(values, batch["warp"], mean), batch["tone"])
    if "erased" in batch:
        values = tf.where(_mask_boxes(batch["erased"], values), mean, values)
    partners = own_fractions = None
    if "mixed" in batch:
        partner = 1 - batch["own_fraction"][:, tf.newaxis, tf.newaxis, tf.newaxis]
        weight = tf.where(_mask_boxes(batch["mixed"], values), partner, 0.0)
        values = values * (1 - weight) + _swap_neighbors(values) * weight
        partners = _swap_neighbors(labels)
        own_fractions = 1 - tf.reduce_mean(weight, (1, 2, 3))
    pixels = tf.cast(tf.clip_by_value(values, 0, 255) + 0.5, tf.uint8)
    return pixels, labels, partners, own_fractions


def _warp_images(values: Tensor, warp: Tensor, fill: Tensor) -> Tensor:
    """Warp images; pixels from outside of an image have the mean color."""
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=values - fill,
        transforms=warp,
        output_shape=tf.shape(values)[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return moved + fill


def _change_tones(values: Tensor, tone: Tensor) -> Tensor:
    """Change brightness, contrast and saturation, stretch, posterize and solarize.

    Float32 [batch, height, width, 3] in [0, 255].
    """
    brightness, contrast, saturation, stretch, step, turn = (
        part[:, :, tf.newaxis, tf.newaxis] for part in tf.split(tone, 6, axis=1)
    )
    values = tf.clip_by_value(values * brightness, 0, 255)
    luminance = tf.constant([[0.299], [0.587], [0.114]])  # ITU-R BT.601, as Pillow's
    middle = tf.reduce_mean(tf.matmul(values, luminance), (1, 2), keepdims=True)
    values = tf.clip_by_value((values - middle) * contrast + middle, 0, 255)
    gray = tf.matmul(values, luminance)
    values = tf.clip_by_value((values - gray) * saturation + gray, 0, 255)
    low, high = (
        tf.reduce_min(values, (1, 2), keepdims=True),
        tf.reduce_max(values, (1, 2), keepdims=True),
    )
    full = tf.where(high > low, (values - low) * 255 / tf.maximum(high - low, 1), values)
    values = tf.where(stretch > 0, full, values)
    values = tf.where(step > 1, tf.floor(values / step) * step, values)
    return tf.where(values >= turn, 255 - values, values)


def _mask_boxes(boxes: Tensor, values: Tensor) -> Tensor:
    """Return the mask of each image's box, bool [batch, height, width, 1]."""
    top, left, bottom, right = (edge[:, :, tf.newaxis] for edge in tf.split(boxes, 4, axis=1))
    rows, columns = (
        tf.range(tf.shape(values)[1])[:, tf.newaxis],
        tf.range(tf.shape(values)[2])[tf.newaxis],
    )
    return ((rows >= top) & (rows < bottom) & (columns >= left) & (columns < right))[
        ..., tf.newaxis
    ]


def _swap_neighbors(values: Tensor) -> Tensor:
    """Return [batch, ...] with each pair's members exchanged."""
    shape = tf.shape(values)
    pairs = tf.reshape(values, tf.concat([[shape[0] // 2, 2], shape[1:]], 0))
    return tf.ensure_shape(tf.reshape(tf.reverse(pairs, [1]), shape), values.shape)


def compute_class_weights(dataset: DatasetArtifact) -> Floats:
    """Return the weight of a training image of each class, float32 [classes].

    It is images / (classes x images of the class).
    """
    counts = np.asarray(dataset.class_counts["train"], np.float64)
    return (counts.sum() / (len(counts) * counts)).astype(np.float32)
