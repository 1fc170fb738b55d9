"""The cost of 8-bit integers: their errors on labeled images, paired with the released model's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.evaluate.intervals import compute_wilson_interval
from pipeline.export.parity import compute_logits, decode_images, read_back_models
from pipeline.export.record import IntegerCost
from pipeline.release.classify import Classifier
from pipeline.release.paired_difference import compute_lower_bound, compute_upper_bound

if TYPE_CHECKING:
    from pipeline.arrays import Booleans

_TEST_WINDOW = 256  # test images that are decoded and classified together
_TAIL = 0.025  # at either end of a 95 % interval


def count_errors(
    classifier: Classifier,
    path: Path,
    test: Iterable[tuple[bytes, int]],
    scratch: Path,
    progress: Callable[[str], None],
) -> tuple[Booleans, Booleans]:
    """Return bool [images], whether the top class is wrong: the released model's, and int8's.

    Args:
        classifier: the released model.
        path: the LiteRT file of 8-bit integers.
        test: images, each a file's bytes, and their classes.
        scratch: a folder for work.
        progress: shows a line.
    """
    windows = list(_count_windows(classifier, path, iter(test), scratch, progress))
    if not windows:
        return np.zeros(0, np.bool_), np.zeros(0, np.bool_)
    wrong, int8_wrong = (np.concatenate(parts) for parts in zip(*windows, strict=True))
    return wrong, int8_wrong


def _count_windows(
    classifier: Classifier,
    path: Path,
    test: Iterator[tuple[bytes, int]],
    scratch: Path,
    progress: Callable[[str], None],
) -> Iterator[tuple[Booleans, Booleans]]:
    done = 0
    while window := list(itertools.islice(test, _TEST_WINDOW)):
        pixels = decode_images(classifier, [encoded for encoded, _ in window])
        labels = np.asarray([label for _, label in window])
        found = read_back_models("litert", [path], pixels, (), scratch)
        logits, _ = found.answers[0]["image"]
        yield (
            compute_logits(classifier, pixels).argmax(axis=1) != labels,
            logits.argmax(axis=1) != labels,
        )
        done += len(window)
        progress(f"measuring the cost of int8: {done:,} test images")


def compute_cost(
    wrong: Booleans, int8_wrong: Booleans, float_bytes: int, float_seconds: float
) -> IntegerCost:
    """Return the cost of int8 from bool [images] of both, with intervals."""
    images, errors, int8_errors = len(wrong), int(wrong.sum()), int(int8_wrong.sum())
    only_int8, only_float = int(np.sum(int8_wrong & ~wrong)), int(np.sum(wrong & ~int8_wrong))
    return IntegerCost(
        images=images,
        float_top1_error=errors / images,
        float_interval=compute_wilson_interval(errors, images),
        int8_top1_error=int8_errors / images,
        int8_interval=compute_wilson_interval(int8_errors, images),
        rise=(only_int8 - only_float) / images,
        rise_interval=(
            compute_lower_bound(only_int8, only_float, images, _TAIL),
            compute_upper_bound(only_int8, only_float, images, _TAIL),
        ),
        float_bytes=float_bytes,
        float_seconds=float_seconds,
    )
