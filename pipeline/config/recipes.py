"""Recipes: packaged settings, or a YAML file of sections."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.section import Section, section_type
from pipeline.config.settings import Config
from pipeline.errors import ConfigError, describe_cause

ANY_IMAGES = "folder"
_SUFFIXES = (".yaml", ".yml")


def flatten(
    nested: Mapping[str, Any], kind: type[Section] = Config, prefix: str = ""
) -> dict[str, Any]:
    """Return {section: {field: value}} as {`section.field`: value}, sub-sections included.

    Args:
        nested: values by field; a field that is a sub-section holds such a mapping itself.
        kind: the section whose fields they are; all settings by default.
        prefix: what stands before each name, such as `model.`.
    """
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        inner = section_type(kind, name)
        if inner is not None and isinstance(value, Mapping):
            flat |= flatten(value, inner, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def recipe_names() -> tuple[str, ...]:
    """Return the names of the packaged recipes."""
    folder = resources.files("pipeline.recipes")
    return tuple(
        sorted(
            Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(_SUFFIXES)
        )
    )


def recipe_for(dataset: str) -> str:
    """Return the packaged recipe that fits a dataset when none was asked for.

    A recipe of the same name if there is one, else `folder`: settings for images of unknown
    content.
    """
    name = dataset.partition(":")[0].partition("/")[0]
    return name if name in recipe_names() else ANY_IMAGES


def suggest_spelling(word: str, known: tuple[str, ...]) -> str:
    """Return `Did you mean ...?`, or nothing when no known word is close."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"Did you mean `{close[0]}`?" if close else ""


def read_recipe(recipe: str) -> dict[str, Any]:
    """Return the settings of a recipe, packaged or a YAML file, as {`section.field`: value}.

    Raises:
        ConfigError: there is no such recipe, or it is not a mapping of sections.
    """
    try:
        if recipe.endswith(_SUFFIXES):
            text = Path(recipe).expanduser().read_text(encoding="utf-8")
        else:
            text = (resources.files("pipeline.recipes") / f"{recipe}.yaml").read_text(
                encoding="utf-8"
            )
        parsed = yaml.safe_load(text)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: `~somebody` has no home
        known = recipe_names()
        raise ConfigError(
            f"The recipe `{recipe}` cannot be read ({getattr(error, 'strerror', None) or error})",
            expected=f"one of {', '.join(known)}, or a .yaml file",
            hint=suggest_spelling(recipe, known),
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(
            f"The recipe {recipe} is not valid YAML: {describe_cause(error)}",
            hint="Correct the file and try again",
        ) from error
    parsed = {} if parsed is None else parsed
    if not isinstance(parsed, dict) or not all(
        isinstance(fields, dict) for fields in parsed.values()
    ):
        raise ConfigError(
            f"The recipe {recipe} is not a mapping",
            expected="sections with their settings, such as `train: {epochs: 5}`",
            received=f"{type(parsed).__name__}: {str(parsed)[:80]!r}",
            hint="Correct the file and try again",
        )
    for section in parsed:
        if section not in Config.model_fields:
            known = tuple(Config.model_fields)
            raise ConfigError(
                f"Unknown section `{section}` (from recipe {recipe})",
                expected=", ".join(known),
                hint=suggest_spelling(str(section), known),
            )
    return flatten(parsed)
