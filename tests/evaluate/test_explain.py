"""Explanations of networks whose weights were set so that the answer is known."""

import keras
import numpy as np
import pytest

from pipeline.evaluate.explain import compute_grad_cam, find_strongest_maps, find_top_patches
from pipeline.evaluate.map_layers import list_depth_layers
from pipeline.evaluate.neighbors import compute_features
from pipeline.evaluate.receptive_field import compute_receptive_field
from pipeline.model.networks import build_network
from tests.networks import model_config


def network(size=32, classes=4, **settings):
    config = model_config(image_size=size, width_multiplier=0.125, **settings)
    return build_network(
        config, num_classes=classes, channel_mean=(120.0,) * 3, channel_std=(60.0,) * 3
    )


def noise(count, size=32):
    return np.random.default_rng(size).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def planted(size, kernel, dense, *, strides=1, activation="relu", bias=0.0):
    """Return a network of one convolution, over pixels in [0, 1], and one dense layer, with these
    weights."""
    image = keras.Input((size, size, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(image)
    window, maps = kernel.shape[0], kernel.shape[-1]
    conv = keras.layers.Conv2D(maps, window, strides=strides, activation=activation, name="conv1")
    x = keras.layers.Flatten()(conv(x))
    logits = keras.layers.Dense(dense.shape[-1], use_bias=False)
    model = keras.Model(image, logits(x))
    conv.set_weights(
        [
            kernel,
            np.full(maps, bias, np.float32) if np.isscalar(bias) else np.asarray(bias, np.float32),
        ]
    )
    logits.set_weights([dense])
    return model


def color_kernel():
    """Return float32 [1, 1, 3, 3]: map 0 sees how red a pixel is, 1 how green, 2 how blue."""
    return np.eye(3, dtype=np.float32)[np.newaxis, np.newaxis]


def test_strongest_maps_are_ordered_and_whole():
    model = planted(4, color_kernel(), np.zeros((48, 2), np.float32))
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    pixels[0, ..., 2], pixels[0, 1, 2, 1], pixels[1, :, :2, 0] = 51, 255, 102
    found = find_strongest_maps(model, pixels, ["conv1"], 2)["conv1"]
    assert found.indices.tolist() == [
        [2, 1],
        [0, 1],
    ]  # of the two dark maps of the second image, the first
    assert found.values.shape == (2, 2, 4, 4)
    assert found.values.dtype == np.float32
    np.testing.assert_allclose(found.values[0, 0], 0.2)
    assert found.values[0, 1].nonzero() == ([1], [2])
    np.testing.assert_allclose(found.values[1, 0], [[0.4, 0.4, 0, 0]] * 4)


def test_a_layer_with_few_maps_gives_all(make_model):
    found = find_strongest_maps(make_model(classes=3), noise(70, 12), ["conv1"], 100)["conv1"]
    assert np.array_equal(np.sort(found.indices, axis=1), np.tile(np.arange(8), (70, 1)))
    means = found.values.mean(axis=(2, 3))
    assert (np.diff(means, axis=1) <= 1e-6).all()


def test_maps_do_not_depend_on_the_images_beside():
    model, pixels = network(), noise(67)
    layers = list_depth_layers(model)
    together, alone = (
        find_strongest_maps(model, pixels, layers, 3),
        find_strongest_maps(model, pixels[66:], layers, 3),
    )
    for name in layers:
        assert np.array_equal(together[name].indices[66:], alone[name].indices)
        np.testing.assert_allclose(
            together[name].values[66:], alone[name].values, rtol=1e-4, atol=1e-5
        )


def dot_network(size=16):
    """Return a network of two maps with 3 x 3 windows, 2 apart: one sees the red of a window's
    middle, the other is always 1."""
    kernel = np.zeros((3, 3, 3, 2), np.float32)
    kernel[1, 1, 0, 0] = 1
    side = (size - 3) // 2 + 1
    return planted(size, kernel, np.zeros((2 * side * side, 2), np.float32), strides=2, bias=[0, 1])


def test_patches_are_cut_around_what_excites_a_map():
    pixels = np.zeros((9, 16, 16, 3), np.uint8)
    dots = {
        0: (200, 5, 7),
        4: (250, 1, 1),
        7: (100, 13, 3),
    }  # the middle of unit (y, x) is the pixel (2 y + 1, 2 x + 1)
    for image, (red, y, x) in dots.items():
        pixels[image, y, x, 0] = red
        pixels[image, y - 1, x + 1] = (0, 0, image + 1)
    found = find_top_patches(dot_network(), pixels, ["conv1"], maps=1, patches=3)["conv1"]
    assert found.maps.tolist() == [0]  # the other map is the same everywhere
    assert found.images.tolist() == [[4, 0, 7]]
    np.testing.assert_allclose(found.peaks, [[250 / 255, 200 / 255, 100 / 255]], rtol=1e-6)
    assert found.pixels.shape == (1, 3, 3, 3, 4)
    assert found.pixels.dtype == np.uint8
    assert (found.pixels[..., 3] == 255).all()
    for patch, image in zip(found.pixels[0], (4, 0, 7), strict=True):
        expected = np.zeros((3, 3, 3), np.uint8)
        expected[1, 1, 0], expected[0, 2, 2] = dots[image][0], image + 1
        assert np.array_equal(patch[..., :3], expected)


def test_patches_are_transparent_outside_the_image():
    model, pixels = network(), noise(20)
    found = find_top_patches(model, pixels, list_depth_layers(model), maps=4, patches=5)
    for name, layer in found.items():
        field, _ = compute_receptive_field(model, name)
        assert layer.pixels.shape == (4, 5, field.size, field.size, 4)
        assert set(np.unique(layer.pixels[..., 3])) <= {0, 255}
        assert (layer.pixels[layer.pixels[..., 3] == 0] == 0).all()
        for index in np.ndindex(4, 5):
            inside = layer.pixels[index][..., 3] == 255
            patch = layer.pixels[index][inside.any(axis=1)][:, inside.any(axis=0), :3]
            windows = np.lib.stride_tricks.sliding_window_view(
                pixels[layer.images[index]], patch.shape
            )
            assert (windows == patch).all(axis=(-1, -2, -3)).any()
    # A unit of conv5 sees 43 pixels of 32.
    assert (found["conv5"].pixels[..., 3] == 0).any(axis=(2, 3)).all()


def test_patches_of_few_images_and_of_images_without_anything():
    model = network()
    for pixels in (noise(1), np.full((3, 32, 32, 3), 128, np.uint8)):
        found = find_top_patches(model, pixels, ["conv1", "conv5"], maps=1000)
        assert len(set(found["conv1"].maps)) == len(found["conv1"].maps) == 8
        assert found["conv5"].pixels.shape[:2] == (16, len(pixels))
        assert np.isfinite(found["conv5"].peaks).all()


def test_maps_of_patches_tell_different_things():
    kernel = np.concatenate(
        [color_kernel(), 2 * color_kernel()], axis=-1
    )  # maps 3-5 are maps 0-2, twice as strong
    model = planted(4, kernel, np.zeros((96, 2), np.float32))
    pixels = np.zeros((30, 4, 4, 3), np.uint8)
    pixels[:, 0, 0] = np.random.default_rng(3).integers(0, 256, (30, 3))
    assert set(find_top_patches(model, pixels, ["conv1"], maps=3)["conv1"].maps.tolist()) == {
        3,
        4,
        5,
    }


def test_grad_cam_is_the_formula():
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(6 * 6 * 3, 4)).astype(np.float32)
    model = planted(
        6, rng.normal(size=(1, 1, 3, 3)).astype(np.float32), dense, bias=rng.normal(size=3)
    )
    pixels, classes = noise(5, 6), np.array([0, 3, 1, 1, 2])
    maps = np.asarray(keras.Model(model.input, model.get_layer("conv1").output)(pixels))
    weights = dense.reshape(36, 3, 4).mean(axis=0).T[classes]
    expected = np.maximum(np.einsum("nyxk,nk->nyx", maps, weights), 0)
    expected /= np.maximum(expected.max(axis=(1, 2), keepdims=True), 1e-30)
    found = compute_grad_cam(model, pixels, classes)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("corner", [(0, 0), (5, 9), (12, 12)])
def test_grad_cam_lights_the_planted_place(corner):
    dense = np.zeros((16 * 16, 3, 2), np.float32)
    dense[:, 0, 0], dense[:, 2, 1] = (
        1,
        1,
    )  # class 0 is as sure as there is red, class 1 as there is blue
    model = planted(16, color_kernel(), dense.reshape(-1, 2))
    pixels = np.zeros((2, 16, 16, 3), np.uint8)
    y, x = corner
    pixels[:, y : y + 4, x : x + 4, 0] = 200
    pixels[:, 15 - y, 15 - x, 2] = 100
    red, blue = compute_grad_cam(model, pixels, [0, 1])
    assert np.array_equal(red, (pixels[0, ..., 0] > 0).astype(np.float32))
    assert np.array_equal(blue, (pixels[0, ..., 2] > 0).astype(np.float32))


def test_heat_lies_where_the_units_look_and_is_bilinear_between():
    kernel = np.full((4, 4, 3, 1), 1 / 48, np.float32)
    model = planted(
        8, kernel, np.ones((4, 2), np.float32), strides=4
    )  # units look at the pixels around 2 and 6
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    pixels[0, :4, :4] = 90
    along = np.array([1, 1, 0.875, 0.625, 0.375, 0.125, 0, 0])
    np.testing.assert_allclose(
        compute_grad_cam(model, pixels, [0])[0], np.outer(along, along), atol=1e-6
    )


def test_heat_without_anything_for_the_class_is_zero():
    dense = np.stack([-np.ones(8 * 8 * 3), np.zeros(8 * 8 * 3)], axis=1).astype(np.float32)
    model = planted(8, color_kernel(), dense)
    pixels = np.concatenate([noise(2, 8), np.zeros((1, 8, 8, 3), np.uint8)])
    assert not compute_grad_cam(model, pixels, [0, 1, 0]).any()
    gray = np.full((3, 32, 32, 3), [[[[0]]], [[[117]]], [[[255]]]], np.uint8)
    heat = compute_grad_cam(network(), gray, [0, 1, 2])
    assert np.isfinite(heat).all()
    assert heat.shape == (3, 32, 32)


@pytest.mark.parametrize("settings", [{}, {"network": "cifar", "activation": "tanh"}])
def test_heat_of_an_image_does_not_depend_on_the_others(settings):
    model, pixels = network(**settings), noise(66)
    classes = np.arange(66) % 4
    heat = compute_grad_cam(model, pixels, classes)
    assert set(np.round(heat.max(axis=(1, 2)), 6)) <= {0, 1}
    assert heat.min() >= 0
    np.testing.assert_allclose(
        heat[65:], compute_grad_cam(model, pixels[65:], classes[65:]), atol=1e-3
    )


def test_a_frozen_network_has_the_same_heat():
    model, pixels = network(), noise(3)
    heat = compute_grad_cam(model, pixels, [0, 1, 2])
    model.trainable = False
    assert np.array_equal(compute_grad_cam(model, pixels, [0, 1, 2]), heat)
    assert heat.any()


def test_half_precision_gives_float32():
    image = keras.Input((8, 8, 3), dtype="uint8")
    x = keras.layers.Conv2D(4, 3, activation="relu", dtype="mixed_bfloat16", name="conv1")(
        keras.layers.Rescaling(1 / 255)(image)
    )
    model = keras.Model(
        image, keras.layers.Dense(2, dtype="mixed_bfloat16")(keras.layers.Flatten()(x))
    )
    pixels = noise(3, 8)
    heat = compute_grad_cam(model, pixels, [0, 1, 0])
    found = find_strongest_maps(model, pixels, ["conv1"], 2)["conv1"].values
    for array in (heat, found, compute_features(model, [(pixels, None)], "conv1")):
        assert array.dtype == np.float32
        assert np.isfinite(array).all()


def test_a_saved_network_is_explained_as_before_and_left_as_it_was(tmp_path):
    model, pixels = network(), noise(3)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert np.array_equal(
        compute_grad_cam(loaded, pixels, [0, 1, 2]), compute_grad_cam(model, pixels, [0, 1, 2])
    )
    find_top_patches(loaded, pixels, list_depth_layers(loaded))
    assert all(
        np.array_equal(one, other)
        for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True)
    )
