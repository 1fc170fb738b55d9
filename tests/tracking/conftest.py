"""A work directory with a migrated store."""

import shutil

import pytest

from pipeline.config.tracking import TrackingConfig
from pipeline.tracking.registry import Registry
from pipeline.tracking.store import open_experiment


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A work directory whose MLflow database is migrated: making one takes seconds, copying it
    none."""
    workdir = tmp_path_factory.mktemp("store")
    open_experiment(TrackingConfig(), workdir)
    return workdir


@pytest.fixture
def workdir(empty_store, tmp_path):
    for file in empty_store.glob("mlflow.db*"):  # with its write-ahead log
        shutil.copy(file, tmp_path / file.name)
    return tmp_path


@pytest.fixture
def registry(workdir):
    return Registry("alexnet", TrackingConfig(), workdir)
