"""The inventory of a work directory, for the retention rules: retrainings, versions, files."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.config.settings import Config
from pipeline.tracking.known_runs import read_known_runs
from pipeline.tracking.registry import (
    SCHEDULED_RUN_TAG,
    Registry,
    Version,
    list_files_in_use,
    list_released_models,
)
from pipeline.tracking.stored_runs import (
    StoredModel,
    StoredRun,
    list_stored_models,
    list_stored_runs,
)

MIN_AGE_SECONDS = (
    3600.0  # younger things may be in use by commands that do not hold the work directory
)
PRUNED_FILE = "pruned.json"  # in the folder of a retraining of which nothing else is left


@dataclass(frozen=True)
class RetrainingFolder:
    """A retraining's folder, its result where it ended, and its MLflow runs, of all attempts."""

    folder: Path
    result: Mapping[str, Any]
    runs: tuple[StoredRun, ...] = ()

    @property
    def key(self) -> str:
        """The key of the scheduled run: `main/20261127T030000Z`."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def retention_group(self) -> tuple[str, str]:
        """The retention group: schedule, and whether it trained, skipped or did not end."""
        outcome = self.result.get("outcome", "")
        return self.folder.parent.name, outcome if outcome in ("", "skipped") else "trained"


@dataclass
class Inventory:
    """The inventory of a work directory; `take_inventory` fills the last five fields.

    Attributes:
        workdir: the work directory.
        config: where MLflow is, and the name of the model.
        keep: number of retrainings that stay, of each retention group.
        retrainings_only: delete nothing that a command of a person made.
        min_age_seconds: younger things stay.
        retrainings: folders with more than a result.
        versions: of all released models.
        models: MLflow's stored models, by id.
        in_use: the versions made of a run or a stored model, by its id.
        counted: device and inode of the files that `measure_bytes` has counted.
    """

    workdir: Path
    config: Config
    keep: int
    retrainings_only: bool
    min_age_seconds: float
    retrainings: tuple[RetrainingFolder, ...] = ()
    versions: tuple[Version, ...] = ()
    models: Mapping[str, StoredModel] = field(default_factory=dict)
    in_use: Mapping[str, frozenset[str]] = field(default_factory=dict)
    counted: set[tuple[int, int]] = field(default_factory=set)

    @cached_property
    def now(self) -> float:
        """The time of the inventory, in seconds since 1970."""
        return time.time()

    @cached_property
    def last_keys(self) -> frozenset[str]:
        """The keys of the retrainings that stay."""
        groups = dict[tuple[str, str], list[RetrainingFolder]]()
        for retraining in self.retrainings:
            groups.setdefault(retraining.retention_group, []).append(retraining)
        last = {
            retraining.key
            for group in groups.values()
            for retraining in sorted(group, key=lambda retraining: retraining.folder.name)[
                -self.keep :
            ]
        }
        return frozenset(
            last
            | {
                retraining.key
                for retraining in self.retrainings
                if not retraining.result and self.is_young(retraining.folder)
            }
        )

    @cached_property
    def best_versions(self) -> dict[str, Version]:
        """The version with the lowest test error of each model, the newest of several."""
        best = dict[str, Version]()
        for version in self.versions:
            if get_test_error(version) < (
                get_test_error(best[version.name]) if version.name in best else math.inf
            ):
                best[version.name] = version
        return best

    @cached_property
    def newest_versions(self) -> set[tuple[str, str]]:
        """Names and numbers of the last versions of each model."""
        of_each = itertools.groupby(self.versions, key=lambda version: version.name)
        return {
            (name, version.number)
            for name, versions in of_each
            for version in itertools.islice(versions, self.keep)
        }

    @cached_property
    def retraining_of_run(self) -> dict[str, RetrainingFolder]:
        """The retraining of each MLflow run that has one."""
        return {
            run.run_id: retraining for retraining in self.retrainings for run in retraining.runs
        }

    @cached_property
    def run_id_of_key(self) -> dict[str, str]:
        """The id of each MLflow run of this work directory, by its run key."""
        return {key: ids["run_id"] for key, ids in read_known_runs(self.workdir).items()}

    @cached_property
    def stages_of_last(self) -> frozenset[str]:
        """The names of the stage folders of the retrainings that stay."""
        named = (
            retraining.result.get("stages")
            for retraining in self.retrainings
            if retraining.key in self.last_keys
        )
        return frozenset(
            str(folder)
            for stages in named
            if isinstance(stages, dict)
            for folder in stages.values()
        )

    def is_young(self, path: Path, seconds: float | None = None) -> bool:
        """Return whether a folder was changed so lately that it may be in use."""
        with contextlib.suppress(FileNotFoundError):
            return self.now - path.stat().st_mtime < (
                self.min_age_seconds if seconds is None else seconds
            )
        return False

    def read_account(self, folder: Path) -> dict[str, Any]:
        """Return the record of the runs that made a stage's folder, or began to."""
        return read_json(folder / "run.json") or read_json(folder / "attempt.json")

    def find_maker(self, folder: Path) -> RetrainingFolder | None:
        """Return the retraining that made a stage's folder; None for a person, or unknown."""
        account = self.read_account(folder)
        earlier = [
            self.run_id_of_key[key]
            for key in account.get("earlier_run_keys", [])
            if key in self.run_id_of_key
        ]
        # A person made the same before
        by_hand = any(run_id not in self.retraining_of_run for run_id in earlier)
        return (
            None
            if by_hand
            else self.retraining_of_run.get(self.run_id_of_key.get(account.get("run_key", ""), ""))
        )

    def measure_bytes(self, *paths: Path | None) -> int:
        """Return the sizes of files, and of all files in folders, each counted once."""
        total = 0
        for file in itertools.chain.from_iterable(
            _iterate_files(path) for path in paths if path is not None
        ):
            with contextlib.suppress(FileNotFoundError):
                found = file.lstat()
                if (found.st_dev, found.st_ino) not in self.counted:
                    self.counted.add((found.st_dev, found.st_ino))
                    total += found.st_size
        return total


def _iterate_files(path: Path) -> Iterator[Path]:
    if path.is_dir() and not path.is_symlink():
        yield from (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
    else:
        yield path


def read_json(file: Path) -> dict[str, Any]:
    """Return the object of a JSON file; empty where it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(file.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _iterate_retrainings(workdir: Path) -> Iterator[RetrainingFolder]:
    """Yield the retrainings that may have more than their result."""
    for folder in sorted(workdir.glob("retrainings/*/*/")):
        if not folder.name.startswith(".") and not (folder / PRUNED_FILE).exists():
            yield RetrainingFolder(folder, read_json(folder / "result.json"))


def take_inventory(inventory: Inventory) -> Inventory:
    """Return an inventory filled from the work directory and MLflow.

    A missing store is not made.
    """
    retrainings, tracked, workdir = (
        tuple(_iterate_retrainings(inventory.workdir)),
        inventory.config.tracking,
        inventory.workdir,
    )
    if not tracked.uri and not (workdir / "mlflow.db").exists():
        return replace(inventory, retrainings=retrainings)
    names = sorted({inventory.config.release.name, *list_released_models(tracked, workdir)})
    versions = [
        version for name in names for version in Registry(name, tracked, workdir).list_versions()
    ]
    models = {
        model.model_id: model
        for name in names
        for model in list_stored_models(tracked, workdir, name)
    }
    with_runs = (
        replace(
            retraining,
            runs=list_stored_runs(
                tracked,
                workdir,
                SCHEDULED_RUN_TAG,
                retraining.key,
                str(retraining.result.get("run_id", "")),
            ),
        )
        for retraining in retrainings
    )
    return replace(
        inventory,
        retrainings=tuple(with_runs),
        versions=tuple(versions),
        models=models,
        in_use=list_files_in_use(tracked, workdir),
    )


def get_test_error(version: Version) -> float:
    """Return the test error, in [0, 1], of a version that passed the gate; infinite for others.

    A withdrawn version counts as one of the others.
    """
    with contextlib.suppress(KeyError, ValueError):
        return (
            float(version.tags["top1_error"])
            if version.gate == "passed" and not version.withdrawn
            else math.inf
        )
    return math.inf
