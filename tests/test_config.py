"""Where settings come from, and what is said of bad ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

import pytest
from pydantic import ValidationError

from pipeline.config.description import format_arguments, list_choices
from pipeline.config.recipes import read_recipe, suggest_spelling
from pipeline.config.resolution import (
    environment_settings,
    field_names,
    parse_assignments,
    resolve,
    setting_field,
)
from pipeline.config.settings import Config
from pipeline.errors import ConfigError, PipelineError


@pytest.fixture
def recipe(tmp_path):
    """Return a function that writes a recipe and returns its path."""

    def write(text: str | bytes) -> str:
        path = tmp_path / "mine.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def complaint(**arguments) -> str:
    """Return the sentence that resolving these settings ends in."""
    with pytest.raises(ConfigError) as caught:
        resolve(**({"environment": {}} | arguments))
    return str(caught.value)


class TestPrecedence:
    """Command line > environment > last command here > recipe > default."""

    KEY = "train.epochs"

    def layers(self, recipe, count):
        """Return the arguments of `resolve` with the lowest `count` layers set, each to its own
        number."""
        arguments = {"recipe": recipe("train: {epochs: 2}"), "environment": {}}
        if count >= 2:
            arguments["remembered"] = {self.KEY: 3}
        if count >= 3:
            arguments["environment"] = {"ALEXNET_TRAIN__EPOCHS": "4"}
        if count >= 4:
            arguments["overrides"] = {self.KEY: "5"}
        return arguments

    @pytest.mark.parametrize(
        ("count", "value", "origin"),
        [
            (1, 2, "recipe "),
            (2, 3, "last command here"),
            (3, 4, "environment"),
            (4, 5, "command line"),
        ],
    )
    def test_the_highest_layer_wins_and_is_named(self, recipe, count, value, origin):
        resolved = resolve(**self.layers(recipe, count))
        assert resolved.config.train.epochs == value
        assert resolved.origins[self.KEY].startswith(origin)

    def test_what_no_layer_sets_is_the_default(self, recipe):
        resolved = resolve(**self.layers(recipe, 4))
        assert resolved.config.train.momentum == Config().train.momentum
        assert resolved.origins["train.momentum"] == "default"

    def test_every_setting_has_an_origin(self):
        assert (
            set(resolve(environment={}).origins)
            == set(field_names())
            == set(resolve(environment={}).flat())
        )

    def test_a_recipe_may_be_empty(self, recipe):
        assert resolve(recipe=recipe("# nothing\n"), environment={}).config == Config()

    def test_the_process_environment_is_read_by_default(self, monkeypatch):
        monkeypatch.setenv("ALEXNET_MODEL__SEED", "7")
        assert resolve().config.model.seed == 7

    def test_the_environment_chooses_the_recipe_of_its_dataset(self):
        assert resolve(environment={"ALEXNET_DATA__DATASET": "cifar10"}).recipe == "cifar10"

    def test_the_command_line_chooses_before_the_environment(self):
        resolved = resolve(
            overrides={"data.dataset": "fashion_mnist"},
            environment={"ALEXNET_DATA__DATASET": "cifar10"},
        )
        assert (resolved.recipe, resolved.config.data.dataset) == ("fashion_mnist", "fashion_mnist")

    def test_a_named_recipe_stays_with_another_dataset(self):
        resolved = resolve(
            recipe="imagenette", overrides={"data.dataset": "photographs"}, environment={}
        )
        assert (resolved.recipe, resolved.config.data.dataset, resolved.config.model.network) == (
            "imagenette",
            "photographs",
            "paper",
        )


class TestReading:
    def test_one_thousandth_is_a_number_although_yaml_says_text(self, recipe):
        assert (
            resolve(
                recipe=recipe("train: {learning_rate: 1e-3}"), environment={}
            ).config.train.learning_rate
            == 0.001
        )

    def test_words_of_the_command_line_become_their_types(self):
        overrides = parse_assignments(
            (
                "train.flip=false",
                "train.learning_rate=2e-2",
                "train.devices=cpu:2",
                "tracking.uri=a=b",
            )
        )
        config = resolve(overrides=overrides, environment={}).config
        assert (
            config.train.flip,
            config.train.learning_rate,
            config.train.devices,
            config.tracking.uri,
        ) == (False, 0.02, "cpu:2", "a=b")

    @pytest.mark.parametrize("word", ["train.epochs", "train.epochs 5", ""])
    def test_an_assignment_needs_its_sign(self, word):
        with pytest.raises(
            ConfigError, match=r"section\.field=value, such as train\.epochs=5"
        ) as caught:
            parse_assignments((word,))
        assert repr(word) in str(caught.value)

    def test_variables_of_others_are_left_alone(self):
        assert environment_settings(
            {"ALEXNET_HOME": "/", "PATH": "/bin", "ALEXNET_TRAIN__GLOBAL_BATCH_SIZE": "64"}
        ) == {"train.global_batch_size": "64"}

    def test_settings_are_frozen(self):
        with pytest.raises(ValidationError, match="frozen"):
            Config().train.epochs = 5


class TestUnknown:
    """A name that does not exist is refused with the one that was meant."""

    @pytest.mark.parametrize(
        ("key", "meant"),
        [
            ("train.epoch", "train.epochs"),
            ("train.lr_rate", "train."),
            ("model.imagesize", "model.image_size"),
            ("data.datset", "data.dataset"),
        ],
    )
    def test_setting(self, key, meant):
        sentence = complaint(overrides={key: "5"})
        assert f"Unknown setting `{key}` (from command line)." in sentence
        assert f"Did you mean `{meant}" in sentence
        assert "alexnet config" in sentence

    def test_setting_that_resembles_nothing(self):
        sentence = complaint(overrides={"xyzzy": "5"})
        assert "Unknown setting `xyzzy`" in sentence
        assert "Did you mean" not in sentence

    def test_section_in_a_recipe(self, recipe):
        sentence = complaint(recipe=recipe("trian: {epochs: 5}"))
        assert "Unknown section `trian` (from recipe " in sentence
        assert "Did you mean `train`?" in sentence

    def test_empty_section_in_a_recipe(self, recipe):
        assert "Unknown section `trian`" in complaint(recipe=recipe("trian: {}"))

    def test_environment_variable(self):
        sentence = complaint(environment={"ALEXNET_TRAIN__EPOCS": "5"})
        assert "Unknown setting `train.epocs` (from environment)." in sentence
        assert "Did you mean `train.epochs`?" in sentence

    def test_recipe(self):
        sentence = complaint(recipe="cifar")
        assert "The recipe `cifar` cannot be read" in sentence
        assert "Did you mean `cifar10`?" in sentence
        assert "digits, fashion_mnist" in sentence

    def test_suggest_spelling_is_silent_when_nothing_is_near(self):
        assert suggest_spelling("xyzzy", ("train.epochs",)) == ""


class TestRefused:
    """A value that cannot be is named with its place, its value and what was expected."""

    @pytest.mark.parametrize(
        ("key", "value", "expected"),
        [
            ("train.epochs", "many", "valid integer"),
            ("train.epochs", "2.5", "valid integer"),
            ("train.epochs", "0", "greater than or equal to 1"),
            ("train.learning_rate", "nan", "finite number"),
            ("train.learning_rate", "inf", "finite number"),
            ("train.learning_rate", "-1", "greater than 0"),
            ("train.momentum", "1", "less than 1"),
            ("train.flip", "perhaps", "valid boolean"),
            ("train.schedule", "steps", "'plateau', 'step', 'cosine' or 'constant'"),
            ("train.devices", "cpu:0", "match pattern"),
            ("train.seed", "-1", "greater than or equal to 0"),
            ("data.dataset", "", "at least 1 character"),
            ("data.validation_fraction", "0.5", "less than 0.5"),
        ],
    )
    def test_value(self, key, value, expected):
        sentence = complaint(recipe="digits", overrides={key: value})
        assert f"`{key}` " in sentence
        assert expected in sentence
        assert f"Received {value!r} (from command line)." in sentence

    def test_each_bad_setting_is_named_with_its_origin(self, recipe):
        sentence = complaint(
            recipe=recipe("train: {epochs: 0}"),
            environment={"ALEXNET_MODEL__DROPOUT": "1"},
            overrides={"data.short_side": "9"},
        )
        assert (
            "`train.epochs` should be greater than or equal to 1. Received 0 (from recipe "
            in sentence
        )
        assert "`model.dropout` should be less than 1. Received '1' (from environment)." in sentence
        assert (
            "`data.short_side` should be greater than or equal to 16. Received '9' (from command"
            " line)." in sentence
        )

    def test_a_network_larger_than_its_images(self):
        sentence = complaint(overrides={"model.image_size": "48"})
        assert "model.image_size (48) must not exceed data.short_side (32)" in sentence

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("24by40", "should be a number of pixels, or height x width such as 224x160"),
            ("24x40x3", "should be a number of pixels, or height x width such as 224x160"),
            ("", "should be a number of pixels, or height x width such as 224x160"),
            ("8x40", "should be greater than or equal to 16"),
            ("24x2048", "should be less than or equal to 1024"),
        ],
    )
    def test_a_size_that_is_none(self, value, expected):
        assert (
            f"`model.image_size` {expected}. Received {value!r} (from command line)."
            in complaint(overrides={"model.image_size": value})
        )

    def test_a_wide_network_larger_than_its_images(self):
        sentence = complaint(overrides={"model.image_size": "24x48"})
        assert "model.image_size (24x48) must not exceed data.short_side (32)" in sentence

    def test_a_section_where_a_value_belongs(self, recipe):
        sentence = complaint(recipe=recipe("train: {epochs: {first: 5}}"))
        assert "`train.epochs` should be a valid integer. Received {'first': 5}" in sentence

    def test_truth_where_a_number_belongs(self, recipe):
        assert "`train.epochs` should be a number, not true or false. Received True" in complaint(
            recipe=recipe("train: {epochs: yes}")
        )

    def test_images_of_your_own_without_images(self):
        assert "Type --dataset PATH as well" in complaint(recipe="folder")


class TestRecipeFiles:
    def test_a_file_that_is_not_there(self, tmp_path):
        sentence = complaint(recipe=str(tmp_path / "absent.yaml"))
        assert (
            f"The recipe `{tmp_path / 'absent.yaml'}` cannot be read (No such file or directory)"
            in sentence
        )

    def test_a_folder(self, tmp_path):
        (tmp_path / "folder.yaml").mkdir()
        assert "(Is a directory)" in complaint(recipe=str(tmp_path / "folder.yaml"))

    def test_not_text(self, recipe):
        path = recipe(b"train: {epochs: 5} # \xff\xfe")
        sentence = complaint(recipe=path)
        assert path in sentence
        assert "utf-8" in sentence

    def test_not_yaml(self, recipe):
        path = recipe("train: {epochs: 5\n")
        sentence = complaint(recipe=path)
        assert f"The recipe {path} is not valid YAML" in sentence
        assert "line " in sentence
        assert "\n" not in sentence

    def test_control_characters(self, recipe):
        assert "is not valid YAML" in complaint(recipe=recipe("train: {epochs: \x00}"))

    def test_code_is_not_run(self, recipe):
        assert "is not valid YAML" in complaint(
            recipe=recipe("train: !!python/object/apply:os.getcwd []")
        )

    @pytest.mark.parametrize(
        ("text", "kind"),
        [
            ("- 1\n- 2", "list"),
            ("just words", "str"),
            ("5", "int"),
            ("train: 5", "dict"),
            ("train:", "dict"),
            ("- ", "list"),
        ],
    )
    def test_not_a_mapping_of_sections(self, recipe, text, kind):
        sentence = complaint(recipe=recipe(text))
        assert "Expected sections with their settings, such as `train: {epochs: 5}`." in sentence
        assert f"Received {kind}: " in sentence


def test_settings_errors_end_a_command_as_usage_errors_do():
    assert issubclass(ConfigError, PipelineError)
    assert ConfigError.exit_code == 2


def test_a_dataset_with_a_recipe_of_its_name_is_what_that_recipe_says():
    resolved = resolve(overrides={"data.dataset": "imagenette"}, environment={})
    assert resolved.recipe == "imagenette"
    assert (
        resolved.config.data.dataset
        == read_recipe("imagenette")["data.dataset"]
        == "imagenette/320px-v2"
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {
                "train.gradient_accumulation_steps": 3,
                "train.devices": "cpu:2",
                "train.global_batch_size": 32,
            },
            r"multiple of 6 for its devices \(train.gradient_accumulation_steps is 3\).*=36",
        ),
        (
            {"train.mixup": 0.2, "train.global_batch_size": 33},
            r"multiple of 2 for its devices \(MixUp and CutMix work on pairs\).*=34",
        ),
        (
            {"train.cutmix": 1, "train.global_batch_size": 34, "train.devices": "cpu:2"},
            r"multiple of 4 .*=36",
        ),
        (
            {"train.global_batch_size": 33, "train.devices": "cpu:2"},
            r"multiple of 2 for its devices; type .*=34",
        ),
    ],
)
def test_batches_are_shared_evenly(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        resolve(overrides=settings, environment={})


class TestSubSections:
    """A setting of a sub-section has the same ways in as any other."""

    KEY = "model.alexnet.activation"

    def test_each_way_in(self, recipe):
        written = recipe("model: {alexnet: {activation: tanh}, seed: 3}")
        resolved = resolve(recipe=written, environment={})
        assert resolved.config.model.alexnet.activation == "tanh"
        assert resolved.config.model.alexnet.width_multiplier == 1
        assert resolved.origins[self.KEY] == f"recipe {written}"
        assert resolved.flat()[self.KEY] == "tanh"
        environment = {"ALEXNET_MODEL__ALEXNET__ACTIVATION": "elu"}
        assert environment_settings(environment) == {self.KEY: "elu"}
        resolved = resolve(recipe=written, environment=environment)
        assert (resolved.flat()[self.KEY], resolved.origins[self.KEY]) == ("elu", "environment")
        overrides = parse_assignments((f"{self.KEY}=gelu",))
        resolved = resolve(recipe=written, overrides=overrides, environment=environment)
        assert resolved.config.model.alexnet.activation == "gelu"
        assert resolved.config.model.seed == 3

    def test_every_field_has_a_name_of_its_own(self):
        names = field_names()
        assert {"model.seed", self.KEY} < set(names)
        assert "model.alexnet" not in names
        assert all(setting_field(name).description for name in names)

    def test_a_mapping_that_is_a_value_stays_one(self, recipe):
        resolved = resolve(recipe=recipe("data: {renamed_classes: {a: b}}"), environment={})
        assert resolved.flat()["data.renamed_classes"] == {"a": "b"}

    def test_words_of_a_choice(self):
        assert list_choices("model.alexnet.fidelity") == ("code", "paper")

    def test_near_misses(self, recipe):
        assert "Did you mean `model.alexnet.fidelity`?" in complaint(
            overrides={"model.fidelity": "paper"}
        )
        assert "Unknown setting `model.alexnet` " in complaint(
            recipe=recipe("model: {alexnet: paper}")
        )
        assert "Unknown setting `model.alexnet.aktivation`" in complaint(
            recipe=recipe("model: {alexnet: {aktivation: relu}}")
        )

    def test_a_bad_value_is_named_with_its_origin(self, recipe):
        sentence = complaint(recipe=recipe("model: {alexnet: {width_multiplier: 9}}"))
        assert "`model.alexnet.width_multiplier` should be less than or equal to 4." in sentence
        assert "Received 9 (from recipe " in sentence

    def test_unknown_fields_have_no_declaration(self):
        for name in ("model.alexnet.nothing", "model.seed.nothing", "nothing"):
            with pytest.raises(KeyError):
                setting_field(name)


class TestSizesOfTheNetwork:
    """What resolve() makes of sizes that nobody gave."""

    NETWORKS: ClassVar = {
        name: SimpleNamespace(
            image_size=size,
            min_image_size=smallest,
            family=family,
            default_weights=weights,
            default_dropout=0.5 if family == "alexnet" else 0.2,
        )
        for name, size, smallest, family, weights in (
            ("small", 64, 16, "alexnet", ""),
            ("owt", 224, 63, "alexnet", ""),
            ("keras/InceptionV3", 299, 75, "keras", "imagenet"),
            ("efficientnet_lite0", 224, 32, "efficientnet_lite", "imagenet"),
        )
    }

    def found(self, overrides, recipe=None):
        resolved = resolve(
            recipe, overrides, environment={}, find_network=self.NETWORKS.__getitem__
        )
        keys = ("model.image_size", "data.short_side")
        return [resolved.flat()[key] for key in keys], [resolved.origins[key] for key in keys]

    @pytest.mark.parametrize(
        ("network", "size", "side"),
        [("owt", 224, 256), ("alexnet/owt", 224, 256), ("keras/InceptionV3", 299, 341)],
    )
    def test_they_follow_it(self, network, size, side):
        settings = {"model.network": network, "data.dataset": "cifar10"}
        assert self.found(settings) == ([size, side], ["network", "network"])

    @pytest.mark.parametrize("network", [{}, {"model.network": "small"}])
    def test_those_of_the_default_network_are_the_defaults(self, network):
        settings = {"data.dataset": "cifar10", **network}
        assert self.found(settings) == ([32, 36], ["default", "default"])

    def test_a_folder_has_a_pretrained_backbone_and_what_replaces_it_its_own_size(self):
        folder = {"data.dataset": "photos"}
        assert self.found(folder)[0] == [224, 256]
        assert self.found(folder | {"model.network": "alexnet/small"})[0] == [64, 73]

    @pytest.mark.parametrize(
        ("given", "weights"),
        [
            ({}, "imagenet"),
            ({"model.network": "small"}, ""),
            ({"model.network": "keras/InceptionV3"}, "imagenet"),
            ({"model.weights": "none"}, ""),
            ({"model.weights": "own.keras"}, "own.keras"),
        ],
    )
    def test_weights_are_those_that_are_published_for_it(self, given, weights):
        settings = {"data.dataset": "photos", **given}
        found = resolve(None, settings, environment={}, find_network=self.NETWORKS.__getitem__)
        assert found.config.model.weights == weights

    @pytest.mark.parametrize(
        ("given", "dropout", "origin"),
        [
            ({}, 0.2, "network"),
            ({"model.network": "small"}, 0.5, "default"),
            ({"model.dropout": 0.4}, 0.4, "command line"),
            ({"model.dropout": 0.5}, 0.5, "command line"),
        ],
    )
    def test_dropout_is_usual_for_it(self, given, dropout, origin):
        settings = {"data.dataset": "photos", **given}
        found = resolve(None, settings, environment={}, find_network=self.NETWORKS.__getitem__)
        assert (found.config.model.dropout, found.origins["model.dropout"]) == (dropout, origin)

    def test_what_is_given_stays(self):
        settings = {"data.dataset": "cifar10", "model.network": "owt"}
        sizes, _ = self.found(settings | {"model.image_size": "64"})
        assert sizes == [64, 73]
        sizes, origins = self.found(settings | {"data.short_side": "300"})
        assert (sizes, origins) == ([224, 300], ["network", "command line"])
        assert self.found(settings, recipe="imagenet2012")[0] == [224, 256]

    @pytest.mark.parametrize("size", ["224x160", "160x224"])
    def test_the_longer_side_decides_how_large_images_are_kept(self, size):
        settings = {"model.network": "owt", "data.dataset": "cifar10", "model.image_size": size}
        assert self.found(settings)[0] == [size, 256]
        assert self.found(settings | {"data.short_side": "224"})[0] == [size, 224]

    def test_a_recipe_keeps_its_sizes_where_the_network_takes_them(self):
        assert self.found({"model.network": "small"}, recipe="digits")[0] == [28, 32]
        assert self.found({"model.network": "owt"}, recipe="digits")[0] == [224, 256]

    def test_what_a_recipe_says_of_alexnet_is_for_alexnet(self):
        def width(network, **more):
            found = resolve(
                "digits",
                {"model.network": network, **more},
                environment={},
                find_network=self.NETWORKS.__getitem__,
            )
            return found.config.model.alexnet.width_multiplier

        assert width("small") == width("owt") == 0.5
        assert width("keras/InceptionV3") == 1
        typed = {"model.alexnet.width_multiplier": "0.25"}  # refused later, with a reason
        assert width("keras/InceptionV3", **typed) == 0.25


class TestImageSize:
    """`model.image_size` is one number, or height x width."""

    @pytest.mark.parametrize(
        ("given", "meant", "kept"),
        [
            (28, 28, 28),
            ("28", 28, 28),
            (" 28 ", 28, 28),
            ("28x28", 28, 28),
            ("24x32", (24, 32), "24x32"),
            ("24 X 32", (24, 32), "24x32"),
            ([24, 32], (24, 32), "24x32"),
            ((28, 28), 28, 28),
        ],
    )
    def test_it_is_read_and_kept(self, given, meant, kept):
        found = resolve("digits", {"model.image_size": given}, environment={})
        assert found.config.model.image_size == meant
        assert found.flat()["model.image_size"] == kept
        for mode in ("python", "json"):
            dumped = found.config.model_dump(mode=mode)
            assert dumped["model"]["image_size"] == kept
            assert type(dumped["model"]["image_size"]) is type(kept)
            assert Config.model_validate(dumped) == found.config
        again = resolve("digits", remembered=found.flat(), environment={})
        assert again.config == found.config

    def test_recipe_environment_and_arguments_write_it_alike(self, recipe):
        path = recipe("model: {image_size: 24x32}")
        from_recipe = resolve(path, environment={})
        from_environment = resolve("digits", environment={"ALEXNET_MODEL__IMAGE_SIZE": "24x32"})
        for found in (from_recipe, from_environment):
            assert found.config.model.image_size == (24, 32)
        assert format_arguments({"model.image_size": "24x32"}) == [
            "--set",
            "model.image_size=24x32",
        ]
