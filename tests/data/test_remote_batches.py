"""Batches from other hosts, which are processes on this one."""

import socket
import subprocess
import sys

import numpy as np
import pytest

from pipeline.config.train import TrainConfig
from pipeline.data.loader import load_split
from pipeline.data.training_batches import make_training_batches
from pipeline.errors import ConfigError


def free_port():
    """Return a port of two free ones in a row, as far as one can know."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("localhost", 0))
            try:
                other.bind(("localhost", one.getsockname()[1] + 1))
            except OSError:
                continue
            return one.getsockname()[1]


@pytest.fixture
def hosts():
    ports = [free_port() for _ in range(3)]
    command = [sys.executable, "-m", "pipeline.data.input_service", "--host", "localhost", "--port"]
    processes = [
        subprocess.Popen(
            [*command, str(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for port in ports
    ]
    for process in processes:
        assert process.stdout.readline().startswith("Ready.")
    yield [f"localhost:{port}" for port in ports]
    for process in processes:
        process.kill()
        process.communicate()


def epoch(images, addresses="", **how):
    config = TrainConfig(
        global_batch_size=54, crop="resized", color_noise=0.1, mixup=0.2, data_services=addresses
    )
    return list(
        make_training_batches(images, config, image_size=32, epoch=1, **how).as_numpy_iterator()
    )


@pytest.mark.slow
def test_batches_of_other_hosts_are_those_of_this_one(hosts, digits):
    images = load_split(digits, "train", in_memory=False)
    for how in ({}, {"start": 5}, {"start": 2, "worker": (1, 2)}):
        alone = epoch(images, **how)
        for addresses in (hosts[:1], hosts):
            together = epoch(images, ",".join(addresses), **how)
            assert len(together) == len(alone) > 10
            for one, other in zip(together, alone, strict=True):
                assert one.keys() == other.keys()
                assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_host_that_does_not_answer_is_named(digits):
    address = f"localhost:{free_port()}"
    with pytest.raises(
        ConfigError,
        match=f"{address} of train.data_services does not answer.*"
        "python -m pipeline.data.input_service --port",
    ):
        epoch(load_split(digits, "train", in_memory=False), address)
    with pytest.raises(ValueError, match="data_services"):
        TrainConfig(data_services="no port")
