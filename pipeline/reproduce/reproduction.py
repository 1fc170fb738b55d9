"""All claims of one command, one after the other, each with a run of its own; then the page of all that were ever concluded here."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.artifacts import Artifact, DatasetArtifact
from pipeline.config import Resolved
from pipeline.engine import Runner, Tracker, unwritable, write_atomically
from pipeline.errors import ConfigError, PipelineError
from pipeline.reproduce.claims import NAMES
from pipeline.reproduce.lab import BudgetSpentError, Experiment, Lab, Pace, pictures_of, planned, read_claim
from pipeline.reproduce.records import Claim

PAGE_FILE = "claims.html"
MARKDOWN_FILE = "claims.md"
RECORDS_FILE = "claims.json"
# Tags of the run -> what records it.
Trackers = Callable[[Mapping[str, str]], Tracker]


@dataclass(frozen=True)
class Reproduction:
    """What a command found: the claims in order, those that the budget left over, those that failed and why, and the page."""

    claims: tuple[Claim, ...]
    unfinished: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    page: Path = Path()
    folder: Path = Path()
    not_recorded: str = ""


def measure(experiments: Sequence[Experiment], runner: Runner, resolved: Resolved, trackers: Trackers, profile: str) -> Reproduction:
    """Measure some claims and write the page.

    Args:
        experiments: which, in order.
        runner: of the work directory; its chain is `ingest`.
        resolved: the settings.
        trackers: makes what records a run.
        profile: name of the settings, for the record.
    """
    (ingest,) = runner.stages
    pace, claims, failed, new = Pace(resolved.config.reproduce.budget_minutes), list[Claim](), dict[str, str](), False
    folder, unfinished, problems = Path(), list[str](), list[str]()
    for number, experiment in enumerate(experiments, start=1):
        tracker = trackers({"claim": experiment.name})
        with runner.recorded(tracker):
            records = {ingest.name: _required(runner.perform(ingest, resolved, {}, tracker).artifact)}
            resolved = _bounded(resolved, records[ingest.name])
            if not pace.planned:
                pace.planned = sum(pictures_of(spec, records[ingest.name]) for _, _, spec in planned(experiments, resolved.config))
            folder = folder_of(runner.workdir, profile, records[ingest.name])
            lab = Lab(runner, resolved, records, tracker, folder / experiment.name, pace)
            lab.say(f"claim {number} of {len(experiments)}, {experiment.name}: {experiment.title}")
            try:
                claims.append(_measured(experiment, lab, profile))
                new = new or lab.recorded
            except BudgetSpentError as error:
                unfinished.append(experiment.name)
                tracker.conclude(f"{experiment.name}: unfinished", {"note": str(error)})
            except PipelineError as error:  # one arm that is lost is no reason to lose the other claims
                failed[experiment.name] = str(error)
                tracker.conclude(f"{experiment.name}: failed", {"error": str(error)[:500]})
        problems.append(tracker.problem or "")
    page = _concluded(folder, runner, resolved, trackers, new)
    return Reproduction(tuple(claims), tuple(unfinished), failed, page, folder, next(filter(None, problems), ""))


def folder_of(workdir: Path, profile: str, dataset: DatasetArtifact) -> Path:
    """Return where the claims of a profile and a dataset are kept."""
    return workdir / "reproduce" / re.sub(r"[^A-Za-z0-9._-]+", "-", f"{Path(profile).stem}-{dataset.name}")


def all_claims(folder: Path) -> list[Claim]:
    """Return every claim that was concluded in a folder, in the order of the table."""
    return [claim for name in NAMES if (claim := read_claim(folder / name)) is not None]


def publish(folder: Path, document: Path) -> None:
    """Put the claims of a folder into a Markdown document, and their pictures and records into a folder of its name beside it.

    Raises:
        ConfigError: nothing was concluded, the document has one of the marks alone, or it cannot be written.
    """
    from pipeline.reproduce.pages import put_into, results_markdown, this_machine

    claims, beside, machine = all_claims(folder), document.with_suffix(""), this_machine()
    if not claims:
        raise ConfigError(f"No claim is concluded in {folder}. Expected one at least. Type the same command again, without a budget.")
    try:
        before = document.read_text(encoding="utf-8") if document.exists() else ""
        text = put_into(before, results_markdown(claims, beside.name, machine))
        beside.mkdir(parents=True, exist_ok=True)
        for claim in claims:
            for figure in claim.figures:
                shutil.copyfile(folder / claim.name / figure.file, beside / f"{claim.name}-{figure.file}")
        records = {"machine": machine, "claims": [claim.model_dump(mode="json") for claim in claims]}
        write_atomically(beside / RECORDS_FILE, json.dumps(records, indent=1) + "\n")
        write_atomically(document, text)
    except OSError as error:
        raise unwritable(document, error) from error


def _required(record: Artifact | None) -> DatasetArtifact:
    if not isinstance(record, DatasetArtifact):
        raise TypeError(f"ingest left a {type(record).__name__}")
    return record


def _bounded(resolved: Resolved, dataset: DatasetArtifact) -> Resolved:
    """Return the settings with as many training pictures as there are, where more or all were asked for."""
    own, there = resolved.config.reproduce, dataset.images("train")
    bounded = own.model_copy(update={"images": min(own.images or there, there)})
    return replace(resolved, config=resolved.config.model_copy(update={"reproduce": bounded}))


def _measured(experiment: Experiment, lab: Lab, profile: str) -> Claim:
    lab.folder.mkdir(parents=True, exist_ok=True)
    measured, seeds = lab.trained(experiment.arms(lab.config)), lab.config.reproduce.seeds
    about = {
        "profile": profile,
        "dataset": lab.dataset.headline(),
        "command": f"alexnet reproduce {experiment.name} --profile {profile} --data {lab.dataset.name} --seeds {seeds}",
    }
    return lab.conclude(experiment, experiment.conclude(lab, measured), about)


def _concluded(folder: Path, runner: Runner, resolved: Resolved, trackers: Trackers, new: bool) -> Path:
    """Write the page of all claims, and record it if there is a new one."""
    from pipeline.reproduce.pages import results_markdown, write_page

    claims, page = all_claims(folder), folder / "page" / PAGE_FILE
    if not claims:
        return Path()
    page.parent.mkdir(exist_ok=True)
    write_page(claims, {claim.name: folder / claim.name for claim in claims}, page)
    (page.parent / MARKDOWN_FILE).write_text(results_markdown(claims, ".."), encoding="utf-8")
    if new:
        tracker = trackers({"claims": ", ".join(claim.name for claim in claims)})
        with runner.recorded(tracker):
            tracker.begin(resolved)
            verdicts = [claim.main.verdict for claim in claims]
            counts = {verdict.replace(" ", "_"): float(verdicts.count(verdict)) for verdict in sorted(set(verdicts))}
            tracker.conclude(f"{verdicts.count('reproduced')} of {len(claims)} claims reproduced", {}, counts)
            tracker.files(page.parent)
    return page
