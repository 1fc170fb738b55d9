"""What runs, what is skipped and why, and where results live.

A stage is a plain function: one settings section and the records it needs go in, one record comes
out. The Runner gives each stage a folder named by a fingerprint of everything that can change its
result:

    <workdir>/stages/<stage>-<hash(code, settings, inputs, source)>/

Same in, same folder: the stage is skipped. A stage works in `<folder>.partial`, which is renamed
when its record is written, so a folder that is there is complete, whatever killed the process.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.artifacts import Artifact, DatasetArtifact, TrainingResult
from pipeline.config.resolution import Resolved, field_names
from pipeline.config.section import Section
from pipeline.config.settings import Config
from pipeline.engine.fingerprint import Fingerprint, code_parts
from pipeline.engine.stage import (
    SCRATCH,
    Context,
    NoRun,
    Observer,
    Outcome,
    Stage,
    StageRun,
    Tracker,
)
from pipeline.engine.workdir import disk_is_full, is_held
from pipeline.errors import MissingInputError, PipelineError
from pipeline.files import publish_folder, write_text

_LOOK_SECONDS = 1.0  # how often a worker looks whether the chief has made what it waits for


@dataclass(frozen=True)
class Finding:
    """What a look at the work directory says of one stage, without running anything."""

    stage: str
    state: Literal["done", "running", "stale", "missing", "interrupted", "waiting"]
    directory: Path | None
    why: tuple[str, ...]
    run_key: str = ""


class Runner:
    """Runs stages in order, skips what is already there, and remembers where results live.

    Args:
        stages: in the order in which they run; each needs only records that earlier ones make.
        workdir: the folder that everything is written under.
        observer: told what happens.
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
        self._selects = selects

    # -- where things live -------------------------------------------------------------------------

    @property
    def _current_file(self) -> Path:
        return self.workdir / "current.json"

    def current(self) -> dict[str, Any]:
        """Return what the last command here selected.

        `recipe`; `stages`: for each stage its `directory` and `settings`; `last`: the folder of the
        last result of each stage.
        """
        nothing: dict[str, Any] = {"recipe": None, "stages": {}, "last": {}}
        try:
            current = json.loads(self._current_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return nothing
        return nothing | current if _is_selection(current) else nothing

    def remembered(self, names: Sequence[str] = ()) -> tuple[str | None, dict[str, Any]]:
        """Return the recipe and the settings that the last command here left for the stages before the first of `names`.

        Without names, for every stage. A command that begins at the beginning remembers nothing.
        """
        order = [item.name for item in self.stages]
        first = min((order.index(name) for name in names), default=len(order))
        current = self.current()
        settings: dict[str, Any] = {}
        for name in order[:first]:
            settings |= current["stages"].get(name, {}).get("settings", {})
        settings = {
            name: value for name, value in settings.items() if name in field_names()
        }  # an earlier version may have had others
        return (current["recipe"] if first else None), settings

    def fingerprint(
        self, item: Stage, config: Config, records: Mapping[str, Artifact], *, named: bool = True
    ) -> Fingerprint:
        """Return everything that decides the stage's result.

        A stage that the command does not name is taken as it was when it was made: its outside
        source is not looked at again.
        """
        section = getattr(config, item.section)
        parts: dict[str, Any] = dict(code_parts(item.function.__module__, item.registries))
        if item.chosen_code is not None:
            parts |= item.chosen_code(section)
        effective = section.model_dump(mode="json", exclude=set(section.WITHOUT_EFFECT))
        parts |= {f"setting {item.section}.{name}": value for name, value in effective.items()}
        parts |= {
            f"input {self._maker(kind).name}": records[self._maker(kind).name].identity()
            for kind in item.inputs.values()
        }
        if item.source is not None:
            entry, own = (
                self.current()["stages"].get(item.name, {}),
                _settings(item.section, section),
            )
            selected = (
                entry.get("directory")
                if json.dumps(entry.get("settings"), sort_keys=True)
                == json.dumps(own, sort_keys=True)
                else None
            )
            earlier = (
                self._account(self.workdir / "stages" / selected).get("fingerprint", {})
                if selected and not named
                else {}
            )
            source = {part: value for part, value in earlier.items() if part.startswith("source ")}
            parts |= source or {
                f"source {name}": value for name, value in item.source(section).items()
            }
        return Fingerprint(parts)

    def _maker(self, kind: type[Artifact]) -> Stage:
        (maker,) = (item for item in self.stages if item.output is kind)
        return maker

    def _folder(self, item: Stage, fingerprint: Fingerprint) -> Path:
        return self.workdir / "stages" / f"{item.name}-{fingerprint.digest}"

    def _finished(self, item: Stage, folder: Path) -> Artifact | None:
        """Return the record in a folder if the stage is complete there and every promised file is."""
        try:
            record = item.output.read(folder)
        except (OSError, ValueError):
            return None
        return record if all(path.exists() for path in record.promised_files()) else None

    def _adopt(self, item: Stage, folder: Path) -> None:
        """Publish what a killed process had finished but not yet renamed, and sweep what it had not yet removed."""
        if (
            self._finished(item, folder) is None
            and self._finished(item, _partial(folder)) is not None
        ):
            self._publish(_partial(folder), folder)
        for rest in (*folder.parent.glob(f"{item.name}-*.old"), folder / SCRATCH):
            shutil.rmtree(rest, ignore_errors=True)

    def _account(self, folder: Path | None) -> dict[str, Any]:
        """Return how a result came to be: fingerprint, seconds and run key."""
        with contextlib.suppress(OSError, ValueError):
            account = json.loads(((folder or Path()) / "run.json").read_text(encoding="utf-8"))
            if isinstance(account, dict) and isinstance(account.get("fingerprint"), dict):
                return account
        return {}

    def _changes(self, item: Stage, fingerprint: Fingerprint) -> tuple[str, ...]:
        """Say what changed since the result of this stage that the last command used."""
        name = self.current()["last"].get(item.name)
        account = self._account(self.workdir / "stages" / name) if name else {}
        if not account:
            return ("no earlier result",)
        return fingerprint.differences(account["fingerprint"]) or ("its result is gone or damaged",)

    # -- looking -----------------------------------------------------------------------------------

    def look(self, config: Config, names: Sequence[str] = ()) -> list[Finding]:
        """Say of each of some stages, or of all, whether its result is there for these settings, and if not why; runs nothing."""
        records: dict[str, Artifact] = {}
        return [
            self._look_at(item, config, records)
            for item in self.stages
            if not names or item.name in names
        ]

    def _look_at(self, item: Stage, config: Config, records: dict[str, Artifact]) -> Finding:
        needed = [self._maker(kind).name for kind in item.inputs.values()]
        if missing := [name for name in needed if name not in records]:
            return Finding(
                item.name, "waiting", None, tuple(f"{name} comes first" for name in missing)
            )
        fingerprint = self.fingerprint(item, config, records)
        folder = self._folder(item, fingerprint)
        record = self._finished(item, folder)
        if record is not None:
            records[item.name] = record
            account = self._account(folder)
            return Finding(item.name, "done", folder, (), account.get("run_key", ""))
        why = self._changes(item, fingerprint)
        if _partial(folder).exists():
            state: Literal["running", "interrupted"] = (
                "running" if is_held(self.workdir / "owner.json") else "interrupted"
            )
            return Finding(item.name, state, _partial(folder), why)
        return Finding(
            item.name, "missing" if why == ("no earlier result",) else "stale", None, why
        )

    # -- running -----------------------------------------------------------------------------------

    def run(
        self,
        resolved: Resolved,
        names: Sequence[str],
        tracker: Tracker,
        rerun: Sequence[str] = (),
        conclude: Callable[[Mapping[str, Artifact]], Path | None] = lambda _: None,
    ) -> Iterator[Outcome]:
        """Run the named stages in order and yield what became of each.

        None after one whose record says that it is the last.

        A stage that is needed but not named must be finished already. Closes the tracker with the
        right status.

        Args:
            resolved: the settings.
            names: the stages.
            tracker: records what happens.
            rerun: those that run although they are finished.
            conclude: given all records at the end; what it writes into the folder that it returns
                is logged on the pipeline's run.

        Raises:
            MissingInputError: a needed stage has no result for these settings.
        """
        with self.recorded(tracker):
            records: dict[str, Artifact] = {}
            for item in self.stages[
                : 1 + max(i for i, item in enumerate(self.stages) if item.name in names)
            ]:
                yield from self._step(
                    item, item.name in names, item.name in rerun, resolved, records, tracker
                )
                if records[item.name].is_last:
                    break
            if folder := conclude(records):
                tracker.files(folder)

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
        self, item: Stage, resolved: Resolved, records: Mapping[str, Artifact], tracker: Tracker
    ) -> Outcome:
        """Run a stage that is no part of the chain, or skip it if it is done.

        `records` are those of the chain that it takes.
        """
        (outcome,) = self._step(item, True, False, resolved, dict(records), tracker)
        return outcome

    def is_performed(self, item: Stage, config: Config, records: Mapping[str, Artifact]) -> bool:
        """Return whether such a stage is done."""
        return (
            self._finished(item, self._folder(item, self.fingerprint(item, config, records)))
            is not None
        )

    def _step(
        self,
        item: Stage,
        named: bool,
        forced: bool,
        resolved: Resolved,
        records: dict[str, Artifact],
        tracker: Tracker,
    ) -> Iterator[Outcome]:
        fingerprint = self.fingerprint(item, resolved.config, records, named=named)
        folder = self._folder(item, fingerprint)
        self._adopt(item, folder)
        record = self._finished(item, folder)
        if record is None and not named:
            raise MissingInputError(
                f"{item.name} has no result for these settings"
                f" ({'; '.join(self._changes(item, fingerprint)[:3])})",
                expected=f"a finished {item.name} in {self.workdir}",
                hint=f"Type `alexnet {item.name}` first, with the same options, or name both in one"
                " command",
            )
        if record is not None and not (named and (forced or item.always)):
            outcome = Outcome(
                item.name, "skipped", 0.0, folder, self._account(folder).get("run_key", ""), record
            )
            tracker.link(item.name, outcome.run_key)
        else:
            why = (
                ("asked for by --rerun" if forced else "it is never skipped",)
                if record
                else self._changes(item, fingerprint)
            )
            self.prepare()
            self._select(item, folder, resolved)
            outcome = self._execute(item, fingerprint, folder, why, resolved, records, tracker)
            record = item.output.read(folder)
        records[item.name] = record
        self._select(item, folder, resolved, finished=True)
        if named:
            self.observer.finished(outcome)
            yield outcome

    def is_done(self, name: str, config: Config, names: Sequence[str]) -> bool:
        """Return whether a stage's result, and those before it, are there for these settings, when a command names some stages."""
        records: dict[str, Artifact] = {}
        for item in self.stages:
            record = self._finished(
                item,
                self._folder(
                    item, self.fingerprint(item, config, records, named=item.name in names)
                ),
            )
            if record is None or item.name == name:
                return record is not None
            records[item.name] = record
        return False

    def take_part(
        self,
        name: str,
        config: Config,
        names: Sequence[str],
        rerun: Sequence[str],
        require_chief: Callable[[], None],
    ) -> None:
        """Work on one stage beside another process, the chief, once the chief has made what it needs; write nothing.

        Ends when the chief has the stage's result: a chief that is lost before wants the others to
        be there again.

        Args:
            name: of the stage.
            config: the same settings as the chief's.
            names: the stages that the command names.
            rerun: those that it runs although they are finished.
            require_chief: raises when the chief is gone.
        """
        records: dict[str, Artifact] = {}
        for item in self.stages:
            folder = self._folder(
                item, self.fingerprint(item, config, records, named=item.name in names)
            )
            if (
                item.name == name
                and item.take_part is not None
                and (name in rerun or self._finished(item, folder) is None)
            ):
                arguments: dict[str, Any] = {
                    argument: records[self._maker(kind).name]
                    for argument, kind in item.inputs.items()
                }
                arguments[item.config_argument] = getattr(config, item.section)
                while not _partial(folder).exists():
                    require_chief()
                    time.sleep(_LOOK_SECONDS)
                item.take_part(
                    **arguments, context=Context(_partial(folder), NoRun(), self.observer)
                )
            while (record := self._finished(item, folder)) is None:
                require_chief()
                time.sleep(_LOOK_SECONDS)
            records[item.name] = record
            if item.name == name:
                return

    def _execute(
        self,
        item: Stage,
        fingerprint: Fingerprint,
        folder: Path,
        why: tuple[str, ...],
        resolved: Resolved,
        records: Mapping[str, Artifact],
        tracker: Tracker,
    ) -> Outcome:
        """Run one stage in `<folder>.partial`, publish it as `<folder>` and record how it went."""
        self.observer.started(item.name, why)
        started = time.monotonic()
        partial = self._fresh_partial(item, folder)
        attempt = partial / "attempt.json"
        earlier = (
            json.loads(attempt.read_text(encoding="utf-8"))["run_key"] if attempt.exists() else ""
        )
        run = tracker.stage_run(item.name, item.section, resolved, earlier)
        write_text(attempt, json.dumps({"run_key": run.key}))
        try:
            arguments: dict[str, Any] = {
                name: records[self._maker(kind).name] for name, kind in item.inputs.items()
            }
            arguments[item.config_argument] = getattr(resolved.config, item.section)
            context = Context(
                partial, run, self.observer, self.workdir, resolved.config, tracker.own_tags
            )
            made = item.function(**arguments, context=context)
            if item.draw is not None:
                item.draw(made.model_copy(update={"directory": partial}), context.report_directory)
            seconds = time.monotonic() - started
            before = self._account(folder)
            earlier_keys = [
                *before.get("earlier_run_keys", []),
                *([before["run_key"]] if before else []),
            ]
            account = {
                "fingerprint": fingerprint.parts,
                "seconds": round(seconds, 3),
                "run_key": run.key,
                "earlier_run_keys": earlier_keys,
            }
            write_text(partial / "run.json", json.dumps(account, indent=1))
            attempt.unlink()
            write_text(partial / Artifact.FILE, made.model_dump_json(indent=1))
            self._publish(partial, folder)
            record = item.output.read(folder)
            _log_result(run, item.name, [*arguments.values(), record])
        except BaseException as error:
            status: Literal["KILLED", "FAILED"] = (
                "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
            )
            run.close(status, f"{type(error).__name__}: {error}")
            self.observer.finished(
                Outcome(item.name, "failed", time.monotonic() - started, partial, run.key, why=why)
            )
            if disk_is_full(error):
                raise PipelineError(
                    f"The disk is full: {partial} cannot be written",
                    expected="free space on its disk",
                    received=f"{shutil.disk_usage(partial).free:,} free bytes",
                    hint="Finished results are kept: free some space, or type --workdir with a"
                    " folder on another disk, and the command again",
                ) from error
            raise
        run.close("FINISHED")
        return Outcome(item.name, "ran", seconds, folder, run.key, record, why)

    def _publish(self, partial: Path, folder: Path) -> None:
        shutil.rmtree(partial / SCRATCH, ignore_errors=True)
        publish_folder(partial, folder)

    def _fresh_partial(self, item: Stage, folder: Path) -> Path:
        partial = _partial(folder)
        if not item.resumable:
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, exist_ok=True)
        return partial

    def _made_from(self, item: Stage) -> set[str]:
        """Return the names of the stages that take what a stage makes, or what is made of it."""
        users = {other.name for other in self.stages if item.output in other.inputs.values()}
        return users.union(
            *(self._made_from(other) for other in self.stages if other.name in users)
        )

    def _select(
        self, item: Stage, folder: Path, resolved: Resolved, *, finished: bool = False
    ) -> None:
        """Make this result, which is there or is about to be made, the one that later commands start from."""
        if not self._selects:
            return
        current = self.current()
        order = [other.name for other in self.stages]
        settings = _settings(item.section, getattr(resolved.config, item.section))
        entry = {"directory": folder.name, "settings": settings}
        # What was made from another result of this stage is no longer selected.
        same = current["recipe"] == resolved.recipe and current["stages"].get(item.name) == entry
        lost = (
            set[str]()
            if same
            else (
                self._made_from(item)
                if current["recipe"] == resolved.recipe
                else set(order[order.index(item.name) :])
            )
        )
        kept = {name: value for name, value in current["stages"].items() if name not in lost}
        selected = {
            "recipe": resolved.recipe,
            "stages": (
                {name: value for name, value in kept.items() if value is not None}
                | {item.name: entry}
            ),
            "last": current["last"] | ({item.name: folder.name} if finished else {}),
        }
        if selected != current:
            self.workdir.mkdir(parents=True, exist_ok=True)
            write_text(self._current_file, json.dumps(selected, indent=1))


def _settings(name: str, section: Section) -> dict[str, Any]:
    """Return `section.field` -> value."""
    return {f"{name}.{field_}": value for field_, value in section.model_dump().items()}


def _is_selection(value: Any) -> bool:
    """Return whether a JSON value has the shape of `current.json`.

    Whatever has not counts as nothing selected.
    """
    if not isinstance(value, dict):
        return False
    stages, last = value.get("stages", {}), value.get("last", {})
    return (
        isinstance(stages, dict)
        and isinstance(last, dict)
        and all(isinstance(entry, dict) for entry in stages.values())
    )


def _log_result(run: StageRun, stage: str, records: Sequence[Any]) -> None:
    """Record what a finished stage read and made; the last of the records is what it made."""
    for dataset in records:
        if isinstance(dataset, DatasetArtifact):
            run.dataset(dataset, context=stage)
    if isinstance(records[-1], TrainingResult):
        run.model(records[-1])
    run.tags(
        {"mlflow.note.content": records[-1].headline()}, summary=True
    )  # the description of the run, and of the pipeline's so far
    run.files(records[-1].directory / "report")


def _partial(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")
