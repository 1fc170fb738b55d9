"""The folder of an export is complete or absent, whatever was there."""

import pytest

from pipeline.errors import ConfigError, GateError
from pipeline.export.export import export_release
from tests.export.networks import IMAGES


def test_an_earlier_export_is_replaced_and_nothing_else(release, tmp_path, fake):
    fake()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.txt").write_text("years")
    for taken in ("mine", "out", "mine/thesis.txt"):
        with pytest.raises(ConfigError, match="exists already, and is not an export"):
            export_release(release, "onnx", tmp_path / taken, IMAGES)
    assert len(list(tmp_path.rglob("thesis.txt"))) == 2
    (tmp_path / "empty").mkdir()
    first = export_release(release, "onnx", tmp_path / "empty", IMAGES)
    (first.directory / "of the first").touch()
    second = export_release(release, "onnx", tmp_path / "empty", IMAGES)
    assert second.directory == first.directory
    assert sorted(path.name for path in second.directory.iterdir()) == [
        "model.onnx",
        "parity.json",
        "report.html",
    ]
    with pytest.raises(ConfigError, match=r"cannot be written .* --output"):
        export_release(release, "onnx", tmp_path / "mine" / "thesis.txt" / "out", IMAGES)


def test_a_killed_export_costs_nothing(release, tmp_path, fake):
    fake()
    first = export_release(release, "onnx", tmp_path / "out", IMAGES)
    first.directory.rename(tmp_path / "out.old")  # killed between the two renames
    (tmp_path / "out.partial").mkdir()
    fake(change=1)
    with pytest.raises(GateError):
        export_release(release, "onnx", tmp_path / "out", IMAGES)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert first.file.read_bytes() == b"model"
