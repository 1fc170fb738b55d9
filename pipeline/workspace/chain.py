"""Running stages: what `alexnet ingest build train evaluate promote` does, on one or more workers.

check what can be refused before anything starts
hold the work directory
an external model: fetch it, and evaluate it by a stage of its own
run the stages; a worker beside the chief takes part in `train` alone
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.artifacts import Artifact, Decision, EvaluationReport, SavedModel
from pipeline.config.description import format_arguments
from pipeline.config.resolution import Resolved
from pipeline.config.train import TrainConfig
from pipeline.data.reference import require_source
from pipeline.engine.runner import Runner
from pipeline.engine.stage import Outcome
from pipeline.errors import ConfigError, LostWorkerError, WorkersFailedError
from pipeline.evaluate.external_model import find_external_model
from pipeline.evaluate.stage import evaluate, evaluate_model
from pipeline.tracking.fetching import fetch_model_file
from pipeline.tracking.store import require_nameable_workdir
from pipeline.train.cluster import Cluster, read_cluster
from pipeline.train.launcher import run_workers
from pipeline.workspace.stored_results import compare_evaluations
from pipeline.workspace.workspace import (
    ALL_STAGES,
    EXTERNAL_MODEL_STAGES,
    NETWORK_STAGES,
    RUN_STAGES,
    Workspace,
)

if TYPE_CHECKING:
    from pipeline.evaluate.compare import Comparison

ALL_STAGE_NAMES = tuple(stage.name for stage in ALL_STAGES)
COMPARISONS_FOLDER = "comparisons"
# Settings that were meant for the main network, and those of `model.` that were not.
_OF_NETWORK = ("model.", "train.finetune", "train.freeze", "data.short_side")
_OF_EVERY_NETWORK = ("model.seed", "model.signal_check")
_Record = TypeVar("_Record", bound=Artifact)


@dataclass(frozen=True)
class PipelineResult:
    """What a pipeline run did: the outcome of each named stage, and where it is recorded."""

    outcomes: tuple[Outcome, ...]
    resolved: Resolved
    run_ids: dict[str, str] = field(default_factory=dict)
    run_url: str | None = None
    not_recorded: str | None = None
    comparison: Comparison | None = None

    def _last_record(self, kind: type[_Record]) -> _Record | None:
        records = [
            outcome.artifact for outcome in self.outcomes if isinstance(outcome.artifact, kind)
        ]
        return records[-1] if records else None

    @property
    def model(self) -> SavedModel | None:
        """The trained network, or the built one when none was trained."""
        return self._last_record(SavedModel)

    @property
    def report(self) -> EvaluationReport | None:
        """What the network scored, when it was evaluated."""
        return self._last_record(EvaluationReport)

    @property
    def decision(self) -> Decision | None:
        """What became of the network as a release, when `promote` was named."""
        return self._last_record(Decision)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON can hold it.

        `stages`, `test`, `model`, `run_url`, `not_recorded`, `comparison` with another network, and
        `decision` of a promotion.
        """
        model, report, decision = self.model, self.report, self.decision
        batch_size = self.resolved.config.train.global_batch_size
        shown: dict[str, Any] = {
            "stages": [outcome.as_dict(self.run_ids) for outcome in self.outcomes],
            "test": report and report.as_dict(),
            "model": model and model.as_dict(batch_size),
            "run_url": self.run_url,
            "not_recorded": self.not_recorded,
        }
        if self.comparison is not None:
            shown["comparison"] = self.comparison.as_dict()
        if decision is not None:
            shown["decision"] = decision.model_dump(mode="json") | {"report": str(decision.page)}
        return shown


def run_stages(
    workspace: Workspace,
    stages: Sequence[str],
    rerun: Sequence[str] = (),
    compare_with: str = "",
    *,
    accept_code: bool = False,
    workers: int = 1,
    selects: bool = True,
) -> PipelineResult:
    """Run stages in order; skip each whose result is there.

    Where TF_CONFIG names several workers, the first runs the stages, and each other one takes part
    in `train` and returns no outcome.

    Args:
        workspace: the work directory, recipe and settings.
        stages: names.
        rerun: stages to run again although nothing changed.
        compare_with: another network to run before, and to compare with.
        accept_code: keep results of which code alone changed.
        workers: train in so many processes of this machine.
        selects: whether later commands go on from what these stages make.

    Raises:
        PipelineError: one of its kinds; the message says what to do.
    """
    if compare_with and "evaluate" not in stages:
        raise ConfigError(
            "A comparison needs an evaluation of both networks",
            expected="the stage evaluate, or run",
            received=", ".join(stages),
            hint="Name it, or leave --compare-with out",
        )
    if compare_with:
        resolved = check_run(workspace, stages, rerun)
        _require_weights_file(resolved.config.model.weights)
        main = functools.partial(run_stages, workspace, stages, rerun=rerun, workers=workers)
        return _run_beside(
            workspace, compare_with, functools.partial(main, accept_code=accept_code)
        )
    cluster = read_cluster()
    resolved = check_run(workspace, stages, rerun, cluster)
    if accept_code and (workers > 1 or cluster.workers > 1):
        raise ConfigError(
            "Several workers cannot know whether the chief accepts changed code",
            expected="`alexnet accept` first, without workers",
        )
    if workers > 1:
        launch_workers(_arguments_of(workspace, stages, rerun), workers)
        rerun = ()
    if resolved.config.evaluate.model:
        stages, rerun = _with_external_model(stages), _with_external_model(rerun)
    if not cluster.is_chief:
        _take_part(workspace, resolved, stages, rerun, cluster)
        return PipelineResult((), resolved)
    require_nameable_workdir(resolved.config.tracking, workspace.directory)
    with workspace.hold():
        resolved = _with_model_file(workspace, resolved, [*stages, *rerun])
        tracker = workspace.tracker(resolved)
        runner = _runner_of(
            workspace,
            resolved,
            lambda runner: cluster.workers > 1 and _trains(runner, resolved, stages, rerun),
            selects=selects,
        )
        names = [*stages, *rerun]
        outcomes = tuple(runner.run(resolved, names, tracker, rerun, accept_code=accept_code))
        last = outcomes[-1]
        key = tracker.pipeline_key or last.run_key.removesuffix(f"-{last.stage}")
        return PipelineResult(
            outcomes,
            resolved,
            workspace.run_ids(),
            workspace.run_url(resolved, key),
            tracker.problem or workspace.describe_unsent(),
        )


def _run_beside(
    workspace: Workspace, network: str, run_main: Callable[[], PipelineResult]
) -> PipelineResult:
    """Run a pipeline and the same with another network, and compare both on the same test images.

    The other network goes first, and later commands do not go on from it. It has its own sizes and
    fine-tuning, and weights as the recipe says.
    """
    settings = {
        name: value
        for name, value in workspace.settings.items()
        if name in _OF_EVERY_NETWORK or not name.startswith(_OF_NETWORK)
    }
    settings["model.network"] = network
    other = Workspace(
        workspace.directory,
        recipe=workspace.recipe,
        settings=settings,
        observer=workspace.observer,
        wait=workspace.wait,
    )
    workspace.observer.notified(f"{network} first: options for a network are not for this one")
    first = run_stages(other, [stage.name for stage in RUN_STAGES], selects=False).report
    main = run_main()
    config = main.resolved.config.model
    workspace.observer.notified(
        f"compared: first {network}, with sizes and fine-tuning of its own, and second"
        f" {config.network} of {config.image_size} pixels"
    )
    if first is None or main.report is None:  # a worker beside the chief, who compares
        return main
    return replace(main, comparison=compare_evaluations(workspace, first, main.report))


def _require_weights_file(weights: str) -> None:
    """Refuse a missing file before another network is trained for hours."""
    if weights not in ("", "imagenet") and not Path(weights).expanduser().is_file():
        raise ConfigError(
            f"There is no file {weights}",
            expected="weights to start from",
            hint="Correct model.weights, or leave it out",
        )


def check_run(
    workspace: Workspace,
    stages: Sequence[str],
    rerun: Sequence[str] = (),
    cluster: Cluster | None = None,
) -> Resolved:
    """Return the settings of a run, after all that can be refused before anything starts.

    Raises:
        ConfigError: a stage is unknown, or settings do not fit the stages.
        DatasetError: the images are not there.
    """
    unknown = {*stages, *rerun} - {*ALL_STAGE_NAMES, "review"}
    if unknown or not stages:
        raise ConfigError(
            f"Unknown stage {', '.join(sorted(unknown))}" if unknown else "No stage is named",
            expected=f"some of {', '.join(ALL_STAGE_NAMES)}",
        )
    resolved = workspace.resolve([name for name in stages if name != "review"])
    config = resolved.config
    if config.model.classes > 0 and list(stages) != ["build"]:
        raise ConfigError(
            "model.classes is for a look at a network without a dataset",
            expected="the command `build` alone",
            received=", ".join(stages),
            hint="Leave --classes out: the dataset has its number of classes",
        )
    if config.evaluate.model and not {*stages, *rerun} <= {"ingest", "evaluate"}:
        raise ConfigError(
            "evaluate.model is for evaluating an external model",
            expected="the commands ingest and evaluate alone",
            received=", ".join(stages),
            hint="Leave --model out to evaluate the one that is trained",
        )
    if "promote" in stages and not config.tracking.enabled:
        raise ConfigError(
            "A release lives in MLflow's registry",
            expected="tracking.enabled=yes",
            received="no",
            hint="Leave out that setting, or promote",
        )
    if "ingest" in stages:
        require_source(config.data)
    if cluster is not None and cluster.workers > 1:
        _require_shareable_batch(config.train, cluster)
        _require_no_early_rerun(rerun)
    return resolved


def _require_shareable_batch(config: TrainConfig, cluster: Cluster) -> None:
    """Refuse a batch that the workers cannot share; what GPUs each has is known only later."""
    from pipeline.train.strategy import require_divisible

    kind, _, which = config.devices.partition(":")
    devices = {"cpu": int(which or 1), "gpu": len(which.split(",")), "auto": 1}[kind]
    require_divisible(config, cluster.workers, devices if which or kind != "gpu" else 1)


def _require_no_early_rerun(rerun: Sequence[str]) -> None:
    earlier = {"ingest", "build"} & set(rerun)
    if earlier:
        raise ConfigError(
            "Several workers cannot know when the chief has made"
            f" {' and '.join(sorted(earlier))} again",
            expected="--rerun of train or evaluate",
            hint="Type that --rerun for the stage alone first, without TF_CONFIG",
        )


def _with_external_model(stages: Sequence[str]) -> tuple[str, ...]:
    """Return stages with that of an external model in the place of `evaluate`."""
    return tuple(evaluate_model.name if name == evaluate.name else name for name in stages)


def _runner_of(
    workspace: Workspace,
    resolved: Resolved,
    joins: Callable[[Runner], bool] = lambda _: False,
    *,
    selects: bool = True,
) -> Runner:
    """Return the runner of the stages that the settings mean."""
    if resolved.config.model.classes > 0:
        return workspace.runner(resolved, stages=NETWORK_STAGES, subfolder="networks")
    if resolved.config.evaluate.model:
        return workspace.runner(resolved, stages=EXTERNAL_MODEL_STAGES, selects=False)
    return workspace.runner(resolved, joins=joins, selects=selects)


def _with_model_file(workspace: Workspace, resolved: Resolved, stages: Sequence[str]) -> Resolved:
    """Return the settings with the file of an external model in the place of its name in MLflow.

    Images are prepared at the scale and with the fit that it was trained with, unless these are
    named. An earlier ingest that decided the fit itself is used as it is: the stage compares.
    """
    config = resolved.config
    if not config.evaluate.model:
        return resolved
    path = Path(config.evaluate.model)
    if path.suffix != ".keras":
        path = fetch_model_file(config.evaluate.model, config.tracking, workspace.directory)
    known = find_external_model(path)
    decided_before = config.data.fit == "auto" and "ingest" not in stages
    trained_with = {"short_side": known.short_side, "fit": "" if decided_before else known.fit}
    data = config.data.model_copy(
        update={
            name: value
            for name, value in trained_with.items()
            if value and resolved.origins[f"data.{name}"] not in ("command line", "environment")
        }
    )
    evaluated = config.evaluate.model_copy(update={"model": str(path)})
    return replace(resolved, config=config.model_copy(update={"data": data, "evaluate": evaluated}))


# -- several workers -------------------------------------------------------------------------------


def is_chief() -> bool:
    """Return whether this process writes: the only one, or worker 0 of those in TF_CONFIG."""
    return read_cluster().is_chief


def is_worker(workers: int) -> bool:
    """Return whether this process is one of so many workers that a command line started."""
    return read_cluster().workers == workers


def launch_workers(
    arguments: Sequence[str], workers: int, notify: Callable[[str], None] = lambda _text: None
) -> None:
    """Run `alexnet ARGUMENTS` as several workers of this machine; show the chief's output.

    All are started again when one is lost.

    Args:
        arguments: of the command line.
        workers: how many.
        notify: called with what a person should know.

    Raises:
        WorkersFailedError: they ended with an error, which the chief has shown.
    """
    if read_cluster().workers > 1:
        raise ConfigError(
            "Several workers were asked for in a process that is one of several already",
            expected="--workers or TF_CONFIG, not both",
        )
    if code := run_workers(arguments, workers, notify):
        raise WorkersFailedError(code)


def _arguments_of(workspace: Workspace, stages: Sequence[str], rerun: Sequence[str]) -> list[str]:
    """Return the command line that does what `run_stages` was asked for."""
    arguments = ["--recipe", workspace.recipe] if workspace.recipe else []
    arguments += ["--workdir", str(workspace.directory), "--quiet"]
    arguments += ["--wait"] if workspace.wait else []
    arguments += format_arguments(workspace.settings)
    return [*arguments, *stages, *(word for name in rerun for word in ("--rerun", name))]


def _trains(
    runner: Runner, resolved: Resolved, stages: Sequence[str], rerun: Sequence[str]
) -> bool:
    """Return whether a command trains; the chief and the others must find the same."""
    return "train" in rerun or (
        "train" in stages and not runner.is_done("train", resolved.config, [*stages, *rerun])
    )


def _take_part(
    workspace: Workspace,
    resolved: Resolved,
    stages: Sequence[str],
    rerun: Sequence[str],
    cluster: Cluster,
) -> None:
    """Take part in the chief's training, if it trains."""
    name, observer = f"worker {cluster.index} of {cluster.workers}", workspace.observer
    runner = _runner_of(workspace, resolved, lambda _: True)
    if not _trains(runner, resolved, stages, rerun):
        observer.notified(
            f"{name}: nothing to do; the chief, {cluster.addresses[0]}, needs no training"
        )
        return

    def require_chief() -> None:
        if not cluster.is_chief_reachable():
            raise LostWorkerError(
                f"The chief of this training, {cluster.addresses[0]}, is gone; this is {name}",
                hint="Nothing but the steps since the last checkpoint is lost. Start all workers"
                " with the same command again, and the training goes on from there",
            )

    observer.started("train", [f"{name}; the chief is {cluster.addresses[0]}"])
    runner.prepare()
    runner.take_part("train", resolved.config, [*stages, *rerun], rerun, require_chief)
