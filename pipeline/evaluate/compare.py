"""Comparison of two models on the same images: the differences, and how sure they are."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from pipeline.artifacts import EvaluationReport
from pipeline.errors import ConfigError, DatasetError, describe_cause
from pipeline.evaluate.intervals import compute_bootstrap_interval
from pipeline.evaluate.metrics import Tally, compute_headline_numbers
from pipeline.evaluate.predictions import read_columns, read_logits
from pipeline.files import write_text
from pipeline.reports.comparison import (
    COMPARISON_FILE,
    COMPARISON_PAGE,
    ComparisonDocument,
    describe_verdict,
    draw_comparison_page,
)

if TYPE_CHECKING:
    from pipeline.arrays import Labels

_MAX_DISAGREEMENTS = 40  # images that are listed


@dataclass(frozen=True)
class MeasureChange:
    """One number of both models, and second less first with its 95 % interval.

    The interval is that from bootstrap samples of the images, the same for both.
    """

    name: str
    first: float
    second: float
    difference: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Disagreement:
    """An image that one model answers right and the other wrong: class ids."""

    key: str
    label: int
    first: int
    second: int


@dataclass(frozen=True)
class Comparison:
    """Two evaluations side by side.

    `p_value` is that of McNemar's exact test: how likely so uneven a split of the images that one
    alone answers wrong would be if both erred as often. `recall_changes` are those of the classes,
    second less first, `disagreements` the first images on which the two disagree.
    """

    first: EvaluationReport
    second: EvaluationReport
    images: int
    both_wrong: int
    only_first_wrong: int
    only_second_wrong: int
    p_value: float
    measures: tuple[MeasureChange, ...]
    recall_changes: tuple[float, ...]
    disagreements: tuple[Disagreement, ...]
    page: Path = Path()

    @property
    def top1_error(self) -> MeasureChange:
        """The top-1 errors."""
        return next(item for item in self.measures if item.name == "top1_error")

    def as_dict(self) -> ComparisonDocument:
        """Return the comparison as JSON can hold it."""
        document: ComparisonDocument = {
            "first": str(self.first.directory),
            "second": str(self.second.directory),
            "first_model_sha256": self.first.model_sha256,
            "second_model_sha256": self.second.model_sha256,
            "dataset_digest": self.first.dataset_digest,
            "class_names": list(self.first.class_names),
            "split": self.first.split,
            "view": self.first.view,
            "images": self.images,
            "both_wrong": self.both_wrong,
            "only_first_wrong": self.only_first_wrong,
            "only_second_wrong": self.only_second_wrong,
            "p_value": self.p_value,
            "measures": [
                {
                    "name": item.name,
                    "first": item.first,
                    "second": item.second,
                    "difference": item.difference,
                    "interval": item.interval,
                }
                for item in self.measures
            ],
            "recall_changes": list(self.recall_changes),
            "disagreements": [
                {
                    "key": item.key,
                    "label": item.label,
                    "first": item.first,
                    "second": item.second,
                }
                for item in self.disagreements
            ],
            "page": str(self.page),
            "verdict": "",
        }
        document["verdict"] = describe_verdict(document)
        return document


def compare_reports(first: EvaluationReport, second: EvaluationReport) -> Comparison:
    """Compare two evaluations of the same images in the same view.

    Raises:
        ConfigError: the views or the splits are unlike.
        DatasetError: the images are not the same ones in the same order.
    """
    _require_same_images(first, second)
    keys, labels, answers, other_answers = _read_answers(first, second)
    wrong, other_wrong = answers != labels, other_answers != labels
    only_first, only_second = int(np.sum(wrong & ~other_wrong)), int(np.sum(other_wrong & ~wrong))
    tallies = [_tally_predictions(report) for report in (first, second)]
    disagreeing = np.flatnonzero(wrong != other_wrong)
    return Comparison(
        first=first,
        second=second,
        images=len(labels),
        both_wrong=int(np.sum(wrong & other_wrong)),
        only_first_wrong=only_first,
        only_second_wrong=only_second,
        p_value=compute_mcnemar_p_value(only_first, only_second),
        measures=_compare_measures(*tallies),
        recall_changes=_compare_recalls(*tallies),
        disagreements=tuple(
            Disagreement(
                keys[index], int(labels[index]), int(answers[index]), int(other_answers[index])
            )
            for index in disagreeing[:_MAX_DISAGREEMENTS]
        ),
    )


def _require_same_images(first: EvaluationReport, second: EvaluationReport) -> None:
    for what in ("split", "view"):
        one, other = getattr(first, what), getattr(second, what)
        if one != other:
            raise ConfigError(
                f"The two evaluations cannot be compared: unlike {what}s",
                expected=f"the same {what} of the same images",
                received=f"`{one}` and `{other}`",
                hint="Type `alexnet evaluate` for one of them again with that of the other",
            )
    if first.images_sha256 != second.images_sha256 or first.class_names != second.class_names:
        what = "images" if first.class_names == second.class_names else "classes"
        raise DatasetError(
            f"The two evaluations are not of the same {what}",
            expected=f"the same names, labels and bytes of {first.images:,} images in the same"
            " order, and the same classes",
            received=f"{second.images:,} images with other {what}",
            hint="Evaluate both on one dataset: `alexnet ingest evaluate --model ... --dataset"
            " ...`",
        )


def _read_answers(
    first: EvaluationReport, second: EvaluationReport
) -> tuple[list[str], Labels, Labels, Labels]:
    """Return names and labels of the images, and the first guesses of both models."""
    try:
        keys, labels, answers = read_columns(first.predictions_path, "key", "label", "answer")
        (other_answers,) = read_columns(second.predictions_path, "answer")
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"The predictions of an evaluation cannot be read ({describe_cause(error, 150)})",
            expected="the file that evaluate wrote",
            hint="Type `alexnet evaluate --rerun evaluate`",
        ) from error
    return keys, labels, answers, other_answers


def compute_mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test; 1 without images to test.

    Args:
        only_first: images that the first model alone answers wrong.
        only_second: those that the second alone does.
    """
    images = only_first + only_second
    return float(stats.binomtest(only_first, images).pvalue) if images else 1.0


def _tally_predictions(report: EvaluationReport) -> Tally:
    """Tally a model's predictions.

    Equal seeds draw equal bootstrap samples, so two of these are paired sample by sample.
    """
    tally: Tally | None = None
    for logits, labels in read_logits(report.predictions_path):
        tally = tally or Tally(logits.shape[1], 0, temperature=report.temperature)
        tally.add_images(logits, labels)
    if tally is None:
        raise DatasetError(
            f"The predictions in {report.directory} hold no image",
            hint="Type `alexnet evaluate --rerun evaluate`",
        )
    return tally


def _compare_measures(first: Tally, second: Tally) -> tuple[MeasureChange, ...]:
    one, other = (compute_headline_numbers(tally.name_sums()) for tally in (first, second))
    found = []
    for name in one:
        change = other[name] - one[name]
        interval = compute_bootstrap_interval(change[0], change[1:])
        found.append(
            MeasureChange(
                name, float(one[name][0]), float(other[name][0]), float(change[0]), interval
            )
        )
    return tuple(found)


def _compare_recalls(first: Tally, second: Tally) -> tuple[float, ...]:
    support = np.maximum(first.confusion.sum(axis=1), 1)
    return tuple(((np.diag(second.confusion) - np.diag(first.confusion)) / support).tolist())


def write_comparison(comparison: Comparison, folder: Path) -> Comparison:
    """Write comparison.json and the page into a folder named after the two evaluations.

    Args:
        comparison: the comparison.
        folder: the parent of that folder.

    Returns:
        The comparison with the path of its page.
    """
    digests = (report.predictions_sha256[:8] for report in (comparison.first, comparison.second))
    own = folder / "-".join(digests)
    own.mkdir(parents=True, exist_ok=True)
    comparison = replace(comparison, page=own / COMPARISON_PAGE)
    write_text(own / COMPARISON_FILE, json.dumps(comparison.as_dict(), indent=1, allow_nan=False))
    draw_comparison_page(own)
    return comparison
