"""Saving and loading networks as `.keras` files whose bytes depend on nothing but the network."""

from __future__ import annotations

import contextlib
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import keras
from keras.src.saving.serialization_lib import SafeModeScope

import pipeline.model.layers  # noqa: F401  (registers our layers, which files name)
from pipeline.artifacts import Artifact
from pipeline.files import writing
from pipeline.model.safety import require_safe

if TYPE_CHECKING:
    from pipeline.arrays import Network

_FIRST_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip file can name


def save_model(network: Network, path: Path) -> None:
    """Write a `.keras` file, complete or not at all; equal networks give equal bytes.

    Keras writes the time and memory addresses (`shared_object_id`) into the file. Here times are
    fixed and addresses are numbered in order of appearance, so that the file's SHA-256 says which
    network it is.
    """
    raw = path.with_name(f".{path.name}.raw.keras")
    try:
        network.save(raw)
        with (
            writing(path) as final,
            zipfile.ZipFile(raw) as source,
            zipfile.ZipFile(final, "w", zipfile.ZIP_STORED) as target,
        ):
            for name in sorted(source.namelist()):
                content = _remove_chance(name, source.read(name))
                target.writestr(zipfile.ZipInfo(name, _FIRST_ZIP_DATE), content)
    finally:
        raw.unlink(missing_ok=True)


def load_model(path: Path) -> Network:
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


def read_class_names(path: Path) -> tuple[str, ...] | None:
    """Return the classes of a network's logits by the record of its training or of its release.

    The one is beside the file, the other, `release.json`, beside its folder. None without either.
    """
    for record in (path.with_name(Artifact.FILE), path.parent.parent / "release.json"):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            names = json.loads(record.read_text(encoding="utf-8")).get("class_names")
            if names:
                return tuple(map(str, names))
    return None


def _remove_chance(name: str, content: bytes) -> bytes:
    """Return a member of a `.keras` file without the time of saving and memory addresses."""
    if not name.endswith(".json"):
        return content
    document = json.loads(content)
    if name == "metadata.json":
        document["date_saved"] = "1980-01-01@00:00:00"
    _number_shared_objects(document, {})
    return json.dumps(document, sort_keys=True).encode()


def _number_shared_objects(node: object, numbers: dict[int, int]) -> None:
    """Replace each `shared_object_id` by its rank of first appearance; equal ids stay equal."""
    if isinstance(node, dict):
        if "shared_object_id" in node:
            node["shared_object_id"] = numbers.setdefault(node["shared_object_id"], len(numbers))
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            _number_shared_objects(child, numbers)
