"""A work directory with a recipe and settings: what every public function works on.

    Workspace("mlruns", settings={"data.dataset": "photos", "train.epochs": 10})

It resolves settings (command line > environment > what the last command here used > recipe >
default), and opens what lives in the work directory: runner, tracker, registry, ledger.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.resolution import Resolved, environment_settings
from pipeline.config.resolution import resolve as resolve_settings
from pipeline.data.reference import detect_dataset_kind, expand_home
from pipeline.data.stage import ingest
from pipeline.engine.runner import Runner
from pipeline.engine.stage import Observer, Outcome, Stage, Tracker
from pipeline.engine.workdir import unwritable, work_directory
from pipeline.errors import ConfigError
from pipeline.evaluate.stage import evaluate, evaluate_model
from pipeline.model.network_row import NetworkRow
from pipeline.model.networks import (
    FindNetwork,
    find_built_network,
    find_network,
    require_network_settings,
)
from pipeline.model.stage import build, build_alone
from pipeline.model.weight_sources import IMAGENET
from pipeline.release.stage import promote
from pipeline.retrain.stage import review
from pipeline.schedule.ledger import Ledger
from pipeline.tracking.journal import list_undelivered
from pipeline.tracking.known_runs import read_known_runs
from pipeline.tracking.registry import CHAMPION, Registry
from pipeline.tracking.store import get_run_url, require_nameable_workdir
from pipeline.tracking.tracker import MlflowTracker, NoTracker
from pipeline.train.stage import train

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

DEFAULT_DIRECTORY = Path("mlruns")
# Settings in which sizes and weights follow the network.
resolve = functools.partial(resolve_settings, find_network=find_network)
RUN_STAGES: tuple[Stage, ...] = (ingest, build, train, evaluate)
# `promote` runs only where it is named: what is trained is not released by itself.
ALL_STAGES: tuple[Stage, ...] = (*RUN_STAGES, promote)
# A scheduled run; `review` may end it.
RETRAIN_STAGES: tuple[Stage, ...] = (ingest, review, build, train, evaluate, promote)
# With evaluate.model: an external model is evaluated by a stage of its own.
EXTERNAL_MODEL_STAGES: tuple[Stage, ...] = (ingest, evaluate_model)
# With model.classes: a network without a dataset.
NETWORK_STAGES: tuple[Stage, ...] = (build_alone,)


class SilentObserver:
    """An observer that shows nothing."""

    def started(self, stage: str, why: Sequence[str]) -> None:
        """Show nothing."""

    def progressed(self, done: int, total: int, unit: str, detail: str) -> None:
        """Show nothing."""

    def notified(self, text: str) -> None:
        """Show nothing."""

    def finished(self, outcome: Outcome) -> None:
        """Show nothing."""

    def waiting(self, what: str) -> None:
        """Show nothing."""


class Workspace:
    """A work directory with a recipe and settings.

    Args:
        directory: the folder that everything is written under.
        recipe: a packaged recipe or a YAML file; by default the one that fits the dataset, or that
            of the last command in the directory.
        settings: `section.field` -> value, above everything else.
        observer: notified of what happens; shows nothing by default.
        wait: wait for another process that holds the directory, instead of failing.
    """

    def __init__(
        self,
        directory: Path | str = DEFAULT_DIRECTORY,
        *,
        recipe: str | None = None,
        settings: Mapping[str, Any] | None = None,
        observer: Observer | None = None,
        wait: bool = False,
    ):
        self.directory = Path(directory)
        self.recipe = recipe
        self.settings = resolve_paths(settings or {})
        self.observer: Observer = observer or SilentObserver()
        self.wait = wait

    def __repr__(self) -> str:
        """Return how it is made."""
        return f"Workspace({str(self.directory)!r}, recipe={self.recipe!r}, {self.settings!r})"

    # -- settings ----------------------------------------------------------------------------------

    @property
    def names_dataset(self) -> bool:
        """Whether the settings or the environment name a dataset."""
        return "data.dataset" in {**environment_settings(os.environ), **self.settings}

    def resolve(self, stages: Sequence[str] | None = None) -> Resolved:
        """Return the settings in force for a command.

        Without a recipe and without a dataset, those of the last command here are used for the
        stages that come before the first named one; never its `release.*`: which model is meant is
        said each time, so that a trial under another name does not move what serves.

        Args:
            stages: the stages that the command names; empty means that all are recalled, None that
                nothing is.
        """
        given = {**environment_settings(os.environ), **self.settings}
        if self.recipe is None and str(given.get("model.classes", 0)) != "0":
            return self._resolve("network")  # no dataset, so none to fit
        if self.recipe is not None or stages is None or self.names_dataset:
            return self._resolve(self.recipe)
        recipe, recalled = self.runner().selection.recall_settings(stages)
        kept = {key: value for key, value in recalled.items() if not key.startswith("release.")}
        return self._resolve(recipe, kept)

    def _resolve(self, recipe: str | None, recalled: Mapping[str, Any] | None = None) -> Resolved:
        find = _finder_of((recalled or {}).get("model.network"))
        resolved = resolve_settings(recipe, self.settings, recalled, find_network=find)
        require_network_settings(resolved.config, find)
        return resolved

    def resolve_for_store(self) -> Resolved:
        """Return the settings of a command that uses the tracking store or the registry alone.

        Of the last command here its recipe and dataset are kept: what its stages were made with
        does not matter.
        """
        recipe, recalled = self.runner().selection.recall_settings()
        kept = {key: value for key, value in recalled.items() if key == "data.dataset"}
        return resolve(self.recipe or recipe, self.settings, kept)

    def with_last_settings(self) -> Workspace:
        """Return this workspace with all settings of the last command here below its own.

        Unless it has a recipe or names a dataset. A person's word for one time is not kept.
        """
        if self.recipe is not None or self.names_dataset:
            return self
        recipe, recalled = self.runner().selection.recall_settings()
        if recalled:
            recalled |= {"release.approve": False, "release.dry_run": False}
        given = environment_settings(os.environ)
        kept = {key: value for key, value in recalled.items() if key not in given}
        return self.with_settings(recipe, kept | dict(self.settings))

    def with_settings(self, recipe: str | None, settings: Mapping[str, Any]) -> Workspace:
        """Return a workspace of the same directory with other settings."""
        return Workspace(
            self.directory,
            recipe=recipe,
            settings=settings,
            observer=self.observer,
            wait=self.wait,
        )

    # -- what lives in the directory ---------------------------------------------------------------

    def runner(
        self,
        resolved: Resolved | None = None,
        *,
        stages: Sequence[Stage] = ALL_STAGES,
        subfolder: str = "",
        joins: Callable[[Runner], bool] = lambda _: False,
        selects: bool = True,
    ) -> Runner:
        """Return the runner of the work directory.

        Args:
            resolved: the settings that the process is prepared for before a stage runs; None where
                none will.
            stages: in the order in which they run.
            subfolder: a folder in the work directory, from whose results nothing goes on.
            joins: whether the process meets other workers, when a stage is about to run.
            selects: whether later commands go on from what these stages make.
        """

        def prepare() -> None:
            from pipeline.train.strategy import configure_runtime

            if resolved is not None:
                configure_runtime(resolved.config.train, join=joins(runner))

        directory = self.directory / subfolder if subfolder else self.directory
        runner = Runner(stages, directory, self.observer, prepare, selects=selects)
        return runner

    def hold(self) -> AbstractContextManager[Path]:
        """Hold the work directory, so that no other process works in it.

        Raises:
            ConfigError: the folder cannot be made or written.
            BusyError: another process holds it, and this workspace does not wait.
        """
        return work_directory(self.directory, wait=self.wait)

    def make_directory(self) -> None:
        """Make the work directory if it does not exist.

        Raises:
            ConfigError: it cannot be made.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.directory, error) from error

    def tracker(self, resolved: Resolved, tags: Mapping[str, str] | None = None) -> Tracker:
        """Return what records runs: in MLflow, or nowhere where tracking is off."""
        config = resolved.config.tracking
        if not config.enabled:
            return NoTracker()
        return MlflowTracker(self.directory, config, tags)

    def registry(self, resolved: Resolved | None = None) -> Registry:
        """Return the registry of the model `release.name`.

        Raises:
            ConfigError: there is no registry in this work directory.
        """
        config = (resolved or self.resolve_for_store()).config
        if resolved is None:
            self.require_store(config.tracking.uri)
            require_nameable_workdir(config.tracking, self.directory)
        return Registry(config.release.name, config.tracking, self.directory)

    def ledger(self) -> Ledger:
        """Return the ledger of the scheduled runs."""
        return Ledger(self.directory / "schedule.db")

    def run_ids(self) -> dict[str, str]:
        """Return MLflow's id of each run by our own key."""
        return {key: ids["run_id"] for key, ids in read_known_runs(self.directory).items()}

    def run_url(self, resolved: Resolved, run_key: str) -> str | None:
        """Return the page of a run by our own key; None for one that MLflow does not know."""
        known = read_known_runs(self.directory).get(run_key)
        return get_run_url(resolved.config.tracking, **known) if known else None

    def describe_unsent(self) -> str | None:
        """Return how many earlier runs the tracking store still misses, in words, or None."""
        waiting = len(list_undelivered(self.directory))
        return (
            f"{waiting} earlier run{' is' if waiting == 1 else 's are'} unsent" if waiting else None
        )

    def model_reference(self, model: str = "") -> str:
        """Return the model that is meant: the champion of `release.name` unless one is named.

        Raises:
            ConfigError: its registry cannot be there; one must not be made by asking.
        """
        config = self.resolve_for_store().config
        reference = model or f"models:/{config.release.name}@{CHAMPION}"
        if reference.startswith("models:"):
            require_nameable_workdir(config.tracking, self.directory)
            self.require_store(config.tracking.uri)
        return reference

    def require_store(self, uri: str) -> None:
        """Refuse a work directory without a tracking store, where no server is named.

        Raises:
            ConfigError: no command recorded anything there.
        """
        if not uri and not (self.directory / "mlflow.db").exists():
            raise ConfigError(
                f"There is no registry in {self.directory}",
                expected="a work directory in which `alexnet run promote` has run",
                hint="Name it with --workdir, or a server with --set tracking.uri=ADDRESS; or name"
                " a model file with --model",
            )


def _finder_of(built: object) -> FindNetwork:
    """Return what finds networks, where the name of one is recalled: it was built here.

    Its result is here, so later stages do without the file or function that it was made of.
    """

    def find(name: str) -> NetworkRow:
        return find_built_network(name) if name == built else find_network(name)

    return find


def resolve_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in which files and folders mean the same from another folder."""
    found = dict(settings)
    dataset = expand_home(str(settings.get("data.dataset", "")))
    is_local = detect_dataset_kind(str(dataset)) in ("folder", "manifest")
    if "data.dataset" in settings and is_local and dataset.exists():
        found["data.dataset"] = str(dataset.resolve())
    if settings.get("model.weights") not in (None, "", "none", "auto", IMAGENET):
        found["model.weights"] = str(expand_home(str(settings["model.weights"])).resolve())
    if str(settings.get("model.network", "")).endswith(".keras"):
        found["model.network"] = str(expand_home(str(settings["model.network"])).resolve())
    model = expand_home(str(settings.get("evaluate.model", "")))
    if model.is_file():
        found["evaluate.model"] = str(model.resolve())
    return found
