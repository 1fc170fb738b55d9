"""Every command as one plain function, for notebooks and programs; the command line calls these.

    from pipeline.api import Workspace, run

    photos = Workspace(settings={"data.dataset": "photos", "train.epochs": 10})
    result = run(workspace=photos)
    print(result.report.top1_error)

Every function works on a `Workspace`: a work directory, by default `mlruns`, with a recipe,
settings and an observer. Results carry records of `pipeline.artifacts`, which know their files.
Errors are those of `pipeline.errors`: a ConfigError for an invalid name or setting, a BusyError for
a work directory that another process holds. Over 400 lines, as every public function is here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.resolution import Resolved
from pipeline.workspace import (
    diagnosis,
    looking,
    releases,
    reproduction,
    retraining,
    schedules,
    stored_results,
)
from pipeline.workspace.chain import PipelineResult, run_stages
from pipeline.workspace.networks import list_known_networks
from pipeline.workspace.workspace import RUN_STAGES, Workspace

if TYPE_CHECKING:
    from pipeline.evaluate.compare import Comparison
    from pipeline.export.record import ExportRecord
    from pipeline.model.network_list import ListedNetwork
    from pipeline.release.classify import Classifier
    from pipeline.release.predict import Predictions
    from pipeline.reproduce.reproduction import Reproduction
    from pipeline.retrain.garbage_plan import GarbagePlan
    from pipeline.retrain.retraining import Retraining
    from pipeline.schedule.records import Schedule, ScheduledRun
    from pipeline.schedule.timing import Timing
    from pipeline.tracking.registry import Version
    from pipeline.workspace.diagnosis import Diagnosis
# fmt: off
__all__ = [
    "PipelineResult", "Workspace", "accept", "add_schedule", "clean", "compare", "doctor",
    "emit_schedule", "export", "find_model", "find_schedule", "list_models", "list_run_times",
    "list_scheduled_runs", "list_schedules", "networks", "open_classifier", "pause_schedule",
    "plan_reproduction", "predict", "prepare_ui", "publish_claims", "remove_schedule", "report",
    "reproduce", "resolve_settings", "resume_schedule", "retrain", "retrain_now", "rollback",
    "run", "run_due_schedule", "serve", "serve_schedules", "settings_schema", "status", "sync",
]
# fmt: on

HERE = Workspace()
DEFAULT_SCHEDULE = "main"
_RUN_STAGE_NAMES = tuple(stage.name for stage in RUN_STAGES)


# -- pipeline --------------------------------------------------------------------------------------


def run(
    stages: Sequence[str] = _RUN_STAGE_NAMES,
    *,
    workspace: Workspace = HERE,
    rerun: Sequence[str] = (),
    accept_code: bool = False,
    workers: int = 1,
    compare_with: str = "",
) -> PipelineResult:
    """Run stages in order; skip each whose result is there.

    Args:
        stages: of `ingest`, `build`, `train`, `evaluate` and `promote`; the last only if named.
        rerun: stages to run again although nothing changed.
        accept_code: keep results of which code alone changed, as `accept` does.
        workers: train in so many processes of this machine, to try what several machines do.
        compare_with: another network, which is trained and evaluated before, and compared on the
            same test images.
    """
    return run_stages(
        workspace, stages, rerun, compare_with, accept_code=accept_code, workers=workers
    )


def accept(
    stages: Sequence[str] = (), *, workspace: Workspace = HERE
) -> list[tuple[str, tuple[str, ...]]]:
    """Keep the results of stages although their code changed; return which code, by stage.

    Without names, all of which code alone changed. Each result records what was accepted and when.

    Raises:
        ConfigError: more than code changed, or there is no earlier result.
    """
    return looking.accept_results(workspace, stages)


def report(names: Sequence[str] = (), *, workspace: Workspace = HERE) -> list[tuple[str, Path]]:
    """Draw the pages of finished results again; return the stage and the folder of each.

    The names are stages, or ids of MLflow runs (six letters or more); by default all that are done.
    """
    return looking.redraw_pages(workspace, names)


def status(workspace: Workspace = HERE) -> looking.Status:
    """Look at every stage without running any.

    Without a recipe or settings, at what the last command in the work directory selected.
    """
    return looking.read_status(workspace)


def resolve_settings(workspace: Workspace = HERE, stages: Sequence[str] | None = None) -> Resolved:
    """Return the settings that a command would use, and where each came from.

    If `stages` are named, the settings of earlier ones are recalled from the last command; by
    default nothing is recalled.
    """
    return workspace.resolve(stages)


def settings_schema() -> str:
    """Return the JSON schema of the settings."""
    return looking.describe_settings_schema()


# -- models ----------------------------------------------------------------------------------------


def list_models(workspace: Workspace = HERE) -> list[Version]:
    """Return the versions of the model `release.name` in the registry, the newest first."""
    return workspace.registry().list_versions()


def find_model(version: str = "champion", *, workspace: Workspace = HERE) -> Version:
    """Return a version of the model `release.name`, by its number or an alias."""
    return releases.find_version(workspace, version)


def rollback(version: str | None = None, *, workspace: Workspace = HERE) -> tuple[str, Version]:
    """Make an earlier version the champion again, after its files were verified.

    Return the number of the version that was the champion, and the version that is.

    Args:
        version: its number; by default the one before the champion.

    Raises:
        ConfigError: there is no such version.
        GateError: it never passed the gate.
        CheckpointError: its files are not those that were released.
    """
    return releases.roll_back(workspace, version)


def open_classifier(model: str = "", *, workspace: Workspace = HERE) -> Classifier:
    """Open a model to classify images with, after its files were verified.

    Args:
        model: a registry name, .keras file, release's folder or run's id; by default the champion.
    """
    return releases.open_named_classifier(workspace, model)


def predict(
    paths: Sequence[str | os.PathLike[str]],
    *,
    model: str | Classifier = "",
    top: int = 5,
    strict: bool = False,
    workspace: Workspace = HERE,
    progress: Callable[[int, int | None, int], None] = lambda _done, _total, _unusable: None,
) -> Predictions:
    """Return the guesses of a model for images, in order, computed as they are iterated.

    Args:
        paths: files, folders and patterns.
        model: as `open_classifier` takes it, or a classifier that is open already.
        top: guesses per image.
        strict: end at the first file that cannot be classified.
        progress: called with files done, files in all, and how many of those done are unusable.

    Raises:
        ConfigError: a path or the model does not exist.
        DatasetError: `strict`, and a file cannot be classified.
    """
    return releases.predict_images(
        workspace, model, paths, top=top, strict=strict, progress=progress
    )


def compare(first: str, second: str, *, workspace: Workspace = HERE) -> Comparison:
    """Compare two evaluations of the same images, with paired tests and a page.

    Args:
        first: an evaluation: its folder, the name of that, or the id, or its first letters, of its
            MLflow run or of the pipeline run around it.
        second: another one.

    Raises:
        ConfigError: there is no such evaluation, or the two are of unlike views or splits.
        DatasetError: they are not of the same images.
    """
    return stored_results.compare_named_evaluations(workspace, first, second)


def export(
    target: str,
    model: str = "",
    *,
    int8: bool = False,
    output: Path | str | None = None,
    workspace: Workspace = HERE,
) -> ExportRecord:
    """Write a model for another runtime, if it answers real images there as it does here.

    Args:
        target: `savedmodel`, `onnx` or `litert`.
        model: as `open_classifier` takes it; by default the champion.
        int8: LiteRT in 8-bit integers, whose cost in accuracy is measured on the test split.
        output: the folder to make; by default one below `exports/` in the work directory.

    Raises:
        ConfigError: there is no such model or format, or a package is missing.
        GateError: the export does not answer as the model does, or integers cost too much.
    """
    return releases.export_model(workspace, target, model, int8=int8, output=output)


def serve(model: str = "", *, workspace: Workspace = HERE) -> None:
    """Answer over HTTP until SIGINT or SIGTERM, then finish the requests that are there.

    The model is as `open_classifier` takes it; if it is an alias, the service follows the alias.
    """
    releases.serve_model(workspace, model)


# -- schedule --------------------------------------------------------------------------------------


def retrain(scheduled_run: str = "", *, workspace: Workspace = HERE) -> Retraining:
    """Retrain if there is a reason to: what a scheduled run does.

    The same call goes on where an interrupted one ended. A refusal by the gate is a result.

    Args:
        scheduled_run: its key, such as `main/20261127T030000Z`; by default one of now, by hand.
    """
    return retraining.run_retraining(workspace, scheduled_run)


def add_schedule(
    name: str = DEFAULT_SCHEDULE,
    *,
    cron: str = "",
    every: str = "",
    timezone: str = "",
    jitter: str = "",
    workspace: Workspace = HERE,
) -> Schedule:
    """Add a schedule, or change it; `serve_schedules` runs it.

    Its retrainings use these settings, and none of a later command or of the environment.

    Args:
        cron: such as `0 3 * * 1`; weekdays are cron's, 1 is Monday.
        every: instead, such as `6h`. With neither, the timing stays; a new schedule then runs only
            when it is asked to, such as by another engine.
        timezone: whose wall clock `cron` means, such as Europe/Madrid; UTC by default.
        jitter: each start is up to so much later, such as `10m`.
    """
    timing = schedules.make_timing(cron, every, timezone, jitter)
    return schedules.put_schedule(workspace, name, timing)


def list_schedules(workspace: Workspace = HERE) -> list[Schedule]:
    """Return the schedules of a work directory, by name."""
    return workspace.ledger().list_schedules()


def find_schedule(name: str = DEFAULT_SCHEDULE, *, workspace: Workspace = HERE) -> Schedule:
    """Return a schedule of a work directory; raise a ConfigError where there is none."""
    return workspace.ledger().find_schedule(name)


def list_run_times(timing: Timing, count: int = 10) -> list[tuple[datetime, datetime]]:
    """Return the next run times of a timing, each in its own zone and in UTC."""
    return schedules.compute_run_times(timing, count)


def pause_schedule(name: str = DEFAULT_SCHEDULE, *, workspace: Workspace = HERE) -> None:
    """Skip the run times of a schedule from now on."""
    find_schedule(name, workspace=workspace)  # without it nothing is made
    workspace.ledger().pause_schedule(name)


def resume_schedule(name: str = DEFAULT_SCHEDULE, *, workspace: Workspace = HERE) -> None:
    """Let a paused schedule go on with its next run time."""
    find_schedule(name, workspace=workspace)
    workspace.ledger().resume_schedule(name)


def remove_schedule(name: str = DEFAULT_SCHEDULE, *, workspace: Workspace = HERE) -> None:
    """Remove a schedule; its history stays."""
    find_schedule(name, workspace=workspace)
    workspace.ledger().remove_schedule(name)


def list_scheduled_runs(
    name: str = "", limit: int = 50, *, workspace: Workspace = HERE
) -> list[ScheduledRun]:
    """Return the latest scheduled runs of a schedule, or of all, the newest first."""
    return schedules.list_scheduled_runs(workspace, name, limit)


def emit_schedule(
    engine: str, name: str = DEFAULT_SCHEDULE, *, workspace: Workspace = HERE
) -> dict[str, str]:
    """Return the files, by name, that let another engine run a schedule.

    The engine is systemd, crontab, kubernetes, airflow or prefect.
    """
    return schedules.emit_files(workspace, engine, name)


def serve_schedules(*, workspace: Workspace = HERE, stop: threading.Event | None = None) -> None:
    """Run what the schedules want, each retraining as a process of its own, until `stop` is set.

    A retraining that runs then is given `retrain.drain_seconds`; the next start goes on with it.
    """
    schedules.serve_until(workspace, stop or threading.Event())


def run_due_schedule(
    name: str = DEFAULT_SCHEDULE,
    *,
    workspace: Workspace = HERE,
    stop: threading.Event | None = None,
) -> ScheduledRun | None:
    """Do the one scheduled run that is due, for another engine; None where none is.

    An interrupted run comes first; a schedule without a timing of its own is due each time.
    """
    return schedules.run_due(workspace, name, stop or threading.Event())


def retrain_now(
    name: str = DEFAULT_SCHEDULE,
    *,
    workspace: Workspace = HERE,
    stop: threading.Event | None = None,
) -> ScheduledRun:
    """Have a schedule's retraining done now, by the running scheduler or else here."""
    return schedules.run_now(workspace, name, stop or threading.Event())


def clean(
    *, keep: int | None = None, dry_run: bool = False, workspace: Workspace = HERE
) -> GarbagePlan:
    """Delete results that nothing refers to, or only list them.

    The champion, the version before, the best, what waits for approval, the last retrainings and
    what the last command selected stay, with their images.

    Args:
        keep: how many retrainings stay besides; `retrain.keep` by default.
        dry_run: delete nothing.
    """
    return looking.clean_directory(workspace, keep, dry_run=dry_run)


# -- claims of 2012 --------------------------------------------------------------------------------


def reproduce(
    claims: Sequence[str] = ("all",), *, profile: str = "quick", workspace: Workspace = HERE
) -> Reproduction:
    """Measure claims of the paper, each arm with several seeds, and judge them by a rule.

    Done work is not repeated. A claim that is not reproduced is a result.

    Args:
        claims: short names, or `all`.
        profile: `quick`, small images; `paper`, the protocol of 2012.
    """
    return reproduction.measure_claims(workspace, claims, profile)


def plan_reproduction(
    claims: Sequence[str] = ("all",), *, profile: str = "quick", workspace: Workspace = HERE
) -> list[dict[str, Any]]:
    """Return what `reproduce` would train for each claim, each training once."""
    return reproduction.plan_claims(workspace, claims, profile)


def publish_claims(measured: Reproduction | None, document: Path | str) -> None:
    """Put claims into a Markdown document, and their images and records into a folder beside it.

    Args:
        measured: by `reproduce`; None only checks that the document can be written.
        document: the claims go between its two marks, or at its end.
    """
    reproduction.publish_claims(measured, Path(document))


# -- looking ---------------------------------------------------------------------------------------


def sync(workspace: Workspace = HERE) -> tuple[int, dict[str, str]]:
    """Send to the tracking store what earlier runs could not.

    Return how many runs were sent, and why others were not, by name.
    """
    return looking.deliver_runs(workspace)


def prepare_ui(port: int, *, workspace: Workspace = HERE) -> looking.MlflowServer:
    """Return how to start MLflow's pages of a work directory on this machine."""
    return looking.prepare_server(workspace, port)


def networks(
    names: Sequence[str] = (), *, measure: bool = False, workspace: Workspace = HERE
) -> list[ListedNetwork]:
    """Return the networks that `model.network` knows, without building any.

    Args:
        names: of networks; by default all that the registry has a row of.
        measure: build each with 1,000 classes and time it forward on this machine.
        workspace: whose observer is notified of each measurement.

    Raises:
        ConfigError: a network does not exist.
    """
    return list_known_networks(workspace, names, measure=measure)


def doctor(workspace: Workspace = HERE) -> list[Diagnosis]:
    """Return what machine, versions, devices, store, disk and permissions were found."""
    return diagnosis.diagnose(workspace)
