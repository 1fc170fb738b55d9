"""Weights in a model file are numbers in the file itself, or the file is refused."""

import struct

import h5py
import numpy as np
import pytest

from pipeline.errors import CheckpointError
from pipeline.model import safety
from pipeline.model.safety import require_safe
from tests.model.refusals import WEIGHTS, refused


def linked_outside(file):
    file["layers/dense/vars/0"] = h5py.ExternalLink("/etc/hostname", "/x")


def linked_inside(file):
    file["a"] = np.zeros(3)
    file["b"] = h5py.SoftLink("/a")


def circle(file):
    file["a/b"] = file


def twice(file):
    file["a"] = np.zeros(3)
    file["b"] = file["a"]


def bytes_of_another_file(file):
    file.create_dataset("a", (5,), "u1", external=[("/etc/hostname", 0, 5)])


def virtual(file):
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (4,))
    file.create_virtual_dataset("a", layout)


def compressed(file):
    """Keras reads it, with four times the 3 GB that it declares, and only then compares its shape;
    it refuses from 4 GiB on."""
    file.create_dataset("a", (3 << 28,), "f4", chunks=(1 << 20,), compression="gzip")


def never_written(file):
    file.create_dataset("a", (1 << 40,), "f8")


def words(file):
    file["a"] = ["word"]


def references(file):
    file.create_dataset("a", (3,), h5py.ref_dtype)


def records(file):
    file["a"] = np.zeros(3, [("x", "f4"), ("y", "f8")])


def a_type(file):
    file["a"] = np.dtype("f4")


@pytest.mark.parametrize(
    ("fill", "why"),
    [
        (linked_outside, "a link to somewhere else"),
        (linked_inside, "a link to somewhere else"),
        (circle, "in a circle"),
        (twice, "in a circle"),
        (bytes_of_another_file, "in another file"),
        (virtual, "in another file"),
        (compressed, "compressed"),
        (never_written, "declares 8796093022208 bytes"),
        (words, "no numbers"),
        (references, "no numbers"),
        (records, "no numbers"),
        (a_type, "no numbers"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_weights_that_are_more_than_arrays_are_refused(fill, why, with_weights):
    assert why in refused(with_weights(fill))


def test_very_many_arrays_are_refused(with_weights):
    def many(file):
        group = file.create_group("a")
        for number in range(100_001):
            group.id.links.create_hard(str(number).encode(), file.id, b"a")

    assert "more than 100000 arrays" in refused(with_weights(many))


def test_weights_that_would_take_all_memory_are_refused(harmless, written):
    """Keras takes memory until the system ends its process: a list of free places, each of which
    names the next, is a circle."""
    content = bytearray(harmless[WEIGHTS])
    heap = content.index(b"HEAP")
    first, places = struct.unpack("<QQ", content[heap + 16 : heap + 32])
    content[places + first : places + first + 8] = struct.pack("<Q", first)
    assert "memory allocation failed" in refused(written({WEIGHTS: bytes(content)}))


def test_weights_that_break_hdf5_down_or_keep_it_busy_are_refused(written, monkeypatch):
    for code, why in (
        ("import os; os.abort()", "on which HDF5 breaks down"),
        ("while True: pass", "take more than 1 seconds"),
    ):
        monkeypatch.setattr(safety, "_MAX_SECONDS", 1)
        monkeypatch.setattr(safety, "_CHECK_WEIGHTS_CODE", code)
        assert why in refused(written())


@pytest.mark.slow
def test_damaged_weights_never_raise_anything_else(harmless, written):
    """Random bytes in the weights, with the right CRC: the file is safe, or refused."""
    random = np.random.default_rng(0)
    for _ in range(100):
        content = bytearray(harmless[WEIGHTS])
        for place in random.integers(0, len(content), 8):
            content[place] = random.integers(0, 256)
        try:
            require_safe(written({WEIGHTS: bytes(content)}))
        except CheckpointError as error:
            assert "Received one that" in str(error)
