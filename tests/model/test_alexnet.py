"""Each network has the shapes and parameter counts of its source; the numbers are those of the paper and of torchvision."""

import numpy as np
import pytest

from pipeline.config import ModelConfig
from pipeline.model.alexnet import build_network, layer_table

PAPER = [
    ("edge", (227, 227, 3), 0),
    ("conv1", (55, 55, 96), 34_944),
    ("norm1", (55, 55, 96), 0),
    ("pool1", (27, 27, 96), 0),
    ("conv2", (27, 27, 256), 307_456),
    ("norm2", (27, 27, 256), 0),
    ("pool2", (13, 13, 256), 0),
    ("conv3", (13, 13, 384), 885_120),
    ("conv4", (13, 13, 384), 663_936),
    ("conv5", (13, 13, 256), 442_624),
    ("pool5", (6, 6, 256), 0),
    ("flatten", (9216,), 0),
    ("fc6", (4096,), 37_752_832),
    ("drop6", (4096,), 0),
    ("fc7", (4096,), 16_781_312),
    ("drop7", (4096,), 0),
    ("fc8", (1000,), 4_097_000),
]
OWT = {
    "conv1": ((55, 55, 64), 23_296),
    "pool1": ((27, 27, 64), 0),
    "conv2": ((27, 27, 192), 307_392),
    "conv3": ((13, 13, 384), 663_936),
    "conv4": ((13, 13, 256), 884_992),
    "conv5": ((13, 13, 256), 590_080),
    "pool5": ((6, 6, 256), 0),
    "fc6": ((4096,), 37_752_832),
}


def network(**settings):
    classes = settings.pop("classes", 10)
    return build_network(ModelConfig(**settings), num_classes=classes, channel_mean=(120.0, 110.0, 100.0), channel_std=(60.0, 50.0, 40.0))


def table(model):
    return [(row["layer"], tuple(row["output"]), row["parameters"]) for row in layer_table(model)]


def test_paper_has_the_layers_of_2012():
    assert table(network(variant="paper", image_size=224, classes=1000))[2:] == PAPER


@pytest.mark.parametrize(
    ("variant", "classes", "parameters"),
    [("paper", 1000, 60_965_224), ("paper", 10, 56_909_194), ("owt", 1000, 61_100_840), ("owt", 10, 57_044_810)],
)
def test_parameter_totals(variant, classes, parameters):
    assert network(variant=variant, image_size=224, classes=classes).count_params() == parameters


def test_owt_has_the_layers_of_torchvision():
    rows = {name: (shape, parameters) for name, shape, parameters in table(network(variant="owt", image_size=224, classes=1000))}
    assert {name: rows[name] for name in OWT} == OWT


@pytest.mark.parametrize(("size", "last_map"), [(28, 2), (32, 3), (64, 3), (96, 5)])
def test_small_keeps_something_to_see(size, last_map):
    rows = {name: shape for name, shape, _ in table(network(image_size=size))}
    assert rows["pool5"] == (last_map, last_map, 128)


def test_width_multiplier_scales_every_layer_but_the_last():
    rows = {name: shape[-1] for name, shape, _ in table(network(width_multiplier=0.5))}
    assert (rows["conv1"], rows["conv2"], rows["conv3"], rows["fc6"], rows["fc8"]) == (24, 64, 96, 512, 10)


def test_seed_decides_the_weights_and_no_two_layers_share_numbers():
    first, same, other = (network(seed=seed).get_weights() for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
    kernels = [index for index, weights in enumerate(first) if weights.ndim > 1]
    assert not any(np.array_equal(first[index], other[index]) for index in kernels)
    starts = [tuple(np.round(first[index].ravel()[:4] / first[index].std(), 4)) for index in kernels]
    assert len(set(starts)) == len(starts)


def test_paper_starts_as_the_2012_code_did():
    model = network(variant="paper", image_size=224)
    deviations = {
        name: float(np.std(model.get_layer(name).get_weights()[0])) for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6")
    }
    assert deviations == pytest.approx({"conv1": 0.01, "conv2": 0.01, "conv3": 0.03, "conv4": 0.03, "conv5": 0.03, "fc6": 0.01}, rel=0.02)
    biases = {
        name: set(model.get_layer(name).get_weights()[1]) for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
    }
    assert {name for name, values in biases.items() if values == {1.0}} == {"conv2", "conv4", "conv5", "fc6", "fc7"}
    assert all(values == {0.0} for name, values in biases.items() if name in ("conv1", "conv3", "fc8"))


def test_pixels_are_normalised_inside():
    image = np.full((1, 32, 32, 3), 180, dtype=np.uint8)
    normalize = network().get_layer("normalize")
    np.testing.assert_allclose(np.asarray(normalize(image))[0, 0, 0], [60 / 60, 70 / 50, 80 / 40], rtol=1e-6)
    paper = network(variant="paper", image_size=224).get_layer("normalize")
    np.testing.assert_allclose(np.asarray(paper(image))[0, 0, 0], [60, 70, 80], rtol=1e-6)


@pytest.mark.parametrize("variant", ["small", "paper", "owt"])
def test_fresh_network_tells_images_apart(variant):
    """A signal that vanishes on the way up is why Keras AlexNets do not learn: the spread of logits across images must be alive."""
    size = 32 if variant == "small" else 224
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3)).repeat(size // 4, 1).repeat(size // 4, 2).astype(np.uint8)
    logits = np.asarray(network(variant=variant, image_size=size)(images))
    assert logits.shape == (8, 10)
    assert logits.std(axis=0).mean() > 0.02
