"""The classifier on features: one solution, folds by class, views of an image together."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.train.head import (
    PENALTIES,
    _cross_entropy,
    _standardize,
    assign_folds,
    fit_head,
    read_head,
    write_head,
)


def make_features(images_per_class, classes=3, views=2, units=20, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(classes, units))
    labels = np.repeat(np.arange(classes), images_per_class)
    views = [centers[labels] + noise * rng.normal(size=(len(labels), units)) for _ in range(views)]
    return np.stack(views, axis=1).astype(np.float32), labels


def test_it_is_scikit_learns_solution_on_standardized_features():
    from sklearn.linear_model import LogisticRegression

    features, labels = make_features(30)
    features[..., 3] *= 1000  # scales differ in every network
    features[..., 4] += 50
    head = fit_head(features, labels, 3, seed=0)
    rows = features.reshape(-1, 20).astype(np.float64)
    scaled = (rows - rows.mean(0)) / rows.std(0)
    # Two views of an image have the weight of one image.
    expected = LogisticRegression(C=head.penalty / 2, tol=1e-8, max_iter=5000)
    expected.fit(scaled, np.repeat(labels, 2))
    logits = head.compute_logits(features.reshape(-1, 20))
    given = logits - logits.mean(1, keepdims=True)
    np.testing.assert_allclose(given, expected.decision_function(scaled), atol=0.02)


def test_the_penalty_follows_the_noise():
    clear, labels = make_features(20, noise=0.2)
    noisy, _ = make_features(20, noise=6.0)
    assert fit_head(clear, labels, 3, seed=0).penalty > fit_head(noisy, labels, 3, seed=0).penalty


def test_the_scores_are_those_of_images_that_were_held_out():
    features, labels = make_features(20, noise=8.0)
    labels = np.random.default_rng(1).permutation(labels)  # nothing to learn
    head = fit_head(features, labels, 3, seed=0)
    assert head.held_out == 60
    assert set(head.scores) == set(PENALTIES)
    assert head.scores[PENALTIES[-1]][1] > 0.5  # two thirds by chance; 0 where views were divided
    fitted = head.compute_logits(features[:, 0]).argmax(1) != labels
    assert fitted.mean() < head.scores[head.penalty][1]


def test_folds_spread_every_class_and_keep_its_only_image():
    labels = np.array([0] * 11 + [1] * 2 + [2])
    folds = assign_folds(labels, seed=3)
    assert folds[-1] == -1
    counts = np.bincount(folds[:11], minlength=5)
    assert counts.max() - counts.min() == 1
    assert len(set(folds[11:13])) == 2
    assert (assign_folds(labels, seed=3) == folds).all()
    assert (assign_folds(labels, seed=4) != folds).any()


def test_one_image_per_class_is_fitted_without_a_choice():
    features, labels = make_features(1, classes=4, views=1)
    head = fit_head(features, labels, 4, seed=0)
    assert head.held_out == 0
    assert head.scores == {}
    assert (head.compute_logits(features[:, 0]).argmax(1) == labels).all()


def test_a_class_without_training_images_is_never_the_answer():
    features, labels = make_features(10)
    head = fit_head(features, labels + 1, 5, seed=0)
    assert head.kernel.shape == (20, 5)
    assert set(head.compute_logits(features[:, 0]).argmax(1)) == {1, 2, 3}


@pytest.mark.parametrize("classes", [2, 3])
def test_a_constant_feature_has_no_weight(classes):
    features, labels = make_features(10, classes=classes)
    features[..., 5] = 7.0
    head = fit_head(features, labels, classes, seed=0)
    assert (head.kernel[5] == 0).all()
    assert np.isfinite(head.kernel).all()


def test_rare_classes_count_as_much_with_class_weights():
    rng = np.random.default_rng(0)
    labels = np.array([0] * 190 + [1] * 10)
    features = (rng.normal(size=(200, 1, 5)) + 0.7 * labels[:, None, None]).astype(np.float32)
    plain = fit_head(features, labels, 2, seed=0)
    weights = np.array([200 / (2 * 190), 200 / (2 * 10)], np.float32)
    weighted = fit_head(features, labels, 2, seed=0, class_weights=weights)
    found = [
        head.compute_logits(features[:, 0]).argmax(1)[labels == 1] for head in (plain, weighted)
    ]
    assert found[1].mean() > found[0].mean() + 0.3


def test_the_same_bits_again_and_through_a_file(tmp_path):
    features, labels = make_features(10)
    one, other = (fit_head(features, labels, 3, seed=0) for _ in range(2))
    write_head(one, tmp_path / "head.npz")
    kernel, bias = read_head(tmp_path / "head.npz")
    assert kernel.tobytes() == other.kernel.tobytes()
    assert bias.tobytes() == other.bias.tobytes()


def make_near_copies(groups_per_class, copies, *, classes=3, units=60, seed=0):
    """Return features of near-copies of objects, labels and groups; objects have no class."""
    rng = np.random.default_rng(seed)
    count = classes * groups_per_class
    objects = rng.normal(size=(count, units))
    groups = np.repeat(np.arange(count), copies)
    features = objects[groups] + 0.05 * rng.normal(size=(len(groups), units))
    return features[:, np.newaxis].astype(np.float32), groups % classes, groups


def test_near_copies_do_not_choose_the_penalty():
    features, labels, groups = make_near_copies(12, 6)
    alone = fit_head(features, labels, 3, seed=0)
    together = fit_head(features, labels, 3, seed=0, groups=groups)
    assert alone.penalty == 10  # a near-copy of each held-out image is fitted
    assert alone.edge == "weakest"
    assert together.penalty <= 1e-2
    # Of new objects, of which nothing can be known: guessing is log 3 = 1.10 nats.
    unseen, unseen_labels, _ = make_near_copies(12, 6, seed=1)
    loss = [
        float(_cross_entropy(head.compute_logits(unseen[:, 0]), unseen_labels).mean())
        for head in (alone, together)
    ]
    assert loss[1] < 1.2 < loss[0]


def test_groups_are_in_one_fold_and_classes_are_spread():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, 80)
    groups = rng.permutation(80).repeat(sizes)
    labels = (groups % 4).astype(np.int32)
    folds = assign_folds(labels, 0, groups)
    assert all(len(set(folds[groups == group])) == 1 for group in range(80))
    counts = np.stack([np.bincount(folds[labels == label], minlength=5) for label in range(4)])
    assert (counts.max(1) - counts.min(1) <= 3).all()
    assert (assign_folds(labels, 0, groups) == folds).all()
    assert (assign_folds(labels, 1, groups) != folds).any()


def test_a_class_in_one_group_is_always_fitted_and_never_scored_without():
    features, labels = make_features(12)
    groups = np.where(labels == 2, 100, np.arange(len(labels)) // 3)
    folds = assign_folds(labels, 0, groups)
    assert (folds[labels == 2] == -1).all()
    head = fit_head(features, labels, 3, seed=0, groups=groups)
    assert head.held_out == 24
    # The class shares its only group with another: that is held out, and only the other is scored.
    groups[labels == 1] = 200 + np.arange(12) // 3
    groups[labels == 2] = 200
    head = fit_head(features, labels, 3, seed=0, groups=groups)
    assert head.held_out == 24
    assert head.scores[head.penalty][0] < 5  # an absent class would cost 20 nats an image


def test_groups_that_cannot_be_held_out_leave_the_usual_penalty():
    features, labels = make_features(5, classes=2)
    head = fit_head(features, labels, 2, seed=0, groups=labels)
    assert head.scores == {}
    assert head.edge == ""


def test_the_scale_is_that_of_the_fitted_images(monkeypatch):
    features, labels = make_features(10)
    seen = []
    monkeypatch.setattr(
        "pipeline.train.head._standardize",
        lambda rows: seen.append(len(rows)) or _standardize(rows),
    )
    fit_head(features, labels, 3, seed=0)
    assert seen == [48] * 5 + [60]  # two views of four fifths, then of all


def test_scores_are_weighted_as_the_fit():
    rng = np.random.default_rng(0)
    labels = np.array([0] * 190 + [1] * 10)
    features = rng.normal(size=(200, 1, 5)).astype(np.float32)
    weighted = fit_head(features, labels, 2, seed=0, class_weights=np.array([1, 9], np.float32))
    # The strongest penalty knows nothing, so the heavier class is the answer.
    assert weighted.scores[PENALTIES[0]][1] == pytest.approx(90 / 280, abs=0.02)
    plain = fit_head(features, labels, 2, seed=0)
    assert plain.scores[PENALTIES[0]][1] == pytest.approx(10 / 200)


def test_a_feature_that_hardly_changes_is_not_blown_up():
    features, _ = make_features(10)
    features[..., 5] *= 1e-3
    rows = features.reshape(-1, 20).copy()
    _, scale = _standardize(rows)
    usual = np.median(rows[:, :5].std(0))
    assert usual == pytest.approx(1, abs=0.01)
    assert rows[:, 5].std() < 0.01
    assert scale[5] == pytest.approx(2 * np.median(scale), rel=0.3)
