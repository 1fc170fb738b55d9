"""Model files named by --model: checking them, and reading what is recorded beside them."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from pipeline.artifacts import Artifact, Fit, file_sha256
from pipeline.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class ExternalModel:
    """A `.keras` file, its SHA-256, and what the record beside it has of it.

    Without a record `class_names` is None, `short_side` is 0 and `fit` is empty.

    `class_names` are in the order of the logits; `short_side` is that of the images that its inputs
    were cut from, in pixels, and `fit` how these became squares.
    """

    path: Path
    sha256: str
    class_names: tuple[str, ...] | None = None
    short_side: int = 0
    fit: Fit | Literal[""] = ""


def find_external_model(path: Path) -> ExternalModel:
    """Return a `.keras` file after comparing it with the digest recorded beside it, if any.

    Raises:
        ConfigError: the file does not exist.
        CheckpointError: the file is not the one that was saved.
    """
    if not path.is_file() or path.suffix != ".keras":
        raise ConfigError(
            f"There is no model {path}",
            expected="a .keras file, models:/NAME@ALIAS or the id of an MLflow run that made a"
            " model",
            received="another kind of file" if path.is_file() else "a path that is not a file",
            hint="Check --model",
        )
    known, found = _read_record_beside(path), file_sha256(path)
    promised, names, side = known.get("sha256"), known.get("class_names"), known.get("short_side")
    # Records from before there was another fit say nothing of it.
    fit: Fit = "pad" if known.get("fit") == "pad" else "crop"
    if promised and promised != found:
        raise CheckpointError(
            f"The model file {path} is damaged",
            expected=f"SHA-256 {str(promised)[:12]}..., as its record says",
            received=f"{found[:12]}",
            hint="Fetch it again, or train again",
        )
    return ExternalModel(
        path,
        found,
        tuple(map(str, names)) if isinstance(names, list) else None,
        side if isinstance(side, int) else 0,
        fit if side else "",
    )


def _read_record_beside(path: Path) -> dict[str, Any]:
    """Return the values of a stage's record or of MLflow's MLmodel file beside a model."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        record = json.loads((path.parent / Artifact.FILE).read_text(encoding="utf-8"))
        return {"sha256": record.get("model_sha256")} | {
            name: record[name] for name in ("class_names", "short_side", "fit") if name in record
        }
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError, TypeError, KeyError, IndexError):
        return dict(
            yaml.safe_load((path.parents[1] / "MLmodel").read_text(encoding="utf-8"))["metadata"]
        )
    return {}
