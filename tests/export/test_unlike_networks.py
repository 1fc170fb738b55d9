"""Networks that have little in common, and one that is not square, in every format with parity."""

import json

import keras
import numpy as np
import pytest

from pipeline.export.export import export_release
from pipeline.export.pixels import read_pixels
from pipeline.model.layers import PixelNormalization
from tests.export.networks import IMAGES, NAMES, photographs, released
from tests.unlike_networks import UNLIKE_NETWORKS, build_unlike_network

FORMATS = ("savedmodel", "onnx", "litert")


def settle_statistics(model):
    """Give batch normalization the statistics of noise, as after a training."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.5
    size = (16, *model.input_shape[1:])
    pixels = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    for _ in range(6):
        model(pixels, training=True)
    return model


def require_parity_in_every_format(model, folder, names):
    release = released(model, folder, class_names=names)
    for name in FORMATS:
        record = export_release(release, name, folder / name, IMAGES)
        for check in record.checks:
            assert check.images == check.same_top5 == len(IMAGES)
            assert check.difference <= check.allowed


@pytest.mark.slow
@pytest.mark.parametrize("name", UNLIKE_NETWORKS)
def test_every_network_answers_alike_in_every_format(name, tmp_path):
    model = settle_statistics(build_unlike_network(name))
    require_parity_in_every_format(model, tmp_path, NAMES[:2])


@pytest.mark.slow
def test_integers_of_a_network_with_gates(tmp_path):
    """Hard swish, depthwise convolutions and squeeze and excitation are integers as well."""
    model = settle_statistics(build_unlike_network("mobilenet"))
    release = released(model, tmp_path, class_names=NAMES[:2])
    labeled = [(encoded, index % 2) for index, encoded in enumerate(photographs(30))]
    record = export_release(
        release,
        "litert",
        tmp_path / "int8",
        IMAGES,
        int8=True,
        calibration=labeled,
        test=labeled,
        max_error_rise=1.0,
    )
    assert record.cost.images == 30
    assert record.bytes < (tmp_path / "model.keras").stat().st_size


@pytest.mark.slow
def test_a_network_that_is_not_square(tmp_path):
    image = keras.Input((24, 16, 3), dtype="uint8", name="image")
    x = PixelNormalization((127,) * 3, (64,) * 3, name="normalize")(image)
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, keras.layers.Dense(2, name="logits")(x))
    require_parity_in_every_format(model, tmp_path, NAMES[:2])
    known = json.loads(
        (tmp_path / "savedmodel" / "assets.extra" / "model.json").read_text(encoding="utf-8")
    )
    assert known["image_size"] == [24, 16]
    path = tmp_path / "image"
    path.write_bytes(IMAGES[0])
    assert read_pixels(path, known["short_side"], known["image_size"]).shape == (1, 24, 16, 3)
