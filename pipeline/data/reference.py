"""What `data.dataset` refers to: the built-in digits, a folder, a manifest or a TFDS name."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from pipeline.config.data import DataConfig
from pipeline.data.names import to_printable
from pipeline.errors import DatasetError

DatasetKind = Literal["digits", "folder", "manifest", "tfds"]
MANIFEST_SUFFIXES = frozenset({".csv", ".tsv", ".parquet"})
_TFDS_NAME = re.compile(r"[a-z][a-z0-9_]*(/[\w.+-]+)?(:\d+\.\d+\.\d+|:\d+\.\*\.\*)?", re.ASCII)


def expand_home(path: str) -> Path:
    """Return a path with a leading `~` replaced by the home directory.

    The `~name` of an unknown user stays as it is.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111 - pathlib's raises for an unknown user


def detect_dataset_kind(dataset: str) -> DatasetKind:
    """Return the kind of dataset that `--dataset` names.

    `digits` is always the built-in set (a folder of that name is `./digits`).
    """
    path = expand_home(dataset)
    if dataset == "digits":
        return "digits"
    if path.is_dir():
        return "folder"
    if path.suffix.lower() in MANIFEST_SUFFIXES:
        return "manifest"
    return "tfds" if _TFDS_NAME.fullmatch(dataset) else "folder"


def require_source(config: DataConfig) -> None:
    """Raise a DatasetError where the folder or the manifest does not exist.

    Cheap: called before anything heavy is loaded or anything is written.
    """
    path, kind = expand_home(config.dataset), detect_dataset_kind(config.dataset)
    if kind == "folder" and not path.is_dir():
        raise missing_folder_error(path)
    if kind == "manifest" and not path.exists():
        raise missing_manifest_error(path)


def missing_folder_error(folder: Path) -> DatasetError:
    """Return the error for a path that is not a folder."""
    return DatasetError(
        f"There is no folder {to_printable(folder)}",
        expected="one folder for each class with images in it",
        received="a file" if folder.exists() else "a path that does not exist",
        hint="Check --dataset; a TFDS name has no leading dot or slash",
    )


def missing_manifest_error(manifest: Path) -> DatasetError:
    """Return the error for a manifest that does not exist."""
    return DatasetError(
        f"There is no manifest {to_printable(manifest)}",
        expected="a CSV, TSV or Parquet file",
        received="a path that does not exist",
        hint="Check --dataset",
    )
