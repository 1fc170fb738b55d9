"""Reading a prepared dataset: its records, its index, and options under which reads repeat."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import DatasetError

if TYPE_CHECKING:
    import tensorflow as tf

    from pipeline.arrays import Dataset, Tensor

# Features that may hold an image's name, the first one first.
_NAME_FEATURES = ("key", "file_name", "image/filename", "id")
# Files that a shuffled read takes records of in turn, and records of each at a time.
_PARALLEL_FILES = 16


class RecordReader(NamedTuple):
    """Reads the records of a split, and parses one.

    `read` takes None for the stored order, or a number that the shards are shuffled by; then some
    records of each of 16 files come in turn. It gives string [] each. `parse` makes of one record
    {`image`: encoded bytes, `label`: int64, `orientation`: int64} and perhaps `key`.

    They are apart so that training parses records where it decodes the images: in parallel, without
    handing each from thread to thread again.
    """

    read: Callable[[int | None], Dataset]
    parse: Callable[[Tensor], dict[str, Tensor]]


def index_path(directory: Path, split: str) -> Path:
    """Return the Parquet file that lists a split's `key`, `label` and `sha256` in stored order."""
    return directory / "index" / f"{split}.parquet"


def read_examples(shards: Path, instruction: str, image_key: str, label_key: str) -> Dataset:
    """Return a split as {`image`: encoded bytes, `label`, `key`: name, `orientation`}.

    In stored order; label and orientation are int64. The orientation is 1, upright, where the
    shards are TFDS's own: the published numbers of its sets turn no image either.

    Args:
        shards: the folder of the TFDS builder.
        instruction: such as `train[:90%]`.
        image_key: feature that holds the image.
        label_key: feature that holds the class id.
    """
    import tensorflow as tf

    reader = open_records(shards, instruction, image_key, label_key)

    def add_key(index: Tensor, record: Tensor) -> dict[str, Tensor]:
        example = reader.parse(record)
        return example if "key" in example else {**example, "key": tf.strings.format("{}", index)}

    return reader.read(None).enumerate().map(as_written(add_key), num_parallel_calls=1)


def open_records(shards: Path, instruction: str, image_key: str, label_key: str) -> RecordReader:
    """Open the shards of a split.

    Args:
        shards: the folder of the TFDS builder.
        instruction: such as `train[:90%]`.
        image_key: feature that holds the image.
        label_key: feature that holds the class id.

    Raises:
        DatasetError: the shards are in another file format than TFRecord.
    """
    import numpy as np
    import tensorflow as tf
    import tensorflow_datasets as tfds

    with quiet_log():
        builder = tfds.builder_from_directory(shards)
        if builder.info.file_format.value != "tfrecord":
            raise DatasetError(
                f"The dataset in {shards} is kept as {builder.info.file_format.value}",
                expected="TFRecord, TFDS's default",
                hint=(
                    "Type `tfds build --file_format=tfrecord` for it, or name another folder in"
                    " TFDS_DATA_DIR"
                ),
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

    def read(seed: int | None) -> Dataset:
        order = (
            range(len(files))
            if seed is None
            else np.random.default_rng(seed).permutation(len(files))
        )
        names = [os.fspath(files[index].filename) for index in order]
        bounds = np.asarray([(files[index].skip, files[index].take) for index in order], np.int64)
        slices = tf.data.Dataset.from_tensor_slices((names, bounds))
        in_turn = 1 if seed is None else min(_PARALLEL_FILES, len(names))
        records = slices.interleave(
            as_written(
                lambda file, bound: tf.data.TFRecordDataset(file).skip(bound[0]).take(bound[1])
            ),
            cycle_length=in_turn,
            block_length=_PARALLEL_FILES,
            num_parallel_calls=in_turn if in_turn > 1 else None,
        )
        count = sum(file.take for file in files)
        return records.apply(tf.data.experimental.assert_cardinality(count))

    def parse(record: Tensor) -> dict[str, Tensor]:
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

    return RecordReader(read, parse)


def make_deterministic_options() -> tf.data.Options:
    """Return options under which a dataset gives the same elements everywhere, without stalls."""
    import tensorflow as tf

    options = tf.data.Options()
    options.deterministic = True
    # Deleting an autotuned iterator can wait for seconds at the end of every epoch.
    options.autotune.enabled = False
    # Images are processed in parallel; spreading each small operation over the processors as well
    # only costs.
    options.threading.max_intra_op_parallelism = 1
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return options


def as_written(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of tensors, for `Dataset.map` and its like, that AutoGraph leaves alone.

    Rewriting what decodes images takes AutoGraph a second per process, and a tenth of one for each
    further dataset. None of our functions has an `if` or a loop on the value of a tensor.
    """
    import tensorflow as tf

    return tf.autograph.experimental.do_not_convert(function)


@contextlib.contextmanager
def quiet_log() -> Iterator[None]:
    """Keep TFDS from logging.

    Unlike redirecting the output, which is the whole program's, this may be done in the background.
    """
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
