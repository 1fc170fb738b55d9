"""What is known when a scheduled run comes.

The data as they are now beside the champion and the data that it was made of.

    changes       from the two indices: which contents came, went or have another label; no image is
    opened
    drift         new contents beside images that the champion was not trained on, both as the
    champion sees them
    new_score     the champion's answers on images that were labeled since and that it was not
    trained on, of classes that it knows
    test_score    the champion's answers on its own test images, as they were counted when it was
    released
    age           since the champion was released

Images are opened where a trigger asks for it, and some thousand of them at most, in one pass over
the shards. A champion of the same data is compared without opening it.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pyarrow import parquet

from pipeline.artifacts import DatasetArtifact
from pipeline.config.retrain import RetrainConfig
from pipeline.config.tracking import TrackingConfig
from pipeline.errors import CheckpointError, DatasetError
from pipeline.release.frozen_test import find_dataset, read_index
from pipeline.retrain.drift import MIN_IMAGES, Look, compare, pick
from pipeline.retrain.triggers import Facts, Index, Score, changed_images
from pipeline.tracking.registry import Version

if TYPE_CHECKING:
    from pipeline.arrays import Floats, Integers
    from pipeline.release.classify import Classifier

Progress = Callable[[int, int, str, str], None]
MAX_SCORED = 5000  # an error of 5 % is known to 0.6 points then, 19 times in 20
_WINDOW = 256  # images that are decoded and answered together: 40 MB at 227 pixels
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_DAY_SECONDS = 86_400


def measure(
    dataset: DatasetArtifact,
    champion: Version | None,
    config: RetrainConfig,
    tracking: TrackingConfig,
    workdir: Path,
    progress: Progress,
) -> tuple[Facts, tuple[str, ...]]:
    """Return what the triggers want to know, and notes for people.

    What could not be measured, and why.

    Args:
        dataset: the data as they are now.
        champion: the version that answers.
        config: which triggers are asked.
        tracking: the store that holds the champion's files.
        workdir: the work directory, where the champion's dataset is looked for.
        progress: called with images done, images in all, their unit and what is going on.

    Raises:
        CheckpointError: the champion's files are not those that were released.
        DatasetError: a dataset's shards cannot be read.
    """
    if champion is None:
        return Facts(has_champion=False), ("There is no champion yet: nothing was compared.",)
    known = Facts(
        has_champion=True, champion_age_days=(time.time() - champion.created) / _DAY_SECONDS
    )
    digest = champion.tags.get("dataset_digest", "")
    earlier = dataset if digest == dataset.digest else find_dataset(digest, workdir)
    if earlier is None:
        return replace(known, test_score=released_score(champion)), (
            _missing(champion, digest, workdir),
        )
    names = tuple(dict.fromkeys((*earlier.class_names, *dataset.class_names)))
    old, new = (read_images(side, names) for side in (earlier, dataset))
    known = replace(
        known,
        changes=changed_images(
            Index(old.sha256, old.labels), Index(new.sha256, new.labels), len(names)
        ),
    )
    if digest == dataset.digest:
        return known, (
            "The data are those that the champion was released with: nothing else was measured.",
        )
    known, (plan, notes) = (
        replace(known, test_score=released_score(champion)),
        plan_for(old, new, config),
    )
    if not len(plan.opened):
        return known, notes
    from pipeline.release.classify import load_classifier
    from pipeline.release.package import open_version

    classifier = load_classifier(open_version(champion, tracking, workdir))
    return _looked_at(known, plan, old, new, classifier, config.significance_level, progress), notes


def _looked_at(
    known: Facts,
    plan: Plan,
    old: Images,
    new: Images,
    classifier: Classifier,
    level: float,
    progress: Progress,
) -> Facts:
    """Open the chosen images, and add what is found to what is known."""
    seen = _see(classifier, new, plan.opened, "images of the new data", progress)
    if len(plan.scored):
        known = replace(known, new_score=_score(classifier, new, seen, plan.scored))
    if not len(plan.new):
        return known
    reference = _see(classifier, old, plan.reference, "images of the champion's data", progress)
    looks = _look(new, seen, plan.new), _look(old, reference, plan.reference)
    return replace(known, drift=compare(*_varying(*looks), level=level, seed=plan.seed))


def released_score(champion: Version) -> Score | None:
    """Return how many of its test images a version got wrong when it was released.

    None where its tags do not say.
    """
    with contextlib.suppress(KeyError, ValueError):
        images = int(champion.tags["images"])
        return Score(round(float(champion.tags["top1_error"]) * images), images)
    return None


def _missing(champion: Version, digest: str, workdir: Path) -> str:
    return (
        f"The dataset of version {champion.number} of {champion.name}"
        f" ({digest[:12] or 'no digest'}) is not in {workdir}: what changed, drift and the"
        " champion's error on new images are not known."
    )


# -- which images ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Images:
    """The images of a dataset, its splits one after the other.

    Attributes:
        dataset: whose.
        sizes: images in each split.
        sha256: of the files, S32 [images].
        labels: int64 [images], places in `names`.
        names: of the classes of both datasets, the champion's first.
    """

    dataset: DatasetArtifact
    sizes: dict[str, int]
    sha256: NDArray[np.bytes_]
    labels: Integers
    names: tuple[str, ...]

    def places(self, rows: Integers) -> Iterator[tuple[str, Integers]]:
        """Yield each split with the places in it, in stored order, of some images, int64 [rows] ascending."""
        start = 0
        for split, size in self.sizes.items():
            yield split, rows[(rows >= start) & (rows < start + size)] - start
            start += size

    def trained(self) -> NDArray[np.bytes_]:
        """Return the contents of the training split."""
        split = np.repeat(np.arange(len(self.sizes)), list(self.sizes.values()))
        return self.sha256[split == list(self.sizes).index("train")]


def read_images(dataset: DatasetArtifact, names: tuple[str, ...]) -> Images:
    """Read a dataset's index; labels become places among `names`."""
    contents, labels = zip(*(read_index(dataset, split) for split in dataset.reads), strict=True)
    numbers = _numbers(dataset.class_names, names)
    sizes = {split: len(own) for split, own in zip(dataset.reads, labels, strict=True)}
    return Images(dataset, sizes, np.concatenate(contents), numbers[np.concatenate(labels)], names)


def _numbers(own: tuple[str, ...], names: tuple[str, ...]) -> Integers:
    """Return the place of each of some class names among `names`, int64.

    -1 for one that is not there.
    """
    places = {name: place for place, name in enumerate(names)}
    return np.asarray([places.get(name, -1) for name in own], np.int64)


def _new(old: Images, new: Images) -> Integers:
    """Return rows of new contents, each once, ascending."""
    rows = _first_of_each(new.sha256)
    return rows[~np.isin(new.sha256[rows], old.sha256)]


def _held_out(old: Images) -> Integers:
    """Return rows of contents that nothing was trained on, each once, ascending."""
    rows = _first_of_each(old.sha256)
    return rows[~np.isin(old.sha256[rows], old.trained())]


def _labelled_since(old: Images, new: Images) -> Integers:
    """Return rows of contents that nothing was trained on and that had not this label before, ascending; each content once a label."""
    _, content = np.unique(np.concatenate([old.sha256, new.sha256]), return_inverse=True)
    pairs = content * len(new.names) + np.concatenate([old.labels, new.labels])
    before, now = pairs[: len(old.labels)], pairs[len(old.labels) :]
    rows = _first_of_each(now)
    return rows[~np.isin(now[rows], before) & ~np.isin(new.sha256[rows], old.trained())]


def _first_of_each(values: NDArray[Any]) -> Integers:
    """Return where each value is first, int64, ascending."""
    return np.sort(np.unique(values, return_index=True)[1])


@dataclass(frozen=True)
class Plan:
    """Images that are to be opened, rows int64 ascending.

    `new` and `reference` for drift, `scored` for the champion's error.
    """

    new: Integers
    reference: Integers
    scored: Integers
    seed: int

    @property
    def opened(self) -> Integers:
        """Those of the new data, each once."""
        return np.union1d(self.new, self.scored)


def plan_for(old: Images, new: Images, config: RetrainConfig) -> tuple[Plan, tuple[str, ...]]:
    """Choose the images that the triggers need, and say what a person should know of it.

    Equal data give the same choice.
    """
    nothing, seed = np.zeros(0, np.int64), int(new.dataset.digest[:8], 16)
    plan, notes = Plan(nothing, nothing, nothing, seed), list[str]()
    if "drift" in config.triggers:
        mine, theirs = _new(old, new), _held_out(old)
        if chosen := pick(len(mine), len(theirs), seed):
            plan = replace(plan, new=mine[chosen[0]], reference=theirs[chosen[1]])
        else:
            notes.append(
                f"Drift was not measured: {len(mine):,} images are new, and {len(theirs):,} can"
                f" be compared with; it takes {MIN_IMAGES} and {2 * MIN_IMAGES}."
            )
    if "degraded_champion" in config.triggers:
        rows, said = _to_score(old, new, seed)
        plan, notes = replace(plan, scored=rows), [*notes, *said]
    return plan, tuple(notes)


def _to_score(old: Images, new: Images, seed: int) -> tuple[Integers, list[str]]:
    """Return rows of newly labeled images of classes that the champion knows, 5,000 at most, and what a person should know of it."""
    rows, notes = _labelled_since(old, new), list[str]()
    known = rows[new.labels[rows] < len(set(old.dataset.class_names))]
    if len(known) < len(rows):
        notes.append(
            f"The champion does not know the classes of {len(rows) - len(known):,} newly labeled"
            " images: it was not asked."
        )
    if not len(known):
        notes.append(
            "The champion was not scored: no image of its classes was labeled since that it was"
            " not trained on."
        )
    if len(known) > MAX_SCORED:
        notes.append(
            f"The champion was scored on {MAX_SCORED:,} of {len(known):,} newly labeled images,"
            " chosen at random."
        )
        known = np.sort(np.random.default_rng(seed).choice(known, MAX_SCORED, replace=False))
    return known, notes


# -- how they look ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    """What was found of some images.

    Attributes:
        rows: int64 [images], which.
        scalars: name -> float64 [images].
        embeddings: float32 [images, units], what feeds the champion's last layer.
        answers: int64 [images], its first guesses in its own class numbers.
    """

    rows: Integers
    scalars: dict[str, Floats]
    embeddings: Floats
    answers: Integers


def _score(classifier: Classifier, images: Images, seen: _Seen, rows: Integers) -> Score:
    """Count the wrong answers to some of the images that were seen."""
    answers = _numbers(classifier.release.class_names, images.names)[
        seen.answers[np.isin(seen.rows, rows)]
    ]
    return Score(int(np.count_nonzero(answers != images.labels[rows])), len(rows))


def _look(images: Images, seen: _Seen, rows: Integers) -> Look:
    """Return how some of the images that were seen look."""
    among = np.isin(seen.rows, rows)
    scalars = {name: values[among] for name, values in seen.scalars.items()}
    return Look(scalars, np.asarray(images.names)[images.labels[rows]], seen.embeddings[among])


def _varying(new: Look, reference: Look) -> tuple[Look, Look]:
    """Leave out what is the same for all images of both sides.

    It cannot differ, and each comparison makes all others stricter.
    """
    names = [
        name
        for name in new.scalars
        if len(np.unique(np.concatenate([new.scalars[name], reference.scalars[name]]))) > 1
    ]
    new, reference = (
        replace(side, scalars={name: side.scalars[name] for name in names})
        for side in (new, reference)
    )
    return new, reference


def _see(
    classifier: Classifier, images: Images, rows: Integers, detail: str, progress: Progress
) -> _Seen:
    """Look at some images, rows int64 ascending, as the champion sees them.

    The central crop, and its answers.
    """
    from pipeline.evaluate.neighbors import compute_features

    lights: list[tuple[float, ...]] = []

    def windows() -> Iterator[tuple[Any, None]]:
        encoded = _encoded(images, rows)
        with ThreadPoolExecutor() as threads:
            while window := list(itertools.islice(encoded, _WINDOW)):
                pixels = list(
                    threads.map(
                        lambda image: classifier.prepare_pixels(image[0], orientation=image[1]),
                        window,
                    )
                )
                lights.extend(threads.map(light_of, pixels))
                progress(len(lights), len(rows), "images", detail)
                yield np.stack(pixels), None

    model, units = _with_features(classifier.model)
    found = compute_features(model, windows(), model.layers[-1].name)
    if len(found) != len(rows):
        raise _damaged(images.dataset, f"{len(found)} images instead of {len(rows)}")
    if not np.isfinite(found).all():
        raise CheckpointError(
            f"The champion {classifier.release.title} answers with what is no number",
            expected="finite logits",
            received=f"{found[~np.isfinite(found)][0]}",
            hint="Go back with `alexnet rollback`",
        )
    scalars = dict(
        zip(
            ("brightness", "contrast", "saturation", "sharpness"), np.asarray(lights).T, strict=True
        )
    )
    return _Seen(
        rows, scalars | _sizes(images, rows), found[:, :units], found[:, units:].argmax(axis=1)
    )


def _with_features(model: Any) -> tuple[Any, int]:
    """Return a model that gives what feeds the last layer and behind it the logits, float [images, units + classes], and the units."""
    import keras

    from pipeline.evaluate.chain import find_feature_layer

    units = keras.layers.Flatten(name="features_in_a_row")(
        model.get_layer(find_feature_layer(model)).output
    )
    both = keras.layers.Concatenate(name="features_and_logits")([units, model.output])
    return keras.Model(model.input, both), units.shape[-1]


def light_of(pixels: Any) -> tuple[float, float, float, float]:
    """Return brightness, contrast, saturation and sharpness of uint8 [side, side, 3] in [0, 255].

    Mean and standard deviation of the luma, in [0, 255]; mean of HSV's saturation, in [0, 1];
    variance of the luma's Laplacian, from 0 on.
    """
    luma = pixels @ _LUMA
    largest, least = pixels.max(axis=2), pixels.min(axis=2)
    saturation = (largest - least) / np.maximum(largest, 1)
    middle = luma[1:-1, 1:-1]
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * middle
    return float(luma.mean()), float(luma.std()), float(saturation.mean()), float(laplacian.var())


def _sizes(images: Images, rows: Integers) -> dict[str, Floats]:
    """Return the files' shorter side, in pixels, and width / height, float64 [rows]."""
    found = []
    for split, places in images.places(rows):
        table = parquet.read_table(
            images.dataset.directory / "index" / f"{split}.parquet", columns=["height", "width"]
        )
        found.append(
            np.stack([table[side].to_numpy()[places] for side in ("height", "width")]).astype(
                np.float64
            )
        )
    height, width = np.concatenate(found, axis=1)
    return {"short_side": np.minimum(height, width), "aspect_ratio": width / height}


def _encoded(images: Images, rows: Integers) -> Iterator[tuple[bytes, int]]:
    """Yield the file and the EXIF orientation, in 1..8, of some images, rows int64 ascending.

    Others are not even parsed.
    """
    import tensorflow as tf

    for split, places in images.places(rows):
        if len(places):
            try:
                for example in _examples(images.dataset, split, places):
                    yield example["image"].numpy(), int(example["orientation"])
            except (OSError, ValueError, tf.errors.OpError) as error:
                raise _damaged(images.dataset, str(error)) from error


def _examples(dataset: DatasetArtifact, split: str, places: Integers) -> Any:
    """Return the examples at some places of a split, int64 ascending, as a tf.data.Dataset."""
    import tensorflow as tf

    from pipeline.data.shards import make_deterministic_options, open_records

    records, parse = open_records(
        dataset.shards, dataset.reads[split], dataset.image_key, dataset.label_key
    )
    wanted = np.zeros(places[-1] + 1, np.bool_)
    wanted[places] = True
    is_wanted = tf.constant(wanted)
    picked = records(None).take(len(wanted)).enumerate().filter(lambda place, _: is_wanted[place])
    return picked.map(lambda _, record: parse(record)).with_options(make_deterministic_options())


def _damaged(dataset: DatasetArtifact, reason: str) -> DatasetError:
    return DatasetError(
        f"The prepared dataset in {dataset.shards} is damaged ({' '.join(reason.split()):.200})",
        expected="the files that ingest wrote",
        hint=f"Remove {dataset.directory} and type the same command: data that are still there"
        " are prepared again, others are not compared with",
    )
