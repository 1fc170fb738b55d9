"""Models in a real MLflow store."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts import file_sha256
from pipeline.config.tracking import TrackingConfig
from pipeline.errors import ConfigError
from pipeline.evaluate.external_model import ExternalModel, find_external_model
from pipeline.tracking.fetching import fetch_model_file
from pipeline.tracking.store import get_store_uri
from pipeline.tracking.tracker import MlflowTracker
from tests.tracking.recording import RESOLVED, client, runs, trained


def test_a_model_is_logged_with_signature_and_example_and_loads_again(workdir):
    network, result = trained(workdir / "trained")
    tracker = MlflowTracker(workdir, TrackingConfig())
    run = tracker.start_stage_run("train", "train", RESOLVED)
    run.log_model(result)
    run.close("FINISHED")
    tracker.close("FINISHED")
    assert tracker.problem is None
    import mlflow

    store = client(workdir)
    mlflow.set_tracking_uri(get_store_uri(TrackingConfig(), workdir))
    (logged,) = store.search_logged_models([runs(workdir)["train"].info.experiment_id])
    info = mlflow.models.get_model_info(logged.model_uri)
    assert str(info.signature.inputs.inputs[0].type) == "uint8"
    assert info.signature.inputs.inputs[0].shape == (-1, 32, 32, 3)
    assert info.signature.outputs.inputs[0].shape == (-1, 2)
    assert list(info.saved_input_example_info) != []
    assert info.metadata == {
        "class_names": ["0", "1"],
        "sha256": result.model_sha256,
        "short_side": 36,
        "fit": "crop",
    }
    (file,) = (Path(mlflow.artifacts.download_artifacts(logged.model_uri)) / "data").glob("*.keras")
    assert file_sha256(file) == result.model_sha256
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    again = mlflow.keras.load_model(logged.model_uri)
    np.testing.assert_allclose(np.asarray(again(images)), np.asarray(network(images)), atol=1e-6)
    store.create_registered_model("digits")
    version = store.create_model_version("digits", logged.model_uri, model_id=logged.model_id)
    store.set_registered_model_alias("digits", "champion", version.version)
    found = runs(workdir)
    names = (
        logged.model_uri,
        "models:/digits@champion",
        found["train"].info.run_id,
        found["digits small"].info.run_id,
    )
    for name in names:
        file = fetch_model_file(name, TrackingConfig(), workdir)
        known = (result.model_sha256, ("0", "1"), 36, "crop")
        assert find_external_model(file) == ExternalModel(file, *known)
    with pytest.raises(
        ConfigError, match=r"There is no model `models:/digits@nobody`.*Check --model"
    ):
        fetch_model_file("models:/digits@nobody", TrackingConfig(), workdir)
