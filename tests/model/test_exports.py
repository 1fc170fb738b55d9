"""Every network keeps its numbers in a file: bit for bit in `.keras`, to float rounding in
SavedModel, ONNX and LiteRT."""

import io
import os
from contextlib import redirect_stdout

import numpy as np
import pytest
import tensorflow as tf

from pipeline.model.networks import build_network
from pipeline.model.weights import load_model, save_model
from tests.networks import model_config

CASES = {
    "paper": {"network": "paper", "image_size": 64},
    "paper, text": {"network": "paper", "fidelity": "paper", "image_size": 64},
    "caffenet": {"network": "caffenet", "image_size": 64},
    "ungrouped": {"network": "ungrouped", "image_size": 64},
    "single_tower": {"network": "single_tower", "image_size": 64},
    "owt": {"network": "owt", "image_size": 64},
    "small": {"network": "small", "image_size": 32},
    "cifar": {"network": "cifar", "image_size": 32},
    "batch normalization": {"network": "small", "image_size": 32, "normalization": "batch"},
}
# With towers and their normalization, without, and with that of batches.
QUICK = ("paper", "owt", "small", "cifar", "batch normalization")


def network(case):
    config = model_config(width_multiplier=0.25, **CASES[case])
    return build_network(
        config, num_classes=4, channel_mean=(120, 110, 100), channel_std=(60, 50, 40)
    )


def pixels(model, count=2):
    return np.random.default_rng(0).integers(
        0, 256, (count, *model.input_shape[1:]), dtype=np.uint8
    )


@pytest.mark.parametrize(
    "case",
    [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES],
)
def test_keras_round_trip_gives_equal_bits(case, tmp_path):
    model = network(case)
    save_model(model, tmp_path / "model.keras")
    images = pixels(model)
    assert np.array_equal(
        np.asarray(model(images)), np.asarray(load_model(tmp_path / "model.keras")(images))
    )


@pytest.mark.parametrize(
    "case",
    [case if case in QUICK[::4] else pytest.param(case, marks=pytest.mark.slow) for case in CASES],
)
def test_saved_model(case, tmp_path):
    model = network(case)
    with redirect_stdout(io.StringIO()):
        model.export(os.fspath(tmp_path / "saved"), format="tf_saved_model", verbose=False)
    images, loaded = pixels(model), tf.saved_model.load(os.fspath(tmp_path / "saved"))
    np.testing.assert_allclose(
        np.asarray(loaded.serve(images)), np.asarray(model(images)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "case",
    ["paper", *(pytest.param(case, marks=pytest.mark.slow) for case in CASES if case != "paper")],
)
# tf2onnx asks NumPy for a name that will get another meaning.
@pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning")
def test_onnx(case, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    model = network(case)
    images = pixels(model)
    expected = np.asarray(model(images))
    with redirect_stdout(io.StringIO()):
        model.export(os.fspath(tmp_path / "model.onnx"), format="onnx", verbose=False)
    session = runtime.InferenceSession(
        os.fspath(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {session.get_inputs()[0].name: images})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "case",
    ["paper", *(pytest.param(case, marks=pytest.mark.slow) for case in CASES if case != "paper")],
)
def test_litert(case, tmp_path):
    interpreter_of = pytest.importorskip("ai_edge_litert.interpreter")
    model = network(case)
    images = pixels(model, 1)
    with redirect_stdout(io.StringIO()):
        model.export(os.fspath(tmp_path / "model.tflite"), format="litert", verbose=False)
    interpreter = interpreter_of.Interpreter(os.fspath(tmp_path / "model.tflite"))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images)
    interpreter.invoke()
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(found, np.asarray(model(images)), rtol=1e-4, atol=1e-5)
