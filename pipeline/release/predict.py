"""Predictions of image files, in the order of the files, with a fixed number of them in memory.

The same files in the same order give the same predictions, whatever the number of threads. With
another batch size a network may answer with another last digit.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.errors import ConfigError, DatasetError
from pipeline.release.image_paths import format_path

if TYPE_CHECKING:  # TensorFlow is not needed to report a missing file
    from pipeline.arrays import Image, Logits
    from pipeline.release.classify import Classifier, Guess
    from pipeline.release.package import Release

# Called with files done, files in all if known, and files done that cannot be classified.
OnFilesDone = Callable[[int, int | None, int], None]
MAX_BYTES = 100_000_000  # as in data.max_file_bytes
_HEAVY_PIXELS = 32_000_000  # decoding takes some 6 bytes a pixel: below this, 200 MB a thread


@dataclass(frozen=True)
class Predictions:
    """The answers of a release for some files, computed as they are iterated, once.

    Attributes:
        release: what answers.
        files: how many files.
        answers: one per file, in order.
    """

    release: Release
    files: int
    answers: Iterator[Prediction]

    def __iter__(self) -> Iterator[Prediction]:
        """Return the answers."""
        return self.answers


@dataclass(frozen=True)
class Prediction:
    """The model's answer to a file, or why there is none.

    Attributes:
        path: the file as it was named; bytes that are not UTF-8 are Python's surrogates.
        guesses: the likeliest classes, the likeliest first; empty with a problem.
        logits: float32 [classes]; None with a problem.
        problem: why the file could not be classified; empty where it was.
    """

    path: str
    guesses: tuple[Guess, ...] = ()
    logits: Logits | None = field(default=None, compare=False, repr=False)
    problem: str = ""


class _DecodedFile(NamedTuple):
    """A file: its pixels, uint8 [height, width, 3] in [0, 255], or why it has none."""

    path: str
    pixels: Image | None
    problem: str


def predict_files(
    classifier: Classifier,
    paths: Iterable[str | os.PathLike[str]],
    *,
    top: int,
    strict: bool = False,
    threads: int = 0,
    progress: OnFilesDone,
) -> Iterator[Prediction]:
    """Return a prediction for each file, in the order of the files.

    A fixed number of them is read and decoded ahead.

    Args:
        classifier: the model, opened.
        paths: the files; a list has a length, so that progress can say how many are left.
        top: guesses for each image, at least 1; of a model with fewer classes all of them.
        strict: end at the first file that cannot be classified, instead of going on with the
            others.
        threads: that read and decode; 0: one for each processor that this process may use.
        progress: called after each batch.

    Raises:
        ConfigError: `top` is less than 1.
        DatasetError: `strict`, and a file cannot be classified.
        CheckpointError: a logit is not a number.
    """
    if top < 1:
        raise ConfigError(
            "The number of guesses is too small",
            expected="at least 1 for each image",
            received=str(top),
            hint="Check --top",
        )
    total = len(paths) if isinstance(paths, Sized) else None
    threads = threads or len(os.sched_getaffinity(0))
    return _predict_batches(
        classifier, (os.fspath(path) for path in paths), top, strict, threads, total, progress
    )


def _predict_batches(
    classifier: Classifier,
    paths: Iterator[str],
    top: int,
    strict: bool,
    threads: int,
    total: int | None,
    progress: OnFilesDone,
) -> Iterator[Prediction]:
    """Yield predictions, batch by batch of files; unusable files make a batch smaller."""
    done = unusable = 0
    with contextlib.closing(_decode_ahead(classifier, paths, threads)) as files:
        while group := list(itertools.islice(files, classifier.batch)):
            bad = [file for file in group if file.problem]
            if strict and bad:
                raise DatasetError(
                    f"{format_path(bad[0].path)} cannot be classified",
                    expected="a JPEG, PNG, BMP, still GIF or WebP image",
                    received=bad[0].problem,
                    hint="Repair or leave out that file, or answer all others without --strict",
                )
            answers = _predict_group(classifier, group, top)
            done, unusable = done + len(group), unusable + len(bad)
            progress(done, total, unusable)
            yield from answers


def _predict_group(
    classifier: Classifier, group: Sequence[_DecodedFile], top: int
) -> list[Prediction]:
    """Return the predictions of some files, in their order."""
    usable = [file.pixels for file in group if file.pixels is not None]
    if not usable:
        return [Prediction(file.path, problem=file.problem) for file in group]
    logits = classifier.predict_logits(np.stack(usable))
    answers = zip(classifier.rank_classes(logits, top), logits, strict=True)
    found = []
    for file in group:
        guesses, own = ((), None) if file.problem else next(answers)
        found.append(Prediction(file.path, tuple(guesses), own, file.problem))
    return found


def _decode_ahead(
    classifier: Classifier, paths: Iterator[str], threads: int
) -> Generator[_DecodedFile]:
    """Yield files in order, read and decoded in threads.

    At most two batches, or two files a thread, are ahead.
    """
    heavy = threading.Lock()
    pool = ThreadPoolExecutor(threads, "predict")
    try:
        begun = (pool.submit(_decode_file, classifier, path, heavy) for path in paths)
        waiting = deque(itertools.islice(begun, 2 * max(classifier.batch, threads)))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(itertools.islice(begun, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_file(classifier: Classifier, path: str, heavy: threading.Lock) -> _DecodedFile:
    """Read and decode a file; an error is recorded as its problem."""
    from pipeline.release.classify import UnusableError

    try:
        encoded = _read_image_file(path)
        with heavy if _is_heavy(encoded) else contextlib.nullcontext():
            return _DecodedFile(path, classifier.prepare_pixels(encoded), "")
    except UnusableError as error:
        return _DecodedFile(path, None, str(error))
    except OSError as error:
        return _DecodedFile(path, None, error.strerror or "cannot be read")


def _read_image_file(path: str) -> bytes:
    """Return the bytes of a file, as many as its size.

    Raises:
        UnusableError: it is not a file, or too large.
        OSError: it cannot be read.
    """
    from pipeline.release.classify import UnusableError

    info = os.stat(path)  # noqa: PTH116 - a million Path objects take longer than the call
    if stat.S_ISDIR(info.st_mode):
        # A folder that was listed because it cannot be read raises here.
        with os.scandir(path):
            raise UnusableError("a folder, not a file")
    if not stat.S_ISREG(info.st_mode):  # opening a pipe would wait for ever
        raise UnusableError("not a file")
    if info.st_size > MAX_BYTES:
        raise UnusableError(f"{info.st_size:,} bytes are more than {MAX_BYTES:,}")
    with open(path, "rb") as file:  # noqa: PTH123 - see above
        return file.read(info.st_size)


def _is_heavy(encoded: bytes) -> bool:
    """Return whether decoding a file takes so much memory that only one is decoded at a time."""
    from pipeline.data.headers import read_header_size

    try:
        height, width = read_header_size(encoded)
    except ValueError:  # not an image; decoding it reports that
        return False
    return height * width > _HEAVY_PIXELS
