"""Ingest when it is killed, when the disk is full and when nothing may be written: real processes,
real signals, real file systems."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow
ALEXNET = [sys.executable, "-m", "pipeline"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """1,500 files of random pixels in two classes, the same each time."""
    import tensorflow as tf

    root, rng = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    for index in range(1500):
        path = root / f"{index % 2}" / f"{index:04}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(tf.io.encode_jpeg(rng.integers(0, 256, (60, 80, 3), np.uint8)).numpy())
    return root


def ingest(workdir, images, *words):
    command = [
        *ALEXNET,
        "--json",
        "--workdir",
        str(workdir),
        "ingest",
        "--dataset",
        str(images),
        "--set",
        "tracking.enabled=false",
        *words,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def artifact(done):
    """Return the record of the dataset that a finished command names."""
    assert done.returncode == 0, done.stderr[-2000:]
    (stage,) = json.loads(done.stdout.splitlines()[-1])["stages"]
    return json.loads((Path(stage["directory"]) / "artifact.json").read_text())


def looked_at(workdir):
    """Return how many files the audit has written down."""
    memories = list(workdir.glob("audits/*.sqlite"))
    try:
        with closing(sqlite3.connect(memories[0])) as known:
            return known.execute("SELECT count(*) FROM files").fetchone()[0]
    except (IndexError, sqlite3.OperationalError):  # not made yet
        return 0


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    return artifact(ingest(workdir, images)), time.monotonic() - started


def test_killed_at_many_moments_gives_the_same_dataset(images, undisturbed, tmp_path):
    whole, seconds = undisturbed
    reached = set()
    for moment in range(8):
        workdir = tmp_path / str(moment)
        command = [
            *ALEXNET,
            "--workdir",
            str(workdir),
            "ingest",
            "--dataset",
            str(images),
            "--set",
            "tracking.enabled=false",
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds * (moment + 1.5) / 9)
        process.send_signal(signal.SIGKILL)
        process.wait()
        partial = next(workdir.glob("stages/*.partial"), None)
        reached |= {"audit"} if list(workdir.glob("audits/*.sqlite")) else set()
        reached |= {path.name for path in partial.iterdir()} if partial else set()
        again = artifact(ingest(workdir, images))
        assert again == whole, moment
        assert list(workdir.glob("stages/*.partial")) == []
    assert {"audit", "shards"} <= reached


def test_an_audit_that_was_killed_is_not_done_again(images, tmp_path):
    command = [
        *ALEXNET,
        "--workdir",
        str(tmp_path),
        "ingest",
        "--dataset",
        str(images),
        "--set",
        "tracking.enabled=false",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while looked_at(tmp_path) < 256 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 256 <= looked_at(tmp_path) <= 1500
    (memory,) = tmp_path.glob("audits/*.sqlite")
    with closing(sqlite3.connect(memory)) as known, known:
        known.execute(
            "UPDATE files SET height = -7 WHERE path IN (SELECT path FROM files LIMIT 256)"
        )  # what is looked at again loses the mark
    assert ingest(tmp_path, images).returncode == 0
    assert looked_at(tmp_path) == 1500
    with closing(sqlite3.connect(memory)) as known:
        assert known.execute("SELECT count(*) FROM files WHERE height = -7").fetchone()[0] == 256


@pytest.fixture
def disk(tmp_path):
    """Return a function that makes a small file system; needs the right to mount."""
    where = tmp_path / "disk"
    where.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", where],
        capture_output=True,
        check=False,
    ).returncode:
        pytest.skip("mounting is not permitted here")

    def resized(how):
        subprocess.run(["mount", "-o", f"remount,{how}", where], check=True)
        return where

    yield resized
    subprocess.run(["umount", where], check=True)


def refused(done, *words):
    """Assert one sentence and no traceback."""
    assert done.returncode in (1, 2), done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize("store", ["encoded", "pixels"])
def test_a_full_disk_is_named_and_what_was_finished_stays(images, undisturbed, disk, store):
    where = disk("size=200m")
    before = artifact(ingest(where, images))
    used = sum(path.stat().st_blocks * 512 for path in where.rglob("*") if path.is_file())
    for room in (100_000, 2_000_000, 5_000_000):
        disk(f"size={(used + room) // 1024}k")
        refused(
            ingest(where, images, "--set", "data.short_side=64", "--set", f"data.store={store}"),
            str(where),
            "room",
        )
        assert artifact(ingest(where, images)) == before == undisturbed[0]
    disk("size=200m")
    after = artifact(
        ingest(where, images, "--set", "data.short_side=64", "--set", f"data.store={store}")
    )
    assert after["digest"] == before["digest"]


def test_a_read_only_disk_is_named_and_what_was_finished_stays(images, disk):
    where = disk("size=200m")
    before = artifact(ingest(where, images))
    disk("ro")
    refused(
        ingest(where, images, "--set", "data.short_side=64"), str(where), "Read-only file system"
    )
    disk("rw")
    assert artifact(ingest(where, images)) == before
