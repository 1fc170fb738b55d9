"""What pages are drawn from: equal numbers make equal files, and damage is one sentence."""

import numpy as np
import pytest

from pipeline.errors import CheckpointError
from pipeline.reports.store import ARRAYS_FILE, VALUES_FILE, read_report_data, write_report_data

VALUES, ARRAYS = {"a": 1, "b": [2.5]}, {"x": np.arange(600, dtype=np.uint8).reshape(20, 30)}


def test_what_was_stored_is_read_and_equal_numbers_are_equal_bytes(tmp_path):
    write_report_data(tmp_path, VALUES, ARRAYS)
    before = (tmp_path / ARRAYS_FILE).read_bytes()
    values, arrays = read_report_data(tmp_path)
    assert values == VALUES
    np.testing.assert_array_equal(arrays["x"], ARRAYS["x"])
    write_report_data(tmp_path, VALUES, ARRAYS)
    assert (tmp_path / ARRAYS_FILE).read_bytes() == before


@pytest.mark.parametrize("file", [VALUES_FILE, ARRAYS_FILE])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "flipped"])
def test_damage_is_one_sentence(tmp_path, file, damage):
    write_report_data(tmp_path, VALUES, ARRAYS)
    path = tmp_path / file
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": whole[:-20], "flipped": bytes(flipped)}[damage])
    if (file, damage) == (VALUES_FILE, "flipped"):
        path.write_bytes(b"\xff" + whole[1:])
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_report_data(tmp_path)
