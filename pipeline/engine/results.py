"""Where finished results live, and how each came to be.

<workdir>/stages/<stage>-<fingerprint>/            a finished result
<workdir>/stages/<stage>-<fingerprint>.partial/    one that is being made, or was interrupted
    artifact.json    the record
    run.json         how it came to be: fingerprint, seconds, run key, accepted code
    report/          pages, which can be drawn again
    scratch/         what only an interrupted attempt leaves
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact
from pipeline.engine.fingerprint import Fingerprint
from pipeline.engine.stage import REPORT, SCRATCH, Stage
from pipeline.errors import ConfigError
from pipeline.files import publish_folder, recover_folder, write_text

ACCOUNT_FILE = "run.json"


@dataclass(frozen=True)
class Account:
    """How a result came to be.

    `accepted` lists the changes of code that were accepted: each with `when` and `changes`.
    """

    fingerprint: dict[str, Any]
    seconds: float = 0.0
    run_key: str = ""
    earlier_run_keys: tuple[str, ...] = ()
    accepted: tuple[dict[str, Any], ...] = ()


def partial_folder(folder: Path) -> Path:
    """Return the folder in which a result is made."""
    return folder.with_name(f"{folder.name}.partial")


def read_account(folder: Path) -> Account | None:
    """Return how a result came to be, or None where nothing readable says it."""
    try:
        stored = json.loads((folder / ACCOUNT_FILE).read_text(encoding="utf-8"))
        account = Account(**stored)
    except (OSError, ValueError, TypeError):
        return None
    if not isinstance(account.fingerprint, dict):
        return None
    return replace(
        account,
        earlier_run_keys=tuple(account.earlier_run_keys),
        accepted=tuple(account.accepted),
    )


def write_account(folder: Path, account: Account) -> None:
    """Write how a result came to be beside its record."""
    write_text(folder / ACCOUNT_FILE, json.dumps(vars(account), indent=1))


class ResultStore:
    """The results of the stages of one work directory.

    Args:
        workdir: the work directory.
    """

    def __init__(self, workdir: Path):
        self._stages = workdir / "stages"

    def folder_of(self, stage: Stage, fingerprint: Fingerprint) -> Path:
        """Return the folder that a result of this fingerprint has."""
        return self._stages / f"{stage.name}-{fingerprint.digest}"

    def folder_named(self, name: str) -> Path:
        """Return the folder of a result by its name."""
        return self._stages / name

    def read_record(self, stage: Stage, folder: Path) -> Artifact | None:
        """Return the record in a folder if the stage is complete there, else None."""
        try:
            record = stage.output.read(folder)
        except (OSError, ValueError):
            return None
        return record if all(path.exists() for path in record.promised_files()) else None

    def adopt_leftovers(self, stage: Stage, folder: Path) -> None:
        """Publish what a killed process finished but did not rename; remove what it left."""
        partial = partial_folder(folder)
        recover_folder(folder / REPORT)
        if self.read_record(stage, folder) is None and self.read_record(stage, partial):
            self.publish(folder)
        for rest in (*folder.parent.glob(f"{stage.name}-*.old"), folder / SCRATCH):
            shutil.rmtree(rest, ignore_errors=True)

    def open_partial(self, stage: Stage, folder: Path) -> Path:
        """Return the folder to make a result in, with an interrupted attempt's files if wanted."""
        partial = partial_folder(folder)
        if not stage.resumable:
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, exist_ok=True)
        return partial

    def publish(self, folder: Path) -> None:
        """Rename a complete partial folder to its final name."""
        partial = partial_folder(folder)
        shutil.rmtree(partial / SCRATCH, ignore_errors=True)
        publish_folder(partial, folder)

    def accept(
        self, stage: Stage, earlier: Path, fingerprint: Fingerprint, changes: Sequence[str], at: str
    ) -> Path:
        """Publish an earlier result under a fingerprint that differs from its own in code alone.

        Files are linked, not copied; the earlier folder stays. `run.json` says what was accepted.

        Args:
            stage: the stage that made it.
            earlier: its folder.
            fingerprint: that of now.
            changes: what differs, such as `code pipeline.train.loop changed`.
            at: the time, ISO 8601.

        Returns:
            The new folder.
        """
        account, folder = read_account(earlier), self.folder_of(stage, fingerprint)
        if account is None:
            raise FileNotFoundError(earlier / ACCOUNT_FILE)
        partial = partial_folder(folder)
        shutil.rmtree(partial, ignore_errors=True)
        last = (ACCOUNT_FILE, Artifact.FILE)
        ignored = shutil.ignore_patterns(*last)
        shutil.copytree(earlier, partial, copy_function=_link_or_copy, ignore=ignored)
        accepted = (*account.accepted, {"when": at, "changes": list(changes)})
        write_account(partial, replace(account, fingerprint=fingerprint.parts, accepted=accepted))
        # The record comes last: a folder that has one is complete.
        _link_or_copy(str(earlier / Artifact.FILE), str(partial / Artifact.FILE))
        publish_folder(partial, folder)
        return folder

    def redraw(self, stage: Stage, folder: Path) -> Path:
        """Draw the pages of a finished result again, complete or not at all.

        Returns:
            The folder of the pages.

        Raises:
            PipelineError: the record or what the pages are drawn from is damaged.
        """
        if stage.draw is None:
            raise ValueError(stage.name)
        record, report = self.read_record(stage, folder), folder / REPORT
        if record is None:
            raise ConfigError(
                f"{folder} holds no {stage.name} that this version can read",
                expected="a finished result of this version",
                hint=f"Type `alexnet {stage.name}` to make it again",
            )
        recover_folder(report)
        partial = partial_folder(report)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(report, partial) if report.is_dir() else partial.mkdir()
        stage.draw(record, partial)
        publish_folder(partial, report)
        return report


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
