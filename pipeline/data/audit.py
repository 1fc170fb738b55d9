"""Find which files are images that training can use.

batch the files -> recall the facts of unchanged ones -> read the others -> decode them together
                                                               -> write their facts to the cache
"""

from __future__ import annotations

import itertools
import sqlite3
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.data import DataConfig
from pipeline.data.audit_cache import (
    StampedFile,
    open_cache,
    read_cached,
    stamp_file,
    write_cached,
)
from pipeline.data.checked import CheckedFile, ImageFacts, ImageFile, IngestProgress
from pipeline.data.examination import ReadFile, examine_header, examine_images
from pipeline.data.shards import count_processors
from pipeline.errors import DatasetError

# Files of a batch: enough to keep all processors busy, and no more bytes than fit easily.
_BATCH_FILES, _BATCH_BYTES = 256, 64_000_000
_FILES_PER_TASK = 32  # handing one file to a thread takes as long as reading it


@dataclass(frozen=True)
class _AuditBatch:
    """Files that are checked together: the cached facts by path, and the facts to come."""

    files: Sequence[StampedFile]
    cached: Mapping[str, ImageFacts]
    examined: Future[dict[str, ImageFacts]]


def audit_files(
    files: Sequence[ImageFile], cache_path: Path, config: DataConfig, progress: IngestProgress
) -> list[CheckedFile]:
    """Check every file that is not in the cache; the order stays.

    Args:
        files: the files.
        cache_path: an SQLite file with the facts of earlier audits, so that the next audit reads
            only files that are new or changed.
        config: what is too large.
        progress: called with files done, files in all and what is being done.

    Raises:
        DatasetError: the cache cannot be written.
    """
    checked: list[CheckedFile] = []
    read = unusable = 0
    # Neither reading nor decoding holds Python's lock; while one batch is prepared or written, two
    # others are decoded.
    with (
        closing(open_cache(cache_path, config)) as cache,
        ThreadPoolExecutor(count_processors()) as readers,
        ThreadPoolExecutor(2) as decoders,
    ):
        started = (
            _start_batch(batch, cache, config, readers, decoders) for batch in _batch_files(files)
        )
        waiting = deque(itertools.islice(started, 2))
        while waiting:
            waiting.extend(itertools.islice(started, 1))
            batch = waiting.popleft()
            new = batch.examined.result()
            write_cached(cache, batch.files, new)
            found = [
                CheckedFile(stamped.file, new.get(stamped.path) or batch.cached[stamped.path])
                for stamped in batch.files
            ]
            checked.extend(found)
            read += len(new)
            unusable += sum(bool(item.problem) for item in found)
            progress(
                len(checked),
                len(files),
                f"checking files: {read:,} read, {len(checked) - read:,} known,"
                f" {unusable:,} unusable",
            )
    return checked


def _batch_files(files: Sequence[ImageFile]) -> Iterator[list[StampedFile]]:
    """Yield the files in order, some at a time."""
    batch: list[StampedFile] = []
    size = 0
    for file in files:
        batch.append(stamp_file(file))
        info = batch[-1].info
        size += info.st_size if info else 0
        if len(batch) == _BATCH_FILES or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _start_batch(
    files: Sequence[StampedFile],
    cache: sqlite3.Connection,
    config: DataConfig,
    readers: ThreadPoolExecutor,
    decoders: ThreadPoolExecutor,
) -> _AuditBatch:
    """Read the cached facts of a batch and begin to examine the other files."""
    cached = read_cached(cache, files)
    new = [file for file in files if file.path not in cached]
    reading = [
        readers.submit(_read_files, new[start : start + _FILES_PER_TASK], config)
        for start in range(0, len(new), _FILES_PER_TASK)
    ]
    return _AuditBatch(files, cached, decoders.submit(_examine_read, reading, config))


def _examine_read(
    reading: Sequence[Future[list[ReadFile]]], config: DataConfig
) -> dict[str, ImageFacts]:
    return examine_images([read for future in reading for read in future.result()], config)


def _read_files(files: Sequence[StampedFile], config: DataConfig) -> list[ReadFile]:
    return [_read_file(file, config) for file in files]


def _read_file(file: StampedFile, config: DataConfig) -> ReadFile:
    """Read a file, unless it is a pipe or too large, and examine its header."""
    if file.info and not file.stamp:  # opening a pipe would wait for ever
        return ReadFile(file.path, ImageFacts(problem="not a file"))
    if file.info and file.info.st_size > config.max_file_bytes:
        problem = f"{file.info.st_size:,} bytes are more than {config.max_file_bytes:,}"
        return ReadFile(file.path, ImageFacts(problem=problem))
    try:
        # A million Path objects take longer than opening.
        with open(file.path, "rb", buffering=0) as opened:  # noqa: PTH123
            encoded = opened.readall()
    except OSError as error:
        return ReadFile(file.path, ImageFacts(problem=error.strerror or "cannot be read"))
    facts = examine_header(encoded, config)
    return ReadFile(file.path, facts, b"" if facts.problem else encoded)


def require_enough_usable(checked: Sequence[CheckedFile], config: DataConfig) -> None:
    """Raise a DatasetError for no usable image, or too large a fraction of unusable files."""
    unusable = [item for item in checked if item.problem]
    if not checked or len(unusable) == len(checked):
        reasons = f": {_name_first(unusable)}" if unusable else ""
        raise DatasetError(
            f"There is no usable image in {config.dataset}",
            expected="JPEG, PNG, BMP, GIF or WebP files in one folder for each class",
            received=f"{len(checked)} such files, {len(unusable)} unusable{reasons}",
            hint="Check --dataset",
        )
    if len(unusable) > config.max_quarantined_fraction * len(checked):
        needed = -(-len(unusable) * 100 // len(checked)) / 100  # two decimals, rounded up
        raise DatasetError(
            f"{len(unusable)} of {len(checked)} files cannot be used: {_name_first(unusable)}",
            expected=f"at most {config.max_quarantined_fraction:.1%}",
            hint=(
                f"Repair or remove them, or type --set data.max_quarantined_fraction={needed:g} to"
                " leave them out"
            ),
        )


def _name_first(unusable: Sequence[CheckedFile]) -> str:
    """Return the first unusable files, each with its problem."""
    shown = "; ".join(f"{item.file.key!r:.120} ({item.problem})" for item in unusable[:5])
    return f"{shown}{'; ...' if len(unusable) > 5 else ''}"
