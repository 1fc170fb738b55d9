import numpy as np
import pytest

from pipeline.evaluate import calibration


def test_a_network_that_is_never_wrong_keeps_its_probabilities():
    logits = np.eye(4)[[0, 1, 2, 3]]
    assert calibration.fit_temperature(logits, np.arange(4)) == 1.0


@pytest.mark.parametrize("images", [60, 400])
def test_perfect_probabilities_are_off_by_what_chance_makes(images):
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.3, 1, images)
    bins = np.clip(np.ceil(confidence * 15).astype(int) - 1, 0, 14)
    errors = []
    for _ in range(2000):
        gap = (rng.uniform(size=images) < confidence) - confidence
        errors.append(np.abs(np.bincount(bins, gap, 15)).sum() / images)
    assert calibration.compute_chance_calibration_error(confidence) == pytest.approx(
        np.mean(errors), rel=0.05
    )
