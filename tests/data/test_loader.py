import shutil

import numpy as np
import pytest

from pipeline.data.loader import load_split
from pipeline.errors import DatasetError


def test_stored_pixels_of_another_shape_are_a_damaged_dataset(stored):
    path = stored.pixels_path("test")
    whole = np.load(path)
    np.save(path, whole[:-1])
    with pytest.raises(DatasetError, match=r"is damaged \(test.npy holds"):
        load_split(stored, "test")
    path.unlink()
    with pytest.raises(DatasetError, match="is damaged"):
        load_split(stored, "test")


def test_missing_shards_are_a_damaged_dataset(digits, tmp_path):
    shutil.copytree(digits.directory, tmp_path / "ingest-x")
    dataset = digits.model_copy(update={"directory": tmp_path / "ingest-x"})
    (dataset.shards / "dataset_info.json").unlink()
    with pytest.raises(DatasetError, match="is damaged"):
        load_split(dataset, "train")
    (dataset.directory / "index" / "train.parquet").unlink()
    with pytest.raises(DatasetError, match="is damaged"):
        load_split(dataset, "train")
