"""A checkpoint is complete or absent, and equal bits come back."""

import numpy as np
import pytest

from pipeline.errors import CheckpointError
from pipeline.train.checkpoint import read_checkpoint, save_checkpoint

HISTORY = [{"epoch": 1, "train_loss": 0.1 + 0.2}]


def arrays():
    generator = np.random.default_rng(0)
    return {
        "model/0": generator.normal(size=(3, 4)).astype(np.float32),
        "optimizer/0": np.int64(7),
        "seed": np.array([1, 2**32 - 1], np.uint32),
    }


def test_equal_bits_come_back(tmp_path):
    save_checkpoint(tmp_path / "c.npz", arrays(), HISTORY)
    found, history = read_checkpoint(tmp_path / "c.npz")
    assert history == HISTORY
    for name, value in arrays().items():
        assert np.array_equal(found[name], value)
        assert found[name].dtype == value.dtype
    assert [path.name for path in tmp_path.iterdir()] == ["c.npz"]


def test_no_file_is_no_checkpoint(tmp_path):
    assert read_checkpoint(tmp_path / "c.npz") is None


@pytest.mark.parametrize("position", [0.3, 0.6, 0.9])
def test_every_flipped_byte_of_data_is_noticed(tmp_path, position):
    path = tmp_path / "c.npz"
    save_checkpoint(path, {"weights": np.random.default_rng(0).normal(size=10_000)}, HISTORY)
    content = bytearray(path.read_bytes())
    content[int(len(content) * position)] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)


def test_a_cut_file_is_noticed(tmp_path):
    path = tmp_path / "c.npz"
    save_checkpoint(path, arrays(), HISTORY)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="Delete it"):
        read_checkpoint(path)
