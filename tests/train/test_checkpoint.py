"""A checkpoint is complete or absent, and equal bits come back."""

import numpy as np
import pytest

from pipeline.errors import CheckpointError, TrainingDivergedError
from pipeline.train.checkpoint import previous_checkpoint_path, read_checkpoint, save_checkpoint

RECORD = {"history": [{"epoch": 1, "train_loss": 0.1 + 0.2}], "seconds": 1.5}


def arrays():
    generator = np.random.default_rng(0)
    return {
        "model/0": generator.normal(size=(3, 4)).astype(np.float32),
        "optimizer/0": np.int64(7),
        "seed": np.array([1, 2**32 - 1], np.uint32),
    }


def test_equal_bits_come_back(tmp_path):
    save_checkpoint(tmp_path / "c.npz", arrays(), RECORD)
    found, record, problem = read_checkpoint(tmp_path / "c.npz")
    assert (record, problem) == (RECORD, "")
    for name, value in arrays().items():
        assert np.array_equal(found[name], value)
        assert found[name].dtype == value.dtype
    assert [path.name for path in tmp_path.iterdir()] == ["c.npz"]


def test_no_file_is_no_checkpoint(tmp_path):
    assert read_checkpoint(tmp_path / "c.npz") is None


@pytest.mark.parametrize("position", [0.3, 0.6, 0.9])
def test_every_flipped_byte_of_data_is_noticed(tmp_path, position):
    path = tmp_path / "c.npz"
    save_checkpoint(path, {"weights": np.random.default_rng(0).normal(size=10_000)}, RECORD)
    content = bytearray(path.read_bytes())
    content[int(len(content) * position)] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)


def test_a_cut_file_is_noticed(tmp_path):
    path = tmp_path / "c.npz"
    save_checkpoint(path, arrays(), RECORD)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"Delete .* to train from the beginning"):
        read_checkpoint(path)


def test_a_damaged_file_gives_way_to_the_one_before_and_that_is_said(tmp_path):
    path = tmp_path / "c.npz"
    for step in (1, 2):
        save_checkpoint(path, {"weights": np.full(100, step, np.float32)}, {"step": step})
    assert read_checkpoint(path)[1:] == ({"step": 2}, "")
    path.write_bytes(path.read_bytes()[:300])
    found, record, problem = read_checkpoint(path)
    assert record == {"step": 1}
    assert found["weights"].tolist() == [1.0] * 100
    assert f"{path} is damaged" in problem
    path.unlink()  # a kill between the two renames
    assert read_checkpoint(path)[1:] == ({"step": 1}, "")
    previous_checkpoint_path(path).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"and so is the one before it.*Delete"):
        read_checkpoint(path)


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_what_is_not_finite_never_replaces_what_is(tmp_path, lost):
    path = tmp_path / "c.npz"
    save_checkpoint(path, arrays(), RECORD)
    with pytest.raises(TrainingDivergedError, match="model/0"):
        save_checkpoint(path, arrays() | {"model/0": np.array([1, lost], np.float32)}, RECORD)
    assert np.array_equal(read_checkpoint(path)[0]["model/0"], arrays()["model/0"])
    assert [file.name for file in tmp_path.iterdir()] == ["c.npz"]
