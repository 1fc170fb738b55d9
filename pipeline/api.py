"""Every command as one plain function, for notebooks and programs; the command line calls these.

    from pipeline.api import run

    result = run(settings={"data.dataset": "photos", "train.epochs": 10})
    print(result.report.top1_error)

Results carry the records of `pipeline.artifacts`, which know where their files are.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import registry, tracking
from pipeline.artifacts import Artifact, DatasetArtifact, Decision, EvaluationReport, SavedModel
from pipeline.config import Config, Resolved, TrackingConfig, TrainConfig, environment_settings, resolve
from pipeline.data.listing import at, kind_of, require_source
from pipeline.data.stage import ingest
from pipeline.engine import Finding, Observer, Outcome, Runner, Stage, unwritable, work_directory
from pipeline.errors import ConfigError, LostWorkerError, WorkersFailedError
from pipeline.evaluate.given import given_model
from pipeline.evaluate.stage import evaluate, evaluate_model
from pipeline.model.stage import build, build_alone
from pipeline.registry import CHAMPION, Registry, Version
from pipeline.release.stage import promote
from pipeline.train.cluster import Cluster, launch, read_cluster
from pipeline.train.stage import train

if TYPE_CHECKING:
    from pipeline.evaluate.compare import Comparison
    from pipeline.release.classify import Classifier
    from pipeline.release.export import Exported
    from pipeline.release.package import Release
    from pipeline.release.predict import Prediction

DEFAULT_WORKDIR = Path("mlruns")
STAGES: tuple[Stage, ...] = (ingest, build, train, evaluate)
STAGE_NAMES = tuple(item.name for item in STAGES)
# Named only by those who want it: what is trained is not released by itself.
ALL_STAGE_NAMES = (*STAGE_NAMES, promote.name)
_LEAST_LETTERS = 6  # of a run's id, to name it
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
        records = [outcome.artifact for outcome in self.outcomes if isinstance(outcome.artifact, kind)]
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
        """Return the result as JSON can hold it: `stages`, `test`, `model`, `run_url`, `not_recorded`, and `decision` of a promotion."""
        model, report, decision = self.model, self.report, self.decision
        return {
            "stages": [stage_dict(outcome, self.run_ids) for outcome in self.outcomes],
            "test": report
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
            },
            "model": model
            and {
                "path": str(model.model_path),
                "sha256": model.model_sha256,
                "variant": model.variant,
                "parameters": model.parameters,
                "macs": model.macs,
                "activation_bytes": model.activation_bytes(self.resolved.config.train.global_batch_size),
                "layers": [layer.model_dump() for layer in model.layers],
            },
            "run_url": self.run_url,
            "not_recorded": self.not_recorded,
            **({"decision": decision.model_dump(mode="json") | {"report": str(decision.page)}} if decision else {}),
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
    recipe: str | None = None, overrides: Mapping[str, Any] | None = None, workdir: Path | None = None, stages: Sequence[str] = STAGE_NAMES
) -> Resolved:
    """Return the settings that a command would use, and where each came from.

    Args:
        recipe: a packaged recipe or a YAML file. Without one, a command that begins after `ingest` goes on with the recipe and the
            upstream settings of the last command in the work directory.
        overrides: `section.field` -> value.
        workdir: where that last command is looked up; none means nowhere.
        stages: the stages that the command names; none means that all are looked up.
    """
    remembered: Mapping[str, Any] = {}
    overrides = dict(overrides or {})
    dataset = at(str(overrides.get("data.dataset", "")))
    model = at(str(overrides.get("evaluate.model", "")))
    if model.is_file():
        overrides["evaluate.model"] = str(model.resolve())
    if overrides.get("model.weights"):
        overrides["model.weights"] = str(at(str(overrides["model.weights"])).resolve())
    if "data.dataset" in overrides and kind_of(str(dataset)) in ("folder", "manifest") and dataset.exists():
        overrides["data.dataset"] = str(dataset.resolve())  # so that it means the same from another folder
    given = {**environment_settings(os.environ), **overrides}
    if recipe is None and str(given.get("model.classes", 0)) != "0":
        recipe = "network"  # no dataset, so none to fit
    elif recipe is None and workdir is not None and "data.dataset" not in given:
        recipe, remembered = _runner(workdir).remembered(stages)
        # Which model is meant is said each time: a trial under another name must not move what serves.
        remembered = {key: value for key, value in remembered.items() if not key.startswith("release.")}
    return resolve(recipe, overrides, remembered)


def run(
    stages: Sequence[str] = STAGE_NAMES,
    *,
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
    workdir: Path | str = DEFAULT_WORKDIR,
    rerun: Sequence[str] = (),
    wait: bool = False,
    workers: int = 1,
    observer: Observer | None = None,
) -> PipelineResult:
    """Run stages in order; skip each whose result is there.

    Where TF_CONFIG names several workers, the first runs the stages, and each other one takes part in `train` and returns no outcome.

    Args:
        stages: which of `ingest`, `build`, `train`, `evaluate`, `promote`; the last is not among them unless it is named.
        recipe: a packaged recipe or a YAML file.
        settings: `section.field` -> value, the last word.
        workdir: folder that everything is written under.
        rerun: stages to run again although nothing changed.
        wait: wait for another process that holds the work directory, instead of failing.
        workers: train in so many processes of this machine, to try out what several machines do.
        observer: told what happens; nothing is shown without one.

    Raises:
        PipelineError: one of its kinds; the message says what to do.
    """
    workdir, cluster = Path(workdir), read_cluster()
    resolved = _checked(recipe, settings, workdir, stages, rerun, cluster)
    if workers > 1:
        launch_workers(_words(stages, recipe, settings, workdir, rerun, wait), workers)
        rerun = ()
    if resolved.config.evaluate.model:
        stages, rerun = (tuple(name.replace("evaluate", evaluate_model.name) for name in names) for names in (stages, rerun))
    config, alone = resolved.config.tracking, resolved.config.model.classes > 0
    if not cluster.is_chief:
        _take_part(resolved, stages, rerun, workdir, cluster, observer or Silent())
        return PipelineResult((), resolved)
    tracking.require_nameable(config, workdir)
    with work_directory(workdir, wait=wait):
        resolved = _with_model_file(resolved, workdir)
        tracker = tracking.MlflowTracker(workdir, config) if config.enabled else tracking.NoTracker()

        def joins(runner: Runner) -> bool:
            return cluster.workers > 1 and _trains(runner, resolved, stages, rerun)

        runner = _runner(workdir / "networks" if alone else workdir, observer or Silent(), resolved, joins)
        outcomes = tuple(runner.run(resolved, [*stages, *rerun], tracker, rerun))
        known = tracking.known_runs(workdir)
        key = tracker.pipeline_key or outcomes[-1].run_key.removesuffix(f"-{outcomes[-1].stage}")
        url = tracking.run_url(config, **known[key]) if key in known else None
        return PipelineResult(
            outcomes, resolved, {name: ids["run_id"] for name, ids in known.items()}, url, tracker.problem or _unsent(workdir)
        )


def _checked(
    recipe: str | None, settings: Mapping[str, Any] | None, workdir: Path, stages: Sequence[str], rerun: Sequence[str], cluster: Cluster
) -> Resolved:
    """Return the settings of a run, after everything that can be refused before anything starts."""
    unknown = {*stages, *rerun} - set(ALL_STAGE_NAMES)
    if unknown or not stages:
        raise ConfigError(f"Stages are {', '.join(ALL_STAGE_NAMES)}. Received {', '.join(sorted(unknown)) or 'none'}.")
    resolved = _settings(recipe, settings, workdir, stages)
    if resolved.config.model.classes > 0 and list(stages) != ["build"]:
        raise ConfigError(
            "model.classes is for a look at a network without a dataset. Expected the command `build` alone, received "
            f"{', '.join(stages)}; leave --classes out and the dataset says how many there are."
        )
    if resolved.config.evaluate.model and not {*stages, *rerun} <= {"ingest", "evaluate"}:
        raise ConfigError(
            "evaluate.model is for judging a model that is there. Expected the commands ingest and evaluate alone, received "
            f"{', '.join(stages)}; leave --model out to judge the one that is trained."
        )
    if "promote" in stages and not resolved.config.tracking.enabled:
        raise ConfigError(
            "A release lives in MLflow's registry. Expected tracking.enabled=yes. Received no; leave out that setting, or promote."
        )
    if "ingest" in stages:
        require_source(resolved.config.data)
    if cluster.workers > 1:
        _require_sharing(resolved.config.train, cluster)
        if earlier := {"ingest", "build"} & set(rerun):
            raise ConfigError(
                f"Several workers cannot know when the chief has made {' and '.join(sorted(earlier))} again. Expected --rerun of train or "
                "evaluate. Type that --rerun for the stage alone first, without TF_CONFIG."
            )
    return resolved


def _with_model_file(resolved: Resolved, workdir: Path) -> Resolved:
    """Return the settings with the file of the model that is to be judged instead of its name in MLflow, if there is such a model.

    Pictures are looked for, or prepared, at the scale that it was trained at, unless somebody named another one.
    """
    config = resolved.config
    if not config.evaluate.model:
        return resolved
    path = Path(config.evaluate.model)
    if path.suffix != ".keras":
        path = tracking.model_file(config.evaluate.model, config.tracking, workdir)
    side, named = given_model(path).short_side, resolved.origins["data.short_side"] in ("command line", "environment")
    data = config.data.model_copy(update={} if named or not side else {"short_side": side})
    judged = config.evaluate.model_copy(update={"model": str(path)})
    return replace(resolved, config=config.model_copy(update={"data": data, "evaluate": judged}))


def is_chief() -> bool:
    """Return whether this process is the one that writes: the only one, or worker 0 of those that TF_CONFIG names."""
    return read_cluster().is_chief


def launch_workers(words: Sequence[str], workers: int, say: Callable[[str], None] = lambda _text: None) -> None:
    """Run `alexnet WORDS` as several workers of this machine, and start all again when one is lost; the chief's output is shown.

    Args:
        words: of the command line.
        workers: how many.
        say: told what a person should know.

    Raises:
        WorkersFailedError: they ended with an error, which the chief has shown.
    """
    if read_cluster().workers > 1:
        raise ConfigError("Several workers were asked for in a process that is one of several already. Expected --workers or TF_CONFIG.")
    if code := launch(words, workers, say):
        raise WorkersFailedError(code)


def _words(
    stages: Sequence[str], recipe: str | None, settings: Mapping[str, Any] | None, workdir: Path, rerun: Sequence[str], wait: bool
) -> list[str]:
    """Return the command line that does what `run` was asked for."""
    words = [*(["--recipe", recipe] if recipe else []), "--workdir", str(workdir), *(["--wait"] if wait else []), "--quiet"]
    for key, value in (settings or {}).items():
        text = ",".join(f"{old}={new}" for old, new in value.items()) if isinstance(value, Mapping) else value
        words += ["--set", f"{key}={text}"]
    return [*words, *stages, *(word for name in rerun for word in ("--rerun", name))]


def _require_sharing(config: TrainConfig, cluster: Cluster) -> None:
    """Refuse a batch that the workers cannot share, before anything starts; what GPUs each has is known only later."""
    from pipeline.train.strategy import require_divisible

    kind, _, which = config.devices.partition(":")
    devices = {"cpu": int(which or 1), "gpu": len(which.split(",")), "auto": 1}[kind] if which or kind != "gpu" else 1
    require_divisible(config, cluster.workers, devices)


def _trains(runner: Runner, resolved: Resolved, stages: Sequence[str], rerun: Sequence[str]) -> bool:
    """Return whether a command trains; the chief and the others must find the same."""
    return "train" in rerun or ("train" in stages and not runner.is_done("train", resolved.config, [*stages, *rerun]))


def _take_part(
    resolved: Resolved, stages: Sequence[str], rerun: Sequence[str], workdir: Path, cluster: Cluster, observer: Observer
) -> None:
    """Take part in the chief's training, if it trains."""
    name = f"worker {cluster.index} of {cluster.workers}"
    runner = _runner(workdir, observer, resolved, lambda _: True)
    if not _trains(runner, resolved, stages, rerun):
        observer.said(f"{name}: nothing to do; the chief, {cluster.addresses[0]}, needs no training")
        return

    def require_chief() -> None:
        if not cluster.chief_answers():
            raise LostWorkerError(
                f"The chief of this training, {cluster.addresses[0]}, is gone; this is {name}. Nothing but the steps since the last "
                "checkpoint is lost. Start all workers with the same command again, and the training goes on from there."
            )

    observer.started("train", [f"{name}; the chief is {cluster.addresses[0]}"])
    runner.prepare()
    runner.take_part("train", resolved.config, [*stages, *rerun], rerun, require_chief)


def _unsent(workdir: Path) -> str | None:
    """Say that the tracking store still misses something of earlier runs, if it does."""
    waiting = len(tracking.undelivered(workdir))
    return f"{waiting} earlier run{' is' if waiting == 1 else 's are'} still unsent" if waiting else None


_settings = settings  # `run` has an argument of that name


def _runner(
    workdir: Path, observer: Observer | None = None, resolved: Resolved | None = None, joins: Callable[[Runner], bool] = lambda _: False
) -> Runner:
    """Return the runner of a work directory; `joins` says, when a stage is about to run, whether its process meets other workers."""

    def prepare() -> None:
        from pipeline.train.strategy import configure_runtime

        if resolved is not None:
            configure_runtime(resolved.config.train, join=joins(runner))

    alone = resolved is not None and resolved.config.model.classes > 0
    foreign = resolved is not None and bool(resolved.config.evaluate.model)
    stages = (build_alone,) if alone else _STAGES_OF_A_MODEL if foreign else (*STAGES, promote)
    runner = Runner(stages, workdir, observer or Silent(), prepare, selects=not foreign)
    return runner


def models(*, recipe: str | None = None, settings: Mapping[str, Any] | None = None, workdir: Path | str = DEFAULT_WORKDIR) -> list[Version]:
    """Return the versions of the model `release.name` in the registry, the newest first.

    Raises:
        TrackingError: the registry does not answer.
    """
    return _registry(recipe, settings, Path(workdir)).versions()


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

    Returns:
        The number of the version that was the champion, and the version that is.

    Raises:
        ConfigError: there is no such version.
        GateError: it never passed the gate.
        CheckpointError: its files are not those that were released.
    """
    from pipeline.release.settlement import go_back

    return go_back(_registry(recipe, settings, Path(workdir)), to)


def predict(
    paths: Sequence[str | os.PathLike[str]],
    *,
    model: str = "",
    top: int = 5,
    strict: bool = False,
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
    workdir: Path | str = DEFAULT_WORKDIR,
    progress: Callable[[int, int | None, int], None] = lambda _done, _total, _unusable: None,
) -> Iterator[Prediction]:
    """Return what a model says of pictures, in order; a file that cannot be classified is an answer with a problem.

    Args:
        paths: files, folders and patterns.
        model: as `open_release` takes it; the champion of `release.name` without it.
        top: guesses for each picture.
        strict: end at the first file that cannot be classified.
        recipe: as `run` takes it.
        settings: as `run` takes them.
        workdir: the work directory.
        progress: called with files done, files in all, and how many of those done cannot be classified.

    Raises:
        ConfigError: a path or the model is not there.
        CheckpointError: the model is not the one that was released.
        DatasetError: `strict`, and a file cannot be classified.
    """
    from pipeline.release import predict as prediction

    files = list(prediction.expanded([os.fspath(path) for path in paths]))
    classifier = open_classifier(model, recipe=recipe, settings=settings, workdir=workdir)
    return prediction.predict(classifier, files, top=top, strict=strict, progress=progress)


def open_classifier(
    model: str = "",
    *,
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
    workdir: Path | str = DEFAULT_WORKDIR,
) -> Classifier:
    """Open the champion, or the model that is named, after every file of it was compared with its digest."""
    release = open_release(model, recipe=recipe, settings=settings, workdir=workdir)  # before TensorFlow: it may not be there
    from pipeline.train.strategy import configure_answers

    configure_answers()
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
    config = _settings(recipe, settings, workdir, ()).config
    reference = _reference(model, config, workdir)
    return package.open_release(reference, config.tracking, workdir)


def _reference(model: str, config: Config, workdir: Path) -> str:
    """Return the model that is meant, after a look whether its registry can be there: a store must not be made by asking for one."""
    reference = model or f"models:/{config.release.name}@{CHAMPION}"
    if reference.startswith("models:"):
        _require_store(config, workdir)
    return reference


def _require_store(config: Config, workdir: Path) -> None:
    tracking.require_nameable(config.tracking, workdir)
    if not config.tracking.uri and not (workdir / "mlflow.db").exists():
        raise ConfigError(
            f"There is no registry in {workdir}. Expected a work directory in which `alexnet run promote` has run. Name it with --workdir, "
            "or a server with --set tracking.uri=ADDRESS; or name a file with --model."
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
) -> Exported:
    """Write a model for another runtime, read it back by that runtime, and keep it if it answers real pictures as the model does.

    The pictures are the release's golden ones and the first of the test split that lies in the work directory.

    Args:
        to: `savedmodel`, `onnx` or `litert`.
        model: as `open_release` takes it.
        int8: LiteRT in 8-bit integers, whose cost in accuracy is measured on the test split in the work directory.
        output: the folder to make; one in the work directory without it.
        recipe: as `run` takes it.
        settings: as `run` takes them.
        workdir: the work directory.
        progress: told in words what is being done.

    Raises:
        ConfigError: there is no such model or format, or a package is missing.
        GateError: the export does not answer as the model does, or integers cost too much; nothing is written.
    """
    workdir = Path(workdir)
    release = open_release(model, recipe=recipe, settings=settings, workdir=workdir)
    from pipeline.train.strategy import configure_answers

    configure_answers()
    from pipeline.release import export as exporting

    dataset = _prepared(workdir, release)
    golden = [(release.directory / picture.file).read_bytes() for picture in release.golden]
    test = [encoded for encoded, _ in itertools.islice(_labelled(dataset, "test"), exporting.PARITY_PICTURES)]
    name = "-".join(filter(None, [release.name.removesuffix(".keras"), release.version, to, "int8" if int8 else ""]))
    return exporting.export(
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
    entry = _runner(workdir).current()["stages"].get("ingest", {})
    with contextlib.suppress(OSError, ValueError):
        dataset = DatasetArtifact.read(workdir / "stages" / str(entry.get("directory")))
        return dataset if not release.class_names or dataset.class_names == release.class_names else None
    return None


def _labelled(dataset: DatasetArtifact | None, split: str) -> Iterator[tuple[bytes, int]]:
    """Yield the pictures of a split as files' bytes with their classes; none where there is no dataset."""
    if dataset is None:
        return
    from pipeline.data.loader import encoded_pictures, load_split

    for encoded, _, label in encoded_pictures(load_split(dataset, split, in_memory=False)):
        yield encoded, label


def serve(
    model: str = "",
    *,
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
    workdir: Path | str = DEFAULT_WORKDIR,
    say: Callable[[str], None] = lambda _line: None,
) -> None:
    """Answer over HTTP, by the champion or the model that is named, until SIGINT or SIGTERM; then finish what is there and return.

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
    from pipeline.train.strategy import configure_answers

    workdir = Path(workdir)
    config = _settings(recipe, settings, workdir, ()).config
    reference = _reference(model, config, workdir)

    def named() -> str:
        version = registry.find(reference, config.tracking, workdir)
        return f"{version.number} {version.release_sha256}"

    def found() -> Release:
        return open_release(reference, config.tracking, workdir)

    found()  # what is not there is said before TensorFlow starts
    configure_answers()
    from pipeline.release.serve import serve as answer

    answer(found, config.serve, say=say, changed=named if "@" in reference.partition(":/")[2] else None)


def _registry(recipe: str | None, settings: Mapping[str, Any] | None, workdir: Path) -> Registry:
    """Return the registry that the settings name, in a work directory that can be named."""
    resolved = _settings(recipe, settings, workdir, ())
    _require_store(resolved.config, workdir)
    return Registry(resolved.config.release.name, resolved.config.tracking, workdir)


def compare(first: str, second: str, workdir: Path | str = DEFAULT_WORKDIR) -> Comparison:
    """Put two evaluations of the same pictures side by side, with paired tests and a page of its own.

    Args:
        first: an evaluation: its folder, the name of that, or the id, or its first letters, of its MLflow run or of the pipeline's.
        second: another one.
        workdir: where they were made.

    Raises:
        ConfigError: there is no such evaluation, or the two are of unlike views or splits.
        DatasetError: they are not of the same pictures.
    """
    from pipeline.evaluate.compare import compare_reports, write_comparison

    workdir = Path(workdir)
    reports = [_report(_evaluation(name, workdir)) for name in (first, second)]
    comparison = compare_reports(*reports)
    return write_comparison(comparison, workdir / "comparisons")


def _evaluation(name: str, workdir: Path) -> Path:
    """Return the folder of an evaluation that somebody names."""
    for folder in (Path(name), workdir / "stages" / name):
        if (folder / EvaluationReport.FILE).is_file():
            return folder
    ids = {key: ids["run_id"] for key, ids in tracking.known_runs(workdir).items()}
    keys = {key for key, run_id in ids.items() if run_id.startswith(name)} if len(name) >= _LEAST_LETTERS else set()
    found = [path.parent for path in sorted(workdir.glob("stages/evaluate*/run.json")) if keys & _keys_of(path)]
    if len(found) != 1:
        raise ConfigError(
            f"There is {'no' if not found else 'more than one'} evaluation `{name}` in {workdir}. Expected the folder of one, or the first "
            f"{_LEAST_LETTERS} letters or more of its MLflow run. Received {name!r}. `alexnet status` shows the last one."
        )
    return found[0]


def _report(folder: Path) -> EvaluationReport:
    """Read the record of an evaluation."""
    try:
        return EvaluationReport.read(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder} holds no evaluation that this version can read. Expected the folder of a finished evaluate. Type "
            "`alexnet evaluate` again, or name another one."
        ) from error


def _keys_of(account: Path) -> set[str]:
    """Return the keys of the runs that made a stage's result, also of those that made the same before, and of the pipelines around them."""
    made = json.loads(account.read_text(encoding="utf-8"))
    own = [made.get("run_key", ""), *made.get("earlier_run_keys", [])]
    return {*own, *(key.rpartition("-")[0] for key in own)}


def status(
    recipe: str | None = None, settings: Mapping[str, Any] | None = None, workdir: Path | str = DEFAULT_WORKDIR
) -> tuple[Resolved, list[Finding], dict[str, str]]:
    """Look at every stage without running any: the settings looked at, what was found, and the page of each stage's run by its key.

    Without a recipe or settings, looks at what the last command in the work directory selected.
    """
    workdir = Path(workdir)
    resolved = _settings(recipe, settings, workdir, ())
    known = tracking.known_runs(workdir)
    pages = {key: tracking.run_url(resolved.config.tracking, **ids) for key, ids in known.items()}
    return resolved, _runner(workdir).look(resolved.config, STAGE_NAMES), pages


def sync(workdir: Path | str = DEFAULT_WORKDIR, wait: bool = False) -> tuple[int, dict[str, str]]:
    """Send to the tracking store what earlier runs could not; return how many were sent, and why others were not, by name."""
    workdir = Path(workdir)
    if not tracking.undelivered(workdir):
        return 0, {}
    with work_directory(workdir, wait=wait):
        return tracking.deliver_leftovers(workdir)


def ui_server(config: TrackingConfig, workdir: Path | str, port: int) -> tuple[list[str], dict[str, str], str]:
    """Return the command line and environment of a local MLflow server, and the page to open."""
    workdir = Path(workdir)
    tracking.require_nameable(config, workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(workdir, error) from error
    experiment = tracking.open_experiment(config, workdir)
    command, environment = tracking.server_command(config, workdir, port)
    return command, environment, tracking.experiment_url(config, experiment, f"http://127.0.0.1:{port}")


def known_runs(workdir: Path | str = DEFAULT_WORKDIR) -> dict[str, dict[str, str]]:
    """Return, for each of our run keys, the `run_id` and `experiment_id` that MLflow gave it."""
    return tracking.known_runs(Path(workdir))


def schema() -> str:
    """Return the JSON schema of the settings."""
    from pipeline.config import Config

    return json.dumps(Config.model_json_schema(), indent=2)
