"""One pass over a prepared dataset: what is in it, and a digest that says whether it is the same."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.data.loader import index_path
from pipeline.data.pictures import decode_and_resize, header_size
from pipeline.data.source import Prepared, fixed_options, read_split
from pipeline.errors import DatasetError

Progress = Callable[[int, int, str], None]
# Mean and standard deviation are known to a hundredth of a level after this many images; counts and digest cover all.
MEASURED_IMAGES = 20_000
EXAMPLE_CLASSES = 12
EXAMPLES_PER_CLASS = 8
_WINDOW = 256


@dataclass(frozen=True)
class Statistics:
    """What one pass found.

    `heights` and `widths` are those of the files, in pixels. `examples` holds encoded training pictures by class id. `shared` counts
    contents that are in more than one split, `ambiguous` contents that have more than one label.
    """

    digest: str
    class_counts: Mapping[str, tuple[int, ...]]
    channel_mean: tuple[float, float, float]
    channel_std: tuple[float, float, float]
    heights: Any
    widths: Any
    examples: Mapping[int, list[bytes]]
    shared: int
    ambiguous: int


@dataclass
class _Tally:
    """What the pass has seen so far."""

    counts: dict[str, list[int]]
    lines: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    sums: Any = field(default_factory=lambda: np.zeros((3, 2), np.int64))
    pixels: int = 0
    examples: dict[int, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    splits_of: dict[bytes, set[str]] = field(default_factory=lambda: defaultdict(set))
    labels_of: dict[bytes, set[int]] = field(default_factory=lambda: defaultdict(set))


def measure(prepared: Prepared, short_side: int, directory: Path, progress: Progress) -> Statistics:
    """Read every picture's bytes once; write each split's index of keys, labels and SHA-256 into `directory`.

    The numbers do not depend on the number of threads: pixels are summed as integers.

    Args:
        prepared: the dataset in shards.
        short_side: pixels are counted after the resize that training uses, of the first 20,000 training images.
        directory: the stage's own folder.
        progress: called with images done, images in all and what is going on.
    """
    splits = {split: _with_sums(prepared, split, short_side) for split in prepared.reads}
    total = sum(int(examples.cardinality()) for examples in splits.values())
    tally = _Tally({split: [0] * len(prepared.class_names) for split in splits})
    index_path(directory, "train").parent.mkdir(exist_ok=True)
    for split, examples in splits.items():
        _count_split(tally, split, examples, short_side, index_path(directory, split), lambda done: progress(done, total, "counting"))
    mean, std = _mean_and_std(tally.sums, tally.pixels)
    heights, widths = np.asarray(tally.sizes, np.int64).reshape(-1, 2).T
    return Statistics(
        digest=_digest(tally.lines),
        class_counts={split: tuple(counts) for split, counts in tally.counts.items()},
        channel_mean=mean,
        channel_std=std,
        heights=heights,
        widths=widths,
        examples=dict(tally.examples),
        shared=sum(len(splits) > 1 for splits in tally.splits_of.values()),
        ambiguous=sum(len(labels) > 1 for labels in tally.labels_of.values()),
    )


def _with_sums(prepared: Prepared, split: str, short_side: int) -> Any:
    """Return a split's examples with int64 [3, 2]: each channel's sum and sum of squares, zero where they are not measured."""
    limit = MEASURED_IMAGES if split == "train" else 0

    def add(index: Any, example: Any) -> Any:
        sums = tf.cond(
            index < limit, lambda: _channel_sums(decode_and_resize(example["image"], short_side)), lambda: tf.zeros((3, 2), tf.int64)
        )
        return {**example, "sums": sums}

    examples = read_split(prepared.builder_directory, prepared.reads[split], prepared.image_key, prepared.label_key)
    return examples.enumerate().map(add, num_parallel_calls=len(os.sched_getaffinity(0))).prefetch(64).with_options(fixed_options())


def _channel_sums(image: Any) -> Any:
    """Return int64 [3, 2] for uint8 [height, width, 3]: sum and sum of squares of each channel."""
    values = tf.cast(tf.reshape(image, (-1, 3)), tf.int64)
    return tf.stack([tf.reduce_sum(values, 0), tf.reduce_sum(values * values, 0)], axis=1)


def _count_split(tally: _Tally, split: str, examples: Any, short_side: int, index: Path, progress: Callable[[int], None]) -> None:
    """Add one split to the tally and write its index."""
    columns: dict[str, list[Any]] = {"keys": [], "labels": [], "sha256": []}
    for position, example in enumerate(examples.as_numpy_iterator()):
        encoded, label, key = bytes(example["image"]), int(example["label"]), example["key"].decode("utf-8", "backslashreplace")
        sha256 = hashlib.sha256(encoded)
        if not 0 <= label < len(tally.counts[split]):
            raise DatasetError(
                f"The picture {key!r} of the {split} split has the label {label}. Expected a class id from 0 to "
                f"{len(tally.counts[split]) - 1}. A split without labels cannot be used: make a manifest or folder of labelled pictures."
            )
        for name, value in zip(columns, (key, label, sha256.hexdigest()), strict=True):
            columns[name].append(value)
        tally.lines.append(json.dumps([split, key, label, sha256.hexdigest()]))
        tally.sizes.append(header_size(encoded))
        tally.counts[split][label] += 1
        tally.splits_of[sha256.digest()].add(split)
        tally.labels_of[sha256.digest()].add(label)
        if split == "train":
            tally.sums += example["sums"]
            tally.pixels += short_side**2 if position < MEASURED_IMAGES else 0
            _keep_example(tally.examples, label, encoded, len(tally.counts[split]))
        if len(tally.lines) % _WINDOW == 0:
            progress(len(tally.lines))
    index.write_text(json.dumps(columns), encoding="utf-8")
    progress(len(tally.lines))


def _keep_example(examples: dict[int, list[bytes]], label: int, encoded: bytes, classes: int) -> None:
    """Keep the first pictures of a dozen classes, spread evenly over all of them."""
    shown = {round(place * (classes - 1) / (EXAMPLE_CLASSES - 1)) for place in range(EXAMPLE_CLASSES)}
    if label in shown and len(examples[label]) < EXAMPLES_PER_CLASS:
        examples[label].append(encoded)


def _digest(lines: list[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _mean_and_std(sums: Any, pixels: int) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return each channel's mean and standard deviation from integer sums [3, 2], without rounding on the way."""
    means, deviations = [], []
    for total, squares in sums.tolist():
        means.append(total / pixels)
        deviations.append(math.sqrt(pixels * squares - total * total) / pixels)
    return (means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2])
