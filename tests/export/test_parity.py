"""An export that differs by more than rounding is refused."""

import numpy as np
import pytest

from pipeline.errors import GateError
from pipeline.export import export as module
from pipeline.export.export import export_release
from pipeline.model.weights import load_model
from tests.export.networks import IMAGES, NAMES


def test_a_changed_weight_is_found_and_nothing_is_left(release, tmp_path, monkeypatch):
    pytest.importorskip("tf2onnx")

    def perturbed(classifier):
        other = load_model(classifier.release.model_path)
        kernel = other.get_layer("fc8").kernel
        kernel.assign(kernel + 1e-3 * np.sign(kernel))
        return whole(type(classifier)(**{**vars(classifier), "model": other}))

    whole = module.make_export_network
    monkeypatch.setattr(module, "make_export_network", perturbed)
    with pytest.raises(
        GateError,
        match=(
            r"The export to onnx does not answer as the released model does.* Nothing was written"
        ),
    ):
        export_release(release, "onnx", tmp_path / "out", IMAGES)
    assert list(tmp_path.iterdir()) == []


def test_logits_may_differ_by_rounding_alone(release, expected, tmp_path, fake):
    allowed = 1e-5 * max(1, np.abs(expected[1]).max())
    fake(change=0.5 * allowed)
    assert (
        0 < export_release(release, "onnx", tmp_path / "a", IMAGES).checks[0].difference < allowed
    )
    fake(change=1e-3)
    with pytest.raises(
        GateError, match=r"Expected logits of `image` within .* Received differences of 1\.0e-03"
    ):
        export_release(release, "onnx", tmp_path / "b", IMAGES)
    fake(change=np.nan)
    with pytest.raises(GateError, match="Received differences of nan"):
        export_release(release, "onnx", tmp_path / "b", IMAGES)
    fake(names=NAMES[::-1])
    with pytest.raises(GateError, match="gives other class names"):
        export_release(release, "onnx", tmp_path / "b", IMAGES)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
