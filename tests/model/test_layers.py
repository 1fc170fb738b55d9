"""Our layers against their formulas, and through a saved file."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.model.layers import (
    LocalResponseNormalization,
    SpatialResponseNormalization,
    TwoTowerConv2D,
)
from pipeline.model.weights import load_model, save_model


def reference_lrn(a, radius=2, bias=2.0, alpha=1e-4, beta=0.75):
    """The paper's formula, section 3.3, one channel at a time."""
    out = np.empty_like(a)
    for c in range(a.shape[-1]):
        window = a[..., max(0, c - radius) : c + radius + 1]
        out[..., c] = a[..., c] / (bias + alpha * (window**2).sum(-1)) ** beta
    return out


@pytest.mark.parametrize("channels", [3, 5, 16])
def test_lrn_is_the_formula(channels):
    a = np.random.default_rng(0).normal(0, 100, (2, 4, 5, channels))
    np.testing.assert_allclose(
        np.asarray(LocalResponseNormalization()(a.astype(np.float32))), reference_lrn(a), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("radius", "bias", "alpha", "beta"), [(2, 1.0, 2e-5, 0.75), (4, 2.0, 1e-3, 0.5)]
)
def test_lrn_is_the_formula_with_other_constants(radius, bias, alpha, beta):
    a = np.random.default_rng(0).normal(0, 100, (2, 4, 5, 16))
    layer = LocalResponseNormalization(depth_radius=radius, bias=bias, alpha=alpha, beta=beta)
    np.testing.assert_allclose(
        np.asarray(layer(a.astype(np.float32))),
        reference_lrn(a, radius, bias, alpha, beta),
        rtol=1e-5,
    )


def test_lrn_of_two_towers_is_that_of_each():
    a = np.random.default_rng(0).normal(0, 100, (2, 4, 5, 16)).astype(np.float32)
    halves = np.concatenate([reference_lrn(a[..., :8]), reference_lrn(a[..., 8:])], axis=-1)
    np.testing.assert_allclose(
        np.asarray(LocalResponseNormalization(towers=2)(a)), halves, rtol=1e-5
    )


def test_lrn_has_the_gradient_of_tensorflow_s_kernel():
    rng = np.random.default_rng(0)
    a, upstream = (
        tf.constant(rng.normal(0, spread, (2, 4, 5, 16)), tf.float32) for spread in (100, 1)
    )
    layer = LocalResponseNormalization()
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(a)
        ours, theirs = layer(a), tf.nn.local_response_normalization(a, 2, 2.0, 1e-4, 0.75)
    ours, theirs = (tape.gradient(out, a, upstream) for out in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [3, 5])
def test_spatial_normalization_is_the_formula(size):
    """One position at a time: what lies beyond the border counts nothing."""
    a = np.random.default_rng(0).normal(0, 100, (2, 6, 7, 3))
    out, reach = np.empty_like(a), size // 2
    for y in range(6):
        for x in range(7):
            window = a[:, max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
            out[:, y, x] = a[:, y, x] / (1 + 4e-5 * (window**2).sum((1, 2))) ** 0.75
    np.testing.assert_allclose(
        np.asarray(SpatialResponseNormalization(size=size)(a.astype(np.float32))), out, rtol=1e-5
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_lrn_keeps_a_narrow_dtype_and_does_not_overflow(dtype):
    a = np.full((1, 1, 1, 5), 1000.0)  # its square is beyond float16
    out = LocalResponseNormalization(dtype=dtype)(tf.constant(a, dtype))
    assert out.dtype == dtype
    np.testing.assert_allclose(np.asarray(tf.cast(out, tf.float32)), reference_lrn(a), rtol=1e-2)


def test_two_towers_are_a_grouped_convolution():
    x = np.random.default_rng(0).normal(size=(2, 7, 7, 8)).astype(np.float32)
    towers = TwoTowerConv2D(12, 3)
    grouped = keras.layers.Conv2D(12, 3, padding="same", groups=2)
    towers.build(x.shape), grouped.build(x.shape)
    towers.set_weights([weights + 0.1 for weights in grouped.get_weights()])
    grouped.set_weights(towers.get_weights())
    np.testing.assert_allclose(np.asarray(towers(x)), np.asarray(grouped(x)), atol=1e-5)


def test_a_tower_sees_only_its_half():
    x = np.random.default_rng(0).normal(size=(1, 5, 5, 8)).astype(np.float32)
    layer = TwoTowerConv2D(4, 3)
    before = np.asarray(layer(x))
    changed = x.copy()
    changed[..., 4:] += 1
    after = np.asarray(layer(changed))
    assert np.array_equal(before[..., :2], after[..., :2])
    assert not np.array_equal(before[..., 2:], after[..., 2:])


def test_odd_channels_are_refused():
    with pytest.raises(ValueError, match="even number of filters"):
        TwoTowerConv2D(5, 3)
    with pytest.raises(ValueError, match="even number of input channels"):
        TwoTowerConv2D(4, 3).build((None, 8, 8, 3))


def test_saved_layers_come_back_with_their_numbers(tmp_path):
    image = keras.Input((6, 6, 4))
    x = TwoTowerConv2D(6, 3, activation="relu", bias_initializer="ones", name="towers")(image)
    x = LocalResponseNormalization(alpha=2e-5, towers=2, name="norm")(x)
    x = SpatialResponseNormalization(size=3, name="spatial")(x)
    model = keras.Model(image, x)
    save_model(model, tmp_path / "model.keras")
    again = load_model(tmp_path / "model.keras")
    pixels = np.random.default_rng(0).normal(size=(3, 6, 6, 4)).astype(np.float32)
    assert (
        again.get_layer("norm").alpha,
        again.get_layer("norm").towers,
        again.get_layer("spatial").size,
    ) == (2e-5, 2, 3)
    assert np.array_equal(np.asarray(model(pixels)), np.asarray(again(pixels)))
