"""What is measured when a scheduled run comes.

Real folders, real ingests, a champion that the program trained and released.
"""

import colorsys
import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from scipy import ndimage
from sklearn.datasets import load_digits

from pipeline.artifacts import DatasetArtifact
from pipeline.config.data import DataConfig
from pipeline.config.retrain import RetrainConfig
from pipeline.config.tracking import TrackingConfig
from pipeline.engine.stage import Context, UnrecordedRun
from pipeline.errors import CheckpointError, DatasetError
from pipeline.release.frozen_test import find_dataset
from pipeline.retrain import image_measurements, image_selection, measurement
from pipeline.retrain.drift import ImageMeasurements, measure_drift
from pipeline.retrain.image_measurements import measure_light
from pipeline.retrain.image_selection import read_images, select_images
from pipeline.retrain.measurement import measure_signals, read_test_errors
from pipeline.retrain.signals import DatasetChanges, ErrorCount, Signals
from pipeline.retrain.triggers import decide_retraining
from pipeline.tracking.registry import Registry, Version

SPLITS = ("train", "validation", "test")
DIGEST, TODAY = "1" * 64, "2" * 64
WIDTHS = (40, 50, 60)  # of image files, in pixels; all are 30 high


def content(number):
    return hashlib.sha256(number.to_bytes(4, "big")).digest()


def indexed(directory, names, digest=DIGEST, **splits):
    """A dataset of which there is the record and the index: for each split, (content, class name)
    pairs."""
    (directory / "index").mkdir(parents=True)
    (directory / "report").mkdir()
    for split in SPLITS:
        images = splits.get(split, [])
        columns = {
            "key": pa.array([f"{split}-{place}" for place in range(len(images))], pa.string()),
            "label": pa.array([names.index(name) for _, name in images], pa.int32()),
            "sha256": pa.array([content(number) for number, _ in images], pa.binary(32)),
            "height": pa.array([30] * len(images), pa.int32()),
            "width": pa.array([WIDTHS[number % 3] for number, _ in images], pa.int32()),
        }
        parquet.write_table(pa.table(columns), directory / "index" / f"{split}.parquet")
    for name in ("dataset_info.json", "sample.npz", "report/dataset_card.html"):
        (directory / name).write_bytes(b"")
    dataset = DatasetArtifact(
        directory=directory,
        name="tiny",
        digest=digest,
        class_names=names,
        class_counts={
            split: tuple(sum(own == name for _, own in splits.get(split, [])) for name in names)
            for split in SPLITS
        },
        reads={split: split for split in SPLITS},
        short_side=32,
        channel_mean=(0, 0, 0),
        channel_covariance=((1, 0, 0), (0, 1, 0), (0, 0, 1)),
        builder_directory=Path(),
    )
    (directory / "artifact.json").write_text(dataset.model_dump_json(), encoding="utf-8")
    return dataset


def released(digest=DIGEST, days=2.0, **tags):
    """A version that nobody registered: what is asked of it must be in its record."""
    tags = {"dataset_digest": digest, "top1_error": "0.045455", "images": "22"} | tags
    return Version("alexnet", "3", "", "", "", time.time() - days * 86_400, tags=tags)


def asked(dataset, champion, workdir, *triggers, steps=None, **settings):
    def progress(*step):
        if steps is not None:
            steps.append(step)

    return measure_signals(
        dataset,
        champion,
        RetrainConfig(triggers=triggers, **settings),
        TrackingConfig(),
        workdir,
        progress,
    )


# -- without opening an image ----------------------------------------------------------------------


def test_without_a_champion_there_is_nothing_to_compare(tmp_path):
    found, notes = asked(indexed(tmp_path / "d", ("a", "b")), None, tmp_path, "drift", "age")
    assert found == Signals(has_champion=False)
    assert notes == ("There is no champion yet: nothing was compared.",)


def test_the_same_data_are_not_compared_and_nothing_heavy_is_imported(tmp_path):
    indexed(
        tmp_path / "d", ("a", "b"), train=[(0, "a"), (1, "a"), (2, "b")], test=[(3, "b"), (3, "b")]
    )
    code = """
import sys, json
from pathlib import Path
from pipeline.artifacts import DatasetArtifact
from pipeline.config.retrain import RetrainConfig
from pipeline.config.tracking import TrackingConfig
from pipeline.tracking.registry import Version
from pipeline.retrain.measurement import measure_signals
dataset = DatasetArtifact.read(Path("d"))
tags = {"dataset_digest": dataset.digest, "top1_error": "0.5", "images": "2"}
champion = Version("alexnet", "1", "", "", "", 0.0, tags=tags)
config = RetrainConfig(triggers=("new_data", "drift", "degraded_champion", "age"))
signals, notes = measure_signals(dataset, champion, config, TrackingConfig(), Path("."), print)
changes = signals.changes
heavy = [name for name in ("tensorflow", "keras", "mlflow", "sklearn") if name in sys.modules]
found = [changes.before, changes.images, signals.drift, signals.new_errors, signals.test_errors]
print(json.dumps([*found, signals.champion_age_days > 20000, heavy]))
print(*notes)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(measurement.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    line, note = done.stdout.splitlines()
    assert json.loads(line) == [[2, 2], 0, None, None, None, True, []]
    assert (
        note == "The data are those that the champion was released with: nothing else was measured."
    )


def test_the_age_is_counted_from_the_release(tmp_path):
    found, _ = asked(
        indexed(tmp_path / "d", ("a", "b"), test=[(1, "a")]), released(days=2.5), tmp_path, "age"
    )
    assert found.champion_age_days == pytest.approx(2.5, abs=0.01)


def test_a_champion_whose_data_are_gone_keeps_its_age_and_its_test(tmp_path):
    dataset = indexed(tmp_path / "stages" / "ingest-new", ("a", "b"), TODAY, test=[(1, "a")])
    for champion in (released(), released(digest="")):
        found, (note,) = asked(
            dataset, champion, tmp_path, "drift", "degraded_champion", "new_data"
        )
        assert (found.changes, found.drift, found.new_errors) == (None, None, None)
        assert found.test_errors == ErrorCount(1, 22)  # 0.045455 x 22 = 1.00001
        assert found.champion_age_days == pytest.approx(2, abs=0.01)
        assert note.startswith("The dataset of version 3 of alexnet (")
        assert f"is not in {tmp_path}: changes, drift and the champion's error" in note


@pytest.mark.parametrize("tags", [{"images": "many"}, {"top1_error": ""}])
def test_tags_that_say_nothing_are_no_score(tags):
    assert read_test_errors(released(**tags)) is None


def test_released_scores_are_whole_images():
    for images in (7, 108, 10_000, 50_000):
        for wrong in {0, 1, images // 3, images - 1, images}:
            tags = {"top1_error": f"{wrong / images:.6f}", "images": str(images)}
            assert read_test_errors(released(**tags)) == ErrorCount(wrong, images)


def test_the_newest_whole_dataset_of_a_digest_is_found(tmp_path):
    folders = [tmp_path / "stages" / f"ingest-{name}" for name in ("a", "b", "c", "d")]
    for number, (folder, digest) in enumerate(
        zip(folders, (DIGEST, DIGEST, TODAY, DIGEST), strict=True)
    ):
        indexed(folder, ("a", "b"), digest)
        os.utime(folder, (number, number))
    (folders[3] / "index" / "test.parquet").unlink()
    assert find_dataset(DIGEST, tmp_path).directory == folders[1]
    assert find_dataset("3" * 64, tmp_path) is None
    assert find_dataset("", tmp_path) is None


OLD = {
    "train": [(0, "cat"), (1, "cat"), (2, "dog"), (3, "dog"), (4, "owl")],
    "validation": [(5, "cat"), (6, "owl")],
    "test": [(7, "cat"), (8, "dog"), (9, "owl")],
}
CLASSES = ("cat", "dog", "owl")


def changed(tmp_path, names, **splits):
    indexed(tmp_path / "stages" / "ingest-old", CLASSES, **OLD)
    dataset = indexed(tmp_path / "new", names, TODAY, **splits)
    found, notes = asked(dataset, released(), tmp_path, "new_data")
    assert notes == ()
    return found.changes


def test_changes_of_equal_classes(tmp_path):
    """10 and 11 came, 4 went, 3 became an owl, 6 a cat; that 8 is in the training now is no change
    of the data."""
    new = OLD | {
        "train": [
            (0, "cat"),
            (1, "cat"),
            (2, "dog"),
            (3, "owl"),
            (8, "dog"),
            (10, "cat"),
            (11, "owl"),
        ]
    }
    new |= {"validation": [(5, "cat"), (6, "cat")], "test": [(7, "cat"), (9, "owl")]}
    assert changed(tmp_path, CLASSES, **new) == DatasetChanges(
        before=(4, 3, 3), new=(1, 0, 1), removed=(0, 0, 1), relabeled=(1, 0, 1)
    )


def test_a_new_class_before_all_others_moves_no_number(tmp_path):
    new = OLD | {"train": [*OLD["train"], (20, "ant"), (21, "ant")]}
    found = changed(tmp_path, ("ant", *CLASSES), **new)
    assert found == DatasetChanges(
        before=(4, 3, 3, 0), new=(0, 0, 0, 2), removed=(0,) * 4, relabeled=(0,) * 4
    )
    assert found.of_unknown_classes == 2


def test_a_class_that_is_gone(tmp_path):
    new = {split: [pair for pair in pairs if pair[1] != "cat"] for split, pairs in OLD.items()}
    assert changed(tmp_path, ("dog", "owl"), **new) == DatasetChanges(
        (4, 3, 3), (0, 0, 0), (4, 0, 0), (0, 0, 0)
    )


def test_a_renamed_class_is_the_same_images_under_another_label(tmp_path):
    new = {
        split: [(number, name.replace("cat", "tiger")) for number, name in pairs]
        for split, pairs in OLD.items()
    }
    assert changed(tmp_path, ("dog", "owl", "tiger"), **new) == DatasetChanges(
        (4, 3, 3, 0), (0,) * 4, (0,) * 4, (0, 0, 0, 4)
    )


def chosen(tmp_path, names, triggers=("drift", "degraded_champion"), old=OLD, **splits):
    earlier, dataset = (
        indexed(tmp_path / "old", CLASSES, **old),
        indexed(tmp_path / "new", names, TODAY, **splits),
    )
    shared = tuple(dict.fromkeys((*CLASSES, *names)))
    sides = read_images(earlier, shared), read_images(dataset, shared)
    return (*sides, *select_images(*sides, RetrainConfig(triggers=triggers)))


def test_scored_are_images_with_a_new_label_that_nothing_was_trained_on(tmp_path):
    """0 was trained on; 7 became a dog; 8 moved, 5 stayed; 10 and 11 came, 10 twice; nobody knows
    an ant."""
    new = {
        "train": [(0, "owl"), (8, "dog"), (10, "cat"), (20, "ant")],
        "validation": [(7, "dog"), (5, "cat")],
        "test": [(10, "cat")],
    }
    new["test"] += [(11, "owl"), (7, "ant")]
    _, side, plan, notes = chosen(tmp_path, ("ant", *CLASSES), **new)
    assert side.sha256[plan.scored].tolist() == [content(number) for number in (10, 7, 11)]
    assert [side.names[label] for label in side.labels[plan.scored]] == ["cat", "dog", "owl"]
    assert [(split, indices.tolist()) for split, indices in side.iterate_splits(plan.scored)] == [
        ("train", [2]),
        ("validation", [0]),
        ("test", [1]),
    ]
    assert notes == (
        (
            "Drift was not measured: 3 images are new, and 5 can be compared with; it takes 20"
            " and 40."
        ),
        "The champion does not know the classes of 2 newly labeled images: they are not scored.",
    )


def test_nothing_to_score_is_said(tmp_path):
    *_, plan, notes = chosen(tmp_path, CLASSES, ("degraded_champion",), **OLD)
    assert not len(plan.opened)
    assert notes == (
        (
            "The champion was not scored: no image of its classes was labeled since that it was"
            " not trained on."
        ),
    )


def test_drift_compares_new_contents_with_held_out_ones_each_once(tmp_path):
    """The training split's 0 to 99 are never compared with, nor 99's copy in the test."""
    old = {
        "train": [(number, "cat") for number in range(100)],
        "validation": [(number, "dog") for number in range(100, 150)],
    }
    old["test"] = [(number, "owl") for number in (99, *range(140, 160), *range(140, 160))]
    come = [(number, "cat") for number in range(200, 225)]
    new = {
        "train": [*old["train"], *come[:10]],
        "validation": come[5:15],
        "test": [*old["test"], *come[15:]],
    }
    before, now, plan, notes = chosen(tmp_path, CLASSES, ("drift",), old, **new)
    assert sorted(now.sha256[plan.new].tolist()) == sorted(
        content(number) for number in range(200, 225)
    )
    assert sorted(before.sha256[plan.reference].tolist()) == sorted(
        content(number) for number in range(100, 160)
    )
    assert (notes, len(plan.scored)) == ((), 0)
    assert np.array_equal(plan.opened, plan.new)


def test_so_many_images_are_opened_at_most_and_the_data_choose_them(tmp_path):
    old = OLD | {"test": [*OLD["test"], *((number, "cat") for number in range(10, 3010))]}
    new = OLD | {"train": [(number, "dog") for number in range(10_000, 17_000)]}
    _, side, plan, notes = chosen(tmp_path / "a", CLASSES, old=old, **new)
    assert (len(plan.new), len(plan.reference), len(plan.scored)) == (1000, 2000, 5000)
    assert notes == (
        "The champion was scored on 5,000 of 7,000 newly labeled images, chosen at random.",
    )
    for rows in (plan.new, plan.reference, plan.scored):
        assert np.all(np.diff(rows) > 0)
    assert np.all(
        np.bincount(plan.scored // 1000, minlength=7)[:7] > 600
    )  # 714 of each thousand, spread over all
    *_, again, _ = chosen(tmp_path / "b", CLASSES, old=old, **new)
    assert np.array_equal(plan.scored, again.scored)
    assert np.array_equal(plan.new, again.new)
    assert [len(indices) for _, indices in side.iterate_splits(plan.new)] == [1000, 0, 0]


def test_the_choice_is_that_of_sets(tmp_path):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        sides = [
            {
                split: [
                    (int(number), CLASSES[name])
                    for number, name in rng.integers(0, (60, 3), (40, 2))
                ]
                for split in SPLITS
            }
            for _ in range(2)
        ]
        before, now = ([pair for split in SPLITS for pair in side[split]] for side in sides)
        trained = {number for number, _ in sides[0]["train"]}
        _, side, plan, _ = chosen(tmp_path / str(seed), CLASSES, old=sides[0], **sides[1])
        expected = {
            (content(number), name)
            for number, name in now
            if number not in trained and (number, name) not in before
        }
        pairs = [(side.sha256[row], side.names[side.labels[row]]) for row in plan.scored]
        assert len(pairs) == len(set(pairs)) == len(expected)
        assert {(sha256.ljust(32, b"\0"), name) for sha256, name in pairs} == expected


# -- light -----------------------------------------------------------------------------------------


def test_light_of_known_images():
    black, red, halves = np.zeros((3, 8, 8, 3), np.uint8)
    red[..., 0] = 200
    halves[:, 4:] = 100
    assert measure_light(black) == (0, 0, 0, 0)
    assert measure_light(red) == pytest.approx((0.299 * 200, 0, 1, 0))
    # On six inner columns the Laplacian is 0, 0, 100, -100, 0, 0.
    assert measure_light(halves) == pytest.approx((50, 50, 0, 2 * 100**2 / 6))


def test_light_is_that_of_other_programs():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    luma = np.array(pixels, float) @ [0.299, 0.587, 0.114]
    saturation = np.mean(
        [colorsys.rgb_to_hsv(*(pixel / 255))[1] for pixel in pixels.reshape(-1, 3)]
    )
    laplacian = ndimage.laplace(luma)[1:-1, 1:-1]
    assert measure_light(pixels) == pytest.approx(
        (luma.mean(), luma.std(), saturation, laplacian.var())
    )


# -- with a champion -------------------------------------------------------------------------------

PER_CLASS, NEW_PER_CLASS = 90, 80
TRAINING = (
    "--set",
    "data.short_side=32",
    "--set",
    "model.image_size=28",
    "--network",
    "small",
    "--set",
    "model.alexnet.width_multiplier=0.25",
)
TRAINING += (
    "--set",
    "train.epochs=20",
    "--set",
    "train.learning_rate=0.02",
    "--set",
    "train.flip=false",
    "--set",
    "evaluate.report=short",
)


def scans():
    """Every scan of each digit, uint8 [32, 32] in [0, 255], in an order that the writers do not
    decide_retraining."""
    every = load_digits()
    order = np.random.default_rng(0).permutation(len(every.images))
    found = {digit: [] for digit in range(10)}
    for place in order:
        image = Image.fromarray((every.images[place] * 15.9).astype(np.uint8)).resize(
            (32, 32), Image.Resampling.BILINEAR
        )
        found[int(every.target[place])].append(np.asarray(image))
    return found


def as_they_are(pixels, _rng):
    return pixels


def bright(pixels, _rng):
    return (80 + pixels * 0.6).astype(np.uint8)


def inverted(pixels, _rng):
    return 255 - pixels


def noisy(pixels, rng):
    return np.clip(pixels + rng.normal(0, 25, pixels.shape), 0, 255).astype(np.uint8)


def large(pixels, _rng):
    return np.asarray(Image.fromarray(pixels).resize((64, 64), Image.Resampling.BILINEAR))


@dataclass
class House:
    """A work directory with a champion, folders of images beside it, and an ingest of what is in
    them now."""

    root: Path
    scans: dict
    champion: Version
    used: int = PER_CLASS

    @property
    def workdir(self):
        return self.root / "w"

    def folder(
        self, name, *, keep=lambda digit, place: True, rename=lambda digit, place: f"digit {digit}"
    ):
        """A copy of the champion's images, some left out or under other names."""
        folder = self.root / name
        for digit, own in self.scans.items():
            for place in range(PER_CLASS):
                if keep(digit, place):
                    save(own[place], folder / rename(digit, place) / f"{digit}-{place}.png")
        return folder

    def add(
        self,
        folder,
        places,
        change=as_they_are,
        digits=range(10),
        rename=lambda digit: f"digit {digit}",
    ):
        rng = np.random.default_rng(0)
        for digit in digits:
            for place in places:
                save(
                    change(self.scans[digit][place], rng),
                    folder / rename(digit) / f"new {digit}-{place}.png",
                )
        return folder

    def ingest(self, folder, **settings):
        return ingested(folder, self.root / f"{folder.name}-ingested", **settings)

    def ask(self, dataset, *triggers, **settings):
        return asked(
            dataset,
            self.champion,
            self.workdir,
            *(triggers or ("new_data", "drift", "degraded_champion", "age")),
            **settings,
        )


def save(pixels, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def ingested(folder, directory, **settings):
    from pipeline.data.stage import ingest

    (directory / "stage").mkdir(parents=True)
    observer = SimpleNamespace(progressed=lambda *_: None, notified=lambda _: None)
    config = DataConfig(dataset=str(folder), short_side=32, **settings)
    return ingest.function(
        config, Context(directory / "stage", UnrecordedRun(), observer, directory)
    )


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    house = House(tmp_path_factory.mktemp("facts"), scans(), None)
    house.folder("images")
    command = [
        sys.executable,
        "-m",
        "pipeline",
        "run",
        "--dataset",
        "images",
        "--workdir",
        "w",
        *TRAINING,
        "promote",
    ]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("ALEXNET_")
    }
    environment["PYTHONPATH"] = str(Path(measurement.__file__).parents[2])
    done = subprocess.run(
        command,
        check=False,
        cwd=house.root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    registry = Registry("alexnet", TrackingConfig(), house.workdir)
    house.champion = registry.read_champion()
    return house


def independent(house, folder, rows):
    """Return whether the champion is wrong about each (key, right class name), in order.

    It predicts the image files themselves, by name.
    """
    from pipeline.release.classify import load_classifier
    from pipeline.release.package import open_version

    classifier = load_classifier(open_version(house.champion, TrackingConfig(), house.workdir))
    pixels = np.stack([classifier.prepare_pixels((folder / key).read_bytes()) for key, _ in rows])
    predictions = [
        classifier.release.class_names[number]
        for number in classifier.predict_logits(pixels).argmax(axis=1)
    ]
    return [answer != name for answer, (_, name) in zip(predictions, rows, strict=True)]


def listed(dataset, *splits):
    """Contents with key and class name, as the index says."""
    found = []
    for split in splits or SPLITS:
        table = parquet.read_table(dataset.directory / "index" / f"{split}.parquet").to_pylist()
        found += [(row["sha256"], row["key"], dataset.class_names[row["label"]]) for row in table]
    return found


def before(house):
    return find_dataset(house.champion.tags["dataset_digest"], house.workdir)


@pytest.fixture(scope="module")
def calm(house):
    """Twenty more of each digit; some are set aside as copies."""
    folder = house.add(house.folder("calm"), range(PER_CLASS, PER_CLASS + 20))
    return folder, house.ingest(folder)


@pytest.mark.slow
def test_the_same_images_are_no_change(house):
    dataset = house.ingest(house.folder("same"))
    steps = []
    found, notes = house.ask(dataset, steps=steps)
    assert dataset.digest == house.champion.tags["dataset_digest"]
    assert (found.changes.images, found.drift, found.new_errors, found.test_errors) == (
        0,
        None,
        None,
        None,
    )
    assert sum(found.changes.before) == sum(sum(counts) for counts in dataset.class_counts.values())
    assert 0 <= found.champion_age_days < 1
    assert (len(notes), steps) == (1, [])


@pytest.mark.slow
def test_more_images_of_the_same_kind_are_new_and_no_drift(house, calm):
    folder, dataset = calm
    steps = []
    found, notes = house.ask(dataset, steps=steps)
    old, new = (
        {row[0]: row for row in listed(before(house))},
        {row[0]: row for row in listed(dataset)},
    )
    come = [new[sha256] for sha256 in new.keys() - old.keys()]
    assert 180 < len(come) <= 200
    names = before(house).class_names
    assert found.changes.new == tuple(sum(name == own for *_, own in come) for name in names)
    assert (sum(found.changes.relabeled), found.changes.of_unknown_classes) == (0, 0)
    assert found.new_errors == ErrorCount(
        sum(independent(house, folder, [row[1:] for row in come])), len(come)
    )
    held_out = {row[0] for row in listed(before(house), "validation", "test")} - {
        row[0] for row in listed(before(house), "train")
    }
    assert found.drift.images == min(len(come), len(held_out) // 2)
    assert found.drift.images + found.drift.reference == len(held_out)
    assert not found.drift.drifted
    # Size, shape and color are the same for all, so they are no comparisons.
    assert [test.name for test in found.drift.tests] == [
        "class_balance",
        "brightness",
        "contrast",
        "sharpness",
        "embeddings",
    ]
    assert notes == ()
    assert steps[-1] == (len(held_out), len(held_out), "images", "images of the champion's data")
    assert (len(come), len(come), "images", "images of the new data") in steps
    again, _ = house.ask(dataset)
    assert (again.drift, again.new_errors) == (found.drift, found.new_errors)


@pytest.mark.slow
def test_the_test_score_of_the_release_is_that_of_its_files(house, calm):
    found, _ = house.ask(calm[1], "degraded_champion")
    test = [row[1:] for row in listed(before(house), "test")]
    assert found.test_errors == ErrorCount(
        sum(independent(house, house.root / "images", test)), len(test)
    )
    assert found.drift is None


@pytest.mark.slow
def test_what_no_trigger_asks_for_is_not_opened(house, calm):
    steps = []
    found, notes = house.ask(calm[1], "new_data", "age", steps=steps)
    assert (found.drift, found.new_errors, steps, notes) == (None, None, [], ())
    only, _ = house.ask(calm[1], "drift")
    every, _ = house.ask(calm[1])
    assert only.new_errors is None
    found, expected = ({f.name: f for f in facts_.drift.tests} for facts_ in (only, every))
    assert found.keys() == expected.keys()
    for name, test in found.items():
        assert (test.distance, test.p_value) == pytest.approx(
            (expected[name].distance, expected[name].p_value), abs=2e-3
        )


@pytest.mark.slow
def test_images_are_measured_as_the_champion_sees_them(house, calm):
    """Each row belongs to its file, wherever it stands in the shards."""
    from pipeline.release.classify import load_classifier
    from pipeline.release.package import open_version

    folder, dataset = calm
    classifier = load_classifier(open_version(house.champion, TrackingConfig(), house.workdir))
    images = read_images(dataset, dataset.class_names)
    rows = np.sort(np.random.default_rng(0).choice(len(images.labels), 300, replace=False))
    seen = image_measurements.measure_images(classifier, images, rows, "", lambda *_: None)
    files = {sha256: folder / key for sha256, key, _ in listed(dataset)}
    crops = np.stack(
        [
            np.asarray(Image.open(files[images.sha256[row]]).convert("RGB"))[2:30, 2:30]
            for row in rows
        ]
    )
    lights = np.array([measure_light(crop) for crop in crops]).T
    for name, values in zip(
        ("brightness", "contrast", "saturation", "sharpness"), lights, strict=True
    ):
        assert np.array_equal(seen.scalars[name], values)
    assert np.array_equal(seen.predictions, classifier.predict_logits(crops).argmax(axis=1))
    assert seen.embeddings.shape == (300, classifier.model.get_layer("fc7").output.shape[-1])
    head = classifier.model.layers[-1]
    assert np.asarray(head(seen.embeddings)) == pytest.approx(
        classifier.predict_logits(crops), abs=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "drifted", "fired"),
    [
        (
            bright,
            {"brightness", "contrast", "sharpness", "embeddings"},
            {"new_data", "drift", "degraded_champion"},
        ),
        (inverted, {"brightness", "embeddings"}, {"new_data", "drift", "degraded_champion"}),
        (noisy, {"sharpness"}, {"new_data", "drift"}),
        (large, {"short_side", "sharpness"}, {"new_data", "drift"}),
    ],
)
def test_images_of_another_kind_have_drifted(house, change, drifted, fired):
    dataset = house.ingest(
        house.add(house.folder(change.__name__), range(PER_CLASS, PER_CLASS + 20), change)
    )
    found, _ = house.ask(dataset)
    assert {test.name for test in found.drift.drifted} >= drifted
    assert {
        reason.name for reason in decide_retraining(found, RetrainConfig()).results if reason.fired
    } >= fired


@pytest.mark.slow
def test_images_of_one_class_shift_the_balance(house):
    dataset = house.ingest(
        house.add(house.folder("threes"), range(PER_CLASS, PER_CLASS + 60), digits=[3])
    )
    found, _ = house.ask(dataset)
    balance = found.drift.tests[0]
    assert balance.name == "class_balance"
    assert balance.drifted
    assert balance.note.startswith("class digit 3: ")


@pytest.mark.slow
def test_relabeled_images_are_scored_where_the_champion_was_not_trained_on_them(house):
    """A quarter of the images has the next digit's name; without new images there is no drift."""
    folder = house.folder(
        "poisoned",
        rename=lambda digit, place: f"digit {(digit + 1) % 10 if place % 4 == 0 else digit}",
    )
    dataset = house.ingest(folder)
    found, notes = house.ask(dataset)
    old = {(sha256, name) for sha256, _, name in listed(before(house))}
    trained = {sha256 for sha256, *_ in listed(before(house), "train")}
    rows = [row for row in listed(dataset) if (row[0], row[2]) not in old and row[0] not in trained]
    assert found.new_errors == ErrorCount(
        sum(independent(house, folder, [row[1:] for row in rows])), len(rows)
    )
    assert len(rows) > 40
    assert found.new_errors.error > 0.9
    assert sum(found.changes.relabeled) > 200
    assert found.drift is None
    assert notes[0].startswith("Drift was not measured: ")


@pytest.mark.slow
def test_a_new_class_drifts_and_is_not_asked_about(house):
    folder = house.add(
        house.folder("with a class"),
        range(PER_CLASS, PER_CLASS + 40),
        inverted,
        [1, 7],
        lambda _: "another sign",
    )
    folder = house.add(folder, range(PER_CLASS, PER_CLASS + 5))
    dataset = house.ingest(folder)
    assert dataset.class_names[0] == "another sign"
    found, notes = house.ask(dataset)
    known = {sha256 for sha256, *_ in listed(before(house))}
    come = [row[1:] for row in listed(dataset) if row[0] not in known]
    asked_for = [row for row in come if row[1] != "another sign"]
    assert found.changes.of_unknown_classes == found.changes.new[-1] == len(come) - len(asked_for)
    assert found.new_errors == ErrorCount(
        sum(independent(house, folder, asked_for)), len(asked_for)
    )
    assert found.new_errors.error < 0.4
    assert any(
        test.name == "class_balance" and "another sign" in test.note for test in found.drift.drifted
    )
    assert notes == (
        (
            f"The champion does not know the classes of {found.changes.of_unknown_classes} newly"
            " labeled images: they are not scored."
        ),
    )


@pytest.mark.slow
def test_a_dropped_and_a_renamed_class_move_numbers_and_no_answers(house):
    """Without 2, and with 0 as `zero`: every other class has another number than the champion's."""

    def name(digit):
        return "zero" if digit == 0 else f"digit {digit}"

    folder = house.folder(
        "fewer", keep=lambda digit, _: digit != 2, rename=lambda digit, _: name(digit)
    )
    house.add(
        folder, range(PER_CLASS, PER_CLASS + 10), digits=[0, 1, 3, 4, 5, 6, 7, 8, 9], rename=name
    )
    dataset = house.ingest(folder)
    found, notes = house.ask(dataset, "new_data", "degraded_champion")
    old, new = listed(before(house)), listed(dataset)
    known = {sha256 for sha256, *_ in old}
    digits = before(house).class_names
    assert found.changes.removed[digits.index("digit 2")] == sum(
        name == "digit 2" for *_, name in old
    )
    assert found.changes.relabeled == (0,) * 10 + (
        sum(row[2] == "zero" and row[0] in known for row in new),
    )
    come = [row[1:] for row in new if row[0] not in known and row[2] != "zero"]
    assert found.new_errors == ErrorCount(sum(independent(house, folder, come)), len(come))
    assert found.new_errors.error < 0.3
    assert "does not know the classes of" in notes[0]


@pytest.mark.slow
def test_a_damaged_champion_is_no_fact(house, calm):
    from pipeline.tracking.fetching import fetch_version

    model = fetch_version(house.champion, TrackingConfig(), house.workdir) / "data" / "model.keras"
    whole = model.read_bytes()
    try:
        model.write_bytes(whole[:-1] + b"x")
        with pytest.raises(CheckpointError, match="is damaged"):
            house.ask(calm[1])
        found, _ = house.ask(calm[1], "new_data")
        assert found.changes.images > 0
    finally:
        model.write_bytes(whole)


@pytest.mark.slow
def test_damaged_shards_are_said(house):
    dataset = house.ingest(house.add(house.folder("damaged"), range(PER_CLASS, PER_CLASS + 5)))
    for shard in dataset.shards.glob("*.tfrecord*"):
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    with pytest.raises(DatasetError, match=r"The prepared dataset in .* is damaged"):
        house.ask(dataset)


@pytest.mark.slow
def test_without_fc7_the_layer_before_the_logits_is_taken():
    import keras

    image = keras.Input((8, 8, 3), dtype="uint8")
    maps = keras.layers.MaxPooling2D(name="pool")(
        keras.layers.Conv2D(5, 3, padding="same")(keras.layers.Rescaling(1 / 255)(image))
    )
    flat = keras.layers.Dropout(0.5)(keras.layers.Flatten(name="flat")(maps))
    model = keras.Model(image, keras.layers.Dense(3)(flat))
    wide, units = image_measurements._add_features(model)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    found = np.asarray(wide(pixels))
    assert (found.shape, units) == ((4, 4 * 4 * 5 + 3), 80)
    assert found[:, 80:] == pytest.approx(np.asarray(model(pixels)), abs=1e-5)


@pytest.mark.slow
def test_without_a_drift_alarms_are_as_rare_as_the_level_says(house):
    """Images that the champion was not trained on, dealt to both sides 200 times: 5 % +- 4.6 points
    with three standard errors."""
    from pipeline.release.classify import load_classifier
    from pipeline.release.package import open_version

    old = read_images(before(house), before(house).class_names)
    new = read_images(
        house.ingest(house.add(house.root / "all", range(PER_CLASS, PER_CLASS + NEW_PER_CLASS))),
        old.names,
    )
    classifier = load_classifier(open_version(house.champion, TrackingConfig(), house.workdir))
    sides = [(old, image_selection._find_held_out(old)), (new, image_selection._find_new(old, new))]
    looks = [
        image_measurements.select_measurements(
            side,
            image_measurements.measure_images(classifier, side, rows, "", lambda *_: None),
            rows,
        )
        for side, rows in sides
    ]
    first, second = (look.parts() for look in looks)
    pool = {name: np.concatenate([values, second[name]]) for name, values in first.items()}
    count, trials, alarms = len(pool["embeddings"]), 200, 0
    for seed in range(trials):
        dealt = np.random.default_rng(seed).permutation(count)
        groups = []
        for rows in (dealt[:120], dealt[120:360]):
            part = {name: values[rows] for name, values in pool.items()}
            groups.append(
                ImageMeasurements(
                    labels=part.pop("class_balance"),
                    embeddings=part.pop("embeddings"),
                    scalars=part,
                )
            )
        alarms += bool(
            measure_drift(
                *image_measurements.drop_constant_scalars(*groups),
                significance_level=0.05,
                seed=seed,
            ).drifted
        )
    assert count > 900
    assert alarms / trials <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)
