"""Runs and logged models that MLflow keeps, and their deletion with all their files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from pipeline.config.tracking import TrackingConfig
from pipeline.files import remove_folder
from pipeline.tracking.known_runs import read_known_runs
from pipeline.tracking.store import (
    connect_store,
    get_store_uri,
    read_all_pages,
    translate_store_errors,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run


@dataclass(frozen=True)
class StoredModel:
    """A logged model.

    Attributes:
        model_id: MLflow's.
        run_id: of the run that made it; empty for none.
        created: time in seconds since 1970.
        tags: of the model.
        location: address of its files.
        folder: of its files on this machine; None where they are elsewhere.
    """

    model_id: str
    run_id: str
    created: float
    tags: Mapping[str, str]
    location: str
    folder: Path | None


@dataclass(frozen=True)
class StoredRun:
    """A run with the models that it made.

    `parent_id` is empty for a pipeline's own run; `location` and `folder` as for a model.
    """

    run_id: str
    parent_id: str
    name: str
    location: str
    folder: Path | None
    models: tuple[StoredModel, ...] = ()


def list_stored_runs(
    config: TrackingConfig, workdir: Path, tag: str, value: str, run_id: str = ""
) -> tuple[StoredRun, ...]:
    """Return the pipelines' runs with a tag, and one more by its id, with the runs below them.

    Runs that were deleted in MLflow's pages are among them; those of a server are not.

    Raises:
        TrackingError: the store does not answer.
    """
    from mlflow.entities import ViewType

    with _translate_run_errors(config, workdir):
        client = connect_store(config, workdir)
        experiments = _list_experiments(client, config, workdir)
        # Behind a server a deleted run can not be freed.
        view = ViewType.ACTIVE_ONLY if config.uri.startswith("http") else ViewType.ALL

        def search_runs(condition: str) -> list[Run]:
            return read_all_pages(
                lambda token: client.search_runs(
                    experiments, condition, view, 1000, page_token=token
                )
            )

        pipelines = search_runs(f"tags.`{tag}` = '{value}'") + (
            search_runs(f"attributes.run_id = '{run_id}'") if run_id else []
        )
        below = [
            run
            for parent in pipelines
            for run in search_runs(f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
        ]
        # In the order of deletion: a stage's run is only found by its pipeline's.
        runs = {run.info.run_id: run for run in (*below, *pipelines)}
        models: dict[str, list[StoredModel]] = {}
        root = _find_removable_root(config, workdir)
        if runs:
            condition = f"source_run_id IN ({', '.join(map(repr, runs))})"
            for model in _search_models(client, experiments, condition, root):
                models.setdefault(model.run_id, []).append(model)
        return tuple(_describe_run(run, models.get(name, ()), root) for name, run in runs.items())


def list_stored_models(config: TrackingConfig, workdir: Path, name: str) -> tuple[StoredModel, ...]:
    """Return the logged models of a name.

    Raises:
        TrackingError: the store does not answer.
    """
    with _translate_run_errors(config, workdir):
        client = connect_store(config, workdir)
        experiments = _list_experiments(client, config, workdir)
        root = _find_removable_root(config, workdir)
        return tuple(_search_models(client, experiments, f"name = '{name}'", root))


def delete_run(config: TrackingConfig, workdir: Path, run: StoredRun) -> None:
    """Delete a run, its models and the files of both; killed anywhere, the same call does the rest.

    In a store behind a server only the entries are marked as deleted: the files are the server's,
    whose `mlflow gc` frees them.

    Raises:
        TrackingError: the store does not answer.
    """
    with _translate_run_errors(config, workdir):
        client = connect_store(config, workdir)
        _ignore_missing(lambda: client.delete_run(run.run_id))
        for model in run.models:
            _delete_model(client, model)
        _free_entry(client, "_hard_delete_run", run.run_id, run.location, run.folder)


def delete_model(config: TrackingConfig, workdir: Path, model: StoredModel) -> None:
    """Delete a logged model with its files, as `delete_run` does.

    Raises:
        TrackingError: the store does not answer.
    """
    with _translate_run_errors(config, workdir):
        _delete_model(connect_store(config, workdir), model)


def delete_models_of_run(
    client: MlflowClient, config: TrackingConfig, workdir: Path, experiment_id: str, run_id: str
) -> None:
    """Delete the logged models that a run made; raises what MLflow raises."""
    root = _find_removable_root(config, workdir)
    for model in client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'"):
        _delete_model(client, _describe_model(model, root))


def _list_experiments(client: MlflowClient, config: TrackingConfig, workdir: Path) -> list[str]:
    """Return the ids of the experiments that our runs are in, by these and by earlier settings."""
    now = client.get_experiment_by_name(config.experiment)
    known = {ids["experiment_id"] for ids in read_known_runs(workdir).values()}
    return sorted(known | ({str(now.experiment_id)} if now else set()))


def _search_models(
    client: MlflowClient, experiments: list[str], condition: str, root: Path | None
) -> list[StoredModel]:
    models = read_all_pages(
        lambda token: client.search_logged_models(
            experiments, condition, max_results=100, page_token=token
        )
    )
    return [_describe_model(model, root) for model in models]


def _describe_run(run: Run, models: Iterable[StoredModel], root: Path | None) -> StoredRun:
    location = run.info.artifact_uri
    return StoredRun(
        run_id=run.info.run_id,
        parent_id=run.data.tags.get("mlflow.parentRunId", ""),
        name=run.info.run_name,
        location=location,
        folder=_find_local_folder(location, run.info.run_id, root),
        models=tuple(models),
    )


def _describe_model(model: LoggedModel, root: Path | None) -> StoredModel:
    location = model.artifact_location
    return StoredModel(
        model_id=model.model_id,
        run_id=model.source_run_id or "",
        created=model.creation_timestamp / 1000,
        tags=dict(model.tags or {}),
        location=location,
        folder=_find_local_folder(location, model.model_id, root),
    )


def _find_removable_root(config: TrackingConfig, workdir: Path) -> Path | None:
    """Return the folder below which files may be removed; None for a server.

    In a copy of a work directory, the database names the files of the original.
    """
    if config.uri.startswith("http"):
        return None
    return Path("/") if config.uri else workdir.resolve()


def _find_local_folder(location: str, name: str, root: Path | None) -> Path | None:
    """Return the local folder, below a root, that holds a run's or a model's files; or None.

    Args:
        location: address of the files.
        name: the id of the run or model, by which its folder is named.
        root: None: nothing may be removed.
    """
    parsed = urlparse(location)
    path = Path(unquote(parsed.path))
    if root is None or parsed.scheme not in ("", "file") or not path.is_relative_to(root):
        return None
    return next((folder for folder in (path, *path.parents) if folder.name == name), None)


def _delete_model(client: MlflowClient, model: StoredModel) -> None:
    """Delete a logged model.

    Its files first, as one that is marked as deleted is not found again.
    """
    if hasattr(client._tracking_client.store, "_hard_delete_logged_model"):
        _delete_files(model.location, model.folder)
    _ignore_missing(lambda: client.delete_logged_model(model.model_id))
    _free_entry(client, "_hard_delete_logged_model", model.model_id, model.location, model.folder)


def _free_entry(
    client: MlflowClient, method: str, entry_id: str, location: str, folder: Path | None
) -> None:
    """Free an entry that is marked as deleted, where the store is a database.

    This is what `mlflow gc` does for a run or a model. That command itself would also free every
    experiment that was deleted in MLflow's pages.
    """
    delete = getattr(client._tracking_client.store, method, None)
    if delete is not None:
        _delete_files(location, folder)
        _ignore_missing(lambda: delete(entry_id))


def _delete_files(location: str, folder: Path | None) -> None:
    """Delete files that MLflow keeps, here or elsewhere."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    if folder is not None:
        remove_folder(folder)
    elif urlparse(location).scheme not in ("", "file"):
        get_artifact_repository(location).delete_artifacts()


def _ignore_missing(call: Callable[[], object]) -> None:
    """Call a deletion; what was deleted before is not an error."""
    from mlflow.exceptions import MlflowException

    try:
        call()
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def _translate_run_errors(
    config: TrackingConfig, workdir: Path
) -> contextlib.AbstractContextManager[None]:
    """Return the context in which an error of the store is a TrackingError."""
    return translate_store_errors(
        f"The tracking store {get_store_uri(config, workdir)} failed",
        ", and type the command again.",
    )
