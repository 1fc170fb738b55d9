"""`alexnet networks`."""

import time

import pytest

from tests.package_copy import ROOT, copy_package, run_alexnet


def test_the_list_needs_neither_tensorflow_nor_time(tmp_path):
    package = copy_package(tmp_path / "copy")
    for name in ("tensorflow", "keras"):
        (package / f"{name}.py").write_text("raise ImportError('not needed')")
    started = time.monotonic()
    networks = run_alexnet(package, tmp_path, "networks")[-1]["networks"]
    assert time.monotonic() - started < 20  # a second, on an idle machine
    rows = {network["name"]: network for network in networks}
    assert len(rows) == 50
    assert all(row["parameters"] and row["macs"] for row in rows.values())
    assert rows["keras/ResNet50V2"]["imagenet_top1_error"] == 0.24
    assert rows["small"]["weights"] == "none"


@pytest.mark.slow
def test_a_network_is_measured(tmp_path):
    (row,) = run_alexnet(ROOT, tmp_path, "networks", "alexnet/cifar", "--measure")[-1]["networks"]
    assert row["name"] == "cifar"
    assert row["images_per_second"] > 1
