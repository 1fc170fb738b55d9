"""An epoch of training as batches: order, crops and what augmentation draws, fixed by (seed, epoch)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.config.train import TrainConfig
from pipeline.data.augment import draw_augmentations
from pipeline.data.cropped_batches import cut_pixel_batches, decode_record_batches
from pipeline.data.crops import draw_crops, draw_windows
from pipeline.data.loader import LoadedSplit, measure_surplus, open_split_records
from pipeline.data.remote_batches import distribute_batches
from pipeline.data.shards import count_processors, make_deterministic_options
from pipeline.errors import ConfigError
from pipeline.random_streams import RandomStream, open_stream

# Encoded images that are shuffled at a time when a split is streamed, a quarter of a GB of
# ImageNet's; shards are shuffled, too.
_SHUFFLE_BUFFER = 2048


_PREFETCHED_BATCHES = 2


_STEPS_TOGETHER, _IMAGES_TOGETHER = 4096, 2**18


def make_training_batches(
    images: LoadedSplit,
    config: TrainConfig,
    *,
    image_size: int,
    epoch: int,
    start: int = 0,
    worker: tuple[int, int] = (0, 1),
    epochs: int = 1,
    parallel_calls: int | None = None,
) -> Any:
    """Return one epoch as a tf.data.Dataset of batches for `augment.augment_batch`.

    A batch has `pixels` uint8 [batch, image_size, image_size, 3] in [0, 255], cut and mirrored,
    `labels` int32 [batch], and what `augment.draws` gives for these places. The order is a
    permutation of the split that depends on (seed, epoch). Streamed splits are shuffled by shards
    and in a buffer. A last batch that is not full is left out; another epoch leaves out others.

    Args:
        images: the training split.
        config: batch size, seed, and how images are cut and changed.
        image_size: height and width of the crops.
        epoch: counted from 0.
        start: first batch, counted from 0; what follows is what would have followed. Skipped images
            are not decoded.
        worker: which share of each batch, and of how many: together they are the batches of one
            worker.
        epochs: so many, one after the other; more than one only of images that are not streamed.
        parallel_calls: images or batches that are prepared at a time; the result does not depend on
            it.

    Raises:
        ConfigError: there are fewer images than a batch takes, they are smaller than the crop, or
            workers cannot share the batch.
    """
    calls = parallel_calls or 2 * count_processors()
    mine = _places(images, config, start, worker)
    if images.pixels is not None:
        later = _places(images, config, 0, worker)
        plans = [
            _Plan(images, config, image_size, epoch + more).of(later if more else mine)
            for more in range(epochs)
        ]
        order, *how = (
            np.concatenate(parts) for parts in zip(*(plan[0] for plan in plans), strict=True)
        )
        drawn = {name: np.concatenate([plan[1][name] for plan in plans]) for name in plans[0][1]}
        return _with_draws(cut_pixel_batches(images, order, tuple(how), image_size, calls), drawn)
    plan = _Plan(images, config, image_size, epoch)

    def batches_of(places: Any, turn: tuple[int, int] = (0, 1)) -> Any:
        (_, *how), drawn = plan.of(places)
        records, parse = open_split_records(images)
        shuffled = records(plan.mixed).shuffle(
            min(_SHUFFLE_BUFFER, len(images)), seed=plan.mixed, reshuffle_each_iteration=False
        )
        own = _only(shuffled, mine, config.global_batch_size, turn)
        return _with_draws(
            decode_record_batches(images, own, parse, tuple(how), image_size, calls), drawn
        )

    services = [address for address in config.data_services.split(",") if address]
    return distribute_batches(services, mine, batches_of) if services else batches_of(mine)


class _Plan:
    """What an epoch does to each place of its order.

    Which image stands there, how it is cut, and what is drawn for it.
    """

    def __init__(self, images: LoadedSplit, config: TrainConfig, image_size: int, epoch: int):
        count, seed = len(images), config.seed
        cuts = draw_crops(
            count,
            measure_surplus(images, image_size),
            seed=seed,
            epoch=epoch,
            random_crop=config.crop == "random",
            flip=config.flip,
        )
        corners = (
            draw_windows(count, seed=seed, epoch=epoch)
            if config.crop == "resized"
            else (cuts.top, cuts.left)
        )
        rng = open_stream(RandomStream.IMAGE_ORDER, seed=seed, epoch=epoch)
        # A streamed split has no order of its own: records come as they are shuffled.
        order = rng.permutation(count) if images.pixels is not None else np.arange(count)
        self.mixed = int(rng.integers(2**31))
        self._arrays = (order, *corners, cuts.mirrored)
        self._drawn = draw_augmentations(config, images.dataset, size=image_size, epoch=epoch)

    def of(self, places: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return (images, corners or windows, mirrored) and what is drawn, for some places [batches, batch]."""
        return tuple(array[places] for array in self._arrays), {
            name: array[places] for name, array in self._drawn.items()
        }


def _with_draws(batches: Any, drawn: Mapping[str, Any]) -> Any:
    """Add to each batch what was drawn for it."""
    if drawn:
        more = tf.data.Dataset.from_tensor_slices(dict(drawn))
        batches = tf.data.Dataset.zip(batches, more).map(lambda batch, added: {**batch, **added})
    return batches.prefetch(_PREFETCHED_BATCHES).with_options(make_deterministic_options())


def _places(images: LoadedSplit, config: TrainConfig, start: int, worker: tuple[int, int]) -> Any:
    """Return the places of an epoch's order that a worker takes, int64 [batches, its share of a batch]."""
    batch, (index, workers) = config.global_batch_size, worker
    if len(images) < batch:
        raise ConfigError(
            f"train.global_batch_size is larger than the {images.split} split. Expected at most"
            f" {len(images)}. Received {batch}. Type --set train.global_batch_size={len(images)} or"
            " less."
        )
    if batch % workers:
        raise ConfigError(
            f"train.global_batch_size must be a multiple of the {workers} workers that share it."
            f" Received {batch}. Type --set"
            f" train.global_batch_size={-(-batch // workers) * workers}."
        )
    steps, share = len(images) // batch, batch // workers
    return np.arange(steps * batch).reshape(steps, batch)[
        start:, index * share : (index + 1) * share
    ]


def _only(records: Any, mine: Any, batch: int, turn: tuple[int, int]) -> Any:
    """Leave out the records of other workers, of batches before the first and of other services' turns.

    They are read, but neither parsed nor decoded.

    Args:
        records: of the whole epoch, in its order.
        mine: places of this worker, int64 [batches, share].
        batch: images a step.
        turn: whose turn it is among services that take batches in turns, and of how many.
    """
    if mine.size == 0:
        return records.take(0)
    first, share = int(mine[0, 0]), mine.shape[1]
    records = records.skip(first)
    if share == batch and turn == (0, 1):
        return records

    def own(place: Any, _record: Any) -> Any:
        return (place % batch < share) & (place // batch % turn[1] == turn[0])

    return records.enumerate().filter(own).map(lambda _, record: record)


def iterate_training_epochs(
    images: LoadedSplit,
    config: TrainConfig,
    *,
    image_size: int,
    first: int,
    start: int = 0,
    worker: tuple[int, int] = (0, 1),
    opened: Callable[[Any], Iterator[Any]] = iter,
) -> Iterator[Iterator[Any]]:
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
        worker: which share of each batch, and of how many.
        opened: makes an iterator of a tf.data.Dataset, such as one that is spread over devices.
    """
    together = (
        1 if images.pixels is None else _epochs_together(len(images), config.global_batch_size)
    )

    def ready(epoch: int, epochs: int) -> Iterator[Any]:
        begin = start if epoch == first else 0
        batches = make_training_batches(
            images,
            config,
            image_size=image_size,
            epoch=epoch,
            start=begin,
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
        ahead = ((background.submit(ready, *group), group[1]) for group in groups)
        upcoming = next(ahead, None)
        while upcoming:
            (batches, epochs), upcoming = (upcoming[0].result(), upcoming[1]), next(ahead, None)
            yield from itertools.repeat(batches, epochs)


def _epochs_together(images: int, batch_size: int) -> int:
    """Return how many epochs one iterator holds.

    Some thousand steps, at most what is drawn for a quarter of a million images.
    """
    return max(
        1,
        min(_STEPS_TOGETHER // max(1, images // batch_size), _IMAGES_TOGETHER // max(1, images)),
    )
