"""The retention rules: why versions, stage folders and MLflow runs stay.

What stays, whatever its age:

    versions       those with an alias, those that wait for approval, the best one, those of the
                   last retrainings, and those that another program registered
    stage folders  those that the last command selected, those of the last retrainings, the datasets
                   by which the champion and the version before it were released, and the
                   evaluations of versions that stay
    MLflow runs    those of what stays, and those of commands typed by a person, always

A retention group is a schedule's retrainings that trained, those that did not train, or those that
did not end. "The last" are so many (`retrain.keep`) of each group.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

from pipeline.artifacts import Artifact
from pipeline.files import REMOVED_PREFIX
from pipeline.retrain.inventory import Inventory, RetrainingFolder, read_json
from pipeline.tracking.registry import CHAMPION, PREVIOUS, SCHEDULED_RUN_TAG, Version


def explain_kept_version(version: Version, inventory: Inventory) -> str:
    """Return why a version stays, or nothing."""
    retraining = version.tags.get(SCHEDULED_RUN_TAG, "")
    results = [item.result for item in inventory.retrainings if item.key in inventory.last_keys]
    named = any(
        (result.get("name"), result.get("version")) == (version.name, version.number)
        for result in results
    )
    ours = (
        (inventory.workdir / "retrainings" / retraining).is_dir()
        if retraining
        else version.tags.get("run_key", "") in inventory.run_id_of_key
    )
    unfinished = any(item.key == retraining and not item.result for item in inventory.retrainings)
    reasons = {
        f"it is the {' and the '.join(version.aliases)}": bool(version.aliases),
        "it waits for approval": version.gate == "waiting",
        "it was not registered by `promote`": not version.release_sha256,
        "it has the lowest test error": version is inventory.best_versions.get(version.name),
        f"it is of one of the last {inventory.keep} retrainings": retraining in inventory.last_keys
        or named,
        "it was made in another work directory": not ours,
        "a command typed by a person made it": inventory.retrainings_only and not retraining,
        f"it is one of the last {inventory.keep} versions": (
            not retraining and (version.name, version.number) in inventory.newest_versions
        ),
        "it is young": (
            (not retraining or unfinished)
            and inventory.now - version.created < inventory.min_age_seconds
        ),
    }
    return next((why for why, holds in reasons.items() if holds), "")


def explain_kept_folders(inventory: Inventory, stay: list[Version]) -> dict[Path, str]:
    """Return why each stage folder, interrupted ones included, stays; empty for the others."""
    selected = [inventory.workdir / "stages" / name for name in _read_selected(inventory.workdir)]
    drawn = [
        inventory.workdir / "networks" / "stages" / name
        for name in _read_selected(inventory.workdir / "networks")
    ]
    reasons = dict.fromkeys([*selected, *drawn], "the last command here selected it")
    for folder in list_stage_folders(inventory.workdir):
        if folder not in reasons and (
            folder.name in inventory.stages_of_last
            or _is_of_last(inventory.find_maker(folder), inventory)
        ):
            reasons[folder] = f"one of the last {inventory.keep} retrainings made it"
    _keep_datasets(reasons, inventory, stay)
    models = {version.tags.get("model_sha256"): version for version in stay}
    for folder in list_stage_folders(inventory.workdir):
        if folder not in reasons:
            reasons[folder] = _explain_kept_folder(folder, inventory, models)
    return reasons


def list_stage_folders(workdir: Path) -> list[Path]:
    """Return the folders of stages, interrupted ones included."""
    folders = (*workdir.glob("stages/*-*"), *workdir.glob("networks/stages/*-*"))
    return sorted(folder for folder in folders if not folder.name.startswith(REMOVED_PREFIX))


def _read_selected(workdir: Path) -> set[str]:
    """Return the folders that the last command selected or may have left partial."""
    current = read_json(workdir / "current.json")
    stages, last = (
        found if isinstance(found, dict) else {}
        for found in (current.get("stages"), current.get("last"))
    )
    entries = [entry.get("directory") for entry in stages.values() if isinstance(entry, dict)]
    names = {str(name) for name in [*entries, *last.values()] if name}
    return names | {f"{name}.partial" for name in names}


def _is_of_last(retraining: RetrainingFolder | None, inventory: Inventory) -> bool:
    return retraining is not None and retraining.key in inventory.last_keys


def _keep_datasets(reasons: dict[Path, str], inventory: Inventory, stay: list[Version]) -> None:
    """Keep the datasets by which the champion and the version before it were released.

    And the folders that hold their shards.
    """
    datasets = [
        (folder, read_json(folder / Artifact.FILE))
        for folder in inventory.workdir.glob("stages/ingest-*")
    ]
    for version in stay:
        digest, role = (
            version.tags.get("dataset_digest"),
            next((a for a in (CHAMPION, PREVIOUS) if a in version.aliases), ""),
        )
        same = [
            folder
            for folder, record in datasets
            if digest and record.get("digest") == digest and folder.suffix == ""
        ]
        if role and same and not any(folder in reasons for folder in same):
            newest = max(same, key=lambda folder: folder.stat().st_mtime)
            reasons[newest] = f"version {version.number}, the {role}, was released by its images"
    for folder, record in datasets:
        if folder in reasons and record.get("builder_directory"):
            shards = (folder / record["builder_directory"]).resolve()
            for other in list_stage_folders(inventory.workdir):
                if other not in reasons and shards.is_relative_to(other.resolve()):
                    reasons[other] = f"{folder.name} reads its shards"


def _explain_kept_folder(
    folder: Path, inventory: Inventory, models: Mapping[str | None, Version]
) -> str:
    """Return why a folder stays that no selection and no kept retraining needs, or nothing."""
    maker, left = inventory.find_maker(folder), folder.suffix in (".partial", ".old")
    if folder.suffix == ".old":
        return ""
    if (
        folder.name.startswith("evaluate-")
        and not left
        and (version := models.get(read_json(folder / Artifact.FILE).get("model_sha256")))
    ):
        return f"it is the evaluation of version {version.number}"
    if not (maker and maker.result) and inventory.is_young(folder):
        return "it is young"
    return (
        "a command typed by a person made it"
        if inventory.retrainings_only and maker is None
        else ""
    )


def explain_used_runs(
    inventory: Inventory, stay: list[Version], go: list[Version], folders: Mapping[Path, str]
) -> dict[str, str]:
    """Return why MLflow's runs and models stay, by id.

    Args:
        inventory: of the work directory.
        stay: versions that stay.
        go: versions that are deleted.
        folders: why each stage folder stays, an empty text for those that are deleted.
    """
    going = {f"{version.name} {version.number}" for version in go}
    used = {
        name: f"{', '.join(sorted(titles - going))} is made of it"
        for name, titles in inventory.in_use.items()
        if titles - going
    }
    for version in stay:
        if run_id := inventory.run_id_of_key.get(version.tags.get("run_key", "")):
            used.setdefault(run_id, f"{version.name} {version.number} was judged in it")
    for folder, why in folders.items():
        if why and (
            run_id := inventory.run_id_of_key.get(inventory.read_account(folder).get("run_key", ""))
        ):
            used.setdefault(run_id, f"{folder.name} was made in it")
    for run in itertools.chain.from_iterable(
        retraining.runs for retraining in inventory.retrainings
    ):
        for model in run.models:
            used |= {run.run_id: used[model.model_id]} if model.model_id in used else {}
        if run.run_id in used and run.parent_id:
            used.setdefault(run.parent_id, "a run below it stays")
    return used
