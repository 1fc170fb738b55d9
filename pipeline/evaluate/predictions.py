"""The file of what a model said of each image.

    predictions.parquet, one row an image
    key, label         its name, its right class
    answer, rank       the first guess; how many guesses come before the right one
    loss, confidence   cross-entropy in nats; probability of the first guess
    brightness, contrast   mean and standard deviation of the scored pixels, 0-255
    logits             float32 [classes]

Rows are written as they come and read in windows, so memory does not grow with the images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from pipeline.evaluate.metrics import (
    ROWS_AT_ONCE,
    Floats,
    Integers,
    label_ranks,
    losses_and_confidences,
)


@dataclass(frozen=True)
class Chunk:
    """What the model says of some images, in stored order.

    `logits` are float32 [images, classes], `labels` int32 [images] in [0, classes), `keys` the
    images' names; `brightness` and `contrast` are float32 [images], in levels of 0-255.
    """

    keys: tuple[str, ...]
    labels: Integers
    logits: Floats
    brightness: Floats
    contrast: Floats


def write_predictions(chunks: Iterable[Chunk], classes: int, path: Path) -> str:
    """Write what a model says of each image as it comes, and return the SHA-256 of keys, labels and logits.

    Args:
        chunks: at least one, in stored order.
        classes: length of the logits.
        path: the Parquet file.
    """
    digest = hashlib.sha256()
    with parquet.ParquetWriter(path, _schema(classes), compression="zstd") as writer:
        for chunk in _windows(chunks):
            digest.update(json.dumps(chunk.keys).encode())
            digest.update(np.ascontiguousarray(chunk.labels, "<i4").tobytes())
            digest.update(np.ascontiguousarray(chunk.logits, "<f4").tobytes())
            writer.write_batch(_row_group(chunk))
    return digest.hexdigest()


def _schema(classes: int) -> Any:
    kinds = {
        "key": pa.string(),
        "label": pa.int32(),
        "answer": pa.int32(),
        "rank": pa.int32(),
        "loss": pa.float64(),
    }
    kinds |= dict.fromkeys(("confidence", "brightness", "contrast"), pa.float32())
    return pa.schema([*kinds.items(), ("logits", pa.list_(pa.float32(), classes))])


def _row_group(chunk: Chunk) -> Any:
    loss, confidence = losses_and_confidences(chunk.logits, chunk.labels)
    schema = _schema(chunk.logits.shape[1])
    columns = [
        chunk.keys,
        chunk.labels,
        chunk.logits.argmax(axis=1),
        label_ranks(chunk.logits, chunk.labels),
        loss,
        confidence,
    ]
    columns += [chunk.brightness, chunk.contrast]
    arrays = [
        pa.array(
            np.asarray(column, kind.to_pandas_dtype()) if kind != pa.string() else column, kind
        )
        for column, kind in zip(columns, schema.types, strict=False)
    ]
    logits = pa.FixedSizeListArray.from_arrays(
        pa.array(chunk.logits.reshape(-1)), chunk.logits.shape[1]
    )
    return pa.record_batch([*arrays, logits], schema=schema)


def _windows(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Join small chunks and cut large ones, so that every one but the last has as many rows.

    Nothing depends on the batch size.
    """
    waiting: list[Chunk] = []
    for chunk in chunks:
        waiting.append(chunk)
        while sum(len(item.keys) for item in waiting) >= ROWS_AT_ONCE:
            whole = _joined(waiting)
            yield _rows(whole, slice(0, ROWS_AT_ONCE))
            waiting = [_rows(whole, slice(ROWS_AT_ONCE, None))]
    if waiting and sum(len(item.keys) for item in waiting):
        yield _joined(waiting)


def _joined(chunks: Sequence[Chunk]) -> Chunk:
    arrays = (
        np.concatenate([getattr(item, name) for item in chunks])
        for name in ("labels", "logits", "brightness", "contrast")
    )
    return Chunk(tuple(key for item in chunks for key in item.keys), *arrays)


def _rows(chunk: Chunk, rows: slice) -> Chunk:
    return Chunk(
        chunk.keys[rows],
        chunk.labels[rows],
        chunk.logits[rows],
        chunk.brightness[rows],
        chunk.contrast[rows],
    )


def read_columns(path: Path, *names: str) -> tuple[Any, ...]:
    """Return columns of a file of predictions, each as an array [images].

    `key` as a list of names.
    """
    table = parquet.read_table(path, columns=list(names))
    return tuple(
        table[name].to_pylist() if name == "key" else table[name].to_numpy() for name in names
    )


def read_logits(path: Path) -> Iterator[tuple[Any, Any]]:
    """Yield float32 [rows, classes] logits and int32 [rows] labels, some thousand images at a time, in stored order."""
    with parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group, columns=["logits", "label"])
            logits = rows["logits"].combine_chunks()
            yield logits.flatten().to_numpy().reshape(len(rows), -1), rows["label"].to_numpy()


def logits_at(path: Path, positions: Sequence[int]) -> Any:
    """Return the logits of some images, float32 [positions, classes], in the order asked for."""
    found: dict[int, Any] = {}
    start = 0
    for logits, _ in read_logits(path):
        found |= {
            place: logits[place - start]
            for place in positions
            if start <= place < start + len(logits)
        }
        start += len(logits)
    return np.stack([found[place] for place in positions])
