"""Two models on the same images: what differs, how sure that is, and on which images they part."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from pipeline.artifacts import EvaluationReport
from pipeline.errors import ConfigError, DatasetError
from pipeline.evaluate.metrics import MEASURES, Tally, headline_numbers, percent, shifted_interval
from pipeline.evaluate.predictions import read_columns, read_logits
from pipeline.files import write_text
from pipeline.reports.html import PageSection, Table, render_page

_SHOWN = 40  # images on which the two part
_LIKELY = 0.05


@dataclass(frozen=True)
class Measured:
    """One number of both models, and second less first with its 95 % interval, from resamples of the images that both share."""

    name: str
    first: float
    second: float
    difference: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Parted:
    """An image that one of the two answers right and the other wrong: classes by number."""

    key: str
    label: int
    first: int
    second: int


@dataclass(frozen=True)
class Comparison:
    """Two evaluations side by side.

    `p_value` is that of McNemar's exact test: how likely so uneven a split of the images that one
    alone answers wrong would be if both erred as often. `by_class` is the change of each class's
    recall, `parted` some of the images on which they part.
    """

    first: EvaluationReport
    second: EvaluationReport
    images: int
    both_wrong: int
    only_first_wrong: int
    only_second_wrong: int
    p_value: float
    measures: tuple[Measured, ...]
    by_class: tuple[float, ...]
    parted: tuple[Parted, ...]
    page: Path = Path()

    @property
    def top1_error(self) -> Measured:
        """The top-1 errors."""
        return next(item for item in self.measures if item.name == "top1_error")

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON can hold it."""
        found = asdict(replace(self, first=None, second=None))  # type: ignore[arg-type]
        found |= {name: str(getattr(self, name).directory) for name in ("first", "second")}
        return found | {
            "split": self.first.split,
            "view": self.first.view,
            "page": str(self.page),
            "verdict": verdict(self),
        }


def compare_reports(first: EvaluationReport, second: EvaluationReport) -> Comparison:
    """Compare two evaluations of the same images in the same view.

    Raises:
        ConfigError: the views or the splits are unlike.
        DatasetError: the images are not the same ones in the same order.
    """
    for what in ("split", "view"):
        one, other = getattr(first, what), getattr(second, what)
        if one != other:
            raise ConfigError(
                f"The two evaluations cannot be compared: unlike {what}s. Expected the same {what}"
                f" of the same images. Received `{one}` and `{other}`. Type `alexnet evaluate`"
                " for one of them again with that of the other."
            )
    if first.images_sha256 != second.images_sha256 or first.class_names != second.class_names:
        what = "images" if first.class_names == second.class_names else "classes"
        raise DatasetError(
            f"The two evaluations are not of the same {what}. Expected the same names, labels and"
            f" bytes of {first.images:,} images in the same order, and the same classes. Received"
            f" {second.images:,} images with other {what}. Judge both on one dataset: `alexnet"
            " ingest evaluate --model ... --dataset ...`."
        )
    keys, labels, answers, other_answers = _answers(first, second)
    wrong, other_wrong = answers != labels, other_answers != labels
    only_first, only_second = int(np.sum(wrong & ~other_wrong)), int(np.sum(other_wrong & ~wrong))
    tallies = [_tally(report) for report in (first, second)]
    parted = np.flatnonzero(wrong != other_wrong)
    return Comparison(
        first=first,
        second=second,
        images=len(labels),
        both_wrong=int(np.sum(wrong & other_wrong)),
        only_first_wrong=only_first,
        only_second_wrong=only_second,
        p_value=mcnemar(only_first, only_second),
        measures=_measures(*tallies),
        by_class=_recall_changes(*tallies),
        parted=tuple(
            Parted(keys[place], int(labels[place]), int(answers[place]), int(other_answers[place]))
            for place in parted[:_SHOWN]
        ),
    )


def _answers(first: EvaluationReport, second: EvaluationReport) -> tuple[list[str], Any, Any, Any]:
    """Return names and labels of the images, and the first guesses of both models."""
    try:
        keys, labels, answers = read_columns(first.predictions_path, "key", "label", "answer")
        (other_answers,) = read_columns(second.predictions_path, "answer")
    except (OSError, ValueError) as error:
        raise DatasetError(
            "The predictions of an evaluation cannot be read"
            f" ({' '.join(str(error).split())[:150]}). Expected the file that evaluate wrote. Type"
            " `alexnet evaluate --rerun evaluate`."
        ) from error
    return keys, labels, answers, other_answers


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test for the images that one model alone answers wrong; 1 if there are none."""
    parted = only_first + only_second
    return float(stats.binomtest(only_first, parted).pvalue) if parted else 1.0


def _tally(report: EvaluationReport) -> Tally:
    """Count a model's predictions.

    Equal seeds draw equal resamples, so two of these are paired resample by resample.
    """
    tally: Tally | None = None
    for logits, labels in read_logits(report.predictions_path):
        tally = tally or Tally(logits.shape[1], 0, temperature=report.temperature)
        tally.add(logits, labels)
    if tally is None:
        raise DatasetError(
            f"The predictions in {report.directory} hold no image. Type `alexnet evaluate --rerun"
            " evaluate`."
        )
    return tally


def _measures(first: Tally, second: Tally) -> tuple[Measured, ...]:
    one, other = headline_numbers(first.rows()), headline_numbers(second.rows())
    found = []
    for name in one:
        change = other[name] - one[name]
        interval = shifted_interval(change[0], change[1:])
        found.append(
            Measured(name, float(one[name][0]), float(other[name][0]), float(change[0]), interval)
        )
    return tuple(found)


def _recall_changes(first: Tally, second: Tally) -> tuple[float, ...]:
    support = np.maximum(first.confusion.sum(axis=1), 1)
    return tuple(((np.diag(second.confusion) - np.diag(first.confusion)) / support).tolist())


# -- the page --------------------------------------------------------------------------------------


def verdict(comparison: Comparison) -> str:
    """Say in a sentence which model is better, if that can be said."""
    errors = comparison.top1_error
    low, high = errors.interval
    numbers = (
        f"wrong on {percent(errors.second)} against {percent(errors.first)} of"
        f" {comparison.images:,} {comparison.first.split} images, {comparison.first.view}; a"
        f" difference of {points(errors.difference)} (95 % interval {points(low)} to"
        f" {points(high)}), McNemar's test p = {comparison.p_value:.2g}"
    )
    if comparison.p_value >= _LIKELY:
        return f"No clear difference: the second is {numbers}."
    return f"The second is {'better' if errors.difference < 0 else 'worse'}: {numbers}."


def points(share: float) -> str:
    """Return a difference of shares as `-1.4 points`."""
    return f"{100 * share:+.1f} points"


def measure_table(comparison: Comparison) -> Table:
    """Return a row a number, of both models and their difference."""
    words, rows = dict(MEASURES), []
    for item in comparison.measures:
        if item.name in words:
            loss = item.name.endswith("loss")
            shown = [
                f"{value:.4f}" if loss else percent(value) for value in (item.first, item.second)
            ]
            change = [
                f"{value:+.4f}" if loss else points(value)
                for value in (item.difference, *item.interval)
            ]
            rows.append((words[item.name], *shown, change[0], f"{change[1]} to {change[2]}"))
    return Table(("measure", "first", "second", "second less first", "its 95 % interval"), rows)


def write_comparison(comparison: Comparison, folder: Path) -> Comparison:
    """Write the page and comparison.json into a folder named after the two, and return the comparison that knows its page."""
    place = (
        folder
        / f"{comparison.first.predictions_sha256[:8]}-{comparison.second.predictions_sha256[:8]}"
    )
    place.mkdir(parents=True, exist_ok=True)
    comparison = replace(comparison, page=place / "report.html")
    write_text(
        place / "comparison.json", json.dumps(comparison.as_dict(), indent=1, allow_nan=False)
    )
    write_text(comparison.page, _page(comparison))
    return comparison


def _page(comparison: Comparison) -> str:
    names = comparison.first.class_names
    counts = Table(
        ("images", "second right", "second wrong"),
        [
            ("first right", f"{_both_right(comparison):,}", f"{comparison.only_second_wrong:,}"),
            ("first wrong", f"{comparison.only_first_wrong:,}", f"{comparison.both_wrong:,}"),
        ],
    )
    order = np.argsort(comparison.by_class, kind="stable")
    classes = Table(
        ("class", "recall, second less first"),
        [(names[place], points(comparison.by_class[place])) for place in order],
    )
    parted = Table(
        ("image", "correct class", "first answers", "second answers"),
        [
            (item.key, names[item.label], names[item.first], names[item.second])
            for item in comparison.parted
        ],
    )
    many = comparison.only_first_wrong + comparison.only_second_wrong
    both = ((name, getattr(comparison, name)) for name in ("first", "second"))
    models = Table(
        ("", "model", "evaluation"),
        [(name, report.model_sha256[:12], report.directory.name) for name, report in both],
    )
    sections = [
        PageSection("The two", tables=[models]),
        PageSection("In numbers", _NUMBERS_TEXT, [measure_table(comparison)]),
        PageSection("Right and wrong", _COUNTS_TEXT, [counts]),
        PageSection("Classes, the largest loss first", tables=[classes]),
    ]
    if comparison.parted:
        sections.append(
            PageSection(
                f"Where they part: {len(comparison.parted):,} of {many:,} images", tables=[parted]
            )
        )
    return render_page(
        "Two models on the same images",
        verdict(comparison),
        sections,
        f"Dataset {comparison.first.dataset_digest[:12]}.",
    )


def _both_right(comparison: Comparison) -> int:
    return (
        comparison.images
        - comparison.both_wrong
        - comparison.only_first_wrong
        - comparison.only_second_wrong
    )


_NUMBERS_TEXT = (
    "Each interval is that of the difference, from resamples of the images in which both models"
    " are judged on the same ones. One that does not hold 0 is unlikely to be chance, for that"
    " number alone."
)
_COUNTS_TEXT = (
    "McNemar's test looks at the images that one model alone answers wrong: if both erred as"
    " often, they would be dealt like coins."
)
