from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from pipeline.config.train import TrainConfig
from pipeline.data import augment
from pipeline.data.augment import (
    augment_batch,
    compute_class_weights,
    compute_color_scale,
    draw_augmentations,
    draw_color_shifts,
    find_principal_colors,
    shift_colors,
)

COVARIANCE = ((4000.0, 3500.0, 3000.0), (3500.0, 3900.0, 3400.0), (3000.0, 3400.0, 4500.0))


def test_find_principal_colors_give_the_covariance_back():
    deviations, directions = find_principal_colors(COVARIANCE)
    assert (np.diff(deviations) <= 0).all()
    np.testing.assert_allclose(
        directions.T @ np.diag(deviations**2) @ directions, COVARIANCE, rtol=1e-12
    )


def test_code_noise_has_the_colors_of_the_images():
    shifts = draw_color_shifts(200_000, COVARIANCE, seed=0, epoch=0, noise=0.1, mode="code")
    np.testing.assert_allclose(np.cov(shifts.T), 0.01 * np.asarray(COVARIANCE), rtol=0.02)
    assert np.abs(shifts.mean(0)).max() < 0.1


def test_paper_noise_is_the_formula_of_section_4_1():
    values, vectors = np.linalg.eigh(np.asarray(COVARIANCE) / 255**2)
    one = draw_color_shifts(1, COVARIANCE, seed=5, epoch=2, noise=0.1, mode="paper")[0] / 255
    times = np.random.default_rng([5, 2, 4]).normal(0, 0.1, 3)[::-1]
    signs = np.sign(vectors[0]) * np.sign(find_principal_colors(COVARIANCE)[1][::-1, 0])
    np.testing.assert_allclose(one, vectors @ (times * signs * values), rtol=1e-5)


def test_shifts_depend_on_seed_epoch_and_place_alone():
    first = draw_color_shifts(50, COVARIANCE, seed=1, epoch=1, noise=0.1, mode="code")
    np.testing.assert_array_equal(
        first[:20], draw_color_shifts(20, COVARIANCE, seed=1, epoch=1, noise=0.1, mode="code")
    )
    for change in ({"seed": 2}, {"epoch": 2}):
        assert (
            (
                first
                != draw_color_shifts(
                    50, COVARIANCE, **{"seed": 1, "epoch": 1, **change}, noise=0.1, mode="code"
                )
            )
            .any(1)
            .all()
        )


@pytest.mark.parametrize("mode", ["code", "paper"])
def test_pixels_are_moved_as_numpy_moves_them(mode):
    rng = np.random.default_rng(0)
    pixels, shifts, mean = (
        rng.integers(0, 256, (4, 5, 6, 3), np.uint8),
        rng.normal(0, 40, (4, 3)).astype(np.float32),
        (130.0, 120.0, 99.5),
    )
    scale = compute_color_scale(0.1, mode)
    expected = (pixels - np.asarray(mean) + shifts[:, None, None]) * scale + mean
    found = shift_colors(pixels, shifts, mean, scale).numpy()
    assert found.dtype == np.uint8
    assert np.abs(found - np.clip(expected, 0, 255)).max() <= 0.5 + 1e-3
    assert (found == 0).any()
    assert (found == 255).any()


def test_without_noise_nothing_changes():
    pixels = np.arange(256, dtype=np.uint8)[None, :, None, None].repeat(3, 3)
    np.testing.assert_array_equal(
        shift_colors(
            pixels, np.zeros((1, 3), np.float32), (1.0, 2.0, 3.0), compute_color_scale(0.0, "code")
        ),
        pixels,
    )


SIZE = 24


@pytest.fixture
def dataset():
    counts = {"train": (300, 100, 600)}
    return SimpleNamespace(
        count_images=lambda _: 1000,
        class_counts=counts,
        channel_mean=(120.0, 110.0, 100.0),
        channel_covariance=COVARIANCE,
    )


def batch_of(pixels, dataset, **how):
    """Return a batch of the first places, and it augmented."""
    config = TrainConfig(**how)
    drawn = draw_augmentations(config, dataset, size=SIZE, epoch=0)
    batch = {
        "pixels": tf.constant(pixels),
        "labels": tf.range(len(pixels)),
        **{name: part[: len(pixels)] for name, part in drawn.items()},
    }
    return batch, [
        part if part is None else part.numpy() for part in augment_batch(batch, config, dataset)
    ]


def smooth(count, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3))
    return np.clip(tf.image.resize(coarse, (SIZE, SIZE), method="bicubic").numpy(), 0, 255).astype(
        np.uint8
    )


def test_nothing_is_drawn_and_nothing_changes_without_an_option(dataset):
    pixels = smooth(10)
    batch, (found, labels, partners, shares) = batch_of(pixels, dataset)
    assert set(batch) == {"pixels", "labels"}
    assert partners is None
    assert shares is None
    np.testing.assert_array_equal(found, pixels)
    np.testing.assert_array_equal(labels, np.arange(10))


def test_colors_move_on_the_device_as_they_do_alone(dataset):
    pixels = smooth(10)
    batch, (found, *_) = batch_of(pixels, dataset, color_noise=0.2)
    expected = shift_colors(
        tf.constant(pixels), batch["shift"], dataset.channel_mean, compute_color_scale(0.2, "code")
    ).numpy()
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(found, pixels)


def test_one_option_does_not_change_what_another_draws(dataset):
    everything = {"color_noise": 0.1, "randaugment": 2, "random_erasing": 0.5, "mixup": 0.2}
    together = draw_augmentations(TrainConfig(**everything), dataset, size=SIZE, epoch=3)
    for name, value in everything.items():
        for key, alone in draw_augmentations(
            TrainConfig(**{name: value}), dataset, size=SIZE, epoch=3
        ).items():
            np.testing.assert_array_equal(together[key], alone)
    assert not np.array_equal(
        together["erased"],
        draw_augmentations(TrainConfig(**everything), dataset, size=SIZE, epoch=4)["erased"],
    )
    assert not np.array_equal(
        together["erased"],
        draw_augmentations(TrainConfig(**everything, seed=1), dataset, size=SIZE, epoch=3)[
            "erased"
        ],
    )


def test_erasing_hides_a_rectangle_of_the_right_size_in_the_right_share(dataset):
    pixels = np.full((1000, SIZE, SIZE, 3), 250, np.uint8)
    _, (found, *_) = batch_of(pixels, dataset, random_erasing=0.25)
    hidden = (found != 250).all(-1)
    shares = hidden.mean((1, 2))
    assert abs((shares > 0).mean() - 0.25) < 0.04
    assert 0.01 < shares[shares > 0].min() < shares.max() < 0.36
    assert np.unique(found[hidden], axis=0).tolist() == [[120, 110, 100]]
    for image in hidden[shares > 0][:50]:
        assert image.sum() == image.any(1).sum() * image.any(0).sum()  # a rectangle


def test_mixup_is_the_weighted_sum_with_the_neighbor(dataset):
    pixels = smooth(40)
    batch, (found, _, partners, shares) = batch_of(pixels, dataset, mixup=0.4)
    np.testing.assert_array_equal(partners, np.arange(40) ^ 1)
    np.testing.assert_allclose(shares, batch["own_fraction"], atol=1e-6)
    own = shares[:, None, None, None]
    assert np.abs(found - (pixels * own + pixels[partners] * (1 - own))).max() <= 0.51
    drawn = draw_augmentations(TrainConfig(mixup=0.4), dataset, size=SIZE, epoch=0)["own_fraction"]
    assert abs(drawn.mean() - 0.5) < 0.04
    assert abs(drawn.std() - np.sqrt(0.25 / 1.8)) < 0.02  # Beta(a, a): variance 1 / (4 (2 a + 1))


def test_cutmix_puts_a_rectangle_of_the_neighbor_in_and_counts_its_area(dataset):
    pixels = np.repeat(np.arange(0, 200, 5, dtype=np.uint8), SIZE * SIZE * 3).reshape(
        40, SIZE, SIZE, 3
    )
    _, (found, _, partners, shares) = batch_of(pixels, dataset, cutmix=1.0)
    foreign = (found == pixels[partners]).all(-1)
    assert ((found == pixels).all(-1) ^ foreign).all()
    np.testing.assert_allclose(1 - shares, foreign.mean((1, 2)), atol=1e-6)
    assert 0.2 < 1 - shares.mean() < 0.6
    assert shares.std() > 0.1


def test_mixup_and_cutmix_take_turns(dataset):
    drawn = draw_augmentations(TrainConfig(mixup=0.2, cutmix=1.0), dataset, size=SIZE, epoch=0)
    whole = (drawn["mixed"] == [0, 0, SIZE, SIZE]).all(1)
    assert abs(whole.mean() - 0.5) < 0.06
    assert (drawn["own_fraction"][~whole] == 0).all()


def test_pairs_do_not_reach_over_even_shares_of_a_batch(dataset):
    pixels = smooth(12)
    config = TrainConfig(mixup=0.4, cutmix=1.0, randaugment=1, global_batch_size=12)
    drawn = {
        name: part[:12]
        for name, part in draw_augmentations(config, dataset, size=SIZE, epoch=0).items()
    }
    batch = {"pixels": pixels, "labels": np.arange(12, dtype=np.int32), **drawn}
    whole = augment_batch(batch, config, dataset)
    parts = [
        augment_batch(
            {name: part[start : start + 4] for name, part in batch.items()}, config, dataset
        )
        for start in (0, 4, 8)
    ]
    for together, *apart in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(together, np.concatenate(apart))


def changed(kind, sign, pixels, dataset, magnitude=15):
    """Return images to which one of RandAugment's changes was done, of a sign."""

    class Chosen:
        def integers(self, _low, _high, count):
            return np.full(count, kind)

        def choice(self, _values, count):
            return np.full(count, sign)

    warp, tone = augment._draw_randaugment(Chosen(), len(pixels), (SIZE, SIZE), 1, magnitude / 30)
    batch = {
        "pixels": tf.constant(pixels),
        "labels": tf.range(len(pixels)),
        "warp": warp,
        "tone": tone,
    }
    return augment_batch(batch, TrainConfig(), dataset)[0].numpy()


def test_every_change_of_randaugment_is_what_pillow_does(dataset):
    pixels = smooth(6)
    image = [Image.fromarray(one) for one in pixels]
    np.testing.assert_array_equal(changed(0, 1.0, pixels, dataset), pixels)
    references = {
        6: [np.asarray(ImageEnhance.Brightness(one).enhance(1.45)) for one in image],
        7: [np.asarray(ImageEnhance.Contrast(one).enhance(1.45)) for one in image],
        8: [np.asarray(ImageEnhance.Color(one).enhance(1.45)) for one in image],
        9: [np.asarray(ImageOps.autocontrast(one)) for one in image],
        10: [np.asarray(ImageOps.posterize(one, 6)) for one in image],
        11: [np.asarray(ImageOps.solarize(one, 128)) for one in image],
    }
    for kind, expected in references.items():
        difference = np.abs(
            changed(kind, 1.0, pixels, dataset).astype(int) - np.stack(expected).astype(int)
        )
        assert difference.max() <= 3, kind
        assert difference.mean() < 0.8, kind


def test_warps_turn_shift_and_shear_around_the_center(dataset):
    pixels = smooth(6)
    inner = np.s_[:, 8:16, 8:16]
    turned = changed(5, 1.0, pixels, dataset)
    expected = np.stack(
        [np.asarray(Image.fromarray(one).rotate(15, Image.Resampling.BILINEAR)) for one in pixels]
    )
    assert np.abs(turned[inner].astype(int) - expected[inner]).max() <= 3
    shift = 150 / 331 * SIZE * 0.5
    moved = changed(3, 1.0, pixels, dataset)
    assert (
        np.abs(
            moved[:, :, : SIZE - 7].astype(float) - _shifted(pixels, shift)[:, :, : SIZE - 7]
        ).max()
        <= 1.01
    )
    assert np.unique(moved[:, :, -1].reshape(-1, 3), axis=0).tolist() == [
        [120, 110, 100]
    ]  # from outside: the mean color
    sheared = changed(1, 1.0, pixels, dataset)
    assert (
        np.abs(sheared[:, 11:13, 8:16].astype(int) - pixels[:, 11:13, 8:16]).max() < 40
    )  # the center stays
    assert not np.array_equal(sheared, changed(1, -1.0, pixels, dataset))


def _shifted(pixels, shift):
    """Return what lies `shift` columns to the right, float."""
    whole, part = int(shift), shift - int(shift)
    padded = np.pad(pixels.astype(float), ((0, 0), (0, 0), (0, whole + 2), (0, 0)), mode="edge")
    return (
        padded[:, :, whole : whole + SIZE] * (1 - part)
        + padded[:, :, whole + 1 : whole + 1 + SIZE] * part
    )


def test_randaugment_draws_every_change_equally_often(dataset):
    drawn = draw_augmentations(TrainConfig(randaugment=1), dataset, size=SIZE, epoch=0)
    same = (drawn["warp"] == np.eye(3).reshape(9)[:8]).all(1) & (
        drawn["tone"] == [1, 1, 1, 0, 1, 256]
    ).all(1)
    assert abs(same.mean() - 1 / 12) < 0.03
    assert abs((drawn["tone"][:, 3] == 1).mean() - 1 / 12) < 0.03
    twice = draw_augmentations(TrainConfig(randaugment=2), dataset, size=SIZE, epoch=0)
    assert not np.array_equal(drawn["tone"], twice["tone"])


def test_class_weights_are_inverse_to_the_counts(dataset):
    np.testing.assert_allclose(
        compute_class_weights(dataset), [1000 / 900, 1000 / 300, 1000 / 1800], rtol=1e-6
    )


WIDE = (16, 48)


def drawn_wide(dataset, **how):
    """Return what is drawn for images of 16 x 48 pixels."""
    return draw_augmentations(TrainConfig(**how), dataset, size=WIDE, epoch=0)


def test_boxes_of_wide_images_have_their_shape_and_lie_inside(dataset):
    erased = drawn_wide(dataset, random_erasing=1.0)["erased"]
    mixed = drawn_wide(dataset, cutmix=1.0)["mixed"]
    for boxes in (erased, mixed):
        top, left, bottom, right = boxes.T
        assert (boxes >= 0).all() and bottom.max() == 16 and right.max() == 48
        assert (bottom >= top).all() and (right >= left).all()
        assert abs(np.mean(bottom - top) / 16 - np.mean(right - left) / 48) < 0.03
    shares = np.prod(erased[:, 2:] - erased[:, :2], axis=1) / (16 * 48)
    assert 0.01 < shares.min() < shares.max() < 0.36
    whole = drawn_wide(dataset, mixup=0.2)["mixed"]
    assert (whole == [0, 0, 16, 48]).all()


def test_cutmix_counts_the_area_of_a_wide_image(dataset):
    config, pixels = TrainConfig(cutmix=1.0), np.zeros((8, *WIDE, 3), np.uint8)
    pixels[1::2] = 200
    drawn = {name: part[:8] for name, part in drawn_wide(dataset, cutmix=1.0).items()}
    batch = {"pixels": tf.constant(pixels), "labels": tf.range(8), **drawn}
    found, _, partners, shares = (part.numpy() for part in augment_batch(batch, config, dataset))
    foreign = (found == pixels[partners]).all(-1)
    np.testing.assert_allclose(1 - shares, foreign.mean((1, 2)), atol=1e-6)


def test_warps_of_wide_images_keep_their_center_and_shift_by_their_sides(dataset):
    warps = drawn_wide(dataset, randaugment=1)["warp"]
    matrices = np.append(warps, np.ones((len(warps), 1)), axis=1).reshape(-1, 3, 3)
    center = np.array([47 / 2, 15 / 2, 1])
    moved = np.abs(matrices @ center - center)[:, :2]
    shifts = {tuple(pair) for pair in np.round(moved, 3) if pair.max() > 1e-3}
    strength = TrainConfig().randaugment_magnitude / 30 * 150 / 331
    assert shifts == {(round(48 * strength, 3), 0.0), (0.0, round(16 * strength, 3))}
