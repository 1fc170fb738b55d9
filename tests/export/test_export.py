"""An export is read back by its own runtime on real images; what does not answer as the release
does is not left behind."""

import io
import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from scipy import special
from sklearn.datasets import load_sample_images

from pipeline.artifacts import file_sha256
from pipeline.data.decoding import decode_and_resize
from pipeline.data.headers import read_orientation
from pipeline.errors import ConfigError, DatasetError, GateError
from pipeline.evaluate.metrics import wilson_interval
from pipeline.export import export as module
from pipeline.export import pixels, readback
from pipeline.export.export import export
from pipeline.export.formats import orientation_in_graph, replace_erfc
from pipeline.model.networks import build_network
from pipeline.model.weights import load_model, save_model
from pipeline.release.classify import load_classifier
from pipeline.release.package import Release
from tests.networks import model_config

NAMES = ("cat", "émeu", "two words", "<b>", "line\nbreak", "6")
TEMPERATURE = 1.7
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
    "gelu": {"network": "small", "image_size": 32, "activation": "gelu"},
}


def saved(image, kind, **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def oriented(image, kind, number, order="MM"):
    exif = Image.Exif()
    exif[0x0112] = number
    exif.endian = {"MM": ">", "II": "<"}[order]
    return saved(image, kind, exif=exif)


def photographs(count=12):
    """Pieces of scikit-learn's two photographs, in every format, some larger and some smaller than
    the network's input."""
    rng, images = (
        np.random.default_rng(0),
        [Image.fromarray(pixels) for pixels in load_sample_images().images],
    )
    kinds = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
    found = []
    for place in range(count):
        width, height = rng.integers(20, 400, 2)
        left, top = rng.integers(0, 640 - width), rng.integers(0, 427 - height)
        piece = images[place % 2].crop((left, top, left + width, top + height))
        found.append(
            oriented(piece, "JPEG", place % 8 + 1)
            if place % 3 == 0
            else saved(piece, kinds[place % 5])
        )
    return found


IMAGES = photographs()


def released(model, directory, **known):
    directory.mkdir(parents=True, exist_ok=True)
    save_model(model, directory / "model.keras")
    known = {
        "class_names": NAMES,
        "short_side": model.input_shape[1] + 8,
        "temperature": TEMPERATURE,
        "name": "tiny",
    } | known
    return Release(
        directory=directory,
        model_file="model.keras",
        model_sha256=file_sha256(directory / "model.keras"),
        **known,
    )


def network(case="small", width=0.25):
    config = model_config(width_multiplier=width, **CASES[case])
    return build_network(
        config, num_classes=len(NAMES), channel_mean=(120, 110, 100), channel_std=(60, 50, 40)
    )


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return released(network(), tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def opened(release):
    return load_classifier(release)


@pytest.fixture(scope="module")
def expected(release, opened):
    """Return pixels, logits and probabilities of the images."""
    pixels = np.stack([opened.pixels(encoded) for encoded in IMAGES])
    logits = np.asarray(load_model(release.model_path)(pixels))
    return pixels, logits, np.asarray(tf.nn.softmax(logits / TEMPERATURE))


def require_equal(found, expected):
    _, logits, probabilities = expected
    np.testing.assert_allclose(found["logits"], logits, rtol=0, atol=1e-5 * np.abs(logits).max())
    np.testing.assert_allclose(found["probabilities"], probabilities, rtol=0, atol=1e-5)


def test_saved_model_answers_pixels_and_files(release, expected, tmp_path, capfd):
    exported = export(release, "savedmodel", tmp_path / "1", IMAGES)
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
    exported = export(release, "onnx", tmp_path / "onnx", IMAGES)
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
    exported = export(release, "litert", tmp_path / "litert", IMAGES)
    assert capfd.readouterr() == ("", "")
    answer = interpreter.Interpreter(str(exported.file)).get_signature_runner("serving_default")
    require_equal(answer(image=expected[0]), expected)
    with zipfile.ZipFile(exported.file) as archive:
        assert archive.read("labels.txt").decode().splitlines()[1] == "émeu"
        assert json.loads(archive.read("model.json"))["class_names"] == list(NAMES)


@pytest.fixture(scope="module")
def labeled(opened):
    """Return 30 images, each with the class that the released model gives it, but two with another."""
    images = photographs(30)
    answers = opened.logits(np.stack([opened.pixels(encoded) for encoded in images])).argmax(axis=1)
    answers[:2] = (answers[:2] + 1) % len(NAMES)
    return list(zip(images, answers.tolist(), strict=True))


def test_integers_are_judged_by_their_errors(release, labeled, tmp_path, capfd):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    output, told = tmp_path / "int8", []
    exported = export(
        release,
        "litert",
        output,
        IMAGES,
        int8=True,
        calibration=labeled,
        test=iter(labeled),
        max_error_rise=1,
        progress=told.append,
    )
    assert capfd.readouterr() == ("", "")
    cost = exported.cost
    assert (cost.images, cost.float_top1_error) == (30, pytest.approx(2 / 30))
    assert cost.float_interval == wilson_interval(2, 30)
    assert cost.rise == pytest.approx(cost.int8_top1_error - 2 / 30)
    assert cost.rise_interval[0] < cost.rise < cost.rise_interval[1]
    assert 0 < exported.bytes < 0.5 * cost.float_bytes
    assert min(cost.float_seconds, exported.seconds) > 0
    assert exported.checks[0].difference > 1e-3  # integers, indeed
    opened = interpreter.Interpreter(str(exported.file))
    assert opened.get_input_details()[0]["dtype"] == np.uint8
    kinds = [detail["dtype"] for detail in opened.get_tensor_details()]
    assert kinds.count(np.int8) > 2 * kinds.count(np.float32)
    assert "a rise of" in exported.headline()
    assert "counting what int8 costs: 30 test images" in told


def test_what_int8_costs_is_a_paired_count():
    wrong, int8_wrong = np.zeros(1000, bool), np.zeros(1000, bool)
    wrong[:30], int8_wrong[20:70] = True, True
    cost = module._cost(wrong, int8_wrong, 10, 0.1)
    assert (cost.float_top1_error, cost.int8_top1_error, cost.rise) == (
        0.03,
        0.05,
        pytest.approx(0.02),
    )
    # 40 and 20 images that one alone gets wrong: 0.02 +- 1.96 sqrt(60 / 1000 - 0.02^2) /
    # sqrt(1000), to the precision of that formula.
    assert cost.rise_interval == pytest.approx((0.02 - 0.01513, 0.02 + 0.01513), abs=1e-3)


@pytest.fixture
def fake(opened, monkeypatch):
    """Let a format be written and read back in no time, by a model that answers what it is told."""

    def answers(change=0.0, names=NAMES):
        def write(network, release, folder, calibration=()):
            (folder / "model.onnx").write_bytes(b"model")
            return folder / "model.onnx"

        def read_back(job, to, paths, pixels=None, *, rounds=0):
            logits = job.seen.logits + change if pixels is None else opened.logits(pixels)[:, ::-1]
            many = len(paths)
            return module._Read(
                "fake",
                "1",
                [names] * many,
                [{"image": (logits, job.seen.probabilities)}] * many,
                [0.001] * many,
            )

        monkeypatch.setattr(module, "WRITERS", {"onnx": write, "litert": write})
        monkeypatch.setattr(module, "_read_back", read_back)
        monkeypatch.setattr(module, "_PACKAGES", {"onnx": (), "litert": ()})
        monkeypatch.setattr(module, "load_classifier", lambda _: opened)
        monkeypatch.setattr(module, "answering", lambda _: None)

    return answers


def test_a_changed_weight_is_found_and_nothing_is_left(release, tmp_path, monkeypatch):
    pytest.importorskip("tf2onnx")

    def perturbed(classifier):
        other = load_model(classifier.release.model_path)
        kernel = other.get_layer("fc8").kernel
        kernel.assign(kernel + 1e-3 * np.sign(kernel))
        return whole(type(classifier)(**{**vars(classifier), "model": other}))

    whole = module.answering
    monkeypatch.setattr(module, "answering", perturbed)
    with pytest.raises(
        GateError,
        match=(
            r"The export to onnx does not answer as the released model does.* Nothing was written"
        ),
    ):
        export(release, "onnx", tmp_path / "out", IMAGES)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_the_format_cannot_hold_is_named(tmp_path):
    pytest.importorskip("ai_edge_litert")
    image = keras.Input((8, 8, 3), dtype="uint8")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 256)(image))
    logits = keras.layers.Dense(6)(keras.ops.erfinv(x))
    with pytest.raises(
        GateError,
        match=r"tiny has no form in litert \(ValueError: 'tf\.Erfinv' op .* Nothing was written",
    ):
        export(
            released(keras.Model(image, logits), tmp_path / "model"),
            "litert",
            tmp_path / "out",
            IMAGES[:1],
        )
    assert not (tmp_path / "out").exists()


def test_logits_may_differ_by_rounding_alone(release, expected, tmp_path, fake):
    allowed = 1e-5 * max(1, np.abs(expected[1]).max())
    fake(change=0.5 * allowed)
    assert 0 < export(release, "onnx", tmp_path / "a", IMAGES).checks[0].difference < allowed
    fake(change=1e-3)
    with pytest.raises(
        GateError, match=r"Expected logits of `image` within .* Received differences of 1\.0e-03"
    ):
        export(release, "onnx", tmp_path / "b", IMAGES)
    fake(change=np.nan)
    with pytest.raises(GateError, match="Received differences of nan"):
        export(release, "onnx", tmp_path / "b", IMAGES)
    fake(names=NAMES[::-1])
    with pytest.raises(GateError, match="gives other class names"):
        export(release, "onnx", tmp_path / "b", IMAGES)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_integers_that_err_more_are_refused(release, labeled, tmp_path, fake):
    fake()  # reads the classes backwards
    settings = {"int8": True, "calibration": labeled, "test": labeled}
    with pytest.raises(
        GateError,
        match=(
            r"cost too much: .* in place of 6\.7 % on 30 .* Expected a rise of at most 5\.0 points"
        ),
    ):
        export(release, "litert", tmp_path / "out", IMAGES, **settings)
    assert list(tmp_path.iterdir()) == []
    exported = export(release, "litert", tmp_path / "out", IMAGES, **settings, max_error_rise=1)
    assert "rise of" in exported.page.read_text(encoding="utf-8")


def test_the_report_and_its_numbers_are_written(release, tmp_path, fake):
    fake()
    exported = export(release, "onnx", tmp_path / "deep" / "out", IMAGES)
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
    assert "fake 1 answers 12 images as the released model does" in page


def test_an_earlier_export_is_replaced_and_nothing_else(release, tmp_path, fake):
    fake()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.txt").write_text("years")
    for taken in ("mine", "out", "mine/thesis.txt"):
        with pytest.raises(ConfigError, match="is there already, and no export made it"):
            export(release, "onnx", tmp_path / taken, IMAGES)
    assert len(list(tmp_path.rglob("thesis.txt"))) == 2
    (tmp_path / "empty").mkdir()
    first = export(release, "onnx", tmp_path / "empty", IMAGES)
    (first.directory / "of the first").touch()
    second = export(release, "onnx", tmp_path / "empty", IMAGES)
    assert second.directory == first.directory
    assert sorted(path.name for path in second.directory.iterdir()) == [
        "model.onnx",
        "parity.json",
        "report.html",
    ]
    with pytest.raises(ConfigError, match=r"cannot be written .* --output"):
        export(release, "onnx", tmp_path / "mine" / "thesis.txt" / "out", IMAGES)


def test_a_killed_export_costs_nothing(release, tmp_path, fake):
    fake()
    first = export(release, "onnx", tmp_path / "out", IMAGES)
    first.directory.rename(tmp_path / "out.old")  # killed between the two renames
    (tmp_path / "out.partial").mkdir()
    fake(change=1)
    with pytest.raises(GateError):
        export(release, "onnx", tmp_path / "out", IMAGES)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert first.file.read_bytes() == b"model"


def test_wishes_that_cannot_be_met(release, tmp_path, monkeypatch):
    output = tmp_path / "out"
    with pytest.raises(
        ConfigError, match=r"no format 'tflite'\. Expected savedmodel, onnx or litert\. Check --to"
    ):
        export(release, "tflite", output, IMAGES)
    with pytest.raises(ConfigError, match="8-bit integers are made for litert alone"):
        export(release, "savedmodel", output, IMAGES, int8=True)
    with pytest.raises(ConfigError, match="no image to compare"):
        export(release, "savedmodel", output, [])
    with pytest.raises(DatasetError, match="cannot be used: text, not an image"):
        export(release, "savedmodel", output, [IMAGES[0], b"hello"])
    found = module.importlib.util.find_spec
    monkeypatch.setattr(
        module.importlib.util,
        "find_spec",
        lambda name: None if name in ("tf2onnx", "ai_edge_litert") else found(name),
    )
    with pytest.raises(
        ConfigError, match=r"not installed: tf2onnx.*pip install 'alexnet-pipeline\[onnx\]'"
    ):
        export(release, "onnx", output, IMAGES)
    with pytest.raises(
        ConfigError,
        match=r"not installed: ai_edge_litert.*pip install 'alexnet-pipeline\[litert\]'",
    ):
        export(release, "litert", output, IMAGES)
    assert list(tmp_path.iterdir()) == []


def test_integers_need_images(release, tmp_path, fake):
    fake()
    with pytest.raises(ConfigError, match="8-bit integers need calibration images"):
        export(release, "litert", tmp_path / "out", IMAGES, int8=True, test=[(IMAGES[0], 0)])
    with pytest.raises(ConfigError, match="8-bit integers need test images"):
        export(release, "litert", tmp_path / "out", IMAGES, int8=True, calibration=[(IMAGES[0], 0)])
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_dies_is_quoted(release, tmp_path, fake, monkeypatch):
    read_back = module._read_back
    fake()
    monkeypatch.setattr(module, "_read_back", read_back)
    with pytest.raises(
        GateError, match=r"onnxruntime cannot read the export back \(.+\)\. Expected answers"
    ):
        export(release, "onnx", tmp_path / "out", IMAGES)
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
    graph = tf.function(orientation_in_graph, input_signature=[tf.TensorSpec((), tf.string)])
    files = plain + turned + odd + broken
    found = [int(graph(tf.constant(encoded))) for encoded in files]
    assert found == [read_orientation(encoded) for encoded in files]
    assert set(found) == set(range(1, 9))


def test_pixels_without_tensorflow_are_those_of_training(tmp_path):
    alpha = Image.fromarray(load_sample_images().images[0][:200, :150])
    alpha.putalpha(Image.linear_gradient("L").resize(alpha.size))
    large = [
        saved(Image.fromarray(pixels), kind)
        for pixels in load_sample_images().images
        for kind in ("JPEG", "PNG")
    ]
    for encoded in [*IMAGES, *large, saved(alpha, "PNG"), saved(alpha, "WEBP", lossless=True)]:
        (tmp_path / "image").write_bytes(encoded)
        expected = np.asarray(decode_and_resize(encoded, 48, read_orientation(encoded)))[4:44, 4:44]
        found = pixels.pixels(tmp_path / "image", short_side=48, image_size=40)
        assert (found.shape, found.dtype) == ((1, 40, 40, 3), np.uint8)
        difference = np.abs(found[0].astype(int) - expected)
        assert difference.mean() < 0.8  # a filter laid over it: 4 to 7
        assert difference.max() < 30


# -- every network ---------------------------------------------------------------------------------


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
@pytest.mark.parametrize("to", module.FORMATS)
@pytest.mark.parametrize(
    "case", [*CASES, "elsewhere: uint8", "elsewhere: float32", "elsewhere: softmax"]
)
def test_every_network_in_every_format(case, to, tmp_path):
    pytest.importorskip("tf2onnx")
    pytest.importorskip("ai_edge_litert")
    model = (
        from_elsewhere(case.partition(": ")[2]) if case.startswith("elsewhere") else network(case)
    )
    exported = export(released(model, tmp_path / "model"), to, tmp_path / "out", IMAGES)
    assert all(
        check.difference <= check.allowed and check.same_top5 == 12 for check in exported.checks
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_network_in_integers(case, tmp_path):
    pytest.importorskip("ai_edge_litert")
    release = released(network(case), tmp_path / "model")
    labeled = [(encoded, 0) for encoded in IMAGES]
    exported = export(
        release,
        "litert",
        tmp_path / "out",
        IMAGES,
        int8=True,
        calibration=labeled,
        test=labeled,
        max_error_rise=1,
    )
    assert 0 < exported.checks[0].difference < 1
