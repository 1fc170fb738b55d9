"""All claims of one command, one after the other, each with a run of its own.

Then the page of all that were ever concluded here.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact, DatasetArtifact, digest_of
from pipeline.config.resolution import Resolved
from pipeline.engine.runner import Runner
from pipeline.engine.stage import Tracker
from pipeline.errors import ConfigError, PipelineError
from pipeline.files import write_text
from pipeline.reproduce.catalog import NAMES
from pipeline.reproduce.lab import (
    BudgetSpentError,
    Experiment,
    Lab,
    Pace,
    images_of,
    planned,
    read_claim,
)
from pipeline.reproduce.records import Claim

PAGE_FILE = "claims.html"
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

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return one JSON object for each claim of the command, also for those that have no verdict yet."""
        nothing = {"published": None, "ours": None, "interval": None, "seeds": 0}
        left = [
            {"claim": name, **nothing, "verdict": "unfinished", "why": "the budget is spent"}
            for name in self.unfinished
        ]
        lost = [
            {"claim": name, **nothing, "verdict": "failed", "why": why}
            for name, why in self.failed.items()
        ]
        found = {
            told["claim"]: told
            for told in [*(claim.as_dict() for claim in self.claims), *left, *lost]
        }
        return [found[name] for name in NAMES if name in found]


def measure(
    experiments: Sequence[Experiment],
    runner: Runner,
    resolved: Resolved,
    trackers: Trackers,
    words: Sequence[str],
) -> Reproduction:
    """Measure some claims and write the page.

    Args:
        experiments: which, in order.
        runner: of the folder of all experiments; its chain is `ingest`.
        resolved: the settings.
        trackers: makes what records a run.
        words: of the command line that chose the settings, such as `--profile quick`.
    """
    (ingest,) = runner.stages
    pace, claims, failed, new = (
        Pace(resolved.config.reproduce.budget_minutes),
        list[Claim](),
        dict[str, str](),
        False,
    )
    folder, unfinished, problems = Path(), list[str](), list[str]()
    for number, experiment in enumerate(experiments, start=1):
        tracker = trackers({"claim": experiment.name})
        with runner.recorded(tracker):
            records = {
                ingest.name: _required(runner.perform(ingest, resolved, {}, tracker).artifact)
            }
            resolved = _bounded(resolved, records[ingest.name])
            if not pace.planned:
                pace.planned = sum(
                    images_of(spec, records[ingest.name])
                    for _, _, spec in planned(experiments, resolved.config)
                )
            folder = folder_of(runner.workdir, resolved, records[ingest.name])
            lab = Lab(runner, resolved, records, tracker, folder / experiment.name, pace)
            lab.say(f"claim {number} of {len(experiments)}, {experiment.name}: {experiment.title}")
            try:
                claims.append(_measured(experiment, lab, resolved, words))
                new = new or lab.recorded
            except BudgetSpentError as error:
                unfinished.append(experiment.name)
                tracker.conclude_run(f"{experiment.name}: unfinished", {"note": str(error)})
            except (
                PipelineError
            ) as error:  # one arm that is lost is no reason to lose the other claims
                failed[experiment.name] = str(error)
                tracker.conclude_run(f"{experiment.name}: failed", {"error": str(error)[:500]})
                tracker.close("FAILED")
        problems.append(tracker.problem or "")
    page = _concluded(folder, runner, resolved, trackers, new)
    return Reproduction(
        tuple(claims), tuple(unfinished), failed, page, folder, next(filter(None, problems), "")
    )


def folder_of(workdir: Path, resolved: Resolved, dataset: DatasetArtifact) -> Path:
    """Return where the claims of some settings and a dataset are kept.

    Claims under other settings are never on one page with them.
    """
    changed = _changed(resolved)
    name = f"{Path(resolved.recipe).stem.removeprefix('reproduce_')}-{dataset.name}" + (
        f"-{digest_of(changed)[:6]}" if changed else ""
    )
    return workdir / re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def _changed(resolved: Resolved) -> dict[str, Any]:
    """Return the settings that words or the environment gave, but for those that are told otherwise or change nothing."""
    told = ("data.dataset", "reproduce.seeds", "reproduce.budget_minutes")
    own = (
        key
        for key, origin in resolved.origins.items()
        if origin in ("command line", "environment") and key not in told
    )
    values = resolved.flat()
    return {key: values[key] for key in own if not key.startswith("tracking.")}


def all_claims(folder: Path) -> list[Claim]:
    """Return every claim that was concluded in a folder, in the order of the table."""
    return [claim for name in NAMES if (claim := read_claim(folder / name)) is not None]


def require_document(document: Path) -> str:
    """Return the text of a Markdown document that results can be put into.

    Empty where there is none yet.

    Raises:
        ConfigError: it cannot be read or written, or has one of the marks alone.
    """
    from pipeline.reports.claims import put_into

    folder = document.resolve().parent
    try:
        text = document.read_text(encoding="utf-8") if document.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The document {document} cannot be read ({error}). Expected Markdown in UTF-8. Name"
            " another: --results."
        ) from error
    if document.suffix != ".md" or not os.access(
        document if document.exists() else folder, os.W_OK
    ):
        raise ConfigError(
            f"The results cannot be put into {document}. Expected a .md file in a folder that is"
            " there and can be written to."
        )
    put_into(text, "")
    return text


def publish(folder: Path, document: Path) -> None:
    """Put the claims of a folder into a Markdown document, and their images and records into a folder of its name beside it.

    Raises:
        ConfigError: nothing was concluded, or the document is none that results can be put into.
    """
    from pipeline.reports.claims import put_into, results_markdown, this_machine

    claims, beside, machine, before = (
        all_claims(folder),
        document.with_suffix(""),
        this_machine(),
        require_document(document),
    )
    if not claims:
        raise ConfigError(
            f"There is nothing to put into {document}: no claim was concluded. Type the same"
            " command again to go on."
        )
    beside.mkdir(parents=True, exist_ok=True)
    for claim in claims:
        for figure in claim.figures:
            shutil.copyfile(
                folder / claim.name / figure.file, beside / f"{claim.name}-{figure.file}"
            )
    records = {"machine": machine, "claims": [claim.model_dump(mode="json") for claim in claims]}
    write_text(beside / RECORDS_FILE, json.dumps(records, indent=1) + "\n")
    write_text(document, put_into(before, results_markdown(claims, beside.name, machine)))


def _required(record: Artifact | None) -> DatasetArtifact:
    if not isinstance(record, DatasetArtifact):
        raise TypeError(f"ingest left a {type(record).__name__}")
    return record


def _bounded(resolved: Resolved, dataset: DatasetArtifact) -> Resolved:
    """Return the settings with as many training images as there are, where more or all were asked for."""
    own, there = resolved.config.reproduce, dataset.images("train")
    bounded = own.model_copy(update={"images": min(own.images or there, there)})
    return replace(resolved, config=resolved.config.model_copy(update={"reproduce": bounded}))


def _measured(experiment: Experiment, lab: Lab, resolved: Resolved, words: Sequence[str]) -> Claim:
    lab.folder.mkdir(parents=True, exist_ok=True)
    measured = lab.trained(experiment.arms(lab.config))
    changed = [f"--set {key}={value}" for key, value in _changed(resolved).items()]
    data = shlex.quote(lab.dataset.name)
    command = [
        "alexnet reproduce",
        experiment.name,
        *words,
        f"--data {data}",
        f"--seeds {lab.config.reproduce.seeds}",
        *changed,
    ]
    about = {
        "profile": Path(resolved.recipe).stem.removeprefix("reproduce_"),
        "dataset": lab.dataset.headline(),
        "command": " ".join(command),
    }
    return lab.conclude(experiment, experiment.conclude(lab, measured), about)


def _concluded(
    folder: Path, runner: Runner, resolved: Resolved, trackers: Trackers, new: bool
) -> Path:
    """Write the page of all claims, and record it if there is a new one."""
    from pipeline.reports.claims import write_page

    claims, page = all_claims(folder), folder / "page" / PAGE_FILE
    if not claims:
        return Path()
    page.parent.mkdir(exist_ok=True)
    whole = claims[0].command.replace(f"reproduce {claims[0].name} ", "reproduce all ")
    write_page(claims, {claim.name: folder / claim.name for claim in claims}, page, command=whole)
    if new:
        tracker = trackers({"claims": ", ".join(claim.name for claim in claims)})
        with runner.recorded(tracker):
            tracker.start_pipeline_run(resolved)
            verdicts = [claim.main.verdict for claim in claims]
            counts = {
                verdict.replace(" ", "_"): float(verdicts.count(verdict))
                for verdict in sorted(set(verdicts))
            }
            tracker.conclude_run(
                f"{verdicts.count('reproduced')} of {len(claims)} claims reproduced", {}, counts
            )
            tracker.log_files(page.parent)
    return page
