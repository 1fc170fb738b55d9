"""Predictions: the file of a model's answers, one row per image.

    predictions.parquet
    key, label         name and correct class of the image
    answer, rank       the first guess; how many guesses come before the correct one
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
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from pipeline.evaluate.logits import ROWS_AT_ONCE, compute_losses_and_confidences, rank_labels

if TYPE_CHECKING:
    from pipeline.arrays import Floats, Labels, Logits


@dataclass(frozen=True)
class PredictionChunk:
    """The answers for some images, in stored order.

    `logits` are float32 [images, classes], `labels` int32 [images] in [0, classes), `keys` the
    images' names; `brightness` and `contrast` are float32 [images], in levels of 0-255.
    """

    keys: tuple[str, ...]
    labels: Labels
    logits: Logits
    brightness: Floats
    contrast: Floats


def write_predictions(chunks: Iterable[PredictionChunk], classes: int, path: Path) -> str:
    """Write predictions as they come, and return the SHA-256 of keys, labels and logits.

    Args:
        chunks: at least one, in stored order.
        classes: length of the logits.
        path: the Parquet file.
    """
    digest = hashlib.sha256()
    with parquet.ParquetWriter(path, _build_schema(classes), compression="zstd") as writer:
        for chunk in _rechunk(chunks):
            digest.update(json.dumps(chunk.keys).encode())
            digest.update(np.ascontiguousarray(chunk.labels, "<i4").tobytes())
            digest.update(np.ascontiguousarray(chunk.logits, "<f4").tobytes())
            writer.write_batch(_build_row_group(chunk))
    return digest.hexdigest()


def _build_schema(classes: int) -> pa.Schema:
    kinds = {
        "key": pa.string(),
        "label": pa.int32(),
        "answer": pa.int32(),
        "rank": pa.int32(),
        "loss": pa.float64(),
    }
    kinds |= dict.fromkeys(("confidence", "brightness", "contrast"), pa.float32())
    return pa.schema([*kinds.items(), ("logits", pa.list_(pa.float32(), classes))])


def _build_row_group(chunk: PredictionChunk) -> pa.RecordBatch:
    loss, confidence = compute_losses_and_confidences(chunk.logits, chunk.labels)
    schema = _build_schema(chunk.logits.shape[1])
    columns = [
        chunk.keys,
        chunk.labels,
        chunk.logits.argmax(axis=1),
        rank_labels(chunk.logits, chunk.labels),
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


def _rechunk(chunks: Iterable[PredictionChunk]) -> Iterator[PredictionChunk]:
    """Yield chunks joined or cut to the same number of rows, the last one aside.

    So nothing depends on the batch size.
    """
    waiting: list[PredictionChunk] = []
    for chunk in chunks:
        waiting.append(chunk)
        while sum(len(item.keys) for item in waiting) >= ROWS_AT_ONCE:
            whole = _join_chunks(waiting)
            yield _take_rows(whole, slice(0, ROWS_AT_ONCE))
            waiting = [_take_rows(whole, slice(ROWS_AT_ONCE, None))]
    if waiting and sum(len(item.keys) for item in waiting):
        yield _join_chunks(waiting)


def _join_chunks(chunks: Sequence[PredictionChunk]) -> PredictionChunk:
    arrays = (
        np.concatenate([getattr(item, name) for item in chunks])
        for name in ("labels", "logits", "brightness", "contrast")
    )
    return PredictionChunk(tuple(key for item in chunks for key in item.keys), *arrays)


def _take_rows(chunk: PredictionChunk, rows: slice) -> PredictionChunk:
    return PredictionChunk(
        chunk.keys[rows],
        chunk.labels[rows],
        chunk.logits[rows],
        chunk.brightness[rows],
        chunk.contrast[rows],
    )


def read_columns(path: Path, *names: str) -> tuple[Any, ...]:
    """Return columns of a file of predictions, each as an array [images], `key` as a list."""
    table = parquet.read_table(path, columns=list(names))
    return tuple(
        table[name].to_pylist() if name == "key" else table[name].to_numpy() for name in names
    )


def read_logits(path: Path) -> Iterator[tuple[Logits, Labels]]:
    """Yield float32 [rows, classes] logits and int32 [rows] labels, in stored order.

    Each pair has a few thousand images.
    """
    with parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group, columns=["logits", "label"])
            logits = rows["logits"].combine_chunks()
            yield logits.flatten().to_numpy().reshape(len(rows), -1), rows["label"].to_numpy()


def read_logits_at(path: Path, indices: Sequence[int]) -> Logits:
    """Return the logits of some images, float32 [indices, classes], in the order of the indices."""
    found: dict[int, Logits] = {}
    start = 0
    for logits, _ in read_logits(path):
        found |= {
            index: logits[index - start]
            for index in indices
            if start <= index < start + len(logits)
        }
        start += len(logits)
    return np.stack([found[index] for index in indices])
