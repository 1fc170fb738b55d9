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
    """Return a description of the input outside the pipeline, without opening an image.

    Changed files give another stamp; missing ones are no error here.
    """
    kind = detect_dataset_kind(config.dataset)
    if kind == "digits":
        return {"scikit-learn": metadata.version("scikit-learn")}
    if kind == "tfds":
        return {"tensorflow-datasets": metadata.version("tensorflow-datasets")}
    path = expand_home(config.dataset)
    try:
        return {kind: _stamp_folder(path) if kind == "folder" else _stamp_manifest(path)}
    except FileNotFoundError:
        return {kind: "missing"}
    except (OSError, ValueError, DatasetError):
        return {kind: "unreadable"}


def _stamp_folder(folder: Path) -> str:
    """Return the SHA-256 of (path, size, modification time) of all files that are not hidden.

    In the order of the walk, 16 hexadecimal digits.
    """
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    digest = hashlib.sha256()
    root = os.fspath(folder)
    for name, problem in walk_files(root):
        if problem != "hidden":  # a file manager's notes and our own results change no dataset
            _add_file(digest, root, name)
    return digest.hexdigest()[:16]


def _stamp_manifest(manifest: Path) -> str:
    """Return the SHA-256 of a manifest's bytes and its files' (path, size, modification time)."""
    with manifest.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    root = os.fspath(manifest.parent)
    for row in read_rows(manifest):
        _add_file(digest, root, row.path)
    return digest.hexdigest()[:16]


def _add_file(digest: hashlib._Hash, root: str, name: str) -> None:
    try:
        # pathlib takes three times as long.
        info = os.stat(os.path.join(root, name))  # noqa: PTH116, PTH118
        sizes = f"{info.st_size}\0{info.st_mtime_ns}".encode()
    except (OSError, ValueError):  # missing, without permission, or an impossible name
        sizes = b""
    digest.update(os.fsencode(name) + b"\0" + sizes + b"\0")
