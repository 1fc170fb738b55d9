"""Writers of the three export formats: SavedModel, ONNX and LiteRT.

All take uint8 pixels, return `logits` and `probabilities` calibrated with the temperature of the
release, and hold the class names. Nothing here checks the result: `pipeline.export.parity` reads it
back.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.lite.python.convert import ConverterError

from pipeline.data.decoding import decode_and_resize
from pipeline.evaluate.map_layers import flatten_graph
from pipeline.evaluate.scoring import MIN_PROBABILITY, ScoringModel
from pipeline.export import pixels
from pipeline.image_size import sides_of
from pipeline.model.graph import inline_submodels
from pipeline.release.classify import Classifier
from pipeline.release.package import Release
from pipeline.reports.export import describe_square

if TYPE_CHECKING:
    from onnx import GraphProto

    from pipeline.arrays import Images, Tensor

# The first date that a zip file can hold: equal models make equal files.
_ARCHIVE_DATE = (1980, 1, 1, 0, 0, 0)


def make_export_network(classifier: Classifier) -> keras.Model:
    """Return the network to export, from `image` to `logits` and `probabilities`.

    `image` is uint8 [batch, height, width, 3] in [0, 255]; both outputs are float32
    [batch, classes]. The logits are those of `Classifier.logits`: of a model that ends in softmax,
    the logarithms of its outputs.
    """
    model = replace_grouped_convolutions(classifier.model)
    image = keras.Input(model.input_shape[1:], dtype="uint8", name="image")
    # An external model may have another dtype for its pixels.
    logits = keras.ops.cast(
        model(keras.ops.cast(image, model.inputs[0].dtype), training=False), "float32"
    )
    if ScoringModel(model).ends_in_softmax:
        logits = keras.ops.log(keras.ops.maximum(logits, MIN_PROBABILITY))
    return keras.Model(
        image,
        {
            "logits": logits,
            "probabilities": keras.ops.softmax(logits / classifier.release.temperature),
        },
    )


def replace_grouped_convolutions(model: keras.Model) -> keras.Model:
    """Return a network whose convolutions with a group for each map are depthwise ones.

    Keras leaves groups to XLA, whose programs neither ONNX nor LiteRT can hold. Networks that are
    built here have none; files from elsewhere may.
    """
    flat = flatten_graph(model)
    layers = (layer for layer in flat.layers if isinstance(layer, keras.layers.Conv2D))
    return inline_submodels(flat) if any(layer.groups > 1 for layer in layers) else model


def describe_release(release: Release) -> dict[str, Any]:
    """Return the metadata that every format carries, as JSON can hold it."""
    return {
        "class_names": list(release.class_names),
        "temperature": release.temperature,
        "image_size": release.image_size,
        "short_side": release.short_side,
        "fit": release.fit,
        "model": release.title,
        "model_sha256": release.model_sha256,
        "pretrained": release.pretrained,
        "weights_licence": release.weights_licence,
        "input": (
            "image: uint8 [batch, height, width, 3], image_size each or both, RGB in [0, 255]; the"
            f" center of {describe_square(release.fit)} short_side"
        ),
    }


def format_labels(release: Release) -> str:
    """Return labels.txt: the class names in the order of the logits, one per line."""
    return "".join(f"{' '.join(name.splitlines())}\n" for name in release.class_names)


# -- SavedModel ------------------------------------------------------------------------------------


def write_savedmodel(network: keras.Model, release: Release, folder: Path) -> Path:
    """Write a SavedModel into a folder and return it.

    Signatures: `serving_default`, also named `image`, takes `image` uint8 [n, height, width, 3];
    `jpeg` takes `image_bytes` string [n], whole JPEG, PNG, BMP, GIF or WebP files; `class_names`
    takes nothing. labels.txt and model.json are in assets.extra/, which TensorFlow does not read.
    """
    levels = tf.TensorSpec((None, *sides_of(release.image_size), 3), tf.uint8, "image")
    files = tf.TensorSpec((None,), tf.string, "image_bytes")
    module = tf.Module()
    # Keras's own ExportArchive writes the weights twice, as its variables and as TensorFlow's.
    module.weights = [variable.value for variable in network.weights]
    with _silence():
        image = _trace(lambda image: network(image, training=False), levels)
        jpeg = _trace(
            lambda image_bytes: network(_decode_files(image_bytes, release), training=False), files
        )
        names = _trace(lambda: {"class_names": tf.constant(release.class_names)})
        signatures = {"serving_default": image, "image": image, "jpeg": jpeg, "class_names": names}
        tf.saved_model.save(module, os.fspath(folder), signatures)
    extra = folder / "assets.extra"
    extra.mkdir()
    (extra / "labels.txt").write_text(format_labels(release), encoding="utf-8")
    (extra / "model.json").write_text(json.dumps(describe_release(release)), encoding="utf-8")
    return folder


def _trace(function: Callable[..., Any], *signature: tf.TensorSpec) -> Callable[..., Any]:
    """Return a concrete function, the form in which a SavedModel takes an endpoint."""
    return tf.function(function, input_signature=signature, autograph=False).get_concrete_function()


def _decode_files(files: Tensor, release: Release) -> Tensor:
    """Return uint8 [n, height, width, 3] of image files, string [n].

    The pixels are those of `Classifier.pixels`, with the same EXIF rotation.
    """
    height, width = sides_of(release.image_size)
    top, left = (release.short_side - height) // 2, (release.short_side - width) // 2

    def decode_one(encoded: Tensor) -> Tensor:
        orientation = read_orientation_in_graph(encoded)
        square = decode_and_resize(encoded, release.short_side, orientation, fit=release.fit)
        return square[top : top + height, left : left + width]

    with tf.device("CPU:0"):  # no GPU decodes
        return tf.map_fn(
            decode_one, files, fn_output_signature=tf.TensorSpec((height, width, 3), tf.uint8)
        )


def read_orientation_in_graph(encoded: Tensor) -> Tensor:
    """Return the EXIF orientation, int32 [] in 1..8, of an image file, string [].

    `orientation_of` for where there is no Python.

    The block is found by its marker instead of by a walk from header to header. The six bytes of a
    JPEG's marker do not occur by chance; the four of a PNG's or a WebP's may, once in four
    gigabytes, and the bytes behind them would have to be a valid block.
    """
    # Zeros at the end, for reads beyond it.
    block = tf.cast(
        tf.io.decode_raw(tf.strings.substr(_find_exif_block(encoded), 0, 1 << 16), tf.uint8),
        tf.int64,
    )
    block = tf.concat([block, tf.zeros(16, tf.int64)], axis=0)
    little = tf.reduce_all(block[:2] == list(b"II"))

    def read_number(at: Tensor, length: int) -> Tensor:
        indices = tf.minimum(
            tf.expand_dims(at, -1) + tf.range(length, dtype=tf.int64), tf.size(block, tf.int64) - 1
        )
        digits = tf.gather(block, indices)
        return tf.reduce_sum(
            tf.where(little, digits, tf.reverse(digits, [-1]))
            * 256 ** tf.range(length, dtype=tf.int64),
            axis=-1,
        )

    directory = read_number(tf.constant(4, tf.int64), 4)
    entries = directory + 2 + 12 * tf.range(tf.minimum(read_number(directory, 2), 1000))
    # The tag, as in pipeline.data.headers.
    values = tf.boolean_mask(read_number(entries + 8, 2), read_number(entries, 2) == 0x0112)
    value = tf.concat([values, [1]], axis=0)[0]
    sound = (little | tf.reduce_all(block[:2] == list(b"MM"))) & (value >= 1) & (value <= 8)
    return tf.cast(tf.where(sound, value, 1), tf.int32)


def _find_exif_block(encoded: Tensor) -> Tensor:
    """Return the TIFF block, string [], in which a JPEG, PNG or WebP file keeps its EXIF tags.

    Empty where there is none.
    """

    def text_after(text: Tensor, marker: bytes) -> Tensor:
        return tf.concat([tf.strings.split([text], marker, maxsplit=1).values, [b"", b""]], axis=0)[
            1
        ]

    def find_png_block() -> Tensor:
        return text_after(tf.strings.split([encoded], b"IDAT", maxsplit=1).values[0], b"eXIf")

    def find_webp_block() -> Tensor:
        padded = tf.strings.join([text_after(encoded, b"EXIF"), b"\0" * 10])
        content = tf.strings.substr(padded, 4, 1 << 16)  # behind its length
        return tf.where(
            tf.strings.substr(content, 0, 6) == b"Exif\0\0",
            tf.strings.substr(content, 6, 1 << 16),
            content,
        )

    start = tf.strings.substr(encoded, 0, 4)
    cases = [
        (tf.strings.substr(start, 0, 2) == b"\xff\xd8", lambda: text_after(encoded, b"Exif\0\0")),
        (start == b"\x89PNG", find_png_block),
        (start == b"RIFF", find_webp_block),
    ]
    return tf.case(cases, default=lambda: tf.constant(b""), exclusive=True)


# -- ONNX ------------------------------------------------------------------------------------------


def write_onnx(network: keras.Model, release: Release, folder: Path) -> Path:
    """Write model.onnx into a folder and return it: `image` in, `logits` and `probabilities` out.

    `metadata_props` hold the metadata; labels.txt and pixels.py are beside the file.

    Raises:
        ValueError: ONNX cannot hold the network.
    """
    import onnx

    path = folder / "model.onnx"
    # Keras exports to ONNX only a network that was called.
    network(np.zeros((1, *sides_of(release.image_size), 3), np.uint8))
    with _silence():
        network.export(os.fspath(path), format="onnx", verbose=False)
    model = onnx.load(path)
    replace_erfc(model.graph)
    for tensor in (*model.graph.input, *model.graph.output):
        # tf2onnx names each batch dimension differently.
        tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
    properties = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in describe_release(release).items()
    }
    onnx.helper.set_model_props(model, properties)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ValueError(str(error)) from error
    onnx.save(model, path)
    (folder / "labels.txt").write_text(format_labels(release), encoding="utf-8")
    shutil.copyfile(pixels.__file__, folder / "pixels.py")
    return path


def replace_erfc(graph: GraphProto) -> None:
    """Replace each Erfc by 1 - Erf: ONNX lacks Erfc, and tf2onnx 1.17 writes it all the same.

    The activation gelu has one.
    """
    from onnx import helper, numpy_helper

    nodes, one = [], "one"
    for node in graph.node:
        if node.op_type == "Erfc":
            between = f"{node.output[0]}/erf"
            nodes += [
                helper.make_node("Erf", node.input, [between]),
                helper.make_node("Sub", [one, between], node.output),
            ]
        else:
            nodes.append(node)
    if len(nodes) > len(graph.node):
        graph.initializer.append(numpy_helper.from_array(np.ones((), np.float32), one))
        del graph.node[:]
        graph.node.extend(nodes)


# -- LiteRT ----------------------------------------------------------------------------------------


def write_litert(
    network: keras.Model, release: Release, folder: Path, calibration: Images | None = None
) -> Path:
    """Write model.tflite into a folder and return it.

    Signature `serving_default`, `image` in, `logits` and `probabilities` out.

    labels.txt and model.json are in a zip archive at the file's end, as TensorFlow Lite's metadata
    convention has it for associated files: the interpreter ignores them, and every program that
    opens zip archives finds them. pixels.py is beside the file.

    Args:
        network: of `make_export_network`.
        release: the source of the metadata.
        folder: to write into.
        calibration: uint8 [images, height, width, 3] in [0, 255], whose activations give the
            ranges of 8-bit integers. With them every operation between the pixels and the outputs
            is computed in integers; without, in float32.

    Raises:
        ValueError: LiteRT lacks an operation of the network.
    """
    path = folder / "model.tflite"
    kinds = tf.lite.OpsSet
    # LiteRT's own operations alone, none of TensorFlow's.
    settings: dict[str, Any] = {"target_spec": {"supported_ops": [kinds.TFLITE_BUILTINS]}}
    if calibration is not None:
        settings = {
            "target_spec": {"supported_ops": [kinds.TFLITE_BUILTINS_INT8]},
            "optimizations": [tf.lite.Optimize.DEFAULT],
            "representative_dataset": lambda: ([image[np.newaxis]] for image in calibration),
        }
    try:
        with _silence():
            network.export(os.fspath(path), format="litert", verbose=False, **settings)
    except ConverterError as error:
        # The converter has no other form of the reason, among pages of locations in the graph.
        reason = re.search(r"'tf\w*\.\w+' op [^\n]+", str(error))
        raise ValueError(reason[0] if reason else str(error)) from error
    texts = {
        "labels.txt": format_labels(release),
        "model.json": json.dumps(describe_release(release)),
    }
    with zipfile.ZipFile(path, "a") as archive:
        for name, text in texts.items():
            archive.writestr(zipfile.ZipInfo(name, _ARCHIVE_DATE), text)
    shutil.copyfile(pixels.__file__, folder / "pixels.py")
    return path


WRITERS: Mapping[str, Callable[..., Path]] = {
    "savedmodel": write_savedmodel,
    "onnx": write_onnx,
    "litert": write_litert,
}


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Discard the output of converters, which print, log and write to file descriptor 2 from C++.

    Their exceptions hold their errors.
    """
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as null:  # noqa: PTH123 - a device, not a path of ours
            os.dup2(null.fileno(), 2)
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            # Keras uses a NumPy name for tf2onnx that will change its meaning.
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
