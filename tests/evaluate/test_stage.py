import json
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from pipeline.artifacts import EvaluationReport, file_sha256
from pipeline.config.evaluate import EvaluateConfig
from pipeline.engine.fingerprint import code_parts
from pipeline.errors import CheckpointError, ConfigError, DatasetError
from pipeline.evaluate.calibration import fit_temperature
from pipeline.evaluate.predictions import read_columns, read_logits
from pipeline.evaluate.stage import evaluate, evaluate_model
from pipeline.reports.evaluation.data import load_evaluation_data

NAMES = ("cat", "dog/wolf", "cat!", "émeu", "e", "f", "g")
LABELS = np.random.default_rng(1).integers(0, 7, 30)


SHORT = EvaluateConfig(report="short")


@pytest.fixture
def prepared(tmp_path, serve_images, make_model, make_dataset, save_trained):
    model, pixels = (
        make_model(classes=7),
        np.random.default_rng(0).integers(0, 256, (30, 12, 12, 3), dtype=np.uint8),
    )
    serve_images(pixels, LABELS, [f"{index}.png".encode() for index in range(30)])
    return (
        model,
        pixels,
        make_dataset(NAMES, LABELS, tmp_path),
        save_trained(model, NAMES, tmp_path / "train"),
    )


def test_stage_scores_the_saved_file(prepared, context, notes, evaluate_and_draw):
    model, pixels, dataset, trained = prepared
    report = evaluate_and_draw(evaluate, EvaluateConfig(global_batch_size=8), dataset, trained)
    answers = np.asarray(model(pixels, training=False)).argmax(axis=1)
    assert report.top1_error == pytest.approx(np.mean(answers != LABELS))
    assert report.images == 30
    assert report.majority_error == pytest.approx(1 - np.bincount(LABELS).max() / 30)
    assert notes.summary == {
        "test_loss": report.loss,
        "test_top1_error": report.top1_error,
        "test_top5_error": report.top5_error,
    }
    assert notes.tagged["view"] == report.view == "center crop"
    assert (30, 30, "images") in [step[:3] for step in notes.steps]
    keys, labels, guesses = read_columns(report.predictions_path, "key", "label", "answer")
    assert np.array_equal(labels, LABELS)
    assert np.array_equal(guesses, answers)
    assert keys[2] == "2.png"
    assert all(path.exists() for path in report.promised_files())
    document = json.loads((context.report_directory / "metrics.json").read_text())
    assert document["top1_error"] == report.top1_error
    assert document["view"] == "center crop"
    assert {"slices", "robustness", "reliability"} <= document.keys()
    assert (
        json.loads((context.report_directory / "speed.json").read_text())["batches"][0]["batch"]
        == 1
    )
    assert isinstance(
        EvaluationReport.model_validate_json(report.model_dump_json()), EvaluationReport
    )
    assert not (context.scratch_directory / "validation.parquet").exists()


def test_numbers_are_recorded_under_names_that_mlflow_takes(prepared, context, notes):
    _, _, dataset, trained = prepared
    evaluate.function(SHORT, dataset, trained, context)
    assert {
        "test_macro_f1",
        "test_balanced_accuracy",
        "test_recall/001_dog_wolf",
        "test_f1/003_meu",
    } <= notes.detail.keys()
    assert all(re.fullmatch(r"[/\w.\- :]{1,250}", name) for name in notes.detail)
    assert all(isinstance(value, float) for value in notes.detail.values())


def test_batch_size_does_not_change_the_report(prepared, context):
    _, _, dataset, trained = prepared
    configs = [SHORT.model_copy(update={"global_batch_size": size}) for size in (1, 7, 256)]
    reports = [evaluate.function(config, dataset, trained, context) for config in configs]
    assert (
        len(
            {
                (report.top1_error, report.top5_error, report.top1_error_interval)
                for report in reports
            }
        )
        == 1
    )
    assert [report.loss for report in reports] == pytest.approx([reports[0].loss] * 3, abs=1e-6)


def test_the_temperature_is_fitted_on_the_validation_split(prepared, context):
    _, _, dataset, trained = prepared
    report = evaluate.function(SHORT, dataset, trained, context)
    assert report.temperature != pytest.approx(1, abs=0.05)
    logits = np.concatenate([logits for logits, _ in read_logits(report.predictions_path)])
    assert report.temperature == pytest.approx(
        fit_temperature(logits, LABELS)
    )  # this stand-in has the same images in every split


def test_slices_are_by_everything_that_is_known_of_the_images(prepared, context, evaluate_and_draw):
    _, _, dataset, trained = prepared
    table = pa.table(
        {"key": [f"{index}.png" for index in range(29, -1, -1)], "camera": ["old", "new"] * 15}
    )
    parquet.write_table(table, dataset.directory / dataset.ATTRIBUTES_FILE)
    report = evaluate_and_draw(evaluate, SHORT, dataset, trained)
    slices = json.loads((context.report_directory / "metrics.json").read_text())["slices"]
    found = {item["attribute"] for item in slices}
    assert found == {
        "column camera",
        "shorter side",
        "width / height",
        "brightness",
        "contrast",
    }  # 7 classes are too many for 30 images
    keys, ranks = read_columns(report.predictions_path, "key", "rank")
    old = [rank > 0 for key, rank in zip(keys, ranks, strict=True) if int(key[:-4]) % 2 == 1]
    assert [item["top1_error"] for item in slices if item["value"] == "old"] == [
        pytest.approx(np.mean(old))
    ]


def test_an_external_model_is_scored_like_the_trained_one(prepared, context, notes, tmp_path):
    _, _, dataset, trained = prepared
    own = evaluate.function(SHORT, dataset, trained, context)
    alone = tmp_path / "alone.keras"
    shutil.copy(trained.model_path, alone)
    external = evaluate_model.function(
        SHORT.model_copy(update={"model": str(alone)}), dataset, context
    )
    assert external == own
    assert "has no class names" in notes.words[-1]
    assert evaluate_model.source(SHORT.model_copy(update={"model": str(alone)})) == {
        "model": trained.model_sha256
    }


def test_a_model_that_ends_in_softmax_is_scored_by_its_logits(prepared, context, notes, tmp_path):
    model, _, dataset, trained = prepared
    own = evaluate.function(SHORT, dataset, trained, context)
    keras.Model(model.inputs, keras.layers.Softmax()(model.outputs[0])).save(
        tmp_path / "soft.keras"
    )
    found = evaluate_model.function(
        SHORT.model_copy(update={"model": str(tmp_path / "soft.keras")}), dataset, context
    )
    assert (found.loss, found.temperature) == pytest.approx((own.loss, own.temperature), rel=1e-4)
    assert any("ends in softmax" in words for words in notes.words)


@pytest.mark.parametrize("sides", [(16, 12), pytest.param((12, 16), marks=pytest.mark.slow)])
def test_a_model_with_a_submodel_and_a_softmax_is_shown_whole(
    tmp_path, context, serve_images, make_dataset, evaluate_and_draw, sides
):
    """A network as most people make one, for images that are not square: a base without its
    classifier, and layers behind it."""
    image = keras.Input((*sides, 3))
    x = keras.layers.Conv2D(6, (3, 5), activation="relu", name="conv")(image)
    x = keras.layers.Add(name="sum")([x, keras.layers.DepthwiseConv2D(3, padding="same")(x)])
    base = keras.Model(image, x, name="base")
    model = keras.Sequential(
        [
            keras.Input((*sides, 3)),
            keras.layers.Rescaling(1 / 255),
            base,
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(7, activation="softmax"),
        ]
    )
    model.save(tmp_path / "whole.keras")
    pixels = np.random.default_rng(0).integers(0, 256, (30, *sides, 3), dtype=np.uint8)
    serve_images(pixels, LABELS, [f"{index}.png".encode() for index in range(30)])
    config = EvaluateConfig(model=str(tmp_path / "whole.keras"))
    dataset = make_dataset(NAMES, LABELS, tmp_path)
    report = evaluate_and_draw(evaluate_model, config, dataset)
    answers = np.asarray(model(pixels, training=False)).argmax(axis=1)
    assert report.top1_error == pytest.approx(np.mean(answers != LABELS))
    drawn = {path.stem for path in context.report_directory.glob("*.png")}
    assert {"grad_cam", "neighbors", "filters", "patches", "activations"} <= drawn
    inspection = load_evaluation_data(context.directory).inspection
    assert inspection.omitted == {}
    assert inspection.heat.shape == (8, *sides)
    sizes = {name: layer.pixels.shape[2:4] for name, layer in inspection.patches.items()}
    assert sizes == {"conv": (3, 5), "sum": (5, 7)}


def test_an_external_model_that_cannot_be_scored_is_refused(
    prepared, context, tmp_path, make_model
):
    _, _, dataset, _ = prepared

    def run(path):
        return evaluate_model.function(
            SHORT.model_copy(update={"model": str(path)}), dataset, context
        )

    with pytest.raises(ConfigError, match=r"There is no model .*Expected a \.keras file"):
        run(tmp_path / "gone.keras")
    broken = tmp_path / "broken.keras"
    broken.write_bytes(b"no zip")
    with pytest.raises(CheckpointError, match="cannot be read"):
        run(broken)
    (tmp_path / "artifact.json").write_text(json.dumps({"class_names": NAMES, "short_side": 256}))
    make_model(classes=7).save(tmp_path / "larger.keras")
    with pytest.raises(
        DatasetError, match=r"another scale .* shorter side of 256 pixels\. Received 12\."
    ):
        run(tmp_path / "larger.keras")
    known = {"class_names": NAMES, "short_side": dataset.short_side}
    (tmp_path / "artifact.json").write_text(json.dumps(known | {"fit": "pad"}))
    with pytest.raises(
        DatasetError, match=r"Expected fit pad\. Received crop\. Type --set data\.fit=pad, and"
    ):
        run(tmp_path / "larger.keras")
    (tmp_path / "artifact.json").write_text(json.dumps(known))
    padded = dataset.model_copy(update={"fit": "pad"})
    config = SHORT.model_copy(update={"model": str(tmp_path / "larger.keras")})
    with pytest.raises(DatasetError, match=r"Expected fit crop\. Received pad\."):
        evaluate_model.function(config, padded, context)
    (tmp_path / "artifact.json").unlink()
    image = keras.Input((None, None, 3), dtype="uint8")
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(image))
    keras.Model(image, keras.layers.Dense(7)(pooled)).save(tmp_path / "any.keras")
    with pytest.raises(DatasetError, match="images of a fixed height and width"):
        run(tmp_path / "any.keras")
    make_model(classes=3).save(tmp_path / "three.keras")
    with pytest.raises(DatasetError, match=r"7 logits\. Received .*3"):
        run(tmp_path / "three.keras")
    (tmp_path / "artifact.json").write_text(
        json.dumps({"model_sha256": "0" * 64, "class_names": ["a"]})
    )
    with pytest.raises(CheckpointError, match=r"damaged\. Expected SHA-256 000000000000"):
        run(tmp_path / "three.keras")


def test_other_classes_are_refused(prepared, context, tmp_path):
    _, _, dataset, trained = prepared
    swapped = trained.model_copy(update={"class_names": (*NAMES[:5], "g", "f")})
    with pytest.raises(
        DatasetError, match=r"Expected class 5 to be 'g'\. Received 'f'\. .*alexnet train"
    ):
        evaluate.function(SHORT, dataset, swapped, context)
    fewer = trained.model_copy(update={"class_names": NAMES[:5]})
    with pytest.raises(DatasetError, match=r"Expected 5 classes\. Received 7\."):
        evaluate.function(SHORT, dataset, fewer, context)


def test_damaged_model_file_is_refused(prepared, context):
    _, _, dataset, trained = prepared
    trained.model_path.write_bytes(trained.model_path.read_bytes()[:-1])
    assert file_sha256(trained.model_path) != trained.model_sha256
    with pytest.raises(CheckpointError, match="damaged"):
        evaluate.function(SHORT, dataset, trained, context)


def test_record_that_promises_other_counts_is_refused(prepared, context):
    _, _, dataset, trained = prepared
    counts = dataset.class_counts["test"]
    other = dataset.model_copy(
        update={
            "class_counts": {
                "train": counts,
                "validation": counts,
                "test": (counts[0] + 1, counts[1] - 1, *counts[2:]),
            }
        }
    )
    with pytest.raises(DatasetError, match="not what its record promises"):
        evaluate.function(SHORT, other, trained, context)


def test_stage_is_imported_without_heavy_libraries():
    code = (
        "import sys, pipeline.evaluate.stage;print(sorted({'tensorflow', 'keras', 'mlflow',"
        " 'numpy', 'matplotlib', 'sklearn'} & sys.modules.keys()))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )


def test_the_stage_depends_on_no_page():
    parts = code_parts("pipeline.evaluate.stage")
    assert "code pipeline.evaluate.assessment" in parts
    assert not [name for name in parts if name.startswith("code pipeline.reports")]
