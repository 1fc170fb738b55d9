"""Every packaged recipe resolves, describes itself, and holds no default."""

from __future__ import annotations

from importlib import resources

import pytest

from pipeline.config.recipes import flatten, read_recipe, recipe_for, recipe_names
from pipeline.config.resolution import DEFAULT_RECIPE, resolve
from pipeline.config.settings import Config
from tests.claim_settings import reproduction_settings

RECIPES = (
    "cifar10",
    "digits",
    "fashion_mnist",
    "folder",
    "imagenet2012",
    "imagenette",
    "network",
    "reproduce_paper",
    "reproduce_quick",
)


def header(recipe: str) -> list[str]:
    """Return the comment lines above a recipe's first setting."""
    text = (resources.files("pipeline.recipes") / f"{recipe}.yaml").read_text(encoding="utf-8")
    lines = text.splitlines()
    return lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]


def command(recipe: str) -> list[str]:
    (line,) = (line for line in header(recipe) if line.startswith("# Command: "))
    return line.removeprefix("# Command: ").split()


def test_these_recipes_are_packaged():
    assert recipe_names() == RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_resolves_and_is_the_origin_of_its_settings(recipe):
    resolved = resolve(
        recipe=recipe,
        overrides={"data.dataset": "photos"} if recipe == "folder" else {},
        environment={},
    )
    assert resolved.recipe == recipe
    for key, value in read_recipe(recipe).items():
        assert resolved.flat()[key] == value
        assert resolved.origins[key] == f"recipe {recipe}"


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_recipe_repeats_a_default(recipe):
    defaults = flatten(Config().model_dump())
    assert [key for key, value in read_recipe(recipe).items() if defaults[key] == value] == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_header_says_what_it_is_and_what_to_expect(recipe):
    lines = header(recipe)
    assert not lines[0].startswith(("# Command:", "# Time:", "# Result:"))
    for word in ("Command", "Time", "Result"):
        (line,) = (line for line in lines if line.startswith(f"# {word}: "))
        assert len(line.removeprefix(f"# {word}: ")) > 5


@pytest.mark.parametrize(
    "recipe", [name for name in RECIPES if name != "network" and not name.startswith("reproduce")]
)
def test_the_command_of_the_header_uses_the_recipe(recipe):
    arguments = command(recipe)
    assert arguments[:2] == ["alexnet", "run"]
    overrides = (
        {"data.dataset": arguments[arguments.index("--dataset") + 1]}
        if "--dataset" in arguments
        else {}
    )
    with_command = resolve(overrides=overrides, environment={})
    assert with_command.recipe == recipe
    if recipe != "folder":
        assert with_command.config == resolve(recipe=recipe, environment={}).config


@pytest.mark.parametrize(
    ("dataset", "recipe"),
    [
        ("digits", "digits"),
        ("cifar10", "cifar10"),
        ("cifar10:3.0.2", "cifar10"),
        ("imagenette/320px-v2", "imagenette"),
        ("photographs/cats", "folder"),
        ("/photographs/digits", "folder"),
        ("./digits", "folder"),
        ("oxford_flowers102", "folder"),
        ("images.csv", "folder"),
    ],
)
def test_a_dataset_chooses_its_recipe(dataset, recipe):
    assert recipe_for(dataset) == recipe


def test_digits_is_the_default():
    assert DEFAULT_RECIPE == resolve(environment={}).recipe == "digits"


def test_imagenet_is_trained_as_in_the_paper():
    config = resolve(recipe="imagenet2012", environment={}).config
    assert (config.data.short_side, config.model.image_size, config.model.network) == (
        256,
        224,
        "paper",
    )
    assert (config.train.epochs, config.train.global_batch_size, config.train.learning_rate) == (
        90,
        128,
        0.01,
    )
    assert (config.train.momentum, config.train.weight_decay, config.train.schedule) == (
        0.9,
        5e-4,
        "plateau",
    )
    assert config.train.crop == "random"
    assert config.train.flip


def test_digits_are_never_mirrored():
    assert not resolve(recipe="digits", environment={}).config.train.flip


@pytest.mark.parametrize("profile", ["quick", "paper"])
def test_a_profile_is_the_recipe_that_its_command_uses(profile):
    arguments = command(f"reproduce_{profile}")
    assert arguments[:3] == ["alexnet", "reproduce", "all"]
    assert arguments[3:] == ([] if profile == "quick" else ["--profile", "paper"])
    assert reproduction_settings(profile).recipe == f"reproduce_{profile}"


def test_the_paper_profile_trains_as_the_imagenet_recipe_does():
    ours, recipe = (
        reproduction_settings("paper").config,
        resolve(recipe="imagenet2012", environment={}).config,
    )
    assert (ours.data, ours.model, ours.train) == (recipe.data, recipe.model, recipe.train)


def test_the_quick_profile_cuts_the_share_of_an_image_that_the_paper_cut():
    config = reproduction_settings("quick").config
    assert config.model.image_size / config.data.short_side == 224 / 256
    assert config.reproduce.seeds >= 3
