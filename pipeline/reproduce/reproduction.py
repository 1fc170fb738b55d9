"""A command: its claims one after the other, each with a run of its own, and the page of all."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact, DatasetArtifact, digest_of
from pipeline.config.resolution import Resolved
from pipeline.engine.runner import Runner
from pipeline.engine.stage import Tracker
from pipeline.errors import PipelineError
from pipeline.reports.claim_records import Claim
from pipeline.reproduce.budget import BudgetSpentError, WorkBudget, count_images_seen
from pipeline.reproduce.catalog import list_claim_names
from pipeline.reproduce.claim_run import ClaimRun
from pipeline.reproduce.claim_store import read_claim, store_claim
from pipeline.reproduce.experiment import Experiment
from pipeline.reproduce.machine import describe_machine
from pipeline.reproduce.planning import plan_trainings

CLAIMS_PAGE_FILE = "claims.html"
# From the tags of a run to the tracker that records it.
TrackerFactory = Callable[[Mapping[str, str]], Tracker]


@dataclass(frozen=True)
class Reproduction:
    """The result of a command.

    Attributes:
        claims: in order, those that were concluded.
        unfinished: names of those that the budget did not cover.
        failed: by name, the reason.
        page: the HTML page of all claims of the folder; `Path()` if there is none.
        folder: of the claims.
        not_recorded: why something was not tracked; empty if everything was.
    """

    claims: tuple[Claim, ...]
    unfinished: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    page: Path = Path()
    folder: Path = Path()
    not_recorded: str = ""

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return one JSON object per claim of the command, including those without a verdict."""
        nothing = {"published": None, "ours": None, "interval": None, "seeds": 0}
        unfinished = [
            {"claim": name, **nothing, "verdict": "unfinished", "why": "the budget is spent"}
            for name in self.unfinished
        ]
        failed = [
            {"claim": name, **nothing, "verdict": "failed", "why": why}
            for name, why in self.failed.items()
        ]
        objects = {
            item["claim"]: item
            for item in [*(claim.as_dict() for claim in self.claims), *unfinished, *failed]
        }
        return [objects[name] for name in list_claim_names() if name in objects]


def measure_experiments(
    experiments: Sequence[Experiment],
    runner: Runner,
    resolved: Resolved,
    make_tracker: TrackerFactory,
    arguments: Sequence[str],
) -> Reproduction:
    """Measure some claims and write the page.

    Args:
        experiments: the claims, in order.
        runner: of the folder of all experiments; its chain is `ingest`.
        resolved: the settings.
        make_tracker: returns the tracker of a run.
        arguments: of the command line that chose the settings, such as `--profile quick`.
    """
    (ingest,) = runner.stages
    budget = WorkBudget(resolved.config.reproduce.max_minutes)
    claims, failed, has_new = list[Claim](), dict[str, str](), False
    folder, unfinished, problems = Path(), list[str](), list[str]()
    for number, experiment in enumerate(experiments, start=1):
        tracker = make_tracker({"claim": experiment.name})
        with runner.recorded(tracker):
            dataset = _require_dataset(runner.perform(ingest, resolved, {}, tracker).artifact)
            resolved = _limit_images(resolved, dataset)
            if not budget.planned:
                budget.planned = sum(
                    count_images_seen(spec, dataset)
                    for _, _, spec in plan_trainings(experiments, resolved.config)
                )
            folder = locate_claims_folder(runner.workdir, resolved, dataset)
            run = ClaimRun(
                runner,
                resolved,
                {ingest.name: dataset},
                tracker,
                folder / experiment.name,
                budget,
            )
            run.log(f"claim {number} of {len(experiments)}, {experiment.name}: {experiment.title}")
            try:
                claim, is_new = _measure_claim(experiment, run, resolved, arguments)
                claims.append(claim)
                has_new = has_new or is_new
            except BudgetSpentError as error:
                unfinished.append(experiment.name)
                tracker.conclude_run(f"{experiment.name}: unfinished", {"note": str(error)})
            except PipelineError as error:  # the other claims go on
                failed[experiment.name] = str(error)
                tracker.conclude_run(f"{experiment.name}: failed", {"error": str(error)[:500]})
                tracker.close("FAILED")
        problems.append(tracker.problem or "")
    page = _write_page(folder, runner, resolved, make_tracker if has_new else None)
    return Reproduction(
        tuple(claims), tuple(unfinished), failed, page, folder, next(filter(None, problems), "")
    )


def locate_claims_folder(workdir: Path, resolved: Resolved, dataset: DatasetArtifact) -> Path:
    """Return the folder of the claims of some settings and a dataset.

    Claims under other settings are in another folder, so never on one page with them.
    """
    changed = _list_changed_settings(resolved)
    name = f"{Path(resolved.recipe).stem.removeprefix('reproduce_')}-{dataset.name}" + (
        f"-{digest_of(changed)[:6]}" if changed else ""
    )
    return workdir / re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def read_claims(folder: Path) -> list[Claim]:
    """Return every claim that was concluded in a folder, in the order of the catalog."""
    return [
        claim for name in list_claim_names() if (claim := read_claim(folder / name)) is not None
    ]


def _list_changed_settings(resolved: Resolved) -> dict[str, Any]:
    """Return the settings of the command line and the environment.

    Without those that have options of their own or change no result.
    """
    with_options = ("data.dataset", "reproduce.seeds", "reproduce.max_minutes")
    own = (
        key
        for key, origin in resolved.origins.items()
        if origin in ("command line", "environment") and key not in with_options
    )
    values = resolved.flat()
    return {key: values[key] for key in own if not key.startswith("tracking.")}


def _require_dataset(record: Artifact | None) -> DatasetArtifact:
    """Return the record of ingest, which must be a dataset."""
    if not isinstance(record, DatasetArtifact):
        raise TypeError(f"ingest left a {type(record).__name__}")
    return record


def _limit_images(resolved: Resolved, dataset: DatasetArtifact) -> Resolved:
    """Return the settings with at most as many training images as the dataset has; 0 means all."""
    own, available = resolved.config.reproduce, dataset.count_images("train")
    limited = own.model_copy(update={"images": min(own.images or available, available)})
    return replace(resolved, config=resolved.config.model_copy(update={"reproduce": limited}))


def _measure_claim(
    experiment: Experiment, run: ClaimRun, resolved: Resolved, arguments: Sequence[str]
) -> tuple[Claim, bool]:
    """Measure one claim and store it; return it and whether it is new."""
    run.folder.mkdir(parents=True, exist_ok=True)
    measured = run.train_arms(experiment.list_arms(run.config))
    changed = [f"--set {key}={value}" for key, value in _list_changed_settings(resolved).items()]
    command = [
        "alexnet reproduce",
        experiment.name,
        *arguments,
        f"--dataset {shlex.quote(run.dataset.name)}",
        f"--seeds {run.config.reproduce.seeds}",
        *changed,
    ]
    shared_fields = {
        "profile": Path(resolved.recipe).stem.removeprefix("reproduce_"),
        "dataset": run.dataset.headline(),
        "command": " ".join(command),
    }
    return store_claim(run, experiment, experiment.conclude(run, measured), shared_fields)


def _write_page(
    folder: Path, runner: Runner, resolved: Resolved, make_tracker: TrackerFactory | None
) -> Path:
    """Write the page of all claims of a folder, and track it if there is a tracker."""
    from pipeline.reports.claims import write_claims_page

    claims, page = read_claims(folder), folder / "page" / CLAIMS_PAGE_FILE
    if not claims:
        return Path()
    page.parent.mkdir(exist_ok=True)
    command = claims[0].command.replace(f"reproduce {claims[0].name} ", "reproduce all ")
    folders = {claim.name: folder / claim.name for claim in claims}
    write_claims_page(claims, folders, page, describe_machine(), command)
    if make_tracker is not None:
        tracker = make_tracker({"claims": ", ".join(claim.name for claim in claims)})
        with runner.recorded(tracker):
            tracker.start_pipeline_run(resolved)
            verdicts = [claim.main_finding.verdict for claim in claims]
            counts = {
                verdict.replace(" ", "_"): float(verdicts.count(verdict))
                for verdict in sorted(set(verdicts))
            }
            tracker.conclude_run(
                f"{verdicts.count('reproduced')} of {len(claims)} claims reproduced", {}, counts
            )
            tracker.log_files(page.parent)
    return page
