"""Attributes of a split's images, by which its errors are sliced."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pyarrow import parquet

from pipeline.artifacts import DatasetArtifact
from pipeline.data.shards import index_path
from pipeline.evaluate.predictions import read_columns
from pipeline.evaluate.slices import (
    ErrorSlice,
    find_slices,
    list_parent_folders,
    parse_number_column,
)

if TYPE_CHECKING:
    from pipeline.evaluate.slices import AttributeValues


def slice_predictions(predictions: Path, dataset: DatasetArtifact, split: str) -> list[ErrorSlice]:
    """Return the slices of a split by every known attribute of its images.

    Args:
        predictions: the Parquet file of the split's predictions.
        dataset: that of the images.
        split: its name.
    """
    keys, labels, ranks, brightness, contrast = read_columns(
        predictions, "key", "label", "rank", "brightness", "contrast"
    )
    sizes = parquet.read_table(index_path(dataset.directory, split), columns=["height", "width"])
    height, width = (sizes[name].to_numpy().astype(float) for name in ("height", "width"))
    attributes: dict[str, AttributeValues] = {
        "class": [dataset.class_names[label] for label in labels]
    }
    attributes |= {"shorter side": np.minimum(height, width), "width / height": width / height}
    attributes |= {"brightness": brightness, "contrast": contrast}
    folders = list_parent_folders(keys)
    if len(set(folders)) != len(dataset.class_names):  # else they are the classes
        attributes["folder"] = folders
    return find_slices(ranks > 0, attributes | _read_manifest_columns(dataset, keys))


def _read_manifest_columns(
    dataset: DatasetArtifact, keys: Sequence[str]
) -> dict[str, AttributeValues]:
    """Return the manifest's other columns, a value for each image, in the order of the keys.

    Without a manifest, nothing.
    """
    path = dataset.directory / DatasetArtifact.ATTRIBUTES_FILE
    if not path.exists():
        return {}
    table = parquet.ParquetFile(path).read()  # `read_table` has names of its own for some columns
    rows = {key: row for row, key in enumerate(table["key"].to_pylist())}
    columns = {name: table[name].to_pylist() for name in table.column_names if name != "key"}
    ordered = {
        name: [values[rows[key]] if key in rows else "" for key in keys]
        for name, values in columns.items()
    }
    return {f"column {name}": parse_number_column(values) for name, values in ordered.items()}
