"""The database of MLflow in a work directory: made and migrated once."""

import contextlib
import sqlite3
from importlib import metadata

import pytest

from pipeline.config.tracking import TrackingConfig
from pipeline.errors import TrackingError
from pipeline.tracking import database
from pipeline.tracking.store import connect_store, open_experiment
from tests.tracking.recording import client, runs


def older_store(workdir):
    """A work directory whose database is as MLflow kept it some migrations ago, with a run in it;
    returns that revision."""
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    from pipeline.tracking.database import get_sqlite_uri

    client(workdir).create_run(open_experiment(TrackingConfig(), workdir), run_name="kept")
    config = _get_alembic_config(get_sqlite_uri(workdir / "mlflow.db"))
    script = ScriptDirectory.from_config(config)
    # The newest migration that can be taken back without losing a column that runs need is enough:
    # any older revision is refused.
    command.downgrade(config, "-1")
    with contextlib.closing(sqlite3.connect(workdir / "mlflow.db")) as connection:
        (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    assert revision != script.get_current_head()
    (workdir / "mlflow.db.version").write_text("3.16.0")
    return revision


@pytest.mark.slow
def test_a_database_of_an_earlier_mlflow_is_migrated_and_a_copy_stays(workdir):
    revision = older_store(workdir)
    assert "kept" in runs(workdir)
    assert (workdir / "mlflow.db.version").read_text() == metadata.version("mlflow")
    with contextlib.closing(sqlite3.connect(workdir / "mlflow.db.3.16.0.backup")) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (
            revision,
        )
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (1,)
    connect_store(TrackingConfig(), workdir)  # and that once
    assert [path.name for path in workdir.glob("*.backup")] == ["mlflow.db.3.16.0.backup"]


@pytest.mark.slow
def test_a_database_that_needs_no_migration_leaves_no_copy(workdir):
    (workdir / "mlflow.db.version").unlink()
    connect_store(TrackingConfig(), workdir)
    assert list(workdir.glob("*.backup")) == []
    assert (workdir / "mlflow.db.version").read_text() == metadata.version("mlflow")


@pytest.mark.slow
def test_a_database_of_a_later_mlflow_is_refused_and_stays_as_it_was(workdir):
    with contextlib.closing(sqlite3.connect(workdir / "mlflow.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    (workdir / "mlflow.db.version").write_text("99.0")
    with pytest.raises(TrackingError, match=r"which MLflow 99.0 kept .* Install MLflow 99.0 again"):
        connect_store(TrackingConfig(), workdir)
    assert (workdir / "mlflow.db.99.0.backup").exists()
    assert (workdir / "mlflow.db.version").read_text() == "99.0"


def test_tables_that_mlflow_makes_twice_at_once_are_made_again(tmp_path, monkeypatch):
    from sqlalchemy.exc import OperationalError

    real, calls = database._make_tables, []

    def fail_once(path):
        calls.append(path)
        if len(calls) == 1:
            raise OperationalError("CREATE TABLE webhooks", {}, Exception("already exists"))
        real(path)

    monkeypatch.setattr(database, "_make_tables", fail_once)
    database.make_database(tmp_path)
    assert len(calls) == 2
    assert (tmp_path / "mlflow.db").is_file()
