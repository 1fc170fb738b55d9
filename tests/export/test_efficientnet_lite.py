"""EfficientNet-Lite0 in 8-bit integers answers as it does in float32: what it was made for."""

from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.export.formats import make_export_network, write_litert
from pipeline.export.readback import open_litert
from pipeline.model.imagenet import imagenet_class_names
from pipeline.model.pretrained import load_pretrained_network
from pipeline.release.package import Release
from tests.networks import model_config
from tests.photographs import cut_corners_and_center, cut_squares, load_photographs

# An answer that no rounding changes: the likeliest class is so much above the second.
CLEAR_MARGIN = 0.6


@pytest.mark.slow
def test_integers_keep_the_likeliest_class(tmp_path):
    pytest.importorskip("ai_edge_litert.interpreter")
    config = model_config(network="efficientnet_lite0", image_size=224, weights="imagenet")
    network = load_pretrained_network(config, imagenet_class_names()).network
    photographs = load_photographs().values()
    calibration = np.concatenate([cut_corners_and_center(pixels, 224) for pixels in photographs])
    images = np.concatenate([cut_squares(pixels, 224) for pixels in photographs])
    release = Release(
        model_sha256="", class_names=imagenet_class_names(), image_size=224, short_side=256
    )
    exported = make_export_network(SimpleNamespace(model=network, release=release))
    path = write_litert(exported, release, tmp_path, calibration)
    answer = open_litert(str(path)).endpoints["image"]
    integers = np.concatenate([answer(images[i : i + 1])["logits"] for i in range(len(images))])
    logits = np.asarray(network(images, training=False))
    likeliest = np.sort(logits, axis=1)
    clear = likeliest[:, -1] - likeliest[:, -2] > CLEAR_MARGIN
    assert clear.sum() >= 6
    assert np.array_equal(integers.argmax(axis=1)[clear], logits.argmax(axis=1)[clear])
    assert np.sqrt(np.mean((integers - logits) ** 2)) < 0.3  # the largest logits are 8 to 10
    assert path.stat().st_size < 6_000_000  # of 18.8 MB in float32
