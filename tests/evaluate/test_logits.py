import numpy as np

from pipeline.evaluate.logits import rank_labels


def test_equal_logits_rank_by_class_number():
    constant = np.zeros((4, 4), np.float32)
    assert rank_labels(constant, np.arange(4)).tolist() == [0, 1, 2, 3]
    some = np.array([[1, 3, 3, 2]] * 4, np.float32)
    assert rank_labels(some, np.arange(4)).tolist() == [3, 0, 1, 2]


def test_nan_never_counts_as_right():
    logits = np.array([[np.nan, 0, 1], [0, np.nan, 1], [np.nan, np.nan, np.nan]], np.float32)
    assert (rank_labels(logits, np.array([0, 0, 2])) > 0).all()
