"""A description of the input outside the pipeline: changed files give another one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from pipeline.config.data import DataConfig
from pipeline.data.folders import walk_files
from pipeline.data.manifests import read_rows
from pipeline.data.reference import detect_dataset_kind, expand_home
from pipeline.errors import DatasetError


def stamp_source(config: DataConfig) -> Mapping[str, str]:
    """Describe the input outside the pipeline, without opening an image.

    Changed files give another stamp, missing ones no error.
    """
    kind = detect_dataset_kind(config.dataset)
    if kind == "digits":
        return {"scikit-learn": metadata.version("scikit-learn")}
    if kind == "tfds":
        return {"tensorflow-datasets": metadata.version("tensorflow-datasets")}
    path = expand_home(config.dataset)
    try:
        return {kind: _folder_stamp(path) if kind == "folder" else _manifest_stamp(path)}
    except FileNotFoundError:
        return {kind: "missing"}
    except (OSError, ValueError, DatasetError):
        return {kind: "unreadable"}


def _folder_stamp(folder: Path) -> str:
    """Return the SHA-256 of the (path, size, modification time) of every file but hidden ones, in the walk's order."""
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    digest = hashlib.sha256()
    root = os.fspath(folder)
    for name, why in walk_files(root):
        if why != "hidden":  # a file manager's notes, and our own results, make no other dataset
            _stamp_file(digest, root, name)
    return digest.hexdigest()[:16]


def _manifest_stamp(manifest: Path) -> str:
    """Return the SHA-256 of the manifest's bytes and of its files' (path, size, modification time)."""
    with manifest.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    root = os.fspath(manifest.parent)
    for row in read_rows(manifest):
        _stamp_file(digest, root, row.path)
    return digest.hexdigest()[:16]


def _stamp_file(digest: hashlib._Hash, root: str, name: str) -> None:
    try:
        info = os.stat(os.path.join(root, name))  # noqa: PTH116, PTH118 - pathlib takes three times as long
        sizes = f"{info.st_size}\0{info.st_mtime_ns}".encode()
    except (OSError, ValueError):  # not there, not for us, or no possible name
        sizes = b""
    digest.update(os.fsencode(name) + b"\0" + sizes + b"\0")
