"""Schedules of a work directory: what they run with, and what other engines run instead."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from pipeline.config.description import format_arguments
from pipeline.config.recipes import recipe_names
from pipeline.config.resolution import Resolved, parse_assignments
from pipeline.config.retrain import RetrainConfig
from pipeline.data.reference import detect_dataset_kind, expand_home
from pipeline.errors import ConfigError, DatasetError
from pipeline.model.weight_sources import IMAGENET
from pipeline.retrain.scheduled_run_key import check_schedule_name
from pipeline.schedule import scheduler
from pipeline.schedule.records import Schedule, ScheduledRun
from pipeline.schedule.timing import Timing, find_next_run_time, parse_timing
from pipeline.workspace.chain import check_run
from pipeline.workspace.workspace import RETRAIN_STAGES, Workspace, resolve


def put_schedule(
    workspace: Workspace, name: str, timing: Timing | None, since: datetime | None = None
) -> Schedule:
    """Put a schedule into the work directory, or change it.

    Its retrainings use the settings of this workspace, and none of a later command or of the
    environment of the scheduler. One that exists keeps its settings where none are given.

    Args:
        workspace: the work directory, recipe and settings.
        name: of the schedule.
        timing: when it runs; None keeps that of a schedule that exists.
        since: run times of a new schedule count from then, in UTC; from now by default.

    Raises:
        ConfigError: a setting is wrong, or cannot be kept.
    """
    check_schedule_name(name)
    known = find_schedule(workspace, name)
    timing = timing or (known.timing if known else Timing())
    keeps = known is not None and workspace.recipe is None and not workspace.settings
    arguments = known.arguments if known and keeps else pin_settings(workspace)
    workspace.make_directory()
    return workspace.ledger().put_schedule(name, timing, arguments, since)


def find_schedule(workspace: Workspace, name: str) -> Schedule | None:
    """Return a schedule of the work directory, or None."""
    return next(
        (found for found in workspace.ledger().list_schedules() if found.name == name), None
    )


def pin_settings(workspace: Workspace) -> tuple[str, ...]:
    """Return arguments that mean the settings of now wherever and whenever they are read.

    Raises:
        ConfigError: a setting cannot be written on a command line.
    """
    workspace = workspace.with_last_settings()
    resolved = check_run(workspace, [stage.name for stage in RETRAIN_STAGES])
    if detect_dataset_kind(resolved.config.data.dataset) == "tfds":
        from pipeline.data.catalog import require_in_catalog

        require_in_catalog(resolved.config.data.dataset)
    is_packaged = resolved.recipe in recipe_names()
    recipe = resolved.recipe if is_packaged else str(Path(resolved.recipe).expanduser().resolve())
    values = resolved.flat() | _absolute_paths(resolved)
    dataset = {"data.dataset": values["data.dataset"]}
    # Values of the recipe need no argument.
    base = resolve(recipe, dataset, environment={}).flat()
    changed = dataset | {key: value for key, value in values.items() if value != base[key]}
    if "model.network" in changed:  # sizes would follow it
        changed |= {key: values[key] for key in ("model.image_size", "data.short_side")}
    arguments = ("--recipe", recipe, *format_arguments(changed))
    if not _mean(arguments, values):
        raise ConfigError(
            "These settings cannot be kept for later: class names with a comma or an equals sign in"
            " data.renamed_classes cannot be written on a command line",
            expected="names without these signs",
            hint="Put them into a recipe and type --recipe FILE.yaml",
        )
    return arguments


def _mean(arguments: tuple[str, ...], values: Mapping[str, Any]) -> bool:
    try:
        return resolve(*read_arguments(arguments), environment={}).flat() == values
    except ConfigError:
        return False


def _absolute_paths(resolved: Resolved) -> dict[str, str]:
    """Return the settings that name files, wherever they came from, as absolute paths."""
    config = resolved.config
    found = {}
    if config.model.weights not in ("", IMAGENET):
        found["model.weights"] = config.model.weights
    if config.model.network.endswith(".keras"):
        found["model.network"] = config.model.network
    if detect_dataset_kind(config.data.dataset) in ("folder", "manifest"):
        found["data.dataset"] = config.data.dataset
    return {key: str(expand_home(path).resolve()) for key, path in found.items()}


def read_arguments(arguments: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Return the recipe and the settings that the arguments of a schedule mean."""
    pairs = list(zip(arguments[::2], arguments[1::2], strict=True))
    assignments = tuple(value for option, value in pairs if option == "--set")
    return dict(pairs)["--recipe"], parse_assignments(assignments)


def read_retrain_settings(schedule: Schedule) -> RetrainConfig:
    """Return the section `retrain` of a schedule."""
    recipe, settings = read_arguments(schedule.arguments)
    return resolve(recipe, settings, environment={}).config.retrain


def emit_files(workspace: Workspace, engine: str, name: str) -> dict[str, str]:
    """Return the files, by name, that let another engine run a schedule.

    Each calls `alexnet schedule serve --once`.

    Args:
        workspace: the work directory.
        engine: systemd, crontab, kubernetes, airflow or prefect.
        name: of the schedule.

    Raises:
        ConfigError: there is no such schedule, or the engine cannot express this timing.
    """
    from pipeline.schedule.exporters.emit import emit_schedule_files

    known, directory = workspace.ledger().find_schedule(name), workspace.directory.resolve()
    return emit_schedule_files(
        engine, name, known.timing, known.arguments, directory, Path(sys.executable)
    )


def make_timing(cron: str, every: str, timezone: str, jitter: str) -> Timing | None:
    """Return a timing, or None where none is given.

    Raises:
        ConfigError: it is not understood, or options are given that would change nothing.
    """
    if cron or every:
        return parse_timing(cron, every, timezone or "UTC", jitter)
    useless = [f"--{name}" for name, value in (("timezone", timezone), ("jitter", jitter)) if value]
    if useless:
        raise ConfigError(
            f"{' and '.join(useless)} would change nothing without a timing",
            expected="--cron or --every too",
        )
    return None


def compute_run_times(timing: Timing, count: int) -> list[tuple[datetime, datetime]]:
    """Return the next run times of a timing, each in its own zone and in UTC."""
    zone, moment = ZoneInfo(timing.timezone), datetime.now(UTC)
    found = list[tuple[datetime, datetime]]()
    while len(found) < count and (following := find_next_run_time(timing, moment)) is not None:
        moment = following
        found.append((moment.astimezone(zone), moment))
    return found


def serve_until(workspace: Workspace, stop: threading.Event) -> None:
    """Run what the schedules want, each retraining as a process of its own, until `stop` is set."""
    scheduler.serve_schedules(
        workspace.directory,
        read_retrain_settings,
        workspace.observer.notified,
        stop,
        wait=workspace.wait,
    )


def run_due(workspace: Workspace, name: str, stop: threading.Event) -> ScheduledRun | None:
    """Do the one scheduled run that is due, and return what became of it; None where none is.

    A workspace with a recipe or settings adds or changes the schedule first.
    """
    known = find_schedule(workspace, name)
    if workspace.recipe is not None or workspace.settings:
        try:
            # What calls at a run time is seconds late.
            put_schedule(workspace, name, None, since=datetime.now(UTC) - timedelta(minutes=2))
        except DatasetError:
            # The scheduled run fails for the same reason, so history and notifications have it.
            if known is None:
                raise
    elif known is None:
        raise ConfigError(
            f"There is no schedule {name} yet",
            expected="its settings, such as --dataset photos",
            hint="Or add it: alexnet schedule add",
        )
    return scheduler.run_schedule_once(
        workspace.directory,
        name,
        read_retrain_settings,
        workspace.observer.notified,
        stop,
        wait=workspace.wait,
    )


def run_now(workspace: Workspace, name: str, stop: threading.Event) -> ScheduledRun:
    """Have a schedule's retraining done now, by the running scheduler or else here."""
    return scheduler.run_schedule_now(
        workspace.directory, name, read_retrain_settings, workspace.observer.notified, stop
    )


def list_scheduled_runs(workspace: Workspace, name: str, limit: int) -> list[ScheduledRun]:
    """Return the latest scheduled runs of a schedule, or of all if it is empty, newest first.

    Raises:
        ConfigError: there is no such schedule.
    """
    found = workspace.ledger().list_latest_scheduled_runs(name, limit)
    if name and not found:
        workspace.ledger().find_schedule(name)
    return found
