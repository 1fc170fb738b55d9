"""Rows made of a name: a file of anybody's, a function of the user's own, a preset of KerasHub.

Imports neither TensorFlow nor Keras nor the user's code: files are only looked at.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.artifacts import digest_of
from pipeline.errors import ConfigError
from pipeline.image_size import make_image_size
from pipeline.model.network_row import NetworkRow
from pipeline.model.own_sources import (
    describe_packages,
    digest_own_source,
    find_function_file,
    list_sources,
)

FILE_SUFFIX, HUB_PREFIX = ".keras", "hub/"
_DESCRIPTION = "config.json"
_MAX_DESCRIPTION_BYTES = 16 << 20  # as safety.py allows
# A network of one's own says nothing of sizes: what photographs usually have, and what five
# halvings leave a position of.
_USUAL_SIZE, _SMALLEST_SIZE = 224, 32


def describe_own_network(name: str) -> NetworkRow | None:
    """Return the row of a file, a function or a preset; None where a name is none of these.

    Raises:
        ConfigError: there is no such file or module, or it holds no network of images.
    """
    row = describe_absent_network(name)
    if row is None:
        return None
    if row.family == "file":
        return _describe_file(row)
    if row.family == "hub":
        require_keras_hub(name)
    else:
        find_function_file(name)
    return row


def describe_absent_network(name: str) -> NetworkRow | None:
    """Return what a name says of a file, a function or a preset, which need not be here.

    None where a name is none of these.
    """
    smallest = 1
    if name.endswith(FILE_SUFFIX):
        family, summary, name = "file", "a network in a file", str(Path(name).expanduser())
    elif name.startswith(HUB_PREFIX):
        family, summary, smallest = "hub", "a preset of KerasHub", _SMALLEST_SIZE
    elif ":" in name:
        family, summary = "function", "a function of your own"
    else:
        return None
    return NetworkRow(
        name=name, summary=summary, family=family, min_image_size=smallest, image_size=_USUAL_SIZE
    )


def require_keras_hub(name: str) -> None:
    """Check that KerasHub is installed, without importing it.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("keras_hub") is None:
        raise ConfigError(
            f"The network {name} needs KerasHub, which is not installed",
            hint="Type `pip install keras-hub`, or choose another with --network",
        )


def describe_own_code(name: str) -> dict[str, str | None]:
    """Return the fingerprint parts of a function's source, or of the installed KerasHub.

    The source is the module and all that it imports from the same folder, comments and docstrings
    aside; of an installed package it is the module and the version. A part is None where the source
    is not here.
    """
    if name.startswith(HUB_PREFIX):
        try:
            return {"package keras-hub": importlib.metadata.version("keras-hub")}
        except importlib.metadata.PackageNotFoundError:
            return {"package keras-hub": None}
    try:
        sources = list_sources(name)
    except ConfigError:
        return {f"code function {name}": None}
    digests = [digest_own_source(file) for file in sources.files.values()]
    versions = describe_packages(name) if sources.installed else {}
    return {
        f"code function {name}": digest_of(sorted(digests))[:16],
        **{f"package {package}": version for package, version in versions.items()},
    }


def _describe_file(row: NetworkRow) -> NetworkRow:
    """Return the row of a `.keras` file: its natural size is that of its input."""
    path = Path(row.name)
    if not path.is_file():
        raise ConfigError(
            f"There is no file {path}",
            expected="a network as Keras saves it",
            hint="Correct --network",
        )
    height, width = _read_input_size(path)
    usual = height or width or _USUAL_SIZE  # where it takes any, as the other side
    return replace(row, image_size=make_image_size(height or usual, width or usual))


def _read_input_size(path: Path) -> tuple[int | None, int | None]:
    """Return height and width of a saved network's input, in pixels; None where it takes any."""
    try:
        with zipfile.ZipFile(path) as archive:
            # Longer ones are cut, and then no JSON.
            text = archive.open(_DESCRIPTION).read(_MAX_DESCRIPTION_BYTES)
        description = json.loads(text)
        shapes = list(_list_input_shapes(description))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"The network file {path} cannot be read ({' '.join(str(error).split())[:150]})",
            expected="a network as Keras 3 saves it, in a .keras file",
        ) from error
    if not shapes or len(shapes[0]) != 4 or shapes[0][-1] != 3:
        raise ConfigError(
            f"The network in {path} takes no color images",
            expected="an input of height x width x 3",
            received=str(shapes[0][1:]) if shapes else "no input of a known shape",
        )
    _, height, width, _ = shapes[0]
    return height, width


def _list_input_shapes(description: dict[str, Any]) -> Iterator[list[int | None]]:
    """Yield the shapes of the input layers of a saved network, those of submodels after its own."""
    layers = description.get("config", {}).get("layers", [])
    for layer in layers:
        if layer.get("class_name") == "InputLayer":
            yield layer["config"]["batch_shape"]
    for layer in layers:
        yield from _list_input_shapes(layer)
