import numpy as np

from pipeline.evaluate.class_scores import find_most_confused


def test_most_confused_pairs():
    confusion = np.array([[9, 2, 0], [3, 5, 2], [0, 0, 1]])
    found = [(pair.label, pair.answer, pair.images) for pair in find_most_confused(confusion, 2)]
    assert found == [(1, 0, 3), (0, 1, 2)]
    assert find_most_confused(np.diag([3, 4]), 5) == []
    assert confusion[0, 0] == 9
