"""The arms of the experiments: settings that differ from the control's in one thing."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from pipeline.config.model import ModelConfig
from pipeline.config.recipes import flatten
from pipeline.config.section import Section
from pipeline.config.settings import Config
from pipeline.config.train import TrainConfig
from pipeline.errors import ConfigError
from pipeline.model.networks import require_network_settings

# The rate of a seed is chosen by trainings with another seed that is never measured, so that no
# measured training is selected by chance.
_TUNING_SEEDS = 1000
# Images with a longer side do not suit the four-layer network of CIFAR-10 and the plain networks.
MAX_SMALL_IMAGE = 64
# The activations of the claims about them.
ACTIVATIONS = ("relu", "tanh", "sigmoid")


@dataclass(frozen=True)
class Arm:
    """One way to train, which differs from another arm only in the subject of the claim.

    The learning rate is chosen for each seed: of the rates tried around the one of the settings,
    the one with the lowest `criterion` after `tuning_epochs`. The chance in that choice differs
    from seed to seed, and so is in the interval of the effect.

    Attributes:
        name: of the experiment folders and runs.
        label: in tables and figures.
        settings: `section.field` -> value, where they differ from the recipe's.
        images: number of training images; 0 for all.
        depth: layers of a plain network to train instead; 0 for the network of the settings.
        goal: training error, in [0, 1], at which the training ends early; 0 for none.
        criterion: the number of an epoch by which the learning rate is chosen.
        tuning_epochs: epochs of the short trainings that choose it.
    """

    name: str
    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    images: int = 0
    depth: int = 0
    goal: float = 0.0
    criterion: str = "validation_loss"
    tuning_epochs: int = 2

    def make_spec(self, config: Config, seed: int, rate: float | None = None) -> dict[str, Any]:
        """Return everything that decides the training, as JSON can hold it.

        Args:
            config: settings of the recipe.
            seed: of the initial weights and of the training.
            rate: learning rate; None for the one of the settings.

        Raises:
            ConfigError: the recipe's network does not have what the arm changes.
        """
        settings = {**self.settings, "model.seed": seed, "train.seed": seed}
        settings |= {} if rate is None else {"train.learning_rate": rate}
        try:
            own = Config.model_validate(apply_settings(config.model_dump(), settings))
            require_network_settings(own)
        except ValidationError as error:
            why = "; ".join(
                str(item["msg"]).removeprefix("Value error, ") for item in error.errors()
            )
            raise ConfigError(
                f"The arm {self.name} cannot be made of these settings: {why}."
            ) from error
        except ConfigError as error:
            raise ConfigError(
                f"The arm {self.name} cannot be made of these settings: {error}"
            ) from error
        return {
            "model": own.model.model_dump(mode="json"),
            "train": own.train.model_dump(mode="json"),
            "images": self.images,
            "depth": self.depth,
            "goal": self.goal,
        }

    def make_tuning_spec(self, config: Config, seed: int) -> dict[str, Any]:
        """Return everything that decides the choice of the learning rate of a seed.

        A training with the same settings, its schedule included, but shorter.
        """
        spec = self.make_spec(config, _TUNING_SEEDS + seed)
        spec["train"] |= {"epochs": self.tuning_epochs}
        return spec | {"criterion": self.criterion, "goal": 0.0}


def make_baseline_arm(config: Config) -> Arm:
    """Return the arm with the recipe's settings, which every ablation is compared with."""
    return Arm(
        "baseline",
        "as in 2012",
        images=config.reproduce.images,
        tuning_epochs=config.reproduce.tuning_epochs,
    )


def list_no_arms(_config: Config) -> tuple[Arm, ...]:
    """Return no arm, for claims that train no network to its end."""
    return ()


def list_baseline_arm(config: Config) -> tuple[Arm, ...]:
    """Return the baseline alone, for claims that examine trained networks."""
    return (make_baseline_arm(config),)


def make_changed_arm(config: Config, name: str, label: str, settings: Mapping[str, Any]) -> Arm:
    """Return the baseline arm with some settings changed, `section.field` -> value."""
    return dataclasses.replace(make_baseline_arm(config), name=name, label=label, settings=settings)


def apply_settings(sections: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Set the values of `section.field` names in nested settings, and return these.

    Args:
        sections: nested settings, which are changed.
        settings: `section.field` -> value; a field may be in a section of a section.
    """
    for name, value in settings.items():
        *path, field_name = name.split(".")
        section = sections
        for part in path:
            section = section[part]
        section[field_name] = value
    return sections


def list_small_settings(
    activation: str, image_size: int, *, epochs: int, learning_rate: float
) -> dict[str, Any]:
    """Return all settings of a four-layer network of CIFAR-10 without any regularization.

    Args:
        activation: of its hidden layers.
        image_size: in pixels.
        epochs: of the training, at a constant learning rate.
        learning_rate: the first one that is tried.
    """
    model = ModelConfig.model_validate(
        {"network": "cifar", "image_size": image_size, "alexnet": {"activation": activation}}
    )
    train = TrainConfig(
        epochs=epochs,
        schedule="constant",
        learning_rate=learning_rate,
        weight_decay=0,
        crop="center",
        flip=False,
    )
    return flatten_sections(model=model, train=train)


def flatten_sections(**sections: Section) -> dict[str, Any]:
    """Return every field of whole sections as `section.field` -> value."""
    return flatten({name: section.model_dump() for name, section in sections.items()})


def order_trainings(arms: tuple[Arm, ...], seeds: int) -> Iterator[tuple[Arm, int]]:
    """Yield the trainings in order: all arms of one seed, then all of the next."""
    return ((arm, seed) for seed, arm in itertools.product(range(seeds), arms))
