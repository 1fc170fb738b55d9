"""`alexnet export`: a release for programs that have no Keras, proved to answer as the release does, or not written at all.

Every export is opened again by its own runtime in a clean process, which answers real images. What
it says is compared with what the released model says; a network of 8-bit integers, which cannot say
the same, is judged by what it costs on labeled images.
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.errors import ConfigError, DatasetError, GateError
from pipeline.evaluate.metrics import Floats, percent, wilson_interval
from pipeline.export import readback
from pipeline.export.formats import WRITERS, answering
from pipeline.files import write_text
from pipeline.release.classify import TOLERANCE, Classifier, UnusableError, load_classifier
from pipeline.release.gate import lower_bound, upper_bound
from pipeline.release.package import Release
from pipeline.reports.html import PageSection, Table, render_page

FORMATS = ("savedmodel", "onnx", "litert")
MAX_ERROR_RISE = 0.05
PARITY_IMAGES = 100
CALIBRATION_IMAGES = (
    200  # TensorFlow's guide asks for a few hundred; each passes through the network alone
)
_PARITY_FILE, _REPORT_FILE = "parity.json", "report.html"
_FILES: Mapping[str, str] = {"savedmodel": "", "onnx": "model.onnx", "litert": "model.tflite"}
_PACKAGES: Mapping[str, Sequence[str]] = {
    "savedmodel": (),
    "onnx": ("tf2onnx", "onnx", "onnxruntime"),
    "litert": ("ai_edge_litert",),
}
_TIMED_CALLS = 20
_WINDOW = 256  # test images that are decoded and answered together

Labeled = Iterable[tuple[bytes, int]]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Check:
    """How an endpoint, read back, answered the images.

    Attributes:
        endpoint: its name.
        images: how many.
        difference: largest difference of a logit from the released model's.
        allowed: what it may be; None for int8, which is judged by its cost.
        probability_difference: largest difference of a calibrated probability, in [0, 1].
        same_top5: images with the same five likeliest classes in the same order; logits within
            twice the rounding that is allowed to float32 count as equal.
    """

    endpoint: str
    images: int
    difference: float
    allowed: float | None
    probability_difference: float
    same_top5: int


@dataclass(frozen=True)
class Cost:
    """What 8-bit integers cost, on labeled images that both networks answered.

    Errors are shares in [0, 1].

    Attributes:
        images: how many.
        float_top1_error: of the released model.
        float_interval: its 95 % interval.
        int8_top1_error: of the network of integers.
        int8_interval: its 95 % interval.
        rise: int8_top1_error less float_top1_error.
        rise_interval: the 95 % interval of this paired difference (Tango 1998, as in
            `pipeline.release.gate`).
        float_bytes: size of the LiteRT file in float32.
        float_seconds: median time of one image in a call of LiteRT's interpreter on this machine,
            in turn with the integers.
    """

    images: int
    float_top1_error: float
    float_interval: tuple[float, float]
    int8_top1_error: float
    int8_interval: tuple[float, float]
    rise: float
    rise_interval: tuple[float, float]
    float_bytes: int
    float_seconds: float


@dataclass(frozen=True)
class Exported:
    """An export that was read back.

    Attributes:
        release: what was exported.
        format: one of `FORMATS`.
        int8: whether it computes in 8-bit integers.
        runtime: what read it back.
        version: of the runtime.
        bytes: size of the file, or of all files of a SavedModel.
        seconds: median time of one image in a call of the runtime, on this machine.
        checks: one for each endpoint.
        cost: what int8 costs; None for float32.
        directory: the folder.
    """

    release: Release
    format: str
    int8: bool
    runtime: str
    version: str
    bytes: int
    seconds: float
    checks: tuple[Check, ...]
    cost: Cost | None = None
    directory: Path = Path()

    @property
    def file(self) -> Path:
        """What to give to the runtime: a file, or a SavedModel's folder."""
        return self.directory / _FILES[self.format]

    @property
    def page(self) -> Path:
        """The parity report."""
        return self.directory / _REPORT_FILE

    @property
    def kind(self) -> str:
        """`onnx`, or `litert in 8-bit integers`."""
        return f"{self.format} in 8-bit integers" if self.int8 else self.format

    def headline(self) -> str:
        """Say in a sentence what was made, and how it compares."""
        made = f"{self.release.title} as {self.kind}, {_megabytes(self.bytes)}"
        if self.cost:
            return f"{made}: {_cost_text(self.cost)}"
        worst = max(check.difference for check in self.checks)
        return (
            f"{made}: {self.runtime} {self.version} answers {self.checks[0].images} images as"
            f" the released model does, to {worst:.1e} of a logit where"
            f" {self.checks[0].allowed:.1e} is allowed"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return what parity.json holds."""
        known = {
            name: getattr(self.release, name)
            for name in ("model_sha256", "image_size", "short_side", "temperature")
        }
        numbers = {"model": self.release.title} | known | asdict(replace(self, release=None))  # type: ignore[arg-type]
        del numbers["release"]
        return numbers | {
            "directory": str(self.directory),
            "file": str(self.file),
            "page": str(self.page),
        }


def export(
    release: Release,
    to: str,
    output: Path,
    images: Sequence[bytes],
    *,
    int8: bool = False,
    calibration: Labeled = (),
    test: Labeled = (),
    max_error_rise: float = MAX_ERROR_RISE,
    progress: Progress = lambda _: None,
) -> Exported:
    """Write a release in another format, read it back by that format's runtime, and keep it if it answers as the release does.

    Args:
        release: verified, as `open_release` gives it.
        to: one of `FORMATS`.
        output: the folder to make, complete or not at all; an earlier export there is replaced at
            the end.
        images: real images to compare on, each a file's bytes.
        int8: LiteRT in 8-bit integers.
        calibration: training images and their classes, for the ranges of the integers. The first
            `CALIBRATION_IMAGES` are read, so in an order that mixes the classes.
        test: images and their right classes, for what int8 costs.
        max_error_rise: by how much int8 may raise the top-1 error, as a share of the test images
            in [0, 1].
        progress: told in words what is being done.

    Raises:
        ConfigError: the format is not known, its packages are missing, the place is taken, or
            images are missing.
        DatasetError: an image cannot be used.
        CheckpointError: the released model cannot be opened.
        GateError: it has no form in this format, or the export does not answer as it should;
            nothing is written.
    """
    place = output.expanduser().resolve()
    _require_possible(to, int8, images)
    with _complete_or_absent(place, to) as folder, tempfile.TemporaryDirectory() as scratch:
        progress("opening the released model")
        classifier = load_classifier(release)
        job = _Job(
            classifier, answering(classifier), _seen(classifier, images), Path(scratch), progress
        )
        exported = (
            _integers(job, folder, calibration, test, max_error_rise)
            if int8
            else _floats(job, to, folder)
        )
        exported = replace(exported, directory=place)
        write_text(folder / _PARITY_FILE, json.dumps(exported.as_dict(), indent=1, allow_nan=False))
        write_text(folder / _REPORT_FILE, _page(exported))
    return exported


def _require_possible(to: str, int8: bool, images: Sequence[bytes]) -> None:
    """Raise a ConfigError unless the format is known, its packages are installed and there is something to compare on."""
    if to not in FORMATS:
        raise ConfigError(
            f"There is no format {to!r}. Expected {', '.join(FORMATS[:-1])} or {FORMATS[-1]}. Check"
            " --to."
        )
    if int8 and to != "litert":
        raise ConfigError(
            f"8-bit integers are made for litert alone. Received {to}. Type --to litert, or leave"
            " out --int8."
        )
    if not images:
        raise ConfigError(
            "There is no image to compare the export on. Expected one at least. Name a dataset"
            " with test images."
        )
    missing = [name for name in _PACKAGES[to] if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"An export to {to} needs what is not installed: {', '.join(missing)}. Expected the"
            f" extra `{to}`. Type pip install 'alexnet-pipeline[{to}]'."
        )


# -- the folder ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _complete_or_absent(place: Path, to: str) -> Iterator[Path]:
    """Give a folder to write into, which takes its place when all went well.

    Whatever was there is removed only then.

    Raises:
        ConfigError: there is something that no export made, or nothing can be written there.
    """
    partial, old = (place.with_name(f"{place.name}.{word}") for word in ("partial", "old"))
    for path in (place, partial, old):
        _require_ours(path)
    try:
        if old.exists() and not place.exists():
            old.rename(place)  # somebody was killed between the two renames below
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(
            f"{place} cannot be written ({error.strerror}). Expected a place in a folder of your"
            " own. Name another with --output."
        ) from error
    try:
        write_text(
            partial / _PARITY_FILE, json.dumps({"format": to})
        )  # so that the next export knows whose it is
        yield partial
        shutil.rmtree(old, ignore_errors=True)
        if place.exists():
            place.rename(old)
        partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _require_ours(path: Path) -> None:
    """Raise a ConfigError if a path holds what may not be removed.

    Anything but an export, whole or begun, or an empty folder.
    """
    if not path.exists():
        return
    if path.is_dir():
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if (
                not any(path.iterdir())
                or json.loads((path / _PARITY_FILE).read_text(encoding="utf-8")).get("format")
                in FORMATS
            ):
                return
    raise ConfigError(
        f"{path} is there already, and no export made it. Expected a new folder, or an earlier"
        " export. Name another with --output."
    )


# -- what is made ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    """Images as files' bytes and as uint8 [images, size, size, 3], and what the released model says of them."""

    files: Sequence[bytes]
    pixels: Any
    logits: Floats
    probabilities: Floats

    @property
    def allowed(self) -> float:
        """How far a logit may be off.

        Float32 sums in another order, and the larger they are the more they lose.
        """
        return TOLERANCE * max(1.0, float(np.abs(self.logits).max()))


@dataclass(frozen=True)
class _Job:
    """What both kinds of export need.

    The released model, the network to write, images, a folder for work, and who is told.
    """

    classifier: Classifier
    network: Any
    seen: _Seen
    scratch: Path
    progress: Progress

    @property
    def release(self) -> Release:
        """With sizes and class names, as far as the file knows more than its record."""
        return self.classifier.release


def _floats(job: _Job, to: str, folder: Path) -> Exported:
    """Write the network as it is, and require the same answers of it."""
    path = _written(job, to, folder)
    read = _read_back(job, to, [path], rounds=_TIMED_CALLS)
    checks = tuple(
        _check(name, *answers, job.seen, job.seen.allowed)
        for name, answers in read.answers[0].items()
    )
    _require_alike(job, to, read, checks)
    return Exported(
        job.release, to, False, read.runtime, read.version, _bytes(path), read.seconds[0], checks
    )


def _integers(
    job: _Job, folder: Path, calibration: Labeled, test: Labeled, max_rise: float
) -> Exported:
    """Write the network in float32, which must answer alike, and from the same graph in integers, whose errors are counted."""
    first = [encoded for encoded, _ in itertools.islice(calibration, CALIBRATION_IMAGES)]
    _require_any(first, "calibration")
    floating = job.scratch / "float32"
    floating.mkdir()
    paths = [
        _written(job, "litert", floating),
        _written(job, "litert", folder, calibration=_pixels(job.classifier, first)),
    ]
    read = _read_back(job, "litert", paths, rounds=_TIMED_CALLS)
    exact, rounded = (answers["image"] for answers in read.answers)
    _require_alike(job, "litert", read, (_check("image", *exact, job.seen, job.seen.allowed),))
    wrong, int8_wrong = _both_wrong(job, paths[1], test)
    cost = _cost(wrong, int8_wrong, _bytes(paths[0]), read.seconds[0])
    if cost.rise > max_rise:
        raise GateError(
            f"8-bit integers cost too much: {_cost_text(cost)}. Expected a rise of at most"
            f" {_points(max_rise)}. Nothing was written: leave out --int8, or calibrate with other"
            " images."
        )
    checks = (_check("image", *rounded, job.seen, None),)
    return Exported(
        job.release,
        "litert",
        True,
        read.runtime,
        read.version,
        _bytes(paths[1]),
        read.seconds[1],
        checks,
        cost,
    )


def _written(job: _Job, to: str, folder: Path, **settings: Any) -> Path:
    """Write the network, and return the file.

    Raises:
        GateError: it has no form in this format.
    """
    job.progress(f"writing {to}{' in 8-bit integers' if settings else ''}")
    try:
        return WRITERS[to](job.network, job.release, folder, **settings)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        raise GateError(
            f"{job.release.title} has no form in {to} ({type(error).__name__}:"
            f" {' '.join(str(error).split())[:300]}). Expected layers that the format knows."
            " Nothing was written: choose another with --to."
        ) from error


def _seen(classifier: Classifier, files: Sequence[bytes]) -> _Seen:
    """Let the released model answer images."""
    pixels = _pixels(classifier, files)
    logits = _logits(classifier, pixels)
    return _Seen(files, pixels, logits, classifier.probabilities(logits))


def _pixels(classifier: Classifier, files: Sequence[bytes]) -> Any:
    """Return uint8 [images, size, size, 3] in [0, 255] of files' bytes.

    Raises:
        DatasetError: one cannot be used.
    """
    try:
        with ThreadPoolExecutor() as threads:
            return np.stack(list(threads.map(classifier.pixels, files)))
    except UnusableError as error:
        raise DatasetError(
            f"An image for the export cannot be used: {error}. Expected those of a prepared"
            " dataset. Name another one."
        ) from error


def _logits(classifier: Classifier, pixels: Any) -> Floats:
    """Return float32 [images, classes], computed by the processor.

    A GPU may round products to ten bits, and no reader uses one.
    """
    with tf.device("CPU:0"):
        return classifier.logits(pixels)


def _require_any(images: Sequence[Any], what: str) -> None:
    if not images:
        raise ConfigError(
            f"8-bit integers need {what} images, and there is none. Name a dataset, or leave out"
            " --int8."
        )


def _bytes(path: Path) -> int:
    """Return the size of a file, or of all files of a model's folder."""
    files = (
        [path]
        if path.is_file()
        else [file for file in path.rglob("*") if file.is_file() and file.name != _PARITY_FILE]
    )
    return sum(file.stat().st_size for file in files)


# -- reading back ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Read:
    """What a runtime says of itself and of models.

    Class names, (logits, probabilities) of each endpoint, and seconds for an image.
    """

    runtime: str
    version: str
    class_names: Sequence[Sequence[str]]
    answers: Sequence[Mapping[str, tuple[Floats, Floats]]]
    seconds: Sequence[float]


def _read_back(
    job: _Job, to: str, paths: Sequence[Path], seen: Any = None, *, rounds: int = 0
) -> _Read:
    """Let a clean process open models and answer images.

    Those of the job, or uint8 [images, size, size, 3] without files.

    Raises:
        GateError: the runtime cannot.
    """
    with tempfile.TemporaryDirectory(dir=job.scratch) as name:
        folder = Path(name)
        (folder / "files").mkdir()
        np.save(folder / "pixels.npy", job.seen.pixels if seen is None else seen)
        for place, encoded in enumerate(job.seen.files if seen is None else ()):
            (folder / "files" / f"{place:06d}").write_bytes(encoded)
        request = {"format": to, "models": [os.fspath(path) for path in paths], "rounds": rounds}
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        _run_reader(folder, to)
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        answers = []
        for place, model in enumerate(report["models"]):
            files = {
                endpoint: np.load(folder / f"{place}-{endpoint}.npz")
                for endpoint in model["endpoints"]
            }
            answers.append(
                {
                    endpoint: (file["logits"], file["probabilities"])
                    for endpoint, file in files.items()
                }
            )
    names, seconds = (
        [model[what] for model in report["models"]] for what in ("class_names", "seconds")
    )
    return _Read(report["runtime"], report["version"], names, answers, seconds)


def _run_reader(folder: Path, to: str) -> None:
    """Run the reader as a script that finds no module of ours, on the processor."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    words = [sys.executable, "-P", readback.__file__, os.fspath(folder)]
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise GateError(
            f"{readback.RUNTIMES[to]} cannot read the export back ({last[:300]}). Expected answers."
            " Nothing was written: choose another format with --to."
        )


def _check(
    endpoint: str, logits: Floats, probabilities: Floats, seen: _Seen, allowed: float | None
) -> Check:
    """Compare float32 [images, classes] logits and probabilities of an endpoint with the released model's."""
    if logits.shape != seen.logits.shape:
        return Check(endpoint, len(seen.logits), float("inf"), allowed, 1.0, 0)
    return Check(
        endpoint,
        images=len(logits),
        difference=float(np.abs(logits - seen.logits).max()),
        allowed=allowed,
        probability_difference=float(np.abs(probabilities - seen.probabilities).max()),
        same_top5=_same_top5(logits, seen),
    )


def _same_top5(logits: Floats, seen: _Seen) -> int:
    """Return for how many images the released model gives the same logits, in order, to its own best five and to the export's."""
    best, found = (
        np.argsort(-values, axis=1, kind="stable")[:, :5] for values in (seen.logits, logits)
    )
    own, others = (np.take_along_axis(seen.logits, places, axis=1) for places in (best, found))
    return int(np.sum(np.all(np.abs(own - others) <= 2 * seen.allowed, axis=1)))


def _require_alike(job: _Job, to: str, read: _Read, checks: Sequence[Check]) -> None:
    """Raise a GateError unless every endpoint answers as the released model does, and every model has its class names."""
    allowed = job.seen.allowed
    # Softmax moves a probability by at most half of what it moves a logit, after the division by
    # the temperature.
    sure = max(TOLERANCE, allowed / job.release.temperature)
    for check in checks:
        alike = (
            check.difference <= allowed
            and check.probability_difference <= sure
            and check.same_top5 == check.images
        )
        if not alike:
            raise GateError(
                f"The export to {to} does not answer as the released model does. Expected logits of"
                f" `{check.endpoint}` within {allowed:.1e}, probabilities within {sure:.1e} and the"
                f" same best five on {check.images} images. Received differences of"
                f" {check.difference:.1e} and {check.probability_difference:.1e}, and the same best"
                f" five on {check.same_top5}. Nothing was written: choose another format with --to."
            )
    if any(tuple(names) != job.release.class_names for names in read.class_names):
        raise GateError(
            f"The export to {to} gives other class names. Expected those of the release:"
            f" {', '.join(job.release.class_names)[:100]}. Received"
            f" {', '.join(read.class_names[0])[:100]}. Nothing was written: choose another format"
            " with --to."
        )


# -- what integers cost ----------------------------------------------------------------------------


def _both_wrong(job: _Job, path: Path, test: Labeled) -> tuple[Any, Any]:
    """Return bool [images], whether the first guess is wrong.

    The released model's, and that of the integers in a file.
    """
    images = iter(test)
    wrong, int8_wrong = list[Any](), list[Any]()
    while window := list(itertools.islice(images, _WINDOW)):
        pixels, labels = (
            _pixels(job.classifier, [encoded for encoded, _ in window]),
            np.asarray([label for _, label in window]),
        )
        logits, _ = _read_back(job, "litert", [path], pixels).answers[0]["image"]
        wrong.append(_logits(job.classifier, pixels).argmax(axis=1) != labels)
        int8_wrong.append(logits.argmax(axis=1) != labels)
        job.progress(f"counting what int8 costs: {sum(map(len, wrong)):,} test images")
    _require_any(wrong, "test")
    return np.concatenate(wrong), np.concatenate(int8_wrong)


def _cost(wrong: Any, int8_wrong: Any, float_bytes: int, float_seconds: float) -> Cost:
    """Count bool [images] of both."""
    images, errors, int8_errors = len(wrong), int(wrong.sum()), int(int8_wrong.sum())
    only_int8, only_float = int(np.sum(int8_wrong & ~wrong)), int(np.sum(wrong & ~int8_wrong))
    level = 0.025  # at either end
    return Cost(
        images=images,
        float_top1_error=errors / images,
        float_interval=wilson_interval(errors, images),
        int8_top1_error=int8_errors / images,
        int8_interval=wilson_interval(int8_errors, images),
        rise=(only_int8 - only_float) / images,
        rise_interval=(
            lower_bound(only_int8, only_float, images, level),
            upper_bound(only_int8, only_float, images, level),
        ),
        float_bytes=float_bytes,
        float_seconds=float_seconds,
    )


# -- in words --------------------------------------------------------------------------------------


def _cost_text(cost: Cost) -> str:
    low, high = map(_points, cost.rise_interval)
    return (
        f"top-1 error {percent(cost.int8_top1_error)} in place of {percent(cost.float_top1_error)}"
        f" on {cost.images:,} test images, a rise of {_points(cost.rise)} (95 % interval {low}"
        f" to {high})"
    )


def _points(share: float) -> str:
    return f"{100 * share + 0.0:.1f} points"  # + 0.0: no `-0.0`


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size / 1e3:,.1f} kB"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _page(exported: Exported) -> str:
    release, runtime = exported.release, f"{exported.runtime} {exported.version}"
    what = [
        ("model", release.title),
        ("SHA-256 of the released model", release.model_sha256),
        ("format", exported.kind),
        ("give to the runtime", _FILES[exported.format] or "this folder"),
        ("size", _megabytes(exported.bytes)),
        ("one image in a call, here", f"{_milliseconds(exported.seconds)}, {runtime}"),
        ("pixels in", f"{release.image_size} x {release.image_size} x 3, uint8"),
        ("classes out", f"{len(release.class_names):,}"),
        ("temperature of the probabilities", f"{release.temperature:.4g}"),
    ]
    rows = [
        (
            check.endpoint,
            runtime,
            f"{check.images:,}",
            f"{check.difference:.1e}",
            "as below" if check.allowed is None else f"{check.allowed:.1e}",
            f"{check.probability_difference:.1e}",
            f"{check.same_top5:,}",
        )
        for check in exported.checks
    ]
    headings = (
        "endpoint",
        "read back by",
        "images",
        "largest difference of a logit",
        "allowed",
        "of a probability",
        "same best five",
    )
    sections = [
        PageSection("What it is", _pixels_text(release), [Table(("", ""), what)]),
        PageSection("Compared with the released model", _PARITY_TEXT, [Table(headings, rows)]),
    ]
    if exported.cost:
        sections.append(
            PageSection(
                "What 8-bit integers cost", _COST_TEXT, [_cost_table(exported, exported.cost)]
            )
        )
    return render_page(
        f"{release.title} as {exported.kind}",
        f"{exported.headline()}.",
        sections,
        f"Model {release.model_sha256[:12]}.",
    )


def _cost_table(exported: Exported, cost: Cost) -> Table:
    intervals = [
        f"{percent(low)} to {percent(high)}"
        for low, high in (cost.float_interval, cost.int8_interval)
    ]
    rows = [
        ("top-1 error", percent(cost.float_top1_error), percent(cost.int8_top1_error)),
        ("its 95 % interval", *intervals),
        ("file", _megabytes(cost.float_bytes), _megabytes(exported.bytes)),
        (
            "one image in a call, here",
            _milliseconds(cost.float_seconds),
            _milliseconds(exported.seconds),
        ),
    ]
    return Table((f"{cost.images:,} test images", "float32", "int8"), rows)


def _pixels_text(release: Release) -> str:
    return (
        f"Pixels are levels of 0-255 in the order red, green, blue: the middle {release.image_size}"
        f" x {release.image_size} of the upright image's central square, resized to"
        f" {release.short_side} x {release.short_side}. Nothing else is to be done to them: the"
        " mean is taken off inside. A SavedModel's endpoint `jpeg` does all of it, from a file's"
        " bytes; so does pixels.py, which lies beside the other formats."
    )


_PARITY_TEXT = (
    "The export was opened by its own runtime in a process without Keras and without this program,"
    " and answered real images. What is allowed is float32 rounding: 0.00001 of the largest"
    " logit, or of 1 where none is larger."
)
_COST_TEXT = (
    "Integers of 8 bits cannot answer as float32 does, so they are judged by their errors on test"
    " images, which both networks answered. Times are medians on this machine, the two in turn; a"
    " processor may well take longer over integers than over float32."
)
