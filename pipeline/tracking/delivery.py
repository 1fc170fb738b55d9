"""Delivery of journals to MLflow, in batches, from where the last attempt stopped."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import file_sha256
from pipeline.config.tracking import TrackingConfig
from pipeline.files import write_text
from pipeline.tracking.flavor import describe_flavor, write_flavor
from pipeline.tracking.journal import (
    Event,
    end_open_runs,
    list_undelivered,
    read_event_batches,
)
from pipeline.tracking.known_runs import remove_delivered_journal
from pipeline.tracking.store import connect_store, get_or_create_experiment, get_store_uri
from pipeline.tracking.stored_runs import delete_models_of_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric as MlflowMetric

_METRICS_PER_CALL = 1000  # MLflow's limit of metrics in one log_batch call
_KEY_TAG = "alexnet.run_key"


@dataclass
class DeliveryState:
    """The delivered part of a journal, and the runs that it went to.

    Attributes:
        offset: bytes of the journal that were delivered.
        experiment_id: MLflow's.
        run_ids: our run key -> MLflow's run id.
    """

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
        self._client: MlflowClient = None  # until the first delivery
        self._handlers = {
            "start": self._deliver_start,
            "params": self._deliver_params,
            "tags": self._deliver_tags,
            "dataset": self._deliver_dataset,
            "files": self._deliver_files,
            "model": self._deliver_model,
            "end": self._deliver_end,
        }

    def _read_state(self) -> DeliveryState:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return DeliveryState(**json.loads(self._state_file.read_text(encoding="utf-8")))
        return DeliveryState(0, "", {})

    def _save_offset(self, offset: int) -> None:
        self.state.offset = offset
        write_text(self._state_file, json.dumps(vars(self.state)))

    def deliver(self) -> bool:
        """Send what is in the journal and not sent yet; return whether nothing is left.

        After two failures in a row nothing more is tried in this process: `problem` holds the
        reason, and the journal keeps the rest.
        """
        if self.problem is not None and self._failures > 1:
            return False
        try:
            if self._client is None:
                self._client = connect_store(self._config, self._workdir)
                self.state.experiment_id = get_or_create_experiment(
                    self._client, self._config, self._workdir
                )
            for events, offset in read_event_batches(self._journal, self.state.offset):
                self._deliver_events(events)
                self._save_offset(offset)
        except Exception as error:  # noqa: BLE001 - training goes on whatever the store does
            self._failures += 1
            self.problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            return False
        self.problem, self._failures = None, 0
        return True

    def _deliver_events(self, events: Sequence[Event]) -> None:
        if events[0]["event"] == "metrics":
            self._deliver_metrics(events)
        else:
            self._handlers[events[0]["event"]](
                events[0], self.state.run_ids.get(events[0]["run"], "")
            )

    def _deliver_start(self, event: Event, _: str) -> None:
        """Create the run, or open that of an earlier attempt again.

        It then belongs to the pipeline run that continues it.
        """
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

    def _deliver_metrics(self, events: Sequence[Event]) -> None:
        from mlflow.entities import Metric

        points: dict[str, list[MlflowMetric]] = {}
        for event in events:
            values = [
                Metric(name, value, event["time"], event["step"])
                for name, value in event["values"].items()
            ]
            points.setdefault(self.state.run_ids[event["run"]], []).extend(values)
        for run_id, metrics in points.items():
            for start in range(0, len(metrics), _METRICS_PER_CALL):
                self._client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_CALL])

    def _deliver_tags(self, event: Event, run_id: str) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(
            run_id, tags=[RunTag(name, value) for name, value in event["values"].items()]
        )

    def _deliver_params(self, event: Event, run_id: str) -> None:
        """Record settings that are not there yet, as those of a continued run are."""
        from mlflow.entities import Param

        known = self._client.get_run(run_id).data.params
        self._client.log_batch(
            run_id,
            params=[
                Param(name, value) for name, value in event["values"].items() if name not in known
            ],
        )

    def _deliver_dataset(self, event: Event, run_id: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"sha256": event["source"]})
        dataset = Dataset(
            event["name"], event["digest"], "local", source, profile=json.dumps(event["profile"])
        )
        self._client.log_inputs(
            run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", event["context"])])]
        )

    def _deliver_files(self, event: Event, run_id: str) -> None:
        if Path(event["path"]).is_dir():
            self._client.log_artifacts(run_id, event["path"], "report")
        else:
            self._client.set_tag(
                run_id, "report_not_logged", f"{event['path']} was gone when it could be sent"
            )

    def _deliver_model(self, event: Event, run_id: str) -> None:
        """Log the network as an MLflow Keras model."""
        import mlflow

        file = Path(event["path"])
        if not file.exists() or file_sha256(file) != event["sha256"]:
            self._client.set_tag(
                run_id, "model_not_logged", f"{file} was gone or another one when it could be sent"
            )
            return
        # Of an attempt that was killed before it could record that it was delivered.
        delete_models_of_run(
            self._client, self._config, self._workdir, self.state.experiment_id, run_id
        )

        def save_model(path: str, *, validate_serving_input: bool, **arguments: Any) -> None:  # noqa: ARG001 - meant for MLflow itself
            write_flavor(file, Path(path), arguments)

        # Model.log has no other way to learn the store.
        mlflow.set_tracking_uri(get_store_uri(self._config, self._workdir))
        # Model.log alone would put the model into MLflow's default experiment.
        logged = self._client.create_logged_model(
            self.state.experiment_id, name="model", source_run_id=run_id
        )
        mlflow.models.Model.log(
            artifact_path=None,
            model_id=logged.model_id,
            flavor=SimpleNamespace(save_model=save_model, __name__="mlflow.keras"),
            run_id=run_id,
            # It would load the model again and draw a progress bar into our output.
            validate_serving_input=False,
            **describe_flavor(event["shape"][0], event["known"]),
        )

    def _deliver_end(self, event: Event, run_id: str) -> None:
        self._client.set_terminated(run_id, event["status"], event["time"])


def deliver_leftovers(
    workdir: Path, except_journal: Path | None = None
) -> tuple[int, dict[str, str]]:
    """Send every journal that earlier commands left undelivered.

    The caller holds the work directory. A run that never ended, because its process was killed, is
    ended as KILLED. A delivered journal is removed; its runs stay known. A store that fails once is
    not tried again.

    Args:
        workdir: the work directory.
        except_journal: the journal that is being written.

    Returns:
        How many journals were delivered, and for those that were not the reason, by name.
    """
    delivered = 0
    problems: dict[str, str] = {}
    dead: dict[str, str] = {}
    for journal in list_undelivered(workdir):
        if journal == except_journal:
            continue
        end_open_runs(journal)
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
            remove_delivered_journal(journal)
            delivered += 1
        else:
            dead[config.uri] = problems[journal.stem] = delivery.problem or dead[config.uri]
    return delivered, problems
