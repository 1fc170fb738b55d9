"""Trackers: how the pipeline records its runs, in MLflow by way of the journal, or not at all."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
import uuid
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.config.resolution import Resolved
from pipeline.config.tracking import TrackingConfig
from pipeline.files import write_text
from pipeline.tracking.delivery import Delivery, deliver_leftovers
from pipeline.tracking.journal import Event, JournalRun, RunStatus
from pipeline.tracking.known_runs import read_known_runs, remove_delivered_journal

_DELIVERY_SECONDS = 2.0  # how soon a number of a running training shows up in the UI
_RECORDED_PACKAGES = (
    "tensorflow",
    "keras",
    "tensorflow-datasets",
    "mlflow",
    "numpy",
    "alexnet-pipeline",
)


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
        self._skipped: dict[str, str] = {}
        self._stop = threading.Event()
        self._sender: threading.Thread | None = None
        self._delivery = Delivery(self._journal, workdir, config)

    @property
    def pipeline_key(self) -> str:
        """The key of the pipeline's own run; empty while no stage was executed."""
        return self._pipeline.key if self._pipeline else ""

    def _append(self, event: Event) -> None:
        with self._journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def start_stage_run(
        self, stage: str, section: str, resolved: Resolved, earlier: str = ""
    ) -> JournalRun:
        """Begin the run of a stage, or continue that of an earlier attempt.

        The first one begins the pipeline's own run as well.
        """
        tags, pipeline = collect_environment_tags(), self.start_pipeline_run(resolved)
        if self._skipped:
            pipeline.set_tags({f"skipped.{name}": key for name, key in self._skipped.items()})
            self._skipped = {}
        run = JournalRun(self._append, earlier or f"{pipeline.key}-{stage}", pipeline)
        params = {
            key.partition(".")[2]: value
            for key, value in resolved.flat().items()
            if key.startswith(f"{section}.")
        }
        run.start(stage, params, {"stage": stage, "recipe": resolved.recipe, **tags})
        return run

    def start_pipeline_run(self, resolved: Resolved) -> JournalRun:
        """Begin the pipeline's own run, unless it has begun, and return it."""
        if self._pipeline is None:
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._journal.with_suffix(".target.json"), self._config.model_dump_json())
            self._pipeline = JournalRun(self._append, self._journal.stem)
            name, settings = _describe_pipeline_run(resolved)
            tags = {"recipe": resolved.recipe, **collect_environment_tags(), **self.own_tags}
            self._pipeline.start(name, settings, tags)
            # Here and not in the thread: TFDS swaps Python's import function while it loads, which
            # breaks the imports of other threads.
            import mlflow.keras
            import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

            self._sender = threading.Thread(
                target=self._deliver_until_closed, name="mlflow", daemon=True
            )
            self._sender.start()
        return self._pipeline

    def link_skipped_stage(self, stage: str, run_key: str) -> None:
        """Record that a stage was skipped, and which run made its result."""
        self._skipped[stage] = (
            read_known_runs(self._workdir).get(run_key, {}).get("run_id", run_key)
        )
        if self._pipeline:
            self._pipeline.set_tags({f"skipped.{stage}": self._skipped.pop(stage)})

    def conclude_run(
        self,
        name: str,
        tags: Mapping[str, Any] = MappingProxyType({}),
        metrics: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Rename the pipeline's own run and record its result."""
        if self._pipeline:
            self._pipeline.set_tags({"mlflow.runName": name, **tags})
            self._pipeline.log_metrics(metrics)

    def log_files(self, directory: Path) -> None:
        """Log a folder's files on the pipeline's own run."""
        if self._pipeline:
            self._pipeline.log_files(directory)

    def _deliver_until_closed(self) -> None:
        deliver_leftovers(self._workdir, except_journal=self._journal)
        while not self._stop.wait(_DELIVERY_SECONDS):
            self._delivery.deliver()
        if self._delivery.deliver():
            remove_delivered_journal(self._journal)

    def close(self, status: RunStatus) -> None:
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

    def start_stage_run(
        self,
        stage: str,  # noqa: ARG002
        section: str,  # noqa: ARG002
        resolved: Resolved,  # noqa: ARG002
        earlier: str = "",
    ) -> JournalRun:
        """Return a run whose events are dropped."""
        return JournalRun(lambda _event: None, earlier)

    def link_skipped_stage(self, stage: str, run_key: str) -> None:
        """Do nothing."""

    def start_pipeline_run(self, resolved: Resolved) -> JournalRun:  # noqa: ARG002
        """Return a run whose events are dropped."""
        return JournalRun(lambda _event: None, "")

    def conclude_run(
        self,
        name: str,
        tags: Mapping[str, Any] = MappingProxyType({}),
        metrics: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Do nothing."""

    def log_files(self, directory: Path) -> None:
        """Do nothing."""

    def close(self, status: RunStatus) -> None:
        """Do nothing."""


def _describe_pipeline_run(resolved: Resolved) -> tuple[str, dict[str, Any]]:
    """Return the name and the settings of the pipeline's own run.

    The settings of a network and of a training are not those of an external model.
    """
    config, settings = resolved.config, resolved.flat()
    dataset = (
        config.data.dataset.rstrip("/").rpartition("/")[2]
        if not config.model.classes
        else "network"
    )
    external_model = config.evaluate.model
    if external_model:
        settings = {
            key: value
            for key, value in settings.items()
            if key.partition(".")[0] not in ("model", "train")
        }
    return f"{dataset} {Path(external_model).name or config.model.network}", settings


def collect_environment_tags() -> dict[str, str]:
    """Return the git commit of the code and the versions of the packages, as tags of a run."""
    tags = {"mlflow.source.type": "LOCAL", "mlflow.source.name": "alexnet"}
    with contextlib.suppress(metadata.PackageNotFoundError):
        tags |= {f"package.{name}": metadata.version(name) for name in _RECORDED_PACKAGES}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        commit = _run_git("rev-parse", "HEAD").strip()
        changed = _run_git("status", "--porcelain", "-uno")
        tags |= {
            "mlflow.source.git.commit": commit,
            "git_dirty": str(bool(changed.strip())).lower(),
        }
    return tags


def _run_git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    return done.stdout
