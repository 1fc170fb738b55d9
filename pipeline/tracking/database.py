"""MLflow's own database in the work directory: made once, and migrated by MLflow's own command."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from filelock import FileLock

from pipeline.errors import TrackingError
from pipeline.files import write_text, writing

_ATTEMPTS = 3  # to make an empty database


def get_sqlite_uri(database: Path) -> str:
    """Return the address by which MLflow opens a database file."""
    return f"sqlite:///{database.resolve()}"


def make_database(workdir: Path) -> None:
    """Make `mlflow.db` once, and migrate it when MLflow is another version.

    Two processes that do so at a time would leave it broken, so a lock is held.

    Raises:
        TrackingError: it cannot be migrated, such as one that a later version made.
    """
    database, note = workdir / "mlflow.db", workdir / "mlflow.db.version"
    version = metadata.version("mlflow")
    if database.exists() and _read_version(note) == version:
        return
    with FileLock(workdir / ".mlflow.lock"):
        if not database.exists():
            _make_empty_database(database)
        elif _read_version(note) != version and not _migrate_database(
            database, _read_version(note) or "earlier", version
        ):
            return
        write_text(note, version)


def _read_version(note: Path) -> str:
    with contextlib.suppress(OSError):
        return note.read_text(encoding="utf-8")
    return ""


def _make_empty_database(database: Path) -> None:
    """Make the tables; again where MLflow made one twice at once, as it may under load."""
    from sqlalchemy.exc import OperationalError

    for attempt in range(_ATTEMPTS):
        try:
            _make_tables(database)
        except OperationalError:
            if attempt == _ATTEMPTS - 1:
                raise
        else:
            return


def _make_tables(database: Path) -> None:
    import mlflow

    with writing(database) as temporary:
        mlflow.MlflowClient(get_sqlite_uri(temporary)).search_experiments(max_results=1)
        with contextlib.closing(sqlite3.connect(temporary)) as connection:
            # Readers, such as the UI, do not block the writer.
            connection.execute("PRAGMA journal_mode=WAL")


def _migrate_database(database: Path, before: str, version: str) -> bool:
    """Bring a database of another version of MLflow up to date by MLflow's own command.

    A copy stays beside it if that changed anything.

    Returns:
        Whether the file is a database; MLflow itself reports the error of one that is not.
    """
    backup = database.with_name(f"{database.name}.{before}.backup")
    try:
        with (
            contextlib.closing(sqlite3.connect(database)) as live,
            contextlib.closing(sqlite3.connect(backup)) as copy,
        ):
            revision = _read_revision(live)
            live.backup(copy)
    except sqlite3.DatabaseError:
        backup.unlink(missing_ok=True)
        return False
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", get_sqlite_uri(database)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    with contextlib.closing(sqlite3.connect(database)) as live:
        unchanged = _read_revision(live) == revision
    if done.returncode:
        output = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = output[-1] if output else "no error message"
        raise TrackingError(
            f"MLflow {version} cannot use {database}, which MLflow {before} kept ({reason[:150]})",
            expected="a database of the same or of an earlier version",
            hint=f"Install MLflow {before} again, or name another --workdir; the unchanged database"
            f" is in {backup}",
        )
    if unchanged:
        backup.unlink()
    return True


def _read_revision(connection: sqlite3.Connection) -> object:
    return connection.execute("SELECT version_num FROM alembic_version").fetchone()
