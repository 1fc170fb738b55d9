"""Which files are pictures that training can use, and which split each belongs to."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import tensorflow as tf

from pipeline.config import DataConfig
from pipeline.data.listing import Entry, natural
from pipeline.data.pictures import decode, header_size
from pipeline.errors import DatasetError

Progress = Callable[[int, int, str], None]
SPLITS = ("train", "validation", "test")
# A small PNG can hold a picture that fills the memory when it is decoded; the limit is Pillow's, 1024^3 / 4 / 3 pixels.
_MAX_PIXELS = 89_478_485
_WINDOW = 256


@dataclass(frozen=True)
class Checked:
    """One file after a look at its bytes: its SHA-256, and why it cannot be used, or nothing."""

    entry: Entry
    sha256: str
    problem: str


def audit(entries: Sequence[Entry], progress: Progress) -> list[Checked]:
    """Read every file once, hash it and decode it with the decoder that training uses; the order stays.

    Args:
        entries: the files.
        progress: called with files done, files in all and what is going on.
    """
    checked: list[Checked] = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # TensorFlow decodes without holding Python's lock
        for start in range(0, len(entries), _WINDOW):
            checked.extend(pool.map(_check, entries[start : start + _WINDOW]))
            unreadable = sum(bool(item.problem) for item in checked)
            progress(len(checked), len(entries), f"reading files, {unreadable} unreadable" if unreadable else "reading files")
    return checked


def _check(entry: Entry) -> Checked:
    try:
        encoded = entry.path.read_bytes()
    except OSError as error:
        return Checked(entry, "", error.strerror or "cannot be read")
    return Checked(entry, hashlib.sha256(encoded).hexdigest(), problem_of(encoded))


def problem_of(encoded: bytes) -> str:
    """Return why a file's bytes cannot be used as a picture, or nothing."""
    try:
        height, width = header_size(encoded)
        if height * width > _MAX_PIXELS:
            return f"{width} x {height} pixels are more than {_MAX_PIXELS:,}"
        if height < 1 or width < 1:
            return "no pixels"
        decode(tf.constant(encoded))
    except ValueError as error:
        return str(error)
    except tf.errors.OpError as error:
        return _reason(error.message)
    return ""


def _reason(message: str) -> str:
    """Return the first part of TensorFlow's message, without the name of the operation."""
    text = " ".join(message.partition("}} ")[2].split() or message.split())
    return text.partition(" [Op:")[0].partition(" when decoding")[0][:120]


def require_few(checked: Sequence[Checked], config: DataConfig) -> None:
    """Raise a DatasetError when there is no picture at all, or too large a share of the files cannot be decoded."""
    bad = [item for item in checked if item.problem]
    if not checked or len(bad) == len(checked):
        raise DatasetError(
            f"There is no usable picture in {config.dataset}. Expected JPEG, PNG or BMP files in one folder for each class. "
            f"Received {len(checked)} such files, {len(bad)} unreadable. Check --dataset."
        )
    if len(bad) > config.max_quarantined_fraction * len(checked):
        shown = "; ".join(f"{item.entry.key!r:.120} ({item.problem})" for item in bad[:5])
        needed = -(-len(bad) * 100 // len(checked)) / 100  # two decimals, rounded up
        raise DatasetError(
            f"{len(bad)} of {len(checked)} files cannot be decoded: {shown}{'; ...' if len(bad) > 5 else ''}. Expected at most "
            f"{config.max_quarantined_fraction:.1%}. Mend or remove them, or type --set data.max_quarantined_fraction={needed:g}."
        )


def deal(sha256: str, given: str, present: frozenset[str], config: DataConfig) -> str:
    """Return the split of a picture; nothing but its bytes and the splits that the source names decide.

    Other files can come and go without moving it, and copies of one picture stay together.

    Args:
        sha256: of the picture's bytes, in hexadecimal.
        given: the split that the source names, or empty.
        present: the splits that the source names anywhere; only missing ones are cut from the training images.
        config: the fractions.
    """
    if given not in ("", "train"):
        return given
    # Separate bits, so that the share for the test does not change who is in the validation.
    if "test" not in present and _fraction(sha256[:16]) < config.test_fraction:
        return "test"
    if "validation" not in present and _fraction(sha256[16:32]) < config.validation_fraction:
        return "validation"
    return "train"


def _fraction(hexadecimal: str) -> float:
    """Return 16 hexadecimal digits as a number in [0, 1)."""
    return (int(hexadecimal, 16) >> 11) / 2**53


def class_names_of(labels: Iterator[str]) -> tuple[str, ...]:
    """Return the names in the order of their class ids: natural order, `2` before `10`."""
    return tuple(sorted(set(labels), key=natural))


def require_classes(class_names: Sequence[str], class_counts: Mapping[str, tuple[int, ...]]) -> None:
    """Raise a DatasetError unless there are two classes, each with a training image, and no split is empty."""
    if len(class_names) < 2:
        raise DatasetError(
            f"A classifier needs at least two classes. Expected two folders or labels. Received {len(class_names)}: "
            f"{', '.join(map(repr, class_names)):.200}. Add pictures of another class."
        )
    if empty := [split for split in SPLITS if not sum(class_counts[split])]:
        sizes = ", ".join(f"{split} {sum(class_counts[split])}" for split in SPLITS)
        raise DatasetError(
            f"The {' and the '.join(empty)} split would be empty. Expected at least one image in each. Received {sizes}. Add pictures, or "
            "raise data.validation_fraction or data.test_fraction."
        )
    if without := [name for name, count in zip(class_names, class_counts["train"], strict=True) if not count]:
        raise DatasetError(
            f"{len(without)} of {len(class_names)} classes have no training image: {', '.join(map(repr, without[:5])):.300}. Expected at "
            "least one for each. Received none. Add pictures of them, or remove their folders."
        )
