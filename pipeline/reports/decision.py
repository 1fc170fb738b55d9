"""The page of a decision: what became of the candidate first, then every check with its numbers."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.artifacts import Decision
from pipeline.files import write_text
from pipeline.reports.html import PageSection, Table, render_page
from pipeline.reports.numbers import format_percent

_NEXT = {
    "promoted": (
        "`alexnet serve` answers with it from now on; a running service changes over by itself."
        " `alexnet model rollback` goes back."
    ),
    "waiting": (
        "A person decides now: `alexnet promote --approve` judges it once more and makes it the"
        " champion."
    ),
    "would promote": "Nothing was written. The same command without --dry-run promotes it.",
    "unchanged": "There is nothing to do.",
}
_REFUSED = (
    "The champion stays. More training images, a longer training or another network may help;"
    " more test images make small differences visible. docs/release.md says what each check means"
    " and which setting it reads."
)
_CHECKS_TEXT = (
    "All must hold. The candidate and the champion were scored for this decision, from their saved"
    " files, on the same images, which neither was trained on. What was not measured does not"
    " hold."
)


def write_decision(decision: Decision, directory: Path) -> None:
    """Write decision.html and decision.json into a folder."""
    write_text(directory / "decision.json", json.dumps(decision.model_dump(mode="json"), indent=1))
    write_text(directory / Path(Decision.REPORT_FILE).name, _page(decision))


def _page(decision: Decision) -> str:
    sections = [
        PageSection("What now", _NEXT.get(decision.outcome, _REFUSED)),
        PageSection("The two", tables=[_models(decision)]),
    ]
    if decision.checks:
        rows = [
            (
                check.name,
                "holds" if check.passed else "does not hold",
                check.measured,
                check.required,
            )
            for check in decision.checks
        ]
        table = Table(("what", "", "found", "required"), rows)
        failed = [check.text for check in decision.checks if not check.passed]
        passed = [check.text for check in decision.checks if check.passed]
        sections += [PageSection("What speaks against it", " ".join(failed))] if failed else []
        sections += [
            PageSection("Checks", _CHECKS_TEXT, [table]),
            PageSection("What was found", " ".join(passed)),
        ]
    if decision.test_images_note:
        sections.append(PageSection("Which images count", decision.test_images_note))
    if decision.advice:
        sections.append(PageSection("How many images decide what", decision.advice))
    return render_page(
        f"Release of {decision.name}", verdict(decision), sections, _footer(decision)
    )


def verdict(decision: Decision) -> str:
    """Say in a sentence what became of the candidate."""
    what = (
        f"Version {decision.version} of {decision.name}"
        if decision.version
        else f"The candidate for {decision.name}"
    )
    became = {
        "promoted": "is the champion now",
        "refused": "was refused",
        "unchanged": "is the champion already",
        "waiting": "waits for approval",
        "would promote": "would become the champion",
    }
    return f"{what} {became[decision.outcome]}: {decision.reason}"


def _models(decision: Decision) -> Table:
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


def _footer(decision: Decision) -> str:
    release = f", release {decision.release_sha256[:12]}" if decision.release_sha256 else ""
    return (
        f"Model {decision.model_sha256[:12]}{release}, dataset {decision.dataset_digest[:12]},"
        f" policy {decision.policy}."
    )
