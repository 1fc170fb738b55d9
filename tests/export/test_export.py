"""The record and report of an export, and requests that cannot be met."""

import json

import pytest

from pipeline.errors import ConfigError, DatasetError
from pipeline.export import export as module
from pipeline.export.export import export_release
from tests.export.networks import IMAGES


def test_the_report_and_its_numbers_are_written(release, tmp_path, fake):
    fake()
    exported = export_release(release, "onnx", tmp_path / "deep" / "out", IMAGES)
    document = json.loads((exported.directory / "parity.json").read_text(encoding="utf-8"))
    assert document == json.loads(json.dumps(exported.as_dict()))
    assert (document["format"], document["model_sha256"], document["bytes"]) == (
        "onnx",
        release.model_sha256,
        5,
    )
    assert document["checks"][0] | {"allowed": 0} == {
        "endpoint": "image",
        "images": 12,
        "difference": 0,
        "allowed": 0,
        "probability_difference": 0,
        "same_top5": 12,
    }
    page = exported.page.read_text(encoding="utf-8")
    assert release.model_sha256 in page
    assert "fake 1 classifies 12 images as the released model does" in page


def test_wishes_that_cannot_be_met(release, tmp_path, monkeypatch):
    output = tmp_path / "out"
    with pytest.raises(
        ConfigError,
        match=r"Unknown format 'tflite'\. Expected savedmodel, onnx or litert\. Check the format\.",
    ):
        export_release(release, "tflite", output, IMAGES)
    with pytest.raises(ConfigError, match="8-bit integers are available for litert alone"):
        export_release(release, "savedmodel", output, IMAGES, int8=True)
    with pytest.raises(ConfigError, match="no image to compare"):
        export_release(release, "savedmodel", output, [])
    with pytest.raises(DatasetError, match="cannot be used: text, not an image"):
        export_release(release, "savedmodel", output, [IMAGES[0], b"hello"])
    found = module.importlib.util.find_spec
    monkeypatch.setattr(
        module.importlib.util,
        "find_spec",
        lambda name: None if name in ("tf2onnx", "ai_edge_litert") else found(name),
    )
    with pytest.raises(
        ConfigError, match=r"not installed: tf2onnx.*pip install 'alexnet-pipeline\[onnx\]'"
    ):
        export_release(release, "onnx", output, IMAGES)
    with pytest.raises(
        ConfigError,
        match=r"not installed: ai_edge_litert.*pip install 'alexnet-pipeline\[litert\]'",
    ):
        export_release(release, "litert", output, IMAGES)
    assert list(tmp_path.iterdir()) == []
