"""A model that somebody names: is it there, and which classes does it know?"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import yaml

from pipeline.artifacts import Artifact, file_sha256
from pipeline.errors import CheckpointError, ConfigError


def require_model(path: Path) -> Path:
    """Return a `.keras` file after comparing it with the digest that stands beside it, if one does.

    Raises:
        ConfigError: there is no such file.
        CheckpointError: it is another file than the one that was saved.
    """
    if not path.is_file() or path.suffix != ".keras":
        raise ConfigError(
            f"There is no model {path}. Expected a .keras file, models:/NAME@ALIAS or the id of an MLflow run that made a model. "
            f"Received {'another kind of file' if path.is_file() else 'a path that is no file'}. Check --model."
        )
    promised, found = _beside(path).get("sha256"), file_sha256(path)
    if promised and promised != found:
        raise CheckpointError(
            f"The model file {path} is damaged. Expected SHA-256 {str(promised)[:12]}..., as its record says. Received {found[:12]}. "
            "Fetch it again, or train again."
        )
    return path


def class_names_of(path: Path) -> tuple[str, ...] | None:
    """Return the classes in the order of the logits, as the record beside a `.keras` file says; None where there is none."""
    names = _beside(path).get("class_names")
    return tuple(map(str, names)) if isinstance(names, list) else None


def _beside(path: Path) -> dict[str, object]:
    """Return `sha256` and `class_names` from a stage's record or from MLflow's description of a logged model, as far as they are there."""
    with contextlib.suppress(OSError, ValueError):
        record = json.loads((path.parent / Artifact.FILE).read_text(encoding="utf-8"))
        return {"sha256": record.get("model_sha256"), "class_names": record.get("class_names")}
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError, AttributeError):
        described = yaml.safe_load((path.parents[1] / "MLmodel").read_text(encoding="utf-8"))["metadata"]
        return {"sha256": described.get("sha256"), "class_names": described.get("class_names")}
    return {}
