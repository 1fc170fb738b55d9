"""Which MLflow run has which of our own keys: kept for good, also when a journal was delivered.

A journal that is being delivered keeps it in its state file. When it was delivered whole, the state
becomes one line of `<workdir>/journal/runs.index`, as thousands of files take seconds to read.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection
from pathlib import Path

from pipeline.files import flush, write_text
from pipeline.tracking.journal import read_complete_lines

_INDEX_FILE = "runs.index"


def read_known_runs(workdir: Path) -> dict[str, dict[str, str]]:
    """Return run key -> `run_id` and `experiment_id` in MLflow, of all runs delivered from here."""
    journals = workdir / "journal"
    texts = [line for line, _ in read_complete_lines(journals / _INDEX_FILE, 0)]
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


def remove_delivered_journal(journal: Path) -> None:
    """Remove a journal that was delivered whole; its runs stay known by the index."""
    journal.unlink(missing_ok=True)
    journal.with_suffix(".target.json").unlink(missing_ok=True)
    for file in sorted(journal.parent.glob("*.state.json")):
        if not file.with_name(file.name.replace(".state.json", ".jsonl")).exists():
            _move_to_index(file)


def _move_to_index(state: Path) -> None:
    """Append a state file to the index and remove it.

    Killed in between, both hold it, which is harmless.
    """
    with contextlib.suppress(FileNotFoundError):  # another process may be quicker
        text = state.read_bytes()
        index = state.parent / _INDEX_FILE
        with index.open("ab") as file:
            file.write(b"\n" + text + b"\n")  # the line before may have been cut short
        flush(index)
        state.unlink()


def forget_runs(workdir: Path, run_ids: Collection[str]) -> None:
    """Remove deleted MLflow runs from the index; the caller holds the work directory."""
    index, deleted = workdir / "journal" / _INDEX_FILE, frozenset(run_ids)
    lines = []
    for line, _ in read_complete_lines(index, 0) if deleted else ():
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            state = json.loads(line)
            state["run_ids"] = {
                key: run_id for key, run_id in state["run_ids"].items() if run_id not in deleted
            }
            lines += [json.dumps(state)] if state["run_ids"] else []
    if deleted and index.exists():
        write_text(index, "".join(f"{line}\n" for line in lines))
