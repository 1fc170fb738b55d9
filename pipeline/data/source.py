"""Bring a dataset into shards: list, audit, split and write its images."""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.data import DataConfig
from pipeline.data.audit import audit_files, require_enough_usable
from pipeline.data.catalog import prepare_tfds
from pipeline.data.checked import SPLITS, CheckedFile, IngestProgress
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

if TYPE_CHECKING:
    from pipeline.arrays import Array

_SHOWN_GROUPS = 24  # of duplicates


def prepare_dataset(
    config: DataConfig, directory: Path, progress: IngestProgress
) -> PreparedDataset:
    """Bring the dataset into shards.

    Args:
        config: which dataset, and how it is split.
        directory: the stage's own folder, `<workdir>/stages/<name>`; our shards go into `shards`
            below it.
        progress: called with files done, files in all and what is being done.

    Raises:
        DatasetError: the dataset is not available, or is not one of labeled images.
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


def _prepare_digits(
    config: DataConfig, directory: Path, progress: IngestProgress
) -> PreparedDataset:
    """Store scikit-learn's 1,797 scanned digits as PNG files.

    They are uint8 grayscale [8, 8, 1] in [0, 255].
    """
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    scans = np.rint(digits.images * 255 / 16).astype(np.uint8)[..., np.newaxis]
    splits: dict[str, list[SourceImage]] = {split: [] for split in SPLITS}
    for index, (scan, label) in enumerate(zip(scans, digits.target, strict=True)):
        # Assigned by pixels: another PNG writer does not move an image.
        split = assign_split(hashlib.sha256(scan.tobytes()).digest(), "", frozenset(), config)
        read = functools.partial(_encode_png, scan)
        splits[split].append(SourceImage(f"{index:04d}.png", int(label), 1, b"", read))
    names = tuple(str(name) for name in digits.target_names)
    return PreparedDataset(
        name="digits",
        builder_directory=write_shards(
            directory / "shards", splits, len(names), len(scans), progress
        ),
        class_names=names,
        reads={split: split for split in splits},
        image_key="image",
        label_key="label",
        found=len(scans),
        how_split="every split assigned by the SHA-256 of the pixels",
    )


def _encode_png(scan: Array) -> bytes:
    """Return the PNG file of an image, uint8 [height, width, channels] in [0, 255]."""
    import tensorflow as tf

    return bytes(tf.io.encode_png(scan).numpy())


def _prepare_files(
    config: DataConfig, directory: Path, progress: IngestProgress
) -> PreparedDataset:
    """Check the images of a folder or a manifest, split them, and store the usable files' bytes."""
    path, workdir = expand_home(config.dataset), directory.parents[1]
    is_folder = detect_dataset_kind(config.dataset) == "folder"
    listing = list_folder(path) if is_folder else list_manifest(path)
    source = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]
    checked = audit_files(listing.files, workdir / "audits" / f"{source}.sqlite", config, progress)
    require_enough_usable(checked, config)
    usable = [item for item in checked if not item.problem]
    class_file = workdir / "classes" / f"{source}.json"
    names = order_classes(
        {item.file.label for item in usable}, read_known_classes(class_file), config.renamed_classes
    )
    class_ids = {name: index for index, name in enumerate(names)}
    assigned, duplicates = assign_splits(usable, config)
    require_trainable_classes(names, _count_classes(usable, assigned, class_ids))
    shards = write_shards(
        directory / "shards",
        {split: _iterate_images(usable, assigned, split, class_ids) for split in SPLITS},
        len(names),
        sum(map(bool, assigned)),
        progress,
        config.beam,
    )
    write_known_classes(class_file, names)
    keys = [item.file.key for item in usable]
    return PreparedDataset(
        name=path.resolve().name,
        builder_directory=shards,
        class_names=names,
        reads={split: split for split in SPLITS},
        image_key="image",
        label_key="label",
        found=listing.found,
        quarantined=[(item.file.key, item.problem) for item in checked if item.problem],
        excluded=listing.excluded,
        empty_folders=len(listing.empty_classes),
        how_split=_describe_split(frozenset(item.file.split for item in usable)),
        excluded_duplicates=[key for key, split in zip(keys, assigned, strict=True) if not split],
        duplicate_groups=[tuple(keys[index] for index in group) for group in duplicates.groups],
        groups_in_several_splits=duplicates.in_several_splits,
        label_conflicts=[tuple(keys[index] for index in group) for group in duplicates.conflicts],
        duplicate_thumbnails=[
            [make_thumbnail(usable[index]) for index in group[:2]]
            for group in duplicates.groups[:_SHOWN_GROUPS]
        ],
        groups=_number_groups(keys, assigned, duplicates.together.tolist()),
    )


def _number_groups(
    keys: Sequence[str], assigned: Sequence[str], together: Sequence[int]
) -> dict[str, int]:
    """Return key -> group, of the groups that have several images in one split.

    Args:
        keys: of the usable images.
        assigned: the split of each, empty for an excluded duplicate.
        together: a number for each, equal for those that belong together.
    """
    places = list(zip(together, assigned, strict=True))
    sizes = Counter(places)
    numbers: dict[tuple[int, str], int] = {}
    return {
        key: numbers.setdefault(place, len(numbers))
        for key, place in zip(keys, places, strict=True)
        if place[1] and sizes[place] > 1
    }


def _read_bytes(path: str) -> bytes:
    return Path(path).read_bytes()


def _iterate_images(
    usable: Sequence[CheckedFile], assigned: Sequence[str], split: str, class_ids: Mapping[str, int]
) -> Iterator[SourceImage]:
    """Yield the images of a split one by one, so that a million need not be there at a time."""
    for item, own in zip(usable, assigned, strict=True):
        if own == split:
            file, facts = item.file, item.facts
            read = functools.partial(_read_bytes, file.path)
            yield SourceImage(
                file.key, class_ids[file.label], facts.orientation, facts.sha256, read
            )


def _count_classes(
    usable: Sequence[CheckedFile], assigned: Sequence[str], class_ids: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """Return the number of images of each class in each split."""
    counts = {split: [0] * len(class_ids) for split in SPLITS}
    for item, split in zip(usable, assigned, strict=True):
        if split:
            counts[split][class_ids[item.file.label]] += 1
    return {split: tuple(found) for split, found in counts.items()}


def _describe_split(named: frozenset[str]) -> str:
    """Return how the splits came about; `named` are those that the source names."""
    kept = [split for split in SPLITS if split in named]
    cut = [split for split in ("validation", "test") if split not in named]
    parts = [f"{', '.join(kept)} as the source names them"] if kept else []
    parts += [f"{' and '.join(cut)} assigned by the SHA-256 of each file"] if cut else []
    return "; ".join(parts)
