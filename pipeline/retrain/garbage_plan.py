"""The plan of a garbage collection: what is deleted and what stays, without changing anything.

Every retraining's result stays, as it is small and records the outcome; its log stays for the last
4 times `retrain.keep` retrainings, its pages for the last 40 times. A folder of shards outside of a
stage's own is never touched, as several stages may read it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.config.settings import Config
from pipeline.files import REMOVED_PREFIX
from pipeline.retrain.inventory import (
    MIN_AGE_SECONDS,
    PRUNED_FILE,
    Inventory,
    RetrainingFolder,
    read_json,
    take_inventory,
)
from pipeline.retrain.retention import explain_kept_folders, explain_kept_version, explain_used_runs
from pipeline.tracking.journal import list_undelivered
from pipeline.tracking.registry import RELEASE_TAG, SCHEDULED_RUN_TAG, Version
from pipeline.tracking.stored_runs import StoredModel, StoredRun

# Times as many logs as retrainings are kept: they are small, and the last explanation of a failure
_LOGS_PER_RETRAINING = 4
# Times as many pages: 0.1 MB each, which hourly retrainings would make gigabytes of in years
_PAGES_PER_RETRAINING = 40
_HEX_DIGITS = 64  # of a SHA-256


ItemKind = Literal[
    "model version",
    "MLflow run",
    "MLflow model",
    "stage folder",
    "interrupted stage",
    "retraining",
    "log",
    "page",
    "copy",
    "export",
    "rest",
]


@dataclass(frozen=True)
class Removal:
    """Something that is deleted: what it is, the bytes of its files, why, and where it is."""

    kind: ItemKind
    what: str
    bytes: int
    why: str
    path: Path | None = None
    version: Version | None = None
    run: StoredRun | None = None
    model: StoredModel | None = None


@dataclass(frozen=True)
class KeptItem:
    """Something that stays, the bytes of its files, and why."""

    kind: ItemKind
    what: str
    bytes: int
    why: str


@dataclass(frozen=True)
class GarbagePlan:
    """What is deleted, in this order, and what stays.

    `pruned` are the folders of retrainings of which only the result is left then.
    """

    workdir: Path
    config: Config
    removals: tuple[Removal, ...]
    kept: tuple[KeptItem, ...]
    pruned: tuple[Path, ...] = ()

    @property
    def bytes(self) -> int:
        """The bytes that the removals free; a file with several names counts once."""
        return sum(removal.bytes for removal in self.removals)


def plan_garbage_collection(
    workdir: Path,
    config: Config,
    *,
    keep: int,
    retrainings_only: bool,
    min_age_seconds: float = MIN_AGE_SECONDS,
) -> GarbagePlan:
    """Return what a garbage collection would delete; the caller holds the work directory.

    MLflow runs that no retraining made are a person's history, and are never deleted.

    Args:
        workdir: the work directory.
        config: where MLflow is, and the name of the model there.
        keep: number of retrainings that stay, of each retention group.
        retrainings_only: only what retrainings made; else also stage folders that nothing selects,
            versions beyond the last `keep`, and copies and exports of deleted versions.
        min_age_seconds: younger things stay, except those of a retraining that ended. Copies and
            exports, which are made without holding the work directory, always stay for an hour.

    Raises:
        TrackingError: the store does not answer.
    """
    inventory = take_inventory(Inventory(workdir, config, keep, retrainings_only, min_age_seconds))
    reasons = [
        (version, explain_kept_version(version, inventory)) for version in inventory.versions
    ]
    stay, go = (
        [version for version, why in reasons if why],
        [version for version, why in reasons if not why],
    )
    folders = explain_kept_folders(inventory, stay)
    used = explain_used_runs(inventory, stay, go, folders)
    found = list[Removal | KeptItem]()
    for part in (
        _sort_versions(inventory, reasons),
        _find_lost_models(inventory),
        _sort_folders(inventory, folders),
        _sort_runs(inventory, used),
        _find_old_logs(inventory),
        _find_old_copies(inventory, stay),
        _find_leftovers(inventory),
    ):
        found += part
    return GarbagePlan(
        workdir,
        config,
        tuple(item for item in found if isinstance(item, Removal)),
        tuple(item for item in found if isinstance(item, KeptItem)),
        tuple(
            retraining.folder
            for retraining in inventory.retrainings
            if _is_pruned(retraining, inventory, used, stay)
        ),
    )


def _sort_versions(
    inventory: Inventory, reasons: Sequence[tuple[Version, str]]
) -> Iterator[Removal | KeptItem]:
    for version, why in reasons:
        model = inventory.models.get(version.source.removeprefix("models:/"))
        what, size = (
            f"{version.name} {version.number}",
            inventory.measure_bytes(model.folder if model else None),
        )
        if why:
            yield KeptItem("model version", what, size, why)
        else:
            gone = f"no alias names it, and it is none of the last {inventory.keep}, nor the best"
            yield Removal("model version", what, size, gone, version=version, model=model)


def _sort_runs(inventory: Inventory, used: Mapping[str, str]) -> Iterator[Removal | KeptItem]:
    for retraining in inventory.retrainings:
        for run in retraining.runs:
            what = f"{run.name} {run.run_id}"
            why = (
                f"it is of {retraining.key}, one of the last {inventory.keep}"
                if retraining.key in inventory.last_keys
                else used.get(run.run_id, "")
            )
            size = inventory.measure_bytes(run.folder, *(model.folder for model in run.models))
            if why:
                yield KeptItem("MLflow run", what, size, why)
            else:
                yield Removal(
                    "MLflow run",
                    what,
                    size,
                    f"{retraining.key} is none of the last {inventory.keep} of its kind",
                    run=run,
                )


def _find_lost_models(inventory: Inventory) -> Iterator[Removal]:
    """Yield the stored files of releases without a version, such as after a kill."""
    for model in inventory.models.values():
        if (
            RELEASE_TAG in model.tags
            and model.model_id not in inventory.in_use
            and inventory.now - model.created > MIN_AGE_SECONDS
        ):
            yield Removal(
                "MLflow model",
                model.model_id,
                inventory.measure_bytes(model.folder),
                "no version uses these files",
                model=model,
            )


def _sort_folders(
    inventory: Inventory, folders: Mapping[Path, str]
) -> Iterator[Removal | KeptItem]:
    for folder, why in sorted(folders.items()):
        kind: ItemKind = (
            "interrupted stage" if folder.suffix in (".partial", ".old") else "stage folder"
        )
        if not folder.exists():
            continue
        if why:
            yield KeptItem(kind, folder.name, inventory.measure_bytes(folder), why)
        else:
            maker = inventory.find_maker(folder)
            gone = (
                f"{maker.key} made it, none of the last {inventory.keep} of its kind"
                if maker
                else "nothing selects it"
            )
            yield Removal(kind, folder.name, inventory.measure_bytes(folder), gone, path=folder)


def _find_old_logs(inventory: Inventory) -> Iterator[Removal]:
    """Yield the logs and pages of old retrainings, and the folders of those that did not end."""
    for schedule in sorted(inventory.workdir.glob("retrainings/*/")):
        folders = sorted(
            folder for folder in schedule.glob("*/") if not folder.name.startswith(".")
        )
        for folder in folders[: -_LOGS_PER_RETRAINING * inventory.keep]:
            what, why = (
                f"{schedule.name}/{folder.name}",
                f"it is none of the last {_LOGS_PER_RETRAINING * inventory.keep} of"
                f" {schedule.name}",
            )
            if not (folder / "result.json").exists() and (folder / PRUNED_FILE).exists():
                yield Removal(
                    "retraining",
                    what,
                    inventory.measure_bytes(folder),
                    f"{why}, and did not end",
                    path=folder,
                )
            elif what not in inventory.last_keys:
                for log in sorted(folder.glob("output.log*")):
                    yield Removal(
                        "log", f"{what}/{log.name}", inventory.measure_bytes(log), why, path=log
                    )
        for folder in folders[: -_PAGES_PER_RETRAINING * inventory.keep]:
            what, page = f"{schedule.name}/{folder.name}", folder / "report"
            if what not in inventory.last_keys and page.is_dir():
                last = _PAGES_PER_RETRAINING * inventory.keep
                why = f"it is none of the last {last} of {schedule.name}"
                yield Removal(
                    "page", f"{what}/report", inventory.measure_bytes(page), why, path=page
                )


def _find_old_copies(inventory: Inventory, stay: list[Version]) -> Iterator[Removal]:
    """Yield fetched copies and exports of deleted versions, and all other fetched copies."""
    releases = {version.release_sha256 for version in stay}
    for folder in sorted(inventory.workdir.glob("fetched/*")):
        ours = len(folder.name) == _HEX_DIGITS
        if (
            folder.name not in releases
            and not inventory.is_young(folder, MIN_AGE_SECONDS)
            and (ours or not inventory.retrainings_only)
        ):
            yield Removal(
                "copy",
                f"fetched/{folder.name}",
                inventory.measure_bytes(folder),
                "no version has these files",
                path=folder,
            )
    titles, names = (
        {f"{version.name} {version.number}" for version in stay},
        {version.name for version in inventory.versions},
    )
    for folder in (
        sorted(inventory.workdir.glob("exports/*/")) if not inventory.retrainings_only else ()
    ):
        title = str(read_json(folder / "parity.json").get("model", ""))
        if (
            title.rpartition(" ")[0] in names
            and title not in titles
            and not inventory.is_young(folder, MIN_AGE_SECONDS)
        ):
            yield Removal(
                "export",
                f"exports/{folder.name}",
                inventory.measure_bytes(folder),
                f"{title} is gone",
                path=folder,
            )


def _find_leftovers(inventory: Inventory) -> Iterator[Removal]:
    """Yield what a killed garbage collection had begun to delete."""
    parents = (
        "stages",
        "networks/stages",
        "artifacts",
        "artifacts/models",
        "fetched",
        "exports",
        "retrainings/*",
        "retrainings/*/*",
    )
    for path in itertools.chain.from_iterable(
        sorted(inventory.workdir.glob(f"{parent}/{REMOVED_PREFIX}*")) for parent in parents
    ):
        yield Removal(
            "rest",
            str(path.relative_to(inventory.workdir)),
            inventory.measure_bytes(path),
            "its removal was interrupted",
            path=path,
        )


def _is_pruned(
    retraining: RetrainingFolder, inventory: Inventory, used: Mapping[str, str], stay: list[Version]
) -> bool:
    """Return whether only its result is left of a retraining after the removals."""
    named = any(version.tags.get(SCHEDULED_RUN_TAG) == retraining.key for version in stay) or any(
        run.run_id in used for run in retraining.runs
    )
    return (
        retraining.key not in inventory.last_keys
        and not named
        and not list_undelivered(inventory.workdir)
    )
