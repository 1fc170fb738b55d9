"""Each network has the shapes, parameters and multiplications of its source; docs/model.md names
the sources."""

import functools

import keras
import numpy as np
import pytest

from pipeline.model.alexnet import decide_layers
from pipeline.model.layer_table import describe_layers
from pipeline.model.layers import LocalResponseNormalization
from pipeline.model.networks import build_network, find_network
from tests.networks import model_config

# layer -> output, parameters; at 224 pixels and 1000 classes.
HEAD = {
    "fc6": ((4096,), 37_752_832),
    "fc7": ((4096,), 16_781_312),
    "fc8": ((1000,), 4_097_000),
    "pool5": ((6, 6, 256), 0),
}
PAPER = {
    "edge": ((227, 227, 3), 0),
    "conv1": ((55, 55, 96), 34_944),
    "norm1": ((55, 55, 96), 0),
    "pool1": ((27, 27, 96), 0),
    "conv2": ((27, 27, 256), 307_456),
    "norm2": ((27, 27, 256), 0),
    "pool2": ((13, 13, 256), 0),
    "conv3": ((13, 13, 384), 885_120),
    "conv4": ((13, 13, 384), 663_936),
    "conv5": ((13, 13, 256), 442_624),
    **HEAD,
}
UNGROUPED = PAPER | {
    "conv2": ((27, 27, 256), 614_656),
    "conv4": ((13, 13, 384), 1_327_488),
    "conv5": ((13, 13, 256), 884_992),
}
SINGLE_TOWER = {
    "conv1": ((55, 55, 48), 17_472),
    "conv2": ((27, 27, 128), 153_728),
    "conv3": ((13, 13, 192), 221_376),
    "conv4": ((13, 13, 192), 331_968),
    "conv5": ((13, 13, 256), 442_624),
    **HEAD,
}
OWT = {
    "edge": ((228, 228, 3), 0),
    "conv1": ((55, 55, 64), 23_296),
    "pool1": ((27, 27, 64), 0),
    "conv2": ((27, 27, 192), 307_392),
    "pool2": ((13, 13, 192), 0),
    "conv3": ((13, 13, 384), 663_936),
    "conv4": ((13, 13, 256), 884_992),
    "conv5": ((13, 13, 256), 590_080),
    **HEAD,
}
GOLDEN = {
    "paper": (PAPER, 60_965_224, 724_406_816),
    "caffenet": (
        PAPER | {"norm1": ((27, 27, 96), 0), "norm2": ((13, 13, 256), 0)},
        60_965_224,
        724_406_816,
    ),
    "ungrouped": (UNGROUPED, 62_378_344, 1_135_256_096),
    "single_tower": (SINGLE_TOWER, 59_798_312, 391_514_384),
    "owt": (OWT, 61_100_840, 714_188_480),
}
# Figure 2 of the paper says 253,440 for the first layer, which no 55 x 55 x 96 maps have.
NEURONS = {
    "conv1": 290_400,
    "conv2": 186_624,
    "conv3": 64_896,
    "conv4": 64_896,
    "conv5": 43_264,
    "fc6": 4096,
    "fc7": 4096,
    "fc8": 1000,
}
SMALL_INPUT = ("small", "cifar")


def network(**settings):
    classes = settings.pop("classes", 10)
    return build_network(
        model_config(**settings),
        num_classes=classes,
        channel_mean=(120.0, 110.0, 100.0),
        channel_std=(60.0, 50.0, 40.0),
    )


@functools.cache
def rows_of(name, size=224, classes=1000):
    """Return the rows of a large network, which takes most of a second to build."""
    return describe_layers(network(network=name, image_size=size, classes=classes))


def layers_of(**settings):
    config = model_config(image_size=224, **settings)
    return decide_layers(find_network(config.network), config)


def names(**settings):
    """Names of the layers after the first three: image, normalize, edge."""
    size = 32 if settings.get("network", "small") in SMALL_INPUT else 64
    return [
        layer.name for layer in network(image_size=size, width_multiplier=0.25, **settings).layers
    ][3:]


def before_the_classifier(names):
    return names[: names.index("flatten")]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in ("caffenet", "ungrouped") else name
        for name in GOLDEN
    ],
)
def test_every_layer_is_the_source_s(name):
    rows = rows_of(name)
    layers, parameters, macs = GOLDEN[name]
    found = {row.layer: (tuple(row.output), row.parameters) for row in rows}
    assert {name: found[name] for name in layers} == layers
    assert sum(row.parameters for row in rows) == parameters
    assert sum(row.macs for row in rows) == macs


def test_neurons_of_the_paper():
    sizes = {row.layer: int(np.prod(row.output)) for row in rows_of("paper")}
    assert {name: sizes[name] for name in NEURONS} == NEURONS


def test_multiplications_of_each_layer():
    """In millions, 2012: 105.4, 223.9, 149.5, 112.1, 74.8, 37.7, 16.8, 4.1."""
    rows = rows_of("paper")
    assert [round(row.macs / 1e6, 1) for row in rows if row.macs] == [
        105.4,
        223.9,
        149.5,
        112.1,
        74.8,
        37.7,
        16.8,
        4.1,
    ]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("paper", 56_909_194), pytest.param("owt", 57_044_810, marks=pytest.mark.slow)],
)
def test_parameters_for_ten_classes(name, parameters):
    assert network(network=name, image_size=224, classes=10).count_params() == parameters


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("paper", "owt") else pytest.param(name, marks=pytest.mark.slow)
        for name in GOLDEN
    ],
)
def test_227_pixels_are_the_same_network(name):
    """As in Caffe: no window falls off the edge, and the maps are those of 224. torchvision's
    border gives conv1 one position more."""
    rows = rows_of(name, size=227)
    layers, parameters, macs = GOLDEN[name]
    found = {row.layer: (tuple(row.output), row.parameters) for row in rows}
    assert sum(row.parameters for row in rows) == parameters
    if name == "owt":
        assert (found["edge"], found["conv1"][0], found["pool1"]) == (
            ((231, 231, 3), 0),
            (56, 56, 64),
            layers["pool1"],
        )
    else:
        assert {name: found[name] for name in layers} == layers
        assert sum(row.macs for row in rows) == macs


@pytest.mark.parametrize(("size", "last_map"), [(28, 2), (32, 3), (64, 3), (96, 5)])
def test_small_keeps_something_to_see(size, last_map):
    rows = {row.layer: tuple(row.output) for row in describe_layers(network(image_size=size))}
    assert rows["pool5"] == (last_map, last_map, 128)


def test_cifar_is_the_four_layer_network_of_cuda_convnet():
    model = network(network="cifar", image_size=32)
    rows = {row.layer: (tuple(row.output), row.parameters) for row in describe_layers(model)}
    expected = {
        "conv1": ((32, 32, 32), 2432),
        "pool1": ((16, 16, 32), 0),
        "conv2": ((16, 16, 32), 25_632),
        "pool2": ((8, 8, 32), 0),
    }
    expected |= {"conv3": ((8, 8, 64), 51_264), "pool3": ((4, 4, 64), 0), "fc4": ((10,), 10_250)}
    assert {name: rows[name] for name in expected} == expected
    deviations = [
        float(np.std(model.get_layer(name).get_weights()[0]))
        for name in ("conv1", "conv2", "conv3", "fc4")
    ]
    assert deviations == pytest.approx([1e-4, 0.01, 0.01, 0.01], rel=0.05)


def test_width_multiplier_scales_every_layer_but_the_last():
    rows = {row.layer: row.output[-1] for row in describe_layers(network(width_multiplier=0.5))}
    assert (rows["conv1"], rows["conv2"], rows["conv3"], rows["fc6"], rows["fc8"]) == (
        24,
        64,
        96,
        512,
        10,
    )


def test_seed_decides_the_weights_and_no_two_layers_share_numbers():
    first, same, other = (network(seed=seed).get_weights() for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
    kernels = [index for index, weights in enumerate(first) if weights.ndim > 1]
    assert not any(np.array_equal(first[index], other[index]) for index in kernels)
    starts = [
        tuple(np.round(first[index].ravel()[:4] / first[index].std(), 4)) for index in kernels
    ]
    assert len(set(starts)) == len(starts)


@pytest.mark.parametrize("removed", ["conv3", "conv4"])
def test_a_layer_that_is_left_out_changes_no_other_layer_s_weights(removed):
    """conv4 of `small` reads as many channels as it writes, so no other shape changes either."""
    whole, less = network(seed=5), network(seed=5, remove_layer=removed)
    same = [
        layer.name
        for layer in less.layers
        if layer.weights
        and all(
            np.array_equal(old, new)
            for old, new in zip(
                whole.get_layer(layer.name).get_weights(), layer.get_weights(), strict=True
            )
        )
    ]
    expected = [f"conv{n}" for n in (1, 2, 3, 4, 5)] + ["drop6", "drop7", "fc6", "fc7", "fc8"]
    after = {"conv3": "conv4"}  # it reads conv2's channels now
    assert set(same) >= set(expected) - {removed, after.get(removed)} - {"drop6", "drop7"}


# -- the two fidelities ----------------------------------------------------------------------------

BOTH = ("lrn_alpha", "lrn_across", "layer_order", "spatial_norm", "initialization", "input_scale")


@pytest.mark.parametrize("name", ["paper", "ungrouped", "single_tower"])
@pytest.mark.parametrize(
    ("fidelity", "expected"),
    [
        ("code", (2e-5, "tower", "code", True, "code", "levels")),
        ("paper", (1e-4, "maps", "paper", False, "paper", "levels")),
    ],
)
def test_fidelity_decides_together(name, fidelity, expected):
    plan = layers_of(network=name, fidelity=fidelity)
    assert tuple(getattr(plan, name) for name in BOTH) == expected
    assert plan.lrn_bias == 2


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("lrn_alpha", 3e-5),
        ("lrn_across", "maps"),
        ("layer_order", "paper"),
        ("spatial_norm", False),
        ("initialization", "caffe"),
    ],
)
def test_each_choice_also_alone(setting, value):
    usual = layers_of(network="paper")
    plan = layers_of(network="paper", **{setting: value})
    assert getattr(plan, setting) == value
    assert [name for name in BOTH if getattr(plan, name) != getattr(usual, name)] == [setting]


def test_the_code_of_2012_normalizes_before_relu_and_once_more_over_positions():
    expected = "conv1 norm1 pool1 relu1 conv2 norm2 spatial2 pool2 conv3 conv4 conv5 pool5"
    assert before_the_classifier(names(network="paper")) == expected.split()
    model = network(network="paper", image_size=64, width_multiplier=0.25)
    assert model.get_layer("conv1").activation is keras.activations.linear
    assert model.get_layer("conv2").activation is keras.activations.relu
    assert [model.get_layer(name).towers for name in ("norm1", "norm2")] == [2, 2]


def test_the_paper_s_text_normalizes_after_relu():
    model = network(network="paper", fidelity="paper", image_size=64, width_multiplier=0.25)
    expected = "conv1 norm1 pool1 conv2 norm2 pool2 conv3 conv4 conv5 pool5"
    assert before_the_classifier(names(network="paper", fidelity="paper")) == expected.split()
    assert model.get_layer("conv1").activation is keras.activations.relu


def test_caffenet_pools_before_it_normalizes():
    model = network(network="caffenet", image_size=64, width_multiplier=0.25)
    assert [layer.name for layer in model.layers][3:9] == [
        "conv1",
        "pool1",
        "norm1",
        "conv2",
        "pool2",
        "norm2",
    ]
    norm = model.get_layer("norm1")
    assert (norm.bias, norm.alpha, norm.beta, norm.towers) == (1.0, 2e-5, 0.75, 1)


@pytest.mark.parametrize(
    ("initialization", "deviations", "bias"),
    [
        (
            "code",
            {
                "conv1": 0.01,
                "conv2": 0.01,
                "conv3": 0.03,
                "conv4": 0.03,
                "conv5": 0.03,
                "fc6": 0.01,
                "fc7": 0.01,
            },
            1.0,
        ),
        (
            "paper",
            dict.fromkeys(("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"), 0.01),
            1.0,
        ),
        ("caffe", {"conv1": 0.01, "conv3": 0.01, "fc6": 0.005, "fc7": 0.005}, 0.1),
        ("caffenet", {"conv1": 0.01, "conv3": 0.01, "fc6": 0.005, "fc7": 0.005}, 1.0),
    ],
)
def test_initial_weights(initialization, deviations, bias):
    model = network(
        network="paper", image_size=224, width_multiplier=0.5, initialization=initialization
    )
    found = {name: float(np.std(model.get_layer(name).get_weights()[0])) for name in deviations}
    assert found == pytest.approx(deviations, rel=0.03)
    biases = {
        name: set(model.get_layer(name).get_weights()[1])
        for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
    }
    assert {name for name, values in biases.items() if values == {np.float32(bias)}} == {
        "conv2",
        "conv4",
        "conv5",
        "fc6",
        "fc7",
    }
    assert all(
        values == {0.0} for name, values in biases.items() if name in ("conv1", "conv3", "fc8")
    )


# -- ablations -------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "leaky_relu", "elu", "gelu", "silu"])
def test_activation_is_everywhere_but_at_the_logits(activation):
    model = network(activation=activation, width_multiplier=0.25)
    function = getattr(keras.activations, activation)
    weighted = [layer for layer in model.layers if hasattr(layer, "kernel")]
    assert [layer.activation for layer in weighted] == [function] * 7 + [keras.activations.linear]


def test_pools_need_not_overlap():
    sizes = {
        layer.name: layer.pool_size
        for layer in network(overlapping_pooling=False).layers
        if layer.name.startswith("pool")
    }
    assert sizes == {"pool1": (2, 2), "pool2": (2, 2), "pool5": (2, 2)}


@pytest.mark.parametrize("layer", ["conv2", "conv3", "conv4", "conv5"])
def test_a_convolution_can_be_left_out_and_its_pool_stays(layer):
    left = [
        name
        for name in names(network="paper", remove_layer=layer)
        if name.startswith(("conv", "pool"))
    ]
    assert left == [
        name
        for name in names(network="paper")
        if name.startswith(("conv", "pool")) and name != layer
    ]


def test_a_sixth_convolution_over_the_last_pool():
    """Configuration 146 of the code: 3 x 3, 256 filters that see both towers, standard deviation
    0.03,
    biases 1."""
    rows = {
        row.layer: (row.output, row.parameters)
        for row in describe_layers(network(network="paper", image_size=224, sixth_layer=True))
    }
    assert list(rows)[-8:] == ["pool5", "conv6", "flatten", "fc6", "drop6", "fc7", "drop7", "fc8"]
    assert rows["conv6"] == ((6, 6, 256), 590_080)
    kernel, bias = (
        network(network="paper", image_size=64, width_multiplier=0.5, sixth_layer=True)
        .get_layer("conv6")
        .get_weights()
    )
    assert float(np.std(kernel)) == pytest.approx(0.03, rel=0.03)
    assert set(bias) == {1.0}


def test_dropout_before_the_layers_as_in_torchvision_and_after_as_in_2012():
    assert names(network="owt")[-6:] == ["flatten", "fc6", "drop6", "fc7", "drop7", "fc8"]
    assert names(network="owt", dropout_position="before")[-6:] == [
        "flatten",
        "drop6",
        "fc6",
        "drop7",
        "fc7",
        "fc8",
    ]


def test_normalization_can_be_left_out_or_be_of_batches():
    expected = "conv1 pool1 conv2 pool2 conv3 conv4 conv5 pool5"
    assert before_the_classifier(names(network="paper", normalization="none")) == expected.split()
    model = network(normalization="batch", width_multiplier=0.25)
    batch = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert [layer.name for layer in batch] == ["norm1", "norm2", "norm3", "norm4", "norm5"]
    assert all(layer.synchronized for layer in batch)
    assert not any(isinstance(layer, LocalResponseNormalization) for layer in model.layers)


def test_owt_with_lrn_is_the_network_of_cuda_convnet2():
    model = network(network="owt", normalization="lrn", image_size=64, width_multiplier=0.25)
    assert [layer.name for layer in model.layers][3:9] == [
        "conv1",
        "norm1",
        "pool1",
        "relu1",
        "conv2",
        "norm2",
    ]
    assert (model.get_layer("norm1").bias, model.get_layer("norm1").alpha) == (2.0, 2e-5)


# -- pixels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [60 / 60, 70 / 50, 80 / 40]),
        ({"initialization": "code"}, [60, 70, 80]),
        ({"input_scale": "levels"}, [60, 70, 80]),
        ({"input_scale": "fraction"}, [180 / 255] * 3),
        ({"initialization": "glorot"}, [60 / 60, 70 / 50, 80 / 40]),
    ],
)
def test_pixels_are_normalized_inside(settings, expected):
    image = np.full((1, 32, 32, 3), 180, dtype=np.uint8)
    pixels = np.asarray(network(width_multiplier=0.25, **settings).get_layer("normalize")(image))
    np.testing.assert_allclose(pixels[0, 0, 0], expected, rtol=1e-6)
