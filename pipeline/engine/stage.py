"""What a stage is: a function wired by its annotations, and what it may use while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_type_hints

from pipeline.artifacts import Artifact, DatasetArtifact, SavedModel
from pipeline.config.resolution import Resolved
from pipeline.config.section import Section
from pipeline.config.settings import Config
from pipeline.config.tracking import TrackingConfig

State = Literal["ran", "skipped", "failed"]
REPORT, SCRATCH = "report", "scratch"  # folders of a result


class StageRun(Protocol):
    """Where one executed stage is recorded.

    `summary=True` repeats a value on the pipeline's own run.
    """

    key: str

    def log_params(self, values: Mapping[str, Any]) -> None: ...

    def set_tags(self, values: Mapping[str, Any], *, summary: bool = False) -> None: ...

    def log_metrics(
        self,
        values: Mapping[str, float],
        *,
        step: int = 0,
        summary: bool = False,
        at: float | None = None,
    ) -> None: ...

    def log_dataset(self, dataset: DatasetArtifact, context: str) -> None: ...

    def log_files(self, directory: Path) -> None: ...

    def log_model(self, model: SavedModel) -> None: ...

    def close(self, status: Literal["FINISHED", "FAILED", "KILLED"], message: str = "") -> None: ...


class Tracker(Protocol):
    """Records a pipeline run and the stages it executes; never changes what they make.

    `earlier` is the key of the run of an attempt that is carried on: the same run goes on.
    `own_tags` are those of the pipeline's run.
    """

    @property
    def pipeline_key(self) -> str: ...

    @property
    def problem(self) -> str | None: ...

    @property
    def own_tags(self) -> Mapping[str, str]: ...

    def start_stage_run(
        self, stage: str, section: str, resolved: Resolved, earlier: str = ""
    ) -> StageRun: ...

    def link_skipped_stage(self, stage: str, run_key: str) -> None: ...

    def start_pipeline_run(self, resolved: Resolved) -> StageRun: ...

    def conclude_run(
        self, name: str, tags: Mapping[str, Any] = ..., metrics: Mapping[str, float] = ...
    ) -> None: ...

    def log_files(self, directory: Path) -> None: ...

    def close(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None: ...


class Observer(Protocol):
    """Notified of what happens, to show it."""

    def started(self, stage: str, why: Sequence[str]) -> None: ...

    def progressed(self, done: int, total: int, unit: str, detail: str) -> None: ...

    def notified(self, text: str) -> None: ...

    def finished(self, outcome: Outcome) -> None: ...

    def waiting(self, what: str) -> None: ...


class UnrecordedRun:
    """A stage's run that is recorded nowhere: that of a worker beside the chief."""

    key = ""

    def log_params(self, values: Mapping[str, Any]) -> None: ...

    def set_tags(self, values: Mapping[str, Any], *, summary: bool = False) -> None: ...

    def log_metrics(
        self,
        values: Mapping[str, float],
        *,
        step: int = 0,
        summary: bool = False,
        at: float | None = None,
    ) -> None: ...

    def log_dataset(self, dataset: DatasetArtifact, context: str) -> None: ...

    def log_files(self, directory: Path) -> None: ...

    def log_model(self, model: SavedModel) -> None: ...

    def close(self, status: Literal["FINISHED", "FAILED", "KILLED"], message: str = "") -> None: ...


@dataclass(frozen=True)
class Context:
    """What a stage may use besides its settings and its inputs.

    Files that a person wants to look at go into `report_directory`; they are logged to the tracking
    store. `workdir`, `config` and `tags`, those of the pipeline's run, are for a stage that asks
    the registry and is never skipped: they are no part of its fingerprint.
    """

    directory: Path
    run: StageRun
    observer: Observer
    workdir: Path = Path()
    config: Config = field(default_factory=Config)
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def tracking(self) -> TrackingConfig:
        """Where runs are recorded."""
        return self.config.tracking

    @property
    def report_directory(self) -> Path:
        """The folder of pages and images, made when first asked for."""
        folder = self.directory / REPORT
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def scratch_directory(self) -> Path:
        """The folder of what only an interrupted attempt leaves behind.

        Removed once the stage is finished.
        """
        folder = self.directory / SCRATCH
        folder.mkdir(exist_ok=True)
        return folder

    def progress(self, done: int, total: int, unit: str, detail: str = "") -> None:
        """Report how far the stage is: `done` of `total` units."""
        self.observer.progressed(done, total, unit, detail)

    def notify(self, text: str) -> None:
        """Notify a person of something although the stage goes on.

        The stage's run remembers the last of it.
        """
        self.run.set_tags({"note": text})
        self.observer.notified(text)


@dataclass(frozen=True)
class Stage:
    """A function and the wiring that its annotations say; `stage` explains the rest."""

    name: str
    function: Callable[..., Artifact]
    section: str
    config_argument: str
    inputs: dict[str, type[Artifact]]
    output: type[Artifact]
    source: Callable[[Section], Mapping[str, str | None]] | None = None
    chosen_code: Callable[[Section], Mapping[str, str | None]] | None = None
    chosen_packages: Callable[..., Sequence[str]] | None = None
    registries: frozenset[str] = frozenset()
    without_effect: frozenset[str] = frozenset()
    draw: Callable[[Any, Path], None] | None = None
    resumable: bool = False
    take_part: Callable[..., None] | None = None
    always: bool = False

    @property
    def help(self) -> str:
        """The function's docstring."""
        return (self.function.__doc__ or "").strip()

    @property
    def left_out_modules(self) -> frozenset[str]:
        """Modules that are no part of the fingerprint."""
        return self.registries | self.without_effect


def stage(
    *,
    source: Callable[[Any], Mapping[str, str | None]] | None = None,
    chosen_code: Callable[[Any], Mapping[str, str | None]] | None = None,
    chosen_packages: Callable[..., Sequence[str]] | None = None,
    registries: Sequence[str] = (),
    without_effect: Sequence[str] = (),
    draw: Callable[[Any, Path], None] | None = None,
    resumable: bool = False,
    take_part: Callable[..., None] | None = None,
    always: bool = False,
) -> Callable[[Callable[..., Artifact]], Stage]:
    """Make a function a stage, wired by its annotations.

    Args:
        source: describes input from outside the pipeline, such as a folder's files, cheaply; a
            change re-runs the stage. None for a file that is not there: it counts as unchanged.
        chosen_code: given the section, returns `code <name>` parts of the fingerprint for code that
            the settings choose and that no import shows, such as one row of a registry; None for
            source that is not there, likewise.
        chosen_packages: given the function's arguments but for the context, returns the names of
            libraries that compute besides those of every stage; their versions are parts of the
            fingerprint.
        registries: dotted names of modules that hold such rows; they are no part of the
            fingerprint.
        without_effect: dotted names of modules that the function uses and that cannot change its
            result, such as those that diagnose a failure; they are no part of the fingerprint.
        draw: draws the pages of a finished result, from its record and files alone, into a folder;
            called after the function, and by `alexnet report`. No part of the fingerprint.
        resumable: the function carries on from the files that an interrupted attempt left.
        take_part: what other workers do while the function works on the first of several; takes
            the same arguments.
        always: never skipped, as the decision depends on more than can be known beforehand.
    """

    def wrap(function: Callable[..., Artifact]) -> Stage:
        hints = get_type_hints(function)
        output = hints.pop("return")
        sections = {name: kind for name, kind in hints.items() if issubclass(kind, Section)}
        ((config_argument, section_type),) = sections.items()
        (section,) = (
            name
            for name, field_ in Config.model_fields.items()
            if field_.annotation is section_type
        )
        inputs = {name: kind for name, kind in hints.items() if issubclass(kind, Artifact)}
        return Stage(
            name=function.__name__,
            function=function,
            section=section,
            config_argument=config_argument,
            inputs=inputs,
            output=output,
            source=source,
            chosen_code=chosen_code,
            chosen_packages=chosen_packages,
            registries=frozenset(registries),
            without_effect=frozenset(without_effect),
            draw=draw,
            resumable=resumable,
            take_part=take_part,
            always=always,
        )

    return wrap


@dataclass(frozen=True)
class Outcome:
    """What became of one stage of a pipeline run."""

    stage: str
    state: State
    seconds: float
    directory: Path
    run_key: str
    artifact: Artifact | None = None
    why: tuple[str, ...] = ()

    def as_dict(self, run_ids: Mapping[str, str]) -> dict[str, Any]:
        """Return the outcome as JSON can hold it.

        Args:
            run_ids: MLflow's id of each run by our own key.
        """
        return {
            "name": self.stage,
            "state": self.state,
            "seconds": round(self.seconds, 3),
            "directory": str(self.directory),
            "run_id": run_ids.get(self.run_key),
            "why": list(self.why),
        }
