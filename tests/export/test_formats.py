"""Each format, opened by its own runtime, answers as the released model does."""

import json
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from scipy import special
from sklearn.datasets import load_sample_images

from pipeline.data.headers import read_orientation
from pipeline.errors import GateError
from pipeline.export.export import export_release
from pipeline.export.formats import read_orientation_in_graph, replace_erfc
from pipeline.export.record import FORMATS
from pipeline.model.weights import load_model
from tests.export.networks import (
    CASES,
    IMAGES,
    NAMES,
    TEMPERATURE,
    network,
    oriented,
    released,
    saved,
)


def require_equal(found, expected):
    _, logits, probabilities = expected
    np.testing.assert_allclose(found["logits"], logits, rtol=0, atol=1e-5 * np.abs(logits).max())
    np.testing.assert_allclose(found["probabilities"], probabilities, rtol=0, atol=1e-5)


def test_saved_model_answers_pixels_and_files(release, expected, tmp_path, capfd):
    exported = export_release(release, "savedmodel", tmp_path / "1", IMAGES)
    assert capfd.readouterr().out == ""
    signatures = tf.saved_model.load(str(exported.file)).signatures
    require_equal(signatures["image"](image=expected[0]), expected)
    require_equal(signatures["jpeg"](image_bytes=IMAGES), expected)
    assert [name.decode() for name in signatures["class_names"]()["class_names"].numpy()] == list(
        NAMES
    )
    labels = (exported.directory / "assets.extra" / "labels.txt").read_text(encoding="utf-8")
    assert labels == "cat\némeu\ntwo words\n<b>\nline break\n6\n"
    assert [check.endpoint for check in exported.checks] == ["serving_default", "jpeg"]
    assert all(check.images == check.same_top5 == len(IMAGES) for check in exported.checks)
    # Every weight is there once.
    weights = 4 * sum(
        int(np.prod(variable.shape)) for variable in load_model(release.model_path).weights
    )
    assert (
        weights
        < (exported.directory / "variables" / "variables.data-00000-of-00001").stat().st_size
        < 1.1 * weights
    )


def test_onnx_answers_alike_and_says_what_it_is(release, expected, tmp_path, capfd):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    exported = export_release(release, "onnx", tmp_path / "onnx", IMAGES)
    assert capfd.readouterr() == ("", "")
    session = runtime.InferenceSession(exported.file, providers=["CPUExecutionProvider"])
    (takes,) = session.get_inputs()
    assert (takes.name, takes.type, takes.shape) == ("image", "tensor(uint8)", ["batch", 32, 32, 3])
    outputs = [output.name for output in session.get_outputs()]
    assert outputs == ["logits", "probabilities"]
    require_equal(
        dict(zip(outputs, session.run(None, {"image": expected[0]}), strict=True)), expected
    )
    assert sorted(path.name for path in exported.directory.iterdir()) == [
        *("labels.txt", "model.onnx", "parity.json"),
        *("pixels.py", "report.html"),
    ]
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["class_names"]) == list(NAMES)
    assert (told["model_sha256"], float(told["temperature"]), told["short_side"]) == (
        release.model_sha256,
        TEMPERATURE,
        "40",
    )


def test_onnx_has_erfc_by_erf():
    runtime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None])
        for name in ("x", "y")
    ]
    nodes = [
        onnx.helper.make_node(kind, [a], [b])
        for kind, a, b in (("Neg", "x", "z"), ("Erfc", "z", "e"), ("Abs", "e", "y"))
    ]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:])
    replace_erfc(graph)
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 15)], ir_version=8
    )
    onnx.checker.check_model(model)
    x = np.linspace(-4, 4, 33, dtype=np.float32)
    (found,) = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    ).run(None, {"x": x})
    np.testing.assert_allclose(found, special.erfc(-x), rtol=0, atol=3e-7)


def test_litert_answers_alike_and_holds_the_labels(release, expected, tmp_path, capfd):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    exported = export_release(release, "litert", tmp_path / "litert", IMAGES)
    assert capfd.readouterr() == ("", "")
    answer = interpreter.Interpreter(str(exported.file)).get_signature_runner("serving_default")
    require_equal(answer(image=expected[0]), expected)
    with zipfile.ZipFile(exported.file) as archive:
        assert archive.read("labels.txt").decode().splitlines()[1] == "émeu"
        assert json.loads(archive.read("model.json"))["class_names"] == list(NAMES)


def test_a_network_that_the_format_cannot_hold_is_named(tmp_path):
    pytest.importorskip("ai_edge_litert")
    image = keras.Input((8, 8, 3), dtype="uint8")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 256)(image))
    logits = keras.layers.Dense(6)(keras.ops.erfinv(x))
    with pytest.raises(
        GateError,
        match=r"tiny cannot be written as litert \(ValueError: 'tf\.Erfinv' op .* Nothing was",
    ):
        export_release(
            released(keras.Model(image, logits), tmp_path / "model"),
            "litert",
            tmp_path / "out",
            IMAGES[:1],
        )
    assert not (tmp_path / "out").exists()


def test_orientation_in_graph_is_that_of_python():
    image = Image.fromarray(load_sample_images().images[0][:40, :60])
    plain = [saved(image, kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF")]
    turned = [
        oriented(image, kind, number, order)
        for kind in ("JPEG", "PNG", "WEBP")
        for number in range(1, 9)
        for order in ("MM", "II")
    ]
    odd = [oriented(image, "JPEG", number) for number in (0, 9, 60_000)]
    broken = [
        turned[10].replace(b"MM\0*", b"XX\0*"),
        turned[10][:40],
        turned[10][:36],
        b"",
        b"RIFF",
        turned[-1][:-40],
    ]
    broken += [
        b"\xff\xd8\xff\xe1\0\x10Exif\0\0" + block for block in (b"", b"I", b"II*\0\xff\xff\xff\xff")
    ]
    graph = tf.function(read_orientation_in_graph, input_signature=[tf.TensorSpec((), tf.string)])
    files = plain + turned + odd + broken
    found = [int(graph(tf.constant(encoded))) for encoded in files]
    assert found == [read_orientation(encoded) for encoded in files]
    assert set(found) == set(range(1, 9))


def from_elsewhere(kind):
    image = keras.Input((24, 24, 3), dtype="uint8" if kind == "uint8" else "float32")
    x = keras.layers.Rescaling(1 / 64, offset=-2.0)(image)
    x = keras.layers.SeparableConv2D(16, 3, activation="gelu", padding="same")(x)
    x = keras.layers.Dropout(0.5)(
        keras.layers.GlobalAveragePooling2D()(keras.layers.BatchNormalization()(x))
    )
    return keras.Model(
        image, keras.layers.Dense(6, activation="softmax" if kind == "softmax" else None)(x)
    )


@pytest.mark.slow
@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize(
    "case", [*CASES, "elsewhere: uint8", "elsewhere: float32", "elsewhere: softmax"]
)
def test_every_network_in_every_format(case, to, tmp_path):
    pytest.importorskip("tf2onnx")
    pytest.importorskip("ai_edge_litert")
    model = (
        from_elsewhere(case.partition(": ")[2]) if case.startswith("elsewhere") else network(case)
    )
    exported = export_release(released(model, tmp_path / "model"), to, tmp_path / "out", IMAGES)
    assert all(
        check.difference <= check.allowed and check.same_top5 == 12 for check in exported.checks
    )
