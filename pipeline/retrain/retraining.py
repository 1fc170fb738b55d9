"""What became of one scheduled run of the schedule, and where that is written.

`<workdir>/retrainings/<schedule>/<due>/result.json`.

The file is written last, by rename: where it is, the scheduled run was gone through to its end, and is not
done again.
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
RESULT_FILE, RETRAINING_FILE = "result.json", "retraining.html"
TRIGGER_WORDS = {
    "first": "a first model",
    "tried": "the same was tried",
    "always": "every scheduled run",
    "new_data": "new images",
    "drift": "drift",
    "degraded_champion": "fall of the champion",
    "age": "age",
}
_BECAME = {
    "promoted": "Trained again, and version {version} is the champion now",
    "refused": "Trained again, and refused: the champion, version {champion}, stays",
    "unchanged": "Trained again, and the result is the champion itself, version {champion}",
    "waiting": "Trained again, and version {version} waits for approval",
    "would promote": "Trained again, and it would become the champion",
}


@dataclass(frozen=True)
class Retraining:
    """What became of a scheduled run.

    Attributes:
        scheduled_run: `schedule/20261127T030000Z`.
        outcome: `skipped`: no reason to train again was found; else as in `Decision`.
        why: in a sentence or two.
        triggers: those that fired.
        name: of the model in the registry.
        version: the candidate's; empty where none was made.
        champion: the version that the candidate was judged against, or that stays.
        page: everything on one page.
        stages: the folder of each stage's result, by name.
        seconds: that it took.
        run_id: of the MLflow run around it; empty where it was not recorded.
        run_url: of its page.
        not_recorded: why MLflow was not told everything; empty where it was.
        numbers: what the triggers found, as `trigger.number`.
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
    def of(
        cls,
        scheduled_run: str,
        outcomes: Mapping[str, Outcome],
        *,
        name: str,
        page: Path,
        seconds: float,
        **run: str,
    ) -> Self:
        """Return what became of a scheduled run whose stages ended so."""
        review = cast(Review, outcomes["review"].artifact)
        decision = cast(
            "Decision | None", outcomes["promote"].artifact if "promote" in outcomes else None
        )
        return cls(
            scheduled_run=scheduled_run,
            outcome=decision.outcome if decision else "skipped",
            why=verdict(review, decision),
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
        """Return it as JSON can hold it."""
        return asdict(self) | {
            "schedule": self.scheduled_run.partition("/")[0],
            "numbers": dict(self.numbers),
            "stages": dict(self.stages),
        }


def verdict(review: Review, decision: Decision | None) -> str:
    """Say in a sentence or two what became of a scheduled run, and why."""
    if decision is None:
        return f"No reason to train again: {review.brief}."
    became = _BECAME[decision.outcome].format(
        version=decision.version, champion=decision.champion or decision.version
    )
    if decision.outcome == "refused" and not decision.champion:
        became = "Trained again, and refused: there is still no champion"
    failed = ", ".join(check.name for check in decision.checks if not check.passed)
    reason = (
        f"; what does not hold: {failed}"
        if failed
        else ""
        if decision.outcome == "promoted"
        else f": {decision.reason.rstrip('.')}"
    )
    return f"{became}{reason}. Trained because: {review.brief}."


def locate_retraining(workdir: Path, scheduled_run: str) -> Path:
    """Return the folder of a scheduled run's pages and of its result.

    Raises:
        ConfigError: the scheduled run's name is none, or would name another folder.
    """
    return (
        workdir / "retrainings" / format_scheduled_run_key(*parse_scheduled_run_key(scheduled_run))
    )


def write_retraining(result: Retraining, folder: Path) -> Retraining:
    """Write result.json, which says that the scheduled run came to its end."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / RESULT_FILE, json.dumps(result.as_dict(), indent=1))
    return result


def read_retraining(folder: Path) -> Retraining | None:
    """Return what became of a scheduled run that came to its end, or None."""
    try:
        told = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        told.pop("schedule", None)
        return Retraining(**told | {"triggers": tuple(told["triggers"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def recover_retraining(registry: Registry, scheduled_run: str) -> Retraining | None:
    """Return what became of a scheduled_run whose process was killed between the registry's last word on it and `result.json`, or None."""
    for version in registry.list_versions():
        if (
            version.tags.get(SCHEDULED_RUN_TAG) == scheduled_run
            and (outcome := _became(version)) is not None
        ):
            judged_against = version.tags.get("judged_against", "none").removeprefix("none")
            why = version.tags.get("decision_reason", "")
            return Retraining(
                scheduled_run,
                outcome,
                why,
                name=version.name,
                version=version.number,
                champion=judged_against,
            )
    return None


def _became(version: Version) -> RetrainingOutcome | None:
    """Return the decision on a version, or None where none was made to its end.

    The alias is what is moved last.
    """
    if version.gate == "passed":
        return (
            "promoted"
            if {"champion", "previous"} & set(version.aliases) or version.withdrawn
            else None
        )
    return (
        "refused" if version.gate == "refused" else "waiting" if version.gate == "waiting" else None
    )
