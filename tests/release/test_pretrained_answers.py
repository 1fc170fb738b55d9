"""`alexnet predict --network NAME --weights imagenet`: ImageNet's classes, without a dataset and
without training."""

import json

import pytest
from PIL import Image

from pipeline import api
from pipeline.cli.command import Invocation
from pipeline.cli.main import cli
from pipeline.errors import ConfigError
from pipeline.workspace.workspace import Workspace
from tests.photographs import load_photographs

LITE0 = {"model.network": "efficientnet_lite0", "model.weights": "imagenet"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of photographs that is also the place of the work directory."""
    folder = tmp_path_factory.mktemp("pretrained")
    for name, pixels in load_photographs().items():
        Image.fromarray(pixels).save(folder / f"{name.partition('.')[0]}.png")
    return folder


def predict(folder, **more):
    return list(api.predict([folder / "china.png", folder / "flower.png"], top=2, **more))


def test_answers_with_imagenet_s_classes(folder, capsys):
    workspace = Workspace(folder / "mlruns", settings=LITE0)
    china, flower = predict(folder, workspace=workspace)
    assert (china.guesses[0].name, china.guesses[0].number) == ("palace", 698)
    assert (flower.guesses[0].name, flower.guesses[0].number) == ("daisy", 985)
    (record,) = (folder / "mlruns" / "networks" / "stages").glob("build-*/artifact.json")
    known = json.loads(record.read_text())
    # The square of 224 of 256 pixels, as the weights were judged.
    assert (known["image_size"], known["short_side"]) == (224, 256)
    assert (known["pretrained"], known["weights_licence"]) == ("imagenet", "Apache-2.0")
    assert not (folder / "mlruns" / "mlflow.db").exists()
    written = record.stat().st_mtime_ns
    capsys.readouterr()
    words = ["predict", str(folder / "china.png"), "--network", "efficientnet_lite0"]
    words += ["--weights", "imagenet", "--workdir", str(folder / "mlruns"), "--json"]
    cli.main(args=words, standalone_mode=False, obj=Invocation(arguments=words))
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["top"][0]["class"] == "palace"
    assert record.stat().st_mtime_ns == written  # built once


def test_a_network_without_weights_is_refused(tmp_path):
    workspace = Workspace(tmp_path, settings={"model.network": "efficientnet_lite0"})
    with pytest.raises(ConfigError, match="--weights imagenet"):
        api.open_classifier(workspace=workspace)


def test_a_model_and_a_network_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="Received both"):
        api.open_classifier("model.keras", workspace=Workspace(tmp_path, settings=LITE0))


def test_a_network_without_weights_on_imagenet_is_named_with_those_that_have_them(tmp_path):
    settings = {"model.network": "small", "model.weights": "imagenet"}
    with pytest.raises(ConfigError, match="There are no weights on ImageNet for network small"):
        api.open_classifier(workspace=Workspace(tmp_path, settings=settings))
