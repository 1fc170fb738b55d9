"""What a change of the registry of networks makes stale: the networks whose numbers changed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline
from pipeline.engine.fingerprint import code_parts

FINGERPRINTS = """
import json
from pathlib import Path
from types import SimpleNamespace
from pipeline.config.settings import Config
from pipeline.data.stage import ingest
from pipeline.engine.runner import Runner
from pipeline.evaluate.stage import evaluate
from pipeline.model.stage import build
from pipeline.train.stage import train
stages = (ingest, build, train, evaluate)
record = SimpleNamespace(identity=lambda: "the same", pretrained="")
records = {stage.name: record for stage in stages}
runner = Runner(stages, Path("nowhere"), observer=None)
parts = {stage.name: runner.fingerprint(stage, Config(), records).parts for stage in stages[1:]}
print(json.dumps(parts))
"""
ROW = """
    AlexNetRow(
        name="tiny",
        summary="a network of a test",
        min_image_size=16,
        image_size=32,
        layers=AlexNetLayers(_CONVOLUTIONS_OF_2012, hidden=(64,)),
    ),
)


def networks_with_weights"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Return a function (edit of alexnet_rows.py) -> fingerprint parts of each stage, in a copy."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(
        Path(pipeline.__file__).parent,
        folder / "pipeline",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    file = folder / "pipeline" / "model" / "alexnet_rows.py"
    original = file.read_text()

    def parts(before="", after=""):
        assert original.count(before) == 1 or not before
        file.write_text(original.replace(before, after) if before else original)
        words = [sys.executable, "-c", FINGERPRINTS]
        done = subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True)
        return json.loads(done.stdout)

    return parts


@pytest.fixture(scope="module")
def usual(package):
    return package()


def test_a_new_row_makes_nothing_stale(package, usual):
    assert package("\n)\n\n\ndef networks_with_weights", ROW) == usual


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "Convolution(48, 5, double_stride_from=64), 128",
            "Convolution(48, 5, double_stride_from=64), 136",
        ),
        ("hidden=(1024, 1024)", "hidden=(1024, 1032)"),
    ],
)
def test_another_number_of_the_network_in_use_makes_build_stale_and_says_so(
    before, after, package, usual
):
    found = package(before, after)
    assert (found["train"], found["evaluate"]) == (usual["train"], usual["evaluate"])
    differing = [name for name, value in usual["build"].items() if found["build"][name] != value]
    assert differing == ["code network small"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('Convolution(32, 5, pool="mean")', 'Convolution(40, 5, pool="mean")'),  # cifar
        ("_pattern_of_2012(Convolution(64, 11", "_pattern_of_2012(Convolution(72, 11"),  # owt
        ("the 2012 pattern for images of 28-96 pixels", "the 2012 pattern, small"),
        ("Leave fidelity out", "Remove fidelity"),
    ],
)
def test_another_row_or_wording_makes_nothing_stale(before, after, package, usual):
    assert package(before, after) == usual


def test_what_is_made_of_a_network_knows_neither_the_registry_nor_a_family():
    for module in ("pipeline.train.stage", "pipeline.evaluate.stage", "pipeline.release.promotion"):
        assert {name for name in code_parts(module) if name.startswith("code pipeline.model")} <= {
            "code pipeline.model.batch_limit",
            "code pipeline.model.graph",
            "code pipeline.model.layers",
            "code pipeline.model.macs",
            "code pipeline.model.safety",
            "code pipeline.model.signal",
            "code pipeline.model.weights",
        }
