"""What may go and what stays, so that a schedule can run for years on one disk.

What stays, whatever its age:

    versions       those that an alias names, those that wait for approval, the best one, those of
    the last retrainings, and those that
                   somebody else than this program registered
    stage folders  what the last command selected, those of the last retrainings, the images that
    the champion and the version before
                   it were released by, and the evaluations of the versions that stay
    MLflow runs    those behind what stays; and a person's, always: they are a history, and no
    retraining made them
    the result     of every retraining, which is small and says what became of a scheduled run; the pages of
    the last 40 times as many

"The last" are, of each schedule, so many retrainings that trained, so many that saw no reason to,
and so many that did not come to an end.

A look (`plan`) comes before the work (`apply`). A version goes before its files, and a folder is
renamed before it is removed: killed anywhere, the next look finds the rest. A shard folder outside
of a stage's own is never touched, as several stages may read it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pipeline.artifacts import Artifact
from pipeline.config.settings import Config
from pipeline.files import REMOVED_PREFIX, remove_folder, write_text
from pipeline.tracking.journal import list_undelivered
from pipeline.tracking.known_runs import forget_runs, read_known_runs
from pipeline.tracking.registry import (
    CHAMPION,
    PREVIOUS,
    RELEASE_TAG,
    SCHEDULED_RUN_TAG,
    Registry,
    Version,
    list_files_in_use,
    list_released_models,
)
from pipeline.tracking.stored_runs import (
    StoredModel,
    StoredRun,
    delete_model,
    delete_run,
    list_stored_models,
    list_stored_runs,
)

Kind = Literal[
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
MIN_AGE_SECONDS = (
    3600.0  # what is younger may be in the hands of a command that does not hold the work directory
)
PRUNED_FILE = "pruned.json"  # in the folder of a retraining of which nothing else is left
# Times as many logs as retrainings are kept: they are small, and the last thing that explains a
# failure
_LOGS = 4
# Times as many pages: a tenth of a megabyte each, which hourly retrainings would make gigabytes of
# in years
_PAGES = 40
_HEX_DIGITS = 64


@dataclass(frozen=True)
class Removal:
    """Something that may go: what it is, the bytes of its files, and why.

    And what `apply` needs to know of it.
    """

    kind: Kind
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

    kind: Kind
    what: str
    bytes: int
    why: str


@dataclass(frozen=True)
class GarbagePlan:
    """What goes, in the order in which it does, and what stays.

    `pruned` are folders of retrainings of which nothing is left then.
    """

    workdir: Path
    config: Config
    removals: tuple[Removal, ...]
    kept: tuple[KeptItem, ...]
    pruned: tuple[Path, ...] = ()

    @property
    def bytes(self) -> int:
        """What the removals free; a file with several names counts once."""
        return sum(removal.bytes for removal in self.removals)


# -- what there is ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _RetrainingFolder:
    """A retraining's folder, with its result where it came to an end, and its runs in MLflow, of all its attempts."""

    folder: Path
    result: Mapping[str, Any]
    runs: tuple[StoredRun, ...] = ()

    @property
    def name(self) -> str:
        """`schedule/20261127T030000Z`, as it is tagged in MLflow."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def group(self) -> tuple[str, str]:
        """Of what it is one of the last."""
        outcome = self.result.get("outcome", "")
        return self.folder.parent.name, outcome if outcome in ("", "skipped") else "trained"


@dataclass
class _Scene:
    """Everything that is looked at; `models` and `in_use` are what MLflow has, by id."""

    workdir: Path
    config: Config
    keep: int
    retrainings_only: bool
    min_age_seconds: float
    scheduled_runs: tuple[_RetrainingFolder, ...] = ()
    versions: tuple[Version, ...] = ()
    models: Mapping[str, StoredModel] = field(default_factory=dict)
    in_use: Mapping[str, frozenset[str]] = field(default_factory=dict)
    seen: set[tuple[int, int]] = field(default_factory=set)

    @cached_property
    def now(self) -> float:
        return time.time()

    @cached_property
    def last(self) -> frozenset[str]:
        """The names of the retrainings that stay."""
        groups = dict[tuple[str, str], list[_RetrainingFolder]]()
        for scheduled_run in self.scheduled_runs:
            groups.setdefault(scheduled_run.group, []).append(scheduled_run)
        last = {
            scheduled_run.name
            for group in groups.values()
            for scheduled_run in sorted(group, key=lambda scheduled_run: scheduled_run.folder.name)[
                -self.keep :
            ]
        }
        return frozenset(
            last
            | {
                scheduled_run.name
                for scheduled_run in self.scheduled_runs
                if not scheduled_run.result and self.is_young(scheduled_run.folder)
            }
        )

    @cached_property
    def best(self) -> dict[str, Version]:
        """The version of each model that passed with the lowest test error, the newest of several."""
        best = dict[str, Version]()
        for version in self.versions:
            if _error(version) < (_error(best[version.name]) if version.name in best else math.inf):
                best[version.name] = version
        return best

    @cached_property
    def newest(self) -> set[tuple[str, str]]:
        """The names and numbers of the last versions of each model."""
        of_each = itertools.groupby(self.versions, key=lambda version: version.name)
        return {
            (name, version.number)
            for name, versions in of_each
            for version in itertools.islice(versions, self.keep)
        }

    @cached_property
    def retraining_of_run(self) -> dict[str, _RetrainingFolder]:
        """The retraining that each MLflow run is of; no other runs."""
        return {
            run.run_id: scheduled_run
            for scheduled_run in self.scheduled_runs
            for run in scheduled_run.runs
        }

    @cached_property
    def run_of_key(self) -> dict[str, str]:
        return {key: ids["run_id"] for key, ids in read_known_runs(self.workdir).items()}

    @cached_property
    def stages_of_last(self) -> frozenset[str]:
        named = (
            scheduled_run.result.get("stages")
            for scheduled_run in self.scheduled_runs
            if scheduled_run.name in self.last
        )
        return frozenset(
            str(folder)
            for stages in named
            if isinstance(stages, dict)
            for folder in stages.values()
        )

    def is_young(self, path: Path, seconds: float | None = None) -> bool:
        """Whether a folder was changed so lately that somebody may be at work in it."""
        with contextlib.suppress(FileNotFoundError):
            return self.now - path.stat().st_mtime < (
                self.min_age_seconds if seconds is None else seconds
            )
        return False

    def account(self, folder: Path) -> dict[str, Any]:
        """Return what a stage's folder says of the runs that made it, or began to."""
        return _read(folder / "run.json") or _read(folder / "attempt.json")

    def maker(self, folder: Path) -> _RetrainingFolder | None:
        """Return the retraining that made a stage's folder.

        None where a person did, or nobody knows who.
        """
        account = self.account(folder)
        earlier = [
            self.run_of_key[key]
            for key in account.get("earlier_run_keys", [])
            if key in self.run_of_key
        ]
        by_hand = any(
            run_id not in self.retraining_of_run for run_id in earlier
        )  # who made the same before, and wanted it
        return (
            None
            if by_hand
            else self.retraining_of_run.get(self.run_of_key.get(account.get("run_key", ""), ""))
        )

    def bytes_of(self, *paths: Path | None) -> int:
        """Return the sizes of files, and of all files in folders, none of them twice."""
        total = 0
        for file in itertools.chain.from_iterable(
            _files(path) for path in paths if path is not None
        ):
            with contextlib.suppress(FileNotFoundError):
                found = file.lstat()
                if (found.st_dev, found.st_ino) not in self.seen:
                    self.seen.add((found.st_dev, found.st_ino))
                    total += found.st_size
        return total


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir() and not path.is_symlink():
        yield from (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
    else:
        yield path


def _read(file: Path) -> dict[str, Any]:
    """Return what a JSON file holds, or nothing."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(file.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _scheduled_runs(workdir: Path) -> Iterator[_RetrainingFolder]:
    """Yield the retrainings of which there may be more than their result."""
    for folder in sorted(workdir.glob("retrainings/*/*/")):
        if not folder.name.startswith(".") and not (folder / PRUNED_FILE).exists():
            yield _RetrainingFolder(folder, _read(folder / "result.json"))


# -- the look --------------------------------------------------------------------------------------


def plan_garbage_collection(
    workdir: Path,
    config: Config,
    *,
    keep: int,
    retrainings_only: bool,
    min_age_seconds: float = MIN_AGE_SECONDS,
) -> GarbagePlan:
    """Look at a work directory and say what may go.

    Nothing is changed. The caller holds the work directory.

    Runs in MLflow that no retraining made are a person's history and are never removed.

    Args:
        workdir: the work directory.
        config: where MLflow is, and what the model is called there.
        keep: how many retrainings of each kind and schedule stay.
        retrainings_only: only what retrainings made; else also stage folders that nothing selects,
            versions beyond the last `keep`, and copies and exports of versions that are gone.
        min_age_seconds: what is younger stays, unless a retraining that came to its end made it.
            What commands make that do not hold a work directory is never removed within an hour.

    Raises:
        TrackingError: the store does not answer.
    """
    scene = _scene(_Scene(workdir, config, keep, retrainings_only, min_age_seconds))
    reasons = [(version, _why_version(version, scene)) for version in scene.versions]
    stay, go = (
        [version for version, why in reasons if why],
        [version for version, why in reasons if not why],
    )
    folders = _needed_folders(scene, stay)
    used = _used(scene, stay, go, folders)
    found = list[Removal | KeptItem]()
    for part in (
        _sorted_versions(scene, reasons),
        _lost_models(scene),
        _sorted_folders(scene, folders),
        _sorted_runs(scene, used),
        _logs(scene),
        _copies(scene, stay),
        _rests(scene),
    ):
        found += part
    return GarbagePlan(
        workdir,
        config,
        tuple(item for item in found if isinstance(item, Removal)),
        tuple(item for item in found if isinstance(item, KeptItem)),
        tuple(
            scheduled_run.folder
            for scheduled_run in scene.scheduled_runs
            if _is_over(scheduled_run, scene, used, stay)
        ),
    )


def _scene(scene: _Scene) -> _Scene:
    """Return a scene with what lies in the work directory and in MLflow.

    Where there is no store yet, asking must not make one.
    """
    scheduled_runs, tracked, workdir = (
        tuple(_scheduled_runs(scene.workdir)),
        scene.config.tracking,
        scene.workdir,
    )
    if not tracked.uri and not (workdir / "mlflow.db").exists():
        return replace(scene, scheduled_runs=scheduled_runs)
    names = sorted({scene.config.release.name, *list_released_models(tracked, workdir)})
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
            scheduled_run,
            runs=list_stored_runs(
                tracked,
                workdir,
                SCHEDULED_RUN_TAG,
                scheduled_run.name,
                str(scheduled_run.result.get("run_id", "")),
            ),
        )
        for scheduled_run in scheduled_runs
    )
    return replace(
        scene,
        scheduled_runs=tuple(with_runs),
        versions=tuple(versions),
        models=models,
        in_use=list_files_in_use(tracked, workdir),
    )


def _error(version: Version) -> float:
    """Return the test error, in [0, 1], of a version that passed and that nobody went back from.

    Infinite for others.
    """
    with contextlib.suppress(KeyError, ValueError):
        return (
            float(version.tags["top1_error"])
            if version.gate == "passed" and not version.withdrawn
            else math.inf
        )
    return math.inf


def _why_version(version: Version, scene: _Scene) -> str:
    """Return why a version stays, or nothing."""
    scheduled_run = version.tags.get(SCHEDULED_RUN_TAG, "")
    results = [item.result for item in scene.scheduled_runs if item.name in scene.last]
    named = any(
        (result.get("name"), result.get("version")) == (version.name, version.number)
        for result in results
    )
    ours = (
        (scene.workdir / "retrainings" / scheduled_run).is_dir()
        if scheduled_run
        else version.tags.get("run_key", "") in scene.run_of_key
    )
    unfinished = any(
        item.name == scheduled_run and not item.result for item in scene.scheduled_runs
    )
    reasons = {
        f"it is the {' and the '.join(version.aliases)}": bool(version.aliases),
        "it waits for approval": version.gate == "waiting",
        "it was not registered by `promote`": not version.release_sha256,
        "it has the lowest test error": version is scene.best.get(version.name),
        f"it is of one of the last {scene.keep} retrainings": scheduled_run in scene.last or named,
        "it was made in another work directory": not ours,
        "a person made it": scene.retrainings_only and not scheduled_run,
        f"it is one of the last {scene.keep} versions": (
            not scheduled_run and (version.name, version.number) in scene.newest
        ),
        "it is young": (
            (not scheduled_run or unfinished)
            and scene.now - version.created < scene.min_age_seconds
        ),
    }
    return next((why for why, holds in reasons.items() if holds), "")


def _needed_folders(scene: _Scene, stay: list[Version]) -> dict[Path, str]:
    """Return why each folder below `stages` stays, an empty text where it does not.

    Interrupted ones among them.
    """
    selected = [scene.workdir / "stages" / name for name in _selected(scene.workdir)]
    drawn = [
        scene.workdir / "networks" / "stages" / name
        for name in _selected(scene.workdir / "networks")
    ]
    reasons = dict.fromkeys([*selected, *drawn], "the last command here selected it")
    for folder in _stage_folders(scene.workdir):
        if folder not in reasons and (
            folder.name in scene.stages_of_last or _is_of_last(scene.maker(folder), scene)
        ):
            reasons[folder] = f"one of the last {scene.keep} retrainings made it"
    _keep_images(reasons, scene, stay)
    models = {version.tags.get("model_sha256"): version for version in stay}
    for folder in _stage_folders(scene.workdir):
        if folder not in reasons:
            reasons[folder] = _why_folder(folder, scene, models)
    return reasons


def _stage_folders(workdir: Path) -> list[Path]:
    """Return the folders of stages, interrupted ones among them."""
    folders = (*workdir.glob("stages/*-*"), *workdir.glob("networks/stages/*-*"))
    return sorted(folder for folder in folders if not folder.name.startswith(REMOVED_PREFIX))


def _selected(workdir: Path) -> set[str]:
    """Return the names of the folders that the last command selected, with those that it may have been interrupted in."""
    current = _read(workdir / "current.json")
    stages, last = (
        found if isinstance(found, dict) else {}
        for found in (current.get("stages"), current.get("last"))
    )
    entries = [entry.get("directory") for entry in stages.values() if isinstance(entry, dict)]
    names = {str(name) for name in [*entries, *last.values()] if name}
    return names | {f"{name}.partial" for name in names}


def _is_of_last(scheduled_run: _RetrainingFolder | None, scene: _Scene) -> bool:
    return scheduled_run is not None and scheduled_run.name in scene.last


def _keep_images(reasons: dict[Path, str], scene: _Scene, stay: list[Version]) -> None:
    """Keep the dataset that the champion and the version before it were released by, and the folder that its shards are in."""
    datasets = [
        (folder, _read(folder / Artifact.FILE)) for folder in scene.workdir.glob("stages/ingest-*")
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
            for other in _stage_folders(scene.workdir):
                if other not in reasons and shards.is_relative_to(other.resolve()):
                    reasons[other] = f"{folder.name} reads its shards"


def _why_folder(folder: Path, scene: _Scene, models: Mapping[str | None, Version]) -> str:
    """Return why a folder stays that neither the last command nor a retraining that stays needs."""
    maker, left = scene.maker(folder), folder.suffix in (".partial", ".old")
    if folder.suffix == ".old":
        return ""
    if (
        folder.name.startswith("evaluate-")
        and not left
        and (version := models.get(_read(folder / Artifact.FILE).get("model_sha256")))
    ):
        return f"it is the evaluation of version {version.number}"
    if not (maker and maker.result) and scene.is_young(folder):
        return "it is young"
    return "a person made it" if scene.retrainings_only and maker is None else ""


def _used(
    scene: _Scene, stay: list[Version], go: list[Version], folders: Mapping[Path, str]
) -> dict[str, str]:
    """Return the ids of MLflow's runs and models that are behind what stays, and what that is."""
    going = {f"{version.name} {version.number}" for version in go}
    used = {
        name: f"{', '.join(sorted(titles - going))} is made of it"
        for name, titles in scene.in_use.items()
        if titles - going
    }
    for version in stay:
        if run_id := scene.run_of_key.get(version.tags.get("run_key", "")):
            used.setdefault(run_id, f"{version.name} {version.number} was judged in it")
    for folder, why in folders.items():
        if why and (run_id := scene.run_of_key.get(scene.account(folder).get("run_key", ""))):
            used.setdefault(run_id, f"{folder.name} was made in it")
    for run in itertools.chain.from_iterable(
        scheduled_run.runs for scheduled_run in scene.scheduled_runs
    ):
        for model in run.models:
            used |= {run.run_id: used[model.model_id]} if model.model_id in used else {}
        if run.run_id in used and run.parent_id:
            used.setdefault(run.parent_id, "a run below it stays")
    return used


def _sorted_versions(
    scene: _Scene, reasons: Sequence[tuple[Version, str]]
) -> Iterator[Removal | KeptItem]:
    for version, why in reasons:
        model = scene.models.get(version.source.removeprefix("models:/"))
        what, size = (
            f"{version.name} {version.number}",
            scene.bytes_of(model.folder if model else None),
        )
        if why:
            yield KeptItem("model version", what, size, why)
        else:
            gone = f"no alias names it, and it is none of the last {scene.keep}, nor the best"
            yield Removal("model version", what, size, gone, version=version, model=model)


def _sorted_runs(scene: _Scene, used: Mapping[str, str]) -> Iterator[Removal | KeptItem]:
    for scheduled_run in scene.scheduled_runs:
        for run in scheduled_run.runs:
            what = f"{run.name} {run.run_id}"
            why = (
                f"it is of {scheduled_run.name}, one of the last {scene.keep}"
                if scheduled_run.name in scene.last
                else used.get(run.run_id, "")
            )
            size = scene.bytes_of(run.folder, *(model.folder for model in run.models))
            if why:
                yield KeptItem("MLflow run", what, size, why)
            else:
                yield Removal(
                    "MLflow run",
                    what,
                    size,
                    f"{scheduled_run.name} is none of the last {scene.keep} of its kind",
                    run=run,
                )


def _lost_models(scene: _Scene) -> Iterator[Removal]:
    """Yield releases' files that were stored and whose version never came, or went in a `clean` that was killed."""
    for model in scene.models.values():
        if (
            RELEASE_TAG in model.tags
            and model.model_id not in scene.in_use
            and scene.now - model.created > MIN_AGE_SECONDS
        ):
            yield Removal(
                "MLflow model",
                model.model_id,
                scene.bytes_of(model.folder),
                "it is the files of no version",
                model=model,
            )


def _sorted_folders(scene: _Scene, folders: Mapping[Path, str]) -> Iterator[Removal | KeptItem]:
    for folder, why in sorted(folders.items()):
        kind: Kind = (
            "interrupted stage" if folder.suffix in (".partial", ".old") else "stage folder"
        )
        if not folder.exists():
            continue
        if why:
            yield KeptItem(kind, folder.name, scene.bytes_of(folder), why)
        else:
            maker = scene.maker(folder)
            gone = (
                f"{maker.name} made it, none of the last {scene.keep} of its kind"
                if maker
                else "nothing selects it"
            )
            yield Removal(kind, folder.name, scene.bytes_of(folder), gone, path=folder)


def _logs(scene: _Scene) -> Iterator[Removal]:
    """Yield the logs and pages of old retrainings, and the folders of those that never came to an end."""
    for schedule in sorted(scene.workdir.glob("retrainings/*/")):
        folders = sorted(
            folder for folder in schedule.glob("*/") if not folder.name.startswith(".")
        )
        for folder in folders[: -_LOGS * scene.keep]:
            what, why = (
                f"{schedule.name}/{folder.name}",
                f"it is none of the last {_LOGS * scene.keep} of {schedule.name}",
            )
            if not (folder / "result.json").exists() and (folder / PRUNED_FILE).exists():
                yield Removal(
                    "retraining",
                    what,
                    scene.bytes_of(folder),
                    f"{why}, and did not come to an end",
                    path=folder,
                )
            elif what not in scene.last:
                for log in sorted(folder.glob("output.log*")):
                    yield Removal("log", f"{what}/{log.name}", scene.bytes_of(log), why, path=log)
        for folder in folders[: -_PAGES * scene.keep]:
            what, page = f"{schedule.name}/{folder.name}", folder / "report"
            if what not in scene.last and page.is_dir():
                why = f"it is none of the last {_PAGES * scene.keep} of {schedule.name}"
                yield Removal("page", f"{what}/report", scene.bytes_of(page), why, path=page)


def _copies(scene: _Scene, stay: list[Version]) -> Iterator[Removal]:
    """Yield what was fetched or exported of versions that are gone.

    And, of what was fetched otherwise, all: it is fetched each time.
    """
    releases = {version.release_sha256 for version in stay}
    for folder in sorted(scene.workdir.glob("fetched/*")):
        ours = len(folder.name) == _HEX_DIGITS
        if (
            folder.name not in releases
            and not scene.is_young(folder, MIN_AGE_SECONDS)
            and (ours or not scene.retrainings_only)
        ):
            yield Removal(
                "copy",
                f"fetched/{folder.name}",
                scene.bytes_of(folder),
                "no version has these files",
                path=folder,
            )
    titles, names = (
        {f"{version.name} {version.number}" for version in stay},
        {version.name for version in scene.versions},
    )
    for folder in sorted(scene.workdir.glob("exports/*/")) if not scene.retrainings_only else ():
        title = str(_read(folder / "parity.json").get("model", ""))
        if (
            title.rpartition(" ")[0] in names
            and title not in titles
            and not scene.is_young(folder, MIN_AGE_SECONDS)
        ):
            yield Removal(
                "export",
                f"exports/{folder.name}",
                scene.bytes_of(folder),
                f"{title} is gone",
                path=folder,
            )


def _rests(scene: _Scene) -> Iterator[Removal]:
    """Yield what a `clean` that was killed had begun to remove."""
    places = (
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
        sorted(scene.workdir.glob(f"{place}/{REMOVED_PREFIX}*")) for place in places
    ):
        yield Removal(
            "rest",
            str(path.relative_to(scene.workdir)),
            scene.bytes_of(path),
            "its removal was interrupted",
            path=path,
        )


def _is_over(
    scheduled_run: _RetrainingFolder, scene: _Scene, used: Mapping[str, str], stay: list[Version]
) -> bool:
    """Return whether nothing but its result is left of a retraining once the plan is done."""
    named = any(
        version.tags.get(SCHEDULED_RUN_TAG) == scheduled_run.name for version in stay
    ) or any(run.run_id in used for run in scheduled_run.runs)
    return (
        scheduled_run.name not in scene.last and not named and not list_undelivered(scene.workdir)
    )


# -- the work --------------------------------------------------------------------------------------


def collect_garbage(
    plan: GarbagePlan, removed: Callable[[Removal], None] = lambda _: None
) -> tuple[Removal, ...]:
    """Remove what a plan says, and return what went; the caller holds the work directory.

    What got an alias since the look, and the files and runs behind it, stay.

    Args:
        plan: made now, with the work directory held since.
        removed: told of each removal once it is done.

    Raises:
        TrackingError: the store does not answer; what went before is gone, and the next look finds
            the rest.
    """
    config, workdir, done = plan.config.tracking, plan.workdir, list[Removal]()
    for removal in plan.removals:
        if removal.run or (removal.version and not _is_deleted(removal.version, plan)):
            continue
        if removal.path is not None:
            remove_folder(removal.path)
        elif removal.model is not None and removal.model.model_id not in list_files_in_use(
            config, workdir
        ):
            delete_model(config, workdir, removal.model)
        done.append(removal)
        removed(removal)
    runs = _free_runs(plan)  # last, as they say who made a stage's folder
    forget_runs(workdir, [run.run_id for _, run in runs])
    for removal, run in runs:
        delete_run(config, workdir, run)
        done.append(removal)
        removed(removal)
    if len(done) == len(plan.removals):
        for folder in plan.pruned:
            if folder.exists():
                write_text(
                    folder / PRUNED_FILE,
                    json.dumps({"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}),
                )
    return tuple(done)


def _free_runs(plan: GarbagePlan) -> list[tuple[Removal, StoredRun]]:
    """Return the runs that may still go.

    Neither they, nor their models, nor the runs below them are behind a version.
    """
    planned = [(removal, removal.run) for removal in plan.removals if removal.run]
    held = set(list_files_in_use(plan.config.tracking, plan.workdir)) if planned else set()
    held |= {run.parent_id for _, run in planned if _ids(run) & held}
    return [(removal, run) for removal, run in planned if not _ids(run) & held]


def _is_deleted(version: Version, plan: GarbagePlan) -> bool:
    return Registry(version.name, plan.config.tracking, plan.workdir).delete_version(version.number)


def _ids(run: StoredRun) -> set[str]:
    return {run.run_id, *(model.model_id for model in run.models)}
