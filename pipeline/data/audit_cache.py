"""What earlier audits found, kept in an SQLite file: only new and changed files are read again."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from pipeline.config.data import DataConfig
from pipeline.data.checked import ImageFacts, ImageFile
from pipeline.engine.fingerprint import source_digest
from pipeline.errors import DatasetError


class StampedFile(NamedTuple):
    """A file that is looked at: where it is, what the system says of it if it is there, and what changes when the file does."""

    entry: ImageFile
    path: str
    info: os.stat_result | None
    stamp: str


def stamp_file(entry: ImageFile) -> StampedFile:
    """Return a file with what changes when the file does."""
    path = entry.path
    try:
        info = os.stat(path)  # noqa: PTH116 - a million Path objects take longer than the call
    except OSError:
        return StampedFile(entry, path, None, "")
    regular = stat.S_ISREG(info.st_mode)
    return StampedFile(
        entry,
        path,
        info,
        f"{info.st_size} {info.st_mtime_ns} {info.st_ctime_ns} {info.st_ino}" if regular else "",
    )


def open_cache(memory: Path, config: DataConfig) -> sqlite3.Connection:
    """Open the memory; what was found by other code or with other limits, and what is no memory at all, is forgotten."""
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _connected(memory, config)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            memory.unlink()
            return _connected(memory, config)
    except (OSError, sqlite3.OperationalError) as error:
        raise DatasetError(
            f"The audit cannot write {memory} ({error}). Expected a folder with room that may be"
            " written. Free some space or type --workdir with another folder."
        ) from error


def _connected(memory: Path, config: DataConfig) -> sqlite3.Connection:
    known = sqlite3.connect(memory, isolation_level=None)
    try:
        known.execute("PRAGMA journal_mode=WAL")
        known.execute("PRAGMA synchronous=NORMAL")
        rules = _rules(config)
        if known.execute("PRAGMA table_list('rules')").fetchone() and known.execute(
            "SELECT * FROM rules"
        ).fetchall() == [(rules,)]:
            return known
        columns = (
            "sha256 BLOB, pixels BLOB, height INT, width INT, orientation INT, problem TEXT, look"
            " BLOB"
        )
        known.executescript(
            "DROP TABLE IF EXISTS rules; DROP TABLE IF EXISTS files; VACUUM; CREATE TABLE rules"
            f" (digest TEXT);CREATE TABLE files (path BLOB PRIMARY KEY, stamp TEXT, {columns})"
        )
        known.execute(
            "INSERT INTO rules VALUES (?)", (rules,)
        )  # last: what is half made is made again
    except sqlite3.Error:
        known.close()
        raise
    return known


def _rules(config: DataConfig) -> str:
    """Return a digest of everything that decides what is found, besides the file."""
    digest = hashlib.sha256(
        f"{tf.__version__} {config.max_pixels} {config.max_side} {config.max_file_bytes}".encode()
    )
    for name in ("decoding", "duplicates", "examination", "headers"):
        digest.update(source_digest(f"pipeline.data.{name}").encode())
    return digest.hexdigest()


def recall(known: sqlite3.Connection, files: Sequence[StampedFile]) -> dict[str, ImageFacts]:
    """Return path -> facts of the files that have not changed since they were looked at."""
    facts = {}
    for file in files:
        row = known.execute(
            "SELECT * FROM files WHERE path = ? AND stamp = ?", (os.fsencode(file.path), file.stamp)
        ).fetchone()
        if row:
            sha256, pixels, *others = row[2:]
            facts[file.path] = ImageFacts(sha256, int.from_bytes(pixels, "little"), *others)
    return facts


def remember(
    known: sqlite3.Connection, files: Sequence[StampedFile], found: Mapping[str, ImageFacts]
) -> None:
    """Write down what was found of files.

    What is not a file or could not be read is looked at again next time.
    """

    def rows() -> Iterator[tuple[Any, ...]]:
        for file in files:
            facts = found.get(file.path)
            if facts and file.stamp and facts.sha256:
                more = (facts.height, facts.width, facts.orientation, facts.problem, facts.look)
                yield (
                    os.fsencode(file.path),
                    file.stamp,
                    facts.sha256,
                    facts.pixels.to_bytes(8, "little"),
                    *more,
                )

    try:
        known.execute("BEGIN")
        known.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows())
        known.execute("COMMIT")
    except sqlite3.OperationalError as error:
        raise DatasetError(
            f"The audit cannot write its memory ({error}). Expected room on the disk of the work"
            " directory. Free some space and type the same command again."
        ) from error
