"""The findings of earlier audits, in an SQLite file: only new and changed files are read again."""

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

# Code that decides what is found in a file, and what the cache holds of it.
_DECISIVE_MODULES = (
    "audit_cache",
    "checked",
    "decoding",
    "duplicates",
    "examination",
    "headers",
)


class StampedFile(NamedTuple):
    """A file to check: its path, the system's information on it if it exists, and its stamp.

    The stamp changes when the file does; it is empty for what is not a regular file.
    """

    file: ImageFile
    path: str
    info: os.stat_result | None
    stamp: str


def stamp_file(file: ImageFile) -> StampedFile:
    """Return a file with its stamp."""
    path = file.path
    try:
        info = os.stat(path)  # noqa: PTH116 - a million Path objects take longer than the call
    except OSError:
        return StampedFile(file, path, None, "")
    if not stat.S_ISREG(info.st_mode):
        return StampedFile(file, path, info, "")
    stamp = f"{info.st_size} {info.st_mtime_ns} {info.st_ctime_ns} {info.st_ino}"
    return StampedFile(file, path, info, stamp)


def open_cache(path: Path, config: DataConfig) -> sqlite3.Connection:
    """Open the cache, emptied if other code or other limits filled it or it is not a database.

    Raises:
        DatasetError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _connect_cache(path, config)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            path.unlink()
            return _connect_cache(path, config)
    except (OSError, sqlite3.OperationalError) as error:
        raise DatasetError(
            f"The audit cannot write {path} ({error})",
            expected="a folder with room that may be written",
            hint="Free some space or type --workdir with another folder",
        ) from error


def _connect_cache(path: Path, config: DataConfig) -> sqlite3.Connection:
    cache = sqlite3.connect(path, isolation_level=None)
    try:
        cache.execute("PRAGMA journal_mode=WAL")
        cache.execute("PRAGMA synchronous=NORMAL")
        rules = _digest_rules(config)
        if cache.execute("PRAGMA table_list('rules')").fetchone() and cache.execute(
            "SELECT * FROM rules"
        ).fetchall() == [(rules,)]:
            return cache
        columns = (
            "sha256 BLOB, pixel_hash BLOB, height INT, width INT, orientation INT, problem TEXT,"
            " descriptor BLOB"
        )
        cache.executescript(
            "DROP TABLE IF EXISTS rules; DROP TABLE IF EXISTS files; VACUUM; CREATE TABLE rules"
            f" (digest TEXT);CREATE TABLE files (path BLOB PRIMARY KEY, stamp TEXT, {columns})"
        )
        # Last: an incomplete cache is made again.
        cache.execute("INSERT INTO rules VALUES (?)", (rules,))
    except sqlite3.Error:
        cache.close()
        raise
    return cache


def _digest_rules(config: DataConfig) -> str:
    """Return a digest of everything that decides what is found, besides the file."""
    digest = hashlib.sha256(
        f"{tf.__version__} {config.max_pixels} {config.max_side} {config.max_file_bytes}".encode()
    )
    for name in _DECISIVE_MODULES:
        digest.update(source_digest(f"pipeline.data.{name}").encode())
    return digest.hexdigest()


def read_cached(cache: sqlite3.Connection, files: Sequence[StampedFile]) -> dict[str, ImageFacts]:
    """Return path -> facts of the files that have not changed since they were checked."""
    facts = {}
    for file in files:
        row = cache.execute(
            "SELECT * FROM files WHERE path = ? AND stamp = ?", (os.fsencode(file.path), file.stamp)
        ).fetchone()
        if row:
            sha256, pixel_hash, *others = row[2:]
            facts[file.path] = ImageFacts(sha256, int.from_bytes(pixel_hash, "little"), *others)
    return facts


def write_cached(
    cache: sqlite3.Connection, files: Sequence[StampedFile], found: Mapping[str, ImageFacts]
) -> None:
    """Write the facts of files by path.

    What is not a file or could not be read is left out, so that it is checked again next time.

    Raises:
        DatasetError: the disk is full or the file cannot be written.
    """

    def rows() -> Iterator[tuple[Any, ...]]:
        for file in files:
            facts = found.get(file.path)
            if facts and file.stamp and facts.sha256:
                yield (
                    os.fsencode(file.path),
                    file.stamp,
                    facts.sha256,
                    facts.pixel_hash.to_bytes(8, "little"),
                    facts.height,
                    facts.width,
                    facts.orientation,
                    facts.problem,
                    facts.descriptor,
                )

    try:
        cache.execute("BEGIN")
        cache.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows())
        cache.execute("COMMIT")
    except sqlite3.OperationalError as error:
        raise DatasetError(
            f"The audit cannot write its cache ({error})",
            expected="room on the disk of the work directory",
            hint="Free some space and type the same command again",
        ) from error
