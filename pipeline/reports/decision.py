"""The pages of a decision: the outcome first, then every check with its numbers."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.artifacts import Decision
from pipeline.files import write_text
from pipeline.reports.html import PageSection, Table, render_page
from pipeline.reports.numbers import format_percent

_NEXT_STEPS = {
    "promoted": (
        "`alexnet serve` answers with it from now on; a running service reloads it by itself."
        " `alexnet model rollback` goes back."
    ),
    "waiting": (
        "It needs a person's approval: `alexnet promote --approve` judges it again and makes it the"
        " champion."
    ),
    "would promote": "Nothing was written. The same command without --dry-run promotes it.",
    "unchanged": "Nothing to do.",
}
_REFUSED = (
    "The champion stays. More training images, a longer training or another network may help;"
    " more test images make small differences visible. docs/release.md explains each check and"
    " its setting."
)
_CHECKS_TEXT = (
    "All must pass. The candidate and the champion were scored for this decision, from their saved"
    " files, on the same images, which neither was trained on. What was not measured fails."
)


def draw_decision_pages(decision: Decision, folder: Path) -> None:
    """Write decision.html and decision.json into a report folder, from the record alone."""
    write_text(folder / "decision.json", json.dumps(decision.model_dump(mode="json"), indent=1))
    write_text(folder / Path(Decision.REPORT_FILE).name, _render_page(decision))


def _render_page(decision: Decision) -> str:
    sections = [
        PageSection("Next steps", _NEXT_STEPS.get(decision.outcome, _REFUSED)),
        PageSection("Models", tables=[_make_models_table(decision)]),
    ]
    if decision.checks:
        rows = [
            (
                check.name,
                "passed" if check.passed else "failed",
                check.measured,
                check.required,
            )
            for check in decision.checks
        ]
        table = Table(("check", "result", "measured", "required"), rows)
        failed = [check.text for check in decision.checks if not check.passed]
        passed = [check.text for check in decision.checks if check.passed]
        sections += [PageSection("Failed checks", " ".join(failed))] if failed else []
        sections += [
            PageSection("Checks", _CHECKS_TEXT, [table]),
            PageSection("Passed checks", " ".join(passed)),
        ]
    if decision.test_images_note:
        sections.append(PageSection("Test images", decision.test_images_note))
    if decision.advice:
        sections.append(PageSection("Number of test images", decision.advice))
    return render_page(
        f"Release of {decision.name}", describe_outcome(decision), sections, _make_footer(decision)
    )


def describe_outcome(decision: Decision) -> str:
    """Return the outcome and its reason in a sentence."""
    subject = (
        f"Version {decision.version} of {decision.name}"
        if decision.version
        else f"The candidate for {decision.name}"
    )
    outcomes = {
        "promoted": "is the champion now",
        "refused": "was refused",
        "unchanged": "is the champion already",
        "waiting": "waits for approval",
        "would promote": "would become the champion",
    }
    return f"{subject} {outcomes[decision.outcome]}: {decision.reason}"


def _make_models_table(decision: Decision) -> Table:
    errors = [
        format_percent(error) if error is not None else "not scored"
        for error in (decision.top1_error, decision.champion_top1_error)
    ]
    champion = f"version {decision.champion}" if decision.champion else "none yet"
    return Table(
        ("", "version", "top-1 error", "images"),
        [
            (
                "candidate",
                f"version {decision.version}" if decision.version else "not registered",
                errors[0],
                f"{decision.images:,}",
            ),
            ("champion", champion, errors[1] if decision.champion else "", ""),
        ],
    )


def _make_footer(decision: Decision) -> str:
    release = f", release {decision.release_sha256[:12]}" if decision.release_sha256 else ""
    return (
        f"Model {decision.model_sha256[:12]}{release}, dataset {decision.dataset_digest[:12]},"
        f" policy {decision.policy}."
    )
