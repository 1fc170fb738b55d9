"""Looking at a work directory: its results, MLflow's pages, pages drawn again, garbage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.resolution import Resolved
from pipeline.engine.results import read_account
from pipeline.engine.runner import StageStatus
from pipeline.errors import ConfigError
from pipeline.retrain.garbage_collection import collect_garbage
from pipeline.retrain.garbage_plan import GarbagePlan, plan_garbage_collection
from pipeline.tracking import store
from pipeline.tracking.delivery import deliver_leftovers
from pipeline.tracking.journal import list_undelivered
from pipeline.workspace.workspace import (
    EXTERNAL_MODEL_STAGES,
    RETRAIN_STAGES,
    RUN_STAGES,
    Workspace,
)

_MIN_LETTERS = 6  # of a run's id, to name it


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
    runner, resolved = workspace.runner(), workspace.resolve(())
    stages = {stage.name: stage for stage in (*RETRAIN_STAGES, *EXTERNAL_MODEL_STAGES)}
    done = [item for item in runner.inspect_stages(resolved.config) if item.state == "done"]
    folders = {item.stage: item.directory for item in done if item.directory}
    if not names:
        names = [name for name in folders if stages[name].draw is not None]
    drawn = []
    for name in names:
        folder = folders.get(name) if name in stages else _find_result(workspace, name)
        stage = (
            stages.get(name if name in stages else folder.name.rpartition("-")[0])
            if folder
            else None
        )
        if folder is None or stage is None or stage.draw is None:
            raise ConfigError(
                f"There are no pages of {name} to draw again",
                expected="a finished stage that draws pages, or the id of its MLflow run",
                hint="`alexnet status` shows the stages and their runs",
            )
        drawn.append((stage.name, runner.results.redraw(stage, folder)))
    return drawn


def _find_result(workspace: Workspace, run: str) -> Path | None:
    """Return the folder of the result that an MLflow run made, named by its id's first letters."""
    run_ids = workspace.run_ids() if len(run) >= _MIN_LETTERS else {}
    keys = {key for key, run_id in run_ids.items() if run_id.startswith(run)}
    for folder in sorted(workspace.directory.glob("stages/*-*")):
        account = read_account(folder)
        if account and keys & {account.run_key, *account.earlier_run_keys}:
            return folder
    return None


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
    if not workspace.directory.is_dir():
        raise ConfigError(
            f"There is no work directory {workspace.directory}",
            expected="one in which a command has run",
            hint="Name it with --workdir",
        )

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
