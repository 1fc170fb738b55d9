import gzip
import hashlib

import pytest

from pipeline.data import fashion_mnist
from pipeline.data.fashion_mnist import DEBIAN, add_header, restore_files
from pipeline.errors import DatasetError

NAME = "train-labels-idx1-ubyte.gz"


def stripped(content):
    """Return a gzip file without name and time, as Debian's package holds it."""
    return gzip.compress(content, mtime=0)


def test_the_name_and_the_time_are_put_back():
    whole = add_header(stripped(b"hello" * 100), NAME)
    assert gzip.decompress(whole) == b"hello" * 100
    assert whole[3] == 8
    assert int.from_bytes(whole[4:8], "little") == 1504176606
    assert whole[10:33] == b"train-labels-idx1-ubyte"[:23]
    assert whole[33] == 0


def test_files_are_whole_or_absent_and_the_source_is_only_read(tmp_path, monkeypatch):
    source, manual = tmp_path / "source", tmp_path / "data" / "manual"
    source.mkdir()
    names = list(fashion_mnist.SHA256)
    for name in names:
        (source / name).write_bytes(stripped(name.encode()))
    good = {
        name: hashlib.sha256(add_header(stripped(name.encode()), name)).hexdigest()
        for name in names
    }
    monkeypatch.setattr(fashion_mnist, "SHA256", good | {names[-1]: "0" * 64})
    with pytest.raises(DatasetError, match=rf"{names[-1]} is not the file that was published"):
        restore_files(source, manual)
    assert sorted(path.name for path in manual.iterdir()) == sorted(names[:-1])
    monkeypatch.setattr(fashion_mnist, "SHA256", good)
    assert restore_files(source, manual) == [manual / name for name in names]
    assert {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in manual.iterdir()
    } == good
    assert {path.name: path.read_bytes() for path in source.iterdir()} == {
        name: stripped(name.encode()) for name in names
    }


def test_a_missing_package_is_named(tmp_path):
    with pytest.raises(
        DatasetError,
        match=r"There is no .*t10k-images-idx3-ubyte.gz.* apt-get install dataset-fashion-mnist",
    ):
        restore_files(tmp_path, tmp_path / "manual")


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_seventy_thousand_images_without_the_network(make_dataset, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    restore_files(DEBIAN, tmp_path / "tfds" / "downloads" / "manual")
    dataset = make_dataset(dataset="fashion_mnist")
    assert {split: dataset.count_images(split) for split in dataset.reads} == {
        "train": 54_000,
        "validation": 6_000,
        "test": 10_000,
    }
    assert dataset.class_counts["test"] == (1000,) * 10
