"""Every command as one plain function, for notebooks and programs; the command line calls these.

    from pipeline.api import Workspace, run

    photos = Workspace(settings={"data.dataset": "photos", "train.epochs": 10})
    result = run(workspace=photos)
    print(result.report.top1_error)

Every function works on a `Workspace`: a work directory, by default `mlruns`, with a recipe, settings
and an observer. Results carry the records of `pipeline.artifacts`, which know where their files are.
Errors are those of `pipeline.errors`: a ConfigError for a name or setting that means nothing, a
BusyError for a work directory or scheduler that another process holds.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

<<<<<<< HEAD
from pipeline.artifacts import Artifact, DatasetArtifact, Decision, EvaluationReport, SavedModel
from pipeline.config.recipes import recipe_names
from pipeline.config.resolution import Resolved, environment_settings, parse_assignments, resolve
from pipeline.config.retrain import RetrainConfig
from pipeline.config.settings import Config
from pipeline.config.tracking import TrackingConfig
from pipeline.config.train import TrainConfig
from pipeline.data.reference import detect_dataset_kind, expand_home, require_source
from pipeline.data.stage import ingest
from pipeline.engine.runner import Runner, StageStatus
from pipeline.engine.stage import Observer, Outcome, Stage, Tracker
from pipeline.engine.workdir import unwritable, work_directory
from pipeline.errors import ConfigError, LostWorkerError, PipelineError, WorkersFailedError
from pipeline.evaluate.external_model import find_external_model
from pipeline.evaluate.stage import evaluate, evaluate_model
from pipeline.model.networks import require_network_settings
from pipeline.model.stage import build, build_alone
from pipeline.release.stage import promote
from pipeline.retrain.retraining import (
    RETRAINING_FILE,
    Retraining,
    locate_retraining,
    read_retraining,
    recover_retraining,
    write_retraining,
)
from pipeline.retrain.scheduled_run_key import BY_HAND, format_scheduled_run_key
from pipeline.retrain.stage import review
from pipeline.schedule.ledger import Ledger
from pipeline.schedule.records import Schedule, ScheduledRun
from pipeline.tracking.delivery import deliver_leftovers
from pipeline.tracking.fetching import fetch_model_file
from pipeline.tracking.journal import list_undelivered
from pipeline.tracking.known_runs import read_known_runs
from pipeline.tracking.registry import CHAMPION, SCHEDULED_RUN_TAG, Registry, Version, find_version
from pipeline.tracking.store import (
    build_server_command,
    get_experiment_url,
    get_run_url,
    open_experiment,
    require_nameable_workdir,
)
from pipeline.tracking.tracker import MlflowTracker, NoTracker
from pipeline.train.cluster import Cluster, read_cluster
from pipeline.train.launcher import run_workers
from pipeline.train.stage import train
=======
from pipeline.config.resolution import Resolved
from pipeline.workspace import (
    diagnosis,
    evaluations,
    looking,
    releases,
    reproduction,
    retraining,
    schedules,
)
from pipeline.workspace.chain import PipelineResult, run_stages
from pipeline.workspace.workspace import RUN_STAGES, Workspace
>>>>>>> b092195 (wip3: workspace, api and command line)

if TYPE_CHECKING:
    from pipeline.evaluate.compare import Comparison
    from pipeline.export.record import ExportRecord
    from pipeline.release.classify import Classifier
    from pipeline.release.predict import Prediction
    from pipeline.reproduce.reproduction import Reproduction
<<<<<<< HEAD
    from pipeline.retrain.garbage_collection import GarbagePlan
=======
    from pipeline.retrain.retention import Plan
    from pipeline.retrain.retraining import Retraining
    from pipeline.schedule.ledger import Schedule, Slot
>>>>>>> b092195 (wip3: workspace, api and command line)
    from pipeline.schedule.timing import Timing
    from pipeline.tracking.registry import Version
    from pipeline.workspace.diagnosis import Diagnosis
# fmt: off
__all__ = [
    "PipelineResult", "Workspace", "accept", "add_schedule", "clean", "compare", "doctor",
    "emit_schedule", "export", "find_model", "find_schedule", "list_models", "list_run_times",
    "list_scheduled_runs", "list_schedules", "open_classifier", "pause_schedule",
    "plan_reproduction", "predict", "prepare_ui", "publish_claims", "remove_schedule", "report",
    "reproduce", "resolve_settings", "resume_schedule", "retrain", "retrain_now", "rollback",
    "run", "run_due_schedule", "serve", "serve_schedules", "settings_schema", "status", "sync",
]
# fmt: on

HERE = Workspace()
DEFAULT_SCHEDULE = "main"
<<<<<<< HEAD
PROFILES = ("quick", "paper")
STAGES: tuple[Stage, ...] = (ingest, build, train, evaluate)
STAGE_NAMES = tuple(item.name for item in STAGES)
# Named only by those who want it: what is trained is not released by itself.
ALL_STAGE_NAMES = (*STAGE_NAMES, promote.name)
_MIN_LETTERS = 6  # of a run's id, to name it
# What a scheduled run of the schedule goes through; `review` may be the last.
RETRAIN_STAGES: tuple[Stage, ...] = (ingest, review, build, train, evaluate, promote)
# With evaluate.model: a model from elsewhere is judged by a stage of its own.
_STAGES_OF_A_MODEL: tuple[Stage, ...] = (ingest, evaluate_model)


class Silent:
    """An observer that shows nothing."""

    def started(self, stage: str, why: Sequence[str]) -> None:
        """Show nothing."""

    def progressed(self, done: int, total: int, unit: str, detail: str) -> None:
        """Show nothing."""

    def said(self, text: str) -> None:
        """Show nothing."""

    def finished(self, outcome: Outcome) -> None:
        """Show nothing."""

    def waiting(self, what: str) -> None:
        """Show nothing."""


@dataclass(frozen=True)
class PipelineResult:
    """What a pipeline run did: the outcome of each named stage, and where it is recorded."""

    outcomes: tuple[Outcome, ...]
    resolved: Resolved
    run_ids: dict[str, str] = field(default_factory=dict)
    run_url: str | None = None
    not_recorded: str | None = None

    def _last(self, kind: type[Artifact]) -> Any:
        records = [
            outcome.artifact for outcome in self.outcomes if isinstance(outcome.artifact, kind)
        ]
        return records[-1] if records else None

    @property
    def model(self) -> SavedModel | None:
        """The trained network, or the built one when none was trained."""
        model: SavedModel | None = self._last(SavedModel)
        return model

    @property
    def report(self) -> EvaluationReport | None:
        """What the network scored, when it was evaluated."""
        report: EvaluationReport | None = self._last(EvaluationReport)
        return report

    @property
    def decision(self) -> Decision | None:
        """What became of the network as a release, when `promote` was named."""
        decision: Decision | None = self._last(Decision)
        return decision

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON can hold it.

        `stages`, `test`, `model`, `run_url`, `not_recorded`, and `decision` of a promotion.
        """
        model, report, decision = self.model, self.report, self.decision
        return {
            "stages": [stage_dict(outcome, self.run_ids) for outcome in self.outcomes],
            "test": (
                report
                and {
                    "split": report.split,
                    "view": report.view,
                    "images": report.images,
                    "top1_error": report.top1_error,
                    "top1_error_interval": report.top1_error_interval,
                    "top5_error": report.top5_error,
                    "loss": report.loss,
                    "calibration_error": report.calibration_error,
                    "temperature": report.temperature,
                    "model_sha256": report.model_sha256,
                    "dataset_digest": report.dataset_digest,
                    "report": str(report.directory / report.REPORT_FILE),
                }
            ),
            "model": (
                model
                and {
                    "path": str(model.model_path),
                    "sha256": model.model_sha256,
                    "network": model.network,
                    "parameters": model.parameters,
                    "macs": model.macs,
                    "activation_bytes": model.activation_bytes(
                        self.resolved.config.train.global_batch_size
                    ),
                    "layers": [layer.model_dump() for layer in model.layers],
                }
            ),
            "run_url": self.run_url,
            "not_recorded": self.not_recorded,
            **(
                {"decision": decision.model_dump(mode="json") | {"report": str(decision.page)}}
                if decision
                else {}
            ),
        }


def stage_dict(outcome: Outcome, run_ids: Mapping[str, str]) -> dict[str, Any]:
    """Return one stage's outcome as JSON can hold it."""
    return {
        "name": outcome.stage,
        "state": outcome.state,
        "seconds": round(outcome.seconds, 3),
        "directory": str(outcome.directory),
        "run_id": run_ids.get(outcome.run_key),
        "why": list(outcome.why),
    }


def settings(
    recipe: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    workdir: Path | None = None,
    stages: Sequence[str] = STAGE_NAMES,
) -> Resolved:
    """Return the settings that a command would use, and where each came from.

    Args:
        recipe: a packaged recipe or a YAML file. Without one, a command that begins after `ingest`
            goes on with the recipe and the upstream settings of the last command in the work
            directory.
        overrides: `section.field` -> value.
        workdir: where that last command is looked up; none means nowhere.
        stages: the stages that the command names; none means that all are looked up.
    """
    remembered: Mapping[str, Any] = {}
    overrides = dict(overrides or {})
    model = expand_home(str(overrides.get("evaluate.model", "")))
    if model.is_file():
        overrides["evaluate.model"] = str(model.resolve())
    if overrides.get("model.weights"):
        overrides["model.weights"] = str(expand_home(str(overrides["model.weights"])).resolve())
    overrides = _with_placed_images(overrides)
    given = {**environment_settings(os.environ), **overrides}
    if recipe is None and str(given.get("model.classes", 0)) != "0":
        recipe = "network"  # no dataset, so none to fit
    elif recipe is None and workdir is not None and "data.dataset" not in given:
        recipe, remembered = _runner(workdir).selection.recall_settings(stages)
        # Which model is meant is said each time: a trial under another name must not move what
        # serves.
        remembered = {
            key: value for key, value in remembered.items() if not key.startswith("release.")
        }
    resolved = resolve(recipe, overrides, remembered)
    require_network_settings(resolved.config)
    return resolved
=======
_RUN_STAGE_NAMES = tuple(stage.name for stage in RUN_STAGES)


# -- pipeline --------------------------------------------------------------------------------------
>>>>>>> b092195 (wip3: workspace, api and command line)


def run(
    stages: Sequence[str] = _RUN_STAGE_NAMES,
    *,
    workspace: Workspace = HERE,
    rerun: Sequence[str] = (),
    accept_code: bool = False,
    workers: int = 1,
) -> PipelineResult:
    """Run stages in order; skip each whose result is there.

    Args:
        stages: some of `ingest`, `build`, `train`, `evaluate`, `promote`; the last only where named.
        rerun: stages to run again although nothing changed.
        accept_code: keep results of which code alone changed, as `accept` does.
        workers: train in so many processes of this machine, to try what several machines do.
    """
    return run_stages(workspace, stages, rerun=rerun, accept_code=accept_code, workers=workers)


def accept(
    stages: Sequence[str] = _RUN_STAGE_NAMES, *, workspace: Workspace = HERE
) -> list[tuple[str, tuple[str, ...]]]:
    """Keep the results of stages although their code changed; return which code, by stage.

    Each result records what was accepted and when.

    Raises:
        ConfigError: more than code changed, or there is no earlier result.
    """
    with workspace.hold():
        return workspace.runner().accept_stages(workspace.resolve(()), stages)


<<<<<<< HEAD
def retrain(
    *,
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
    workdir: Path | str = DEFAULT_WORKDIR,
    scheduled_run: str = "",
    wait: bool = False,
    observer: Observer | None = None,
) -> Retraining:
    """Look whether there is a reason to train again, and if so train, evaluate and promote.

    What a scheduled run of the schedule is.

    The same call goes on where an interrupted one ended; one that came to its end is not done
    again, and its result is returned.

    Args:
        recipe: as `run` takes it. Without one and without a dataset, those of the last command in
            the work directory.
        settings: as `run` takes them; the section `retrain` says what a reason is.
        workdir: the work directory.
        scheduled_run: `schedule/20261127T030000Z`, which names the folder of its pages; now, by hand,
            without it.
        wait: wait for another process that holds the work directory, instead of failing.
        observer: told what happens; nothing is shown without one.

    Raises:
        PipelineError: one of its kinds; a refusal by the gate is a result and none of them.
    """
    workdir = Path(workdir)
    recipe, settings = last_settings(recipe, settings, workdir)
    names = [item.name for item in RETRAIN_STAGES]
    resolved = _checked(recipe, settings, workdir, names, (), Cluster())
    scheduled_run = scheduled_run or format_scheduled_run_key(BY_HAND, datetime.now(UTC))
    folder = locate_retraining(workdir, scheduled_run)
    require_nameable_workdir(resolved.config.tracking, workdir)
    with work_directory(workdir, wait=wait):
        if (done := read_retraining(folder)) is not None:
            return done
        registry = Registry(resolved.config.release.name, resolved.config.tracking, workdir)
        if (before := recover_retraining(registry, scheduled_run)) is not None:
            return write_retraining(before, folder)
        resolved = _from_champion(resolved, registry, workdir)
        tracker = MlflowTracker(
            workdir,
            resolved.config.tracking,
            {"schedule": scheduled_run.partition("/")[0], SCHEDULED_RUN_TAG: scheduled_run},
        )
        # Weights that were put in for the champion's are no setting that later commands should go
        # on with.
        selects = resolved.config.retrain.start != "champion"
        runner = _runner(
            workdir, observer or Silent(), resolved, stages=RETRAIN_STAGES, selects=selects
        )

        def conclude(records: Mapping[str, Artifact]) -> Path:
            from pipeline.reports.retraining import draw_retraining_page

            draw_retraining_page(f"Retraining {scheduled_run}", records, folder / "report")
            decision = records.get(promote.name)
            tracker.conclude_run(
                f"{decision.outcome if isinstance(decision, Decision) else 'skipped'}: {scheduled_run}"
            )
            return folder / "report"

        started = time.monotonic()
        outcomes = tuple(runner.run(resolved, names, tracker, conclude=conclude))
        known = read_known_runs(workdir).get(tracker.pipeline_key, {})
        result = write_retraining(
            Retraining.of(
                scheduled_run,
                {outcome.stage: outcome for outcome in outcomes},
                name=resolved.config.release.name,
                page=folder / "report" / RETRAINING_FILE,
                seconds=time.monotonic() - started,
                run_id=known.get("run_id", ""),
                run_url=get_run_url(resolved.config.tracking, **known) if known else "",
                not_recorded=tracker.problem or _unsent(workdir) or "",
            ),
            folder,
        )
        _prune(resolved.config, workdir, observer or Silent())
        return result
=======
def report(names: Sequence[str] = (), *, workspace: Workspace = HERE) -> list[tuple[str, Path]]:
    """Draw the pages of finished results again; return the stage and the folder of each.

    Args:
        names: stages, or ids of MLflow runs (six letters or more); by default all that are done.
    """
    with workspace.hold():
        return looking.redraw_pages(workspace, names)
>>>>>>> b092195 (wip3: workspace, api and command line)


def status(workspace: Workspace = HERE) -> looking.Status:
    """Look at every stage without running any.

    Without a recipe or settings, at what the last command in the work directory selected.
    """
    return looking.read_status(workspace)


def resolve_settings(workspace: Workspace = HERE, stages: Sequence[str] | None = None) -> Resolved:
    """Return the settings that a command would use, and where each came from.

    Args:
        stages: those that the command names; the settings of earlier ones are recalled from the
            last command. By default nothing is recalled.
    """
    return workspace.resolve(stages)


<<<<<<< HEAD
def reproduction_settings(
    profile: str = "quick", recipe: str | None = None, settings: Mapping[str, Any] | None = None
) -> Resolved:
    """Return the settings that `reproduce` would use."""
    if profile not in PROFILES:
        raise ConfigError(
            f"There is no profile {profile!r}. Expected one of {', '.join(PROFILES)}, or a recipe"
            " of your own: --recipe FILE.yaml."
        )
    resolved = resolve(recipe or f"reproduce_{profile}", _with_placed_images(settings or {}))
    require_network_settings(resolved.config)
    if (
        resolved.config.model.classes
        or resolved.config.evaluate.model
        or resolved.config.model.weights
    ):
        raise ConfigError(
            "The claims are about networks that are trained from fresh weights on a dataset."
            " Expected model.classes, model.weights and evaluate.model to be left out."
        )
    return resolved
=======
def settings_schema() -> str:
    """Return the JSON schema of the settings."""
    from pipeline.config.settings import Config

    return json.dumps(Config.model_json_schema(), indent=2)
>>>>>>> b092195 (wip3: workspace, api and command line)


# -- models ----------------------------------------------------------------------------------------


def list_models(workspace: Workspace = HERE) -> list[Version]:
    """Return the versions of the model `release.name` in the registry, the newest first."""
    return workspace.registry().list_versions()


def find_model(version: str = "champion", *, workspace: Workspace = HERE) -> Version:
    """Return a version of the model `release.name`, by its number or an alias."""
    return releases.find_version(workspace, version)


def rollback(version: str | None = None, *, workspace: Workspace = HERE) -> tuple[str, Version]:
    """Make an earlier version the champion again, after its files were verified.

    Args:
<<<<<<< HEAD
        name: of the schedule.
        cron: such as `0 3 * * 1`: weekdays are cron's, 1 is Monday.
        every: instead, such as `6h`. With neither, the timing stays; a new schedule is then due
            only when it is asked for, such as by an engine of your own.
        timezone: whose wall clock `cron` means, such as Europe/Madrid.
        jitter: each start is up to so much later, such as `10m`.
        recipe: as `retrain` takes it. A schedule that is there already keeps its recipe and
            settings where neither is given.
        settings: as `retrain` takes them.
        workdir: the work directory.
        since: run times of a new schedule count from then, in UTC; from now without it.

    Raises:
        ConfigError: the timing or a setting is not understood, or the images are not there.
    """
    from pipeline.retrain.scheduled_run_key import check_schedule_name
    from pipeline.schedule.timing import Timing, parse_timing

    workdir = Path(workdir)
    check_schedule_name(name)
    known = next((found for found in schedules(workdir) if found.name == name), None)
    kept = known.timing if known else Timing()
    timing = parse_timing(cron, every, timezone, jitter) if cron or every or jitter else kept
    words = (
        known.arguments
        if known and recipe is None and not settings
        else schedule_words(recipe, settings, workdir)
    )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(workdir, error) from error
    return _ledger(workdir).put_schedule(name, timing, words, since)


def schedule_words(
    recipe: str | None, settings: Mapping[str, Any] | None, workdir: Path
) -> tuple[str, ...]:
    """Return the words of a command line that mean, wherever and whenever they are read, the settings that are meant here and now."""
    recipe, settings = last_settings(recipe, settings, workdir)
    names = [item.name for item in RETRAIN_STAGES]
    resolved = _checked(recipe, settings, workdir, names, (), Cluster())
    if detect_dataset_kind(resolved.config.data.dataset) == "tfds":
        from pipeline.data.catalog import require_in_catalog

        require_in_catalog(resolved.config.data.dataset)
    said = (
        resolved.recipe
        if resolved.recipe in recipe_names()
        else str(Path(resolved.recipe).expanduser().resolve())
    )
    values, paths = resolved.flat(), _absolute_paths(resolved.config)
    values |= paths
    named = {"data.dataset": values["data.dataset"]}
    base = resolve(
        said, named, environment={}
    ).flat()  # what the recipe says need not be said again
    given = named | {key: value for key, value in values.items() if value != base[key]}
    words = (
        "--recipe",
        said,
        *(word for key, value in given.items() for word in ("--set", f"{key}={_word_of(value)}")),
    )
    try:
        same = resolve(*_given_by(words), environment={}).flat() == values
    except ConfigError:
        same = False
    if not same:
        raise ConfigError(
            "These settings cannot be kept for later: class names with a comma or an equals sign in"
            " data.renamed_classes have no way onto a command line. Expected names without. Put"
            " them into a recipe and type --recipe FILE.yaml."
        )
    return words


def _absolute_paths(config: Config) -> dict[str, str]:
    """Return the settings that name files, wherever they came from, so that they mean the same from another folder."""
    found = {"model.weights": config.model.weights} if config.model.weights else {}
    if detect_dataset_kind(config.data.dataset) in ("folder", "manifest"):
        found["data.dataset"] = config.data.dataset
    return {key: str(expand_home(path).resolve()) for key, path in found.items()}


def schedules(workdir: Path | str = DEFAULT_WORKDIR) -> list[Schedule]:
    """Return the schedules of a work directory, by name."""
    return _ledger(Path(workdir)).list_schedules()


def find_schedule(name: str = DEFAULT_SCHEDULE, workdir: Path | str = DEFAULT_WORKDIR) -> Schedule:
    """Return a schedule of a work directory.

    Raises:
        ConfigError: there is none of the name.
    """
    return _ledger(Path(workdir)).find_schedule(name)


def emit(
    kind: str,
    name: str = DEFAULT_SCHEDULE,
    *,
    cron: str = "",
    every: str = "",
    timezone: str = "UTC",
    jitter: str = "",
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
    workdir: Path | str = DEFAULT_WORKDIR,
) -> dict[str, str]:
    """Return the files, by name, that let another engine run a schedule.

    Systemd, crontab, kubernetes, airflow or prefect.

    Each calls `alexnet schedule --once`. Without a timing, that of the schedule of this name.

    Raises:
        ConfigError: there is no such schedule, or the engine cannot say this timing.
    """
    from pipeline.schedule.exporters.emit import emit_schedule_files
    from pipeline.schedule.timing import parse_timing

    workdir = Path(workdir)
    known = next((found for found in schedules(workdir) if found.name == name), None)
    if cron or every:
        timing = parse_timing(cron, every, timezone, jitter)
        words = (
            known.arguments
            if known and recipe is None and not settings
            else schedule_words(recipe, settings, workdir)
        )
    else:
        found = find_schedule(name, workdir)
        timing, words = found.timing, found.arguments
    return emit_schedule_files(kind, name, timing, words, workdir.resolve(), Path(sys.executable))


def due_times(
    timing: Timing, count: int = 10, after: datetime | None = None
) -> list[tuple[datetime, datetime]]:
    """Return the next run times: in the schedule's own zone and in UTC."""
    from pipeline.schedule.timing import find_next_run_time

    zone, due, found = (
        ZoneInfo(timing.timezone),
        after or datetime.now(UTC),
        list[tuple[datetime, datetime]](),
    )
    while len(found) < count and (following := find_next_run_time(timing, due)) is not None:
        due = following
        found.append((due.astimezone(zone), due))
    return found


def pause(name: str = DEFAULT_SCHEDULE, workdir: Path | str = DEFAULT_WORKDIR) -> None:
    """Let the scheduled runs of a schedule be skipped from now on."""
    find_schedule(name, workdir)  # without it nothing is made
    _ledger(Path(workdir)).pause_schedule(name)


def resume(name: str = DEFAULT_SCHEDULE, workdir: Path | str = DEFAULT_WORKDIR) -> None:
    """Let a paused schedule go on with its next run time."""
    find_schedule(name, workdir)  # without it nothing is made
    _ledger(Path(workdir)).resume_schedule(name)


def unschedule(name: str = DEFAULT_SCHEDULE, workdir: Path | str = DEFAULT_WORKDIR) -> None:
    """Remove a schedule; its history stays."""
    find_schedule(name, workdir)  # without it nothing is made
    _ledger(Path(workdir)).remove_schedule(name)


def history(
    name: str = "", limit: int = 50, workdir: Path | str = DEFAULT_WORKDIR
) -> list[ScheduledRun]:
    """Return the latest scheduled runs of a schedule, or of all, and what became of each, the newest first.

    Raises:
        ConfigError: there is no such schedule, and never was a scheduled run of it.
    """
    scheduled_runs = _ledger(Path(workdir)).list_latest_scheduled_runs(name, limit)
    if name and not scheduled_runs:
        find_schedule(name, workdir)
    return scheduled_runs


def run_schedules(
    workdir: Path | str = DEFAULT_WORKDIR,
    *,
    stop: threading.Event | None = None,
    wait: bool = False,
    say: Callable[[str], None] = lambda _line: None,
) -> None:
    """Run what the schedules of a work directory want, each as a process of its own, until `stop` is set.

    Args:
        workdir: the work directory.
        stop: set by whoever wants it to end; a retraining that runs is given
            `retrain.drain_seconds`, and the next start goes on with it.
        wait: stand by while another process does this, instead of failing.
        say: told what a person should know.

    Raises:
        BusyError: another process does this already.
    """
    from pipeline.schedule.scheduler import serve_schedules

    workdir = Path(workdir)
    serve_schedules(workdir, _retrain_config, say, stop or threading.Event(), wait=wait)


def retrain_once(
    name: str = DEFAULT_SCHEDULE,
    workdir: Path | str = DEFAULT_WORKDIR,
    *,
    stop: threading.Event | None = None,
    wait: bool = False,
    say: Callable[[str], None] = lambda _line: None,
) -> ScheduledRun | None:
    """Run the one scheduled run of a schedule that is due, and return what became of it; None where none is.

    For cron, systemd and other engines. An interrupted scheduled run comes first; a schedule without a
    timing of its own is due each time.

    Raises:
        BusyError: another process runs the schedules, and `wait` is False.
    """
    from pipeline.schedule.scheduler import run_schedule_once

    workdir = Path(workdir)
    return run_schedule_once(
        workdir, name, _retrain_config, say, stop or threading.Event(), wait=wait
    )


def retrain_now(
    name: str = DEFAULT_SCHEDULE,
    workdir: Path | str = DEFAULT_WORKDIR,
    *,
    stop: threading.Event | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> ScheduledRun:
    """Have a schedule's retraining done now, by the process that runs the schedules or else here, and return what became of it."""
    from pipeline.schedule.scheduler import run_schedule_now

    workdir = Path(workdir)
    return run_schedule_now(workdir, name, _retrain_config, say, stop or threading.Event())


def clean(
    *,
    keep: int | None = None,
    dry_run: bool = False,
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
    workdir: Path | str = DEFAULT_WORKDIR,
    wait: bool = False,
) -> GarbagePlan:
    """Remove what nobody needs any more from a work directory, or only say what that would be.

    The champion, the one before, the best, what waits for approval, the last retrainings and what
    the last command selected stay, with their images.

    Args:
        keep: how many retrainings stay besides; `retrain.keep` without it.
        dry_run: remove nothing.
        recipe: as `run` takes it.
        settings: as `run` takes them.
        workdir: the work directory.
        wait: wait for another process that holds the work directory, instead of failing.

    Raises:
        BusyError: another process works in it.
    """
    from pipeline.retrain import garbage_collection

    workdir = Path(workdir)
    config = _store_settings(recipe, settings, workdir).config
    if not workdir.is_dir():
        raise ConfigError(
            f"There is no work directory {workdir}. Expected one in which a command has run. Name"
            " it with --workdir."
        )
    if dry_run:
        return garbage_collection.plan_garbage_collection(
            workdir, config, keep=keep or config.retrain.keep, retrainings_only=False
        )
    with work_directory(workdir, wait=wait):
        found = garbage_collection.plan_garbage_collection(
            workdir, config, keep=keep or config.retrain.keep, retrainings_only=False
        )
        garbage_collection.collect_garbage(found)
        return found


def _prune(config: Config, workdir: Path, observer: Observer) -> None:
    """Remove what old retrainings left.

    What cannot be removed is no reason for a retraining to have failed.
    """
    from pipeline.retrain import garbage_collection

    try:
        # The last ones stay, and this process alone works here, so nothing is too young to go.
        garbage_collection.collect_garbage(
            garbage_collection.plan_garbage_collection(
                workdir,
                config,
                keep=config.retrain.keep,
                retrainings_only=True,
                min_age_seconds=0,
            )
        )
    except (PipelineError, OSError) as error:
        observer.said(f"What old retrainings left was not removed: {error}")


def _retrain_config(found: Schedule) -> RetrainConfig:
    recipe, given = _given_by(found.arguments)
    return resolve(recipe, given, environment={}).config.retrain


def _given_by(words: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return the recipe and the settings that the words of a schedule say."""
    pairs = list(zip(words[::2], words[1::2], strict=True))
    return dict(pairs)["--recipe"], parse_assignments(
        tuple(value for option, value in pairs if option == "--set")
    )


def _ledger(workdir: Path) -> Ledger:
    return Ledger(workdir / "schedule.db")


def last_settings(
    recipe: str | None, settings: Mapping[str, Any] | None, workdir: Path
) -> tuple[str | None, dict[str, Any]]:
    """Return a recipe and settings, those of the last command in the work directory where neither a recipe nor a dataset is given."""
    given = {**environment_settings(os.environ), **(settings or {})}
    if recipe is not None or "data.dataset" in given:
        return recipe, dict(settings or {})
    found, remembered = _runner(workdir).selection.recall_settings()
    remembered |= (
        {"release.approve": False, "release.dry_run": False} if remembered else {}
    )  # a person's word for that one time
    return found, {key: value for key, value in remembered.items() if key not in given} | dict(
        settings or {}
    )


def _from_champion(resolved: Resolved, registry: Registry, workdir: Path) -> Resolved:
    """Return the settings with the champion's weights as those to start from, where that is wanted and there is one."""
    config = resolved.config
    champion = registry.read_champion() if config.retrain.start == "champion" else None
    if champion is None:
        return resolved
    from pipeline.release.package import open_version

    weights = str(open_version(champion, config.tracking, workdir).model_path)
    return replace(
        resolved,
        config=config.model_copy(
            update={"model": config.model.model_copy(update={"weights": weights})}
        ),
    )


def _checked(
    recipe: str | None,
    settings: Mapping[str, Any] | None,
    workdir: Path,
    stages: Sequence[str],
    rerun: Sequence[str],
    cluster: Cluster,
) -> Resolved:
    """Return the settings of a run, after everything that can be refused before anything starts."""
    unknown = {*stages, *rerun} - {*ALL_STAGE_NAMES, review.name}
    if unknown or not stages:
        raise ConfigError(
            f"Stages are {', '.join(ALL_STAGE_NAMES)}. Received"
            f" {', '.join(sorted(unknown)) or 'none'}."
        )
    resolved = _settings(
        recipe, settings, workdir, [name for name in stages if name != review.name]
    )
    if resolved.config.model.classes > 0 and list(stages) != ["build"]:
        raise ConfigError(
            "model.classes is for a look at a network without a dataset. Expected the command"
            f" `build` alone, received {', '.join(stages)}; leave --classes out and the dataset"
            " says how many there are."
        )
    if resolved.config.evaluate.model and not {*stages, *rerun} <= {"ingest", "evaluate"}:
        raise ConfigError(
            "evaluate.model is for judging a model that is there. Expected the commands ingest and"
            f" evaluate alone, received {', '.join(stages)}; leave --model out to judge the one"
            " that is trained."
        )
    if "promote" in stages and not resolved.config.tracking.enabled:
        raise ConfigError(
            "A release lives in MLflow's registry. Expected tracking.enabled=yes. Received no;"
            " leave out that setting, or promote."
        )
    if "ingest" in stages:
        require_source(resolved.config.data)
    if cluster.workers > 1:
        _require_sharing(resolved.config.train, cluster)
        if earlier := {"ingest", "build"} & set(rerun):
            raise ConfigError(
                "Several workers cannot know when the chief has made"
                f" {' and '.join(sorted(earlier))} again. Expected --rerun of train or evaluate."
                " Type that --rerun for the stage alone first, without TF_CONFIG."
            )
    return resolved


def _with_model_file(resolved: Resolved, workdir: Path) -> Resolved:
    """Return the settings with the file of the model that is to be judged instead of its name in MLflow, if there is such a model.

    Images are looked for, or prepared, at the scale that it was trained at, unless somebody named
    another one.
    """
    config = resolved.config
    if not config.evaluate.model:
        return resolved
    path = Path(config.evaluate.model)
    if path.suffix != ".keras":
        path = fetch_model_file(config.evaluate.model, config.tracking, workdir)
    side, named = (
        find_external_model(path).short_side,
        resolved.origins["data.short_side"]
        in (
            "command line",
            "environment",
        ),
    )
    data = config.data.model_copy(update={} if named or not side else {"short_side": side})
    judged = config.evaluate.model_copy(update={"model": str(path)})
    return replace(resolved, config=config.model_copy(update={"data": data, "evaluate": judged}))


def is_chief() -> bool:
    """Return whether this process is the one that writes.

    The only one, or worker 0 of those that TF_CONFIG names.
    """
    return read_cluster().is_chief


def launch_workers(
    words: Sequence[str], workers: int, say: Callable[[str], None] = lambda _text: None
) -> None:
    """Run `alexnet WORDS` as several workers of this machine, and start all again when one is lost; the chief's output is shown.

    Args:
        words: of the command line.
        workers: how many.
        say: told what a person should know.

    Raises:
        WorkersFailedError: they ended with an error, which the chief has shown.
    """
    if read_cluster().workers > 1:
        raise ConfigError(
            "Several workers were asked for in a process that is one of several already. Expected"
            " --workers or TF_CONFIG."
        )
    if code := run_workers(words, workers, say):
        raise WorkersFailedError(code)


def _words(
    stages: Sequence[str],
    recipe: str | None,
    settings: Mapping[str, Any] | None,
    workdir: Path,
    rerun: Sequence[str],
    wait: bool,
) -> list[str]:
    """Return the command line that does what `run` was asked for."""
    words = [
        *(["--recipe", recipe] if recipe else []),
        "--workdir",
        str(workdir),
        *(["--wait"] if wait else []),
        "--quiet",
    ]
    for key, value in (settings or {}).items():
        words += ["--set", f"{key}={_word_of(value)}"]
    return [*words, *stages, *(word for name in rerun for word in ("--rerun", name))]


def _word_of(value: Any) -> str:
    """Return a setting's value as the command line takes it."""
    if isinstance(value, Mapping):
        return ",".join(f"{old}={new}" for old, new in value.items())
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _require_sharing(config: TrainConfig, cluster: Cluster) -> None:
    """Refuse a batch that the workers cannot share, before anything starts.

    What GPUs each has is known only later.
    """
    from pipeline.train.strategy import require_divisible

    kind, _, which = config.devices.partition(":")
    devices = (
        {"cpu": int(which or 1), "gpu": len(which.split(",")), "auto": 1}[kind]
        if which or kind != "gpu"
        else 1
    )
    require_divisible(config, cluster.workers, devices)


def _trains(
    runner: Runner, resolved: Resolved, stages: Sequence[str], rerun: Sequence[str]
) -> bool:
    """Return whether a command trains; the chief and the others must find the same."""
    return "train" in rerun or (
        "train" in stages and not runner.is_done("train", resolved.config, [*stages, *rerun])
    )


def _take_part(
    resolved: Resolved,
    stages: Sequence[str],
    rerun: Sequence[str],
    workdir: Path,
    cluster: Cluster,
    observer: Observer,
) -> None:
    """Take part in the chief's training, if it trains."""
    name = f"worker {cluster.index} of {cluster.workers}"
    runner = _runner(workdir, observer, resolved, lambda _: True)
    if not _trains(runner, resolved, stages, rerun):
        observer.said(
            f"{name}: nothing to do; the chief, {cluster.addresses[0]}, needs no training"
        )
        return

    def require_chief() -> None:
        if not cluster.is_chief_reachable():
            raise LostWorkerError(
                f"The chief of this training, {cluster.addresses[0]}, is gone; this is {name}."
                " Nothing but the steps since the last checkpoint is lost. Start all workers with"
                " the same command again, and the training goes on from there."
            )

    observer.started("train", [f"{name}; the chief is {cluster.addresses[0]}"])
    runner.prepare()
    runner.take_part("train", resolved.config, [*stages, *rerun], rerun, require_chief)


def _unsent(workdir: Path) -> str | None:
    """Say that the tracking store still misses something of earlier runs, if it does."""
    waiting = len(list_undelivered(workdir))
    return (
        f"{waiting} earlier run{' is' if waiting == 1 else 's are'} still unsent"
        if waiting
        else None
    )


_settings = settings  # `run` has an argument of that name


def _runner(
    workdir: Path,
    observer: Observer | None = None,
    resolved: Resolved | None = None,
    joins: Callable[[Runner], bool] = lambda _: False,
    stages: tuple[Stage, ...] = (*STAGES, promote),
    *,
    selects: bool = True,
) -> Runner:
    """Return the runner of a work directory.

    `joins` says, when a stage is about to run, whether its process meets other workers.
    """

    def prepare() -> None:
        from pipeline.train.strategy import configure_runtime

        if resolved is not None:
            configure_runtime(resolved.config.train, join=joins(runner))

    alone = resolved is not None and resolved.config.model.classes > 0
    foreign = resolved is not None and bool(resolved.config.evaluate.model)
    stages = (build_alone,) if alone else _STAGES_OF_A_MODEL if foreign else stages
    runner = Runner(stages, workdir, observer or Silent(), prepare, selects=selects and not foreign)
    return runner


def models(
    *,
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
    workdir: Path | str = DEFAULT_WORKDIR,
) -> list[Version]:
    """Return the versions of the model `release.name` in the registry, the newest first.

    Raises:
        TrackingError: the registry does not answer.
    """
    return _registry(recipe, settings, Path(workdir)).list_versions()


def rollback(
    to: str | None = None,
    *,
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
    workdir: Path | str = DEFAULT_WORKDIR,
) -> tuple[str, Version]:
    """Make an earlier version the champion again, after its files were compared with their digests.

    Args:
        to: the version's number; the one before the champion without it.
        recipe: as `run` takes it.
        settings: as `run` takes them.
        workdir: the work directory.
=======
        version: its number; by default the one before the champion.
>>>>>>> b092195 (wip3: workspace, api and command line)

    Returns:
        The number of the version that was the champion, and the version that is.

    Raises:
        ConfigError: there is no such version.
        GateError: it never passed the gate.
        CheckpointError: its files are not those that were released.
    """
    from pipeline.release.commit import go_back

    return go_back(workspace.registry(), version)


def open_classifier(model: str = "", *, workspace: Workspace = HERE) -> Classifier:
    """Open a model to classify images with, after its files were verified.

    Args:
        model: a name in MLflow's registry, a .keras file, a release's folder, or a run's id; the
            champion by default.
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
) -> Iterator[Prediction]:
    """Yield the guesses of a model for images, in order; a file may have a problem instead.

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
    from pipeline.release import predict as prediction

    files = list(prediction.expanded([os.fspath(path) for path in paths]))
    classifier = open_classifier(model, workspace=workspace) if isinstance(model, str) else model
    return prediction.predict(classifier, files, top=top, strict=strict, progress=progress)


<<<<<<< HEAD
def open_classifier(
    model: str = "",
    *,
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
    workdir: Path | str = DEFAULT_WORKDIR,
) -> Classifier:
    """Open the champion, or the model that is named, after every file of it was compared with its digest."""
    release = open_release(
        model, recipe=recipe, settings=settings, workdir=workdir
    )  # before TensorFlow: it may not be there
    from pipeline.train.strategy import configure_inference

    configure_inference()
    from pipeline.release.classify import load_classifier

    return load_classifier(release)


def open_release(
    model: str = "",
    *,
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
    workdir: Path | str = DEFAULT_WORKDIR,
) -> Release:
    """Return the champion, or the model that is named, verified and not opened yet."""
    from pipeline.release import package

    workdir = Path(workdir)
    config = _store_settings(recipe, settings, workdir).config
    reference = _reference(model, config, workdir)
    return package.open_release(reference, config.tracking, workdir)


def _reference(model: str, config: Config, workdir: Path) -> str:
    """Return the model that is meant, after a look whether its registry can be there.

    A store must not be made by asking for one.
    """
    reference = model or f"models:/{config.release.name}@{CHAMPION}"
    if reference.startswith("models:"):
        _require_store(config, workdir)
    return reference


def _store_settings(
    recipe: str | None, settings: Mapping[str, Any] | None, workdir: Path
) -> Resolved:
    """Return the settings of a command that asks the registry alone.

    What the last stages were made with is no matter of its.
    """
    last, remembered = _runner(workdir).selection.recall_settings()
    return resolve(
        recipe or last,
        settings,
        {key: value for key, value in remembered.items() if key == "data.dataset"},
    )


def _require_store(config: Config, workdir: Path) -> None:
    require_nameable_workdir(config.tracking, workdir)
    if not config.tracking.uri and not (workdir / "mlflow.db").exists():
        raise ConfigError(
            f"There is no registry in {workdir}. Expected a work directory in which `alexnet run"
            " promote` has run. Name it with --workdir, or a server with --set"
            " tracking.uri=ADDRESS; or name a file with --model."
        )


def export(
    to: str,
    model: str = "",
    *,
    int8: bool = False,
    output: Path | str | None = None,
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
    workdir: Path | str = DEFAULT_WORKDIR,
    progress: Callable[[str], None] = lambda _text: None,
) -> ExportRecord:
    """Write a model for another runtime, read it back by that runtime, and keep it if it answers real images as the model does.

    The images are the release's golden ones and the first of the test split that lies in the work
    directory.

    Args:
        to: `savedmodel`, `onnx` or `litert`.
        model: as `open_release` takes it.
        int8: LiteRT in 8-bit integers, whose cost in accuracy is measured on the test split in the
            work directory.
        output: the folder to make; one in the work directory without it.
        recipe: as `run` takes it.
        settings: as `run` takes them.
        workdir: the work directory.
        progress: told in words what is being done.

    Raises:
        ConfigError: there is no such model or format, or a package is missing.
        GateError: the export does not answer as the model does, or integers cost too much; nothing
            is written.
    """
    workdir = Path(workdir)
    release = open_release(model, recipe=recipe, settings=settings, workdir=workdir)
    from pipeline.train.strategy import configure_inference

    configure_inference()
    from pipeline.export.export import PARITY_IMAGES, export_release

    dataset = _prepared(workdir, release)
    golden = [(release.directory / image.file).read_bytes() for image in release.golden]
    test = [encoded for encoded, _ in itertools.islice(_labelled(dataset, "test"), PARITY_IMAGES)]
    name = "-".join(
        filter(
            None, [release.name.removesuffix(".keras"), release.version, to, "int8" if int8 else ""]
        )
    )
    return export_release(
        release,
        to,
        Path(output) if output else workdir / "exports" / name,
        golden + test,
        int8=int8,
        calibration=_labelled(dataset, "train"),
        test=_labelled(dataset, "test"),
        progress=progress,
    )


def _prepared(workdir: Path, release: Release) -> DatasetArtifact | None:
    """Return the dataset that the last command in a work directory used, if there is one and it has the model's classes."""
    entry = _runner(workdir).selection.read()["stages"].get("ingest", {})
    with contextlib.suppress(OSError, ValueError):
        dataset = DatasetArtifact.read(workdir / "stages" / str(entry.get("directory")))
        return (
            dataset
            if not release.class_names or dataset.class_names == release.class_names
            else None
        )
    return None


def _labelled(dataset: DatasetArtifact | None, split: str) -> Iterator[tuple[bytes, int]]:
    """Yield the images of a split as files' bytes with their classes.

    None where there is no dataset.
    """
    if dataset is None:
        return
    from pipeline.data.loader import load_split, read_encoded_images

    for encoded, _, label in read_encoded_images(load_split(dataset, split, in_memory=False)):
        yield encoded, label


def serve(
    model: str = "",
    *,
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
    workdir: Path | str = DEFAULT_WORKDIR,
    say: Callable[[str], None] = lambda _line: None,
) -> None:
    """Answer over HTTP, by the champion or the model that is named, until SIGINT or SIGTERM.

    Then finish what is there and return.

    Where the model is named by an alias, the service follows the alias.

    Args:
        model: as `open_release` takes it.
        recipe: as `run` takes it.
        settings: as `run` takes them; the section `serve` has the address and the bounds.
        workdir: the work directory.
        say: told what a person should know.

    Raises:
        PipelineError: the address cannot be listened at, or the model cannot be opened.
    """
    from pipeline.release.package import open_release
    from pipeline.train.strategy import configure_inference

    workdir = Path(workdir)
    config = _store_settings(recipe, settings, workdir).config
    reference = _reference(model, config, workdir)

    def named() -> str:
        version = find_version(reference, config.tracking, workdir)
        return f"{version.number} {version.release_sha256}"

    def found() -> Release:
        return open_release(reference, config.tracking, workdir)

    found()  # what is not there is said before TensorFlow starts
    configure_inference()
    from pipeline.serve.service import serve as answer

    answer(
        found,
        config.serve,
        log=say,
        identify_release=named if "@" in reference.partition(":/")[2] else None,
    )


def _registry(recipe: str | None, settings: Mapping[str, Any] | None, workdir: Path) -> Registry:
    """Return the registry that the settings name, in a work directory that can be named."""
    resolved = _store_settings(recipe, settings, workdir)
    _require_store(resolved.config, workdir)
    return Registry(resolved.config.release.name, resolved.config.tracking, workdir)


def compare(first: str, second: str, workdir: Path | str = DEFAULT_WORKDIR) -> Comparison:
    """Put two evaluations of the same images side by side, with paired tests and a page of its own.
=======
def compare(first: str, second: str, *, workspace: Workspace = HERE) -> Comparison:
    """Compare two evaluations of the same images, with paired tests and a page.
>>>>>>> b092195 (wip3: workspace, api and command line)

    Args:
        first: an evaluation: its folder, the name of that, or the id, or its first letters, of its
            MLflow run or of the pipeline run around it.
        second: another one.

    Raises:
        ConfigError: there is no such evaluation, or the two are of unlike views or splits.
        DatasetError: they are not of the same images.
    """
    from pipeline.evaluate.compare import compare_reports, write_comparison

    reports = [evaluations.read_evaluation(workspace, name) for name in (first, second)]
    return write_comparison(compare_reports(*reports), workspace.directory / "comparisons")


def export(
    target: str,
    model: str = "",
    *,
    int8: bool = False,
    output: Path | str | None = None,
    workspace: Workspace = HERE,
) -> Exported:
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
    folder = Path(output) if output else None
    return releases.export_model(workspace, target, model, int8=int8, output=folder)


def serve(model: str = "", *, workspace: Workspace = HERE) -> None:
    """Answer over HTTP until SIGINT or SIGTERM, then finish the requests that are there.

    Args:
        model: as `open_classifier` takes it; where it is an alias, the service follows the alias.
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
        name: of the schedule.
        cron: such as `0 3 * * 1`; weekdays are cron's, 1 is Monday.
        every: instead, such as `6h`. With neither, the timing stays; a new schedule then runs only
            when it is asked to, such as by another engine.
        timezone: whose wall clock `cron` means, such as Europe/Madrid; UTC by default.
        jitter: each start is up to so much later, such as `10m`.
    """
    return schedules.put_schedule(
        workspace, name, schedules.make_timing(cron, every, timezone, jitter)
    )


def list_schedules(workspace: Workspace = HERE) -> list[Schedule]:
    """Return the schedules of a work directory, by name."""
    return workspace.ledger().schedules()


def find_schedule(name: str = DEFAULT_SCHEDULE, *, workspace: Workspace = HERE) -> Schedule:
    """Return a schedule of a work directory; raise a ConfigError where there is none."""
    return workspace.ledger().schedule(name)


def list_run_times(timing: Timing, count: int = 10) -> list[tuple[datetime, datetime]]:
    """Return the next run times of a timing, each in its own zone and in UTC."""
    return schedules.compute_run_times(timing, count)


def pause_schedule(name: str = DEFAULT_SCHEDULE, *, workspace: Workspace = HERE) -> None:
    """Skip the run times of a schedule from now on."""
    find_schedule(name, workspace=workspace)  # without it nothing is made
    workspace.ledger().pause(name)


def resume_schedule(name: str = DEFAULT_SCHEDULE, *, workspace: Workspace = HERE) -> None:
    """Let a paused schedule go on with its next run time."""
    find_schedule(name, workspace=workspace)
    workspace.ledger().resume(name)


def remove_schedule(name: str = DEFAULT_SCHEDULE, *, workspace: Workspace = HERE) -> None:
    """Remove a schedule; its history stays."""
    find_schedule(name, workspace=workspace)
    workspace.ledger().remove(name)


def list_scheduled_runs(
    name: str = "", limit: int = 50, *, workspace: Workspace = HERE
) -> list[Slot]:
    """Return the latest scheduled runs of a schedule, or of all, the newest first."""
    found = workspace.ledger().history(name, limit)
    if name and not found:
        find_schedule(name, workspace=workspace)
    return found


def emit_schedule(
    engine: str, name: str = DEFAULT_SCHEDULE, *, workspace: Workspace = HERE
) -> dict[str, str]:
    """Return the files, by name, that let another engine run a schedule.

    Args:
        engine: systemd, crontab, kubernetes, airflow or prefect.
        name: of the schedule.
    """
    return schedules.emit_files(workspace, engine, name)


def serve_schedules(*, workspace: Workspace = HERE, stop: threading.Event | None = None) -> None:
    """Run what the schedules want, each retraining as a process of its own, until `stop` is set.

    A retraining that runs then is given `retrain.drain_seconds`, and the next start goes on with it.
    """
    schedules.serve_until(workspace, stop or threading.Event())


def run_due_schedule(
    name: str = DEFAULT_SCHEDULE,
    *,
    workspace: Workspace = HERE,
    stop: threading.Event | None = None,
) -> Slot | None:
    """Do the one scheduled run that is due, for another engine; None where none is.

    An interrupted run comes first; a schedule without a timing of its own is due each time.
    """
    return schedules.run_due(workspace, name, stop or threading.Event())


def retrain_now(
    name: str = DEFAULT_SCHEDULE,
    *,
    workspace: Workspace = HERE,
    stop: threading.Event | None = None,
) -> Slot:
    """Have a schedule's retraining done now, by the running scheduler or else here."""
    return schedules.run_now(workspace, name, stop or threading.Event())


def clean(*, keep: int | None = None, dry_run: bool = False, workspace: Workspace = HERE) -> Plan:
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


def publish_claims(reproduction: Reproduction | None, document: Path | str) -> None:
    """Put claims into a Markdown document, and their images and records into a folder beside it.

    Args:
        reproduction: what was measured; None only checks that the document can be written.
        document: the claims go between its two marks, or at its end.
    """
    from pipeline.reproduce.reproduction import publish, require_document

    if reproduction is None:
        require_document(Path(document))
    else:
        publish(reproduction.folder, Path(document))


# -- looking ---------------------------------------------------------------------------------------


def sync(workspace: Workspace = HERE) -> tuple[int, dict[str, str]]:
    """Send to the tracking store what earlier runs could not.

    Returns:
        How many runs were sent, and why others were not, by name.
    """
    return looking.deliver_runs(workspace)


def prepare_ui(port: int, *, workspace: Workspace = HERE) -> looking.MlflowServer:
    """Return how to start MLflow's pages of a work directory on this machine."""
    return looking.prepare_server(workspace, port)


def doctor(workspace: Workspace = HERE) -> list[Diagnosis]:
    """Return what machine, versions, devices, store, disk and permissions were found."""
    return diagnosis.diagnose(workspace)
