"""The pages of a retraining: why it was or was not, and, on one page, everything from there to the decision."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.artifacts import (
    Artifact,
    DatasetArtifact,
    Decision,
    EvaluationReport,
    Review,
    TrainingResult,
)
from pipeline.files import write_text
from pipeline.reports.html import PageImage, PageSection, Table, render_page
from pipeline.retrain.retraining import RETRAINING_FILE, TRIGGER_WORDS, verdict


def write_review(review: Review, directory: Path) -> None:
    """Write review.html and review.json into a folder."""
    write_text(directory / "review.json", json.dumps(review.model_dump(mode="json"), indent=1))
    title = "Train again?"
    write_text(
        directory / Path(Review.REPORT_FILE).name,
        render_page(title, review.text, _review_sections(review), _footer(review)),
    )


def draw_retraining_page(title: str, records: Mapping[str, Artifact], directory: Path) -> None:
    """Write retraining.html into a folder: the whole decision on one page.

    Args:
        title: of the page, such as the schedule and the scheduled run.
        records: of the stages that were gone through, by name, in order.
        directory: made if it is not there.
    """
    review, decision = records["review"], records.get("promote")
    if not isinstance(review, Review):
        raise TypeError(f"Expected the record of `review`. Received {type(review).__name__}.")
    sections = []
    if isinstance(decision, Decision):
        sections += [*_decision_sections(decision), *_training_sections(records)]
    sections += _review_sections(review)
    sections.append(
        PageSection("Where the time went and where things lie", tables=[_stages(records)])
    )
    directory.mkdir(parents=True, exist_ok=True)
    page = render_page(
        title,
        verdict(review, decision if isinstance(decision, Decision) else None),
        sections,
        _footer(review),
    )
    write_text(directory / RETRAINING_FILE, page)


def _review_sections(review: Review) -> list[PageSection]:
    rows = [
        (TRIGGER_WORDS[name], "yes" if name in review.triggers else "no", text)
        for name, text in review.reasons.items()
    ]
    sections = [
        PageSection(
            "Why", "One reason is enough.", [Table(("reason", "holds", "what was found"), rows)]
        )
    ]
    if review.notes:
        sections.append(PageSection("What could not be measured", " ".join(review.notes)))
    return sections


def _decision_sections(decision: Decision) -> list[PageSection]:
    rows = [
        (check.name, "holds" if check.passed else "does not hold", check.measured, check.required)
        for check in decision.checks
    ]
    champion = f"version {decision.champion}" if decision.champion else "there was none"
    errors = [
        (
            "candidate",
            f"version {decision.version}" if decision.version else "not registered",
            _error(decision.top1_error),
        )
    ]
    errors.append(("champion", champion, _error(decision.champion_top1_error)))
    sections = [
        PageSection(
            "The two", decision.test_images_note, [Table(("", "version", "top-1 error"), errors)]
        )
    ]
    if rows:
        failed = " ".join(check.text for check in decision.checks if not check.passed)
        sections.append(
            PageSection(
                "The gate",
                failed or "All checks hold.",
                [Table(("check", "", "found", "required"), rows)],
            )
        )
    return sections


def _training_sections(records: Mapping[str, Artifact]) -> list[PageSection]:
    dataset, trained, report = (records.get(name) for name in ("ingest", "train", "evaluate"))
    if not (
        isinstance(dataset, DatasetArtifact)
        and isinstance(trained, TrainingResult)
        and isinstance(report, EvaluationReport)
    ):
        return []
    curves = trained.directory / "report" / "learning_curves.png"
    images = [PageImage(curves, "Loss and error, epoch by epoch.")] if curves.exists() else []
    text = (
        f"{dataset.headline()}. {trained.headline().capitalize()}. On its own test split:"
        f" {report.headline()}."
    )
    return [PageSection("The training", text, images=images)]


def _stages(records: Mapping[str, Artifact]) -> Table:
    rows = [
        (name, f"{_seconds(record):,.1f}", str(record.directory))
        for name, record in records.items()
    ]
    return Table(("stage", "seconds", "folder"), rows)


def _seconds(record: Artifact) -> float:
    """Return how long a stage took when it ran."""
    try:
        return float(
            json.loads((record.directory / "run.json").read_text(encoding="utf-8"))["seconds"]
        )
    except (OSError, ValueError, KeyError):
        return 0.0


def _error(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def _footer(review: Review) -> str:
    before = (
        f", the champion's {review.champion_dataset_digest[:12]}"
        if review.champion_dataset_digest
        else ""
    )
    return f"Dataset {review.dataset_digest[:12]}{before}."
