import numpy as np
import pytest
from sklearn import metrics as sk

from pipeline.evaluate import metrics

EXACT = {"rel": 0, "abs": 1e-9}


def random_case(seed, images=200, classes=7, present=None):
    """Logits whose label is often but not always likely; only some classes occur if `present` is given."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(present or classes, images)
    logits = rng.normal(0, 2, (images, classes)).astype(np.float32)
    logits[np.arange(images), labels] += 2.5
    return logits, labels.astype(np.int32)


CASES = {
    "usual": random_case(0),
    "classes absent from labels": random_case(1, present=[1, 2, 5]),
    "one class": random_case(2, present=[3]),
    "one picture": random_case(3, images=1),
    "two classes": random_case(4, classes=2),
    "many classes": random_case(5, images=500, classes=300),
}


@pytest.fixture(params=CASES, name="case")
def _case(request):
    return CASES[request.param]


def test_scores_of_classes_equal_scikit_learn(case):
    logits, labels = case
    answers, classes = logits.argmax(axis=1), logits.shape[1]
    confusion = metrics.confusion_matrix(labels, answers, classes)
    assert np.array_equal(confusion, sk.confusion_matrix(labels, answers, labels=range(classes)))
    expected = sk.precision_recall_fscore_support(labels, answers, labels=range(classes), zero_division=0)
    found = metrics.class_scores(confusion)
    for one, other in zip((found.precision, found.recall, found.f1, found.support), expected, strict=True):
        assert one == pytest.approx(other, **EXACT)


@pytest.mark.parametrize(("name", "average"), [("macro", metrics.macro_average), ("weighted", metrics.weighted_average)])
def test_averages_equal_scikit_learn(case, name, average):
    logits, labels = case
    answers = logits.argmax(axis=1)
    found = average(metrics.class_scores(metrics.confusion_matrix(labels, answers, logits.shape[1])))
    expected = sk.precision_recall_fscore_support(labels, answers, average=name, zero_division=0)[:3]
    assert (found.precision, found.recall, found.f1) == pytest.approx(expected, **EXACT)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
def test_errors_and_loss_equal_scikit_learn(case):
    logits, labels = case
    classes = logits.shape[1]
    summary = metrics.summarise(logits, labels, np.bincount(labels, minlength=classes))
    assert summary.top1_error == pytest.approx(1 - sk.accuracy_score(labels, logits.argmax(axis=1)), **EXACT)
    assert summary.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(labels, logits.argmax(axis=1)), **EXACT)
    probabilities = np.exp(metrics.log_probabilities(logits))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert summary.loss == pytest.approx(sk.log_loss(labels, probabilities, labels=range(classes)), **EXACT)
    if classes > 5:
        assert summary.top5_error == pytest.approx(1 - sk.top_k_accuracy_score(labels, logits, k=5, labels=range(classes)), **EXACT)


def test_five_guesses_of_five_classes_are_never_wrong():
    logits, labels = random_case(0, classes=5)
    ranks = metrics.label_ranks(logits, labels)
    assert metrics.top_k_error(ranks, 5, 5) == metrics.top_k_error(ranks, 7, 5) == 0.0
    assert metrics.top_k_error(ranks, 4, 5) > 0


def test_equal_logits_rank_by_class_number():
    constant = np.zeros((4, 4), np.float32)
    assert metrics.label_ranks(constant, np.arange(4)).tolist() == [0, 1, 2, 3]
    some = np.array([[1, 3, 3, 2]] * 4, np.float32)
    assert metrics.label_ranks(some, np.arange(4)).tolist() == [3, 0, 1, 2]


def test_rank_zero_is_argmax(case):
    logits, labels = case
    coarse = np.round(logits)  # many ties
    assert np.array_equal(metrics.label_ranks(coarse, labels) == 0, coarse.argmax(axis=1) == labels)


def test_nan_never_counts_as_right():
    logits = np.array([[np.nan, 0, 1], [0, np.nan, 1], [np.nan, np.nan, np.nan]], np.float32)
    assert (metrics.label_ranks(logits, np.array([0, 0, 2])) > 0).all()


def test_cross_entropy_survives_large_logits_and_many_rows():
    assert metrics.cross_entropy(np.array([[1e4, 0]], np.float32), np.array([1])) == pytest.approx(1e4, **EXACT)
    logits, labels = random_case(6, images=metrics._ROWS_AT_ONCE + 3)
    own = metrics.log_probabilities(logits)[np.arange(len(labels)), labels]
    assert metrics.cross_entropy(logits, labels) == pytest.approx(-own.mean(), **EXACT)
    assert metrics.answer_probabilities(logits) == pytest.approx(np.exp(metrics.log_probabilities(logits)).max(axis=1), **EXACT)


def test_wilson_interval_equals_a_worked_example():
    # Newcombe 1998, table I, method 3 (Wilson, no continuity correction).
    examples = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0.0, 0.1611), (1, 29): (0.0061, 0.1718)}
    for (errors, images), interval in examples.items():
        assert metrics.wilson_interval(errors, images) == pytest.approx(interval, abs=5e-5)
    assert metrics.wilson_interval(29, 29) == pytest.approx((1 - 0.1170, 1.0), abs=5e-5)  # of 0 of 29, mirrored


def test_majority_is_chosen_on_training_pictures():
    labels = np.array([0, 0, 0, 1])
    assert metrics.majority_error(np.array([5, 9]), labels) == 0.75
    assert metrics.majority_error(np.array([9, 9]), labels) == 0.25


def test_most_confused_pairs():
    confusion = np.array([[9, 2, 0], [3, 5, 2], [0, 0, 1]])
    found = [(pair.label, pair.answer, pair.images) for pair in metrics.most_confused(confusion, 2)]
    assert found == [(1, 0, 3), (0, 1, 2)]
    assert metrics.most_confused(np.diag([3, 4]), 5) == []
    assert confusion[0, 0] == 9
