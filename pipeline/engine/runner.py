"""What runs, what is skipped and why.

A stage is a plain function: one settings section and the records it needs go in, one record comes
out. The Runner gives each stage a folder named by a fingerprint of everything that can change its
numbers. Same in, same folder: the stage is skipped.

    for each stage that is named, or makes what a named one takes:
        fingerprint -> folder
        finished there?                            skip it
        not named?                                 refuse: it must be finished first
        only its code changed, and that accepted?  publish the earlier result under the new name
        else                                       run it in <folder>.partial, then rename

Longer than 400 lines because the cases above share one decision and one way to publish a folder.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

from pipeline.artifacts import Artifact, DatasetArtifact, SavedModel
from pipeline.config.recipes import flatten
from pipeline.config.resolution import Resolved
from pipeline.config.section import Section
from pipeline.config.settings import Config
from pipeline.engine.fingerprint import Fingerprint, code_parts, package_parts
from pipeline.engine.results import (
    Account,
    ResultStore,
    partial_folder,
    read_account,
    write_account,
)
from pipeline.engine.selection import Selection
from pipeline.engine.stage import (
    REPORT,
    Context,
    Observer,
    Outcome,
    Stage,
    StageRun,
    Tracker,
    UnrecordedRun,
)
from pipeline.engine.workdir import disk_is_full, is_held
from pipeline.errors import ConfigError, MissingInputError, PipelineError
from pipeline.files import write_text

_LOOK_SECONDS = 1.0  # how often a worker looks whether the chief has made what it waits for
_NO_EARLIER_RESULT = ("no earlier result",)


@dataclass(frozen=True)
class StageStatus:
    """What a look at the work directory finds of one stage, without running anything."""

    stage: str
    state: Literal["done", "running", "stale", "missing", "interrupted", "waiting"]
    directory: Path | None
    why: tuple[str, ...]
    run_key: str = ""
    accepted: tuple[dict[str, Any], ...] = ()


class Runner:
    """Runs stages in order and skips what is there.

    Args:
        stages: in the order in which they run; each needs only records that earlier ones make.
        workdir: the folder that everything is written under.
        observer: notified of what happens.
        prepare: called once before the first stage that really runs; may configure heavy libraries.
        selects: whether later commands go on from what these stages make.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        workdir: Path,
        observer: Observer,
        prepare: Callable[[], None] = lambda: None,
        *,
        selects: bool = True,
    ):
        self.stages = tuple(stages)
        self.workdir = workdir
        self.observer = observer
        self.prepare = functools.cache(prepare)
        self.selection = Selection(self.stages, workdir)
        self.results = ResultStore(workdir)
        self._selects = selects

    # -- fingerprints ------------------------------------------------------------------------------

    def fingerprint(
        self, stage: Stage, config: Config, records: Mapping[str, Artifact], *, named: bool = True
    ) -> Fingerprint:
        """Return everything that decides a stage's result.

        A stage that the command does not name is taken as it was when it was made: its outside
        source is not looked at again. What is not there any more is taken as it was, too.
        """
        section = getattr(config, stage.section)
        parts: dict[str, Any] = dict(code_parts(stage.function.__module__, stage.left_out_modules))
        effective = section.model_dump(mode="json", exclude=set(section.WITHOUT_EFFECT))
        parts |= {
            f"setting {name}": value
            for name, value in flatten(effective, type(section), f"{stage.section}.").items()
        }
        for kind in stage.inputs.values():
            maker = self._maker_of(kind).name
            parts[f"input {maker}"] = records[maker].identity()
        if stage.chosen_packages is not None:
            inputs = {
                name: records[self._maker_of(kind).name] for name, kind in stage.inputs.items()
            }
            parts |= package_parts(
                stage.chosen_packages(**{stage.config_argument: section}, **inputs)
            )
        return Fingerprint(parts | self._outside_parts(stage, section, named=named))

    def _outside_parts(self, stage: Stage, section: Section, *, named: bool) -> dict[str, str]:
        """Return the parts of code that the settings choose and of the outside source."""
        found: dict[str, str | None] = {}
        if stage.chosen_code is not None:
            found |= stage.chosen_code(section)
        if stage.source is not None:
            known = {} if named else self._known_parts(stage, section)
            source = {part: value for part, value in known.items() if part.startswith("source ")}
            found |= source or {
                f"source {name}": value for name, value in stage.source(section).items()
            }
        recorded = self._known_parts(stage, section) if None in found.values() else {}
        return {
            part: str(recorded.get(part, "missing")) if value is None else value
            for part, value in found.items()
        }

    def _known_parts(self, stage: Stage, section: Section) -> dict[str, Any]:
        """Return the fingerprint's parts of the selected result, if it has these settings."""
        entry = self.selection.read()["stages"].get(stage.name, {})
        own = _flatten_section(stage.section, section)
        same = json.dumps(entry.get("settings"), sort_keys=True) == json.dumps(own, sort_keys=True)
        if not same or not entry.get("directory"):
            return {}
        account = read_account(self.results.folder_named(entry["directory"]))
        return dict(account.fingerprint) if account else {}

    def _maker_of(self, kind: type[Artifact]) -> Stage:
        (maker,) = (stage for stage in self.stages if stage.output is kind)
        return maker

    def _last_result(self, stage: Stage) -> tuple[Path, Account] | None:
        """Return the last result of a stage that a command used: its folder and its account."""
        name = self.selection.last_folder(stage.name)
        folder = self.results.folder_named(name) if name else None
        account = read_account(folder) if folder else None
        return (folder, account) if folder and account else None

    def _changes_since(self, stage: Stage, fingerprint: Fingerprint) -> tuple[str, ...]:
        """Return what changed since the last result of a stage, in words."""
        last = self._last_result(stage)
        if last is None:
            return _NO_EARLIER_RESULT
        changes = fingerprint.differences(last[1].fingerprint)
        return changes or ("its result is gone or damaged",)

    # -- looking -----------------------------------------------------------------------------------

    def inspect_stages(self, config: Config, names: Sequence[str] = ()) -> list[StageStatus]:
        """Return for each stage whether its result exists for these settings, and if not why.

        Args:
            config: the settings.
            names: the stages; none means all.
        """
        records: dict[str, Artifact] = {}
        return [
            self._inspect_stage(stage, config, records)
            for stage in self.stages
            if not names or stage.name in names
        ]

    def _inspect_stage(
        self, stage: Stage, config: Config, records: dict[str, Artifact]
    ) -> StageStatus:
        needed = [self._maker_of(kind).name for kind in stage.inputs.values()]
        if missing := [name for name in needed if name not in records]:
            why = tuple(f"{name} comes first" for name in missing)
            return StageStatus(stage.name, "waiting", None, why)
        fingerprint = self.fingerprint(stage, config, records)
        folder = self.results.folder_of(stage, fingerprint)
        record = self.results.read_record(stage, folder)
        if record is not None:
            records[stage.name] = record
            account = read_account(folder) or Account({})
            return StageStatus(stage.name, "done", folder, (), account.run_key, account.accepted)
        why = self._changes_since(stage, fingerprint)
        partial = partial_folder(folder)
        if partial.exists():
            held = is_held(self.workdir / "owner.json")
            return StageStatus(stage.name, "running" if held else "interrupted", partial, why)
        return StageStatus(
            stage.name, "missing" if why == _NO_EARLIER_RESULT else "stale", None, why
        )

    def is_done(self, name: str, config: Config, names: Sequence[str]) -> bool:
        """Return whether the results of a stage and of those before it exist for these settings.

        Args:
            name: of the stage.
            config: the settings.
            names: the stages that the command names.
        """
        records: dict[str, Artifact] = {}
        for stage in self.stages:
            fingerprint = self.fingerprint(stage, config, records, named=stage.name in names)
            record = self.results.read_record(stage, self.results.folder_of(stage, fingerprint))
            if record is None or stage.name == name:
                return record is not None
            records[stage.name] = record
        return False

    def is_performed(self, stage: Stage, config: Config, records: Mapping[str, Artifact]) -> bool:
        """Return whether a stage that is no part of the chain is done."""
        folder = self.results.folder_of(stage, self.fingerprint(stage, config, records))
        return self.results.read_record(stage, folder) is not None

    # -- running -----------------------------------------------------------------------------------

    def run(
        self,
        resolved: Resolved,
        names: Sequence[str],
        tracker: Tracker,
        rerun: Sequence[str] = (),
        conclude: Callable[[Mapping[str, Artifact]], Path | None] = lambda _: None,
        *,
        accept_code: bool = False,
    ) -> Iterator[Outcome]:
        """Run the named stages in order and yield what became of each.

        A record that ends the chain ends it. A stage that is needed but not named must be finished
        already. Closes the tracker with the right status.

        Args:
            resolved: the settings.
            names: the stages.
            tracker: records what happens.
            rerun: those that run although they are finished.
            conclude: given all records at the end; what it writes into the folder that it returns
                is logged on the pipeline's run.
            accept_code: keep a result whose settings and inputs are the same although code changed.

        Raises:
            MissingInputError: a needed stage has no result for these settings.
        """
        with self.recorded(tracker):
            records: dict[str, Artifact] = {}
            for stage in self._needed_stages(names):
                step = _Step(stage, resolved, records, stage.name in names, stage.name in rerun)
                outcome = self._run_step(step, tracker, accept_code=accept_code)
                if step.named:
                    self.observer.finished(outcome)
                    yield outcome
                if records[stage.name].ends_chain:
                    break
            if folder := conclude(records):
                tracker.log_files(folder)

    def _needed_stages(self, names: Sequence[str]) -> list[Stage]:
        """Return the named stages and those whose records they take, directly or not, in order."""
        needed: list[Stage] = []
        for stage in reversed(self.stages):
            taken = any(stage.output in user.inputs.values() for user in needed)
            if stage.name in names or taken:
                needed.insert(0, stage)
        return needed

    @contextlib.contextmanager
    def recorded(self, tracker: Tracker) -> Iterator[None]:
        """Close the tracker with the status that what is done inside ends with."""
        try:
            yield
        except (KeyboardInterrupt, GeneratorExit):
            tracker.close("KILLED")
            raise
        except BaseException:
            tracker.close("FAILED")
            raise
        self.observer.waiting("recording what is left")
        tracker.close("FINISHED")

    def perform(
        self, stage: Stage, resolved: Resolved, records: Mapping[str, Artifact], tracker: Tracker
    ) -> Outcome:
        """Run a stage that is no part of the chain, or skip it if it is done.

        `records` are those of the chain that it takes.
        """
        outcome = self._run_step(_Step(stage, resolved, dict(records), True, False), tracker)
        self.observer.finished(outcome)
        return outcome

    def _run_step(self, step: _Step, tracker: Tracker, *, accept_code: bool = False) -> Outcome:
        """Skip, accept or run one stage, put its record among the others and select it."""
        stage, resolved = step.stage, step.resolved
        fingerprint = self.fingerprint(stage, resolved.config, step.records, named=step.named)
        folder = self.results.folder_of(stage, fingerprint)
        self.results.adopt_leftovers(stage, folder)
        record = self.results.read_record(stage, folder)
        why = step.reason_to_run_again if record else self._changes_since(stage, fingerprint)
        if record is None and accept_code and not (step.forced or stage.always):
            record = self._accept_result(stage, fingerprint)
        if record is None and not step.named:
            raise MissingInputError(
                f"{stage.name} has no result for these settings ({'; '.join(why[:3])})",
                expected=f"a finished {stage.name} in {self.workdir}",
                hint=f"Type `alexnet {stage.name}` first, with the same options, or name both in"
                " one command",
            )
        if record is not None and not (step.named and (step.forced or stage.always)):
            account = read_account(folder) or Account({})
            outcome = Outcome(stage.name, "skipped", 0.0, folder, account.run_key, record)
            tracker.link_skipped_stage(stage.name, outcome.run_key)
        else:
            self.prepare()
            self._select(stage, folder, resolved)
            outcome = self._execute(step, fingerprint, folder, why, tracker)
            record = stage.output.read(folder)
        step.records[stage.name] = record
        self._select(stage, folder, resolved, finished=True)
        return outcome

    def _execute(
        self,
        step: _Step,
        fingerprint: Fingerprint,
        folder: Path,
        why: tuple[str, ...],
        tracker: Tracker,
    ) -> Outcome:
        """Run one stage in `<folder>.partial`, publish it as `<folder>` and record how it went."""
        stage = step.stage
        self.observer.started(stage.name, why)
        started = time.monotonic()
        partial = self.results.open_partial(stage, folder)
        run = _open_run(step, partial, tracker)
        try:
            arguments = self._arguments_of(stage, step.resolved.config, step.records)
            context = Context(
                partial,
                run,
                self.observer,
                self.workdir,
                step.resolved.config,
                tracker.own_tags,
            )
            made = stage.function(**arguments, context=context)
            if stage.draw is not None:
                stage.draw(made.model_copy(update={"directory": partial}), context.report_directory)
            seconds = time.monotonic() - started
            write_account(partial, self._account_of(fingerprint, seconds, run.key, folder))
            (partial / _ATTEMPT_FILE).unlink()
            write_text(partial / Artifact.FILE, made.model_dump_json(indent=1))
            self.results.publish(folder)
            record = stage.output.read(folder)
            read = [value for value in arguments.values() if isinstance(value, Artifact)]
            _record_result(run, stage.name, read, record)
        except BaseException as error:
            killed = isinstance(error, KeyboardInterrupt)
            run.close("KILLED" if killed else "FAILED", f"{type(error).__name__}: {error}")
            seconds = time.monotonic() - started
            self.observer.finished(
                Outcome(stage.name, "failed", seconds, partial, run.key, why=why)
            )
            if disk_is_full(error):
                raise _no_room_for(partial) from error
            raise
        run.close("FINISHED")
        return Outcome(stage.name, "ran", seconds, folder, run.key, record, why)

    def _arguments_of(
        self, stage: Stage, config: Config, records: Mapping[str, Artifact]
    ) -> dict[str, Any]:
        """Return what a stage's function takes besides the context."""
        inputs = {name: records[self._maker_of(kind).name] for name, kind in stage.inputs.items()}
        return {**inputs, stage.config_argument: getattr(config, stage.section)}

    def _account_of(
        self, fingerprint: Fingerprint, seconds: float, run_key: str, folder: Path
    ) -> Account:
        before = read_account(folder)
        earlier = (*before.earlier_run_keys, before.run_key) if before else ()
        return Account(fingerprint.parts, round(seconds, 3), run_key, earlier)

    def _select(
        self, stage: Stage, folder: Path, resolved: Resolved, *, finished: bool = False
    ) -> None:
        """Make a result, which exists or is about to, the one that later commands start from."""
        if self._selects:
            settings = _flatten_section(stage.section, getattr(resolved.config, stage.section))
            self.selection.select(stage, folder.name, resolved.recipe, settings, finished=finished)

    # -- accepting changed code, drawing again -----------------------------------------------------

    def accept_stages(
        self, resolved: Resolved, names: Sequence[str] = ()
    ) -> list[tuple[str, tuple[str, ...]]]:
        """Keep the results of stages although code changed; return what was accepted of each.

        Args:
            resolved: the settings.
            names: the stages; none means all of which code alone changed.

        Raises:
            ConfigError: a named stage has no earlier result, more than its code changed, or an
                earlier stage is stale.
        """
        records: dict[str, Artifact] = {}
        accepted = []
        for stage in self.stages:
            taken = {self._maker_of(kind).name for kind in stage.inputs.values()}
            if stage.always or not taken <= records.keys():
                if stage.name in names:
                    raise _not_acceptable(stage, sorted(taken - records.keys()))
                continue
            fingerprint = self.fingerprint(stage, resolved.config, records)
            folder = self.results.folder_of(stage, fingerprint)
            record = self.results.read_record(stage, folder)
            if record is None and (stage.name in names or not names):
                changes = self._changes_since(stage, fingerprint)
                record = self._accept_result(stage, fingerprint)
                if record is not None:
                    accepted.append((stage.name, changes))
                    self._select(stage, folder, resolved, finished=True)
                elif names:
                    raise _not_code_alone(stage.name, changes)
            if record is not None:
                records[stage.name] = record
        return accepted

    def _accept_result(self, stage: Stage, fingerprint: Fingerprint) -> Artifact | None:
        """Publish the last result under a new fingerprint if only code differs; None otherwise."""
        last = self._last_result(stage)
        if last is None or self.results.read_record(stage, last[0]) is None:
            return None
        changes = fingerprint.differences(last[1].fingerprint)
        if not changes or not fingerprint.differs_in_code_alone(last[1].fingerprint):
            return None
        now = datetime.now(UTC).isoformat(timespec="seconds")
        folder = self.results.accept(stage, last[0], fingerprint, changes, now)
        if self._selects:
            self.selection.rename_result(stage.name, last[0].name, folder.name)
        self.observer.notified(
            f"{stage.name}: kept although code changed: {'; '.join(changes)}; noted in"
            f" {folder / 'run.json'}"
        )
        return self.results.read_record(stage, folder)

    # -- several workers ---------------------------------------------------------------------------

    def take_part(
        self,
        name: str,
        config: Config,
        names: Sequence[str],
        rerun: Sequence[str],
        require_chief: Callable[[], None],
    ) -> None:
        """Work on one stage beside the chief, once the chief has made what it needs.

        Writes nothing. Ends when the chief has the stage's result; a chief that is lost before
        wants the others to exist again.

        Args:
            name: of the stage.
            config: the same settings as the chief's.
            names: the stages that the command names.
            rerun: those that it runs although they are finished.
            require_chief: raises when the chief is gone.
        """
        records: dict[str, Artifact] = {}
        for stage in self.stages:
            fingerprint = self.fingerprint(stage, config, records, named=stage.name in names)
            folder = self.results.folder_of(stage, fingerprint)
            wanted = name in rerun or self.results.read_record(stage, folder) is None
            if stage.name == name and stage.take_part is not None and wanted:
                arguments = self._arguments_of(stage, config, records)
                while not partial_folder(folder).exists():
                    require_chief()
                    time.sleep(_LOOK_SECONDS)
                context = Context(partial_folder(folder), UnrecordedRun(), self.observer)
                stage.take_part(**arguments, context=context)
            while (record := self.results.read_record(stage, folder)) is None:
                require_chief()
                time.sleep(_LOOK_SECONDS)
            records[stage.name] = record
            if stage.name == name:
                return


_ATTEMPT_FILE = "attempt.json"


@dataclass(frozen=True)
class _Step:
    """One stage of a command: what it takes, and whether it is named and forced to run again."""

    stage: Stage
    resolved: Resolved
    records: dict[str, Artifact]
    named: bool
    forced: bool

    @property
    def reason_to_run_again(self) -> tuple[str, ...]:
        return ("asked for by --rerun" if self.forced else "it is never skipped",)


def _open_run(step: _Step, partial: Path, tracker: Tracker) -> StageRun:
    """Begin the run of a stage, or go on with that of the interrupted attempt in its folder."""
    attempt = partial / _ATTEMPT_FILE
    earlier = json.loads(attempt.read_text(encoding="utf-8"))["run_key"] if attempt.exists() else ""
    run = tracker.start_stage_run(step.stage.name, step.stage.section, step.resolved, earlier)
    write_text(attempt, json.dumps({"run_key": run.key}))
    return run


def _record_result(run: StageRun, stage: str, read: Sequence[Artifact], made: Artifact) -> None:
    """Record what a finished stage read and made, each record as it says of itself."""
    for record in (*read, made):
        if record.TRACKED_AS == "dataset":
            run.log_dataset(cast(DatasetArtifact, record), context=stage)
    if made.TRACKED_AS == "model":
        run.log_model(cast(SavedModel, made))
    # The description of the run, and of the pipeline's so far.
    run.set_tags({"mlflow.note.content": made.headline()}, summary=True)
    run.log_files(made.directory / REPORT)


def _flatten_section(name: str, section: Section) -> dict[str, Any]:
    """Return `section.field` -> value."""
    return flatten(section.model_dump(), type(section), f"{name}.")


def _no_room_for(partial: Path) -> PipelineError:
    disk = next(path for path in (partial, *partial.parents) if path.exists())
    return PipelineError(
        f"The disk is full: {partial} cannot be written",
        expected="free space on its disk",
        received=f"{shutil.disk_usage(disk).free:,} free bytes",
        hint="Finished results are kept: free some space, or type --workdir with a folder on"
        " another disk, and the command again",
    )


def _not_acceptable(stage: Stage, stale: Sequence[str]) -> ConfigError:
    if stage.always:
        return ConfigError(
            f"{stage.name} is never skipped, so there is nothing to accept",
            hint=f"Type `alexnet {stage.name}`",
        )
    return ConfigError(
        f"{stage.name} cannot be accepted before {' and '.join(stale)}",
        expected="earlier stages that are done",
        hint=f"Type `alexnet accept {' '.join(stale)} {stage.name}`",
    )


def _not_code_alone(stage: str, changes: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"The result of {stage} cannot be accepted",
        expected="an earlier result of which code alone changed",
        received="; ".join(changes),
        hint=f"Type `alexnet {stage}` to make it again",
    )
