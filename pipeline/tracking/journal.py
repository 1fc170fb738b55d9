"""Recording runs in MLflow, without ever standing in the pipeline's way.

The pipeline writes what happens into a journal, one JSON line an event, under `<workdir>/journal/`.
A background thread reads the journal and tells MLflow; only that thread touches MLflow, so a slow
or dead store costs the training nothing. What could not be told stays in the journal, and
`deliver_leftovers` (the command `alexnet sync`, and every next run) sends it later.

    events   start, metrics, tags, dataset, files, model, end - each of one run, named by our own
    key
    state    <journal>.state.json: how many bytes were delivered, and which MLflow run stands for
    which key; in the end a line in one file

Everything else of the pipeline knows runs by our own keys only.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, Literal
from urllib.parse import unquote, urlparse

from filelock import FileLock

from pipeline.artifacts import DatasetArtifact, SavedModel, file_sha256
from pipeline.config.resolution import Resolved
from pipeline.config.tracking import TrackingConfig
from pipeline.errors import ConfigError, TrackingError
from pipeline.files import write_text

Status = Literal["FINISHED", "FAILED", "KILLED"]
DEFAULT_UI = "http://127.0.0.1:5000"
_VIEW = "?workflowType=machine_learning"  # MLflow's default view is for traces of language models
_BATCH = 1000  # MLflow's limit of metrics in one log_batch call
_POLL_SECONDS = 2.0  # how soon a number of a running training shows up in the UI
_PACKAGES = ("tensorflow", "keras", "tensorflow-datasets", "mlflow", "numpy", "alexnet-pipeline")
_KEY_TAG = "alexnet.run_key"
REMOVED = ".removed-"  # how the name begins of what is being removed
_INDEX = "runs.index"  # in the journals' folder: the states of delivered journals, one a line
_LOADER = "pipeline.tracking.flavor"  # MLflow's own loader does not know our layers


def store_uri(config: TrackingConfig, workdir: Path) -> str:
    """Return the tracking store's address: the setting, or a database in the work directory."""
    return config.uri or _sqlite_uri(workdir / "mlflow.db")


def _sqlite_uri(database: Path) -> str:
    return f"sqlite:///{database.resolve()}"


def require_nameable(config: TrackingConfig, workdir: Path) -> None:
    """Refuse a work directory that an address cannot name.

    MLflow would keep its database somewhere else.

    Raises:
        ConfigError: the path holds one of the signs that mean something in an address.
    """
    path = str(workdir.resolve())
    if config.enabled and any(sign in path for sign in "?#%"):
        raise ConfigError(
            f"MLflow cannot keep its files in {path}. Expected a path without the signs ? # %. Name"
            " another folder with --workdir, or type --set tracking.enabled=no."
        )


def run_url(config: TrackingConfig, experiment_id: str, run_id: str) -> str:
    """Return the page of a run, on the store's own server or on the one that `alexnet ui` starts."""
    return f"{_server(config)}/#/experiments/{experiment_id}/runs/{run_id}{_VIEW}"


def experiment_url(config: TrackingConfig, experiment_id: str, server: str = "") -> str:
    """Return the experiment's table of runs."""
    return f"{server or _server(config)}/#/experiments/{experiment_id}/runs{_VIEW}"


def _server(config: TrackingConfig) -> str:
    return config.uri.rstrip("/") if config.uri.startswith("http") else DEFAULT_UI


# -- writing the journal ---------------------------------------------------------------------------


class JournalRun:
    """One executed stage, or the pipeline run itself, as events in the journal."""

    def __init__(
        self, write: Callable[[dict[str, Any]], None], key: str, parent: JournalRun | None = None
    ):
        self.key = key
        self.has_dataset = False
        self._write = write
        self._parent = parent

    def _event(self, event: str, **fields: Any) -> None:
        self._write({"event": event, "run": self.key, "time": int(time.time() * 1000)} | fields)

    def start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Begin the run."""
        self._event(
            "start",
            parent=self._parent.key if self._parent else None,
            name=name,
            params=_texts(params),
            tags=_texts(tags),
        )

    def params(self, values: Mapping[str, Any]) -> None:
        """Record more settings than those that the run began with."""
        self._event("params", values=_texts(values))

    def tags(self, values: Mapping[str, Any], *, summary: bool = False) -> None:
        """Set tags."""
        self._event("tags", values=_texts(values))
        if summary and self._parent:
            self._parent.tags(values)

    def metrics(
        self,
        values: Mapping[str, float],
        *,
        step: int = 0,
        summary: bool = False,
        at: float | None = None,
    ) -> None:
        """Record numbers at a step; equal ones of the same time, in seconds since 1970, are recorded once."""
        when = {} if at is None else {"time": int(at * 1000)}
        self._event(
            "metrics",
            step=step,
            values={name: float(value) for name, value in values.items()},
            **when,
        )
        if summary and self._parent:
            self._parent.metrics(values, step=step, at=at)

    def dataset(self, dataset: DatasetArtifact, context: str) -> None:
        """Record which data was used, by our own digest."""
        if self._parent and not self._parent.has_dataset:
            self._parent.dataset(dataset, context)
        self.has_dataset = True
        profile = {split: sum(counts) for split, counts in dataset.class_counts.items()} | {
            "classes": len(dataset.class_names)
        }
        self._event(
            "dataset",
            name=dataset.name,
            digest=dataset.digest[:36],
            source=dataset.digest,
            profile=profile,
            context=context,
        )

    def files(self, directory: Path) -> None:
        """Log a folder's files as artifacts."""
        if directory.is_dir():
            self._event("files", path=str(directory.resolve()))

    def model(self, model: SavedModel) -> None:
        """Log a `.keras` file as an MLflow model with signature and input example."""
        shape = [model.image_size, model.image_size, 3]
        known = {
            "class_names": list(model.class_names),
            "sha256": model.model_sha256,
            "short_side": model.short_side,
        }
        self._event(
            "model",
            path=str(model.model_path.resolve()),
            sha256=model.model_sha256,
            shape=shape,
            known=known,
        )

    def close(self, status: Status, message: str = "") -> None:
        """End the run with its final status."""
        if message:
            self.tags({"error": message[:500]})
        self._event("end", status=status)


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


class MlflowTracker:
    """Journals a pipeline run and its stages, and has them delivered while the pipeline works.

    The pipeline's own run is opened by the first stage that executes: a command that skips
    everything leaves no run.
    """

    def __init__(
        self, workdir: Path, config: TrackingConfig, tags: Mapping[str, str] | None = None
    ):
        self._workdir, self._config = workdir, config
        self.own_tags = dict(tags or {})
        self._journal = (
            workdir / "journal" / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}.jsonl"
        )
        self._pipeline: JournalRun | None = None
        self._links: dict[str, str] = {}
        self._stop = threading.Event()
        self._sender: threading.Thread | None = None
        self._delivery = Delivery(self._journal, workdir, config)

    @property
    def pipeline_key(self) -> str:
        """The key of the pipeline's own run; empty while no stage was executed."""
        return self._pipeline.key if self._pipeline else ""

    def _append(self, event: dict[str, Any]) -> None:
        with self._journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def stage_run(
        self, stage: str, section: str, resolved: Resolved, earlier: str = ""
    ) -> JournalRun:
        """Begin the run of a stage, or go on with that of an earlier attempt.

        Before the first one begin the pipeline's.
        """
        tags, pipeline = environment_tags(), self.begin(resolved)
        if self._links:
            pipeline.tags({f"skipped.{name}": key for name, key in self._links.items()})
            self._links = {}
        run = JournalRun(self._append, earlier or f"{pipeline.key}-{stage}", pipeline)
        params = {
            key.partition(".")[2]: value
            for key, value in resolved.flat().items()
            if key.startswith(f"{section}.")
        }
        run.start(stage, params, {"stage": stage, "recipe": resolved.recipe, **tags})
        return run

    def begin(self, resolved: Resolved) -> JournalRun:
        """Begin the pipeline's own run, unless it has begun, and return it."""
        if self._pipeline is None:
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._journal.with_suffix(".target.json"), self._config.model_dump_json())
            self._pipeline = JournalRun(self._append, self._journal.stem)
            dataset = (
                resolved.config.data.dataset.rstrip("/").rpartition("/")[2]
                if not resolved.config.model.classes
                else "network"
            )
            given, settings = resolved.config.evaluate.model, resolved.flat()
            if (
                given
            ):  # the settings of a network and a training are not those of a model from elsewhere
                settings = {
                    key: value
                    for key, value in settings.items()
                    if key.partition(".")[0] not in ("model", "train")
                }
            name = f"{dataset} {Path(given).name or resolved.config.model.variant}"
            self._pipeline.start(
                name, settings, {"recipe": resolved.recipe, **environment_tags(), **self.own_tags}
            )
            # Here and not in the thread: TFDS swaps Python's import function while it loads, which
            # breaks the imports of other threads.
            import mlflow.keras  # noqa: F401

            self._sender = threading.Thread(target=self._send, name="mlflow", daemon=True)
            self._sender.start()
        return self._pipeline

    def link(self, stage: str, run_key: str) -> None:
        """Note that a stage was skipped, and which run did its work."""
        self._links[stage] = known_runs(self._workdir).get(run_key, {}).get("run_id", run_key)
        if self._pipeline:
            self._pipeline.tags({f"skipped.{stage}": self._links.pop(stage)})

    def conclude(
        self,
        name: str,
        tags: Mapping[str, Any] = MappingProxyType({}),
        metrics: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Give the pipeline's own run another name, and record what came out of it."""
        if self._pipeline:
            self._pipeline.tags({"mlflow.runName": name, **tags})
            self._pipeline.metrics(metrics)

    def files(self, directory: Path) -> None:
        """Log a folder's files on the pipeline's own run."""
        if self._pipeline:
            self._pipeline.files(directory)

    def _send(self) -> None:
        deliver_leftovers(self._workdir, but=self._journal)
        while not self._stop.wait(_POLL_SECONDS):
            self._delivery.deliver()
        if self._delivery.deliver():
            forget(self._journal)

    def close(self, status: Status) -> None:
        """End the pipeline's run and deliver what is left, as far as the store answers."""
        if self._pipeline is None or self._sender is None or self._stop.is_set():
            return
        self._pipeline.close(status)
        self._stop.set()
        # An interrupted command must end within seconds; what is not delivered by then is sent by
        # the next one.
        self._sender.join(timeout=5 if status == "KILLED" else None)

    @property
    def problem(self) -> str | None:
        """Why not everything was recorded, or None."""
        return self._delivery.problem


class NoTracker:
    """Records nothing; the pipeline makes the same artifacts."""

    pipeline_key = ""
    problem = None
    own_tags: Mapping[str, str] = MappingProxyType({})

    def stage_run(
        self,
        stage: str,  # noqa: ARG002
        section: str,  # noqa: ARG002
        resolved: Resolved,  # noqa: ARG002
        earlier: str = "",
    ) -> JournalRun:
        """Return a run whose events go nowhere."""
        return JournalRun(lambda _event: None, earlier)

    def link(self, stage: str, run_key: str) -> None:
        """Do nothing."""

    def begin(self, resolved: Resolved) -> JournalRun:  # noqa: ARG002
        """Return a run whose events go nowhere."""
        return JournalRun(lambda _event: None, "")

    def conclude(
        self,
        name: str,
        tags: Mapping[str, Any] = MappingProxyType({}),
        metrics: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Do nothing."""

    def files(self, directory: Path) -> None:
        """Do nothing."""

    def close(self, status: Status) -> None:
        """Do nothing."""


def environment_tags() -> dict[str, str]:
    """Return what the code and its packages are: git commit, and versions."""
    tags = {"mlflow.source.type": "LOCAL", "mlflow.source.name": "alexnet"}
    with contextlib.suppress(metadata.PackageNotFoundError):
        tags |= {f"package.{name}": metadata.version(name) for name in _PACKAGES}
    git = ["git", "-C", str(Path(__file__).parent)]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout
        tags |= {
            "mlflow.source.git.commit": commit,
            "git_dirty": str(bool(changed.strip())).lower(),
        }
    return tags


# -- delivering it to MLflow -----------------------------------------------------------------------


@dataclass
class DeliveryState:
    """How far a journal was delivered, and to which runs."""

    offset: int
    experiment_id: str
    run_ids: dict[str, str]


class Delivery:
    """Sends one journal to MLflow, from where the last attempt stopped."""

    def __init__(self, journal: Path, workdir: Path, config: TrackingConfig):
        self._journal, self._workdir, self._config = journal, workdir, config
        self._state_file = journal.with_suffix(".state.json")
        self.state = self._read_state()
        self.problem: str | None = None
        self._failures = 0
        self._client: Any = None
        self._handlers = {
            "start": self._start,
            "params": self._params,
            "tags": self._tags,
            "dataset": self._dataset,
            "files": self._files,
            "model": self._model,
            "end": self._end,
        }

    def _read_state(self) -> DeliveryState:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return DeliveryState(**json.loads(self._state_file.read_text(encoding="utf-8")))
        return DeliveryState(0, "", {})

    def _advance(self, offset: int) -> None:
        self.state.offset = offset
        write_text(self._state_file, json.dumps(vars(self.state)))

    def deliver(self) -> bool:
        """Send what is in the journal and not sent yet; return whether nothing is left.

        After two failures in a row nothing more is tried in this process: `problem` says why, and
        the journal keeps the rest.
        """
        if self.problem is not None and self._failures > 1:
            return False
        try:
            if self._client is None:
                self._client = connect(self._config, self._workdir)
                self.state.experiment_id = experiment_of(self._client, self._config, self._workdir)
            for events, offset in _grouped(self._journal, self.state.offset):
                self._send(events)
                self._advance(offset)
        except Exception as error:  # noqa: BLE001 - whatever the store does, training goes on; the reason is reported
            self._failures += 1
            self.problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            return False
        self.problem, self._failures = None, 0
        return True

    def _send(self, events: Sequence[dict[str, Any]]) -> None:
        if events[0]["event"] == "metrics":
            self._metrics(events)
        else:
            self._handlers[events[0]["event"]](
                events[0], self.state.run_ids.get(events[0]["run"], "")
            )

    def _start(self, event: dict[str, Any], _: str) -> None:
        """Create the run, or open that of an earlier attempt again, which belongs to the pipeline run that carries it on."""
        from mlflow.entities import Param, RunTag

        tags = {**event["tags"], _KEY_TAG: event["run"]}
        if event["parent"]:
            tags["mlflow.parentRunId"] = self.state.run_ids[event["parent"]]
        found = self._client.search_runs(
            [self.state.experiment_id], f"tags.`{_KEY_TAG}` = '{event['run']}'", max_results=1
        )
        run = (
            found[0]
            if found
            else self._client.create_run(
                self.state.experiment_id, event["time"], tags, event["name"]
            )
        )
        if found:
            self._client.update_run(run.info.run_id, status="RUNNING")
            self._client.log_batch(
                run.info.run_id, tags=[RunTag(name, value) for name, value in tags.items()]
            )
        # What is recorded stays: of the settings only those may differ that change nothing.
        params = [
            Param(name, value)
            for name, value in event["params"].items()
            if name not in run.data.params
        ]
        self._client.log_batch(run.info.run_id, params=params)
        self.state.run_ids[event["run"]] = run.info.run_id

    def _metrics(self, events: Sequence[dict[str, Any]]) -> None:
        from mlflow.entities import Metric

        points: dict[str, list[Any]] = {}
        for event in events:
            values = [
                Metric(name, value, event["time"], event["step"])
                for name, value in event["values"].items()
            ]
            points.setdefault(self.state.run_ids[event["run"]], []).extend(values)
        for run_id, metrics in points.items():
            for start in range(0, len(metrics), _BATCH):
                self._client.log_batch(run_id, metrics=metrics[start : start + _BATCH])

    def _tags(self, event: dict[str, Any], run_id: str) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(
            run_id, tags=[RunTag(name, value) for name, value in event["values"].items()]
        )

    def _params(self, event: dict[str, Any], run_id: str) -> None:
        """Record settings that are not there yet: those of a run that is carried on are."""
        from mlflow.entities import Param

        known = self._client.get_run(run_id).data.params
        self._client.log_batch(
            run_id,
            params=[
                Param(name, value) for name, value in event["values"].items() if name not in known
            ],
        )

    def _dataset(self, event: dict[str, Any], run_id: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"sha256": event["source"]})
        dataset = Dataset(
            event["name"], event["digest"], "local", source, profile=json.dumps(event["profile"])
        )
        self._client.log_inputs(
            run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", event["context"])])]
        )

    def _files(self, event: dict[str, Any], run_id: str) -> None:
        if Path(event["path"]).is_dir():
            self._client.log_artifacts(run_id, event["path"], "report")
        else:
            self._client.set_tag(
                run_id, "report_not_logged", f"{event['path']} was gone when it could be sent"
            )

    def _model(self, event: dict[str, Any], run_id: str) -> None:
        """Log the network as an MLflow Keras model."""
        import mlflow

        file = Path(event["path"])
        if not file.exists() or file_sha256(file) != event["sha256"]:
            self._client.set_tag(
                run_id, "model_not_logged", f"{file} was gone or another one when it could be sent"
            )
            return
        for earlier in self._client.search_logged_models(
            [self.state.experiment_id], f"source_run_id = '{run_id}'"
        ):
            _delete_model(
                self._client, _stored_model(earlier, _room(self._config, self._workdir))
            )  # of an attempt that was killed before it could say so
        known = event.get("known") or {
            "class_names": event["names"],
            "sha256": event["sha256"],
        }  # a journal of an earlier version

        def save_model(path: str, *, validate_serving_input: bool, **arguments: Any) -> None:  # noqa: ARG001 - meant for MLflow itself
            _save_keras(file, Path(path), arguments)

        mlflow.set_tracking_uri(
            store_uri(self._config, self._workdir)
        )  # Model.log knows no other way
        # Model.log alone would put the model into MLflow's default experiment.
        logged = self._client.create_logged_model(
            self.state.experiment_id, name="model", source_run_id=run_id
        )
        mlflow.models.Model.log(
            artifact_path=None,
            model_id=logged.model_id,
            flavor=SimpleNamespace(save_model=save_model, __name__="mlflow.keras"),
            run_id=run_id,
            # It would load the model again and draw a progress bar into our output
            validate_serving_input=False,
            **_keras_arguments(event["shape"][0], known),
        )

    def _end(self, event: dict[str, Any], run_id: str) -> None:
        self._client.set_terminated(run_id, event["status"], event["time"])


def save_keras_flavour(
    file: Path, directory: Path, image_size: int, known: Mapping[str, Any]
) -> None:
    """Write a `.keras` file as the folder of an MLflow Keras model, with signature and input example.

    Args:
        file: the network; takes uint8 [batch, image_size, image_size, 3].
        directory: made here.
        image_size: height and width of the input.
        known: what MLflow's description holds besides; `class_names`, in the order of the logits,
            among it.
    """
    _save_keras(file, directory, _keras_arguments(image_size, known))


def _keras_arguments(image_size: int, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return what MLflow is told of a network.

    The requirements are named, since guessing them takes 13 s.
    """
    import numpy as np
    from mlflow.models.signature import ModelSignature
    from mlflow.types import Schema, TensorSpec

    shape = (image_size, image_size, 3)
    outputs = TensorSpec(np.dtype("float32"), (-1, len(known["class_names"])), "logits")
    return {
        "signature": ModelSignature(
            Schema([TensorSpec(np.dtype("uint8"), (-1, *shape), "image")]), Schema([outputs])
        ),
        "input_example": np.zeros((1, *shape), dtype=np.uint8),
        "pip_requirements": [
            f"{name}=={metadata.version(name)}" for name in ("tensorflow", "keras", "numpy")
        ],
        "metadata": dict(known),
    }


def _save_keras(file: Path, directory: Path, arguments: Mapping[str, Any]) -> None:
    import mlflow.keras

    from pipeline.model.weights import load_model

    directory.mkdir(
        parents=True
    )  # MLflow's Keras flavour writes the example before it makes the folder
    mlflow.keras.save_model(load_model(file), str(directory), **arguments)
    shutil.copyfile(
        file, directory / "data" / "model.keras"
    )  # the very file, so that its digest is the recorded one
    described = directory / "MLmodel"
    model = mlflow.models.Model.load(str(described))
    for known in filter(None, (model, arguments.get("mlflow_model"))):
        known.flavors["python_function"]["loader_module"] = _LOADER
    model.save(str(described))


def _grouped(journal: Path, offset: int) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Yield events from a byte offset with the offset after them.

    Neighboring metrics come together.
    """
    batch: list[dict[str, Any]] = []
    end = offset
    for event, after in _events(journal, offset):
        if event["event"] == "metrics":
            batch.append(event)
        else:
            if batch:
                yield batch, end
                batch = []
            yield [event], after
        end = after
    if batch:
        yield batch, end


def _complete_lines(journal: Path, offset: int) -> Iterator[tuple[bytes, int]]:
    """Yield whole lines from a byte offset; a line cut short by a kill is left out."""
    with contextlib.suppress(FileNotFoundError), journal.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield line, offset


def _events(journal: Path, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield events from a byte offset.

    A line that is none, such as one that a full disk cut in the middle, is left out.
    """
    for line, after in _complete_lines(journal, offset):
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and {"event", "run"} <= event.keys():
                yield event, after


def known_runs(workdir: Path) -> dict[str, dict[str, str]]:
    """Return our run key -> `run_id` and `experiment_id` in MLflow, for everything that was ever delivered from here."""
    journals = workdir / "journal"
    texts = [line for line, _ in _complete_lines(journals / _INDEX, 0)]
    for file in sorted(journals.glob("*.state.json")):
        with contextlib.suppress(OSError):
            texts.append(file.read_bytes())
    known: dict[str, dict[str, str]] = {}
    for text in texts:
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            state = json.loads(text)
            known |= {
                key: {"run_id": run_id, "experiment_id": state["experiment_id"]}
                for key, run_id in state["run_ids"].items()
            }
    return known


def undelivered(workdir: Path) -> list[Path]:
    """Return the journals that hold something the tracking store was not told."""
    return sorted((workdir / "journal").glob("*.jsonl"))


def deliver_leftovers(workdir: Path, but: Path | None = None) -> tuple[int, dict[str, str]]:
    """Send every journal that an earlier command could not, or did not live to.

    The caller holds the work directory.

    A run that never ended, because its process was killed, is ended as KILLED. A delivered journal
    is removed; which MLflow run is which stays known. A store that does not answer once is not
    asked again.

    Args:
        workdir: the work directory.
        but: the journal that is being written.

    Returns:
        How many journals were delivered, and for those that were not the reason, by name.
    """
    delivered = 0
    problems: dict[str, str] = {}
    dead: dict[str, str] = {}
    for journal in undelivered(workdir):
        if journal == but:
            continue
        _end_open_runs(journal)
        try:
            config = TrackingConfig.model_validate_json(
                journal.with_suffix(".target.json").read_text(encoding="utf-8")
            )
        except (OSError, ValueError) as error:
            problems[journal.stem] = (
                f"{journal.with_suffix('.target.json')} cannot be read:"
                f" {' '.join(str(error).split())[:150]}"
            )
            continue
        delivery = Delivery(journal, workdir, config)
        if config.uri not in dead and delivery.deliver():
            forget(journal)
            delivered += 1
        else:
            dead[config.uri] = problems[journal.stem] = delivery.problem or dead[config.uri]
    return delivered, problems


def forget(journal: Path) -> None:
    """Remove a journal that was delivered whole.

    Which MLflow run is which goes into one file, as thousands take seconds to read.
    """
    journal.unlink(missing_ok=True)
    journal.with_suffix(".target.json").unlink(missing_ok=True)
    for file in sorted(journal.parent.glob("*.state.json")):
        if not file.with_name(file.name.replace(".state.json", ".jsonl")).exists():
            _add_to_index(file)


def _add_to_index(state: Path) -> None:
    """Move what a state file says into the index.

    Killed in between, both say it, which is no harm.
    """
    with contextlib.suppress(FileNotFoundError):  # another process may be quicker
        text = state.read_bytes()
        with (state.parent / _INDEX).open("ab") as index:
            index.write(b"\n" + text + b"\n")  # the line before may have been cut short
            index.flush()
            os.fsync(index.fileno())
        state.unlink()


def _end_open_runs(journal: Path) -> None:
    """End, in the journal, the runs that a killed process left open.

    A last line cut short is cut off.
    """
    lines = list(_complete_lines(journal, 0))
    events = [event for event, _ in _events(journal, 0)]
    with journal.open("r+b") as file:
        file.truncate(lines[-1][1] if lines else 0)
        file.seek(0, os.SEEK_END)
        ended = {event["run"] for event in events if event["event"] == "end"}
        for event in events:
            if event["event"] == "start" and event["run"] not in ended:
                end = {
                    "event": "end",
                    "run": event["run"],
                    "time": int(journal.stat().st_mtime * 1000),
                    "status": "KILLED",
                }
                file.write(json.dumps(end).encode() + b"\n")


# -- the store -------------------------------------------------------------------------------------


def connect(config: TrackingConfig, workdir: Path) -> Any:
    """Return a client of the store, its database made and migrated once, whoever comes first."""
    # A dead server must not hold a process for minutes: MLflow's default is 7 retries with growing
    # pauses.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault(
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"
    )  # four lines a run, into our own output
    import logging
    import warnings

    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # About type hints of MLflow's own wrappers; color codes stand before the words.
    warnings.filterwarnings("ignore", message=".*(type hint|Add type hints)", category=UserWarning)

    uri = store_uri(config, workdir)
    if not config.uri:
        _make_database(workdir)
    return mlflow.MlflowClient(uri)


def _make_database(workdir: Path) -> None:
    """Make `mlflow.db` once, and migrate it when MLflow is another version.

    Two processes that do so at a time leave it broken.

    Raises:
        TrackingError: it cannot be migrated, such as one that a later version made.
    """
    database, note, version = (
        workdir / "mlflow.db",
        workdir / "mlflow.db.version",
        metadata.version("mlflow"),
    )
    if database.exists() and _noted(note) == version:
        return
    with FileLock(workdir / ".mlflow.lock"):
        if database.exists():
            if _noted(note) != version and not _migrate(
                database, _noted(note) or "earlier", version
            ):
                return
        else:
            _make_empty(database)
        write_text(note, version)


def _noted(note: Path) -> str:
    with contextlib.suppress(OSError):
        return note.read_text(encoding="utf-8")
    return ""


def _make_empty(database: Path) -> None:
    import sqlite3

    import mlflow

    temporary = database.with_name(f".mlflow.{os.getpid()}.db")
    try:
        mlflow.MlflowClient(_sqlite_uri(temporary)).search_experiments(max_results=1)
        with contextlib.closing(sqlite3.connect(temporary)) as connection:
            connection.execute(
                "PRAGMA journal_mode=WAL"
            )  # readers, such as the UI, do not block the writer
        temporary.replace(database)
    finally:
        temporary.unlink(missing_ok=True)


def _migrate(database: Path, before: str, version: str) -> bool:
    """Bring a database of another version of MLflow up to date by MLflow's own command.

    A copy stays beside it if that changed anything.

    Returns:
        Whether it is one: of what is none, MLflow says so itself.
    """
    import sqlite3
    import sys

    backup = database.with_name(f"{database.name}.{before}.backup")
    try:
        with (
            contextlib.closing(sqlite3.connect(database)) as live,
            contextlib.closing(sqlite3.connect(backup)) as copy,
        ):
            revision = _revision(live)
            live.backup(copy)
    except sqlite3.DatabaseError:
        backup.unlink(missing_ok=True)
        return False
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", _sqlite_uri(database)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    with contextlib.closing(sqlite3.connect(database)) as live:
        unchanged = _revision(live) == revision
    if done.returncode:
        why = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no word")
        raise TrackingError(
            f"MLflow {version} cannot use {database}, which MLflow {before} kept"
            f" ({why.strip()[:150]}). Expected one of the same or of an earlier version. Install"
            f" MLflow {before} again, or name another --workdir; the database as it was is in"
            f" {backup}."
        )
    if unchanged:
        backup.unlink()
    return True


def _revision(connection: Any) -> Any:
    return connection.execute("SELECT version_num FROM alembic_version").fetchone()


def experiment_of(client: Any, config: TrackingConfig, workdir: Path) -> str:
    """Return the experiment's id.

    Made if it is not there, with its artifacts in the work directory when the store is.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(config.experiment)
    if found is None:
        # A server says itself where its files go; a database of our own, or of the user's, cannot.
        location = (
            None if config.uri.startswith("http") else (workdir.resolve() / "artifacts").as_uri()
        )
        with contextlib.suppress(MlflowException):  # another process may make it at this moment
            return str(client.create_experiment(config.experiment, artifact_location=location))
        found = client.get_experiment_by_name(config.experiment)
    if found is None or found.lifecycle_stage != "active":
        raise TrackingError(
            f"The experiment `{config.experiment}` was deleted in MLflow. Restore it there or set"
            " tracking.experiment."
        )
    return str(found.experiment_id)


def open_experiment(config: TrackingConfig, workdir: Path) -> str:
    """Make sure that the store and the experiment exist, and return the experiment's id.

    Raises:
        TrackingError: the store does not answer.
    """
    try:
        return experiment_of(connect(config, workdir), config, workdir)
    except Exception as error:
        raise TrackingError(
            f"The tracking store {store_uri(config, workdir)} does not answer"
            f" ({type(error).__name__}: {str(error)[:150]}). Expected a running MLflow server or a"
            " writable folder. Check tracking.uri."
        ) from error


def model_file(reference: str, config: TrackingConfig, workdir: Path) -> Path:
    """Return the `.keras` file of a model that MLflow knows, fetched into the work directory where the store is elsewhere.

    Args:
        reference: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `models:/MODEL_ID`, or the id of a
            run that trained one, or its pipeline's.
        config: the tracking store.
        workdir: the work directory.

    Raises:
        ConfigError: MLflow knows no such model.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    fetched = workdir / "fetched"
    try:
        client = connect(config, workdir)
        mlflow.set_tracking_uri(store_uri(config, workdir))
        uri = reference if reference.startswith("models:/") else _model_of_run(client, reference)
        fetched /= uri.partition("/")[2].replace("/", "-")
        fetched.mkdir(parents=True, exist_ok=True)
        local = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(fetched))
    except (MlflowException, OSError) as error:
        with contextlib.suppress(OSError):
            fetched.rmdir()  # where it is empty
        raise ConfigError(
            f"There is no model `{reference}` in {store_uri(config, workdir)}"
            f" ({' '.join(str(error).split())[:150]}). Expected a .keras file, models:/NAME@ALIAS"
            " or the id of an MLflow run that made a model. Check --model and tracking.uri."
        ) from error
    return Path(local) / "data" / "model.keras"


def _model_of_run(client: Any, run_id: str) -> str:
    """Return the address of the model that a run trained, or a run below it, or one that it links to because it skipped training."""
    run = client.get_run(run_id)
    experiment = [run.info.experiment_id]
    below = client.search_runs(experiment, f"tags.`mlflow.parentRunId` = '{run_id}'")
    linked = run.data.tags.get("skipped.train")
    runs = [run_id, *(child.info.run_id for child in below), *([linked] if linked else [])]
    for candidate in runs:
        for model in client.search_logged_models(experiment, f"source_run_id = '{candidate}'"):
            return f"models:/{model.model_id}"
    raise ConfigError(
        f"The MLflow run {run_id} made no model. Expected a run of `train`, or of a pipeline that"
        " trained. Name another run, or a .keras file."
    )


def server_command(
    config: TrackingConfig, workdir: Path, port: int
) -> tuple[list[str], dict[str, str]]:
    """Return the command line and environment of an MLflow server that only this machine can reach."""
    import sys

    hosts = (  # exact names: MLflow's default also accepts hosts that only look private
        f"localhost:{port},127.0.0.1:{port}"
    )
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        store_uri(config, workdir),
    ]
    command += [
        "--default-artifact-root",
        (workdir.resolve() / "artifacts").as_uri(),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    command += ["--allowed-hosts", hosts, "--workers", "1"]
    quiet = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        "PYTHONWARNINGS": "ignore",
    }
    return command, {**os.environ, **quiet}


# -- what may go -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredModel:
    """A logged model; `place` is the folder of its files on this machine, None where they lie elsewhere, `created` in s since 1970."""

    model_id: str
    run_id: str
    created: float
    tags: Mapping[str, str]
    location: str
    place: Path | None


@dataclass(frozen=True)
class StoredRun:
    """A run with the models that it made.

    `parent_id` is empty for a pipeline's own run, `place` as for a model.
    """

    run_id: str
    parent_id: str
    name: str
    location: str
    place: Path | None
    models: tuple[StoredModel, ...] = ()


def stored_runs(
    config: TrackingConfig, workdir: Path, tag: str, value: str, run_id: str = ""
) -> tuple[StoredRun, ...]:
    """Return the pipelines' runs with a tag, and one more, with the runs below them.

    Also those that somebody threw away in MLflow.

    Raises:
        TrackingError: the store does not answer.
    """
    from mlflow.entities import ViewType

    with _answering(config, workdir):
        client = connect(config, workdir)
        experiments = _experiments(client, config, workdir)
        view = (
            ViewType.ACTIVE_ONLY if config.uri.startswith("http") else ViewType.ALL
        )  # behind a server more cannot be done for one

        def found(condition: str) -> list[Any]:
            return _all_pages(
                lambda token: client.search_runs(
                    experiments, condition, view, 1000, page_token=token
                )
            )

        around = found(f"tags.`{tag}` = '{value}'") + (
            found(f"attributes.run_id = '{run_id}'") if run_id else []
        )
        below = [
            run
            for parent in around
            for run in found(f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
        ]
        runs = {
            run.info.run_id: run for run in (*below, *around)
        }  # in the order to delete them: without one around it none is found
        made: dict[str, list[StoredModel]] = {}
        room = _room(config, workdir)
        for model in (
            _models(client, experiments, f"source_run_id IN ({', '.join(map(repr, runs))})", room)
            if runs
            else ()
        ):
            made.setdefault(model.run_id, []).append(model)
        return tuple(_stored_run(run, made.get(name, ()), room) for name, run in runs.items())


def stored_models(config: TrackingConfig, workdir: Path, name: str) -> tuple[StoredModel, ...]:
    """Return the logged models of a name.

    Raises:
        TrackingError: the store does not answer.
    """
    with _answering(config, workdir):
        client = connect(config, workdir)
        return tuple(
            _models(
                client,
                _experiments(client, config, workdir),
                f"name = '{name}'",
                _room(config, workdir),
            )
        )


def delete_run(config: TrackingConfig, workdir: Path, run: StoredRun) -> None:
    """Delete a run, its models and the files of both; killed anywhere, the same call does the rest.

    In a store behind a server nothing but the entries is marked as deleted: the files are the
    server's, whose `mlflow gc` frees them.

    Raises:
        TrackingError: the store does not answer.
    """
    with _answering(config, workdir):
        client = connect(config, workdir)
        _unless_gone(lambda: client.delete_run(run.run_id))
        for model in run.models:
            _delete_model(client, model)
        _delete_for_good(client, "_hard_delete_run", run.run_id, run.location, run.place)


def delete_model(config: TrackingConfig, workdir: Path, model: StoredModel) -> None:
    """Delete a logged model with its files, as `delete_run` does.

    Raises:
        TrackingError: the store does not answer.
    """
    with _answering(config, workdir):
        _delete_model(connect(config, workdir), model)


def forget_runs(workdir: Path, run_ids: Collection[str]) -> None:
    """Forget which of our keys stood for MLflow runs that are gone.

    The caller holds the work directory.
    """
    index, gone = workdir / "journal" / _INDEX, frozenset(run_ids)
    lines = []
    for line, _ in _complete_lines(index, 0) if gone else ():
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            state = json.loads(line)
            state["run_ids"] = {
                key: run_id for key, run_id in state["run_ids"].items() if run_id not in gone
            }
            lines += [json.dumps(state)] if state["run_ids"] else []
    if gone and index.exists():
        write_text(index, "".join(f"{line}\n" for line in lines))


def remove_folder(folder: Path) -> None:
    """Remove a folder, or a file, so that a kill leaves no half of it under its name.

    What it leaves begins with `.removed-`.
    """
    doomed = (
        folder if folder.name.startswith(REMOVED) else folder.with_name(f"{REMOVED}{folder.name}")
    )
    with contextlib.suppress(FileNotFoundError):
        if doomed != folder and doomed.exists():
            remove_folder(doomed)
        folder.rename(doomed)
        if doomed.is_dir() and not doomed.is_symlink():
            shutil.rmtree(doomed)
        else:
            doomed.unlink()


def _experiments(client: Any, config: TrackingConfig, workdir: Path) -> list[str]:
    """Return the experiments that our runs are in.

    That of the settings, and those of earlier settings.
    """
    now = client.get_experiment_by_name(config.experiment)
    known = {ids["experiment_id"] for ids in known_runs(workdir).values()}
    return sorted(known | ({str(now.experiment_id)} if now else set()))


def _all_pages(page: Callable[[Any], Any]) -> list[Any]:
    found, token = list[Any](), None
    while True:
        got = page(token)
        found, token = [*found, *got], got.token
        if not token:
            return found


def _models(
    client: Any, experiments: list[str], condition: str, room: Path | None
) -> list[StoredModel]:
    models = _all_pages(
        lambda token: client.search_logged_models(
            experiments, condition, max_results=100, page_token=token
        )
    )
    return [_stored_model(model, room) for model in models]


def _stored_run(run: Any, models: Iterable[StoredModel], room: Path | None) -> StoredRun:
    parent, location = run.data.tags.get("mlflow.parentRunId", ""), run.info.artifact_uri
    return StoredRun(
        run.info.run_id,
        parent,
        run.info.run_name,
        location,
        _place(location, run.info.run_id, room),
        tuple(models),
    )


def _stored_model(model: Any, room: Path | None) -> StoredModel:
    location, tags = model.artifact_location, dict(model.tags or {})
    place = _place(location, model.model_id, room)
    return StoredModel(
        model.model_id,
        model.source_run_id or "",
        model.creation_timestamp / 1000,
        tags,
        location,
        place,
    )


def _room(config: TrackingConfig, workdir: Path) -> Path | None:
    """Return the folder below which files may be removed.

    In a copy of a work directory, the database names those of the other.

    None for a server, whose paths are its own.
    """
    return None if config.uri.startswith("http") else Path("/") if config.uri else workdir.resolve()


def _place(location: str, name: str, room: Path | None) -> Path | None:
    """Return the folder on this machine that bears a run's or a model's name and holds its files, if there is one below a folder."""
    parsed = urlparse(location)
    path = Path(unquote(parsed.path))
    below = room is not None and parsed.scheme in ("", "file") and path.is_relative_to(room)
    return (
        next((folder for folder in (path, *path.parents) if folder.name == name), None)
        if below
        else None
    )


def _delete_model(client: Any, model: StoredModel) -> None:
    """Delete a logged model; its files first, as one that is marked as deleted is not found again."""
    if hasattr(client._tracking_client.store, "_hard_delete_logged_model"):
        _free(model.location, model.place)
    _unless_gone(lambda: client.delete_logged_model(model.model_id))
    _delete_for_good(
        client, "_hard_delete_logged_model", model.model_id, model.location, model.place
    )


def _delete_for_good(client: Any, how: str, name: str, location: str, place: Path | None) -> None:
    """Free an entry that is marked as deleted, where the store is a database.

    This is what `mlflow gc` does for a run or a model. That command itself would also free every
    experiment that somebody threw away.
    """
    delete = getattr(client._tracking_client.store, how, None)
    if delete is not None:
        _free(location, place)
        _unless_gone(lambda: delete(name))


def _free(location: str, place: Path | None) -> None:
    """Delete files that MLflow keeps, here or elsewhere."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    if place is not None:
        remove_folder(place)
    elif urlparse(location).scheme not in ("", "file"):
        get_artifact_repository(location).delete_artifacts()


def _unless_gone(call: Callable[[], object]) -> None:
    """Do what is no error where it was done before."""
    from mlflow.exceptions import MlflowException

    try:
        call()
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


@contextlib.contextmanager
def _answering(config: TrackingConfig, workdir: Path) -> Iterator[None]:
    """Turn what the store does not do into a TrackingError."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise TrackingError(
            f"The tracking store {store_uri(config, workdir)} does not do what it is asked"
            f" ({' '.join(str(error).split())[:150]}). Expected a running MLflow server or a"
            " writable folder. Check tracking.uri, and type the command again."
        ) from error
