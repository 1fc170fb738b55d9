import numpy as np

from pipeline.evaluate.selection import (
    select_confident_mistakes,
    select_unsure_hits,
    spread_indices,
)


def test_samples_are_spread_mistakes_are_the_surest_and_hits_the_least_sure():
    assert spread_indices(361, 8) == [0, 51, 102, 154, 205, 257, 308, 360]
    assert spread_indices(3, 8) == [0, 1, 2]
    wrong, confidence = np.array([True, True, False, False]), np.array([0.7, 0.9, 0.8, 0.6])
    assert select_confident_mistakes(wrong, confidence) == [1, 0]
    assert select_unsure_hits(wrong, confidence) == [3, 2]
