"""A training's whole state in one file that is complete or absent, with the file before it kept."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import CheckpointError, TrainingDivergedError
from pipeline.files import writing

if TYPE_CHECKING:
    from pipeline.arrays import Array

_RECORD = "record"


def save_checkpoint(path: Path, arrays: Mapping[str, Array], record: Mapping[str, Any]) -> None:
    """Write every array and the record, read them back, and only then replace the file.

    The one before becomes `previous_checkpoint_path` of it. A kill or a full disk at any moment
    leaves one of the two.

    Args:
        path: the `.npz` file.
        arrays: name -> any dtype and shape; equal bits come back.
        record: what JSON can hold.

    Raises:
        TrainingDivergedError: a number is NaN or infinite; the files stay as they were.
        CheckpointError: what was read back is not what was written; the files stay as they were.
    """
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise TrainingDivergedError(
                f"The state of the training holds a number that is not finite ({name}); it was not"
                " saved"
            )
    _remove_leftovers(path)
    with writing(path, keep_previous_as=previous_checkpoint_path(path)) as temporary:
        with temporary.open("wb") as file:
            np.savez(
                file,
                **{_RECORD: np.frombuffer(json.dumps(record).encode(), dtype=np.uint8)},  # type: ignore[arg-type]
                **arrays,  # type: ignore[arg-type]
            )
        _require_undamaged(temporary)


def _require_undamaged(path: Path) -> None:
    """Refuse an archive of which an entry does not have its CRC."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise CheckpointError(
                f"What was read back from {path} is not what was written ({damaged})",
                expected="a disk that keeps files as they were written",
                hint="Check the disk",
            )


def _remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed while saving left; only one saves at a time."""
    for leftover in path.parent.glob(f".{path.stem}.*{path.suffix}"):
        leftover.unlink(missing_ok=True)


def previous_checkpoint_path(path: Path) -> Path:
    """Return where the checkpoint before the last one is."""
    return path.with_name(f"previous-{path.name}")


def read_checkpoint(path: Path) -> tuple[dict[str, Array], dict[str, Any], str] | None:
    """Return the arrays, the record, and what was wrong with the last file; None without a file.

    The third is "" unless the file before the last had to be taken. Every byte is checked by the
    archive's CRC.

    Raises:
        CheckpointError: both files are damaged, or the only one is.
    """
    problem = ""
    for file in (path, previous_checkpoint_path(path)):
        if not file.exists():
            continue
        try:
            return (*_read_archive(file), problem)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            problem = problem or f"the checkpoint {path} is damaged ({error})"
    if problem:
        raise CheckpointError(
            f"{problem[0].upper()}{problem[1:]}, and so is the one before it",
            expected="a file that training wrote",
            hint=f"Delete {path.parent} to train from the beginning",
        )
    return None


def _read_archive(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
        return arrays, json.loads(arrays.pop(_RECORD).tobytes())
