"""The garbage collection: delete what a plan says.

A version is deleted before its files, and a folder is renamed before it is removed: after a kill at
any point, the next plan finds the rest.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from pipeline.files import remove_folder, write_text
from pipeline.retrain.garbage_plan import GarbagePlan, Removal
from pipeline.retrain.inventory import PRUNED_FILE
from pipeline.tracking.known_runs import forget_runs
from pipeline.tracking.registry import Registry, Version, list_files_in_use
from pipeline.tracking.stored_runs import StoredRun, delete_model, delete_run


def collect_garbage(
    plan: GarbagePlan, removed: Callable[[Removal], None] = lambda _: None
) -> tuple[Removal, ...]:
    """Delete what a plan says, and return that; the caller holds the work directory.

    A version that got an alias since, and its files and runs, stay.

    Args:
        plan: made while the work directory was held.
        removed: called with each removal once it is done.

    Raises:
        TrackingError: the store does not answer; the next plan finds the rest.
    """
    config, workdir, done = plan.config.tracking, plan.workdir, list[Removal]()
    for removal in plan.removals:
        if removal.run or (removal.version and not _delete_version(removal.version, plan)):
            continue
        if removal.path is not None:
            remove_folder(removal.path)
        elif removal.model is not None and removal.model.model_id not in list_files_in_use(
            config, workdir
        ):
            delete_model(config, workdir, removal.model)
        done.append(removal)
        removed(removal)
    runs = _find_unused_runs(plan)  # last, as they record which retraining made a stage's folder
    forget_runs(workdir, [run.run_id for _, run in runs])
    for removal, run in runs:
        delete_run(config, workdir, run)
        done.append(removal)
        removed(removal)
    if len(done) == len(plan.removals):
        for folder in plan.pruned:
            if folder.exists():
                write_text(
                    folder / PRUNED_FILE,
                    json.dumps({"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}),
                )
    return tuple(done)


def _find_unused_runs(plan: GarbagePlan) -> list[tuple[Removal, StoredRun]]:
    """Return the planned runs that no version uses, nor their models, nor the runs below them."""
    planned = [(removal, removal.run) for removal in plan.removals if removal.run]
    held = set(list_files_in_use(plan.config.tracking, plan.workdir)) if planned else set()
    held |= {run.parent_id for _, run in planned if _list_ids(run) & held}
    return [(removal, run) for removal, run in planned if not _list_ids(run) & held]


def _delete_version(version: Version, plan: GarbagePlan) -> bool:
    return Registry(version.name, plan.config.tracking, plan.workdir).delete_version(version.number)


def _list_ids(run: StoredRun) -> set[str]:
    return {run.run_id, *(model.model_id for model in run.models)}
