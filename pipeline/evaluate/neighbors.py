"""Nearest neighbors: the features of images, and which images have the nearest ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from pipeline.evaluate.layer_outputs import IMAGES_AT_ONCE, build_outputs, run_by_size

if TYPE_CHECKING:
    from pipeline.arrays import Floats, Images, Integers, Network

# Differences in float64 take 512 kB, which stay in a processor's cache: twice as fast as 32 MB.
_NUMBERS_AT_ONCE = 2**16


def compute_features(
    model: Network, batches: Iterable[tuple[Images, object]], layer: str
) -> Floats:
    """Return the output of a layer for each image, float32 [images, units], in one piece.

    1024 units of 50,000 images take 200 MB.

    Args:
        model: takes the batches' pixels.
        batches: (uint8 [n, height, width, 3] in [0, 255], anything), at least one, of any sizes.
        layer: a name, such as that of `find_embedding_layer`; of feature maps, every position is a
            unit.
    """
    outputs = build_outputs(model, [layer])
    program = tf.function(
        lambda batch: [tf.reshape(values, (len(batch), -1)) for values in outputs(batch)]
    )
    size, found = 0, []
    for pixels, _ in batches:
        size = size or min(IMAGES_AT_ONCE, len(pixels))
        found += run_by_size(program, size, np.asarray(pixels))
    return np.concatenate([rows for (rows,) in found])


def find_nearest(
    train_features: Floats, query_features: Floats, count: int
) -> tuple[Integers, Floats]:
    """Return the indices of the rows nearest to each query, and their distances.

    Int64 and float64 [queries, count], the nearest first.

    Distances are Euclidean and exact: the differences themselves are squared and added in float64.
    Of equally near rows the first is first. Time grows with queries x rows x units, for 8 queries
    among 50,000 rows of 1024 units a second or two; memory does not.

    Args:
        train_features: float [rows, units].
        query_features: float [queries, units].
        count: rows a query; all if there are fewer.
    """
    queries = np.asarray(query_features, np.float64)
    rows = max(1, _NUMBERS_AT_ONCE // max(1, queries.shape[1]))
    indices, squares = np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0))
    for start in range(0, len(train_features), rows):
        block = np.asarray(train_features[start : start + rows], np.float64)
        found = np.stack([np.square(block - query).sum(axis=1) for query in queries])
        rows_here = np.broadcast_to(np.arange(start, start + len(block)), found.shape)
        indices, squares = (
            np.concatenate([indices, rows_here], axis=1),
            np.concatenate([squares, found], axis=1),
        )
        order = np.argsort(squares, axis=1, kind="stable")[
            :, :count
        ]  # earlier rows stand on the left
        indices, squares = (
            np.take_along_axis(indices, order, axis=1),
            np.take_along_axis(squares, order, axis=1),
        )
    return indices, np.sqrt(squares)
