"""From shards to batches: the pictures of a split, in memory where they fit, and what is cut from them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from pipeline.artifacts import DatasetArtifact
from pipeline.data.augment import ColorMode, color_scale, color_shifts, shift_colors
from pipeline.data.pictures import decode_and_resize, decode_window
from pipeline.data.source import fixed_options, read_split
from pipeline.errors import ConfigError, DatasetError

# Loading takes twice a split's size for a moment, and training needs room, too.
_MEMORY_SHARE = 0.25
# Encoded pictures that are shuffled at a time when a split is streamed: about 1 GB of ImageNet's.
_SHUFFLE_BUFFER = 8192
_PARALLEL_FILES = 16
_PREFETCHED_BATCHES = 2
Crop = Literal["random", "resized", "center"]


@dataclass(frozen=True)
class Images:
    """One split, ready to be cut into batches.

    `labels` are int32 [images] in [0, classes), `keys` the pictures' names, both in stored order. `pixels` is uint8
    [images, short_side, short_side, 3] in [0, 255]: a tensor in the CPU's memory, or an array that is mapped from the disk, or None where
    batches are decoded from the shards each time.
    """

    dataset: DatasetArtifact
    split: str
    labels: Any
    keys: tuple[str, ...]
    pixels: Any

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @property
    def where(self) -> str:
        """Say where batches come from."""
        size = f"{len(self) * self.dataset.short_side**2 * 3 / 1e9:.2g} GB"
        if self.pixels is None:
            return f"decoded from shards in every epoch, {size} do not fit into a quarter of the memory"
        return f"mapped from the disk, {size}" if isinstance(self.pixels, np.memmap) else f"in memory, {size}"


def index_path(directory: Path, split: str) -> Path:
    """Return the file that lists a split's keys, labels and SHA-256 in stored order."""
    return directory / "index" / f"{split}.json"


def load_split(dataset: DatasetArtifact, split: str, *, in_memory: bool | None = None) -> Images:
    """Return a split of a prepared dataset, decoded and resized in memory if it takes less than a quarter of the machine's.

    A larger one is mapped from the disk where ingest stored its pixels, and decoded from the shards in every epoch where it did not.

    Args:
        dataset: the record of the ingest stage.
        split: `train`, `validation` or `test`.
        in_memory: decides instead of the machine's memory.

    Raises:
        DatasetError: the shards or the index are gone or do not belong together.
    """
    try:
        index = json.loads(index_path(dataset.directory, split).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(dataset, f"{error}") from error
    labels = np.asarray(index["labels"], dtype=np.int32)
    size = len(labels) * dataset.short_side**2 * 3
    keep = size <= _MEMORY_SHARE * memory_bytes() if in_memory is None else in_memory
    images = Images(dataset, split, labels, tuple(index["keys"]), None)
    if dataset.store == "pixels":
        stored = _stored_pixels(images)
        with tf.device("CPU:0"):
            return replace(images, pixels=tf.constant(stored) if keep else stored)
    return replace(images, pixels=_pixels(images)) if keep else images


def _stored_pixels(images: Images) -> Any:
    """Return the pixels that ingest stored, mapped from the disk."""
    path, side = images.dataset.pixels_path(images.split), images.dataset.short_side
    try:
        stored = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise _damaged(images.dataset, str(error)) from error
    if stored.shape != (len(images), side, side, 3) or stored.dtype != np.uint8:
        raise _damaged(images.dataset, f"{path.name} holds {stored.dtype} {stored.shape}")
    return stored


def _damaged(dataset: DatasetArtifact, reason: str) -> DatasetError:
    return DatasetError(
        f"The prepared dataset in {dataset.shards} is damaged ({reason:.200}). Expected the files that ingest wrote. "
        "Type the same command with --rerun ingest."
    )


def memory_bytes() -> int:
    """Return the memory this process may use: the machine's, or its container's limit.

    All of it, not what is free at the moment: the choice that depends on it must be the same in the next run.
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.exists() else "max"
    return min(machine, int(text)) if text.isdecimal() else machine


def _processors() -> int:
    return len(os.sched_getaffinity(0))


def _encoded(images: Images, **how: Any) -> Any:
    dataset = images.dataset
    try:
        return read_split(dataset.shards, dataset.reads[images.split], dataset.image_key, dataset.label_key, **how)
    except (OSError, ValueError) as error:
        raise _damaged(dataset, str(error)) from error


def _pixels(images: Images) -> Any:
    """Return every picture of a split as one uint8 tensor [images, short_side, short_side, 3] in the CPU's memory."""
    side = images.dataset.short_side
    decoded = _encoded(images).map(
        lambda example: decode_and_resize(example["image"], side, example["orientation"]), num_parallel_calls=_processors()
    )
    with tf.device("CPU:0"):
        try:
            pixels = decoded.batch(max(1, len(images))).with_options(fixed_options()).get_single_element()
        except tf.errors.OpError as error:
            raise _damaged(images.dataset, error.message) from error
    if len(pixels) != len(images):
        raise _damaged(images.dataset, f"{len(pixels)} pictures instead of {len(images)}")
    return pixels


@dataclass(frozen=True)
class Cuts:
    """What is cut from each picture of an epoch: int32 top and left corners [images], and bool mirrored [images]."""

    top: Any
    left: Any
    mirrored: Any

    def after(self, start: int) -> Cuts:
        """Return the cuts of the pictures from a place on."""
        return Cuts(self.top[start:], self.left[start:], self.mirrored[start:])


def centre_cuts(count: int, surplus: int) -> Cuts:
    """Return the central crop for every picture.

    Args:
        count: pictures.
        surplus: how many pixels a side is longer than the crop.
    """
    corner = np.full(count, surplus // 2, np.int32)
    return Cuts(corner, corner, np.zeros(count, np.bool_))


def random_cuts(count: int, surplus: int, *, seed: int, epoch: int, random_crop: bool, flip: bool) -> Cuts:
    """Return a crop and a mirroring for each place in an epoch's order; they depend on (seed, epoch, place) alone.

    Drawn all at once, ahead of the input threads, so that no number of them changes what is drawn.

    Args:
        count: pictures.
        surplus: how many pixels a side is longer than the crop.
        seed: of the training.
        epoch: counted from 0.
        random_crop: cut at random places; else at the centre.
        flip: mirror one picture in two.
    """
    centre = centre_cuts(count, surplus)
    # An own stream for each purpose: switching one off does not change the others.
    tops, lefts, coins = (np.random.default_rng([seed, epoch, purpose]) for purpose in (1, 2, 3))
    return Cuts(
        tops.integers(0, surplus, count, np.int32, endpoint=True) if random_crop else centre.top,
        lefts.integers(0, surplus, count, np.int32, endpoint=True) if random_crop else centre.left,
        coins.random(count) < 0.5 if flip else centre.mirrored,
    )


def random_windows(count: int, *, seed: int, epoch: int) -> Any:
    """Return what decides the window of a resized crop, float32 [count, 5, 2], for each place in an epoch's order.

    The first four pairs are tries: a share of the area in [0.08, 1), and the logarithm of width / height between 3/4 and 4/3. The fifth is
    where the window lies, in [0, 1) of the way it can be moved. The ranges are those of Szegedy and others, 2014, section 6.

    Args:
        count: pictures.
        seed: of the training.
        epoch: counted from 0.
    """
    rng = np.random.default_rng([seed, epoch, 5])  # an own stream, as the cuts have
    draws = rng.random((count, 5, 2), np.float32)
    draws[:, :4, 0] = 0.08 + 0.92 * draws[:, :4, 0]
    draws[:, :4, 1] = np.log(4 / 3) * (2 * draws[:, :4, 1] - 1)
    return draws


def window_in(draws: Any, height: Any, width: Any) -> Any:
    """Return the window of a picture, int32 [..., 4]: top, left, height and width, inside the picture.

    The first try that fits is taken; if none does, the largest central window of an allowed shape.

    Args:
        draws: float32 [..., 5, 2], as `random_windows` gives them.
        height: int [], of the picture.
        width: int [], of the picture.
    """
    high, wide = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    area, aspect = draws[..., :4, 0] * high * wide, tf.exp(draws[..., :4, 1])
    heights, widths = tf.round(tf.sqrt(area / aspect)), tf.round(tf.sqrt(area * aspect))
    fits = (heights <= high) & (widths <= wide) & (heights >= 1) & (widths >= 1)
    first = tf.argmax(fits, axis=-1)
    some = tf.reduce_any(fits, axis=-1)
    h = tf.where(some, tf.gather(heights, first, axis=-1, batch_dims=len(heights.shape) - 1), tf.minimum(high, tf.round(wide * 4 / 3)))
    w = tf.where(some, tf.gather(widths, first, axis=-1, batch_dims=len(widths.shape) - 1), tf.minimum(wide, tf.round(high * 4 / 3)))
    corner = tf.where(some[..., tf.newaxis], draws[..., 4, :], 0.5)
    top, left = tf.floor(corner[..., 0] * (high - h + 1)), tf.floor(corner[..., 1] * (wide - w + 1))
    return tf.cast(tf.stack([tf.minimum(top, high - h), tf.minimum(left, wide - w), h, w], axis=-1), tf.int32)


def stretched(pixels: Any, draws: Any, mirrored: Any, size: int) -> Any:
    """Cut a random window from each prepared picture and stretch it to a square.

    Args:
        pixels: uint8 [batch, side, side, 3] in [0, 255].
        draws: float32 [batch, 5, 2], as `random_windows` gives them.
        mirrored: bool [batch].
        size: height and width of the result.

    Returns:
        uint8 [batch, size, size, 3] in [0, 255].
    """
    side = pixels.shape[1]
    window = tf.cast(window_in(draws, side, side), tf.float32)
    corner, length = window[:, :2], window[:, 2:]
    # Enlarging needs half a pixel beyond the edge: the edge again.
    padded = tf.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)), "SYMMETRIC")
    # The op takes the centres of the first and of the last pixel, in shares of the way from the first centre to the last.
    half = length / (2 * size) + 0.5
    first, last = ((corner + offset) / (side + 1) for offset in (half, half + length - length / size))
    turned = mirrored[:, tf.newaxis]
    x = tf.where(turned, tf.stack([last[:, 1], first[:, 1]], 1), tf.stack([first[:, 1], last[:, 1]], 1))
    boxes = tf.stack([first[:, 0], x[:, 0], last[:, 0], x[:, 1]], axis=1)
    resized = tf.image.crop_and_resize(padded, boxes, tf.range(tf.shape(pixels)[0]), (size, size))
    return tf.cast(tf.round(resized), tf.uint8)


def cut(pixels: Any, top: Any, left: Any, mirrored: Any, size: int) -> Any:
    """Cut a square from each picture and mirror some; no pixel is changed.

    Args:
        pixels: uint8 [batch, side, side, 3] in [0, 255].
        top: int32 [batch] in [0, side - size].
        left: int32 [batch] in [0, side - size].
        mirrored: bool [batch].
        size: height and width of the result.

    Returns:
        uint8 [batch, size, size, 3] in [0, 255].
    """
    along = tf.range(size)
    rows = top[:, tf.newaxis] + along
    columns = left[:, tf.newaxis] + tf.where(mirrored[:, tf.newaxis], size - 1 - along, along)
    return tf.gather(tf.gather(pixels, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def training_batches(
    images: Images,
    *,
    image_size: int,
    global_batch_size: int,
    seed: int,
    epoch: int,
    crop: Crop,
    flip: bool,
    color_noise: float = 0.0,
    color_mode: ColorMode = "code",
    start: int = 0,
    parallel_calls: int | None = None,
) -> Any:
    """Return one epoch as a tf.data.Dataset of (uint8 [global_batch_size, image_size, image_size, 3] in [0, 255], int32 [...]).

    The order is a permutation of the split that depends on (seed, epoch). Streamed splits are shuffled by shards and in a buffer. A last
    batch that is not full is left out; another epoch leaves out others.

    Args:
        images: the training split.
        image_size: height and width of the crops.
        global_batch_size: images a step, over all replicas.
        seed: of order and augmentation.
        epoch: counted from 0.
        crop: `random` or `center` places, or `resized`: 8-100 % of the picture's area, stretched to the input.
        flip: mirror one picture in two.
        color_noise: spread of the noise along the principal colours; 0 is none.
        color_mode: what color_noise counts.
        start: first batch, counted from 0; what follows is what would have followed. Skipped pictures are not decoded.
        parallel_calls: batches that are prepared at a time; the result does not depend on it.

    Raises:
        ConfigError: there are fewer images than a batch takes, or they are smaller than the crop.
    """
    if len(images) < global_batch_size:
        raise ConfigError(
            f"train.global_batch_size is larger than the {images.split} split. Expected at most {len(images)}. "
            f"Received {global_batch_size}. Type --set train.global_batch_size={len(images)} or less."
        )
    surplus, skipped, dataset = _surplus(images, image_size), start * global_batch_size, images.dataset
    cuts = random_cuts(len(images), surplus, seed=seed, epoch=epoch, random_crop=crop == "random", flip=flip).after(skipped)
    windows = random_windows(len(images), seed=seed, epoch=epoch)[skipped:] if crop == "resized" else None
    rng = np.random.default_rng([seed, epoch, 0])
    if images.pixels is not None:
        order = rng.permutation(len(images))[skipped:]
        batches = _batches_of_pixels(images, order, cuts, image_size, global_batch_size, True, parallel_calls, windows)
    else:
        mixed = int(rng.integers(2**31))
        examples = _encoded(images, parallel_files=_PARALLEL_FILES, shuffle_seed=mixed)
        examples = examples.shuffle(min(_SHUFFLE_BUFFER, len(images)), seed=mixed, reshuffle_each_iteration=False).skip(skipped)
        batches = _batches_of_files(images, examples, cuts, image_size, global_batch_size, True, parallel_calls, windows)
    if color_noise:
        shifts = color_shifts(len(images), dataset.channel_covariance, seed=seed, epoch=epoch, noise=color_noise, mode=color_mode)[skipped:]
        batches = _colored(batches, shifts, dataset.channel_mean, color_scale(color_noise, color_mode), global_batch_size, parallel_calls)
    return _finished(batches)


def _colored(batches: Any, shifts: Any, mean: Any, scale: float, batch: int, parallel_calls: int | None) -> Any:
    """Move the colours of each picture; `shifts` belong to the places of the epoch."""

    def moved(images: tuple[Any, Any], shift: Any) -> tuple[Any, Any]:
        return shift_colors(images[0], shift, mean, scale), images[1]

    pairs = tf.data.Dataset.zip(batches, tf.data.Dataset.from_tensor_slices(shifts).batch(batch, drop_remainder=True))
    return pairs.map(moved, num_parallel_calls=parallel_calls or _processors())


def evaluation_batches(images: Images, *, image_size: int, batch_size: int, parallel_calls: int | None = None) -> Any:
    """Return a split as a tf.data.Dataset of (uint8 [batch, image_size, image_size, 3] in [0, 255], int32 [batch]).

    Central crops in stored order, every picture once; the last batch may be smaller.

    Args:
        images: the split.
        image_size: height and width of the crops.
        batch_size: images a batch.
        parallel_calls: batches that are prepared at a time; the result does not depend on it.

    Raises:
        ConfigError: the pictures are smaller than the crop.
    """
    cuts = centre_cuts(len(images), _surplus(images, image_size))
    if images.pixels is not None:
        return _finished(_batches_of_pixels(images, np.arange(len(images)), cuts, image_size, batch_size, False, parallel_calls))
    return _finished(_batches_of_files(images, _encoded(images), cuts, image_size, batch_size, False, parallel_calls))


def _surplus(images: Images, image_size: int) -> int:
    """Return how many pixels a stored side is longer than the crop."""
    surplus = images.dataset.short_side - image_size
    if surplus < 0:
        raise ConfigError(
            f"model.image_size is larger than the prepared pictures. Expected at most {images.dataset.short_side}. Received {image_size}. "
            f"Type --set data.short_side={image_size} and run ingest again."
        )
    return surplus


def _batches_of_pixels(
    images: Images, order: Any, cuts: Cuts, size: int, batch: int, full: bool, parallel_calls: int | None, windows: Any = None
) -> Any:
    """Gather batches from memory or from the disk; `cuts` and `windows` belong to the places of `order`."""
    pixels, labels = images.pixels, images.labels[order]

    def gather(places: Any, classes: Any, top: Any, left: Any, mirrored: Any) -> tuple[Any, Any]:
        return cut(_rows_at(pixels, places), top, left, mirrored, size), classes

    def stretch(places: Any, classes: Any, window: Any, mirrored: Any) -> tuple[Any, Any]:
        return stretched(_rows_at(pixels, places), window, mirrored, size), classes

    places = (cuts.top, cuts.left, cuts.mirrored) if windows is None else (windows, cuts.mirrored)
    slices = tf.data.Dataset.from_tensor_slices((order.astype(np.int32), labels, *places))
    function = gather if windows is None else stretch
    return slices.batch(batch, drop_remainder=full).map(function, num_parallel_calls=parallel_calls or _processors())


def _rows_at(pixels: Any, places: Any) -> Any:
    """Return the pictures at some places, uint8 [places, side, side, 3], from memory or from the disk."""
    if not isinstance(pixels, np.memmap):
        return tf.gather(pixels, places)
    rows = tf.numpy_function(pixels.__getitem__, [places], tf.uint8, stateful=False)
    return tf.ensure_shape(rows, (None, *pixels.shape[1:]))


def _batches_of_files(
    images: Images, examples: Any, cuts: Cuts, size: int, batch: int, full: bool, parallel_calls: int | None, windows: Any = None
) -> Any:
    """Decode batches from shards; `cuts` and `windows` belong to the places of `examples`."""
    side, calls = images.dataset.short_side, parallel_calls or _processors()

    def decoded(example: Any, where: Any) -> tuple[Any, ...]:
        pixels = decode_and_resize(example["image"], side, example["orientation"])
        return pixels, tf.cast(example["label"], tf.int32), *where

    def gathered(pixels: Any, classes: Any, top: Any, left: Any, mirrored: Any) -> tuple[Any, Any]:
        return cut(pixels, top, left, mirrored, size), classes

    def decoded_window(example: Any, where: Any) -> tuple[Any, Any]:
        window, mirrored = where
        pixels = decode_window(example["image"], example["orientation"], lambda height, width: window_in(window, height, width), size)
        return tf.cond(mirrored, lambda: pixels[:, ::-1], lambda: pixels), tf.cast(example["label"], tf.int32)

    if windows is not None:
        places = tf.data.Dataset.from_tensor_slices((windows, cuts.mirrored))
        return tf.data.Dataset.zip(examples, places).map(decoded_window, num_parallel_calls=calls).batch(batch, drop_remainder=full)
    places = tf.data.Dataset.from_tensor_slices((cuts.top, cuts.left, cuts.mirrored))
    pairs = tf.data.Dataset.zip(examples, places).map(decoded, num_parallel_calls=calls)
    return pairs.batch(batch, drop_remainder=full).map(gathered, num_parallel_calls=calls)


def _finished(batches: Any) -> Any:
    return batches.prefetch(_PREFETCHED_BATCHES).with_options(fixed_options())
