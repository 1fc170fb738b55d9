"""The page of an evaluation and its numbers, drawn from what the stage stored.

The verdict first, then the errors of the network, then its inside. Nothing here needs the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.files import write_text
from pipeline.reports.evaluation.data import EvaluationData, SliceRow, load_evaluation_data
from pipeline.reports.evaluation.inspection_sections import build_inspection_sections
from pipeline.reports.evaluation.sections import (
    build_calibration_section,
    build_confusion_section,
    build_guess_sections,
    build_robustness_section,
    build_slice_sections,
)
from pipeline.reports.evaluation.tables import tabulate_classes, tabulate_headline, tabulate_speed
from pipeline.reports.html import PageSection, render_page
from pipeline.reports.numbers import (
    format_count,
    format_percent,
    format_percent_interval,
)

if TYPE_CHECKING:
    from pipeline.artifacts import EvaluationReport

_MIN_WORST_IMAGES = 40  # in a slice that the verdict names; the worst of smaller ones is chance
_MAX_VALUE_LETTERS = 40
_SPEED_TEXT = (
    "Measured by the clock of the machine that evaluated; other programs may have used it, too."
)


def draw_evaluation_pages(record: EvaluationReport, folder: Path) -> None:
    """Write report.html with its PNG files, metrics.json and speed.json into an existing folder.

    Args:
        record: of a finished evaluation, whose folder holds its report data.
        folder: an empty folder.

    Raises:
        CheckpointError: the report data is missing or damaged.
    """
    data = load_evaluation_data(record.directory)
    _write_json(folder / "metrics.json", data.metrics)
    if data.speed_readings is not None:
        _write_json(folder / "speed.json", data.speed_readings)
    title = f"Evaluation on the {data.split} split"
    page = render_page(
        title,
        describe_result(data),
        _build_evaluation_sections(folder, data),
        _describe_sources(record, data),
    )
    write_text(folder / "report.html", page)


def _build_evaluation_sections(folder: Path, data: EvaluationData) -> list[PageSection]:
    sections = [
        PageSection(
            "Metrics",
            f"By the {data.view}, every image once.",
            tables=[tabulate_headline(data)],
        ),
        build_confusion_section(folder, data),
        PageSection("Classes, the lowest F1 first", tables=[tabulate_classes(data)]),
        *build_slice_sections(folder, data),
        build_calibration_section(folder, data),
        *build_guess_sections(folder, data),
        *build_inspection_sections(folder, data),
    ]
    if data.robustness is not None:
        sections.append(build_robustness_section(folder, data.robustness))
    if data.speed is not None:
        sections.append(PageSection("Speed", _SPEED_TEXT, [tabulate_speed(data.speed)]))
    return sections


def describe_result(data: EvaluationData) -> str:
    """Return the result in a few sentences.

    The error with its interval, that of always answering the commonest class, and the worst slice.
    """
    low, high = data.intervals["top1_error"]
    doubt = "" if high < data.majority_error else " The network is not clearly better than that."
    images = f"{data.images:,} {data.split} {'image' if data.images == 1 else 'images'}"
    return (
        f"Wrong on {format_percent(data.values['top1_error'])} of {images}, {data.view}"
        f" (95 % interval {format_percent_interval((low, high))}); always answering the commonest"
        f" class would be wrong on {format_percent(data.majority_error)}."
        f"{doubt}{_describe_worst_slice(data.slices)}"
    )


def _describe_worst_slice(slices: Sequence[SliceRow]) -> str:
    """Name the worst slice that is clearly worse, and too large for its error to be chance."""
    for item in slices:
        if item.attribute != "class" and item.clearly_worse and item.images >= _MIN_WORST_IMAGES:
            named = len(item.value) <= _MAX_VALUE_LETTERS
            where = f"{item.attribute} {item.value}" if named else item.attribute
            error = format_percent(item.top1_error)
            return f" Worst slice: {where}, wrong on {error} of {format_count(item.images)}."
    return ""


def _describe_sources(record: EvaluationReport, data: EvaluationData) -> str:
    return (
        f"Model {record.model_sha256[:12]}, dataset {data.dataset_name}"
        f" {record.dataset_digest[:12]}, {data.view}, every image once."
    )


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(document, indent=1, allow_nan=False))
