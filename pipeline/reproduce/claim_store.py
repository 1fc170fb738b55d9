"""The records of concluded claims: written, read and tracked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.artifacts import digest_of
from pipeline.engine.fingerprint import code_parts
from pipeline.files import write_text
from pipeline.reports.claim_records import Claim
from pipeline.reproduce.claim_run import ClaimRun, flatten_spec
from pipeline.reproduce.experiment import Conclusion, Experiment
from pipeline.reproduce.measurement import Measurement

# Holds the `digest` of the claim that was tracked last: a claim whose tracking was interrupted is
# tracked by the next command.
_TRACKED_FILE = "recorded.txt"


def store_claim(
    run: ClaimRun,
    experiment: Experiment,
    conclusion: Conclusion,
    shared_fields: Mapping[str, Any],
) -> tuple[Claim, bool]:
    """Write the claim's record and track it, unless an equal one was tracked before.

    Args:
        run: the work on the claim, all experiments done.
        experiment: the claim.
        conclusion: what the measurements mean.
        shared_fields: fields of the record that are equal for all claims of the command.

    Returns:
        The claim, and whether it was tracked now.
    """
    claim = Claim(
        name=experiment.name,
        title=experiment.title,
        text=experiment.text,
        findings=conclusion.findings,
        rows=conclusion.rows,
        figures=conclusion.figures,
        notes=conclusion.notes,
        seeds=run.config.reproduce.seeds,
        size=experiment.describe_size(run.config),
        seconds=run.seconds,
        digest=digest_of(
            [
                *(made.identity() for made in run.measurements),
                code_parts(experiment.conclude.__module__),
                dict(shared_fields),
            ]
        ),
        **shared_fields,
    )
    recorded = run.folder / _TRACKED_FILE
    is_recorded = recorded.exists() and recorded.read_text(encoding="utf-8") == claim.digest
    if (
        not run.has_worked
        and is_recorded
        and (earlier := read_claim(run.folder)) is not None
        and earlier.digest == claim.digest
    ):
        return earlier, False
    write_text(run.folder / Claim.FILE, claim.model_dump_json(indent=1))
    _track_claim(run, claim)
    if run.tracker.pipeline_key:  # else nothing is tracked, and a later command does it
        write_text(recorded, claim.digest)
    return claim, True


def _track_claim(run: ClaimRun, claim: Claim) -> None:
    """Track the claim, with a child run for each experiment that was done earlier."""
    # MLflow's Keras flavor imports TensorFlow, which must be configured before.
    run.runner.prepare()
    run.tracker.start_pipeline_run(run.resolved)
    for outcome, spec in run.done:
        if outcome.state == "skipped" and isinstance(outcome.artifact, Measurement):
            child = run.tracker.start_stage_run(outcome.stage, "reproduce", run.resolved)
            child.log_params(flatten_spec(spec, "arm."))
            child.set_tags({"measured_by": outcome.run_key})
            child.log_metrics(outcome.artifact.numbers)
            child.close("FINISHED")
    main = claim.main_finding
    numbers = {"ours": main.ours, "published": main.published}
    if main.interval:
        numbers |= {"interval_low": main.interval[0], "interval_high": main.interval[1]}
    tags = {
        "claim": claim.name,
        "verdict": main.verdict,
        "why": main.why,
        "quantity": main.quantity,
        "unit": main.unit,
    }
    run.tracker.conclude_run(
        f"{claim.name}: {main.verdict}",
        tags,
        {name: value for name, value in numbers.items() if value is not None},
    )
    run.tracker.log_files(run.folder)


def read_claim(folder: Path) -> Claim | None:
    """Return the claim that is stored in a folder with its figures; None if there is none."""
    try:
        claim = Claim.model_validate_json((folder / Claim.FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return claim if all((folder / figure.file).exists() for figure in claim.figures) else None
