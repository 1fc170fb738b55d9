"""A training's whole state in one file that is complete or absent, with the file before it kept."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import CheckpointError, TrainingDivergedError

_RECORD = "record"


def save_checkpoint(
    path: Path, arrays: Mapping[str, np.ndarray[Any, Any]], record: Mapping[str, Any]
) -> None:
    """Write every array and the record, read them back, and only then put the file in place.

    The one before becomes `previous_of` it.

    A kill or a full disk at any moment leaves one of the two.

    Args:
        path: the `.npz` file.
        arrays: name -> any dtype and shape; equal bits come back.
        record: what JSON can hold.

    Raises:
        TrainingDivergedError: a number is NaN or infinite; the files stay as they were.
    """
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise TrainingDivergedError(
                f"The state of the training holds a number that is not finite ({name}); it was not"
                " saved"
            )
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        np.savez(
            file,
            **{_RECORD: np.frombuffer(json.dumps(record).encode(), dtype=np.uint8)},  # type: ignore[arg-type]
            **arrays,  # type: ignore[arg-type]
        )
        file.flush()
        os.fsync(file.fileno())
    with zipfile.ZipFile(temporary) as archive:
        if damaged := archive.testzip():
            raise CheckpointError(
                f"The disk did not keep what was written to {temporary} ({damaged}). Expected a"
                " disk that does."
            )
    if path.exists():
        path.replace(previous_of(path))
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the renames themselves
    finally:
        os.close(folder)


def previous_of(path: Path) -> Path:
    """Return where the checkpoint before the last one is."""
    return path.with_name(f"previous-{path.name}")


def read_checkpoint(
    path: Path,
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any], str] | None:
    """Return the arrays, the record, and what was wrong with the last file if the one before it had to be taken; None without a file.

    Every byte is checked by the archive's CRC.

    Raises:
        CheckpointError: both files are damaged, or the only one is.
    """
    problem = ""
    for file in (path, previous_of(path)):
        if not file.exists():
            continue
        try:
            return (*_read(file), problem)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            problem = problem or f"the checkpoint {path} is damaged ({error})"
    if problem:
        raise CheckpointError(
            f"{problem[0].upper()}{problem[1:]}, and so is the one before it. Expected a file that"
            f" training wrote. Delete {path.parent} to train from the beginning."
        )
    return None


def _read(path: Path) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
        return arrays, json.loads(arrays.pop(_RECORD).tobytes())
