"""Which settings are in force: command line > environment > recipe > network > default.

A setting is named `section.field`, or `section.subsection.field`. The command line gives
`--set train.epochs=5`, the environment `ALEXNET_TRAIN__EPOCHS=5`, a recipe is a YAML file of
sections.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pipeline.config.recipes import (
    ANY_IMAGES,
    flatten,
    read_recipe,
    recipe_for,
    suggest_spelling,
)
from pipeline.config.section import Section, section_type
from pipeline.config.settings import Config
from pipeline.errors import ConfigError
from pipeline.image_size import ImageSize, read_image_size, sides_of

ENVIRONMENT_PREFIX = "ALEXNET_"
DEFAULT_RECIPE = "digits"


class Network(Protocol):
    """What settings follow from: sizes in pixels, weights, dropout and family."""

    @property
    def image_size(self) -> ImageSize:
        """Natural size."""

    @property
    def min_image_size(self) -> int:
        """Smallest height and width."""

    @property
    def family(self) -> str:
        """Such as `alexnet`."""

    @property
    def default_weights(self) -> str:
        """What `model.weights=auto` means."""

    @property
    def default_dropout(self) -> float:
        """What `model.dropout` is where it is not given."""


@dataclass(frozen=True)
class Resolved:
    """The settings in force, and where each came from."""

    config: Config
    recipe: str
    origins: dict[str, str]

    def flat(self) -> dict[str, Any]:
        """Return `section.field` -> value for every setting."""
        return flatten(self.config.model_dump())


def field_names() -> tuple[str, ...]:
    """Return every `section.field` there is."""
    return tuple(flatten(Config().model_dump()))


def setting_field(key: str) -> FieldInfo:
    """Return the declaration of a setting: its type, default, range and description.

    Raises:
        KeyError: there is no such setting.
    """
    *sections, name = key.split(".")
    kind: type[Section] = Config
    for section in sections:
        inner = section_type(kind, section)
        if inner is None:
            raise KeyError(key)
        kind = inner
    return kind.model_fields[name]


def environment_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the settings given as `ALEXNET_SECTION__FIELD`, sub-sections with one more `__`."""
    return {
        name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", "."): value
        for name, value in environment.items()
        if name.startswith(ENVIRONMENT_PREFIX) and "__" in name
    }


def parse_assignments(assignments: tuple[str, ...]) -> dict[str, str]:
    """Return `--set section.field=value` words as a mapping."""
    for word in assignments:
        if "=" not in word:
            raise ConfigError(
                "--set names no setting",
                expected="section.field=value, such as train.epochs=5",
                received=repr(word),
            )
    return dict(word.split("=", 1) for word in assignments)


def resolve(
    recipe: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    remembered: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    find_network: Callable[[str], Network] | None = None,
) -> Resolved:
    """Return the settings in force.

    Args:
        recipe: name of a packaged recipe or a YAML file; by default the one that fits
            `data.dataset`.
        overrides: `section.field` -> value from the command line; the last word.
        remembered: `section.field` -> value of stages already finished in the work directory; above
            the recipe.
        environment: variables to read `ALEXNET_SECTION__FIELD` from; `os.environ` by default.
        find_network: returns what is known of a network. Where nothing above says otherwise,
            `model.image_size` is the natural size of `model.network`, and `data.short_side` leaves
            room for crops; `model.dropout` is usual for it; their origin is `network`. What a
            recipe says of an AlexNet does not count for another family, nor its size where the
            network cannot take it.

    Raises:
        ConfigError: a setting is unknown, of the wrong type or out of range.
    """
    overrides = dict(overrides or {})
    from_environment = environment_settings(os.environ if environment is None else environment)
    dataset = overrides.get("data.dataset", from_environment.get("data.dataset"))
    name = recipe or (recipe_for(str(dataset)) if dataset is not None else DEFAULT_RECIPE)
    from_recipe = read_recipe(name)
    if dataset == name and "data.dataset" in from_recipe and not Path(name).is_dir():
        overrides.pop(
            "data.dataset", None
        )  # `--dataset imagenette` means what the recipe of that name says
        from_environment.pop("data.dataset", None)
    if name == ANY_IMAGES and dataset is None and "data.dataset" not in (remembered or {}):
        raise ConfigError(
            "The recipe `folder` names no images",
            expected="a folder or a CSV manifest of your own images",
            hint="Type --dataset PATH as well",
        )
    layers: tuple[tuple[str, Mapping[str, Any]], ...] = (
        (f"recipe {name}", from_recipe),
        ("last command here", remembered or {}),
        ("environment", from_environment),
        ("command line", overrides),
    )
    nested: dict[str, Any] = {}
    origins = dict.fromkeys(field_names(), "default")
    for origin, settings in layers:
        for key, value in settings.items():
            _require_known(key, origin)
            _put_setting(nested, key, value)
            origins[key] = origin
    if find_network is not None:
        _follow_network(nested, origins, find_network, from_recipe.get("model.network"))
    try:
        config = Config.model_validate(nested)
    except ValidationError as error:
        raise ConfigError(
            _describe_problems(error, origins), hint="Type `alexnet config` to see every setting"
        ) from error
    return Resolved(config=config, recipe=name, origins=origins)


def _follow_network(
    nested: dict[str, Any],
    origins: dict[str, str],
    find_network: Callable[[str], Network],
    recipe_network: str | None,
) -> None:
    """Put the sizes, weights and dropout that follow from the network, unless they were given.

    The default network has the default sizes, unless it replaces that of the recipe.
    """
    model = nested.setdefault("model", {})
    name = model.get("network")
    if model.get("weights") == "auto":
        known = find_network(str(name or Config().model.network).removeprefix("alexnet/"))
        model["weights"] = known.default_weights
    if isinstance(name, str):
        network = find_network(name.removeprefix("alexnet/"))
        _drop_recipe_of_another_network(nested, origins, network)
        size, defaults = network.image_size, Config().model
        replaces = recipe_network is not None or name.removeprefix("alexnet/") != defaults.network
        free = origins["model.image_size"] == "default" and replaces
        if free and size != defaults.image_size:
            model["image_size"], origins["model.image_size"] = size, "network"
        free = origins["model.dropout"] == "default"
        if free and network.default_dropout != defaults.dropout:
            model["dropout"], origins["model.dropout"] = network.default_dropout, "network"
    wanted = _find_sides(model)
    given = origins["data.short_side"] != "default"
    if not given and wanted and max(wanted) > Config().data.short_side:
        _put_setting(nested, "data.short_side", leave_room_for_crops(max(wanted)))
        origins["data.short_side"] = "network"


def _find_sides(model: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the height and width that the settings name; None where they name none."""
    try:
        return sides_of(read_image_size(model.get("image_size")))
    except ValueError:  # refused later, with its origin
        return None


def _drop_recipe_of_another_network(
    nested: dict[str, Any], origins: dict[str, str], network: Network
) -> None:
    """Remove what a recipe says of a network that another one replaces."""
    dropped = []
    if network.family != "alexnet":
        dropped += [key for key in origins if key.startswith("model.alexnet.")]
    sides = _find_sides(nested["model"])
    from_recipe = origins["model.image_size"].startswith("recipe ")
    if sides and from_recipe and min(sides) < network.min_image_size:
        dropped += ["model.image_size", "data.short_side"]
    for key in dropped:
        if origins[key].startswith("recipe "):
            _remove_setting(nested, key)
            origins[key] = "default"


def _remove_setting(nested: dict[str, Any], key: str) -> None:
    *sections, name = key.split(".")
    for section in sections:
        nested = nested[section]
    del nested[name]


def leave_room_for_crops(longer_side: int) -> int:
    """Return the side, in pixels, of the squares from which crops are cut: 256 for 224.

    That is what the paper and most of ImageNet's networks take (section 4.1), and 36 for 32.
    """
    return longer_side * 8 // 7


def _put_setting(nested: dict[str, Any], key: str, value: object) -> None:
    """Set a value by the name of its setting in {section: {field: value}}."""
    *sections, name = key.split(".")
    for section in sections:
        nested = nested.setdefault(section, {})
    nested[name] = value


def _require_known(key: str, origin: str) -> None:
    """Raise a ConfigError for a setting that does not exist."""
    known = field_names()
    if key not in known:
        raise ConfigError(
            f"Unknown setting `{key}` (from {origin})",
            hint=f"{suggest_spelling(key, known)} Type `alexnet config` to see all settings",
        )


def _describe_problems(error: ValidationError, origins: Mapping[str, str]) -> str:
    """Return what pydantic found wrong, one sentence per setting."""
    sentences = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
        where = f"`{key}` " if key else ""
        received = (
            f" Received {item['input']!r} (from {origins.get(key, 'settings')})." if key else ""
        )
        sentences.append(f"{where}{message}.{received}")
    return " ".join(sentences)
