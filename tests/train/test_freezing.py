"""What is frozen follows from the graph, and what is frozen costs no gradient."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.config.train import TrainConfig
from pipeline.errors import ConfigError
from pipeline.model.graph import find_classifier, list_blocks
from pipeline.train.freezing import freeze_layers
from pipeline.train.state import prepare_state
from pipeline.train.step import make_gradient_function
from pipeline.train.strategy import Devices
from tests.train.test_loop import split
from tests.unlike_networks import (
    QUICK_AND_SLOW_NETWORKS,
    SIDE,
    UNLIKE_NETWORKS,
    build_unlike_network,
)


def list_frozen(network):
    return [layer.name for layer in network.layers if layer.weights and not layer.trainable]


def build_branches():
    """Two branches that meet; `left` stands before `right` in the list of layers."""
    image = keras.Input((4, 4, 3))
    stem = keras.layers.BatchNormalization(name="stem_norm")(
        keras.layers.Conv2D(4, 1, name="stem")(image)
    )
    left = keras.layers.BatchNormalization(name="left_norm")(
        keras.layers.Conv2D(4, 1, name="left")(stem)
    )
    right = keras.layers.BatchNormalization(name="right_norm")(
        keras.layers.Conv2D(4, 1, name="right")(stem)
    )
    both = keras.layers.BatchNormalization(name="both_norm")(
        keras.layers.Add(name="sum")([left, right])
    )
    mean = keras.layers.GlobalAveragePooling2D()(both)
    return keras.Model(image, keras.layers.Dense(2, name="logits")(mean))


@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("none", set()),
        ("stem", {"stem", "stem_norm"}),
        ("right", {"stem", "stem_norm", "right", "right_norm"}),
        ("left_norm", {"stem", "stem_norm", "left", "left_norm"}),
        ("sum", {"stem", "stem_norm", "left", "left_norm", "right", "right_norm", "both_norm"}),
    ],
)
def test_a_layer_is_frozen_with_what_it_depends_on_and_its_normalization(name, frozen):
    network = build_branches()
    order = [layer.name for layer in network.layers]
    assert order.index("left") < order.index("right")
    freeze_layers(network, name)
    assert set(list_frozen(network)) == frozen


@pytest.mark.parametrize("name", UNLIKE_NETWORKS)
def test_the_backbone_is_all_but_the_classifier(name):
    network = build_unlike_network(name)
    freeze_layers(network, "backbone")
    classifier = find_classifier(network)
    weighted = [layer.name for layer in network.layers if layer.weights]
    assert list_frozen(network) == [other for other in weighted if other != classifier.name]
    assert len(network.trainable_variables) == 2


@pytest.mark.parametrize("name", QUICK_AND_SLOW_NETWORKS)
def test_every_block_can_be_frozen_and_more_of_it_with_each(name):
    network, counts = build_unlike_network(name), []
    for block in list_blocks(network):
        network.trainable = True
        freeze_layers(network, block)
        counts.append(len(network.trainable_variables))
    assert counts == sorted(set(counts), reverse=True)
    assert counts[-1] == 2  # the last block ends with the features


@pytest.mark.parametrize("name", ["resnet", "efficientnet"])
def test_a_wrong_name_is_answered_with_a_short_list(name):
    network = build_unlike_network(name)
    with pytest.raises(
        ConfigError, match=r"has no layer conv99 to freeze\. Expected .*backbone"
    ) as e:
        freeze_layers(network, "conv99")
    listed = e.value.expected.partition("one of ")[2].split(", ")
    assert 3 <= len(listed) <= 16
    assert set(listed) <= {layer.name for layer in network.layers}
    with pytest.raises(ConfigError, match="has no layer logits to freeze"):
        freeze_layers(network, "logits")


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_what_is_frozen_keeps_its_statistics_and_costs_no_gradient(precision):
    config = TrainConfig(global_batch_size=8, freeze="backbone", precision=precision)
    load = lambda: build_unlike_network("efficientnet")  # noqa: E731
    state = prepare_state(load, config, Devices())
    compute = make_gradient_function(state, split(8, side=SIDE), config)

    @tf.function
    def step(pixels):
        return compute((pixels, tf.zeros(8, tf.int32), None, None), tf.constant(0, tf.int64), 0)

    before = state.network.get_weights()
    pixels = np.random.default_rng(0).integers(0, 256, (8, SIDE, SIDE, 3), np.uint8)
    gradients, _ = step(pixels)
    assert [gradient.shape for gradient in gradients] == [
        variable.shape for variable in state.network.trainable_variables
    ]
    for one, two in zip(before, state.network.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    operations = step.get_concrete_function(pixels).graph.get_operations()
    assert sum(operation.type == "Conv2D" for operation in operations) > 10
    assert not [operation for operation in operations if "Conv2DBackprop" in operation.type]
