"""The pages of a review and of a retraining."""

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
from pipeline.reports.numbers import format_percent

RETRAINING_FILE = "retraining.html"
_TRIGGER_LABELS = {
    "first": "first model",
    "tried": "tried before",
    "always": "every scheduled run",
    "new_data": "new images",
    "drift": "drift",
    "degraded_champion": "degraded champion",
    "age": "age",
}
_OUTCOMES = {
    "promoted": "Trained again, and version {version} is the champion now",
    "refused": "Trained again, and refused: the champion, version {champion}, stays",
    "unchanged": "Trained again, and the result is the champion itself, version {champion}",
    "waiting": "Trained again, and version {version} waits for approval",
    "would promote": "Trained again, and it would become the champion",
}


def describe_retraining_outcome(review: Review, decision: Decision | None) -> str:
    """Return the outcome of a retraining and its reason, in a sentence or two."""
    if decision is None:
        return f"No reason to train again: {review.brief}."
    outcome = _OUTCOMES[decision.outcome].format(
        version=decision.version, champion=decision.champion or decision.version
    )
    if decision.outcome == "refused" and not decision.champion:
        outcome = "Trained again, and refused: there is still no champion"
    failed = ", ".join(check.name for check in decision.checks if not check.passed)
    reason = "" if decision.outcome == "promoted" else f": {decision.reason.rstrip('.')}"
    if failed:
        reason = f"; failed checks: {failed}"
    return f"{outcome}{reason}. Trained because: {review.brief}."


def draw_review_pages(review: Review, folder: Path) -> None:
    """Write review.html and review.json into a folder."""
    write_text(folder / "review.json", json.dumps(review.model_dump(mode="json"), indent=1))
    page = render_page("Train again?", review.text, _draw_triggers(review), _draw_footer(review))
    write_text(folder / Path(Review.REPORT_FILE).name, page)


def draw_retraining_page(title: str, records: Mapping[str, Artifact], folder: Path) -> None:
    """Write retraining.html into a folder: the whole retraining on one page.

    Args:
        title: of the page, such as the key of the scheduled run.
        records: of the executed stages, by name, in order; `review` is one of them.
        folder: made where it is missing.
    """
    review, decision = records["review"], records.get("promote")
    if not isinstance(review, Review):
        raise TypeError(f"Expected the record of `review`. Received {type(review).__name__}.")
    if not isinstance(decision, Decision):
        decision = None
    sections = _draw_triggers(review)
    if decision is not None:
        sections = [*_draw_decision(decision), *_draw_training(records), *sections]
    sections.append(PageSection("Times and folders", tables=[_tabulate_stages(records)]))
    folder.mkdir(parents=True, exist_ok=True)
    page = render_page(
        title, describe_retraining_outcome(review, decision), sections, _draw_footer(review)
    )
    write_text(folder / RETRAINING_FILE, page)


def _draw_triggers(review: Review) -> list[PageSection]:
    rows = [
        (_TRIGGER_LABELS[name], "yes" if name in review.triggers else "no", text)
        for name, text in review.reasons.items()
    ]
    table = Table(("trigger", "fired", "measured"), rows)
    sections = [PageSection("Triggers", "One that fires is enough.", [table])]
    if review.notes:
        sections.append(PageSection("Not measured", " ".join(review.notes)))
    return sections


def _draw_decision(decision: Decision) -> list[PageSection]:
    candidate = f"version {decision.version}" if decision.version else "not registered"
    champion = f"version {decision.champion}" if decision.champion else "there was none"
    errors = [
        ("candidate", candidate, _format_error(decision.top1_error)),
        ("champion", champion, _format_error(decision.champion_top1_error)),
    ]
    table = Table(("", "version", "top-1 error"), errors)
    sections = [PageSection("Candidate and champion", decision.test_images_note, [table])]
    rows = [
        (check.name, "passed" if check.passed else "failed", check.measured, check.required)
        for check in decision.checks
    ]
    if rows:
        failed = " ".join(check.text for check in decision.checks if not check.passed)
        checks = Table(("check", "", "measured", "required"), rows)
        sections.append(PageSection("Gate", failed or "All checks passed.", [checks]))
    return sections


def _draw_training(records: Mapping[str, Artifact]) -> list[PageSection]:
    dataset, trained, report = (records.get(name) for name in ("ingest", "train", "evaluate"))
    if not (
        isinstance(dataset, DatasetArtifact)
        and isinstance(trained, TrainingResult)
        and isinstance(report, EvaluationReport)
    ):
        return []
    curves = trained.directory / "report" / "learning_curves.png"
    images = [PageImage(curves, "Loss and error by epoch.")] if curves.exists() else []
    text = (
        f"{dataset.headline()}. {trained.headline().capitalize()}. On its own test split:"
        f" {report.headline()}."
    )
    return [PageSection("Training", text, images=images)]


def _tabulate_stages(records: Mapping[str, Artifact]) -> Table:
    rows = [
        (name, f"{_read_seconds(record):,.1f}", str(record.directory))
        for name, record in records.items()
    ]
    return Table(("stage", "seconds", "folder"), rows)


def _read_seconds(record: Artifact) -> float:
    """Return how long a stage took when it was executed; 0 where its run.json does not say."""
    try:
        stored = json.loads((record.directory / "run.json").read_text(encoding="utf-8"))
        return float(stored["seconds"])
    except (OSError, ValueError, KeyError):
        return 0.0


def _format_error(fraction: float | None) -> str:
    return "" if fraction is None else format_percent(fraction, 2)


def _draw_footer(review: Review) -> str:
    champion = review.champion_dataset_digest
    before = f", the champion's {champion[:12]}" if champion else ""
    return f"Dataset {review.dataset_digest[:12]}{before}."
