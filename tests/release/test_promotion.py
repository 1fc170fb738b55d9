"""Promotion: the alias always names a version that passed, whoever is killed and however many come
at once."""

import contextlib
import json
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts import file_sha256
from pipeline.config.tracking import TrackingConfig
from pipeline.release.package import GoldenImage, Release, open_version, write_package
from pipeline.tracking.registry import Registry
from pipeline.tracking.store import open_experiment

SCRIPT = Path(__file__).with_name("promoters.py")
CHAMPION = """
    select a.version, g.value, e.value from registered_model_aliases a
    left join model_version_tags g on g.name = a.name and g.version = a.version and g.key = 'gate'
    left join model_version_tags e on e.name = a.name and e.version = a.version
        and e.key = 'top1_error'
    where a.name = 'alexnet' and a.alias = 'champion'
"""


def make_package(directory: Path, number: int) -> Path:
    """A release whose model file is no model: nothing here opens it."""
    directory.mkdir()
    model = directory / "model.bin"
    model.write_bytes(f"model {number}".encode())
    release = Release(
        model_sha256=file_sha256(model), class_names=("a", "b"), image_size=8, short_side=8
    )
    write_package(
        release, model, [GoldenImage(b"x", 0, np.zeros(2, np.float32))], directory / "package"
    )
    return directory / "package"


class Promoters:
    """Processes that promote in one work directory, and a thread that looks at the champion all the
    time."""

    def __init__(self, workdir: Path):
        self.workdir = workdir
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(workdir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=workdir,
        )
        assert self.process.stdout.readline() == "ready\n"
        self.seen = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self):
        with contextlib.closing(
            sqlite3.connect(f"file:{self.workdir / 'mlflow.db'}?mode=ro", uri=True, timeout=30)
        ) as store:
            while not self._stop.is_set():
                rows = store.execute(CHAMPION).fetchall()
                if rows and (not self.seen or self.seen[-1] != rows):
                    self.seen.append(rows)
                time.sleep(0.002)

    def run(self, promoters):
        """Run some at once; return their exit statuses: 10 promoted, 11 unchanged, 13 refused, -9
        killed."""
        self.process.stdin.write(json.dumps(promoters) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self._stop.set()
        self._thread.join()
        self.process.stdin.close()
        assert self.process.wait(timeout=30) == 0
        self.process.stdout.close()


@pytest.fixture
def promoters(tmp_path):
    workdir = tmp_path / "w"
    workdir.mkdir()
    open_experiment(TrackingConfig(), workdir)
    found = Promoters(workdir)
    yield found
    found.close()


def check_trials(promoters, tmp_path, trials, at_once):
    dice, registry = (
        np.random.default_rng(0),
        Registry("alexnet", TrackingConfig(), promoters.workdir),
    )
    made, best, outcomes = 0, 1.0, []
    for _ in range(trials):
        batch = []
        for _ in range(at_once):
            made += 1
            # About as good as the champion: some better, some worse.
            error = round(min(1.0, max(0.0, best + dice.uniform(-0.01, 0.02))), 6)
            kill_at = int(dice.integers(20)) if dice.random() < 0.6 else None
            batch.append(
                {
                    "package": str(make_package(tmp_path / f"p{made}", made)),
                    "error": error,
                    "kill_at": kill_at,
                }
            )
        statuses = promoters.run(batch)
        outcomes += statuses
        assert set(statuses) <= {10, 11, 13, -9}
        aliases = registry.read_aliases()
        champion = registry.read_version(aliases.champion)
        if champion is not None:
            assert champion.gate == "passed"
            open_version(
                champion, TrackingConfig(), promoters.workdir
            )  # every byte is what was registered
            error = float(champion.tags["top1_error"])
            assert error <= best, "a regression"
            best = error
        # Whoever was killed types the command again: each ends, and none leaves a worse champion.
        again = promoters.run(
            [
                {**item, "kill_at": None}
                for item, status in zip(batch, statuses, strict=True)
                if status == -9
            ]
        )
        outcomes += again
        assert set(again) <= {10, 11, 13}
        best = min(best, float(registry.read_champion().tags["top1_error"]))
        assert best == min(best, *(item["error"] for item in batch)), (
            "the best one that came must be the champion"
        )
    versions = registry.list_versions()
    releases = [version.release_sha256 for version in versions]
    assert len(releases) == len(set(releases)), (
        "a release has one version, however often it was killed"
    )
    # What anybody could have seen at any moment: one champion, gated, never worse than the one
    # before.
    assert all(len(rows) == 1 for rows in promoters.seen)
    assert all(gate == "passed" for ((_, gate, _),) in promoters.seen)
    errors = [float(error) for ((_, _, error),) in promoters.seen]
    assert errors == sorted(errors, reverse=True)
    return outcomes, versions


@pytest.mark.slow
def test_promoters_that_are_killed_leave_a_champion_that_passed(promoters, tmp_path):
    outcomes, versions = check_trials(promoters, tmp_path, trials=3, at_once=4)
    assert -9 in outcomes
    assert 10 in outcomes
    assert len(versions) == 12


@pytest.mark.slow
def test_a_hundred_trials_with_eight_promoters_at_once(promoters, tmp_path):
    outcomes, versions = check_trials(promoters, tmp_path, trials=100, at_once=8)
    assert outcomes.count(-9) > 200
    assert outcomes.count(10) > 50
    assert len(versions) == 800
