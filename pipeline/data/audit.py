"""Which files are images that training can use: each is read, judged by its header and decoded."""

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
from pipeline.data.audit_cache import StampedFile, open_cache, recall, remember, stamp_file
from pipeline.data.checked import CheckedFile, ImageFacts, ImageFile, Progress
from pipeline.data.examination import examine_header, examine_images
from pipeline.data.shards import count_processors
from pipeline.errors import DatasetError

# Files that are looked at together: enough of them to keep all processors busy, and no more bytes
# than fit easily.
_WINDOW, _WINDOW_BYTES = 256, 64_000_000


_READ_TOGETHER = 32  # handing one file to a thread takes as long as reading it


@dataclass(frozen=True)
class _Window:
    """Files that are looked at together.

    What is known of some by path, and what is being found of others.
    """

    files: Sequence[StampedFile]
    recalled: Mapping[str, ImageFacts]
    looking: Future[dict[str, ImageFacts]]


def audit_files(
    entries: Sequence[ImageFile], memory: Path, config: DataConfig, progress: Progress
) -> list[CheckedFile]:
    """Look at every file that is not known yet; the order stays.

    Args:
        entries: the files.
        memory: an SQLite file that remembers what was found, so that the next audit reads only
            files that are new or changed.
        config: what is too large.
        progress: called with files done, files in all and what is going on.

    Raises:
        DatasetError: the memory cannot be written.
    """
    checked: list[CheckedFile] = []
    read = bad = 0
    # Neither reading nor decoding holds Python's lock; while one window is prepared or written
    # down, two others are decoded.
    with (
        closing(open_cache(memory, config)) as known,
        ThreadPoolExecutor(count_processors()) as readers,
        ThreadPoolExecutor(2) as decoders,
    ):
        begun = (_begun(files, known, config, readers, decoders) for files in _windows(entries))
        waiting = deque(itertools.islice(begun, 2))
        while waiting:
            waiting.extend(itertools.islice(begun, 1))
            window = waiting.popleft()
            new = window.looking.result()
            remember(known, window.files, new)
            found = [
                CheckedFile(file.entry, new.get(file.path) or window.recalled[file.path])
                for file in window.files
            ]
            checked.extend(found)
            read, bad = read + len(new), bad + sum(bool(item.problem) for item in found)
            progress(
                len(checked),
                len(entries),
                f"looking at files: {read:,} read, {len(checked) - read:,} known, {bad:,} unusable",
            )
    return checked


def _windows(entries: Sequence[ImageFile]) -> Iterator[list[StampedFile]]:
    """Yield the files in order, some at a time."""
    files: list[StampedFile] = []
    size = 0
    for entry in entries:
        files.append(stamp_file(entry))
        info = files[-1].info
        size += info.st_size if info else 0
        if len(files) == _WINDOW or size >= _WINDOW_BYTES:
            yield files
            files, size = [], 0
    if files:
        yield files


def _begun(
    files: Sequence[StampedFile],
    known: sqlite3.Connection,
    config: DataConfig,
    readers: ThreadPoolExecutor,
    decoders: ThreadPoolExecutor,
) -> _Window:
    """Recall what is known of a window's files and begin to look at the others."""
    recalled = recall(known, files)
    new = [file for file in files if file.path not in recalled]
    reading = [
        readers.submit(_read_all, new[start : start + _READ_TOGETHER], config)
        for start in range(0, len(new), _READ_TOGETHER)
    ]
    return _Window(files, recalled, decoders.submit(examine_images, reading, config))


def _read_all(
    files: Sequence[StampedFile], config: DataConfig
) -> list[tuple[str, ImageFacts, bytes]]:
    """Return the path of each file, what is known of it without decoding, and the bytes of an image."""
    return [(file.path, *_read(file, config)) for file in files]


def _read(file: StampedFile, config: DataConfig) -> tuple[ImageFacts, bytes]:
    """Read a file that is no pipe and not too large."""
    if file.info and not file.stamp:  # opening a pipe would wait for ever
        return ImageFacts(problem="not a file"), b""
    if file.info and file.info.st_size > config.max_file_bytes:
        return (
            ImageFacts(
                problem=f"{file.info.st_size:,} bytes are more than {config.max_file_bytes:,}"
            ),
            b"",
        )
    try:
        with open(file.path, "rb", buffering=0) as opened:  # noqa: PTH123 - see above
            encoded = opened.readall()
    except OSError as error:
        return ImageFacts(problem=error.strerror or "cannot be read"), b""
    facts = examine_header(encoded, config)
    return facts, b"" if facts.problem else encoded


def require_enough_usable(checked: Sequence[CheckedFile], config: DataConfig) -> None:
    """Raise a DatasetError when there is no image at all, or too large a share of the files cannot be used."""
    bad = [item for item in checked if item.problem]
    if not checked or len(bad) == len(checked):
        reasons = f": {_first(bad)}" if bad else ""
        raise DatasetError(
            f"There is no usable image in {config.dataset}. Expected JPEG, PNG, BMP, GIF or WebP"
            f" files in one folder for each class. Received {len(checked)} such files, {len(bad)}"
            f" unusable{reasons}. Check --dataset."
        )
    if len(bad) > config.max_quarantined_fraction * len(checked):
        needed = -(-len(bad) * 100 // len(checked)) / 100  # two decimals, rounded up
        raise DatasetError(
            f"{len(bad)} of {len(checked)} files cannot be used: {_first(bad)}. Expected at most"
            f" {config.max_quarantined_fraction:.1%}. Mend or remove them, or type --set"
            f" data.max_quarantined_fraction={needed:g}."
        )


def _first(bad: Sequence[CheckedFile]) -> str:
    """Name the first bad files and what is wrong with them."""
    shown = "; ".join(f"{item.entry.key!r:.120} ({item.problem})" for item in bad[:5])
    return f"{shown}{'; ...' if len(bad) > 5 else ''}"
