"""The tracking store: its address, connection, experiment, pages and server."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.tracking import TrackingConfig
from pipeline.errors import ConfigError, TrackingError
from pipeline.tracking.database import get_sqlite_uri, make_database

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_UI = "http://127.0.0.1:5000"
_VIEW = "?workflowType=machine_learning"  # MLflow's default view is for traces of language models


def get_store_uri(config: TrackingConfig, workdir: Path) -> str:
    """Return the tracking store's address: the setting, or a database in the work directory."""
    return config.uri or get_sqlite_uri(workdir / "mlflow.db")


def require_nameable_workdir(config: TrackingConfig, workdir: Path) -> None:
    """Refuse a work directory that an address cannot name, as MLflow would use another folder.

    Raises:
        ConfigError: the path holds a character that has a meaning in an address.
    """
    path = str(workdir.resolve())
    if config.enabled and any(character in path for character in "?#%"):
        raise ConfigError(
            f"MLflow cannot keep its files in {path}",
            expected="a path without the characters ? # %",
            hint="Name another folder with --workdir, or type --set tracking.enabled=no",
        )


def get_run_url(config: TrackingConfig, experiment_id: str, run_id: str) -> str:
    """Return the page of a run, on the store's own server or on that of `alexnet ui`."""
    return f"{_get_server(config)}/#/experiments/{experiment_id}/runs/{run_id}{_VIEW}"


def get_experiment_url(config: TrackingConfig, experiment_id: str, server: str = "") -> str:
    """Return the page with the experiment's table of runs."""
    return f"{server or _get_server(config)}/#/experiments/{experiment_id}/runs{_VIEW}"


def _get_server(config: TrackingConfig) -> str:
    return config.uri.rstrip("/") if config.uri.startswith("http") else DEFAULT_UI


def connect_store(config: TrackingConfig, workdir: Path) -> MlflowClient:
    """Return a client of the store; its database is made and migrated by the first caller."""
    # A dead server must not hold a process for minutes: MLflow's default is 7 retries with growing
    # pauses.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    # Four lines a run, into our own output.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import logging
    import warnings

    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # About type hints of MLflow's own wrappers; color codes stand before the text.
    warnings.filterwarnings("ignore", message=".*(type hint|Add type hints)", category=UserWarning)

    uri = get_store_uri(config, workdir)
    if not config.uri:
        make_database(workdir)
    return mlflow.MlflowClient(uri)


def get_or_create_experiment(client: MlflowClient, config: TrackingConfig, workdir: Path) -> str:
    """Return the experiment's id; a new one keeps its artifacts in the work directory.

    Raises:
        TrackingError: the experiment was deleted in MLflow.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(config.experiment)
    if found is None:
        # A server decides itself where its files go; a database of our own, or of the user's,
        # cannot.
        location = (
            None if config.uri.startswith("http") else (workdir.resolve() / "artifacts").as_uri()
        )
        with contextlib.suppress(MlflowException):  # another process may make it at this moment
            return str(client.create_experiment(config.experiment, artifact_location=location))
        found = client.get_experiment_by_name(config.experiment)
    if found is None or found.lifecycle_stage != "active":
        raise TrackingError(
            f"The experiment `{config.experiment}` was deleted in MLflow",
            hint="Restore it there or set tracking.experiment",
        )
    return str(found.experiment_id)


def open_experiment(config: TrackingConfig, workdir: Path) -> str:
    """Make sure that the store and the experiment exist, and return the experiment's id.

    Raises:
        TrackingError: the store does not answer.
    """
    try:
        return get_or_create_experiment(connect_store(config, workdir), config, workdir)
    except Exception as error:
        raise TrackingError(
            f"The tracking store {get_store_uri(config, workdir)} does not answer"
            f" ({type(error).__name__}: {str(error)[:150]})",
            expected="a running MLflow server or a writable folder",
            hint="Check tracking.uri",
        ) from error


@contextlib.contextmanager
def translate_store_errors(subject: str, hint: str) -> Iterator[None]:
    """Turn an error of MLflow, of its database or of the system into a TrackingError.

    Args:
        subject: what failed, as the beginning of the sentence.
        hint: what to do, after `Check tracking.uri`.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise TrackingError(
            f"{subject} ({' '.join(str(error).split())[:150]})",
            expected="a running MLflow server or a writable folder",
            hint=f"Check tracking.uri{hint}",
        ) from error


def read_all_pages(read_page: Callable[[str | None], Any]) -> list[Any]:
    """Return the entries of all pages of a search in MLflow.

    Args:
        read_page: returns MLflow's PagedList for a page token.
    """
    found, token = list[Any](), None
    while True:
        page = read_page(token)
        found, token = [*found, *page], page.token
        if not token:
            return found


def build_server_command(
    config: TrackingConfig, workdir: Path, port: int
) -> tuple[list[str], dict[str, str]]:
    """Return the command and environment of an MLflow server that only this machine reaches."""
    # Exact names: MLflow's default also accepts hosts that only look private.
    hosts = f"localhost:{port},127.0.0.1:{port}"
    command = [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", get_store_uri(config, workdir)),
        *("--default-artifact-root", (workdir.resolve() / "artifacts").as_uri()),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--allowed-hosts", hosts, "--workers", "1"),
    ]
    quiet = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        "PYTHONWARNINGS": "ignore",
    }
    return command, {**os.environ, **quiet}
