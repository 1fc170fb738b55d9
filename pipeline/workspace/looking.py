"""Looking at a work directory: its results, MLflow's pages, pages drawn again, garbage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.resolution import Resolved
from pipeline.config.settings import Config
from pipeline.engine.runner import StageStatus
from pipeline.engine.stage import Stage
from pipeline.errors import ConfigError
from pipeline.retrain.garbage_collection import collect_garbage
from pipeline.retrain.garbage_plan import GarbagePlan, plan_garbage_collection
from pipeline.tracking import store
from pipeline.tracking.delivery import deliver_leftovers
from pipeline.tracking.journal import list_undelivered
from pipeline.workspace.stored_results import find_results_of_run
from pipeline.workspace.workspace import (
    EXTERNAL_MODEL_STAGES,
    RETRAIN_STAGES,
    RUN_STAGES,
    Workspace,
)


@dataclass(frozen=True)
class Status:
    """What exists in a work directory: of each stage, and the page of each of its runs by key."""

    resolved: Resolved
    stages: tuple[StageStatus, ...]
    run_urls: dict[str, str]


def read_status(workspace: Workspace) -> Status:
    """Look at the stages of a run without running any."""
    resolved = workspace.resolve(())
    names = [stage.name for stage in RUN_STAGES]
    found = workspace.runner().inspect_stages(resolved.config, names)
    urls = {item.run_key: workspace.run_url(resolved, item.run_key) for item in found}
    return Status(resolved, tuple(found), {key: url for key, url in urls.items() if url})


@dataclass(frozen=True)
class MlflowServer:
    """How to start MLflow's pages: command, environment, and the page to open."""

    command: list[str]
    environment: dict[str, str]
    page: str


def prepare_server(workspace: Workspace, port: int) -> MlflowServer:
    """Return how to start MLflow's pages of a work directory on this machine."""
    config, directory = workspace.resolve().config.tracking, workspace.directory
    store.require_nameable_workdir(config, directory)
    workspace.make_directory()
    experiment = store.open_experiment(config, directory)
    command, environment = store.build_server_command(config, directory, port)
    page = store.get_experiment_url(config, experiment, f"http://127.0.0.1:{port}")
    return MlflowServer(command, environment, page)


def redraw_pages(workspace: Workspace, names: Sequence[str]) -> list[tuple[str, Path]]:
    """Draw the pages of finished results again; return the stage of each and its folder of pages.

    Args:
        workspace: the work directory.
        names: stages, or ids of MLflow runs, six letters or more; none means all that are done.

    Raises:
        ConfigError: a name means no finished result.
    """
    _require_directory(workspace)
    with workspace.hold():
        runner, resolved = workspace.runner(), workspace.resolve(())
        done = [item for item in runner.inspect_stages(resolved.config) if item.state == "done"]
        folders = {item.stage: item.directory for item in done if item.directory}
        named = names or [name for name in folders if _STAGES[name].draw is not None]
        found = [_find_drawable(workspace, name, folders) for name in named]
        return [(stage.name, runner.results.redraw(stage, folder)) for stage, folder in found]


_STAGES = {stage.name: stage for stage in (*RETRAIN_STAGES, *EXTERNAL_MODEL_STAGES)}


def _find_drawable(
    workspace: Workspace, name: str, folders: Mapping[str, Path]
) -> tuple[Stage, Path]:
    """Return the stage and the folder of a result that has pages, by a stage's or a run's name."""
    known = [folders[name]] if name in folders else []
    for folder in known or find_results_of_run(workspace, name):
        stage = _STAGES.get(folder.name.rpartition("-")[0])
        if stage is not None and stage.draw is not None:
            return stage, folder
    raise ConfigError(
        f"There are no pages of {name} to draw again",
        expected="a finished stage that draws pages, or the id of its MLflow run",
        hint="`alexnet status` shows the stages and their runs",
    )


def accept_results(workspace: Workspace, names: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Keep the results of stages although code changed; return what was accepted of each.

    Args:
        workspace: the work directory.
        names: the stages; none means all of which code alone changed.
    """
    _require_directory(workspace)
    with workspace.hold():
        return workspace.runner().accept_stages(workspace.resolve(()), names)


def _require_directory(workspace: Workspace) -> None:
    """Refuse a work directory that does not exist: looking makes none."""
    if not workspace.directory.is_dir():
        raise ConfigError(
            f"There is no work directory {workspace.directory}",
            expected="one in which a command has run",
            hint="Name it with --workdir",
        )


def clean_directory(workspace: Workspace, keep: int | None, *, dry_run: bool) -> GarbagePlan:
    """Delete results that nothing refers to, or only list them.

    Args:
        workspace: the work directory.
        keep: how many retrainings stay; `retrain.keep` where None.
        dry_run: delete nothing.

    Raises:
        ConfigError: there is no such work directory.
        BusyError: another process works in it.
    """
    config = workspace.resolve_for_store().config
    _require_directory(workspace)

    def make_plan() -> GarbagePlan:
        count = keep or config.retrain.keep
        return plan_garbage_collection(
            workspace.directory, config, keep=count, retrainings_only=False
        )

    if dry_run:
        return make_plan()
    with workspace.hold():
        plan = make_plan()
        collect_garbage(plan)
        return plan


def deliver_runs(workspace: Workspace) -> tuple[int, dict[str, str]]:
    """Send to the tracking store what earlier runs could not.

    Returns:
        How many runs were sent, and why others were not, by name.
    """
    if not list_undelivered(workspace.directory):
        return 0, {}
    with workspace.hold():
        return deliver_leftovers(workspace.directory)


def describe_settings_schema() -> str:
    """Return the JSON schema of the settings."""
    return json.dumps(Config.model_json_schema(), indent=2)
