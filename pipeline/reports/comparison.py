"""The page of a comparison of two models, drawn from its comparison.json alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

from pipeline.files import write_text
from pipeline.reports.evaluation.tables import MEASURES
from pipeline.reports.html import PageSection, Table, render_page
from pipeline.reports.numbers import (
    format_count,
    format_decimal,
    format_percent,
    format_points,
    format_points_interval,
)

COMPARISON_FILE, COMPARISON_PAGE = "comparison.json", "report.html"
_SIGNIFICANCE_LEVEL = 0.05
_NUMBERS_TEXT = (
    "Each interval is that of the difference, from bootstrap samples of the images in which both"
    " models are scored on the same ones. One that does not hold 0 is unlikely to be chance, for"
    " that number alone."
)
_COUNTS_TEXT = (
    "McNemar's test looks at the images that one model alone answers wrong: if both erred as"
    " often, each model would be the wrong one for about half of them."
)


class MeasureDocument(TypedDict):
    """One number of both models, and second less first with its 95 % interval."""

    name: str
    first: float
    second: float
    difference: float
    interval: tuple[float, float]


class DisagreementDocument(TypedDict):
    """An image that one model answers right and the other wrong: class ids."""

    key: str
    label: int
    first: int
    second: int


class ComparisonDocument(TypedDict):
    """The content of comparison.json.

    `first` and `second` are the folders of the evaluations, `recall_changes` one number per class,
    second less first.
    """

    first: str
    second: str
    first_model_sha256: str
    second_model_sha256: str
    dataset_digest: str
    class_names: list[str]
    split: str
    view: str
    images: int
    both_wrong: int
    only_first_wrong: int
    only_second_wrong: int
    p_value: float
    measures: list[MeasureDocument]
    recall_changes: list[float]
    disagreements: list[DisagreementDocument]
    page: str
    verdict: str


def draw_comparison_page(folder: Path) -> None:
    """Write report.html beside the comparison.json of a folder."""
    document: ComparisonDocument = json.loads(
        (folder / COMPARISON_FILE).read_text(encoding="utf-8")
    )
    page = render_page(
        "Two models on the same images",
        describe_verdict(document),
        _build_comparison_sections(document),
        f"Dataset {document['dataset_digest'][:12]}.",
    )
    write_text(folder / COMPARISON_PAGE, page)


def describe_verdict(comparison: ComparisonDocument) -> str:
    """Return in a sentence which model is better, or that there is no clear difference."""
    errors = next(item for item in comparison["measures"] if item["name"] == "top1_error")
    numbers = (
        f"wrong on {format_percent(errors['second'])} against {format_percent(errors['first'])} of"
        f" {comparison['images']:,} {comparison['split']} images, {comparison['view']}; a"
        f" difference of {format_points(errors['difference'])} (95 % interval"
        f" {format_points_interval(errors['interval'])}), McNemar's test p ="
        f" {comparison['p_value']:.2g}"
    )
    if comparison["p_value"] >= _SIGNIFICANCE_LEVEL:
        return f"No clear difference: the second is {numbers}."
    return f"The second is {'better' if errors['difference'] < 0 else 'worse'}: {numbers}."


def tabulate_measures(comparison: ComparisonDocument) -> Table:
    """Return one row per number: both models, their difference and its interval."""
    labels, rows = dict(MEASURES), []
    for item in comparison["measures"]:
        if item["name"] not in labels:
            continue
        low, high = item["interval"]
        if item["name"].endswith("loss"):
            values = [format_decimal(item[model]) for model in ("first", "second")]
            change, interval = f"{item['difference']:+.4f}", f"{low:+.4f} to {high:+.4f}"
        else:
            values = [format_percent(item[model]) for model in ("first", "second")]
            change = format_points(item["difference"])
            interval = format_points_interval((low, high))
        rows.append((labels[item["name"]], *values, change, interval))
    return Table(("measure", "first", "second", "second less first", "its 95 % interval"), rows)


def _build_comparison_sections(comparison: ComparisonDocument) -> list[PageSection]:
    sections = [
        PageSection("Models", tables=[_tabulate_models(comparison)]),
        PageSection("Metrics", _NUMBERS_TEXT, [tabulate_measures(comparison)]),
        PageSection("Right and wrong", _COUNTS_TEXT, [_tabulate_counts(comparison)]),
        PageSection(
            "Classes, the largest loss first", tables=[_tabulate_recall_changes(comparison)]
        ),
    ]
    listed = len(comparison["disagreements"])
    if listed:
        total = comparison["only_first_wrong"] + comparison["only_second_wrong"]
        heading = f"Disagreements: {listed:,} of {format_count(total, 'image')}"
        sections.append(PageSection(heading, tables=[_tabulate_disagreements(comparison)]))
    return sections


def _tabulate_models(comparison: ComparisonDocument) -> Table:
    rows = [
        ("first", comparison["first_model_sha256"][:12], Path(comparison["first"]).name),
        ("second", comparison["second_model_sha256"][:12], Path(comparison["second"]).name),
    ]
    return Table(("", "model", "evaluation"), rows)


def _tabulate_counts(comparison: ComparisonDocument) -> Table:
    both, first, second = (
        comparison["both_wrong"],
        comparison["only_first_wrong"],
        comparison["only_second_wrong"],
    )
    both_right = comparison["images"] - both - first - second
    return Table(
        ("images", "second right", "second wrong"),
        [
            ("first right", format_count(both_right), format_count(second)),
            ("first wrong", format_count(first), format_count(both)),
        ],
    )


def _tabulate_recall_changes(comparison: ComparisonDocument) -> Table:
    changes = comparison["recall_changes"]
    order = sorted(range(len(changes)), key=lambda index: changes[index])
    return Table(
        ("class", "recall, second less first"),
        [(comparison["class_names"][index], format_points(changes[index])) for index in order],
    )


def _tabulate_disagreements(comparison: ComparisonDocument) -> Table:
    names = comparison["class_names"]
    rows = [
        (item["key"], names[item["label"]], names[item["first"]], names[item["second"]])
        for item in comparison["disagreements"]
    ]
    return Table(("image", "correct class", "first answers", "second answers"), rows)
