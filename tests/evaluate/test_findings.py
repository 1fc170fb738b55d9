import numpy as np
import pytest

from pipeline.evaluate.findings import rank_guesses


def test_guesses_are_ordered_and_add_up():
    ((answers, probabilities),) = rank_guesses(np.array([[0, 2, 2]], np.float32))
    assert answers == (1, 2, 0)
    assert sum(probabilities) == pytest.approx(1)
    assert probabilities[0] == pytest.approx(np.exp(2) / (2 * np.exp(2) + 1))
