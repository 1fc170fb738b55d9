"""What training changes in the pixels of its images.

Where they are cut and which are mirrored is the loader's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from pipeline.artifacts import DatasetArtifact
from pipeline.config.train import TrainConfig
from pipeline.random_streams import RandomStream, open_stream

ColorMode = Literal[
    "auto", "code", "paper"
]  # `auto` is the code of 2012 here; training asks the network


def find_principal_colors(covariance: Sequence[Sequence[float]]) -> tuple[Any, Any]:
    """Return standard deviations float64 [3], the largest first, and their directions float64 [3, 3] in RGB, one a row.

    Of a direction and its opposite, that is taken whose largest part is positive.

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
) -> Any:
    """Return what is added to every pixel of each image, float32 [count, 3] in levels of 0-255 (paper, section 4.1).

    Each principal direction of the training colors is taken a normally distributed number of times.
    How far one time is, paper and code of 2012 say differently: the published code means a standard
    deviation, the paper a variance, which makes sense on the 0-1 scale only.

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
    """Return what deviations from the mean color are multiplied with.

    The code of 2012 takes back the spread that noise adds.
    """
    return 1.0 if mode == "paper" else 1 / (1 + noise)


def shift_colors(pixels: Any, shifts: Any, mean: Sequence[float], scale: float) -> Any:
    """Return (pixels - mean + shifts) * scale + mean, rounded and cut to 0-255.

    Args:
        pixels: uint8 [batch, height, width, 3] in [0, 255].
        shifts: float32 [batch, 3] in levels.
        mean: RGB mean of the training pixels, 0-255.
        scale: as `color_scale` says.

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
    return tf.reshape(
        tf.cast(tf.clip_by_value(moved, 0, 255), tf.uint8), shape
    )  # the half was added above, so cutting off rounds


@tf.function(jit_compile=True, reduce_retracing=False)
def _shift_colors_at_once(pixels: Any, shifts: Any, mean: tuple[float, ...], scale: float) -> Any:
    """Return what `shift_colors` does, as one loop over the pixels: a sixth of the time."""
    return shift_colors(pixels, shifts, mean, scale)


# -- all of it, drawn ahead and applied where the network runs -------------------------------------


def draw_augmentations(
    config: TrainConfig, dataset: DatasetArtifact, *, size: int, epoch: int
) -> dict[str, Any]:
    """Return what is done to each place of an epoch's order.

    Arrays [images, ...] for those of `augment_batch`'s options that are on.

    Drawn on the host and all at once, from (seed, epoch) alone: neither threads nor replicas change
    what is drawn, and every purpose has a stream of its own, so that switching one off does not
    change the others.

    Args:
        config: which options.
        dataset: the training images' number and colors.
        size: height and width of the images.
        epoch: counted from 0.
    """
    count = dataset.images("train")

    def opened(stream: RandomStream) -> np.random.Generator:
        return open_stream(stream, seed=config.seed, epoch=epoch)

    drawn: dict[str, Any] = {}
    if config.color_noise:
        noise, mode = config.color_noise, config.color_mode
        drawn["shift"] = draw_color_shifts(
            count, dataset.channel_covariance, seed=config.seed, epoch=epoch, noise=noise, mode=mode
        )
    if config.randaugment:
        drawn["warp"], drawn["tone"] = _random_changes(
            opened(RandomStream.RANDAUGMENT),
            count,
            size,
            config.randaugment,
            config.randaugment_magnitude / 30,
        )
    if config.random_erasing:
        drawn["erased"] = _random_boxes(opened(RandomStream.ERASED_BOX), count, size) * (
            opened(RandomStream.ERASED_IMAGES).random((count, 1)) < config.random_erasing
        ).astype(np.int32)
    if config.mixup or config.cutmix:
        drawn["mixed"], drawn["share"] = _random_mixtures(
            opened(RandomStream.MIXTURE), count, size, config
        )
    return drawn


def _random_changes(
    rng: Any, count: int, size: int, rounds: int, strength: float
) -> tuple[Any, Any]:
    """Return each image's warp float32 [count, 8] and tone float32 [count, 6], composed of some random changes.

    The changes and their greatest strengths are those of RandAugment (Cubuk and others, 2019) as
    torchvision has them; sharpness and equalising are left out. A warp is the first eight numbers
    of the matrix that leads from places of the result to places of the image. A tone is factors of
    brightness, contrast and saturation, a share of stretching to the full range, the step of
    posterising and the level from which on colors are inverted.
    """
    warps = np.broadcast_to(np.eye(3), (count, 3, 3))
    tones = np.tile(np.asarray([1, 1, 1, 0, 1, 256], np.float64), (count, 1))
    center = np.asarray([[1, 0, (size - 1) / 2], [0, 1, (size - 1) / 2], [0, 0, 1]])
    for _ in range(rounds):
        kind, sign = rng.integers(0, 12, count), rng.choice([-1.0, 1.0], count)
        amount = sign * strength
        change = np.tile(np.eye(3), (count, 1, 1))
        change[:, 0, 1] = np.where(kind == 1, 0.3 * amount, 0)  # shear, as tangents
        change[:, 1, 0] = np.where(kind == 2, 0.3 * amount, 0)
        change[:, 0, 2] = np.where(
            kind == 3, 150 / 331 * size * amount, 0
        )  # shift, as a share of the image
        change[:, 1, 2] = np.where(kind == 4, 150 / 331 * size * amount, 0)
        angle = np.where(kind == 5, np.deg2rad(30) * amount, 0)
        turn = np.tile(np.eye(3), (count, 1, 1))
        turn[:, 0, 0] = turn[:, 1, 1] = np.cos(angle)
        turn[:, 0, 1], turn[:, 1, 0] = -np.sin(angle), np.sin(angle)
        warps = warps @ (center @ turn @ change @ np.linalg.inv(center))
        for place in range(3):  # brightness, contrast, saturation
            tones[:, place] *= np.where(kind == 6 + place, 1 + 0.9 * amount, 1)
        tones[:, 3] = np.where(kind == 9, 1, tones[:, 3])
        tones[:, 4] = np.where(kind == 10, 2 ** round(4 * strength), tones[:, 4])
        tones[:, 5] = np.where(kind == 11, 256 * (1 - strength), tones[:, 5])
    return warps.reshape(count, 9)[:, :8].astype(np.float32), tones.astype(np.float32)


def _random_boxes(rng: Any, count: int, size: int) -> Any:
    """Return int32 [count, 4]: top, left, bottom and right of 2-33 % of an image, width / height of 0.3-3.3 (Zhong and others, 2017)."""
    area, aspect = (
        rng.uniform(0.02, 1 / 3, count) * size**2,
        np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3), count)),
    )
    sides = np.clip(np.rint(np.sqrt(np.stack([area / aspect, area * aspect], 1))), 1, size)
    corner = np.floor(rng.random((count, 2)) * (size - sides + 1))
    return np.concatenate([corner, corner + sides], axis=1).astype(np.int32)


def _random_mixtures(rng: Any, count: int, size: int, config: TrainConfig) -> tuple[Any, Any]:
    """Return where an image's partner is mixed in, int32 [count, 4] as a box, and the image's own share there, float32 [count].

    MixUp (Zhang and others, 2017): everywhere, with a share from Beta(a, a). CutMix (Yun and
    others, 2019): the partner alone, in a box whose area is from Beta(a, a).
    """
    cuts = rng.random(count) < (0.5 if config.mixup and config.cutmix else bool(config.cutmix))
    share = rng.beta(config.mixup or 1, config.mixup or 1, count)
    side = size * np.sqrt(rng.beta(config.cutmix or 1, config.cutmix or 1, count))
    center = rng.random((count, 2)) * size
    box = np.clip(
        np.concatenate([center - side[:, None] / 2, center + side[:, None] / 2], 1), 0, size
    )
    everywhere = np.asarray([0, 0, size, size])
    return np.where(cuts[:, None], np.rint(box), everywhere).astype(np.int32), np.where(
        cuts, 0, share
    ).astype(np.float32)


def augment_batch(
    batch: Mapping[str, Any], config: TrainConfig, dataset: DatasetArtifact
) -> tuple[Any, Any, Any, Any]:
    """Do to a batch what was drawn for it, on the device where the network runs.

    Images are mixed with their neighbors, the first with the second, the third with the fourth: any
    even share of a batch, such as a replica's, holds both.

    Args:
        batch: `pixels` uint8 [batch, size, size, 3] in [0, 255], `labels` int32 [batch], and what
            `draws` gave for these places.
        config: which options.
        dataset: the training images' colors.

    Returns:
        uint8 [batch, size, size, 3] in [0, 255]; labels int32 [batch]; and where images are mixed
        the partners' labels int32 [batch] and the images' own shares float32 [batch], else None.
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
        values = _toned(_warped(values, batch["warp"], mean), batch["tone"])
    if "erased" in batch:
        values = tf.where(_inside(batch["erased"], values), mean, values)
    partners = shares = None
    if "mixed" in batch:
        partner = 1 - batch["share"][:, tf.newaxis, tf.newaxis, tf.newaxis]
        weight = tf.where(_inside(batch["mixed"], values), partner, 0.0)
        values = values * (1 - weight) + _neighbors(values) * weight
        partners, shares = _neighbors(labels), 1 - tf.reduce_mean(weight, (1, 2, 3))
    return tf.cast(tf.clip_by_value(values, 0, 255) + 0.5, tf.uint8), labels, partners, shares


def _warped(values: Any, warp: Any, fill: Any) -> Any:
    """Move the places of pixels; what comes from outside the image has the mean color."""
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=values - fill,
        transforms=warp,
        output_shape=tf.shape(values)[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return moved + fill


def _toned(values: Any, tone: Any) -> Any:
    """Change brightness, contrast and saturation, stretch, posterise and solarise.

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


def _inside(boxes: Any, values: Any) -> Any:
    """Return which pixels are in each image's box, bool [batch, height, width, 1]."""
    top, left, bottom, right = (edge[:, :, tf.newaxis] for edge in tf.split(boxes, 4, axis=1))
    rows, columns = (
        tf.range(tf.shape(values)[1])[:, tf.newaxis],
        tf.range(tf.shape(values)[2])[tf.newaxis],
    )
    return ((rows >= top) & (rows < bottom) & (columns >= left) & (columns < right))[
        ..., tf.newaxis
    ]


def _neighbors(values: Any) -> Any:
    """Return [batch, ...] with each pair's members exchanged."""
    shape = tf.shape(values)
    pairs = tf.reshape(values, tf.concat([[shape[0] // 2, 2], shape[1:]], 0))
    return tf.ensure_shape(tf.reshape(tf.reverse(pairs, [1]), shape), values.shape)


def compute_class_weights(dataset: DatasetArtifact) -> Any:
    """Return what a training image of each class counts, float32 [classes].

    Images / (classes x images of the class).
    """
    counts = np.asarray(dataset.class_counts["train"], np.float64)
    return (counts.sum() / (len(counts) * counts)).astype(np.float32)
