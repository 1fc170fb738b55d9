"""Which files are images that training can use.

Every file is read, judged by its header, and decoded once by training's own decoder.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import sqlite3
import stat
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from pipeline.config.data import DataConfig
from pipeline.data.decoding import decode, orientation_of, reason_of, require_usable
from pipeline.data.duplicates import THUMBNAIL_SIDE, describe
from pipeline.data.listing import Entry
from pipeline.data.source import fixed_options
from pipeline.errors import DatasetError

Progress = Callable[[int, int, str], None]
# Files that are looked at together: enough of them to keep all processors busy, and no more bytes
# than fit easily.
_WINDOW, _WINDOW_BYTES = 256, 64_000_000
_READ_TOGETHER = 32  # handing one file to a thread takes as long as reading it


@dataclass(frozen=True, slots=True)
class Facts:
    """What one look at a file's bytes says.

    `sha256` is that of the bytes; `pixels` a 64-bit fingerprint of the decoded image and its shape.
    `height` and `width` are those of the upright image, `orientation` is EXIF's. `problem` says why
    the file cannot be used, or nothing. `look` is a `duplicates.LOOK` as bytes.
    """

    sha256: bytes = b""
    pixels: int = 0
    height: int = 0
    width: int = 0
    orientation: int = 1
    problem: str = ""
    look: bytes = b""


@dataclass(frozen=True, slots=True)
class Checked:
    """One file and what was found."""

    entry: Entry
    facts: Facts

    @property
    def problem(self) -> str:
        """Why the file cannot be used, or nothing."""
        return self.facts.problem


def audit(
    entries: Sequence[Entry], memory: Path, config: DataConfig, progress: Progress
) -> list[Checked]:
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
    checked: list[Checked] = []
    read = bad = 0
    # Neither reading nor decoding holds Python's lock; while one window is prepared or written
    # down, two others are decoded.
    with (
        closing(_opened(memory, config)) as known,
        ThreadPoolExecutor(_processors()) as readers,
        ThreadPoolExecutor(2) as decoders,
    ):
        begun = (_begun(files, known, config, readers, decoders) for files in _windows(entries))
        waiting = deque(itertools.islice(begun, 2))
        while waiting:
            waiting.extend(itertools.islice(begun, 1))
            window = waiting.popleft()
            new = window.looking.result()
            _remember(known, window.files, new)
            found = [
                Checked(file.entry, new.get(file.path) or window.recalled[file.path])
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


def _processors() -> int:
    return len(os.sched_getaffinity(0))


class _File(NamedTuple):
    """A file that is looked at: where it is, what the system says of it if it is there, and what changes when the file does."""

    entry: Entry
    path: str
    info: os.stat_result | None
    stamp: str


@dataclass(frozen=True)
class _Window:
    """Files that are looked at together.

    What is known of some by path, and what is being found of others.
    """

    files: Sequence[_File]
    recalled: Mapping[str, Facts]
    looking: Future[dict[str, Facts]]


def _windows(entries: Sequence[Entry]) -> Iterator[list[_File]]:
    """Yield the files in order, some at a time."""
    files: list[_File] = []
    size = 0
    for entry in entries:
        files.append(_stamped(entry))
        info = files[-1].info
        size += info.st_size if info else 0
        if len(files) == _WINDOW or size >= _WINDOW_BYTES:
            yield files
            files, size = [], 0
    if files:
        yield files


def _stamped(entry: Entry) -> _File:
    path = entry.path
    try:
        info = os.stat(path)  # noqa: PTH116 - a million Path objects take longer than the call
    except OSError:
        return _File(entry, path, None, "")
    regular = stat.S_ISREG(info.st_mode)
    return _File(
        entry,
        path,
        info,
        f"{info.st_size} {info.st_mtime_ns} {info.st_ctime_ns} {info.st_ino}" if regular else "",
    )


def _begun(
    files: Sequence[_File],
    known: sqlite3.Connection,
    config: DataConfig,
    readers: ThreadPoolExecutor,
    decoders: ThreadPoolExecutor,
) -> _Window:
    """Recall what is known of a window's files and begin to look at the others."""
    recalled = _recalled(known, files)
    new = [file for file in files if file.path not in recalled]
    reading = [
        readers.submit(_read_all, new[start : start + _READ_TOGETHER], config)
        for start in range(0, len(new), _READ_TOGETHER)
    ]
    return _Window(files, recalled, decoders.submit(_finished, reading, config))


def _read_all(files: Sequence[_File], config: DataConfig) -> list[tuple[str, Facts, bytes]]:
    """Return the path of each file, what is known of it without decoding, and the bytes of an image."""
    return [(file.path, *_read(file, config)) for file in files]


def _read(file: _File, config: DataConfig) -> tuple[Facts, bytes]:
    """Read a file that is no pipe and not too large."""
    if file.info and not file.stamp:  # opening a pipe would wait for ever
        return Facts(problem="not a file"), b""
    if file.info and file.info.st_size > config.max_file_bytes:
        return (
            Facts(problem=f"{file.info.st_size:,} bytes are more than {config.max_file_bytes:,}"),
            b"",
        )
    try:
        with open(file.path, "rb", buffering=0) as opened:  # noqa: PTH123 - see above
            encoded = opened.readall()
    except OSError as error:
        return Facts(problem=error.strerror or "cannot be read"), b""
    facts = _undecoded(encoded, config)
    return facts, b"" if facts.problem else encoded


def _undecoded(encoded: bytes, config: DataConfig) -> Facts:
    """Return the facts of a file's bytes that can be had without decoding them."""
    sha256 = hashlib.sha256(encoded).digest()
    try:
        require_usable(encoded, max_side=config.max_side, max_pixels=config.max_pixels)
    except ValueError as error:
        return Facts(sha256, problem=str(error))
    return Facts(sha256, orientation=orientation_of(encoded))


def _finished(
    reading: Sequence[Future[list[tuple[str, Facts, bytes]]]], config: DataConfig
) -> dict[str, Facts]:
    """Return the facts of files by path.

    Images are decoded all together, those that fail once more for the reason.
    """
    read = [found for future in reading for found in future.result()]
    facts = {path: undecoded for path, undecoded, encoded in read if not encoded}
    images = [found for found in read if found[2]]
    for jpeg in (True, False):
        alike = [found for found in images if _is_upright_jpeg(found[2], found[1]) == jpeg]
        if alike:
            places, *looks = _look_at_all(jpeg)(
                [encoded for *_, encoded in alike],
                [undecoded.orientation for _, undecoded, _ in alike],
            )
            decoded = [alike[place] for place in places.numpy()]
            facts |= zip(
                (path for path, *_ in decoded),
                _completed([undecoded for _, undecoded, _ in decoded], *looks),
                strict=True,
            )
    return facts | {
        path: examine(encoded, config) for path, _, encoded in images if path not in facts
    }


def _is_upright_jpeg(encoded: bytes, facts: Facts) -> bool:
    return encoded.startswith(b"\xff\xd8") and facts.orientation == 1


def examine(encoded: bytes, config: DataConfig) -> Facts:
    """Return the facts of an image file's bytes.

    Args:
        encoded: the file.
        config: what is too large; known from the header before anything is decoded.
    """
    facts = _undecoded(encoded, config)
    if facts.problem:
        return facts
    try:
        looks = _look_at_one(_is_upright_jpeg(encoded, facts))(
            tf.constant(encoded), tf.constant(facts.orientation)
        )
    except tf.errors.OpError as error:
        return Facts(facts.sha256, problem=reason_of(error.message))
    (completed,) = _completed([facts], *(value[tf.newaxis] for value in looks))
    return completed


def _completed(
    facts: Sequence[Facts], fingerprints: Any, sides: Any, thumbnails: Any
) -> Iterator[Facts]:
    """Yield facts with what decoding showed.

    Args:
        facts: of n images.
        fingerprints: uint8 [n, 8], of the pixels.
        sides: int32 [n, 2], height and width.
        thumbnails: uint8 [n, 64, 64, 3] in [0, 255].
    """
    shapes = sides.numpy()
    # The same pixels in another shape are another image.
    pixels = fingerprints.numpy().view("<u8")[:, 0] ^ (
        shapes.astype(np.uint64) @ np.asarray([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)
    )
    columns = zip(
        facts, pixels.tolist(), shapes.tolist(), describe(thumbnails.numpy()), strict=True
    )
    for fact, number, (height, width), look in columns:
        yield Facts(fact.sha256, number, height, width, fact.orientation, "", look.tobytes())


def thumbnail_of(item: Checked) -> Any:
    """Read a usable file again and return uint8 [64, 64, 3] in [0, 255], the upright image squeezed to a square."""
    encoded = Path(item.entry.path).read_bytes()
    return _look_at_one(False)(tf.constant(encoded), tf.constant(item.facts.orientation))[2].numpy()


def _look(encoded: Any, orientation: Any, jpeg: bool) -> tuple[Any, Any, Any]:
    """Return the pixels' fingerprint uint8 [8], height and width int32 [2] and a thumbnail uint8 [64, 64, 3] of an encoded image.

    A graph for upright JPEGs alone runs 15 % faster than one that provides for all formats, and
    gives the same.
    """
    if jpeg:
        image = tf.ensure_shape(
            tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"), (None, None, 3)
        )
    else:
        image = decode(encoded, orientation)
    # Bilinear sampling sees four places of each of 64 x 64 cells; averaging all their pixels would
    # take as long as decoding.
    thumbnail = tf.image.resize(image, (THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return (
        tf.fingerprint(tf.reshape(image, (1, -1)))[0],
        tf.shape(image)[:2],
        tf.cast(thumbnail + 0.5, tf.uint8),
    )


@functools.cache
def _look_at_one(jpeg: bool) -> Any:
    """Return `_look`, compiled, for (string [], int32 [])."""
    signature = [tf.TensorSpec((), tf.string), tf.TensorSpec((), tf.int32)]
    return tf.function(
        functools.partial(_look, jpeg=jpeg), input_signature=signature
    ).get_concrete_function()


@functools.cache
def _look_at_all(jpeg: bool) -> Any:
    """Return a function (string [n], int32 [n]) -> places of the images that can be decoded, and `_look` of these, in parallel."""

    @tf.function(
        input_signature=[tf.TensorSpec((None,), tf.string), tf.TensorSpec((None,), tf.int32)],
        autograph=False,
    )
    def look(encoded: Any, orientations: Any) -> Any:
        count = tf.shape(encoded, tf.int64)[0]
        images = tf.data.Dataset.from_tensor_slices((tf.range(count), encoded, orientations))
        found = images.map(
            lambda place, *image: (place, *_look(image[0], image[1], jpeg)),
            num_parallel_calls=_processors(),
        )
        nothing = (
            tf.zeros((0,), tf.int64),
            tf.zeros((0, 8), tf.uint8),
            tf.zeros((0, 2), tf.int32),
            tf.zeros((0, THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3), tf.uint8),
        )
        # Where none can be decoded there is no batch: an empty one comes then.
        batch = (
            found.ignore_errors().batch(_WINDOW).concatenate(tf.data.Dataset.from_tensors(nothing))
        )
        return batch.take(1).with_options(fixed_options()).get_single_element()

    return look.get_concrete_function()


# -- what earlier audits found ---------------------------------------------------------------------


def _opened(memory: Path, config: DataConfig) -> sqlite3.Connection:
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
    for name in ("audit.py", "decoding.py", "duplicates.py"):
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()


def _recalled(known: sqlite3.Connection, files: Sequence[_File]) -> dict[str, Facts]:
    """Return path -> facts of the files that have not changed since they were looked at."""
    facts = {}
    for file in files:
        row = known.execute(
            "SELECT * FROM files WHERE path = ? AND stamp = ?", (os.fsencode(file.path), file.stamp)
        ).fetchone()
        if row:
            sha256, pixels, *others = row[2:]
            facts[file.path] = Facts(sha256, int.from_bytes(pixels, "little"), *others)
    return facts


def _remember(
    known: sqlite3.Connection, files: Sequence[_File], found: Mapping[str, Facts]
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


def require_few(checked: Sequence[Checked], config: DataConfig) -> None:
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


def _first(bad: Sequence[Checked]) -> str:
    """Name the first bad files and what is wrong with them."""
    shown = "; ".join(f"{item.entry.key!r:.120} ({item.problem})" for item in bad[:5])
    return f"{shown}{'; ...' if len(bad) > 5 else ''}"
