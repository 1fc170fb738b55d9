"""A training's whole state in one file that is complete or absent."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import CheckpointError

_HISTORY = "history"


def save_checkpoint(path: Path, arrays: dict[str, np.ndarray[Any, Any]], history: list[dict[str, float]]) -> None:
    """Write every array and the history, by rename: a kill leaves the previous file.

    Args:
        path: the `.npz` file.
        arrays: name -> any dtype and shape; equal bits come back.
        history: the finished epochs.
    """
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        np.savez(file, **{_HISTORY: np.frombuffer(json.dumps(history).encode(), dtype=np.uint8)}, **arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_checkpoint(path: Path) -> tuple[dict[str, np.ndarray[Any, Any]], list[dict[str, float]]] | None:
    """Return the arrays and the history, every byte checked by the archive's CRC, or None when there is no file.

    Raises:
        CheckpointError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
            history = json.loads(arrays.pop(_HISTORY).tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"The checkpoint {path} is damaged ({error}). Expected the file that training wrote. Delete it to train from the beginning."
        ) from error
    return arrays, history
