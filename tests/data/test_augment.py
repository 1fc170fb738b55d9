import numpy as np
import pytest

from pipeline.data.augment import color_scale, color_shifts, principal_colors, shift_colors

COVARIANCE = ((4000.0, 3500.0, 3000.0), (3500.0, 3900.0, 3400.0), (3000.0, 3400.0, 4500.0))


def test_principal_colors_give_the_covariance_back():
    deviations, directions = principal_colors(COVARIANCE)
    assert (np.diff(deviations) <= 0).all()
    np.testing.assert_allclose(directions.T @ np.diag(deviations**2) @ directions, COVARIANCE, rtol=1e-12)


def test_code_noise_has_the_colours_of_the_pictures():
    shifts = color_shifts(200_000, COVARIANCE, seed=0, epoch=0, noise=0.1, mode="code")
    np.testing.assert_allclose(np.cov(shifts.T), 0.01 * np.asarray(COVARIANCE), rtol=0.02)
    assert np.abs(shifts.mean(0)).max() < 0.1


def test_paper_noise_is_the_formula_of_section_4_1():
    values, vectors = np.linalg.eigh(np.asarray(COVARIANCE) / 255**2)
    one = color_shifts(1, COVARIANCE, seed=5, epoch=2, noise=0.1, mode="paper")[0] / 255
    times = np.random.default_rng([5, 2, 4]).normal(0, 0.1, 3)[::-1]
    signs = np.sign(vectors[0]) * np.sign(principal_colors(COVARIANCE)[1][::-1, 0])
    np.testing.assert_allclose(one, vectors @ (times * signs * values), rtol=1e-5)


def test_shifts_depend_on_seed_epoch_and_place_alone():
    first = color_shifts(50, COVARIANCE, seed=1, epoch=1, noise=0.1, mode="code")
    np.testing.assert_array_equal(first[:20], color_shifts(20, COVARIANCE, seed=1, epoch=1, noise=0.1, mode="code"))
    for change in ({"seed": 2}, {"epoch": 2}):
        assert (first != color_shifts(50, COVARIANCE, **{"seed": 1, "epoch": 1, **change}, noise=0.1, mode="code")).any(1).all()


@pytest.mark.parametrize("mode", ["code", "paper"])
def test_pixels_are_moved_as_numpy_moves_them(mode):
    rng = np.random.default_rng(0)
    pixels, shifts, mean = rng.integers(0, 256, (4, 5, 6, 3), np.uint8), rng.normal(0, 40, (4, 3)).astype(np.float32), (130.0, 120.0, 99.5)
    scale = color_scale(0.1, mode)
    expected = (pixels - np.asarray(mean) + shifts[:, None, None]) * scale + mean
    found = shift_colors(pixels, shifts, mean, scale).numpy()
    assert found.dtype == np.uint8
    assert np.abs(found - np.clip(expected, 0, 255)).max() <= 0.5 + 1e-3
    assert (found == 0).any()
    assert (found == 255).any()


def test_without_noise_nothing_changes():
    pixels = np.arange(256, dtype=np.uint8)[None, :, None, None].repeat(3, 3)
    np.testing.assert_array_equal(shift_colors(pixels, np.zeros((1, 3), np.float32), (1.0, 2.0, 3.0), color_scale(0.0, "code")), pixels)
