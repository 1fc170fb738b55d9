"""Export of a release to another runtime: written, read back, compared, then published.

writing_export(folder):                    folder.py     complete or absent
    WRITERS[format](network, ...)          formats.py    SavedModel, ONNX, LiteRT
    read_back_models(format, paths, ...)   parity.py     by readback.py, in a clean process
    float32: require_parity(...)           parity.py     same logits, to rounding
    int8: count_errors, compute_cost       integer_cost.py
    parity.json and report.html            record.py, pipeline.reports.export
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tensorflow as tf

from pipeline.errors import ConfigError, GateError, describe_cause
from pipeline.export.folder import writing_export
from pipeline.export.formats import WRITERS, make_export_network
from pipeline.export.integer_cost import compute_cost, count_errors
from pipeline.export.parity import (
    ReferenceAnswers,
    compare_endpoint,
    compute_reference,
    decode_images,
    read_back_models,
    require_parity,
)
from pipeline.export.record import FORMATS, PARITY_FILE, REPORT_FILE, ExportRecord
from pipeline.files import write_text
from pipeline.release.classify import Classifier, load_classifier
from pipeline.release.package import Release
from pipeline.reports.export import describe_cost, render_export_page
from pipeline.reports.numbers import format_points

if TYPE_CHECKING:
    from pipeline.arrays import Images, Network

MAX_ERROR_RISE = 0.05
PARITY_IMAGES = 100
# TensorFlow's guide asks for a few hundred; each passes through the network alone.
CALIBRATION_IMAGES = 200
_FORMAT_PACKAGES: Mapping[str, Sequence[str]] = {
    "savedmodel": (),
    "onnx": ("tf2onnx", "onnx", "onnxruntime"),
    "litert": ("ai_edge_litert",),
}
_TIMED_CALLS = 20

LabeledFiles = Iterable[tuple[bytes, int]]
ShowProgress = Callable[[str], None]


@dataclass(frozen=True)
class _ExportJob:
    """Inputs of both kinds of export: the released model, the network to write, and images."""

    classifier: Classifier
    network: Network
    reference: ReferenceAnswers
    scratch: Path
    progress: ShowProgress

    @property
    def release(self) -> Release:
        """The release, with sizes and class names of the model file where its record has none."""
        return self.classifier.release


def export_release(
    release: Release,
    format_name: str,
    output: Path,
    images: Sequence[bytes],
    *,
    int8: bool = False,
    calibration: LabeledFiles = (),
    test: LabeledFiles = (),
    max_error_rise: float = MAX_ERROR_RISE,
    progress: ShowProgress = lambda _: None,
) -> ExportRecord:
    """Write a release in another format, and publish it if its runtime answers as the release does.

    Args:
        release: verified, as `open_release` gives it.
        format_name: one of `FORMATS`.
        output: the folder to make, complete or not at all; an earlier export there is replaced at
            the end.
        images: real images to compare on, each a file's bytes.
        int8: LiteRT in 8-bit integers.
        calibration: training images and their classes, for the ranges of the integers. The first
            `CALIBRATION_IMAGES` are read, so in an order that mixes the classes.
        test: images and their classes, for the cost of int8.
        max_error_rise: largest rise of the top-1 error by int8, as a fraction of the test images
            in [0, 1].
        progress: shows a line about the current step.

    Raises:
        ConfigError: the format is unknown, its packages are missing, the path is taken, or images
            are missing.
        DatasetError: an image cannot be used.
        CheckpointError: the released model cannot be opened.
        GateError: the network cannot be written in this format, or the export does not answer as
            the release does; nothing is written.
    """
    directory = output.expanduser().resolve()
    _require_possible(format_name, int8, images)
    with (
        writing_export(directory, format_name) as folder,
        tempfile.TemporaryDirectory() as scratch,
    ):
        progress("opening the released model")
        classifier = load_classifier(release)
        network = make_export_network(classifier)
        reference = compute_reference(classifier, images)
        job = _ExportJob(classifier, network, reference, Path(scratch), progress)
        record = (
            _export_integers(job, folder, calibration, test, max_error_rise)
            if int8
            else _export_floats(job, format_name, folder)
        )
        record = replace(record, directory=directory)
        parity = record.as_dict()
        write_text(folder / PARITY_FILE, json.dumps(parity, indent=1, allow_nan=False))
        write_text(folder / REPORT_FILE, render_export_page(parity))
    return record


def _require_possible(format_name: str, int8: bool, images: Sequence[bytes]) -> None:
    """Raise a ConfigError for an unknown format, missing packages, or no images to compare on."""
    if format_name not in FORMATS:
        raise ConfigError(
            f"Unknown format {format_name!r}",
            expected=f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}",
            hint="Check the format",
        )
    if int8 and format_name != "litert":
        raise ConfigError(
            "8-bit integers are available for litert alone",
            received=format_name,
            hint="Type `alexnet export litert`, or leave out --int8",
        )
    if not images:
        raise ConfigError(
            "There is no image to compare the export on",
            expected="at least one",
            hint="Name a dataset with test images",
        )
    missing = [
        name for name in _FORMAT_PACKAGES[format_name] if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ConfigError(
            f"An export to {format_name} needs packages that are not installed:"
            f" {', '.join(missing)}",
            expected=f"the extra `{format_name}`",
            hint=f"Type pip install 'alexnet-pipeline[{format_name}]'",
        )


def _export_floats(job: _ExportJob, format_name: str, folder: Path) -> ExportRecord:
    """Write the network in float32, which must answer as the release does."""
    path = _write_model(job, format_name, folder)
    reference = job.reference
    found = read_back_models(
        format_name, [path], reference.pixels, reference.files, job.scratch, rounds=_TIMED_CALLS
    )
    checks = tuple(
        compare_endpoint(name, *answers, reference, reference.allowed)
        for name, answers in found.answers[0].items()
    )
    require_parity(format_name, job.release, found, checks, reference.allowed)
    return ExportRecord(
        job.release,
        format_name,
        int8=False,
        runtime=found.runtime,
        version=found.version,
        bytes=_count_bytes(path),
        seconds=found.seconds[0],
        checks=checks,
    )


def _export_integers(
    job: _ExportJob,
    folder: Path,
    calibration: LabeledFiles,
    test: LabeledFiles,
    max_rise: float,
) -> ExportRecord:
    """Write LiteRT in float32, which must answer as the release does, and in int8; count errors."""
    first = [encoded for encoded, _ in itertools.islice(calibration, CALIBRATION_IMAGES)]
    _require_images(len(first), "calibration")
    floating, reference = job.scratch / "float32", job.reference
    floating.mkdir()
    paths = [
        _write_model(job, "litert", floating),
        _write_model(job, "litert", folder, decode_images(job.classifier, first)),
    ]
    found = read_back_models(
        "litert", paths, reference.pixels, reference.files, job.scratch, rounds=_TIMED_CALLS
    )
    exact, rounded = (answers["image"] for answers in found.answers)
    float_check = compare_endpoint("image", *exact, reference, reference.allowed)
    require_parity("litert", job.release, found, (float_check,), reference.allowed)
    wrong, int8_wrong = count_errors(job.classifier, paths[1], test, job.scratch, job.progress)
    _require_images(len(wrong), "test")
    cost = compute_cost(wrong, int8_wrong, _count_bytes(paths[0]), found.seconds[0])
    if cost.rise > max_rise:
        raise GateError(
            f"8-bit integers cost too much: {describe_cost(asdict(cost))}",
            expected=f"a rise of at most {format_points(max_rise)}",
            hint="Nothing was written: leave out --int8, or calibrate with other images",
        )
    return ExportRecord(
        job.release,
        "litert",
        int8=True,
        runtime=found.runtime,
        version=found.version,
        bytes=_count_bytes(paths[1]),
        seconds=found.seconds[1],
        checks=(compare_endpoint("image", *rounded, reference, None),),
        cost=cost,
    )


def _write_model(
    job: _ExportJob, format_name: str, folder: Path, calibration: Images | None = None
) -> Path:
    """Write the network, in 8-bit integers with calibration images, and return the file.

    Raises:
        GateError: the format cannot hold the network.
    """
    integers = "" if calibration is None else " in 8-bit integers"
    job.progress(f"writing {format_name}{integers}")
    settings = {} if calibration is None else {"calibration": calibration}
    try:
        return WRITERS[format_name](job.network, job.release, folder, **settings)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        raise GateError(
            f"{job.release.title} cannot be written as {format_name} ({type(error).__name__}:"
            f" {describe_cause(error, 300)})",
            expected="layers that the format supports",
            hint="Nothing was written: choose another format",
        ) from error


def _require_images(count: int, kind: str) -> None:
    if not count:
        raise ConfigError(
            f"8-bit integers need {kind} images, and there are none",
            hint="Name a dataset, or leave out --int8",
        )


def _count_bytes(path: Path) -> int:
    """Return the size of a file, or of all files of a model's folder."""
    files = (
        [path]
        if path.is_file()
        else [file for file in path.rglob("*") if file.is_file() and file.name != PARITY_FILE]
    )
    return sum(file.stat().st_size for file in files)
