"""Writing images into TFDS shards."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.data.builders import import_beam, make_download_config, quiet_builder
from pipeline.data.checked import IngestProgress
from pipeline.errors import DatasetError

_IMAGES_PER_PROGRESS = 256
# What the shards hold of an image.
Example = dict[str, bytes | int | str]


class SourceImage(NamedTuple):
    """One image for the shards.

    `key` is its name, `label` its class id, `orientation` EXIF's, 1-8, `sha256` the digest that its
    bytes must have, or empty, and `read` returns the bytes.
    """

    key: str
    label: int
    orientation: int
    sha256: bytes
    read: Callable[[], bytes]


def write_shards(
    directory: Path,
    splits: Mapping[str, Iterable[SourceImage]],
    classes: int,
    total: int,
    progress: IngestProgress,
    beam_options: str = "",
) -> Path:
    """Write images into TFDS shards and return the folder that `tfds.builder_from_directory` takes.

    The order in the shards is that of a hash of the names, so that neighbors are of different
    classes.

    Args:
        directory: where the shards go.
        splits: for each split its images.
        classes: number of classes.
        total: images in all splits.
        progress: called with images written and images in all.
        beam_options: if present, Apache Beam reads, sorts and writes the images on the runner that
            they name, without progress.

    Raises:
        DatasetError: a file changed since it was checked, or Apache Beam is missing.
    """
    import numpy as np
    import tensorflow_datasets as tfds

    done, out = 0, sys.stdout

    def read_examples(images: Iterable[SourceImage]) -> Iterator[tuple[str, Example]]:
        nonlocal done
        for image in images:
            yield _make_example(image)
            done += 1
            if done % _IMAGES_PER_PROGRESS == 0 or done == total:
                with contextlib.redirect_stdout(out):
                    progress(done, total, "storing images")

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(),
            # By number: TFDS keeps names one a line, and a folder's name may hold a line break. The
            # names are in the stage's record.
            "label": tfds.features.ClassLabel(num_classes=classes),
            "key": tfds.features.Text(),
            # As in the file's EXIF; 1 is upright. The decoder turns the image, once.
            "orientation": np.int64,
        }
    )
    with quiet_builder(tfds):
        builder = tfds.dataset_builders.AdhocBuilder(
            name="images",
            version="1.0.0",
            features=features,
            split_datasets={
                split: _read_on_beam(images) if beam_options else read_examples(images)
                for split, images in splits.items()
            },
            data_dir=directory,
            description="Images with their encoded bytes as they were found.",
        )
        builder.download_and_prepare(download_config=make_download_config(tfds, beam_options))
    shutil.rmtree(directory / "downloads", ignore_errors=True)  # made by TFDS, and empty
    return Path(builder.data_dir)


def _make_example(image: SourceImage) -> tuple[str, Example]:
    """Read an image; return its key and its example."""
    return image.key, {
        "image": _read_unchanged(image),
        "label": image.label,
        "key": image.key,
        "orientation": image.orientation,
    }


def _read_on_beam(images: Iterable[SourceImage]) -> Any:
    """Return Beam's transformation from nothing to examples.

    The workers read the files, so the files must be visible to them.
    """
    beam = import_beam()
    return beam.Create(list(images)) | beam.Reshuffle() | beam.Map(_make_example)


def _read_unchanged(image: SourceImage) -> bytes:
    """Return an image's bytes after comparing them with those that were checked."""
    try:
        encoded = image.read()
    except OSError as error:
        raise DatasetError(
            f"{image.key!r} cannot be read any more ({error.strerror})",
            expected="a folder at rest",
            hint="Type the same command again",
        ) from error
    if image.sha256 and hashlib.sha256(encoded).digest() != image.sha256:
        raise DatasetError(
            f"{image.key!r} changed while it was being read",
            expected="a folder at rest",
            hint="Type the same command again",
        )
    return encoded
