import keras
import numpy as np
import pytest

from pipeline.evaluate.assessment import count_corrupted_images
from pipeline.evaluate.corruptions import CORRUPTIONS, SEVERITIES, corrupt_images
from pipeline.evaluate.robustness import corrupt_in_every_way, measure_robustness
from pipeline.model.macs import count_macs

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
LABELS = np.random.default_rng(1).integers(0, 2, 20)


def bright(pixels):
    return (pixels.reshape(len(pixels), -1).mean(axis=1) > 128).astype(int)


def test_errors_are_those_of_the_corrupted_images():
    steps = []
    result = measure_robustness(
        bright, PIXELS, LABELS, np.arange(20), seed=3, progress=lambda *step: steps.append(step)
    )
    assert result.images == 20
    assert result.clean == pytest.approx(np.mean(bright(PIXELS) != LABELS))
    for kind in CORRUPTIONS:
        for severity in SEVERITIES:
            corrupted = corrupt_images(PIXELS, kind, severity, seed=3, positions=np.arange(20))
            assert result.errors[kind][severity] == pytest.approx(
                np.mean(bright(corrupted) != LABELS)
            )
    assert steps == [
        (done, len(CORRUPTIONS) * len(SEVERITIES))
        for done in range(1, len(CORRUPTIONS) * len(SEVERITIES) + 1)
    ]
    assert result.mean.error == pytest.approx(
        np.mean([list(errors.values()) for errors in result.errors.values()])
    )
    assert result.mean.relative == pytest.approx(result.mean.error - result.clean)


def test_what_does_not_look_at_the_pixels_is_as_wrong_on_all():
    result = measure_robustness(
        lambda pixels: np.zeros(len(pixels), int),
        PIXELS,
        LABELS,
        np.arange(20),
        seed=0,
        progress=lambda *_: None,
    )
    assert {error for errors in result.errors.values() for error in errors.values()} == {
        result.clean
    }


def test_examples_are_one_image_in_every_way():
    found = corrupt_in_every_way(PIXELS[4], 4, seed=0)
    assert found.keys() == set(CORRUPTIONS)
    assert np.array_equal(
        found["noise"][1],
        corrupt_images(PIXELS, "noise", SEVERITIES[1], seed=0, positions=np.arange(20))[4],
    )


@pytest.mark.parametrize(
    ("filters", "macs", "images"),
    [
        (8, 8 * 27 * 62**2, 500),
        # 22 views, the clean one with them: 2.4e12 / (22 x 637,608,960) = 171.09...
        (6144, 6144 * 27 * 62**2, 171),
        (61440, 61440 * 27 * 62**2, 100),
    ],
)
def test_fewer_images_are_corrupted_for_a_large_network(filters, macs, images):
    image = keras.Input((64, 64, 3))
    layer = keras.layers.Conv2D(filters, 3, use_bias=False, kernel_initializer="zeros")
    model = keras.Model(image, layer(image))
    assert count_macs(layer) == macs
    assert count_corrupted_images(model) == images
    layer.trainable = False
    assert count_corrupted_images(model) == images
