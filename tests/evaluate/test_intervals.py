import numpy as np
import pytest
from scipy import stats

from pipeline.evaluate import intervals


def test_bootstrap_samples_count_each_image_a_poisson_number_of_times():
    weights = intervals.draw_bootstrap_weights(np.random.default_rng(0), 2000, 500)
    assert (weights[:, 0] == 1).all()
    found = np.bincount(weights[:, 1:].astype(int).ravel(), minlength=5)[:5] / 1e6
    assert found == pytest.approx(stats.poisson.pmf(range(5), 1), abs=0.002)


def test_wilson_interval_equals_a_worked_example():
    # Newcombe 1998, table I, method 3 (Wilson, no continuity correction).
    examples = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (errors, images), interval in examples.items():
        assert intervals.compute_wilson_interval(errors, images) == pytest.approx(
            interval, abs=5e-5
        )
    assert intervals.compute_wilson_interval(29, 29) == pytest.approx(
        (1 - 0.1170, 1.0), abs=5e-5
    )  # of 0 of 29, mirrored
