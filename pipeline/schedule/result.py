"""The result.json that a retraining writes last, as the scheduler reads it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, get_args

from pipeline.retrain.retraining import RESULT_FILE, RetrainingOutcome
from pipeline.schedule.records import ScheduledRun


def read_retraining_result(folder: Path, scheduled_run: ScheduledRun) -> dict[str, Any] | None:
    """Return the result.json of a run; None where it is missing, damaged or of another run."""
    with contextlib.suppress(OSError, ValueError):
        result = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        if isinstance(result, dict) and result.get("outcome") in get_args(RetrainingOutcome):
            name = scheduled_run.key.partition("/")[2]
            named = result.get("scheduled_run", name)
            return result if named in (name, scheduled_run.key) else None
    return None
