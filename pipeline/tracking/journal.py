"""The journal: every event of a run as one JSON line in a file under `<workdir>/journal/`.

Writing it is all that the pipeline does while it works; only the delivery thread touches MLflow, so
a slow or dead store costs the training nothing. What was not delivered stays in the journal, and
`deliver_leftovers` (the command `alexnet sync`, and every next run) sends it later.

    events   start, params, metrics, tags, dataset, files, model, end - each of one run, named by
             our own key
    state    <journal>.state.json: how many bytes were delivered, and which MLflow run has which
             key; at the end one line in `runs.index`

The rest of the pipeline knows runs by these keys only.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.image_size import sides_of

if TYPE_CHECKING:
    from pipeline.artifacts import DatasetArtifact, SavedModel

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
Event = dict[str, Any]


class JournalRun:
    """One executed stage, or the pipeline run itself, as events in the journal."""

    def __init__(self, write: Callable[[Event], None], key: str, parent: JournalRun | None = None):
        self.key = key
        self.has_dataset = False
        self._write = write
        self._parent = parent

    def _write_event(self, event: str, fields: Event) -> None:
        self._write({"event": event, "run": self.key, "time": int(time.time() * 1000)} | fields)

    def start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Begin the run."""
        parent = self._parent.key if self._parent else None
        fields = {"name": name, "params": _as_texts(params), "tags": _as_texts(tags)}
        self._write_event("start", {"parent": parent, **fields})

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Record more settings than those that the run began with."""
        self._write_event("params", {"values": _as_texts(values)})

    def set_tags(self, values: Mapping[str, Any], *, summary: bool = False) -> None:
        """Set tags; with `summary`, on the parent run as well."""
        self._write_event("tags", {"values": _as_texts(values)})
        if summary and self._parent:
            self._parent.set_tags(values)

    def log_metrics(
        self,
        values: Mapping[str, float],
        *,
        step: int = 0,
        summary: bool = False,
        at: float | None = None,
    ) -> None:
        """Record numbers at a step; equal ones of the same time are recorded once.

        Args:
            values: name -> number.
            step: such as the epoch.
            summary: record them on the parent run as well.
            at: the time in seconds since 1970. None: now.
        """
        numbers = {name: float(value) for name, value in values.items()}
        when = {} if at is None else {"time": int(at * 1000)}
        self._write_event("metrics", {"step": step, "values": numbers, **when})
        if summary and self._parent:
            self._parent.log_metrics(values, step=step, at=at)

    def log_dataset(self, dataset: DatasetArtifact, context: str) -> None:
        """Record which dataset was used, by our own digest."""
        if self._parent and not self._parent.has_dataset:
            self._parent.log_dataset(dataset, context)
        self.has_dataset = True
        profile = {split: sum(counts) for split, counts in dataset.class_counts.items()} | {
            "classes": len(dataset.class_names)
        }
        self._write_event(
            "dataset",
            {
                "name": dataset.name,
                "digest": dataset.digest[:36],
                "source": dataset.digest,
                "profile": profile,
                "context": context,
            },
        )

    def log_files(self, directory: Path) -> None:
        """Log a folder's files as artifacts; nothing where there is no such folder."""
        if directory.is_dir():
            self._write_event("files", {"path": str(directory.resolve())})

    def log_model(self, model: SavedModel) -> None:
        """Log a `.keras` file as an MLflow model with signature and input example."""
        known = {
            "class_names": list(model.class_names),
            "sha256": model.model_sha256,
            "short_side": model.short_side,
            "fit": model.fit,
        }
        self._write_event(
            "model",
            {
                "path": str(model.model_path.resolve()),
                "sha256": model.model_sha256,
                "shape": [*sides_of(model.image_size), 3],
                "known": known,
            },
        )

    def close(self, status: RunStatus, message: str = "") -> None:
        """End the run with its final status."""
        if message:
            self.set_tags({"error": message[:500]})
        self._write_event("end", {"status": status})


def _as_texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


def read_complete_lines(journal: Path, offset: int) -> Iterator[tuple[bytes, int]]:
    """Yield whole lines from a byte offset, each with the offset after it.

    A line cut short by a kill is left out.
    """
    with contextlib.suppress(FileNotFoundError), journal.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield line, offset


def read_events(journal: Path, offset: int) -> Iterator[tuple[Event, int]]:
    """Yield events from a byte offset, each with the offset after it.

    A line that holds no event, such as one that a full disk cut in the middle, is left out.
    """
    for line, after in read_complete_lines(journal, offset):
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and {"event", "run"} <= event.keys():
                yield event, after


def read_event_batches(journal: Path, offset: int) -> Iterator[tuple[list[Event], int]]:
    """Yield events from a byte offset with the offset after them; neighboring metrics together."""
    batch: list[Event] = []
    end = offset
    for event, after in read_events(journal, offset):
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


def list_undelivered(workdir: Path) -> list[Path]:
    """Return the journals that hold something that the tracking store does not have yet."""
    return sorted((workdir / "journal").glob("*.jsonl"))


def end_open_runs(journal: Path) -> None:
    """End, in the journal, the runs that a killed process left open.

    A last line cut short is removed.
    """
    lines = list(read_complete_lines(journal, 0))
    events = [event for event, _ in read_events(journal, 0)]
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
