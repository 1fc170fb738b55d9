"""From shards to batches: the images of a split, in memory where they fit, and what is cut from them."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from pyarrow import parquet

from pipeline.artifacts import DatasetArtifact
from pipeline.config.train import TrainConfig
from pipeline.data.augment import draws
from pipeline.data.decoding import Known, decode_and_resize, decode_window, mirrored_where, resized
from pipeline.data.input_service import from_services
from pipeline.data.source import fixed_options, read_records
from pipeline.errors import ConfigError, DatasetError
from pipeline.random_streams import RandomStream, open_stream

# Loading takes twice a split's size for a moment, and training needs room, too.
_MEMORY_SHARE = 0.25
# Encoded images that are shuffled at a time when a split is streamed, a quarter of a GB of
# ImageNet's; shards are shuffled, too.
_SHUFFLE_BUFFER = 2048
_PREFETCHED_BATCHES = 2
_MAX_TOGETHER, _BYTES_TOGETHER = 64, 2**20
_STEPS_TOGETHER, _IMAGES_TOGETHER = 4096, 2**18
_PIXEL = np.dtype("V3")
View = Literal["center", "ten"]


@dataclass(frozen=True)
class LoadedSplit:
    """One split, ready to be cut into batches.

    `labels` are int32 [images] in [0, classes), `keys` the images' names, both in stored order.
    `pixels` is uint8 [images, short_side, short_side, 3] in [0, 255]: an array in memory, or one
    that is mapped from the disk, or None where batches are decoded from the shards each time.
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
            return (
                f"decoded from shards in every epoch, {size} do not fit into a quarter of the"
                " memory"
            )
        return (
            f"mapped from the disk, {size}"
            if isinstance(self.pixels, np.memmap)
            else f"in memory, {size}"
        )


def index_path(directory: Path, split: str) -> Path:
    """Return the Parquet file that lists a split's `key`, `label` and `sha256` in stored order."""
    return directory / "index" / f"{split}.parquet"


def load_split(
    dataset: DatasetArtifact, split: str, *, in_memory: bool | None = None
) -> LoadedSplit:
    """Return a split of a prepared dataset, decoded and resized in memory if it takes less than a quarter of the machine's.

    A larger one is mapped from the disk where ingest stored its pixels, and decoded from the shards
    in every epoch where it did not.

    Args:
        dataset: the record of the ingest stage.
        split: `train`, `validation` or `test`.
        in_memory: decides instead of the machine's memory.

    Raises:
        DatasetError: the shards or the index are gone or do not belong together.
    """
    try:
        index = parquet.read_table(index_path(dataset.directory, split), columns=["key", "label"])
    except (OSError, ValueError) as error:
        raise _damaged(dataset, f"{error}") from error
    labels = index["label"].to_numpy()
    size = len(labels) * dataset.short_side**2 * 3
    keep = size <= _MEMORY_SHARE * memory_bytes() if in_memory is None else in_memory
    images = LoadedSplit(dataset, split, labels, tuple(index["key"].to_pylist()), None)
    if dataset.store == "pixels":
        stored = _stored_pixels(images)
        return replace(images, pixels=np.array(stored) if keep else stored)
    return replace(images, pixels=_pixels(images)) if keep else images


def _stored_pixels(images: LoadedSplit) -> Any:
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
        f"The prepared dataset in {dataset.shards} is damaged ({reason:.200}). Expected the files"
        " that ingest wrote. Type the same command with --rerun ingest."
    )


def memory_bytes() -> int:
    """Return the memory this process may use: the machine's, or its container's limit.

    All of it, not what is free at the moment: the choice that depends on it must be the same in the
    next run.
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.exists() else "max"
    return min(machine, int(text)) if text.isdecimal() else machine


def _processors() -> int:
    return len(os.sched_getaffinity(0))


def _records(
    images: LoadedSplit,
) -> tuple[Callable[[int | None], Any], Callable[[Any], dict[str, Any]]]:
    """Return what `read_records` does for a split."""
    dataset = images.dataset
    try:
        return read_records(
            dataset.shards, dataset.reads[images.split], dataset.image_key, dataset.label_key
        )
    except (OSError, ValueError) as error:
        raise _damaged(dataset, str(error)) from error


def _square(dataset: DatasetArtifact, example: dict[str, Any]) -> Any:
    """Return an image as uint8 [short_side, short_side, 3] in [0, 255]."""
    return decode_and_resize(
        example["image"], dataset.short_side, example["orientation"], _known(dataset)
    )


def _known(dataset: DatasetArtifact) -> Known:
    return Known(dataset.upright_jpeg, dataset.largest_short_side)


def _pixels(images: LoadedSplit) -> Any:
    """Return every image of a split as one uint8 array [images, short_side, short_side, 3] in memory."""
    records, parse = _records(images)
    decoded = records(None).map(
        lambda record: _square(images.dataset, parse(record)), num_parallel_calls=2 * _processors()
    )
    with tf.device("CPU:0"):
        try:
            pixels = (
                decoded.batch(max(1, len(images)))
                .with_options(fixed_options())
                .get_single_element()
            )
        except tf.errors.OpError as error:
            raise _damaged(images.dataset, error.message) from error
    if len(pixels) != len(images):
        raise _damaged(images.dataset, f"{len(pixels)} images instead of {len(images)}")
    return pixels.numpy()


@dataclass(frozen=True)
class Cuts:
    """What is cut from each image of an epoch.

    Int32 top and left corners [images], and bool mirrored [images].
    """

    top: Any
    left: Any
    mirrored: Any


def center_cuts(count: int, surplus: int) -> Cuts:
    """Return the central crop for every image.

    Args:
        count: images.
        surplus: how many pixels a side is longer than the crop.
    """
    corner = np.full(count, surplus // 2, np.int32)
    return Cuts(corner, corner, np.zeros(count, np.bool_))


def random_cuts(
    count: int, surplus: int, *, seed: int, epoch: int, random_crop: bool, flip: bool
) -> Cuts:
    """Return a crop and a mirroring for each place in an epoch's order.

    They depend on (seed, epoch, place) alone.

    Drawn all at once, ahead of the input threads, so that no number of them changes what is drawn.

    Args:
        count: images.
        surplus: how many pixels a side is longer than the crop.
        seed: of the training.
        epoch: counted from 0.
        random_crop: cut at random places; else at the center.
        flip: mirror one image in two.
    """
    center = center_cuts(count, surplus)
    # An own stream for each purpose: switching one off does not change the others.
    tops, lefts, coins = (
        open_stream(stream, seed=seed, epoch=epoch)
        for stream in (RandomStream.CROP_TOP, RandomStream.CROP_LEFT, RandomStream.MIRRORING)
    )
    return Cuts(
        tops.integers(0, surplus, count, np.int32, endpoint=True) if random_crop else center.top,
        lefts.integers(0, surplus, count, np.int32, endpoint=True) if random_crop else center.left,
        coins.random(count) < 0.5 if flip else center.mirrored,
    )


def random_windows(count: int, *, seed: int, epoch: int) -> tuple[Any, Any]:
    """Return what decides the window of a resized crop for each place in an epoch's order.

    That is float32 [count, 4, 2], four tries of height and width in units of the root of the
    image's area: a share of the area in [0.08, 1) and a width / height between 3/4 and 4/3; and
    float32 [count, 2], where the window lies, in [0, 1) of the way it can be moved down and to the
    right. The ranges are those of Szegedy and others, 2014, section 6.

    Args:
        count: images.
        seed: of the training.
        epoch: counted from 0.
    """
    rng = open_stream(RandomStream.RESIZED_CROP, seed=seed, epoch=epoch)
    area, aspect = (
        rng.uniform(0.08, 1, (count, 4)),
        np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), (count, 4))),
    )
    shapes = np.sqrt(np.stack([area / aspect, area * aspect], axis=2))
    return shapes.astype(np.float32), rng.random((count, 2), np.float32)


def window_in(shapes: Any, corner: Any, sides: Any) -> Any:
    """Return the window of an image, int32 [..., 4]: top, left, height and width, inside the image.

    The first try that fits is taken; if none does, the largest square.

    Args:
        shapes: float32 [..., 4, 2], as `random_windows` gives them.
        corner: float32 [..., 2], likewise.
        sides: int [2], height and width of the image.
    """
    whole = tf.cast(sides, tf.float32)
    tries = tf.maximum(tf.round(shapes * tf.sqrt(tf.reduce_prod(whole))), 1)
    square = tf.zeros_like(tries[..., :1, :]) + tf.reduce_min(whole)
    tries = tf.concat([tries, square], axis=-2)
    first = tf.argmax(tf.reduce_all(tries <= whole, axis=-1), axis=-1)
    size = tf.gather(tries, first, axis=-2, batch_dims=tries.shape.rank - 2)
    start = tf.minimum(tf.floor(corner * (whole - size + 1)), whole - size)
    return tf.cast(tf.concat([start, size], axis=-1), tf.int32)


def cut(pixels: Any, places: Any, top: Any, left: Any, mirrored: Any, size: int) -> Any:
    """Copy a square out of some images and mirror some; no pixel is changed.

    In NumPy, which copies as fast as memory allows and holds no lock meanwhile; TensorFlow's
    gathering takes seven times as long.

    Args:
        pixels: uint8 [images, side, side, 3] in [0, 255].
        places: int [batch], which images.
        top: int [batch] in [0, side - size].
        left: int [batch] in [0, side - size].
        mirrored: bool [batch].
        size: height and width of the result.

    Returns:
        uint8 [batch, size, size, 3] in [0, 255].
    """
    whole = pixels.view(_PIXEL)[..., 0]
    if size == whole.shape[1]:  # nothing is cut off
        squares = whole[places]
        squares[mirrored] = squares[mirrored, :, ::-1]
        return squares.view(np.uint8).reshape(*squares.shape, 3)
    squares = np.empty((len(places), size, size), _PIXEL)
    for square, place, y, x, turned in zip(
        squares, places.tolist(), top.tolist(), left.tolist(), mirrored.tolist(), strict=True
    ):
        square[:, :: -1 if turned else 1] = whole[place, y : y + size, x : x + size]
    return squares.view(np.uint8).reshape(*squares.shape, 3)


def training_batches(
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
    """Return one epoch as a tf.data.Dataset of batches for `augment.augmented`.

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
    calls = parallel_calls or 2 * _processors()
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
        return _with_draws(_batches_of_pixels(images, order, tuple(how), image_size, calls), drawn)
    plan = _Plan(images, config, image_size, epoch)

    def batches_of(places: Any, turn: tuple[int, int] = (0, 1)) -> Any:
        (_, *how), drawn = plan.of(places)
        records, parse = _records(images)
        shuffled = records(plan.mixed).shuffle(
            min(_SHUFFLE_BUFFER, len(images)), seed=plan.mixed, reshuffle_each_iteration=False
        )
        own = _only(shuffled, mine, config.global_batch_size, turn)
        return _with_draws(
            _batches_of_records(images, own, parse, tuple(how), image_size, calls), drawn
        )

    services = [address for address in config.data_services.split(",") if address]
    return from_services(services, mine, batches_of) if services else batches_of(mine)


class _Plan:
    """What an epoch does to each place of its order.

    Which image stands there, how it is cut, and what is drawn for it.
    """

    def __init__(self, images: LoadedSplit, config: TrainConfig, image_size: int, epoch: int):
        count, seed = len(images), config.seed
        cuts = random_cuts(
            count,
            _surplus(images, image_size),
            seed=seed,
            epoch=epoch,
            random_crop=config.crop == "random",
            flip=config.flip,
        )
        corners = (
            random_windows(count, seed=seed, epoch=epoch)
            if config.crop == "resized"
            else (cuts.top, cuts.left)
        )
        rng = open_stream(RandomStream.IMAGE_ORDER, seed=seed, epoch=epoch)
        # A streamed split has no order of its own: records come as they are shuffled.
        order = rng.permutation(count) if images.pixels is not None else np.arange(count)
        self.mixed = int(rng.integers(2**31))
        self._arrays = (order, *corners, cuts.mirrored)
        self._drawn = draws(config, images.dataset, size=image_size, epoch=epoch)

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
    return batches.prefetch(_PREFETCHED_BATCHES).with_options(fixed_options())


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


def training_epochs(
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
        config: as `training_batches` takes it; also the number of epochs.
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
        batches = training_batches(
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


def evaluation_batches(
    images: LoadedSplit,
    *,
    image_size: int,
    batch_size: int,
    view: View = "center",
    worker: tuple[int, int] = (0, 1),
    parallel_calls: int | None = None,
) -> Any:
    """Return a split as a tf.data.Dataset of (uint8 [batch, image_size, image_size, 3] in [0, 255], int32 [batch]).

    Crops in stored order, every image once; the last batch may be smaller.

    Args:
        images: the split.
        image_size: height and width of the crops.
        batch_size: images a batch.
        view: `center`, the central crop; or `ten`, the paper's ten (section 4.1), pixels [batch,
            10, ...]: the four corners and the center, then the same mirrored.
        worker: whose batches, and of how many that take them in turns.
        parallel_calls: images or batches that are prepared at a time; the result does not depend on
            it.

    Raises:
        ConfigError: the images are smaller than the crop.
    """
    surplus, calls, (index, workers) = (
        _surplus(images, image_size),
        parallel_calls or 2 * _processors(),
        worker,
    )
    if images.pixels is not None:
        slices = (
            tf.data.Dataset.from_tensor_slices((np.arange(len(images)), images.labels))
            .batch(batch_size)
            .shard(workers, index)
        )
        batches = slices.map(
            lambda places, labels: (_rows_at(images, places), labels), num_parallel_calls=calls
        )
    else:
        records, parse = _records(images)
        own = records(None)
        if workers > 1:  # before anything is decoded
            own = (
                own.enumerate()
                .filter(lambda place, _: place // batch_size % workers == index)
                .map(lambda _, record: record)
            )
        decoded = own.map(
            lambda record: _square(images.dataset, parse(record)), num_parallel_calls=calls
        ).batch(batch_size)
        labels = (
            tf.data.Dataset.from_tensor_slices(images.labels)
            .batch(batch_size)
            .shard(workers, index)
        )
        batches = tf.data.Dataset.zip(decoded, labels)

    def viewed(squares: Any, labels: Any) -> tuple[Any, Any]:
        corners = (
            (0, 0),
            (0, surplus),
            (surplus, 0),
            (surplus, surplus),
            (surplus // 2, surplus // 2),
        )
        crops = [
            squares[:, top : top + image_size, left : left + image_size] for top, left in corners
        ]
        if view == "center":
            return crops[-1], labels
        five = tf.stack(crops, axis=1)
        return tf.concat([five, tf.reverse(five, [3])], axis=1), labels

    return (
        batches.map(viewed, num_parallel_calls=calls)
        .prefetch(_PREFETCHED_BATCHES)
        .with_options(fixed_options())
    )


def scoring_batches(
    images: LoadedSplit, *, image_size: int, batch_size: int, worker: tuple[int, int], full: bool
) -> Any:
    """Return the centers of `evaluation_batches` as dictionaries of `pixels` and `labels`.

    Args:
        images: the split.
        image_size: height and width of the crops.
        batch_size: images a batch.
        worker: whose batches, and of how many.
        full: fill the last batch up with black images of label -1, so that devices have equal
            shares.
    """

    def named(pixels: Any, labels: Any) -> dict[str, Any]:
        if not full:
            return {"pixels": pixels, "labels": labels}
        missing = batch_size - tf.shape(labels)[0]
        pixels = tf.pad(pixels, [(0, missing), (0, 0), (0, 0), (0, 0)])
        labels = tf.pad(labels, [(0, missing)], constant_values=-1)
        return {
            "pixels": tf.ensure_shape(pixels, (batch_size, image_size, image_size, 3)),
            "labels": tf.ensure_shape(labels, (batch_size,)),
        }

    return evaluation_batches(
        images, image_size=image_size, batch_size=batch_size, worker=worker
    ).map(named)


def encoded_images(images: LoadedSplit) -> Iterator[tuple[bytes, int, int]]:
    """Yield each image's file, its EXIF orientation in 1..8 and its label, in stored order, none of them decoded."""
    records, parse = _records(images)
    for record in records(None):
        example = parse(record)
        yield example["image"].numpy(), int(example["orientation"]), int(example["label"])


def input_stages(
    images: LoadedSplit, config: TrainConfig, image_size: int
) -> list[tuple[str, Callable[[], Any]]]:
    """Return what the images of a training batch pass through, from the disk on, each with a function that tries a bit of it."""

    def batch(**changes: str) -> Any:
        return next(
            iter(
                training_batches(
                    images, config.model_copy(update=changes), image_size=image_size, epoch=0
                )
            )
        )

    whole = ("cutting and changing the images of a batch", batch)
    if isinstance(images.pixels, np.memmap):
        return [
            (
                f"reading the prepared pixels {images.dataset.pixels_path(images.split)}",
                images.pixels[-1].sum,
            ),
            whole,
        ]
    if images.pixels is not None:
        return [whole]
    records, parse = _records(images)
    stages: list[tuple[str, Callable[[], Any]]] = [
        (f"reading the shards in {images.dataset.shards}", lambda: next(iter(records(None)))),
        (
            "decoding an image",
            lambda: next(
                iter(records(None).map(lambda record: _square(images.dataset, parse(record))))
            ),
        ),
        (whole[0], functools.partial(batch, data_services="")),
    ]
    services = [address for address in config.data_services.split(",") if address]
    return stages + [
        (f"the input service {address}", functools.partial(batch, data_services=address))
        for address in services
    ]


def _surplus(images: LoadedSplit, image_size: int) -> int:
    """Return how many pixels a stored side is longer than the crop."""
    surplus = images.dataset.short_side - image_size
    if surplus < 0:
        raise ConfigError(
            "model.image_size is larger than the prepared images. Expected at most"
            f" {images.dataset.short_side}. Received {image_size}. Type --set"
            f" data.short_side={image_size} and run ingest again."
        )
    return surplus


def _rows_at(images: LoadedSplit, places: Any) -> Any:
    """Return the images at some places, uint8 [places, side, side, 3], from memory or from the disk."""
    rows = tf.numpy_function(images.pixels.__getitem__, [places], tf.uint8, stateful=False)
    return tf.ensure_shape(rows, (None, *images.pixels.shape[1:]))


def _batches_of_pixels(
    images: LoadedSplit, order: Any, how: tuple[Any, ...], size: int, calls: int
) -> Any:
    """Cut batches from memory or from the disk.

    `how` belongs to the places of `order` [batches, batch], whatever it is.
    """
    side, batch = images.dataset.short_side, order.shape[1]

    def copied(*where: Any) -> Any:
        places, top, left, mirrored = (values.reshape(-1) for values in where)
        return cut(images.pixels, places, top, left, mirrored, size).reshape(
            *where[0].shape, size, size, 3
        )

    def squares(*where: Any) -> Any:
        return tf.ensure_shape(
            tf.numpy_function(copied, where, tf.uint8, stateful=False), (None, batch, size, size, 3)
        )

    def part(place: Any, inside: Any) -> Any:
        top, left, height, width = inside.tolist()
        return np.ascontiguousarray(images.pixels[place, top : top + height, left : left + width])

    def window(place: Any, shapes: Any, corner: Any, mirrored: Any) -> Any:
        copied = tf.numpy_function(
            part, [place, window_in(shapes, corner, (side, side))], tf.uint8, stateful=False
        )
        return mirrored_where(mirrored, resized(tf.ensure_shape(copied, (None, None, 3)), size))

    if len(how[0].shape) == 2:  # corners; copied batch by batch, as single images are soon done
        # Several small batches at a time: a call of Python costs as much as copying some hundred
        # kB.
        together = max(1, min(_MAX_TOGETHER, _BYTES_TOGETHER // (batch * size * size * 3)))
        slices = tf.data.Dataset.from_tensor_slices((images.labels[order], (order, *how))).batch(
            together
        )
        copies = slices.map(
            lambda labels, where: {"pixels": squares(*where), "labels": labels},
            num_parallel_calls=calls,
        )
        return (
            copies.unbatch()
            if together > 1
            else copies.map(lambda one: {name: values[0] for name, values in one.items()})
        )
    slices = tf.data.Dataset.from_tensor_slices(
        (images.labels[order.reshape(-1)], _flat(order, *how))
    )
    pairs = slices.map(
        lambda label, where: {"pixels": window(*where), "labels": label}, num_parallel_calls=calls
    )
    return pairs.batch(batch, drop_remainder=True)


def _flat(*arrays: Any) -> tuple[Any, ...]:
    """Return arrays [batches, batch, ...] as [batches * batch, ...]."""
    return tuple(array.reshape(-1, *array.shape[2:]) for array in arrays)


def _batches_of_records(
    images: LoadedSplit,
    records: Any,
    parse: Callable[..., Any],
    how: tuple[Any, ...],
    size: int,
    calls: int,
) -> Any:
    """Decode batches from shards.

    `how` belongs to the places of `records`, [batches, batch] whatever it is.
    """
    dataset = images.dataset

    def crop(example: dict[str, Any], top: Any, left: Any) -> Any:
        return tf.slice(_square(dataset, example), [top, left, 0], [size, size, 3])

    def window(example: dict[str, Any], shapes: Any, corner: Any) -> Any:
        def inside(sides: Any) -> Any:
            return window_in(shapes, corner, sides)

        return decode_window(
            example["image"], example["orientation"], inside, size, _known(dataset)
        )

    function = crop if len(how[0].shape) == 2 else window

    def one(record: Any, where: tuple[Any, ...]) -> dict[str, Any]:
        *place, mirrored = where
        example = parse(record)
        return {
            "pixels": mirrored_where(mirrored, function(example, *place)),
            "labels": tf.cast(example["label"], tf.int32),
        }

    places = tf.data.Dataset.from_tensor_slices(_flat(*how))
    batch = how[0].shape[1]
    return (
        tf.data.Dataset.zip(records, places)
        .map(one, num_parallel_calls=calls)
        .batch(batch, drop_remainder=True)
    )
