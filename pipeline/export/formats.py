"""The three forms in which a released model leaves Keras: SavedModel, ONNX and LiteRT.

All take uint8 pixels, give `logits`, and `probabilities` calibrated with the release's temperature,
and hold the class names. Nothing here asks whether the result is right: `pipeline.export.export`
reads it back.
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
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.lite.python.convert import ConverterError

from pipeline.data.decoding import decode_and_resize
from pipeline.evaluate.scoring import Network
from pipeline.export import pixels
from pipeline.release.classify import Classifier
from pipeline.release.package import Release

# As in pipeline.evaluate.scoring: what a model from elsewhere gives as 0 has a logarithm too
_MIN_PROBABILITY = 1e-30
_EPOCH = (
    1980,
    1,
    1,
    0,
    0,
    0,
)  # the first moment that a zip file can name: equal models make equal files


def answering(classifier: Classifier) -> Any:
    """Return a Keras model from uint8 `image` [batch, size, size, 3] in [0, 255] to float32 [batch, classes] `logits` and `probabilities`.

    The logits are those of `Classifier.logits`: of a model that ends in softmax, the logarithms of
    what it gives.
    """
    model = classifier.model
    image = keras.Input(model.input_shape[1:], dtype="uint8", name="image")
    # A model from elsewhere may name another dtype for its pixels.
    logits = keras.ops.cast(
        model(keras.ops.cast(image, model.inputs[0].dtype), training=False), "float32"
    )
    if Network(model).ends_in_softmax:
        logits = keras.ops.log(keras.ops.maximum(logits, _MIN_PROBABILITY))
    return keras.Model(
        image,
        {
            "logits": logits,
            "probabilities": keras.ops.softmax(logits / classifier.release.temperature),
        },
    )


def described(release: Release) -> dict[str, Any]:
    """Return what goes with the model into every format, as JSON can hold it."""
    return {
        "class_names": list(release.class_names),
        "temperature": release.temperature,
        "image_size": release.image_size,
        "short_side": release.short_side,
        "model": release.title,
        "model_sha256": release.model_sha256,
        "input": (
            "image: uint8 [batch, image_size, image_size, 3], RGB in [0, 255]; the middle of the"
            " upright image's central square after that was resized to short_side"
        ),
    }


def labels_text(release: Release) -> str:
    """Return labels.txt: the class names in the order of the logits, one a line."""
    return "".join(f"{' '.join(name.splitlines())}\n" for name in release.class_names)


# -- SavedModel ------------------------------------------------------------------------------------


def write_savedmodel(network: Any, release: Release, folder: Path) -> Path:
    """Write a SavedModel into a folder and return it.

    Signatures: `serving_default`, also named `image`, takes `image` uint8 [n, size, size, 3];
    `jpeg` takes `image_bytes` string [n], whole JPEG, PNG, BMP, GIF or WebP files; `class_names`
    takes nothing. In assets.extra/, which TensorFlow does not read, lie labels.txt and model.json.
    """
    size = release.image_size
    levels, files = (
        tf.TensorSpec((None, size, size, 3), tf.uint8, "image"),
        tf.TensorSpec((None,), tf.string, "image_bytes"),
    )
    module = tf.Module()
    # Keras's own ExportArchive writes the weights twice, as its variables and as TensorFlow's.
    module.weights = [variable.value for variable in network.weights]
    with _quiet():
        image = _endpoint(lambda image: network(image, training=False), levels)
        jpeg = _endpoint(
            lambda image_bytes: network(_cut(image_bytes, release), training=False), files
        )
        names = _endpoint(lambda: {"class_names": tf.constant(release.class_names)})
        signatures = {"serving_default": image, "image": image, "jpeg": jpeg, "class_names": names}
        tf.saved_model.save(module, os.fspath(folder), signatures)
    extra = folder / "assets.extra"
    extra.mkdir()
    (extra / "labels.txt").write_text(labels_text(release), encoding="utf-8")
    (extra / "model.json").write_text(json.dumps(described(release)), encoding="utf-8")
    return folder


def _endpoint(function: Callable[..., Any], *signature: Any) -> Any:
    return tf.function(function, input_signature=signature, autograph=False).get_concrete_function()


def _cut(files: Any, release: Release) -> Any:
    """Return uint8 [n, size, size, 3] of image files, string [n].

    The pixels of `Classifier.pixels`, with the same turning upright.
    """
    size, margin = release.image_size, (release.short_side - release.image_size) // 2

    def cut(encoded: Any) -> Any:
        square = decode_and_resize(encoded, release.short_side, orientation_in_graph(encoded))
        return square[margin : margin + size, margin : margin + size]

    with tf.device("CPU:0"):  # no GPU decodes
        return tf.map_fn(cut, files, fn_output_signature=tf.TensorSpec((size, size, 3), tf.uint8))


def orientation_in_graph(encoded: Any) -> Any:
    """Return the EXIF orientation, int32 [] in 1..8, of an image file, string [].

    `orientation_of` for where there is no Python.

    The block is found by its mark instead of by a walk from header to header. The six bytes of a
    JPEG's mark do not occur by chance; the four of a PNG's or a WebP's may, once in four gigabytes,
    and what follows them would have to read like a block.
    """
    # Zeros at the end, which is what is read beyond it.
    block = tf.cast(
        tf.io.decode_raw(tf.strings.substr(_exif_block(encoded), 0, 1 << 16), tf.uint8), tf.int64
    )
    block = tf.concat([block, tf.zeros(16, tf.int64)], axis=0)
    little = tf.reduce_all(block[:2] == list(b"II"))

    def number(at: Any, length: int) -> Any:
        places = tf.minimum(
            tf.expand_dims(at, -1) + tf.range(length, dtype=tf.int64), tf.size(block, tf.int64) - 1
        )
        digits = tf.gather(block, places)
        return tf.reduce_sum(
            tf.where(little, digits, tf.reverse(digits, [-1]))
            * 256 ** tf.range(length, dtype=tf.int64),
            axis=-1,
        )

    directory = number(tf.constant(4, tf.int64), 4)
    entries = directory + 2 + 12 * tf.range(tf.minimum(number(directory, 2), 1000))
    values = tf.boolean_mask(
        number(entries + 8, 2), number(entries, 2) == 0x0112
    )  # as in pipeline.data.decoding
    value = tf.concat([values, [1]], axis=0)[0]
    sound = (little | tf.reduce_all(block[:2] == list(b"MM"))) & (value >= 1) & (value <= 8)
    return tf.cast(tf.where(sound, value, 1), tf.int32)


def _exif_block(encoded: Any) -> Any:
    """Return the TIFF block, string [], in which a JPEG, PNG or WebP file keeps its EXIF tags.

    Empty where there is none.
    """

    def after(text: Any, mark: bytes) -> Any:
        return tf.concat([tf.strings.split([text], mark, maxsplit=1).values, [b"", b""]], axis=0)[1]

    def of_png() -> Any:
        return after(tf.strings.split([encoded], b"IDAT", maxsplit=1).values[0], b"eXIf")

    def of_webp() -> Any:
        content = tf.strings.substr(
            tf.strings.join([after(encoded, b"EXIF"), b"\0" * 10]), 4, 1 << 16
        )  # behind its length
        return tf.where(
            tf.strings.substr(content, 0, 6) == b"Exif\0\0",
            tf.strings.substr(content, 6, 1 << 16),
            content,
        )

    start = tf.strings.substr(encoded, 0, 4)
    cases = [
        (tf.strings.substr(start, 0, 2) == b"\xff\xd8", lambda: after(encoded, b"Exif\0\0")),
        (start == b"\x89PNG", of_png),
        (start == b"RIFF", of_webp),
    ]
    return tf.case(cases, default=lambda: tf.constant(b""), exclusive=True)


# -- ONNX ------------------------------------------------------------------------------------------


def write_onnx(network: Any, release: Release, folder: Path) -> Path:
    """Write model.onnx into a folder and return it: `image` in, `logits` and `probabilities` out.

    `metadata_props` hold the rest.

    labels.txt and pixels.py lie beside it.

    Raises:
        ValueError: the network has no form in ONNX.
    """
    import onnx

    path = folder / "model.onnx"
    network(
        np.zeros((1, release.image_size, release.image_size, 3), np.uint8)
    )  # Keras exports to ONNX only what was called
    with _quiet():
        network.export(os.fspath(path), format="onnx", verbose=False)
    model = onnx.load(path)
    replace_erfc(model.graph)
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[
            0
        ].dim_param = "batch"  # each was given a number of its own
    properties = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in described(release).items()
    }
    onnx.helper.set_model_props(model, properties)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ValueError(str(error)) from error
    onnx.save(model, path)
    (folder / "labels.txt").write_text(labels_text(release), encoding="utf-8")
    shutil.copyfile(pixels.__file__, folder / "pixels.py")
    return path


def replace_erfc(graph: Any) -> None:
    """Make 1 - Erf of each Erfc, which ONNX lacks and tf2onnx 1.17 writes nevertheless.

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


def write_litert(network: Any, release: Release, folder: Path, calibration: Any = ()) -> Path:
    """Write model.tflite into a folder and return it.

    Signature `serving_default`, `image` in, `logits` and `probabilities` out.

    labels.txt and model.json lie in a zip archive at the file's end, as TensorFlow Lite's metadata
    convention has it for associated files: the interpreter does not see them, and every program
    that opens zip archives does. pixels.py lies beside the file.

    Args:
        network: as `answering` gives it.
        release: what goes with it.
        folder: where to.
        calibration: uint8 [images, size, size, 3] in [0, 255], whose activations give the ranges of
            8-bit integers. With them every operation between the pixels and the answers is done in
            integers; without, in float32.

    Raises:
        ValueError: an operation of the network has no form in LiteRT.
    """
    path = folder / "model.tflite"
    kinds = tf.lite.OpsSet
    settings: dict[str, Any] = {
        "target_spec": {"supported_ops": [kinds.TFLITE_BUILTINS]}
    }  # no part of TensorFlow beside it
    if len(calibration):
        settings = {
            "target_spec": {"supported_ops": [kinds.TFLITE_BUILTINS_INT8]},
            "optimizations": [tf.lite.Optimize.DEFAULT],
            "representative_dataset": lambda: ([image[np.newaxis]] for image in calibration),
        }
    try:
        with _quiet():
            network.export(os.fspath(path), format="litert", verbose=False, **settings)
    except ConverterError as error:
        reason = re.search(
            r"'tf\w*\.\w+' op [^\n]+", str(error)
        )  # among pages of places in the graph
        raise ValueError(reason[0] if reason else str(error)) from error
    texts = {"labels.txt": labels_text(release), "model.json": json.dumps(described(release))}
    with zipfile.ZipFile(path, "a") as archive:
        for name, text in texts.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), text)
    shutil.copyfile(pixels.__file__, folder / "pixels.py")
    return path


WRITERS: Mapping[str, Callable[..., Path]] = {
    "savedmodel": write_savedmodel,
    "onnx": write_onnx,
    "litert": write_litert,
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let converters say nothing: they print, log and write to file descriptor 2 from C++.

    What goes wrong is in their exceptions.
    """
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as null:  # noqa: PTH123 - a device, not a path of ours
            os.dup2(null.fileno(), 2)
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # Keras asks NumPy for a name that will get another meaning, for tf2onnx
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
