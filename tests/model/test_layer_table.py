"""The table of layers: parameters and MACs of each kind, and blocks."""

import keras
import pytest

from pipeline.model.layer_table import describe_layers
from pipeline.model.macs import count_macs
from pipeline.model.network_list import build_listed_network, list_networks
from pipeline.model.networks import network_names
from pipeline.reports.layer_blocks import group_layers
from tests.unlike_networks import build_unlike_network

LAYERS = keras.layers


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (LAYERS.Conv2D(8, 3, strides=2, padding="same"), 5 * 4 * 3 * 3 * 6 * 8),
        (LAYERS.Conv2D(8, 3, padding="same", groups=2), 10 * 8 * 3 * 3 * 3 * 8),
        (LAYERS.DepthwiseConv2D(3, padding="same", depth_multiplier=2), 10 * 8 * 3 * 3 * 6 * 2),
        (LAYERS.SeparableConv2D(8, 3, padding="same"), 10 * 8 * (3 * 3 * 6 + 6 * 8)),
        (LAYERS.Conv2DTranspose(8, 2, strides=2), 10 * 8 * 2 * 2 * 6 * 8),
        (LAYERS.Dense(5), 10 * 8 * 6 * 5),
        (LAYERS.EinsumDense("bhwc,cd->bhwd", (10, 8, 7)), 10 * 8 * 6 * 7),
        (LAYERS.EinsumDense("...c,cd->...d", (7,)), 10 * 8 * 6 * 7),
        (LAYERS.BatchNormalization(), 0),
        (LAYERS.LayerNormalization(), 0),
        (LAYERS.MaxPooling2D(), 0),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_macs_of_one_layer(layer, macs):
    """Of maps of 10 x 8 positions and 6 channels."""
    keras.Model(image := keras.Input((10, 8, 6)), layer(image))
    assert count_macs(layer) == macs


def test_macs_of_an_attention():
    """Four projections of 12 tokens, of 6 channels into 2 heads of 4 and back."""
    layer = LAYERS.MultiHeadAttention(2, 4)
    image = keras.Input((12, 6))
    keras.Model(image, layer(image, image))
    assert count_macs(layer) == 12 * 4 * 6 * 8


# Millions of MACs and of parameters with 1,000 classes, from each paper: Howard 2019, table 3 (its
# last hidden layer, 1.2 M MACs, is left out here); Sandler 2018, table 4; Huang 2016; Liu 2022,
# table 1; Tan 2021, table 7.
PUBLISHED = {
    "keras/MobileNetV3Large": (219, None),
    "keras/MobileNetV2": (300, 3.4),
    "keras/EfficientNetV2B0": (720, 7.1),
    "keras/DenseNet121": (2870, 8.0),
    "keras/ConvNeXtTiny": (4500, 28.6),
    "keras/Xception": (8400, 22.9),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_declared_macs_are_the_published_ones(name):
    macs, parameters = PUBLISHED[name]
    ((listed),) = list_networks([name])
    assert listed.row.macs == pytest.approx(macs * 1e6, rel=0.03)
    assert parameters is None or listed.row.parameters == pytest.approx(parameters * 1e6, rel=0.04)


@pytest.mark.parametrize("name", ["small", "cifar", "keras/MobileNetV3Small", "efficientnet_lite0"])
def test_declared_numbers_are_those_of_the_built_network(name):
    (listed,) = list_networks([name])
    built, _ = build_listed_network(listed)
    assert built.row == listed.row


@pytest.mark.slow
@pytest.mark.parametrize("name", network_names())
def test_all_declared_numbers_are_those_of_the_built_networks(name):
    (listed,) = list_networks([name])
    if listed.row.parameters > 100e6:
        pytest.skip("takes gigabytes")
    built, _ = build_listed_network(listed)
    assert built.row == listed.row


def test_few_layers_stay_and_many_become_blocks():
    few = describe_layers(build_unlike_network("alexnet"))
    assert group_layers(few) == few
    many = describe_layers(build_unlike_network("densenet"))
    blocks = group_layers(many)
    assert 4 < len(blocks) < 20 < len(many)
    joined = group_layers(many, 6)
    assert len(joined) < len(blocks)
    assert {one.layer for one in joined} < {one.layer for one in blocks}
    for rows in (blocks, joined):
        for name in ("parameters", "macs", "bytes"):
            total = sum(getattr(one, name) for one in many)
            assert sum(getattr(one, name) for one in rows) == total
    assert (blocks[0], blocks[-1].layer) == (many[0], many[-1].layer)
    assert [one.layer for one in blocks[1:]] == list(dict.fromkeys(one.block for one in many))
