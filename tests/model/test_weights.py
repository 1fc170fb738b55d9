"""A saved network's bytes depend on the network alone."""

import hashlib
import subprocess
import sys
import zipfile

import pytest

from pipeline.model.networks import build_network
from pipeline.model.weights import save_model
from tests.networks import model_config

BUILD = """
import sys
from pathlib import Path
from pipeline.config.model import ModelConfig
from pipeline.model.networks import build_network
from pipeline.model.weights import save_model
settings = ModelConfig(alexnet={"width_multiplier": 0.25})
network = build_network(
    settings, num_classes=3, channel_mean=(1, 2, 3), channel_std=(4, 5, 6)
)
save_model(network, Path(sys.argv[1]))
"""


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path):
    here = tmp_path / "here.keras"
    build_network(
        model_config(), num_classes=3, channel_mean=(9, 9, 9), channel_std=(9, 9, 9)
    )  # an earlier network must not matter
    save_model(
        build_network(
            model_config(width_multiplier=0.25),
            num_classes=3,
            channel_mean=(1, 2, 3),
            channel_std=(4, 5, 6),
        ),
        here,
    )
    subprocess.run(
        [sys.executable, "-c", BUILD, tmp_path / "there.keras"], check=True, capture_output=True
    )
    assert sha256(here) == sha256(tmp_path / "there.keras")


def test_saving_leaves_one_file_and_replaces_it_whole(tmp_path):
    path = tmp_path / "model.keras"
    path.write_bytes(b"an older file")
    save_model(
        build_network(
            model_config(width_multiplier=0.25),
            num_classes=3,
            channel_mean=(1, 2, 3),
            channel_std=(4, 5, 6),
        ),
        path,
    )
    assert [file.name for file in tmp_path.iterdir()] == ["model.keras"]
    assert zipfile.ZipFile(path).testzip() is None
