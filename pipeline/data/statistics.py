"""One pass over a prepared dataset: its statistics, its index, and a digest of its content."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import tensorflow as tf
from pyarrow import parquet

from pipeline.artifacts import digest_of
from pipeline.data.checked import IngestProgress
from pipeline.data.decoding import compile_decoding
from pipeline.data.fit import measure_cut_fraction
from pipeline.data.headers import detect_format, read_header_size
from pipeline.data.prepared import PreparedDataset
from pipeline.data.shards import (
    as_written,
    count_processors,
    index_path,
    make_deterministic_options,
    read_examples,
)
from pipeline.errors import DatasetError

if TYPE_CHECKING:
    from pipeline.arrays import Dataset, Floats, Image, Images, Integers, Tensor
    from pipeline.artifacts import Fit

RgbValues = tuple[float, float, float]
# Mean and covariance are known to a hundredth of a level after this many images; counts and digest
# cover all.
MEASURED_IMAGES = 20_000
EXAMPLE_CLASSES = 12
EXAMPLES_PER_CLASS = 8
SAMPLE_IMAGES = 32
_ROWS_PER_WRITE, _IMAGES_PER_REPORT = 4096, 256
# Key, label, SHA-256, height and width of an image.
IndexRow = tuple[str, int, bytes, int, int]
_INDEX_SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "label": pa.int32(),
        "sha256": pa.binary(32),
        "height": pa.int32(),
        "width": pa.int32(),
    }
)


@dataclass(frozen=True)
class DatasetStatistics:
    """The findings of one pass.

    `heights` and `widths` are those of the files, in pixels. `mean_image` is float32 [short_side,
    short_side, 3] in [0, 255]. `examples` holds training images, uint8 [short_side, short_side, 3],
    by class id. Contents are counted by their SHA-256. `upright_jpeg`: every image is a JPEG that
    need not be turned. `cut_fraction`: of the training images, as `measure_cut_fraction` says.
    """

    digest: str
    class_counts: Mapping[str, tuple[int, ...]]
    channel_mean: RgbValues
    channel_covariance: tuple[RgbValues, RgbValues, RgbValues]
    mean_image: Floats
    heights: Integers
    widths: Integers
    examples: Mapping[int, list[Image]]
    contents_in_several_splits: int
    contents_with_several_labels: int
    upright_jpeg: bool
    cut_fraction: float


@dataclass
class _Tally:
    """The counts and sums of the pass so far, some 60 bytes per image.

    `contents` holds 16 bytes of each image's SHA-256, `groups` label * splits + split. `image_sum`
    is int64 [side, side, 3] and `products` int64 [3, 3], the sum over pixels of channels' products.
    """

    counts: dict[str, list[int]]
    image_sum: Integers
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    done: int = 0
    heights: array[int] = field(default_factory=lambda: array("q"))
    widths: array[int] = field(default_factory=lambda: array("q"))
    contents: bytearray = field(default_factory=bytearray)
    groups: array[int] = field(default_factory=lambda: array("q"))
    products: Integers = field(default_factory=lambda: np.zeros((3, 3), np.int64))
    pixels: int = 0
    upright_jpeg: bool = True
    examples: dict[int, list[Image]] = field(default_factory=lambda: defaultdict(list))


def measure_dataset(
    prepared: PreparedDataset,
    short_side: int,
    directory: Path,
    progress: IngestProgress,
    *,
    fit: Fit = "crop",
    store_pixels: bool = False,
) -> DatasetStatistics:
    """Read every image's bytes once, and write each split's index into `directory`.

    The index holds keys, labels, SHA-256 and sizes. The numbers do not depend on the number of
    threads: pixels are summed as integers.

    Args:
        prepared: the dataset in shards.
        short_side: pixels are counted after the resize that training uses, of the first 20,000
            training images.
        directory: the stage's own folder.
        progress: called with images done, images in all and what is being done.
        fit: how training makes squares of images.
        store_pixels: also write every image after the resize into `pixels/<split>.npy`.

    Raises:
        DatasetError: an image has no valid label.
    """
    splits = {
        split: _add_pixels(prepared, split, short_side, fit, store_pixels)
        for split in prepared.reads
    }
    sizes = {split: int(examples.cardinality()) for split, examples in splits.items()}
    tally = _Tally(
        {split: [0] * len(prepared.class_names) for split in splits},
        np.zeros((short_side, short_side, 3), np.int64),
    )
    index_path(directory, "train").parent.mkdir(exist_ok=True)
    for split, examples in splits.items():
        stored = (
            _create_pixels_file(directory, split, (sizes[split], short_side, short_side, 3))
            if store_pixels
            else None
        )
        _count_split(
            tally,
            split,
            examples,
            stored,
            index_path(directory, split),
            lambda: progress(tally.done, sum(sizes.values()), "counting"),
        )
        if stored is not None:
            stored.flush()
    return _summarize_tally(tally, short_side)


def _summarize_tally(tally: _Tally, short_side: int) -> DatasetStatistics:
    measured = tally.pixels // short_side**2
    sums, groups = tally.image_sum.sum((0, 1)).tolist(), np.asarray(tally.groups)
    heights, widths = np.asarray(tally.heights), np.asarray(tally.widths)
    in_training = groups % len(tally.counts) == list(tally.counts).index("train")
    return DatasetStatistics(
        digest=tally.digest.hexdigest(),
        class_counts={split: tuple(counts) for split, counts in tally.counts.items()},
        channel_mean=_divide_sums(sums, tally.pixels),
        channel_covariance=_compute_covariance(sums, tally.products.tolist(), tally.pixels),
        mean_image=(tally.image_sum / measured).astype(np.float32),
        heights=heights,
        widths=widths,
        examples=dict(tally.examples),
        contents_in_several_splits=_count_contents(tally, groups % len(tally.counts)),
        contents_with_several_labels=_count_contents(tally, groups // len(tally.counts)),
        upright_jpeg=tally.upright_jpeg,
        cut_fraction=measure_cut_fraction(heights[in_training], widths[in_training]),
    )


def write_sample(examples: Mapping[int, list[Image]], directory: Path) -> None:
    """Write sample.npz, for the checks of the network: up to 32 training images.

    One of each class in turn.
    """
    turns = [
        (label, images[turn])
        for turn in range(EXAMPLES_PER_CLASS)
        for label, images in examples.items()
        if turn < len(images)
    ]
    labels, pixels = zip(*turns[:SAMPLE_IMAGES], strict=True)
    np.savez(directory / "sample.npz", pixels=np.stack(pixels), labels=np.asarray(labels, np.int32))


def write_attributes(
    names: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], path: Path
) -> None:
    """Write the other columns of a manifest: a Parquet file of `key` and text columns.

    Args:
        names: of the columns.
        rows: each image's key and its cells.
        path: the file.
    """
    schema = pa.schema([("key", pa.string()), *((name, pa.string()) for name in names)])
    with parquet.ParquetWriter(path, schema) as writer:
        every = iter(rows)
        while window := list(itertools.islice(every, _ROWS_PER_WRITE)):
            columns = zip(*((key, *cells) for key, cells in window), strict=True)
            writer.write_batch(
                pa.record_batch(
                    [pa.array(column, pa.string()) for column in columns], schema=schema
                )
            )


def write_groups(groups: Mapping[str, int], path: Path) -> str:
    """Write which images belong together as `key` and `group`; return a SHA-256 of it.

    Nothing is written, and an empty text returned, where there are no groups.
    """
    if not groups:
        return ""
    keys, numbers = list(groups), list(groups.values())
    parquet.write_table(
        pa.table({"key": pa.array(keys, pa.string()), "group": pa.array(numbers, pa.int32())}), path
    )
    return digest_of(sorted(groups.items()))


def _add_pixels(
    prepared: PreparedDataset, split: str, short_side: int, fit: Fit, every: bool
) -> Dataset:
    """Return a split's examples with `pixels` uint8 [side, side, 3] and `products` int64 [3, 3].

    Pixels are empty where none are needed: in images that are not measured, unless `every`.
    """
    limit = MEASURED_IMAGES if split == "train" else 0
    compiled = compile_decoding(short_side, fit=fit)

    def add(index: Tensor, example: dict[str, Tensor]) -> dict[str, Tensor]:
        def decode() -> Tensor:
            return compiled(example["image"], tf.cast(example["orientation"], tf.int32))

        nothing = tf.zeros((0, 0, 3), tf.uint8)
        pixels = decode() if every else tf.cond(index < limit, decode, lambda: nothing)
        return {**example, "pixels": pixels, "products": _multiply_channels(pixels)}

    examples = read_examples(
        prepared.builder_directory, prepared.reads[split], prepared.image_key, prepared.label_key
    )
    return (
        examples.enumerate()
        .map(as_written(add), num_parallel_calls=count_processors())
        .prefetch(64)
        .with_options(make_deterministic_options())
    )


def _multiply_channels(image: Tensor) -> Tensor:
    """Return int64 [3, 3]: the sum over the pixels of each product of two channels."""
    # float64 holds these integers exactly, and multiplies matrices much faster than int64.
    values = tf.cast(tf.reshape(image, (-1, 3)), tf.float64)
    return tf.cast(tf.matmul(values, values, transpose_a=True), tf.int64)


def _create_pixels_file(
    directory: Path, split: str, shape: tuple[int, ...]
) -> np.memmap[Any, np.dtype[np.uint8]]:
    """Return a new file of uint8 pixels, mapped into memory to be written like an array."""
    path = directory / "pixels" / f"{split}.npy"
    path.parent.mkdir(exist_ok=True)
    stored = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    with path.open("r+b") as file:
        # A full disk is an error now, and not a crash when a page is written.
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return stored


def _count_split(
    tally: _Tally,
    split: str,
    examples: Dataset,
    stored: Images | None,
    index: Path,
    progress: Callable[[], None],
) -> None:
    """Add one split to the tally; write its index, and its pixels where they are stored."""
    with parquet.ParquetWriter(index, _INDEX_SCHEMA) as writer:
        rows: list[IndexRow] = []
        for position, example in enumerate(examples.as_numpy_iterator()):
            label, key = int(example["label"]), example["key"].decode("utf-8", "backslashreplace")
            _require_class(label, key, split, len(tally.counts[split]))
            sha256 = hashlib.sha256(example["image"])
            if stored is not None:
                stored[position] = example["pixels"]
            _count_image(tally, split, label, sha256.digest(), example)
            rows.append((key, label, sha256.digest(), tally.heights[-1], tally.widths[-1]))
            tally.digest.update(
                json.dumps([split, key, label, sha256.hexdigest()]).encode() + b"\n"
            )
            if split == "train":
                _count_pixels(tally, position, label, example)
            if tally.done % _IMAGES_PER_REPORT == 0:
                progress()
            if len(rows) == _ROWS_PER_WRITE:
                writer.write_batch(_make_record_batch(rows))
                rows.clear()
        writer.write_batch(_make_record_batch(rows))
    progress()


def _make_record_batch(rows: Sequence[IndexRow]) -> pa.RecordBatch:
    """Return rows of the index as Arrow holds them."""
    columns = zip(*rows, strict=True) if rows else ([],) * len(_INDEX_SCHEMA)
    return pa.record_batch(
        [pa.array(column, kind) for column, kind in zip(columns, _INDEX_SCHEMA.types, strict=True)],
        schema=_INDEX_SCHEMA,
    )


def _require_class(label: int, key: str, split: str, classes: int) -> None:
    if not 0 <= label < classes:
        raise DatasetError(
            f"The image {key!r} of the {split} split has the label {label}",
            expected=f"a class id from 0 to {classes - 1}",
            hint=(
                "A split without labels cannot be used: make a manifest or folder of labeled images"
            ),
        )


def _count_image(
    tally: _Tally, split: str, label: int, sha256: bytes, example: Mapping[str, Any]
) -> None:
    sides = read_header_size(example["image"])
    # EXIF: from 5 on the image lies on its side.
    height, width = sides if example["orientation"] < 5 else sides[::-1]
    tally.upright_jpeg &= bool(
        detect_format(example["image"]) == "jpeg" and example["orientation"] == 1
    )
    tally.heights.append(height)
    tally.widths.append(width)
    tally.contents += sha256[:16]
    tally.groups.append(label * len(tally.counts) + list(tally.counts).index(split))
    tally.counts[split][label] += 1
    tally.done += 1


def _count_pixels(tally: _Tally, position: int, label: int, example: Mapping[str, Any]) -> None:
    """Add a training image to the sums, and keep it if it is one of the first of its class.

    Images of a dozen classes are kept, spread evenly over all of them.
    """
    if position >= MEASURED_IMAGES:
        return
    tally.image_sum += example["pixels"]
    tally.products += example["products"]
    tally.pixels += example["pixels"].size // 3
    classes = len(tally.counts["train"])
    shown = {
        round(index * (classes - 1) / (EXAMPLE_CLASSES - 1)) for index in range(EXAMPLE_CLASSES)
    }
    if label in shown and len(tally.examples[label]) < EXAMPLES_PER_CLASS:
        tally.examples[label].append(example["pixels"])


def _count_contents(tally: _Tally, values: Integers) -> int:
    """Return the number of contents with more than one value, such as in more than one split.

    Args:
        tally: with the content of each image.
        values: int64 [images].
    """
    contents = np.frombuffer(bytes(tally.contents), "S16")
    _, content = np.unique(contents, return_inverse=True)
    pairs = np.unique(np.stack([content, values]), axis=1)
    return int(np.count_nonzero(np.bincount(pairs[0]) > 1))


def _divide_sums(sums: list[int], pixels: int) -> RgbValues:
    red, green, blue = (total / pixels for total in sums)
    return red, green, blue


def _compute_covariance(
    sums: list[int], products: list[list[int]], pixels: int
) -> tuple[RgbValues, RgbValues, RgbValues]:
    """Return the covariance of the channels, from integer sums [3] and products [3, 3].

    Without rounding on the way.
    """
    red, green, blue = (
        _divide_sums(
            [
                pixels * product - sums[row] * sums[column]
                for column, product in enumerate(products[row])
            ],
            pixels**2,
        )
        for row in range(3)
    )
    return red, green, blue
