"""`alexnet export`: a release for programs that have no Keras, proved to answer as the release does, or not written at all.

Every export is opened again by its own runtime in a clean process, which answers real pictures. What it says is compared with what the
released model says; a network of 8-bit integers, which cannot say the same, is judged by what it costs on labelled pictures.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.engine import write_atomically
from pipeline.errors import ConfigError, DatasetError, GateError
from pipeline.evaluate.metrics import Floats, percent, wilson_interval
from pipeline.page import Section, Table, render
from pipeline.release import readback
from pipeline.release.classify import TOLERANCE, Classifier, UnusableError, load_classifier
from pipeline.release.formats import WRITERS, answering, write_litert
from pipeline.release.gate import lower_bound, upper_bound
from pipeline.release.package import Release

FORMATS = ("savedmodel", "onnx", "litert")
MOST_ERROR_RISE = 0.05
CALIBRATION_PICTURES = 200  # TensorFlow's guide asks for a few hundred; each passes through the network alone
_PARITY_FILE, _REPORT_FILE = "parity.json", "report.html"
_PACKAGES: Mapping[str, Sequence[str]] = {"savedmodel": (), "onnx": ("tf2onnx", "onnx", "onnxruntime"), "litert": ("ai_edge_litert",)}
_TIMED_CALLS = 20
_WINDOW = 256  # test pictures that are decoded and answered together

Labelled = Iterable[tuple[bytes, int]]


@dataclass(frozen=True)
class Check:
    """How an endpoint, read back, answered the pictures.

    Attributes:
        endpoint: its name; `float32` before that of the network that an int8 one was made from.
        pictures: how many.
        difference: largest difference of a logit from the released model's.
        allowed: what it may be; None for int8, which is judged by its cost.
        probability_difference: largest difference of a calibrated probability, in [0, 1].
        same_top5: pictures with the same five likeliest classes in the same order; logits as near as float rounding may change places.
        seconds: median time of one picture in a call, on this machine; None where it was not timed.
    """

    endpoint: str
    pictures: int
    difference: float
    allowed: float | None
    probability_difference: float
    same_top5: int
    seconds: float | None


@dataclass(frozen=True)
class Cost:
    """What 8-bit integers cost, on labelled pictures that both networks answered.

    Attributes:
        pictures: how many.
        float_top1_error: share whose first guess is wrong, in [0, 1], of the released model.
        float_interval: its 95 % interval.
        int8_top1_error: the same of the network of integers.
        int8_interval: its 95 % interval.
        rise: int8_top1_error less float_top1_error.
        rise_interval: its 95 % interval, of the paired difference (Tango 1998).
        float_bytes: size of the LiteRT file in float32.
        int8_bytes: size of the one in integers.
        float_seconds: median time of one picture in a call, by the interpreter on this machine, both in turn.
        int8_seconds: the same of the network of integers.
    """

    pictures: int
    float_top1_error: float
    float_interval: tuple[float, float]
    int8_top1_error: float
    int8_interval: tuple[float, float]
    rise: float
    rise_interval: tuple[float, float]
    float_bytes: int
    int8_bytes: int
    float_seconds: float
    int8_seconds: float


@dataclass(frozen=True)
class Exported:
    """An export that was read back. `file` is what to give to the runtime; `bytes` the size of it, or of all its files."""

    directory: Path
    file: Path
    format: str
    int8: bool
    release: Release
    runtime: str
    version: str
    bytes: int
    checks: tuple[Check, ...]
    cost: Cost | None = None

    @property
    def page(self) -> Path:
        """The parity report."""
        return self.directory / _REPORT_FILE

    def headline(self) -> str:
        """Say in a sentence what was made and how well it does."""
        runtime, checks = f"{self.runtime} {self.version}", self.checks
        start = f"{self.release.title} as {self.format}{', int8' if self.int8 else ''}, {self.bytes / 1e6:,.1f} MB, read back by {runtime}"
        if self.cost:
            cost = self.cost
            return (
                f"{start}: top-1 error {percent(cost.int8_top1_error)} instead of {percent(cost.float_top1_error)} on {cost.pictures:,} test "
                f"pictures, a rise of {_points(cost.rise)} (95 % interval {_points(cost.rise_interval[0])} to {_points(cost.rise_interval[1])})"
            )
        return f"{start}: {checks[0].pictures} pictures answered alike, largest difference of a logit {max(c.difference for c in checks):.1e}"

    def as_dict(self) -> dict[str, Any]:
        """Return parity.json's content."""
        numbers = asdict(self) | {name: str(getattr(self, name)) for name in ("directory", "file")}
        names = ("image_size", "short_side", "temperature", "model_sha256")
        del numbers["release"]
        return numbers | {"model": self.release.title} | {name: getattr(self.release, name) for name in names}


def export(
    release: Release,
    to: str,
    output: Path,
    pictures: Sequence[bytes],
    *,
    int8: bool = False,
    calibration: Labelled = (),
    test: Labelled = (),
    most_error_rise: float = MOST_ERROR_RISE,
    progress: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write a release in another format, read it back with that format's runtime, and keep it if it answers as the release does.

    Args:
        release: verified, as `open_release` gives it.
        to: one of `FORMATS`.
        output: the folder to make, complete or not at all; an earlier export there is replaced at the end.
        pictures: files' bytes, real ones, to compare on.
        int8: LiteRT in 8-bit integers.
        calibration: training pictures with their classes, for int8's ranges; the first `CALIBRATION_PICTURES`, so in an order that mixes
            the classes.
        test: labelled pictures, for what int8 costs.
        most_error_rise: highest rise of the top-1 error that int8 may cost, in [0, 1].
        progress: told in words what is being done.

    Raises:
        ConfigError: the wish cannot be met: an unknown format, a package that is missing, a place that is taken.
        DatasetError: a picture cannot be used.
        CheckpointError: the released model cannot be opened.
        GateError: the export cannot be made, cannot be read back, or answers otherwise; nothing is written.
    """
    place = output.expanduser().resolve()
    _require_possible(to, int8, pictures)
    _require_free(place)
    classifier = load_classifier(release)
    seen = _seen(classifier, pictures)
    with _complete_or_absent(place) as folder, tempfile.TemporaryDirectory() as scratch:
        if int8:
            ranges = _seen(classifier, [encoded for encoded, _ in itertools.islice(calibration, CALIBRATION_PICTURES)])
            made = _integers(classifier, ranges, seen, test, folder, Path(scratch), progress)
            _require_worth(made, most_error_rise)
        else:
            made = _floats(classifier, to, seen, folder, Path(scratch), progress)
        final = _moved(made, place)
        write_atomically(folder / _PARITY_FILE, json.dumps(final.as_dict(), indent=1, allow_nan=False))
        write_atomically(folder / _REPORT_FILE, _page(final))
    return final


def _require_possible(to: str, int8: bool, pictures: Sequence[bytes]) -> None:
    """Raise a ConfigError unless the format is known, its packages are installed and there is something to compare on."""
    if to not in FORMATS:
        raise ConfigError(f"There is no format {to!r}. Expected {', '.join(FORMATS[:-1])} or {FORMATS[-1]}. Check --to.")
    if int8 and to != "litert":
        raise ConfigError(f"8-bit integers are made for litert only. Received {to}. Type --to litert, or leave out --int8.")
    if not pictures:
        raise ConfigError("There is no picture to compare the export on. Expected at least one. Name a dataset that has test pictures.")
    missing = [name for name in _PACKAGES[to] if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"The format {to} needs packages that are not installed: {', '.join(missing)}. Expected those of the extra `{to}`. Type "
            f"pip install 'alexnet-pipeline[{to}]'."
        )


@dataclass(frozen=True)
class _Seen:
    """Pictures as files' bytes, as the network sees them, uint8 [pictures, size, size, 3], and the released model's float32 logits."""

    files: Sequence[bytes]
    pixels: Any
    logits: Floats
    probabilities: Floats


def _seen(classifier: Classifier, files: Sequence[bytes]) -> _Seen:
    """Let the released model answer pictures, on the processor: a GPU may round float32 to ten bits.

    Raises:
        DatasetError: there is none, or one cannot be used.
    """
    try:
        with ThreadPoolExecutor() as threads:
            pixels = np.stack(list(threads.map(classifier.pixels, files)))
    except UnusableError as error:
        raise DatasetError(f"A picture that the export needs cannot be used ({error}). Expected pictures of a prepared dataset. Name one.") from error
    except ValueError as error:
        raise DatasetError() from error
    with tf.device("CPU:0"):
        logits = classifier.logits(pixels)
    return _Seen(files, pixels, logits, classifier.probabilities(logits))
