"""Reading a prepared dataset: its splits, its records and its index."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import DatasetError

_NAME_FEATURES = ("key", "file_name", "image/filename", "id")


_PARALLEL_FILES = 16


def index_path(directory: Path, split: str) -> Path:
    """Return the Parquet file that lists a split's `key`, `label` and `sha256` in stored order."""
    return directory / "index" / f"{split}.parquet"


def read_examples(shards: Path, instruction: str, image_key: str, label_key: str) -> Any:
    """Return a tf.data.Dataset of {`image`: encoded bytes, `label`: int64, `key`.

    Name, `orientation`: int64}, in stored order.

    The orientation is 1, upright, where the shards are not ours: the published numbers of TFDS's
    sets turn no image either.

    Args:
        shards: the folder of the TFDS builder.
        instruction: such as `train[:90%]`.
        image_key: feature that holds the image.
        label_key: feature that holds the class id.
    """
    import tensorflow as tf

    records, parse = open_records(shards, instruction, image_key, label_key)

    def named(index: Any, record: Any) -> dict[str, Any]:
        example = parse(record)
        return example if "key" in example else {**example, "key": tf.strings.format("{}", index)}

    return records(None).enumerate().map(named, num_parallel_calls=1)


def open_records(
    shards: Path, instruction: str, image_key: str, label_key: str
) -> tuple[Callable[[int | None], Any], Callable[[Any], dict[str, Any]]]:
    """Return what gives a split's records, string [] each, and what makes of one {`image`, `label`, `orientation`} and perhaps `key`.

    Apart, so that training parses records where it decodes the images: in parallel, without handing
    each from thread to thread again. The first takes None for the stored order, or a number that
    shards are shuffled by; then some records of each of 16 come in turn.

    Args:
        shards: the folder of the TFDS builder.
        instruction: such as `train[:90%]`.
        image_key: feature that holds the image.
        label_key: feature that holds the class id.
    """
    import numpy as np
    import tensorflow as tf
    import tensorflow_datasets as tfds

    with quiet_log():
        builder = tfds.builder_from_directory(shards)
        if builder.info.file_format.value != "tfrecord":
            raise DatasetError(
                f"The dataset in {shards} is kept as {builder.info.file_format.value}. Expected"
                " TFRecord, TFDS's default. Type `tfds build --file_format=tfrecord` for it, or"
                " name another folder in TFDS_DATA_DIR."
            )
        files = builder.info.splits[instruction].file_instructions
        texts = {
            name
            for name, feature in builder.info.features.items()
            if isinstance(feature, tfds.features.Text)
        }
        name_key = next((name for name in _NAME_FEATURES if name in texts), None)
        turned = "orientation" if "orientation" in builder.info.features else None
        wanted = tfds.decode.PartialDecoding(
            {name: True for name in (image_key, label_key, name_key, turned) if name}
        )
        features = wanted.extract_features(builder.info.features)

    def records(seed: int | None) -> Any:
        order = (
            range(len(files))
            if seed is None
            else np.random.default_rng(seed).permutation(len(files))
        )
        names = [os.fspath(files[place].filename) for place in order]
        bounds = np.asarray([(files[place].skip, files[place].take) for place in order], np.int64)
        slices = tf.data.Dataset.from_tensor_slices((names, bounds))
        at_a_time = 1 if seed is None else min(_PARALLEL_FILES, len(names))
        read = slices.interleave(
            lambda file, bound: tf.data.TFRecordDataset(file).skip(bound[0]).take(bound[1]),
            cycle_length=at_a_time,
            block_length=_PARALLEL_FILES,
            num_parallel_calls=at_a_time if at_a_time > 1 else None,
        )
        return read.apply(tf.data.experimental.assert_cardinality(sum(file.take for file in files)))

    def parse(record: Any) -> dict[str, Any]:
        with quiet_log():
            example = features.deserialize_example(
                record, decoders={image_key: tfds.decode.SkipDecoding()}
            )
        orientation = example[turned] if turned else tf.constant(1, tf.int64)
        named = {"key": example[name_key]} if name_key else {}
        return {
            "image": example[image_key],
            "label": example[label_key],
            "orientation": orientation,
            **named,
        }

    return records, parse


def make_deterministic_options() -> Any:
    """Return tf.data options under which the same dataset gives the same elements on any machine, without stalls."""
    import tensorflow as tf

    options = tf.data.Options()
    options.deterministic = True
    # Deleting an autotuned iterator can wait for seconds at the end of every epoch.
    options.autotune.enabled = False
    # Images are worked on in parallel; spreading each small operation over the processors as well
    # only costs.
    options.threading.max_intra_op_parallelism = 1
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return options


@contextlib.contextmanager
def quiet_log() -> Iterator[None]:
    """Keep TFDS from logging; unlike the output, which is the whole program's, that may be done in the background."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def count_processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0))
