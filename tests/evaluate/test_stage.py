import json
import re
import subprocess
import sys

import numpy as np
import pytest

from pipeline.artifacts import EvaluationReport, file_sha256
from pipeline.config import EvaluateConfig
from pipeline.errors import CheckpointError, DatasetError
from pipeline.evaluate.stage import details, evaluate

NAMES = ("cat", "dog/wolf", "cat!", "émeu", "e", "f", "g")
LABELS = np.random.default_rng(1).integers(0, 7, 30)


@pytest.fixture
def prepared(tmp_path, serve_pictures, make_model, make_dataset, save_trained):
    model, pixels = make_model(classes=7), np.random.default_rng(0).integers(0, 256, (30, 12, 12, 3), dtype=np.uint8)
    serve_pictures(pixels, LABELS, np.array([f"{index}.png".encode() for index in range(30)], object))
    return model, pixels, make_dataset(NAMES, LABELS, tmp_path), save_trained(model, NAMES, tmp_path / "train")


def test_stage_scores_the_saved_file(prepared, context, notes):
    model, pixels, dataset, trained = prepared
    report = evaluate.function(EvaluateConfig(global_batch_size=8), dataset, trained, context)
    answers = np.asarray(model(pixels, training=False)).argmax(axis=1)
    assert report.top1_error == pytest.approx(np.mean(answers != LABELS))
    assert report.images == 30
    assert report.majority_error == pytest.approx(1 - np.bincount(LABELS).max() / 30)
    assert notes.summary == {"test_loss": report.loss, "test_top1_error": report.top1_error, "test_top5_error": report.top5_error}
    assert notes.steps[-1][:3] == (30, 30, "images")
    with np.load(context.directory / "predictions.npz", allow_pickle=False) as file:
        assert np.array_equal(file["labels"], LABELS)
        assert file["keys"][2] == "2.png"
    assert all(path.exists() for path in report.promised_files())
    assert json.loads((context.report_directory / "metrics.json").read_text())["top1_error"] == report.top1_error
    assert isinstance(EvaluationReport.model_validate_json(report.model_dump_json()), EvaluationReport)


def test_numbers_are_recorded_under_names_that_mlflow_takes(prepared, context, notes):
    _, _, dataset, trained = prepared
    evaluate.function(EvaluateConfig(), dataset, trained, context)
    assert {"test_macro_f1", "test_balanced_accuracy", "test_recall/001_dog_wolf", "test_f1/003_meu"} <= notes.detail.keys()
    assert all(re.fullmatch(r"[/\w.\- :]{1,250}", name) for name in notes.detail)
    assert all(isinstance(value, float) for value in notes.detail.values())
    assert len(notes.detail) == 3 * 7 + 10


def test_many_classes_are_not_recorded_one_by_one():
    from pipeline.evaluate.metrics import summarise

    summary = summarise(np.eye(101, dtype=np.float32), np.arange(101), np.ones(101, int))
    assert len(details(summary, [str(index) for index in range(101)])) == 10


def test_batch_size_does_not_change_the_report(prepared, context):
    _, _, dataset, trained = prepared
    reports = [evaluate.function(EvaluateConfig(global_batch_size=size), dataset, trained, context) for size in (1, 7, 256)]
    assert len({(report.top1_error, report.top5_error, report.top1_error_interval) for report in reports}) == 1
    assert [report.loss for report in reports] == pytest.approx([reports[0].loss] * 3, abs=1e-6)


def test_other_classes_are_refused(prepared, context, tmp_path):
    _, _, dataset, trained = prepared
    swapped = trained.model_copy(update={"class_names": (*NAMES[:5], "g", "f")})
    with pytest.raises(DatasetError, match=r"Expected class 5 to be 'g'\. Received 'f'\. .*alexnet train"):
        evaluate.function(EvaluateConfig(), dataset, swapped, context)
    fewer = trained.model_copy(update={"class_names": NAMES[:5]})
    with pytest.raises(DatasetError, match=r"Expected 5 classes\. Received 7\."):
        evaluate.function(EvaluateConfig(), dataset, fewer, context)


def test_damaged_model_file_is_refused(prepared, context):
    _, _, dataset, trained = prepared
    trained.model_path.write_bytes(trained.model_path.read_bytes()[:-1])
    assert file_sha256(trained.model_path) != trained.model_sha256
    with pytest.raises(CheckpointError, match="damaged"):
        evaluate.function(EvaluateConfig(), dataset, trained, context)


def test_record_that_promises_other_counts_is_refused(prepared, context):
    _, _, dataset, trained = prepared
    counts = dataset.class_counts["test"]
    other = dataset.model_copy(update={"class_counts": {"train": counts, "test": (counts[0] + 1, counts[1] - 1, *counts[2:])}})
    with pytest.raises(DatasetError, match="not what its record promises"):
        evaluate.function(EvaluateConfig(), other, trained, context)


def test_stage_is_imported_without_heavy_libraries():
    code = (
        "import sys, pipeline.evaluate.stage;"
        "print(sorted({'tensorflow', 'keras', 'mlflow', 'numpy', 'matplotlib', 'sklearn'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
