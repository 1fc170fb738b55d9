"""A decision from trained files to the alias, in a real registry; images come from memory, the
smoke test has a test of its own."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.artifacts import (
    DatasetArtifact,
    EvaluationReport,
    GateCheck,
    TrainingResult,
    file_sha256,
)
from pipeline.config.release import ReleaseConfig
from pipeline.config.tracking import TrackingConfig
from pipeline.engine.stage import Context, UnrecordedRun
from pipeline.errors import CheckpointError
from pipeline.evaluate.predictions import PredictionChunk, write_predictions
from pipeline.model.weights import load_model, save_model
from pipeline.release import candidate, champion
from pipeline.release.package import open_release
from pipeline.release.promotion import decide_promotion
from pipeline.reports.decision import draw_decision_pages
from pipeline.tracking.registry import Aliases, Registry

IMAGES = 300
# An untrained network is not calibrated.
MARGIN = ReleaseConfig(margin=0.03, max_calibration_error=1)


class House:
    """A dataset of images in memory and models that are right on a chosen fraction of them."""

    def __init__(self, tmp_path, monkeypatch, make_model, images, store):
        self.tmp_path, self.make_model = tmp_path, make_model
        self.workdir = tmp_path / "w"
        shutil.copytree(store, self.workdir)
        self.files, self.pixels = images
        self.labels = np.zeros(IMAGES, np.int64)
        self.names = ("cat", "dog", "owl")
        for module in (candidate, champion):
            monkeypatch.setattr(module, "load_split", lambda *_, **__: range(IMAGES))
        monkeypatch.setattr(
            candidate,
            "read_encoded_images",
            lambda _: ((f, 1, int(n)) for f, n in zip(self.files, self.labels, strict=True)),
        )
        monkeypatch.setattr(
            candidate,
            "run_smoke_test",
            lambda *_: GateCheck(name="serving", passed=True, measured="", required="", text="ok"),
        )
        speed = SimpleNamespace(batches=[SimpleNamespace(p95_seconds=0.005)], model_bytes=1000)
        monkeypatch.setattr(
            candidate, "measure_speed", lambda *_, **__: speed
        )  # has tests of its own, and takes a second
        self.registry = Registry("alexnet", TrackingConfig(), self.workdir)

    def trained(self, name, seed=0, bias=0.0):
        """A model; `bias` is added to the second class's logit: a little makes another file with
        nearly the same answers."""
        folder = self.tmp_path / name
        folder.mkdir()
        model = self.make_model(seed=seed)
        model.layers[-1].bias.assign([0.0, bias, 0.0])
        save_model(model, folder / "model.keras")
        return TrainingResult(
            directory=folder,
            model_sha256=file_sha256(folder / "model.keras"),
            parameters=model.count_params(),
            network="small",
            image_size=24,
            short_side=28,
            class_names=self.names,
            best_epoch=1,
            epochs=1,
            validation_top1_error=0.1,
            history_sha256="h",
        )

    def logits(self, trained):
        return np.asarray(load_model(trained.model_path)(self.pixels, training=False))

    def evaluated(self, trained, **changes):
        """The evaluation of a model, as the stage writes it."""
        logits = self.logits(trained)
        folder = trained.directory.with_name(f"{trained.directory.name}-evaluated")
        folder.mkdir(exist_ok=True)
        light = np.zeros(IMAGES, np.float32)
        keys = tuple(map(str, range(IMAGES)))
        chunk = PredictionChunk(keys, self.labels.astype(np.int32), logits, light, light)
        digest = write_predictions([chunk], 3, folder / EvaluationReport.PREDICTIONS_FILE)
        numbers = dict.fromkeys(
            ("top1_error", "top5_error", "loss", "majority_error", "calibration_error"), 0.1
        )
        known = {
            "split": "test",
            "view": "center crop",
            "images": IMAGES,
            "top1_error_interval": (0.0, 0.2),
            "temperature": 1.5,
        }
        known |= {
            "class_names": self.names,
            "model_sha256": trained.model_sha256,
            "dataset_digest": "d" * 64,
        }
        return EvaluationReport(
            directory=folder,
            **numbers,
            **(known | changes),
            images_sha256="p",
            predictions_sha256=digest,
        )

    def dataset(self):
        counts = tuple(np.bincount(self.labels, minlength=3).tolist())
        return DatasetArtifact(
            directory=self.tmp_path,
            name="tiny",
            digest="d" * 64,
            class_names=self.names,
            class_counts={"train": (100, 100, 100), "test": counts},
            reads={},
            short_side=28,
            channel_mean=(0, 0, 0),
            channel_covariance=((1, 0, 0), (0, 1, 0), (0, 0, 1)),
            builder_directory=self.tmp_path,
        )

    def decide(self, trained, report=None, config=MARGIN):
        folder = self.tmp_path / f"promote-{len(list(self.tmp_path.glob('promote-*')))}"
        folder.mkdir()
        observer = SimpleNamespace(progressed=lambda *_: None, notified=lambda _: None)
        context = Context(folder, UnrecordedRun(), observer, self.workdir)
        report = report or self.evaluated(trained)
        decision = decide_promotion(config, self.dataset(), trained, report, self.registry, context)
        draw_decision_pages(decision, context.report_directory)
        return decision.model_copy(update={"directory": folder})


@pytest.fixture(scope="module")
def images(image, classifier):
    """Image files and their pixels as every model here gets them."""
    files = [image(seed, height=28, width=28) for seed in range(IMAGES)]
    return files, np.stack([classifier.prepare_pixels(file) for file in files])


@pytest.fixture
def house(tmp_path, monkeypatch, make_model, images, store):
    house = House(tmp_path, monkeypatch, make_model, images, store)
    first = house.trained("first")
    answers = house.logits(first).argmax(axis=1)
    # The first model is right on 90 of 100 images, by definition of what is right.
    house.labels = np.where(np.arange(IMAGES) % 10 == 0, (answers + 1) % 3, answers)
    house.first = first
    return house


def checks_of(decision):
    return {check.name: check for check in decision.checks}


def test_a_first_model_passes_on_absolute_floors_alone(house):
    decision = house.decide(house.first)
    assert (decision.outcome, decision.version, decision.champion) == (
        "promoted",
        "1",
        "",
    ), decision.reason
    assert decision.top1_error == pytest.approx(0.1)
    assert "against_champion" not in checks_of(decision)
    release = open_release("models:/alexnet@champion", TrackingConfig(), house.workdir)
    assert release.temperature == 1.5
    assert len(release.golden) == candidate.GOLDEN_IMAGES
    assert release.model_sha256 == house.first.model_sha256
    assert "all 8 checks passed" in (decision.directory / "report" / "decision.html").read_text()
    assert (
        json.loads((decision.directory / "report" / "decision.json").read_text())["outcome"]
        == "promoted"
    )
    assert house.registry.read_version("1").tags["top1_error"] == "0.100000"


def test_a_first_model_below_a_floor_is_refused(house):
    decision = house.decide(house.first, config=MARGIN.model_copy(update={"max_top1_error": 0.05}))
    assert decision.outcome == "refused"
    assert [check.name for check in decision.checks if not check.passed] == ["top1_error"]
    assert house.registry.read_aliases().champion == ""
    assert house.registry.read_version("1").gate == "refused"
    assert "Failed checks" in (decision.directory / "report" / "decision.html").read_text()


def test_a_champion_gives_way_to_what_is_as_good_and_knows_its_classes(house):
    house.decide(house.first)
    again = house.decide(house.first)
    assert again.outcome == "unchanged"
    assert house.registry.read_aliases() == Aliases(champion="1", candidate="1")
    assert len(house.registry.list_versions()) == 1
    worse = house.decide(house.trained("worse", seed=5))
    assert worse.outcome == "refused"
    assert worse.champion_top1_error == pytest.approx(0.1)
    assert not checks_of(worse)["against_champion"].passed
    assert house.registry.read_aliases().champion == "1"
    assert house.registry.read_version("2").gate == "refused"
    # Nearly the same answers, another file.
    equal = house.trained("equal", bias=1e-3)
    superior = MARGIN.model_copy(update={"policy": "superior"})
    assert house.decide(equal, config=superior).outcome == "refused"
    assert house.registry.read_aliases().champion == "1"
    promoted = house.decide(equal)
    assert (promoted.outcome, house.registry.read_aliases().champion) == ("promoted", "3")
    assert "test images" in promoted.advice
    house.names = ("cat", "dog", "wolf")  # `owl`, which the champion knows, is gone
    lost = house.decide(house.trained("lost", bias=2e-3))
    assert (lost.outcome, checks_of(lost)["classes"].measured) == ("refused", "1 missing")


@pytest.mark.parametrize(
    "changes",
    [
        {"split": "validation"},
        {"view": "mean of ten crops"},
        {"model_sha256": "x"},
        {"dataset_digest": "x"},
    ],
)
def test_a_candidate_that_was_judged_otherwise_is_refused(house, changes):
    decision = house.decide(house.first, house.evaluated(house.first, **changes))
    assert decision.outcome == "refused"
    assert house.registry.list_versions() == []


def test_an_evaluation_that_does_not_describe_the_file_is_no_evidence(house):
    other = house.evaluated(house.trained("other", seed=3))
    report = house.evaluated(house.first)
    shutil.copyfile(other.predictions_path, report.predictions_path)
    decision = house.decide(house.first, report)
    assert not checks_of(decision)["as evaluated"].passed
    assert decision.outcome == "refused"


def test_a_damaged_candidate_is_not_opened(house):
    report = house.evaluated(house.first)
    content = bytearray(house.first.model_path.read_bytes())
    content[len(content) // 2] ^= 1
    house.first.model_path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        house.decide(house.first, report)
    assert house.registry.list_versions() == []
