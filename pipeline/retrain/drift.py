"""Drift: whether new images differ from those that the champion was made for.

    sample      some images of both sides, however many there are: at most 1,000 new ones and 2,000
    of the reference
    measure     class, brightness, contrast, size and embedding of these (elsewhere: here are arrays
    alone)
    compare     how far are the new ones from as many of the reference? A distance between 0 and 1
    or 2 for each thing that was measured
    calibrate   the same distance between images of the reference alone, 999 times drawn at random,
    in groups of the same sizes
    decide      drift is a distance that so few of these draws reach that the family-wise
    false-alarm rate is at most `significance_level` (Holm 1979)

No threshold is a magic number: each is what the reference's own images make by chance. Distances,
unlike a test's statistic, do not grow with the images, and 1,000 of them are the floor under what
counts: a drift that cannot be seen between 1,000 images is no reason to train again, however
certain it would be with a million. Without a drift, 3.6 to 4.9 of 100 comparisons see one where the
level is 5 % (simulated, with 20 to 300 images: `pytest -m slow tests/retrain/test_drift.py`).

The reference should be images of the champion's dataset that it was *not* trained on, such as its
validation and test splits. A network that has learned images by heart embeds these otherwise than
any others: compared with the training split of one with errors of 0 % in training and 66 % in the
test, held-out images had drifted in 15 of 100 samples of 300, and in 27 of 40 of 1,000.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from pipeline.arrays import Array, Floats, Integers


MAX_IMAGES = 1000  # of each kind
MIN_IMAGES = 20  # so few show a change of half the images, hardly more
# The least p-value is then 1 in 1,000, an eighth of what six tests at 5 % together ask of one
DRAWS = 999
_DIGITS = (
    9  # of a distance: equal ones must compare as equal in whatever order their parts were summed
)


@dataclass(frozen=True)
class ImageMeasurements:
    """Measurements of some images, in the same order everywhere.

    Attributes:
        scalars: name -> float [images], finite, in any unit, such as `brightness`.
        labels: [images], class numbers or names that mean the same on both sides. None: not
            labeled.
        embeddings: float32 [images, features], finite, unbounded, by the same network on both
            sides. None: not measured.
    """

    scalars: Mapping[str, Floats] = field(default_factory=dict)
    labels: Array | None = None
    embeddings: Floats | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return next((len(values) for values in self.as_arrays().values()), 0)

    def as_arrays(self) -> dict[str, Array]:
        """Return the measurements by name: arrays whose first axis is the images."""
        named = {"class_balance": self.labels, **self.scalars, "embeddings": self.embeddings}
        return {name: values for name, values in named.items() if values is not None}


@dataclass(frozen=True)
class DriftTest:
    """The comparison of one measurement.

    Attributes:
        name: `class_balance`, `embeddings` or a scalar's name.
        distance: of the new images from the reference. A scalar: Kolmogorov's and Smirnov's
            distance, in [0, 1]. Class balance: root of the sum over classes of (difference of
            fractions)^2 / fraction in both, in [0, 2] between groups of one size. Embeddings:
            squared MMD, at most 2 and without bias, so that it may be below 0.
        threshold: a distance above this is drift, whatever else was found; below it, it may be
            where other things have drifted for sure.
        p_value: fraction of draws of the reference that are as far, the new images counted as
            one, in (0, 1].
        drifted: whether it is drift, beyond chance.
        note: what changed, such as `median 0.52, was 0.47`; empty for embeddings.
    """

    name: str
    distance: float
    threshold: float
    p_value: float
    drifted: bool
    note: str


@dataclass(frozen=True)
class Drift:
    """The result: `images` new ones were compared with `reference` others.

    `significance_level` is the family-wise false-alarm rate.
    """

    tests: tuple[DriftTest, ...]
    images: int
    reference: int
    significance_level: float

    @property
    def drifted(self) -> tuple[DriftTest, ...]:
        """The measurements that drifted, the smallest p-value first."""
        return tuple(
            sorted(
                (test for test in self.tests if test.drifted),
                key=lambda test: test.p_value,
            )
        )


def sample_images(new: int, reference: int, seed: int = 0) -> tuple[Integers, Integers] | None:
    """Sample the images to be measured, so that the cost has a bound; None where there are too few.

    All new images, at most 1,000 and half of the reference; of the reference as many, and up to
    1,000 more. Both are int64 indices, ascending.

    Args:
        new: number of new images.
        reference: number of images of the reference.
        seed: of the sample.
    """
    count = min(new, MAX_IMAGES, reference // 2)
    if count < MIN_IMAGES:
        return None
    rng = np.random.default_rng(seed)
    chosen = (
        rng.choice(every, some, replace=False)
        for every, some in ((new, count), (reference, min(reference, count + MAX_IMAGES)))
    )
    mine, theirs = map(np.sort, chosen)
    return mine, theirs


def measure_drift(
    new: ImageMeasurements,
    reference: ImageMeasurements,
    *,
    significance_level: float,
    seed: int = 0,
) -> Drift:
    """Compare new images with a reference in every measurement that both have.

    Args:
        new: n images.
        reference: n + m images, of which m are compared with, and from which draws of n and m are
            made to learn what chance does.
        significance_level: family-wise false-alarm rate, in (0, 1).
        seed: of the draws.

    Raises:
        ValueError: the two do not fit, something is not finite, or the level is too low for so few
            draws.
    """
    arrays, others = new.as_arrays(), reference.as_arrays()
    names = [name for name in arrays if name in others]
    _require_comparable(
        [*arrays.values()], [*others.values()], significance_level / max(1, len(names))
    )
    weights = draw_weights(len(new), len(reference) - len(new), np.random.default_rng(seed))
    distances = {
        name: np.round(_compute_distances(name, arrays[name], others[name], weights), _DIGITS)
        for name in names
    }
    p_values = {name: float(np.mean(found >= found[0])) for name, found in distances.items()}
    certain = reject_by_holm(p_values, significance_level)
    tests = tuple(
        DriftTest(
            name,
            float(found[0]),
            _compute_threshold(found[1:], significance_level / len(names)),
            p_values[name],
            name in certain,
            note,
        )
        for (name, found), note in zip(
            distances.items(), _describe_changes(new, reference, names), strict=True
        )
    )
    return Drift(tests, len(new), len(reference) - len(new), significance_level)


def _require_comparable(
    arrays: list[Array], others: list[Array], significance_level: float
) -> None:
    """Raise a ValueError for measurements that cannot be compared at this level of one test."""
    sizes, reference_sizes = {len(values) for values in arrays}, {len(values) for values in others}
    if (
        len(sizes) != 1
        or len(reference_sizes) != 1
        or not 2 <= min(sizes) <= min(reference_sizes) - 2
    ):
        raise ValueError(
            f"Expected n new images and at least n + 2 of the reference, 2 <= n. Received {sizes}"
            f" and {reference_sizes}."
        )
    if not all(
        np.isfinite(values).all() for values in (*arrays, *others) if values.dtype.kind == "f"
    ):
        raise ValueError(
            "Expected finite measurements of every image. Received some that are NaN or infinite."
        )
    if not significance_level * (DRAWS + 1) >= 1:
        raise ValueError(
            f"Expected a level of at least {1 / (DRAWS + 1)} a test, which {DRAWS} draws can show."
            f" Received {significance_level}."
        )


# -- draws -----------------------------------------------------------------------------------------


def draw_weights(count: int, rest: int, rng: np.random.Generator) -> Floats:
    """Return the weights of the compared groups, float64 [1 + draws, count + (count + rest)].

    New images stand before the reference.

    In each row `count` images weigh 1 / count and `rest` others -1 / rest, so that a row's product
    with anything is the difference of two means; all others weigh 0. In row 0 the new images are
    compared, in the others the reference with itself. Both groups of a draw are as large as those
    of row 0 and have no image in common: then its distance varies as much as that of new images
    without a drift.
    """
    row = np.repeat([1 / count, -1 / rest], [count, rest])
    drawn = rng.permuted(np.tile(row, (1 + DRAWS, 1)), axis=1)
    weights = np.concatenate([np.zeros((1 + DRAWS, count)), drawn], axis=1)
    weights[0, :count] = 1 / count
    weights[0, count:] = np.minimum(drawn[0], 0)
    return weights


def reject_by_holm(p_values: Mapping[str, float], significance_level: float) -> frozenset[str]:
    """Return the rejecting tests at a family-wise false-alarm rate (Holm 1979)."""
    order = sorted(p_values, key=lambda name: p_values[name])
    kept = [
        rank
        for rank, name in enumerate(order)
        if p_values[name] > significance_level / (len(order) - rank)
    ]
    return frozenset(order[: kept[0]] if kept else order)


def _compute_threshold(drawn: Floats, significance_level: float) -> float:
    """Return the distance that at most a fraction `significance_level` of the draws reaches."""
    return float(np.sort(drawn)[-int(significance_level * (DRAWS + 1) + 1e-9)])


# -- distances -------------------------------------------------------------------------------------


def _compute_distances(name: str, new: Array, reference: Array, weights: Floats) -> Floats:
    """Return the distances of one measurement, float64 [1 + draws]; `weights` of `draw_weights`."""
    values = np.concatenate([new, reference])
    if name == "class_balance":
        return compute_balance_distances(values, weights)
    return (
        compute_squared_mmd(values, weights)
        if name == "embeddings"
        else compute_smirnov_distances(values, weights)
    )


def compute_smirnov_distances(values: Floats, weights: Floats) -> Floats:
    """Return the largest difference of two distribution functions, float64 [rows] in [0, 1].

    Args:
        values: float [images].
        weights: float64 [rows, images], in each row those of one group positive, with sum 1, those
            of the other negative, with sum -1.
    """
    order = np.argsort(values, kind="stable")
    last_of_equals = np.append(np.diff(values[order]) > 0, True)
    return np.asarray(np.abs(np.cumsum(weights[:, order], axis=1)[:, last_of_equals]).max(axis=1))


def compute_balance_distances(labels: Array, weights: Floats) -> Floats:
    """Return the distances of class balance, float64 [rows].

    The root of the sum over classes of (difference of fractions)^2 / fraction in both groups.

    With the groups' sizes, its square is the chi-square statistic of their table: chi^2 = n m / (n
    + m) distance^2.

    Args:
        labels: [images].
        weights: as those of `smirnov_distances`.
    """
    _, classes = np.unique(labels, return_inverse=True)
    indices = np.arange(len(labels))
    members = sparse.csr_array((np.ones(len(labels)), (indices, classes)))  # [images, classes]
    count, rest = _count_groups(weights)
    fractions = np.maximum(weights, 0) @ members
    differences = weights @ members
    pooled = fractions - differences * rest / (count + rest)
    arrays = np.divide(differences**2, pooled, out=np.zeros_like(pooled), where=pooled > 1e-12)
    return np.asarray(np.sqrt(arrays.sum(axis=1)))


def compute_squared_mmd(embeddings: Floats, weights: Floats) -> Floats:
    """Return the unbiased squared MMD (maximum mean discrepancy), float64 [rows] in [-1, 2].

    Gretton and others 2012, lemma 6.

    Args:
        embeddings: float32 [images, features].
        weights: as those of `smirnov_distances`; images that only row 0 compares stand first.
    """
    count, _ = _count_groups(weights)
    kernel = _compute_kernel(embeddings, count)
    np.fill_diagonal(kernel, 0)  # an image's likeness to itself is what the bias consists of
    # In draws new images weigh nothing, and the products are half as large without them.
    return np.concatenate(
        [
            _compute_mean_differences(weights[:1], kernel),
            _compute_mean_differences(weights[1:, count:], kernel[count:, count:]),
        ]
    )


def _compute_mean_differences(weights: Floats, kernel: Floats) -> Floats:
    """Return the mean kernel within each group, less twice that between them; float64 [rows]."""
    count, rest = _count_groups(weights)
    group, other = np.maximum(weights, 0), np.maximum(-weights, 0)
    likeness = group @ kernel
    within = np.einsum("ij,ij->i", likeness, group) * count / (count - 1)
    others_within = np.einsum("ij,ij->i", other @ kernel, other) * rest / (rest - 1)
    return np.asarray(within + others_within - 2 * np.einsum("ij,ij->i", likeness, other))


def _compute_kernel(embeddings: Floats, new: int) -> Floats:
    """Return exp(-|x - y|^2 / (2 b^2)), float64 [images, images].

    b is the root of the reference's median squared distance.

    Args:
        embeddings: float32 [images, features].
        new: number of them, from the first on, that are not the reference's.
    """
    # Around their mean, the squares are as small as the differences that they leave.
    centered = np.asarray(embeddings, np.float32) - embeddings[new:].mean(
        axis=0, dtype=np.float64
    ).astype(np.float32)
    squares = np.einsum("ij,ij->i", centered, centered)
    distances = np.maximum(squares[:, None] + squares - 2 * (centered @ centered.T), 0).astype(
        np.float64
    )
    own = distances[new:, new:][~np.eye(len(embeddings) - new, dtype=bool)]
    width = float(np.median(own)) or float(np.mean(own)) or 1.0  # most of them may be equal, or all
    return np.asarray(np.exp(distances / (-2 * width)))


def _count_groups(weights: Floats) -> tuple[int, int]:
    """Return the numbers of images in the two groups of each row."""
    return int(np.count_nonzero(weights[0] > 0)), int(np.count_nonzero(weights[0] < 0))


# -- descriptions ----------------------------------------------------------------------------------


def _describe_changes(
    new: ImageMeasurements, reference: ImageMeasurements, names: list[str]
) -> Iterator[str]:
    """Yield how each measurement was and how it is."""
    for name in names:
        if name == "class_balance":
            yield _describe_class_change(np.asarray(new.labels), np.asarray(reference.labels))
        elif name == "embeddings":
            yield ""
        else:
            yield (
                f"median {np.median(new.scalars[name]):.4g}, was"
                f" {np.median(reference.scalars[name]):.4g}"
            )


def _describe_class_change(labels: Array, others: Array) -> str:
    """Return the class whose fraction changed most."""
    classes = np.unique(np.concatenate([labels, others]))
    fractions, were = (
        np.bincount(np.searchsorted(classes, side), minlength=len(classes)) / len(side)
        for side in (labels, others)
    )
    most = int(np.argmax(np.abs(fractions - were)))
    return (
        f"class {classes[most]}: {100 * fractions[most]:.1f} % of the images, were"
        f" {100 * were[most]:.1f} %"
    )
