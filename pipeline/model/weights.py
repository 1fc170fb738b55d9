"""Saving and loading networks as `.keras` files whose bytes depend on nothing but the network."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import keras
from keras.src.saving.serialization_lib import SafeModeScope

import pipeline.model.layers  # noqa: F401  (registers our layers, so that a file that names them can be read)
from pipeline.model.safety import require_safe

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip file can name


def save_model(network: Any, path: Path) -> None:
    """Write a `.keras` file, complete or not at all; equal networks give equal bytes.

    Keras writes the time and memory addresses (`shared_object_id`) into the file. Here times are
    fixed and addresses are numbered in order of appearance, so that the file's SHA-256 says which
    network it is.
    """
    raw, final = path.with_name(f".{path.name}.raw.keras"), path.with_name(f".{path.name}.partial")
    network.save(raw)
    with zipfile.ZipFile(raw) as source, zipfile.ZipFile(final, "w", zipfile.ZIP_STORED) as target:
        for name in sorted(source.namelist()):
            target.writestr(zipfile.ZipInfo(name, _EPOCH), _without_chance(name, source.read(name)))
    raw.unlink()
    with final.open("rb") as file:
        os.fsync(file.fileno())
    final.replace(path)


def load_model(path: Path) -> Any:
    """Read a `.keras` file without compiling it and without running any code that it carries.

    Raises:
        CheckpointError: the file is damaged, or holds more than layers and their weights.
    """
    require_safe(path)
    # The argument alone is outvoted where anything in this process called
    # `keras.config.enable_unsafe_deserialization()`; Keras has no public name for what outvotes
    # that.
    with SafeModeScope(safe_mode=True):
        return keras.saving.load_model(path, compile=False, safe_mode=True)


def _without_chance(name: str, content: bytes) -> bytes:
    """Return a member of a `.keras` file without the time of saving and without memory addresses."""
    if not name.endswith(".json"):
        return content
    document = json.loads(content)
    if name == "metadata.json":
        document["date_saved"] = "1980-01-01@00:00:00"
    _number_shared_objects(document, {})
    return json.dumps(document, sort_keys=True).encode()


def _number_shared_objects(node: Any, numbers: dict[int, int]) -> None:
    """Replace each `shared_object_id` by its rank of first appearance; equal ids stay equal."""
    if isinstance(node, dict):
        if "shared_object_id" in node:
            node["shared_object_id"] = numbers.setdefault(node["shared_object_id"], len(numbers))
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            _number_shared_objects(child, numbers)
