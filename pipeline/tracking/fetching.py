"""Files of models from the tracking store, copied into the work directory where it is elsewhere."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from pipeline.config.tracking import TrackingConfig
from pipeline.errors import ConfigError
from pipeline.files import publish_folder
from pipeline.tracking.registry import Registry, Version
from pipeline.tracking.store import connect_store, get_store_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient


def fetch_model_file(reference: str, config: TrackingConfig, workdir: Path) -> Path:
    """Return the `.keras` file of a model that MLflow knows.

    Args:
        reference: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `models:/MODEL_ID`, or the id of a
            run that trained one, or its pipeline's.
        config: the tracking store.
        workdir: the work directory, which keeps copies.

    Raises:
        ConfigError: MLflow knows no such model.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    fetched = workdir / "fetched"
    try:
        client = connect_store(config, workdir)
        mlflow.set_tracking_uri(get_store_uri(config, workdir))
        uri = reference if reference.startswith("models:/") else _find_model_uri(client, reference)
        fetched /= uri.partition("/")[2].replace("/", "-")
        fetched.mkdir(parents=True, exist_ok=True)
        local = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(fetched))
    except (MlflowException, OSError) as error:
        with contextlib.suppress(OSError):
            fetched.rmdir()  # where it is empty
        raise ConfigError(
            f"There is no model `{reference}` in {get_store_uri(config, workdir)}"
            f" ({' '.join(str(error).split())[:150]})",
            expected="a .keras file, models:/NAME@ALIAS or the id of an MLflow run that made a"
            " model",
            hint="Check --model and tracking.uri",
        ) from error
    return Path(local) / "data" / "model.keras"


def _find_model_uri(client: MlflowClient, run_id: str) -> str:
    """Return the address of the model that a run, a run below it or a run that it links to trained.

    A run links to another one because it skipped training.
    """
    run = client.get_run(run_id)
    experiment = [run.info.experiment_id]
    below = client.search_runs(experiment, f"tags.`mlflow.parentRunId` = '{run_id}'")
    linked = run.data.tags.get("skipped.train")
    runs = [run_id, *(child.info.run_id for child in below), *([linked] if linked else [])]
    for candidate in runs:
        for model in client.search_logged_models(experiment, f"source_run_id = '{candidate}'"):
            return f"models:/{model.model_id}"
    raise ConfigError(
        f"The MLflow run {run_id} made no model",
        expected="a run of `train`, or of a pipeline that trained",
        hint="Name another run, or a .keras file",
    )


def fetch_version(
    version: Version, config: TrackingConfig, workdir: Path, *, again: bool = False
) -> Path:
    """Return the folder of a version's files, not verified yet.

    It is where the files lie, or where they are copied to from a store elsewhere.

    Args:
        version: with a digest.
        config: the tracking store.
        workdir: the work directory, which keeps copies.
        again: fetch another copy in place of one that was kept and is damaged.
    """
    registry = Registry(version.name, config, workdir)
    with registry.translate_errors():
        client = registry.connect()
        logged = (
            version.source.removeprefix("models:/") if version.source.startswith("models:/") else ""
        )
        location = client.get_logged_model(logged).artifact_location if logged else version.source
        parsed = urlparse(location)
        if parsed.scheme in ("", "file"):
            return Path(unquote(parsed.path))
        target = workdir / "fetched" / version.release_sha256
        if again:
            shutil.rmtree(target, ignore_errors=True)
        if not target.exists():
            import mlflow

            partial = workdir / "fetched" / f".{version.release_sha256}.{os.getpid()}"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            mlflow.set_tracking_uri(get_store_uri(config, workdir))
            mlflow.artifacts.download_artifacts(artifact_uri=version.source, dst_path=str(partial))
            try:
                if not target.exists():  # another process may have been quicker
                    publish_folder(partial, target)
            except OSError:
                if not target.exists():
                    raise
            shutil.rmtree(partial, ignore_errors=True)
        return target
