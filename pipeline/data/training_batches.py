"""The batches of training epochs: order, crops and augmentation depend on (seed, epoch) alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from pipeline.config.train import TrainConfig
from pipeline.data.augment import draw_augmentations
from pipeline.data.cropped_batches import cut_pixel_batches, decode_record_batches
from pipeline.data.crops import draw_crops, draw_windows, find_frame
from pipeline.data.loader import (
    PREFETCHED_BATCHES,
    LoadedSplit,
    measure_surplus,
    open_split_records,
)
from pipeline.data.remote_batches import distribute_batches
from pipeline.data.shards import as_written, count_processors, make_deterministic_options
from pipeline.errors import ConfigError
from pipeline.image_size import ImageSize, sides_of
from pipeline.random_streams import RandomStream, open_stream

if TYPE_CHECKING:
    from pipeline.arrays import Array, Dataset, Integers, Tensor

    # Of a batch: `pixels`, `labels` and what augmentation drew.
    Batch = dict[str, Tensor]

# Encoded images that are shuffled at a time when a split is streamed, a quarter of a GB of
# ImageNet's; shards are shuffled, too.
_SHUFFLE_BUFFER = 2048
# Of the epochs that share an iterator.
_SHARED_STEPS, _SHARED_IMAGES = 4096, 2**18


def make_training_batches(
    images: LoadedSplit,
    config: TrainConfig,
    *,
    image_size: ImageSize,
    epoch: int,
    start: int = 0,
    worker: tuple[int, int] = (0, 1),
    epochs: int = 1,
    parallel_calls: int | None = None,
) -> Dataset:
    """Return the batches of one epoch, or of several, for `augment.augment_batch`.

    A batch has `pixels` uint8 [batch, height, width, 3] in [0, 255], cut and mirrored,
    `labels` int32 [batch], and what `augment.draw_augmentations` returns for these positions. The
    order is a permutation of the split that depends on (seed, epoch). Streamed splits are shuffled
    by shards and in a buffer. A last batch that is not full is left out; another epoch leaves out
    others.

    Args:
        images: the training split.
        config: batch size, seed, crops and augmentation.
        image_size: height and width of the crops.
        epoch: counted from 0.
        start: first batch, counted from 0; the batches are those of a whole epoch from there on.
            Skipped images are not decoded.
        worker: which part of each batch, and of how many: together they are the batches of one
            worker.
        epochs: so many, one after the other; more than one only of images that are not streamed.
        parallel_calls: images or batches that are prepared at a time; the result does not depend on
            it.

    Raises:
        ConfigError: there are fewer images than a batch takes, they are smaller than the crop, or
            the workers cannot divide the batch.
    """
    calls = parallel_calls or 2 * count_processors()
    mine = _list_positions(images, config, start, worker)
    if images.pixels is not None:
        later = _list_positions(images, config, 0, worker)
        plans = [
            _EpochPlan(images, config, image_size, epoch + more).take(later if more else mine)
            for more in range(epochs)
        ]
        order, *crops = (
            np.concatenate(parts) for parts in zip(*(plan[0] for plan in plans), strict=True)
        )
        drawn = {name: np.concatenate([plan[1][name] for plan in plans]) for name in plans[0][1]}
        batches = cut_pixel_batches(images, order, tuple(crops), image_size, calls)
        return _add_drawn(batches, drawn)
    plan = _EpochPlan(images, config, image_size, epoch)

    def make_streamed(positions: Integers, turn: tuple[int, int] = (0, 1)) -> Dataset:
        (_, *crops), drawn = plan.take(positions)
        reader = open_split_records(images)
        shuffled = reader.read(plan.shuffle_seed).shuffle(
            min(_SHUFFLE_BUFFER, len(images)),
            seed=plan.shuffle_seed,
            reshuffle_each_iteration=False,
        )
        own = _select_records(shuffled, mine, config.global_batch_size, turn)
        batches = decode_record_batches(images, own, reader, tuple(crops), image_size, calls)
        return _add_drawn(batches, drawn)

    services = [address for address in config.data_services.split(",") if address]
    if services:
        return distribute_batches(services, mine, make_streamed)
    return make_streamed(mine)


class _EpochPlan:
    """The image, the crop and the augmentation of each position in an epoch's order."""

    def __init__(self, images: LoadedSplit, config: TrainConfig, image_size: ImageSize, epoch: int):
        count, seed = len(images), config.seed
        measure_surplus(images, image_size)  # refuses crops that are too large
        top, left, *frame = find_frame(images.dataset.short_side, image_size)
        height, width = sides_of(image_size)
        crops = draw_crops(
            count,
            (frame[0] - height, frame[1] - width),
            seed=seed,
            epoch=epoch,
            random_crop=config.crop == "random",
            flip=config.flip,
        )
        corners = (
            draw_windows(count, seed=seed, epoch=epoch)
            if config.crop == "resized"
            else (crops.top + top, crops.left + left)
        )
        rng = open_stream(RandomStream.IMAGE_ORDER, seed=seed, epoch=epoch)
        # A streamed split has no order of its own: records come as they are shuffled.
        order = rng.permutation(count) if images.pixels is not None else np.arange(count)
        self.shuffle_seed = int(rng.integers(2**31))
        self._arrays: tuple[Array, ...] = (order, *corners, crops.mirrored)
        self._drawn = draw_augmentations(config, images.dataset, size=image_size, epoch=epoch)

    def take(self, positions: Integers) -> tuple[tuple[Array, ...], dict[str, Array]]:
        """Return (image indices, corners or windows, mirrored) and the augmentation of positions.

        Args:
            positions: int [batches, batch].
        """
        return tuple(array[positions] for array in self._arrays), {
            name: array[positions] for name, array in self._drawn.items()
        }


def _add_drawn(batches: Dataset, drawn: Mapping[str, Array]) -> Dataset:
    """Add to each batch the augmentation that was drawn for it."""
    if drawn:
        more = tf.data.Dataset.from_tensor_slices(dict(drawn))
        batches = tf.data.Dataset.zip(batches, more).map(
            as_written(lambda batch, added: {**batch, **added})
        )
    return batches.prefetch(PREFETCHED_BATCHES).with_options(make_deterministic_options())


def _list_positions(
    images: LoadedSplit, config: TrainConfig, start: int, worker: tuple[int, int]
) -> Integers:
    """Return the positions of a worker in an epoch's order, int64 [batches, its part of a batch].

    Raises:
        ConfigError: there are fewer images than a batch takes, or the workers cannot divide it.
    """
    batch, (index, workers) = config.global_batch_size, worker
    if len(images) < batch:
        raise ConfigError(
            f"train.global_batch_size is larger than the {images.split} split",
            expected=f"at most {len(images)}",
            received=str(batch),
            hint=f"Type --set train.global_batch_size={len(images)} or less",
        )
    if batch % workers:
        raise ConfigError(
            f"train.global_batch_size cannot be divided among {workers} workers",
            expected=f"a multiple of {workers}",
            received=str(batch),
            hint=f"Type --set train.global_batch_size={-(-batch // workers) * workers}",
        )
    steps, part = len(images) // batch, batch // workers
    positions = np.arange(steps * batch).reshape(steps, batch)
    return positions[start:, index * part : (index + 1) * part]


def _select_records(records: Dataset, mine: Integers, batch: int, turn: tuple[int, int]) -> Dataset:
    """Leave out the records of other workers, of earlier batches and of other services' turns.

    They are read, but neither parsed nor decoded.

    Args:
        records: of the whole epoch, in its order.
        mine: positions of this worker, int64 [batches, its part of a batch].
        batch: images per step.
        turn: which one of the services that take batches in turns, and of how many.
    """
    if mine.size == 0:
        return records.take(0)
    first, part = int(mine[0, 0]), mine.shape[1]
    records = records.skip(first)
    if part == batch and turn == (0, 1):
        return records

    def is_own(position: Tensor, _record: Tensor) -> Tensor:
        return (position % batch < part) & (position // batch % turn[1] == turn[0])

    return records.enumerate().filter(as_written(is_own)).map(as_written(lambda _, record: record))


def iterate_training_epochs(
    images: LoadedSplit,
    config: TrainConfig,
    *,
    image_size: ImageSize,
    first: int,
    start: int = 0,
    worker: tuple[int, int] = (0, 1),
    opened: Callable[[Dataset], Iterator[Batch]] = iter,
) -> Iterator[Iterator[Batch]]:
    """Yield for each epoch an iterator whose next batches are the epoch's.

    As many as it has steps must be taken before the next.

    Small epochs of images in memory share an iterator, as making one takes as long as a hundred
    small steps. The next one is made ready in the background, so that no epoch waits for its first
    batch. For a streamed split that means two shuffle buffers, each of some 2,000 encoded images.

    Args:
        images: the training split.
        config: as `make_training_batches` takes it; also the number of epochs.
        image_size: height and width of the crops.
        first: the epoch to begin with, counted from 0.
        start: the batch to begin that epoch with, counted from 0.
        worker: which part of each batch, and of how many.
        opened: makes an iterator of a dataset, such as one that is spread over devices.
    """
    together = (
        1
        if images.pixels is None
        else _count_epochs_together(len(images), config.global_batch_size)
    )

    def open_epochs(epoch: int, epochs: int) -> Iterator[Batch]:
        batches = make_training_batches(
            images,
            config,
            image_size=image_size,
            epoch=epoch,
            start=start if epoch == first else 0,
            worker=worker,
            epochs=epochs,
        )
        options = tf.data.Options()
        options.experimental_warm_start = True
        return opened(batches.with_options(options))

    groups = (
        (epoch, min(together, config.epochs - epoch))
        for epoch in range(first, config.epochs, together)
    )
    with ThreadPoolExecutor(1) as background:
        ahead = ((background.submit(open_epochs, *group), group[1]) for group in groups)
        upcoming = next(ahead, None)
        while upcoming:
            (batches, epochs), upcoming = (upcoming[0].result(), upcoming[1]), next(ahead, None)
            yield from itertools.repeat(batches, epochs)


def _count_epochs_together(images: int, batch_size: int) -> int:
    """Return the number of epochs that share an iterator.

    Some thousand steps, at most what is drawn for a quarter of a million images.
    """
    return max(
        1,
        min(_SHARED_STEPS // max(1, images // batch_size), _SHARED_IMAGES // max(1, images)),
    )
