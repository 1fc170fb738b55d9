import sys

import pytest

from pipeline.errors import DatasetError

BEAM = "--runner=DirectRunner"


@pytest.mark.slow
def test_beam_makes_the_same_shards(folder, make_dataset):
    plain, beam = make_dataset(dataset=str(folder)), make_dataset(dataset=str(folder), beam=BEAM)
    assert beam.identity() == plain.identity()
    for one, other in zip(
        sorted(plain.shards.glob("*.tfrecord*")),
        sorted(beam.shards.glob("*.tfrecord*")),
        strict=True,
    ):
        assert one.name == other.name
        assert one.read_bytes() == other.read_bytes()


def test_beam_that_is_missing_is_named(folder, make_dataset, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(DatasetError, match=r"needs the package apache-beam.*\[beam\]"):
        make_dataset(dataset=str(folder), beam=BEAM)
