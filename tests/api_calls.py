"""Every public function, called once, for tests/test_api.py; each is tested in depth elsewhere."""

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from pipeline import api
from pipeline.api import Workspace
from pipeline.errors import ConfigError, PipelineError

SETTINGS = {
    "model.alexnet.width_multiplier": 0.2,
    "train.epochs": 3,
    "train.global_batch_size": 64,
    "evaluate.report": "short",
    "release.max_calibration_error": 1.0,
}


def call(name, *arguments, **named):
    """Call a public function and note that it was called."""
    CALLED.add(name)
    return getattr(api, name)(*arguments, **named)


CALLED = {"PipelineResult", "Workspace"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A work directory in which the digits were trained, evaluated and promoted."""
    workspace = Workspace(tmp_path_factory.mktemp("api") / "mlruns", settings=SETTINGS)
    stages = ["ingest", "build", "train", "evaluate", "promote"]
    result = call("run", stages, workspace=workspace)
    assert isinstance(result, api.PipelineResult)
    assert result.decision.outcome == "promoted"
    return workspace


@pytest.fixture
def image(tmp_path):
    digit = load_digits().images[0]
    pixels = (digit / 16 * 255).astype(np.uint8)
    path = tmp_path / "digit.png"
    Image.fromarray(pixels).resize((32, 32)).save(path)
    return path


def test_settings_and_status(workspace):
    assert call("resolve_settings", workspace).config.train.epochs == 3
    assert "TrainConfig" in call("settings_schema")
    assert [item.state for item in call("status", workspace).stages] == ["done"] * 4
    assert call("accept", workspace=workspace) == []
    ((stage, folder),) = call("report", ["train"], workspace=workspace)
    assert (stage, (folder / "learning_curves.png").is_file()) == ("train", True)
    with pytest.raises(ConfigError, match="no pages of nothing"):
        call("report", ["nothing"], workspace=workspace)


def test_models(workspace, image, tmp_path):
    (version,) = call("list_models", workspace)
    assert call("find_model", workspace=workspace).number == version.number == "1"
    with pytest.raises(ConfigError, match="no version 7"):
        call("find_model", "7", workspace=workspace)
    with pytest.raises(ConfigError, match="no version to roll back to"):
        call("rollback", workspace=workspace)
    classifier = call("open_classifier", workspace=workspace)
    (prediction,) = call("predict", [image], model=classifier, top=3)
    assert prediction.path == str(image)
    assert len(prediction.guesses) == 3
    evaluation = next(workspace.directory.glob("stages/evaluate-*")).name
    comparison = call("compare", evaluation, evaluation, workspace=workspace)
    assert comparison.as_dict()["p_value"] == 1
    output = tmp_path / "export"
    exported = call("export", "savedmodel", output=output, workspace=workspace)
    assert Path(exported.as_dict()["file"]).exists()
    with pytest.raises(PipelineError):
        elsewhere = {**SETTINGS, "serve.host": "no.such.host.invalid"}
        call("serve", workspace=Workspace(workspace.directory, settings=elsewhere))


def test_schedules(workspace):
    settings = {**SETTINGS, "retrain.triggers": "age"}
    scheduled = Workspace(workspace.directory, settings=settings)
    made = call("add_schedule", every="366d", workspace=scheduled)
    assert [found.name for found in call("list_schedules", workspace)] == ["main"]
    assert call("find_schedule", workspace=workspace).arguments == made.arguments
    assert len(call("list_run_times", made.timing, 3)) == 3
    assert "--once" in "".join(call("emit_schedule", "systemd", workspace=workspace).values())
    call("pause_schedule", workspace=workspace)
    assert call("find_schedule", workspace=workspace).paused
    call("resume_schedule", workspace=workspace)
    assert call("run_due_schedule", workspace=workspace) is None
    stop = threading.Event()
    stop.set()
    call("serve_schedules", workspace=workspace, stop=stop)
    done = call("retrain_now", workspace=workspace)
    assert done.state == "skipped"
    assert call("list_scheduled_runs", workspace=workspace)[0].key == done.key
    result = call("retrain", "main/20261127T030000Z", workspace=scheduled)
    assert result.outcome == "skipped"
    call("remove_schedule", workspace=workspace)
    assert call("list_schedules", workspace) == []


def test_claims(workspace, tmp_path):
    (row,) = call("plan_reproduction", ["lrn"], workspace=workspace)
    assert row["claim"] == "lrn"
    settings = {"data.dataset": "digits", "reproduce.max_minutes": 1e-9, "reproduce.images": 96}
    claims = Workspace(workspace.directory, settings=settings)
    assert call("reproduce", ["lrn"], workspace=claims).unfinished == ("lrn",)
    call("publish_claims", None, tmp_path / "results.md")


def test_looking_around(workspace):
    assert call("sync", workspace) == (0, {})
    assert "mlflow" in call("prepare_ui", 5050, workspace=workspace).command
    (listed,) = call("networks", ["keras/ResNet50V2"])
    assert listed.row.image_size == 224
    subjects = {item.subject: item.state for item in call("doctor", workspace)}
    assert subjects["work directory"] == subjects["tensorflow"] == "ok"
    assert call("clean", dry_run=True, workspace=workspace).kept
    with pytest.raises(ConfigError, match="no work directory"):
        call("clean", workspace=Workspace(workspace.directory / "elsewhere"))


def test_every_public_function_was_called():
    """Last in this file: what the tests above call is all there is."""
    assert set(api.__all__) == CALLED
