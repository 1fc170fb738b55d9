"""The SQLite file of a ledger: its tables, its transactions and its errors."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.engine.workdir import unwritable
from pipeline.errors import BusyError, ConfigError, PipelineError
from pipeline.files import writing

_BUSY_SECONDS = 30.0  # that SQLite waits for another process's transaction
# Entry N upgrades a file of version N to N + 1. Entries are never changed, as such files exist.
_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE schedules (
            name TEXT PRIMARY KEY,
            cron TEXT NOT NULL, every_seconds INTEGER NOT NULL, timezone TEXT NOT NULL,
            jitter_seconds INTEGER NOT NULL,
            arguments TEXT NOT NULL, created INTEGER NOT NULL,
            paused INTEGER NOT NULL DEFAULT 0,
            recorded_until INTEGER NOT NULL
        )""",
        """CREATE TABLE scheduled_runs (
            schedule TEXT NOT NULL, run_time INTEGER NOT NULL,
            kind TEXT NOT NULL CHECK (kind IN ('scheduled', 'manual')),
            state TEXT NOT NULL CHECK (
                state IN ('pending', 'claimed', 'ran', 'coalesced', 'skipped', 'failed')
            ),
            why TEXT NOT NULL DEFAULT '', outcome TEXT NOT NULL DEFAULT '',
            version TEXT NOT NULL DEFAULT '', run_id TEXT NOT NULL DEFAULT '',
            run_url TEXT NOT NULL DEFAULT '', page TEXT NOT NULL DEFAULT '',
            attempts INTEGER NOT NULL DEFAULT 0, started REAL, ended REAL, heartbeat REAL,
            owner TEXT NOT NULL DEFAULT '', notification TEXT NOT NULL DEFAULT '',
            PRIMARY KEY (schedule, run_time)
        ) WITHOUT ROWID""",
        "CREATE INDEX unfinished_scheduled_runs ON scheduled_runs (run_time)"
        " WHERE state IN ('pending', 'claimed')",
        "CREATE INDEX unnotified_scheduled_runs ON scheduled_runs (run_time)"
        " WHERE notification = '' AND state IN ('ran', 'failed')",
        "CREATE INDEX latest_scheduled_runs ON scheduled_runs (run_time)",
    ),
)


@dataclass(frozen=True)
class LedgerFile:
    """A ledger's file, which the first change makes.

    One connection for each call: threads and processes may share it.
    """

    path: Path

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection | None]:
        """Open the file for queries; yield None where there is no file yet."""
        with self._translating_errors():
            version = self._version()
        if 0 < version < len(_MIGRATIONS):
            with self.writing():
                pass
        with self._translating_errors():
            if version == 0:
                yield None
                return
            with contextlib.closing(self._connect("rw")) as file:
                yield file

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Open the file for one immediate transaction: all of it is written, or nothing."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.path.parent, error) from error
        with self._translating_errors(), contextlib.closing(self._connect("rwc")) as file:
            file.execute("BEGIN IMMEDIATE")
            try:
                self._upgrade(file)
                yield file
                file.execute("COMMIT")
            finally:
                if file.in_transaction:
                    file.execute("ROLLBACK")

    def _connect(self, mode: str) -> sqlite3.Connection:
        file = sqlite3.connect(
            f"{self.path.resolve().as_uri()}?mode={mode}",
            uri=True,
            timeout=_BUSY_SECONDS,
            isolation_level=None,
        )
        file.row_factory = sqlite3.Row
        file.execute("PRAGMA synchronous = FULL")
        return file

    def _version(self) -> int:
        """Return the version of the file; 0 where it is missing or empty.

        Raises:
            ConfigError: a newer version of this program, or another program, wrote it.
        """
        if not self.path.exists():
            return 0
        with contextlib.closing(self._connect("rw")) as file:
            return self._checked_version(file)

    def _checked_version(self, file: sqlite3.Connection) -> int:
        version = int(file.execute("PRAGMA user_version").fetchone()[0])
        if version > len(_MIGRATIONS):
            raise ConfigError(
                f"The ledger {self.path} is of version {version}, which a newer alexnet wrote",
                expected=f"{len(_MIGRATIONS)} at most",
                hint="Upgrade this program, or name another folder with --workdir",
            )
        if version == 0 and file.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise ConfigError(
                f"The file {self.path} was written by another program",
                expected="a ledger of schedules",
                hint="Name another folder with --workdir",
            )
        return version

    def _upgrade(self, file: sqlite3.Connection) -> None:
        """Upgrade the file to the version of this program, within the open transaction.

        A copy of the older file is kept beside it.
        """
        version = self._checked_version(file)
        if 0 < version < len(_MIGRATIONS):
            self._back_up(version)
        for step in _MIGRATIONS[version:]:
            for statement in step:
                file.execute(statement)
        if version < len(_MIGRATIONS):
            file.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")

    def _back_up(self, version: int) -> None:
        """Copy the file as it was before the open transaction; an existing copy is complete."""
        with (
            writing(self.path.with_name(f"{self.path.name}.v{version}.backup")) as temporary,
            contextlib.closing(self._connect("rw")) as source,
            contextlib.closing(sqlite3.connect(temporary)) as copy,
        ):
            source.backup(copy)

    @contextlib.contextmanager
    def _translating_errors(self) -> Iterator[None]:
        """Raise errors of SQLite as errors of this package."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            translated = _translate_error(self.path, error)
            if translated is None:
                raise
            raise translated from error


def _translate_error(path: Path, error: sqlite3.DatabaseError) -> PipelineError | None:
    """Return the error of this package for an error of SQLite; None for a bug of this package."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return BusyError(
            f"The ledger {path} is locked by another process",
            expected=f"it free within {_BUSY_SECONDS:.0f} s",
            hint="Type the command again",
        )
    if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")) or "no such" in str(error):
        return ConfigError(
            f"The ledger {path} is damaged ({error})",
            expected="a file that alexnet wrote",
            hint="Put a copy in its place, or move it away and add the schedules again; the"
            " history is then lost",
        )
    if name.startswith(
        ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")
    ):
        return PipelineError(
            f"The ledger {path} cannot be read or written ({error})",
            expected="room on its disk, and write permission",
            hint="Correct that and type the command again; nothing is lost",
        )
    return None
