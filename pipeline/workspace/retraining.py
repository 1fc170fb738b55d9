"""A retraining: look for a reason, and if there is one train, evaluate and promote."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pipeline.artifacts import Artifact, Decision
from pipeline.config.resolution import Resolved
from pipeline.config.settings import Config
from pipeline.errors import PipelineError
from pipeline.release.stage import promote
from pipeline.retrain.garbage_collection import collect_garbage
from pipeline.retrain.garbage_plan import plan_garbage_collection
from pipeline.retrain.retraining import (
    Retraining,
    locate_retraining,
    read_retraining,
    recover_retraining,
    write_retraining,
)
from pipeline.retrain.scheduled_run_key import BY_HAND, format_scheduled_run_key
from pipeline.tracking.registry import SCHEDULED_RUN_TAG, Registry
from pipeline.tracking.store import require_nameable_workdir
from pipeline.workspace.chain import check_run
from pipeline.workspace.workspace import RETRAIN_STAGES, Workspace

_STAGE_NAMES = [stage.name for stage in RETRAIN_STAGES]


def run_retraining(workspace: Workspace, scheduled_run: str = "") -> Retraining:
    """Retrain if there is a reason to, and return what became of it.

    The same call goes on where an interrupted one ended; one that is finished is not repeated, and
    its result is returned.

    Args:
        workspace: the work directory; without a recipe and a dataset, those of the last command.
        scheduled_run: its key, such as `main/20261127T030000Z`, which names the folder of its
            pages; by default one of now, by hand.

    Raises:
        PipelineError: one of its kinds; a refusal by the gate is a result.
    """
    workspace = workspace.with_last_settings()
    resolved = check_run(workspace, _STAGE_NAMES)
    scheduled_run = scheduled_run or format_scheduled_run_key(BY_HAND, datetime.now(UTC))
    folder = locate_retraining(workspace.directory, scheduled_run)
    require_nameable_workdir(resolved.config.tracking, workspace.directory)
    with workspace.hold():
        if (done := read_retraining(folder)) is not None:
            return done
        registry = workspace.registry(resolved)
        if (before := recover_retraining(registry, scheduled_run)) is not None:
            return write_retraining(before, folder)
        resolved = _start_from_champion(resolved, registry, workspace.directory)
        result = _run_stages(workspace, resolved, scheduled_run, folder)
        _remove_old_results(workspace, resolved.config)
        return result


def _run_stages(
    workspace: Workspace, resolved: Resolved, scheduled_run: str, folder: Path
) -> Retraining:
    """Run the stages, write the pages and the result."""
    from pipeline.reports.retraining import RETRAINING_FILE, draw_retraining_page

    schedule = scheduled_run.partition("/")[0]
    tracker = workspace.tracker(resolved, {"schedule": schedule, SCHEDULED_RUN_TAG: scheduled_run})
    # Weights that were put in for the champion's are no setting for later commands to go on with.
    selects = resolved.config.retrain.start != "champion"
    runner = workspace.runner(resolved, stages=RETRAIN_STAGES, selects=selects)
    report = folder / "report"

    def conclude(records: Mapping[str, Artifact]) -> Path:
        draw_retraining_page(f"Retraining {scheduled_run}", records, report)
        decision = records.get(promote.name)
        outcome = decision.outcome if isinstance(decision, Decision) else "skipped"
        tracker.conclude_run(f"{outcome}: {scheduled_run}")
        return report

    started = time.monotonic()
    outcomes = tuple(runner.run(resolved, _STAGE_NAMES, tracker, conclude=conclude))
    result = Retraining.from_outcomes(
        scheduled_run,
        {outcome.stage: outcome for outcome in outcomes},
        name=resolved.config.release.name,
        page=report / RETRAINING_FILE,
        seconds=time.monotonic() - started,
        run_id=workspace.run_ids().get(tracker.pipeline_key, ""),
        run_url=workspace.run_url(resolved, tracker.pipeline_key) or "",
        not_recorded=tracker.problem or workspace.describe_unsent() or "",
    )
    return write_retraining(result, folder)


def _start_from_champion(resolved: Resolved, registry: Registry, workdir: Path) -> Resolved:
    """Return the settings with the champion's weights to start from, where that is wanted."""
    config = resolved.config
    wanted = config.retrain.start == "champion"
    champion = registry.read_champion() if wanted else None
    if champion is None:
        return resolved
    from pipeline.release.package import open_version

    weights = str(open_version(champion, config.tracking, workdir).model_path)
    model = config.model.model_copy(update={"weights": weights})
    return replace(resolved, config=config.model_copy(update={"model": model}))


def _remove_old_results(workspace: Workspace, config: Config) -> None:
    """Delete what old retrainings left; a failure is no reason for a retraining to have failed."""
    try:
        # The last ones stay, and this process alone works here, so nothing is too young to go.
        plan = plan_garbage_collection(
            workspace.directory,
            config,
            keep=config.retrain.keep,
            retrainings_only=True,
            min_age_seconds=0,
        )
        collect_garbage(plan)
    except (PipelineError, OSError) as error:
        workspace.observer.notified(f"Results of old retrainings were not deleted: {error}")
