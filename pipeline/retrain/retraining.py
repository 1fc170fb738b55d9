"""The result of a retraining, in `<workdir>/retrainings/<schedule>/<run time>/result.json`.

The file is written last, by rename: where it exists, the retraining ended, and is not repeated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, cast

from pipeline.artifacts import Decision, Review
from pipeline.engine.stage import Outcome
from pipeline.files import write_text
from pipeline.retrain.scheduled_run_key import format_scheduled_run_key, parse_scheduled_run_key
from pipeline.tracking.registry import SCHEDULED_RUN_TAG, Registry, Version

RetrainingOutcome = Literal[
    "promoted", "refused", "unchanged", "waiting", "would promote", "skipped"
]
RESULT_FILE = "result.json"


@dataclass(frozen=True)
class Retraining:
    """The result of a retraining.

    Attributes:
        scheduled_run: its key, such as `main/20261127T030000Z`.
        outcome: `skipped` where no trigger fired, else as in `Decision`.
        why: the reason, in a sentence or two.
        triggers: those that fired.
        name: of the model in the registry.
        version: the candidate's; empty where none was registered.
        champion: the version that the candidate was compared with, or that stays.
        page: everything on one page.
        stages: the folder of each stage's result, by name.
        seconds: its duration.
        run_id: of the MLflow run around it; empty where it was not recorded.
        run_url: of that run's page.
        not_recorded: why MLflow was not sent everything; empty where it was.
        numbers: what the triggers measured, as `trigger.number`.
    """

    scheduled_run: str
    outcome: RetrainingOutcome
    why: str
    triggers: tuple[str, ...] = ()
    name: str = ""
    version: str = ""
    champion: str = ""
    page: str = ""
    stages: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    run_id: str = ""
    run_url: str = ""
    not_recorded: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_outcomes(
        cls,
        scheduled_run: str,
        outcomes: Mapping[str, Outcome],
        *,
        name: str,
        page: Path,
        seconds: float,
        **run: str,
    ) -> Self:
        """Return the result of a retraining whose stages ended.

        Args:
            scheduled_run: its key.
            outcomes: of the stages, by name.
            name: of the model in the registry.
            page: everything on one page.
            seconds: its duration.
            run: `run_id`, `run_url` and `not_recorded`.
        """
        from pipeline.reports.retraining import describe_retraining_outcome

        review = cast(Review, outcomes["review"].artifact)
        decision = cast(
            "Decision | None", outcomes["promote"].artifact if "promote" in outcomes else None
        )
        return cls(
            scheduled_run=scheduled_run,
            outcome=decision.outcome if decision else "skipped",
            why=describe_retraining_outcome(review, decision),
            triggers=review.triggers,
            name=name,
            version=decision.version if decision else "",
            champion=decision.champion if decision else review.champion,
            page=str(page),
            stages={name: outcome.directory.name for name, outcome in outcomes.items()},
            seconds=round(seconds, 3),
            numbers=review.numbers,
            **run,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return asdict(self) | {
            "schedule": self.scheduled_run.partition("/")[0],
            "numbers": dict(self.numbers),
            "stages": dict(self.stages),
        }


def locate_retraining(workdir: Path, scheduled_run: str) -> Path:
    """Return the folder of a retraining's pages and result.

    Args:
        workdir: the work directory.
        scheduled_run: its key.

    Raises:
        ConfigError: the text is not a key, or would name another folder.
    """
    return (
        workdir / "retrainings" / format_scheduled_run_key(*parse_scheduled_run_key(scheduled_run))
    )


def write_retraining(result: Retraining, folder: Path) -> Retraining:
    """Write result.json, which marks the retraining as ended, and return the result."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / RESULT_FILE, json.dumps(result.as_dict(), indent=1))
    return result


def read_retraining(folder: Path) -> Retraining | None:
    """Return the result of a retraining that ended, or None."""
    try:
        stored = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        stored.pop("schedule", None)
        return Retraining(**stored | {"triggers": tuple(stored["triggers"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def recover_retraining(registry: Registry, scheduled_run: str) -> Retraining | None:
    """Return the result that the registry holds of a retraining, or None.

    For a process that was killed after the registry's last change and before `result.json`.
    """
    for version in registry.list_versions():
        if version.tags.get(SCHEDULED_RUN_TAG) != scheduled_run:
            continue
        outcome = _find_outcome(version)
        if outcome is not None:
            return Retraining(
                scheduled_run,
                outcome,
                version.tags.get("decision_reason", ""),
                name=version.name,
                version=version.number,
                champion=version.tags.get("judged_against", "none").removeprefix("none"),
            )
    return None


def _find_outcome(version: Version) -> RetrainingOutcome | None:
    """Return the decision on a version, or None where it is incomplete: the alias is set last."""
    if version.gate == "refused":
        return "refused"
    if version.gate == "waiting":
        return "waiting"
    has_alias = {"champion", "previous"} & set(version.aliases)
    return "promoted" if version.gate == "passed" and (has_alias or version.withdrawn) else None
