"""What is known of one setting: its description, the values it may have, how it is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from pipeline.config.resolution import setting_field


def describe_setting(key: str) -> str:
    """Return what a setting means, with unit and range."""
    return setting_field(key).description or ""


def list_choices(key: str) -> tuple[str, ...]:
    """Return the words that a setting may be, such as `sgd` for `train.optimizer`."""
    return tuple(word for word in get_args(setting_field(key).annotation) if isinstance(word, str))


def format_setting(value: object) -> str:
    """Return a setting's value as the command line takes it."""
    if isinstance(value, Mapping):
        return ",".join(f"{old}={new}" for old, new in value.items())
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def format_arguments(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as arguments of a command line: `--set`, `train.epochs=5`, ..."""
    return [
        argument
        for key, value in settings.items()
        for argument in ("--set", f"{key}={format_setting(value)}")
    ]
