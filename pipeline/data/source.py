"""Bring a dataset into shards: list, audit, split and write its images."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.data import DataConfig
from pipeline.data.audit import audit_files, require_enough_usable
from pipeline.data.catalog import prepare_tfds
from pipeline.data.checked import SPLITS, CheckedFile, Progress
from pipeline.data.class_ids import (
    order_classes,
    read_known_classes,
    require_trainable_classes,
    write_known_classes,
)
from pipeline.data.examination import make_thumbnail
from pipeline.data.folders import list_folder
from pipeline.data.manifests import list_manifest
from pipeline.data.prepared import PreparedDataset
from pipeline.data.reference import detect_dataset_kind, expand_home
from pipeline.data.shard_writer import SourceImage, write_shards
from pipeline.data.splits import assign_split, assign_splits

_SHOWN_COPIES = 24


def prepare_dataset(config: DataConfig, directory: Path, progress: Progress) -> PreparedDataset:
    """Bring the dataset into shards.

    Args:
        config: which dataset, and how it is split.
        directory: the stage's own folder, `<workdir>/stages/<name>`; what we write lands in
            `shards` below it.
        progress: called with files done, files in all and what is going on.

    Raises:
        DatasetError: the dataset cannot be had, or is not one of labeled images.
    """
    kind = detect_dataset_kind(config.dataset)
    if kind == "digits":
        return _prepare_digits(config, directory, progress)
    if kind == "tfds":
        data_directory = Path(
            os.environ.get("TFDS_DATA_DIR") or directory.parents[1] / "datasets"
        ).expanduser()
        progress(0, 1, f"TFDS prepares {config.dataset} in {data_directory}")
        return prepare_tfds(config, data_directory)
    return _prepare_files(config, directory, progress)


def _prepare_digits(config: DataConfig, directory: Path, progress: Progress) -> PreparedDataset:
    """Store scikit-learn's 1,797 scanned digits as PNG files of 8 x 8 pixels, uint8 grayscale [8, 8, 1] in [0, 255]."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    scans = np.rint(digits.images * 255 / 16).astype(np.uint8)[..., np.newaxis]
    splits: dict[str, list[SourceImage]] = {split: [] for split in SPLITS}
    for index, (scan, label) in enumerate(zip(scans, digits.target, strict=True)):
        # Dealt by pixels: another PNG writer does not move an image.
        split = assign_split(hashlib.sha256(scan.tobytes()).digest(), "", frozenset(), config)
        splits[split].append(
            SourceImage(f"{index:04d}.png", int(label), 1, b"", functools.partial(_png, scan))
        )
    names = tuple(str(name) for name in digits.target_names)
    where = write_shards(directory / "shards", splits, len(names), len(scans), progress)
    how = "every split dealt by the SHA-256 of the pixels"
    return PreparedDataset(
        "digits",
        where,
        names,
        {split: split for split in splits},
        "image",
        "label",
        found=len(scans),
        how_split=how,
    )


def _png(scan: Any) -> bytes:
    """Return the PNG file of an image, uint8 [height, width, channels] in [0, 255]."""
    import tensorflow as tf

    return bytes(tf.io.encode_png(scan).numpy())


def _prepare_files(config: DataConfig, directory: Path, progress: Progress) -> PreparedDataset:
    """Check the images of a folder or a manifest, split them, and store copies of the usable ones, bytes as they are."""
    path, workdir = expand_home(config.dataset), directory.parents[1]
    listing = (
        list_folder(path)
        if detect_dataset_kind(config.dataset) == "folder"
        else list_manifest(path)
    )
    source = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]
    checked = audit_files(
        listing.entries, workdir / "audits" / f"{source}.sqlite", config, progress
    )
    require_enough_usable(checked, config)
    good = [item for item in checked if not item.problem]
    memory = workdir / "classes" / f"{source}.json"
    names = order_classes(
        {item.entry.label for item in good}, read_known_classes(memory), config.renamed_classes
    )
    numbers = {name: number for number, name in enumerate(names)}
    placed, copies = assign_splits(good, config)
    require_trainable_classes(names, _counts(good, placed, numbers))
    splits = {split: _images(good, placed, split, numbers) for split in SPLITS}
    shards = write_shards(
        directory / "shards", splits, len(names), sum(map(bool, placed)), progress, config.beam
    )
    write_known_classes(memory, names)
    return PreparedDataset(
        name=path.resolve().name,
        builder_directory=shards,
        class_names=names,
        reads={split: split for split in SPLITS},
        image_key="image",
        label_key="label",
        found=listing.found,
        quarantined=[(item.entry.key, item.problem) for item in checked if item.problem],
        excluded=listing.excluded,
        empty_folders=listing.empty_folders,
        how_split=_how_split(frozenset(item.entry.split for item in good)),
        duplicate_groups=[
            tuple(good[index].entry.key for index in group) for group in copies.groups
        ],
        groups_in_several_splits=copies.straddling,
        label_conflicts=[
            tuple(good[index].entry.key for index in group) for group in copies.conflicts
        ],
        duplicate_thumbnails=[
            [make_thumbnail(good[index]) for index in group[:2]]
            for group in copies.groups[:_SHOWN_COPIES]
        ],
        excluded_duplicates=[
            item.entry.key for item, split in zip(good, placed, strict=True) if not split
        ],
    )


def _read_file(path: str) -> bytes:
    return Path(path).read_bytes()


def _images(
    good: Sequence[CheckedFile], placed: Sequence[str], split: str, numbers: Mapping[str, int]
) -> Iterator[SourceImage]:
    """Yield the images of a split one by one, so that a million need not be there at a time."""
    for item, where in zip(good, placed, strict=True):
        if where == split:
            entry, facts = item.entry, item.facts
            read = functools.partial(_read_file, entry.path)
            yield SourceImage(
                entry.key, numbers[entry.label], facts.orientation, facts.sha256, read
            )


def _counts(
    good: Sequence[CheckedFile], placed: Sequence[str], numbers: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """Return how many images of each class each split has."""
    counts = {split: [0] * len(numbers) for split in SPLITS}
    for item, split in zip(good, placed, strict=True):
        if split:
            counts[split][numbers[item.entry.label]] += 1
    return {split: tuple(found) for split, found in counts.items()}


def _how_split(present: frozenset[str]) -> str:
    cut = [split for split in ("validation", "test") if split not in present]
    given = [split for split in SPLITS if split in present]
    words = [f"{', '.join(given)} as the source names them"] if given else []
    return "; ".join(
        words + ([f"{' and '.join(cut)} dealt by the SHA-256 of each file"] if cut else [])
    )
