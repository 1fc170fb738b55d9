"""One split of a prepared dataset: in memory where it fits, else mapped or streamed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf
from pyarrow import parquet

from pipeline.artifacts import DatasetArtifact
from pipeline.data.decoding import DecodingHints, compile_decoding
from pipeline.data.shards import (
    RecordReader,
    as_written,
    count_processors,
    index_path,
    make_deterministic_options,
    open_records,
)
from pipeline.errors import ConfigError, DatasetError
from pipeline.image_size import ImageSize, sides_of, write_image_size

if TYPE_CHECKING:
    from pipeline.arrays import Images, Integers, Labels, Tensor

# Loading takes twice a split's size for a moment, and training needs room, too.
_MEMORY_FRACTION = 0.25
# Batches that are ready ahead, of training and evaluation alike.
PREFETCHED_BATCHES = 2


@dataclass(frozen=True)
class LoadedSplit:
    """One split, ready to be cut into batches.

    `labels` are int32 [images] in [0, classes), `keys` the images' names, both in stored order.
    `pixels` is uint8 [images, short_side, short_side, 3] in [0, 255]: an array in memory, or one
    that is mapped from the disk, or None where batches are decoded from the shards each time.
    `groups`, int64 [images], is the same number for images that belong together: duplicates, and
    those of one group of a manifest. None where each image stands alone.
    """

    dataset: DatasetArtifact
    split: str
    labels: Labels
    keys: tuple[str, ...]
    pixels: Images | None
    groups: Integers | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @property
    def location(self) -> str:
        """Where batches come from, for people."""
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


def load_split(
    dataset: DatasetArtifact, split: str, *, in_memory: bool | None = None
) -> LoadedSplit:
    """Return a split, decoded and resized in memory if it takes less than a quarter of it.

    A larger one is mapped from the disk where ingest stored its pixels, and decoded from the shards
    in every epoch where it did not.

    Args:
        dataset: the record of the ingest stage.
        split: `train`, `validation` or `test`.
        in_memory: decides instead of the machine's memory.

    Raises:
        DatasetError: the shards or the index are missing or do not belong together.
    """
    try:
        index = parquet.read_table(index_path(dataset.directory, split), columns=["key", "label"])
    except (OSError, ValueError) as error:
        raise _damaged_error(dataset, f"{error}") from error
    labels = index["label"].to_numpy()
    size = len(labels) * dataset.short_side**2 * 3
    keep = size <= _MEMORY_FRACTION * usable_memory_bytes() if in_memory is None else in_memory
    keys = tuple(index["key"].to_pylist())
    images = LoadedSplit(dataset, split, labels, keys, None, _read_groups(dataset, keys))
    if dataset.store == "pixels":
        stored = _map_stored_pixels(images)
        return replace(images, pixels=np.array(stored) if keep else stored)
    return replace(images, pixels=_decode_pixels(images)) if keep else images


def _read_groups(dataset: DatasetArtifact, keys: Sequence[str]) -> Integers | None:
    """Return the number of each image's group, int64 [images]; None if none is in a group."""
    if not dataset.groups_sha256:
        return None
    try:
        table = parquet.read_table(dataset.directory / dataset.GROUPS_FILE)
    except (OSError, ValueError) as error:
        raise _damaged_error(dataset, f"{error}") from error
    numbers = dict(zip(table["key"].to_pylist(), table["group"].to_pylist(), strict=True))
    # An image in no group has a number of its own, below 0.
    groups = np.asarray([numbers.get(key, -1 - index) for index, key in enumerate(keys)], np.int64)
    return groups if (groups >= 0).any() else None


def _map_stored_pixels(images: LoadedSplit) -> Images:
    """Return the pixels that ingest stored, mapped from the disk."""
    path, side = images.dataset.pixels_path(images.split), images.dataset.short_side
    try:
        stored: Images = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise _damaged_error(images.dataset, str(error)) from error
    if stored.shape != (len(images), side, side, 3) or stored.dtype != np.uint8:
        raise _damaged_error(images.dataset, f"{path.name} holds {stored.dtype} {stored.shape}")
    return stored


def _damaged_error(dataset: DatasetArtifact, reason: str) -> DatasetError:
    return DatasetError(
        f"The prepared dataset in {dataset.shards} is damaged ({reason:.200})",
        expected="the files that ingest wrote",
        hint="Type the same command with --rerun ingest",
    )


def usable_memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or its container's limit.

    All of it, not what is free at the moment: the choice that depends on it must be the same in the
    next run.
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.exists() else "max"
    return min(machine, int(text)) if text.isdecimal() else machine


def open_split_records(images: LoadedSplit) -> RecordReader:
    """Open the shards of a split.

    Raises:
        DatasetError: they are missing or damaged.
    """
    dataset = images.dataset
    try:
        return open_records(
            dataset.shards, dataset.reads[images.split], dataset.image_key, dataset.label_key
        )
    except (OSError, ValueError) as error:
        raise _damaged_error(dataset, str(error)) from error


def decode_square(dataset: DatasetArtifact, example: dict[str, Tensor]) -> Tensor:
    """Return an image as uint8 [short_side, short_side, 3] in [0, 255]."""
    decode = compile_decoding(dataset.short_side, make_hints(dataset), dataset.fit)
    return decode(example["image"], tf.cast(example["orientation"], tf.int32))


def make_hints(dataset: DatasetArtifact) -> DecodingHints:
    """Return what is known of every image of a dataset."""
    if dataset.fit == "pad":  # the longest of the longer sides is not recorded
        return DecodingHints(dataset.upright_jpeg)
    return DecodingHints(dataset.upright_jpeg, dataset.largest_short_side)


def _decode_pixels(images: LoadedSplit) -> Images:
    """Return every image of a split, uint8 [images, short_side, short_side, 3], in memory."""
    reader = open_split_records(images)
    decoded = reader.read(None).map(
        as_written(lambda record: decode_square(images.dataset, reader.parse(record))),
        num_parallel_calls=2 * count_processors(),
    )
    with tf.device("CPU:0"):
        try:
            pixels = (
                decoded.batch(max(1, len(images)))
                .with_options(make_deterministic_options())
                .get_single_element()
            )
        except tf.errors.OpError as error:
            raise _damaged_error(images.dataset, error.message) from error
    if len(pixels) != len(images):
        raise _damaged_error(images.dataset, f"{len(pixels)} images instead of {len(images)}")
    return pixels.numpy()


def read_encoded_images(images: LoadedSplit) -> Iterator[tuple[bytes, int, int]]:
    """Yield each image's file, not decoded, its EXIF orientation in 1..8 and its label.

    In stored order.
    """
    reader = open_split_records(images)
    for record in reader.read(None):
        example = reader.parse(record)
        yield example["image"].numpy(), int(example["orientation"]), int(example["label"])


def measure_surplus(images: LoadedSplit, image_size: ImageSize) -> tuple[int, int]:
    """Return the pixels by which a stored height and width are longer than the crop's.

    Raises:
        ConfigError: the images are smaller than the crop.
    """
    stored, sides = images.dataset.short_side, sides_of(image_size)
    if max(sides) > stored:
        raise ConfigError(
            "model.image_size is larger than the prepared images",
            expected=f"at most {stored}",
            received=str(write_image_size(image_size)),
            hint=f"Type --set data.short_side={max(sides)} and run ingest again",
        )
    return stored - sides[0], stored - sides[1]
