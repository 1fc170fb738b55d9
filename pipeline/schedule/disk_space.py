"""Free disk space before a retraining: a warning, not a condition."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from pipeline.config.retrain import RetrainConfig
from pipeline.retrain.retraining import locate_retraining
from pipeline.schedule.context import SchedulerContext
from pipeline.schedule.ledger import Ledger
from pipeline.schedule.outcome_notifications import notify_low_disk
from pipeline.schedule.records import ScheduledRun
from pipeline.schedule.result import read_retraining_result

MIN_FREE_BYTES = 500_000_000


def warn_of_low_disk(
    context: SchedulerContext, scheduled_run: ScheduledRun, config: RetrainConfig
) -> None:
    """Log and notify where the disk has less free space than a retraining may need."""
    needed = estimate_needed_bytes(context.workdir, context.ledger)
    free = shutil.disk_usage(context.workdir).free
    if free >= needed:
        return
    why = (
        f"Only {free:,} bytes are free on the disk of {context.workdir}. Expected {needed:,}, twice"
        " the size of the last retraining, or 500 MB. Free some space: `alexnet clean` deletes"
        " results that nothing refers to."
    )
    context.log(why)
    notify_low_disk(context, scheduled_run, config, why)


def estimate_needed_bytes(workdir: Path, ledger: Ledger) -> int:
    """Return how many bytes a retraining may need: twice the last one's stages, at least 500 MB."""
    for scheduled_run in ledger.list_latest_scheduled_runs(limit=100):
        if scheduled_run.state != "ran":
            continue
        folder = locate_retraining(workdir, scheduled_run.key)
        stages = (read_retraining_result(folder, scheduled_run) or {}).get("stages")
        if isinstance(stages, dict) and stages:
            used = sum(
                _measure_folder(workdir / "stages" / Path(str(stage)).name)
                for stage in stages.values()
            )
            return max(2 * used, MIN_FREE_BYTES)
    return MIN_FREE_BYTES


def _measure_folder(folder: Path) -> int:
    """Return the sizes of all files below a folder, in bytes."""
    total = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):  # removed meanwhile
                total += (Path(parent) / file).lstat().st_size
    return total
