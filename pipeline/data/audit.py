"""Which files are pictures that training can use: every file is read, judged by its header, and decoded once by training's own decoder."""

from __future__ import annotations

import functools
import hashlib
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.config import DataConfig
from pipeline.data.duplicates import THUMBNAIL_SIDE, describe
from pipeline.data.listing import Entry
from pipeline.data.pictures import decode, format_of, header_size, is_animated, orientation_of
from pipeline.errors import DatasetError

Progress = Callable[[int, int, str], None]
_WINDOW = 256
# Thumbnails are averaged from every k-th pixel, of which at least this many a side are left.
_SAMPLED_SIDE = 96
_OTHER_FORMATS = {
    b"II*\0": "a TIFF file",
    b"MM\0*": "a TIFF file",
    b"%PDF": "a PDF file",
    b"PK\3\4": "a ZIP archive",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 file",
    b"\xff\x4f\xff\x51": "a JPEG 2000 file",
    b"\0\0\1\0": "an icon",
    b"8BPS": "a Photoshop file",
    b"\x1f\x8b": "a gzip archive",
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What one look at a file's bytes says.

    `sha256` is that of the bytes; `pixels` a 64-bit fingerprint of the decoded picture and its shape. `height` and `width` are those of the
    upright picture, `orientation` is EXIF's. `problem` says why the file cannot be used, or nothing. `look` is a `duplicates.LOOK` as
    bytes.
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


def audit(entries: Sequence[Entry], memory: Path, config: DataConfig, progress: Progress) -> list[Checked]:
    """Look at every file that is not known yet; the order stays.

    Args:
        entries: the files.
        memory: an SQLite file that remembers what was found, so that the next audit reads only files that are new or changed.
        config: what is too large.
        progress: called with files done, files in all and what is going on.

    Raises:
        DatasetError: the memory cannot be written.
    """
    checked: list[Checked] = []
    read = bad = 0
    look = functools.partial(_look, config=config)
    with closing(_opened(memory, config)) as known, ThreadPoolExecutor(_processors()) as pool:  # decoding does not hold Python's lock
        for start in range(0, len(entries), _WINDOW):
            window = entries[start : start + _WINDOW]
            stamps = [_stamp(entry.path) for entry in window]
            remembered = _recalled(known, window, stamps)
            new = [entry for entry in window if entry.path not in remembered]
            found = dict(zip((entry.path for entry in new), pool.map(look, (entry.path for entry in new)), strict=True))
            _remember(
                known,
                {path: (stamp, found[path]) for path, stamp in ((e.path, s) for e, s in zip(window, stamps, strict=True)) if path in found},
            )
            checked.extend(Checked(entry, remembered.get(entry.path) or found[entry.path]) for entry in window)
            read, bad = read + len(new), bad + sum(bool(item.problem) for item in checked[start:])
            progress(len(checked), len(entries), f"looking at files: {read:,} read, {len(checked) - read:,} known, {bad:,} unusable")
    return checked


def _processors() -> int:
    return len(os.sched_getaffinity(0))


def _stamp(path: Any) -> str:
    """Return what changes when a file does; nothing for what is not a file."""
    try:
        info = os.stat(path)  # noqa: PTH116 - a million Path objects take longer than the call
    except OSError:
        return ""
    return f"{info.st_size} {info.st_mtime_ns} {info.st_ctime_ns} {info.st_ino}" if stat.S_ISREG(info.st_mode) else ""


def _look(path: Any, config: DataConfig) -> Facts:
    """Read a file and examine it; whatever is wrong is said in `problem`."""
    try:
        info = os.stat(path)  # noqa: PTH116
        if not stat.S_ISREG(info.st_mode):  # opening a pipe would wait for ever
            return Facts(problem="not a file")
        if info.st_size > config.max_file_bytes:
            return Facts(problem=f"{info.st_size:,} bytes are more than {config.max_file_bytes:,}")
        return examine(Path(path).read_bytes(), config)
    except OSError as error:
        return Facts(problem=error.strerror or "cannot be read")


def examine(encoded: bytes, config: DataConfig) -> Facts:
    """Return the facts of a picture file's bytes.

    Args:
        encoded: the file.
        config: what is too large; known from the header before anything is decoded.
    """
    sha256 = hashlib.sha256(encoded).digest()
    try:
        _require_usable(encoded, config)
    except ValueError as error:
        return Facts(sha256, problem=str(error))
    orientation = orientation_of(encoded)
    try:
        pixels, sides, thumbnail = (value.numpy() for value in _decoder()(tf.constant(encoded), tf.constant(orientation)))
    except tf.errors.OpError as error:
        return Facts(sha256, problem=_reason(error.message))
    height, width = sides.tolist()
    look = describe(thumbnail[np.newaxis]).tobytes()
    return Facts(sha256, int.from_bytes(pixels.tobytes(), "little"), height, width, orientation, "", look)


def thumbnail_of(item: Checked) -> Any:
    """Read a usable file again and return uint8 [32, 32, 3] in [0, 255], the upright picture squeezed to a square."""
    encoded = Path(item.entry.path).read_bytes()
    return _decoder()(tf.constant(encoded), tf.constant(item.facts.orientation))[2].numpy()


def _require_usable(encoded: bytes, config: DataConfig) -> None:
    """Raise a ValueError with the reason why a file must not be decoded."""
    if encoded and not format_of(encoded):
        raise ValueError(_what_else(encoded))
    height, width = header_size(encoded)
    if height < 1 or width < 1:
        raise ValueError("no pixels")
    if max(height, width) > config.max_side:
        raise ValueError(f"a side of {max(height, width):,} pixels is longer than {config.max_side:,}")
    if height * width > config.max_pixels:
        raise ValueError(f"{width} x {height} pixels are more than {config.max_pixels:,}")
    if is_animated(encoded):
        raise ValueError("animated: more than one picture")


def _what_else(encoded: bytes) -> str:
    """Name a file that is no picture of ours."""
    for start, name in _OTHER_FORMATS.items():
        if encoded.startswith(start):
            return f"{name}, not a JPEG, PNG, BMP, GIF or WebP file"
    if encoded[4:8] == b"ftyp":
        return "an AVIF or HEIF file, not a JPEG, PNG, BMP, GIF or WebP file"
    text = encoded[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<html" in text or b"<!doctype html" in text:
        return "an HTML page, not a picture"
    if b"<svg" in text or text.startswith(b"<?xml"):
        return "an SVG or XML file, not a JPEG, PNG, BMP, GIF or WebP file"
    if text and not text.translate(None, bytes(range(32, 127)) + b"\t\r\n"):
        return "text, not a picture"
    return "not a JPEG, PNG, BMP, GIF or WebP file"


@functools.cache
def _decoder() -> Any:
    """Return the compiled function (bytes, orientation) -> (uint8 [8] fingerprint, int32 [2] sides, uint8 [32, 32, 3] thumbnail)."""

    @tf.function(input_signature=[tf.TensorSpec((), tf.string), tf.TensorSpec((), tf.int32)])
    def look(encoded: Any, orientation: Any) -> Any:
        image = decode(encoded, orientation)
        sides = tf.shape(image)[:2]
        fingerprint = tf.fingerprint(tf.reshape(image, (1, -1)))[0]
        shape = tf.bitcast(tf.cast(sides, tf.int32), tf.uint8)  # the same pixels in another shape are another picture
        step = tf.maximum(1, sides // _SAMPLED_SIDE)
        sampled = tf.ensure_shape(image[:: step[0], :: step[1]], (None, None, 3))
        thumbnail = tf.image.resize(sampled, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), method="area")
        mixed = tf.fingerprint(tf.concat([fingerprint, tf.reshape(shape, (-1,))], 0)[tf.newaxis])[0]
        return mixed, sides, tf.cast(tf.round(thumbnail), tf.uint8)

    return look.get_concrete_function()


def _reason(message: str) -> str:
    """Return what TensorFlow's message says, without the names of operations and the places in the code."""
    return message.partition("\n\t [[")[0].rpartition("\n")[2].partition(" when decoding")[0][:120]


# -- what earlier audits found --------------------------------------------------------------------------------------------


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
            f"The audit cannot write {memory} ({error}). Expected a folder with room that may be written. Free some space or type "
            "--workdir with another folder."
        ) from error


def _connected(memory: Path, config: DataConfig) -> sqlite3.Connection:
    known = sqlite3.connect(memory, isolation_level=None)
    try:
        known.execute("PRAGMA journal_mode=WAL")
        known.execute("PRAGMA synchronous=NORMAL")
        rules = _rules(config)
        if known.execute("PRAGMA table_list('rules')").fetchone() and known.execute("SELECT * FROM rules").fetchall() == [(rules,)]:
            return known
        columns = "sha256 BLOB, pixels BLOB, height INT, width INT, orientation INT, problem TEXT, look BLOB"
        known.executescript(
            "DROP TABLE IF EXISTS rules; DROP TABLE IF EXISTS files; VACUUM; CREATE TABLE rules (digest TEXT);"
            f"CREATE TABLE files (path BLOB PRIMARY KEY, stamp TEXT, {columns})"
        )
        known.execute("INSERT INTO rules VALUES (?)", (rules,))  # last: what is half made is made again
    except sqlite3.Error:
        known.close()
        raise
    return known


def _rules(config: DataConfig) -> str:
    """Return a digest of everything that decides what is found, besides the file."""
    digest = hashlib.sha256(f"{tf.__version__} {config.max_pixels} {config.max_side} {config.max_file_bytes}".encode())
    for name in ("audit.py", "pictures.py", "duplicates.py"):
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()


def _recalled(known: sqlite3.Connection, entries: Sequence[Entry], stamps: Sequence[str]) -> dict[Any, Facts]:
    """Return path -> facts of the files that have not changed since they were looked at."""
    facts = {}
    for entry, stamp in zip(entries, stamps, strict=True):
        row = (
            known.execute("SELECT * FROM files WHERE path = ? AND stamp = ?", (os.fsencode(entry.path), stamp)).fetchone()
            if stamp
            else None
        )
        if row:
            sha256, pixels, *others = row[2:]
            facts[entry.path] = Facts(sha256, int.from_bytes(pixels, "little"), *others)
    return facts


def _remember(known: sqlite3.Connection, found: Mapping[Any, tuple[str, Facts]]) -> None:
    """Write down what was found of files; what is not a file or could not be read is looked at again next time."""

    def rows() -> Iterator[tuple[Any, ...]]:
        for path, (stamp, facts) in found.items():
            if stamp and facts.sha256:
                sha256, pixels, *others = astuple(facts)
                yield (os.fsencode(path), stamp, sha256, pixels.to_bytes(8, "little"), *others)

    try:
        known.execute("BEGIN")
        known.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows())
        known.execute("COMMIT")
    except sqlite3.OperationalError as error:
        raise DatasetError(
            f"The audit cannot write its memory ({error}). Expected room on the disk of the work directory. Free some space and type the "
            "same command again."
        ) from error


def require_few(checked: Sequence[Checked], config: DataConfig) -> None:
    """Raise a DatasetError when there is no picture at all, or too large a share of the files cannot be used."""
    bad = [item for item in checked if item.problem]
    if not checked or len(bad) == len(checked):
        reasons = f": {_first(bad)}" if bad else ""
        raise DatasetError(
            f"There is no usable picture in {config.dataset}. Expected JPEG, PNG, BMP, GIF or WebP files in one folder for each class. "
            f"Received {len(checked)} such files, {len(bad)} unusable{reasons}. Check --dataset."
        )
    if len(bad) > config.max_quarantined_fraction * len(checked):
        needed = -(-len(bad) * 100 // len(checked)) / 100  # two decimals, rounded up
        raise DatasetError(
            f"{len(bad)} of {len(checked)} files cannot be used: {_first(bad)}. Expected at most "
            f"{config.max_quarantined_fraction:.1%}. Mend or remove them, or type --set data.max_quarantined_fraction={needed:g}."
        )


def _first(bad: Sequence[Checked]) -> str:
    """Name the first bad files and what is wrong with them."""
    shown = "; ".join(f"{item.entry.key!r:.120} ({item.problem})" for item in bad[:5])
    return f"{shown}{'; ...' if len(bad) > 5 else ''}"
