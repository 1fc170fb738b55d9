"""The process that reads an export back."""

import subprocess
import sys

import pytest

from pipeline.errors import GateError
from pipeline.export import export as module
from pipeline.export import parity, readback
from pipeline.export.export import export_release
from tests.export.networks import IMAGES


def test_a_reader_that_dies_is_quoted(release, tmp_path, fake, monkeypatch):
    fake()
    monkeypatch.setattr(module, "read_back_models", parity.read_back_models)
    with pytest.raises(
        GateError, match=r"onnxruntime cannot read the export back \(.+\)\. Expected predictions"
    ):
        export_release(release, "onnx", tmp_path / "out", IMAGES)
    assert list(tmp_path.iterdir()) == []


def test_readers_hold_nothing_of_ours():
    words = (
        "import runpy, sys; runpy.run_path(sys.argv[1]); print(sorted({'pipeline', 'keras',"
        " 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", words, readback.__file__],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
