"""The ledger of the schedules: each due time is a slot, recorded once, with one final state.

SQLite, in one file.

    due ----> claimed ----> ran        the work was done; `outcome` says what came of it
     |  ^        |          failed     it was tried, and why it did not come to its end
     |  +--------+          skipped    nothing was to be done, and why
     +--------------------> skipped, coalesced    another slot stands for it: of several that were
     missed, the last one runs

A slot is named by its schedule and its due time in UTC, so a due time can be recorded by any number
of processes and is there once. One that somebody asked for, a manual one, takes a free second;
where that is a due time of the schedule, it stands for it. Every change is one immediate
transaction: a process that is killed has made it or has not. Who claims a slot owns it until it has
a final state; when the owner is dead, another process takes it over.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from pipeline.config.recipes import suggest_spelling
from pipeline.engine.workdir import unwritable
from pipeline.errors import BusyError, ConfigError, PipelineError
from pipeline.schedule.timing import Timing, due_between, start_of

Kind = Literal["scheduled", "manual"]
State = Literal["due", "claimed", "ran", "coalesced", "skipped", "failed"]
FINAL_STATES = ("ran", "coalesced", "skipped", "failed")
_OUTCOME_FIELDS = ("outcome", "version", "run_id", "run_url", "page")
_BUSY_SECONDS = 30.0
_FRESH = timedelta(
    minutes=15
)  # an owner on another host that was heard of so lately is believed to live
_KEY_TIME = "%Y%m%dT%H%M%SZ"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # it names a folder, and is no option
BY_HAND = "by-hand"  # what a retraining without a schedule has for a name
# Entry N leads from version N of the file to N + 1. Entries are never changed: files of theirs are
# on people's disks.
_STEPS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE schedules (
            name TEXT PRIMARY KEY, cron TEXT NOT NULL, every_seconds INTEGER NOT NULL, timezone TEXT NOT NULL,
            jitter_seconds INTEGER NOT NULL, words TEXT NOT NULL, created INTEGER NOT NULL, paused INTEGER NOT NULL DEFAULT 0,
            seen INTEGER NOT NULL
        )""",
        """CREATE TABLE slots (
            schedule TEXT NOT NULL, due INTEGER NOT NULL, kind TEXT NOT NULL CHECK (kind IN ('scheduled', 'manual')),
            state TEXT NOT NULL CHECK (state IN ('due', 'claimed', 'ran', 'coalesced', 'skipped', 'failed')),
            why TEXT NOT NULL DEFAULT '', outcome TEXT NOT NULL DEFAULT '', version TEXT NOT NULL DEFAULT '',
            run_id TEXT NOT NULL DEFAULT '', run_url TEXT NOT NULL DEFAULT '', page TEXT NOT NULL DEFAULT '',
            attempts INTEGER NOT NULL DEFAULT 0, started REAL, ended REAL, beat REAL, owner TEXT NOT NULL DEFAULT '',
            hook TEXT NOT NULL DEFAULT '', PRIMARY KEY (schedule, due)
        ) WITHOUT ROWID""",
        "CREATE INDEX open_slots ON slots (due) WHERE state IN ('due', 'claimed')",
        "CREATE INDEX untold_slots ON slots (due) WHERE hook = '' AND state IN ('ran', 'failed')",
        "CREATE INDEX latest_slots ON slots (due)",
    ),
)


@dataclass(frozen=True)
class Schedule:
    """What is retrained when.

    Attributes:
        name: letters, digits and . _ -
        timing: when it is due.
        words: what the command line of a retraining gets, such as ("--recipe", "folder").
        created: when it was first put into the ledger, UTC.
        paused: whether its slots are skipped.
        seen: up to when its due times are recorded, UTC.
    """

    name: str
    timing: Timing
    words: tuple[str, ...]
    created: datetime
    paused: bool
    seen: datetime


@dataclass(frozen=True)
class Slot:
    """One due time of a schedule, and what became of it.

    Attributes:
        schedule: its name; it may be gone from the ledger.
        due: UTC, whole seconds.
        kind: whether the schedule or a person wanted it.
        state: see the top of this file.
        why: a sentence on the state.
        outcome: of a retraining: promoted, refused, unchanged, waiting, skipped; or empty.
        version: of the registered model, or empty.
        run_id: of the MLflow run, or empty.
        run_url: where the run is looked at, or empty.
        page: the file of the page on the retraining, or empty.
        attempts: how often its work was begun.
        started: when it was begun first, UTC.
        ended: when it got its final state, UTC.
        owner: the process that claimed it; see `owner_of_this_process`.
        hook: what became of telling the hook; empty for not yet.
    """

    schedule: str
    due: datetime
    kind: Kind
    state: State
    why: str
    outcome: str
    version: str
    run_id: str
    run_url: str
    page: str
    attempts: int
    started: datetime | None
    ended: datetime | None
    owner: str
    hook: str

    @property
    def key(self) -> str:
        """Its name, and its folder below `retrainings/`: NAME/20261127T030000Z."""
        return key_of(self.schedule, self.due)

    @property
    def final(self) -> bool:
        """Whether nothing more becomes of it."""
        return self.state in FINAL_STATES


def key_of(schedule: str, due: datetime) -> str:
    """Return the name of a slot: NAME/20261127T030000Z."""
    return f"{schedule}/{due.astimezone(UTC).strftime(_KEY_TIME)}"


def read_key(key: str) -> tuple[str, datetime]:
    """Return the schedule and the due time, in UTC, that a slot's name says.

    Raises:
        ConfigError: it is no such name.
    """
    name, _, due = key.partition("/")
    if _NAME.fullmatch(name):
        with contextlib.suppress(ValueError):
            return name, datetime.strptime(due, _KEY_TIME).replace(tzinfo=UTC)
    raise ConfigError(
        f"{key[:100]!r} names no slot. Expected NAME/20261127T030000Z. `alexnet history` shows"
        " them."
    )


def check_name(name: str) -> None:
    """Refuse a name of a schedule that cannot name a folder.

    Raises:
        ConfigError: it cannot.
    """
    if not _NAME.fullmatch(name) or name == BY_HAND:
        raise ConfigError(
            "The name of the schedule cannot name a folder. Expected letters, digits and . _ -"
            f" with a letter or a digit first, 64 at most. Received {name[:80]!r}. Check --name."
        )


def utc_now() -> datetime:
    """Return the time, in UTC."""
    return datetime.now(UTC)


# -- owners ----------------------------------------------------------------------------------------


def owner_of_this_process() -> str:
    """Return what names this process and no other, also after a restart of the machine.

    Host/pid/boot/start of the process.
    """
    return owner_of(os.getpid())


def owner_of(pid: int) -> str:
    """Return the same of another process of this machine."""
    return f"{socket.gethostname()}/{pid}/{_boot()}/{_started(pid)}"


def is_alive(owner: str, beat: datetime | None = None, now: datetime | None = None) -> bool:
    """Return whether an owner lives.

    On this host whether it is that process, on another whether it was heard of lately.

    Args:
        owner: as `owner_of_this_process` names it.
        beat: when it was last heard of, UTC.
        now: the time, UTC.
    """
    host, _, process = owner.partition("/")
    if not process:
        return False
    if host != socket.gethostname():
        return beat is not None and (now or utc_now()) - beat < _FRESH
    pid, _, _ = process.partition("/")
    return pid.isdecimal() and owner == owner_of(int(pid)) and not process.endswith("/")


def owner_text(owner: str) -> str:
    """Return an owner for people: `process 123 on host`."""
    host, pid, *_ = *owner.split("/"), ""
    return f"process {pid} on {host}"


def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _started(pid: int) -> str:
    """Return when a process was started, in clock ticks since the boot.

    Empty where there is none, or only what is left of one.
    """
    with contextlib.suppress(OSError):
        fields = (
            Path(f"/proc/{pid}/stat")
            .read_text(encoding="utf-8", errors="replace")
            .rpartition(")")[2]
            .split()
        )  # a name may hold ")"
        return "" if fields[0] in "ZX" else fields[19]
    return ""


# -- the ledger ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ledger:
    """The file of schedules and slots.

    Made by the first change, while a question finds nothing where there is none.

    Every method raises a ConfigError where the file is damaged or of a newer version, a BusyError
    where others hold it for long, and a PipelineError where the disk refuses. Times are UTC. One
    connection for each call: threads and processes may share it.
    """

    path: Path
    now: Callable[[], datetime] = utc_now

    # schedules

    def put(
        self, name: str, timing: Timing, words: tuple[str, ...] = (), since: datetime | None = None
    ) -> Schedule:
        """Add a schedule, or change it; what is the same already stays untouched.

        A new timing counts from now, and slots of the earlier one that wait are skipped. New words
        are those of the next retraining.

        Args:
            name: of the schedule.
            timing: when it is due.
            words: for the command line of a retraining.
            since: due times of a schedule that is new count from then, by default from now.

        Raises:
            ConfigError: the name cannot name a folder.
        """
        check_name(name)
        with self._writing() as file:
            now = self.now()
            old = _schedules(file, name)
            if old and old[0].timing != timing:
                self._sweep(file, now)
                _end_waiting(file, name, "the schedule was changed", now, begun=True)
            if not old or old[0].timing != timing:
                when = (timing.cron, timing.every_seconds, timing.timezone, timing.jitter_seconds)
                seen = _seconds(now if old or since is None else since)
                file.execute(
                    "INSERT INTO schedules (name, cron, every_seconds, timezone, jitter_seconds,"
                    " words, created, seen) VALUES (?, ?, ?, ?, ?, '[]', ?, ?) ON CONFLICT (name)"
                    " DO UPDATE SET cron = excluded.cron, every_seconds = excluded.every_seconds,"
                    " timezone = excluded.timezone, jitter_seconds = excluded.jitter_seconds, seen"
                    " = excluded.seen",
                    (name, *when, _seconds(now), seen),
                )
            file.execute("UPDATE schedules SET words = ? WHERE name = ?", (json.dumps(words), name))
            return _schedules(file, name)[0]

    def schedules(self) -> list[Schedule]:
        """Return all schedules, by name."""
        with self._reading() as file:
            return [] if file is None else _schedules(file)

    def schedule(self, name: str) -> Schedule:
        """Return a schedule.

        Raises:
            ConfigError: there is none of the name.
        """
        with self._reading() as file:
            return _known(file, name)

    def pause(self, name: str) -> None:
        """Let a schedule's slots be skipped from now on, those that wait included.

        One whose work has begun waits until `resume`.

        Raises:
            ConfigError: there is none of the name.
        """
        with self._writing() as file:
            _known(file, name)
            self._sweep(file, self.now())
            file.execute("UPDATE schedules SET paused = 1 WHERE name = ?", (name,))
            _end_waiting(file, name, "paused", self.now())

    def resume(self, name: str) -> None:
        """Let a paused schedule go on with its next due time.

        Raises:
            ConfigError: there is none of the name.
        """
        with self._writing() as file:
            _known(file, name)
            self._sweep(file, self.now())
            file.execute("UPDATE schedules SET paused = 0 WHERE name = ?", (name,))

    def remove(self, name: str) -> None:
        """Take a schedule out; its history stays, what waits is skipped, and what runs goes on to its end.

        Raises:
            ConfigError: there is none of the name.
        """
        with self._writing() as file:
            _known(file, name)
            self._sweep(file, self.now())
            _end_waiting(
                file, name, "the schedule was removed", self.now(), begun=True, manual=True
            )
            file.execute("DELETE FROM schedules WHERE name = ?", (name,))

    # slots

    def sweep(self) -> None:
        """Record every due time up to now.

        Of a schedule's slots that wait, the last one stands for all.
        """
        with self._writing() as file:
            self._sweep(file, self.now())

    def _sweep(self, file: sqlite3.Connection, now: datetime) -> None:
        for schedule in _schedules(file):
            last = schedule.seen
            for due in due_between(schedule.timing, schedule.seen, now):
                file.execute(
                    "INSERT OR IGNORE INTO slots (schedule, due, kind, state) VALUES (?, ?,"
                    " 'scheduled', 'due')",
                    (schedule.name, _seconds(due)),
                )
                last = due
            if last == schedule.seen:
                continue
            file.execute(
                "UPDATE schedules SET seen = ? WHERE name = ?", (_seconds(last), schedule.name)
            )
            if schedule.paused:
                _end_waiting(file, schedule.name, "paused", now)
            else:
                _coalesce(file, schedule.name, now)

    def ask(self, name: str, kind: Kind = "manual") -> Slot:
        """Add a slot that is due now to the second, or in the next second that has none.

        Args:
            name: of the schedule.
            kind: "scheduled" where another engine has the clock, and says that the schedule is due.

        Raises:
            ConfigError: there is no schedule of the name.
        """
        with self._writing() as file:
            _known(file, name)
            self._sweep(file, self.now())  # what is due this second is there before it
            due = _seconds(self.now())
            while file.execute(
                "SELECT 1 FROM slots WHERE schedule = ? AND due = ?", (name, due)
            ).fetchone():
                due += 1
            file.execute(
                "INSERT INTO slots (schedule, due, kind, state) VALUES (?, ?, ?, 'due')",
                (name, due, kind),
            )
            return _slots(file, "schedule = ? AND due = ?", (name, due))[0]

    def claim(self, owner: str, slot: Slot | None = None) -> Slot | None:
        """Make a slot that waits this owner's, and return it.

        The one named, or the oldest whose start has come.

        Returns:
            None where none waits, or where a living owner has claimed any slot of this ledger: one
            at a time works in a work directory.

        Args:
            owner: who will do it.
            slot: this one alone, even before its jitter is over or while its schedule is paused.
        """
        with self._writing() as file:
            now = self.now()
            claimed = file.execute(
                "SELECT owner, beat FROM slots WHERE state = 'claimed'"
            ).fetchall()
            if any(is_alive(row["owner"], _moment(row["beat"]), now) for row in claimed):
                return None
            if slot is None:
                slot = _first_to_start(file, now)
            if slot is None:
                return None
            place = (slot.schedule, _seconds(slot.due))
            changed = file.execute(
                "UPDATE slots SET state = 'claimed', owner = ?, beat = ? WHERE schedule = ? AND due"
                " = ? AND state = 'due'",
                (owner, now.timestamp(), *place),
            ).rowcount
            return _slots(file, "schedule = ? AND due = ?", place)[0] if changed else None

    def take_over(self, owner: str) -> list[Slot]:
        """Make every claimed slot this owner's whose owner is dead, and return them, the oldest first."""
        with self._writing() as file:
            now = self.now()
            claimed = file.execute(
                "SELECT schedule, due, owner, beat FROM slots WHERE state = 'claimed' ORDER BY due"
            ).fetchall()
            dead = [
                row
                for row in claimed
                if row["owner"] != owner and not is_alive(row["owner"], _moment(row["beat"]), now)
            ]
            places = [(row["schedule"], row["due"]) for row in dead]
            for place in places:
                file.execute(
                    "UPDATE slots SET owner = ?, beat = ? WHERE schedule = ? AND due = ?",
                    (owner, now.timestamp(), *place),
                )
            return [_slots(file, "schedule = ? AND due = ?", place)[0] for place in places]

    def begin_attempt(self, slot: Slot) -> Slot | None:
        """Count one more start of a slot's work, and return it as it is then.

        None where it is not the owner's any more.
        """
        with self._writing() as file:
            now = self.now().timestamp()
            changed = _change_own(
                file,
                slot,
                "attempts = attempts + 1, started = coalesce(started, ?), beat = ?",
                (now, now),
            )
            return (
                _slots(file, "schedule = ? AND due = ?", (slot.schedule, _seconds(slot.due)))[0]
                if changed
                else None
            )

    def beat(self, slot: Slot) -> bool:
        """Tell processes on other hosts that the owner lives.

        False where the slot is not the owner's any more.
        """
        with self._writing() as file:
            return _change_own(file, slot, "beat = ?", (self.now().timestamp(),))

    def finish(
        self, slot: Slot, state: State, why: str, result: Mapping[str, Any] | None = None
    ) -> bool:
        """Give a slot its final state.

        Returns:
            Whether this did it: not where it has one already, or is not the owner's any more.

        Args:
            slot: as it was claimed.
            state: ran, skipped or failed.
            why: a sentence.
            result: of the retraining: outcome, version, run_id, run_url, page; what is missing
                stays empty.
        """
        known = [str((result or {}).get(name) or "") for name in _OUTCOME_FIELDS]
        names = ", ".join(f"{name} = ?" for name in _OUTCOME_FIELDS)
        with self._writing() as file:
            return _change_own(
                file,
                slot,
                f"state = ?, why = ?, ended = ?, {names}",
                (state, why, self.now().timestamp(), *known),
            )

    def release(self, slot: Slot, why: str) -> bool:
        """Let a claimed slot wait again.

        One whose work has begun stays itself until it is done, whatever comes due meanwhile.
        """
        with self._writing() as file:
            released = _change_own(
                file, slot, "state = 'due', owner = '', beat = NULL, why = ?", (why,)
            )
            if released and slot.schedule not in {schedule.name for schedule in _schedules(file)}:
                _end_waiting(
                    file,
                    slot.schedule,
                    "the schedule was removed",
                    self.now(),
                    begun=True,
                    manual=True,
                )
            return released

    def note_hook(self, slot: Slot, text: str) -> None:
        """Write what became of telling the hook of a slot; not empty."""
        with self._writing() as file:
            file.execute(
                "UPDATE slots SET hook = ? WHERE schedule = ? AND due = ?",
                (text, slot.schedule, _seconds(slot.due)),
            )

    # questions

    def slot(self, key: str) -> Slot | None:
        """Return a slot by its name, NAME/20261127T030000Z, or None."""
        name, due = read_key(key)
        return next(iter(self._found("schedule = ? AND due = ?", (name, _seconds(due)))), None)

    def open_slots(self) -> list[Slot]:
        """Return the slots without a final state, the oldest first."""
        return self._found("state IN ('due', 'claimed')", (), "ORDER BY due, schedule")

    def untold(self) -> list[Slot]:
        """Return the slots that ran or failed and of which nobody has noted what the hook was told, the oldest first."""
        return self._found("hook = '' AND state IN ('ran', 'failed')", (), "ORDER BY due, schedule")

    def history(self, name: str = "", limit: int = 50) -> list[Slot]:
        """Return the latest slots of a schedule, or of all, the newest first."""
        if name:
            return self._found("schedule = ?", (name,), f"ORDER BY due DESC LIMIT {int(limit)}")
        return self._found("1", (), f"ORDER BY due DESC, schedule LIMIT {int(limit)}")

    def _found(self, condition: str, values: tuple[Any, ...], order: str = "") -> list[Slot]:
        with self._reading() as file:
            return [] if file is None else _slots(file, condition, values, order)

    # the file

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """Open the file for questions; None where there is none yet."""
        with self._answering():
            version = self._version()
        if 0 < version < len(_STEPS):
            with self._writing():
                pass
        with self._answering():
            if version == 0:
                yield None
                return
            with contextlib.closing(self._connect("rw")) as file:
                yield file

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Open the file for one change, which is made whole or not at all."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.path.parent, error) from error
        with self._answering(), contextlib.closing(self._connect("rwc")) as file:
            file.execute("BEGIN IMMEDIATE")
            try:
                self._upgrade(file)
                yield file
                file.execute("COMMIT")
            finally:
                if file.in_transaction:
                    file.execute("ROLLBACK")

    def _connect(self, mode: str) -> sqlite3.Connection:
        file = sqlite3.connect(
            f"{self.path.resolve().as_uri()}?mode={mode}",
            uri=True,
            timeout=_BUSY_SECONDS,
            isolation_level=None,
        )
        file.row_factory = sqlite3.Row
        file.execute("PRAGMA synchronous = FULL")
        return file

    def _version(self) -> int:
        """Return the version of the file; 0 where there is none, or nothing in it.

        Raises:
            ConfigError: it is newer than this program, or another program's.
        """
        if not self.path.exists():
            return 0
        with contextlib.closing(self._connect("rw")) as file:
            return self._checked_version(file)

    def _checked_version(self, file: sqlite3.Connection) -> int:
        version = int(file.execute("PRAGMA user_version").fetchone()[0])
        if version > len(_STEPS):
            raise ConfigError(
                f"The ledger {self.path} is of version {version}, of a newer alexnet. Expected"
                f" {len(_STEPS)} at most. Upgrade this program, or name another folder with"
                " --workdir."
            )
        if version == 0 and file.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise ConfigError(
                f"The file {self.path} is another program's. Expected a ledger of schedules. Name"
                " another folder with --workdir."
            )
        return version

    def _upgrade(self, file: sqlite3.Connection) -> None:
        """Bring the file to this program's version, within the transaction that is open.

        An older one is kept beside it.
        """
        version = self._checked_version(file)
        if 0 < version < len(_STEPS):
            self._back_up(version)
        for step in _STEPS[version:]:
            for statement in step:
                file.execute(statement)
        if version < len(_STEPS):
            file.execute(f"PRAGMA user_version = {len(_STEPS)}")

    def _back_up(self, version: int) -> None:
        """Copy the file as it is before the open transaction; a copy that is there is complete."""
        target = self.path.with_name(f"{self.path.name}.v{version}.backup")
        partial = target.with_name(f"{target.name}.partial")
        partial.unlink(missing_ok=True)
        with (
            contextlib.closing(self._connect("rw")) as source,
            contextlib.closing(sqlite3.connect(partial)) as copy,
        ):
            source.backup(copy)
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        partial.replace(target)

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn what SQLite says into sentences."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            refusal = _refusal(self.path, error)
            if refusal is None:
                raise
            raise refusal from error


def _refusal(path: Path, error: sqlite3.DatabaseError) -> PipelineError | None:
    """Return the error for what SQLite said; None for a bug of ours."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return BusyError(
            f"The ledger {path} is held by another process. Expected it free within"
            f" {_BUSY_SECONDS:.0f} s. Type the command again."
        )
    if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")) or "no such" in str(error):
        return ConfigError(
            f"The ledger {path} is damaged ({error}). Expected a file that alexnet wrote. Put a"
            " copy in its place, or move it away: the schedules are then to be typed again, and"
            " the history is gone."
        )
    if name.startswith(
        ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")
    ):
        return PipelineError(
            f"The ledger {path} cannot be read or written ({error}). Expected room on its disk, and"
            " the right to write. Mend that and type the command again; nothing is lost."
        )
    return None


# -- rows ------------------------------------------------------------------------------------------


def _seconds(moment: datetime) -> int:
    """Return whole seconds since 1970, the fraction cut off."""
    return int(moment.timestamp() // 1)


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _schedules(file: sqlite3.Connection, name: str = "") -> list[Schedule]:
    rows = file.execute("SELECT * FROM schedules WHERE ? IN (name, '') ORDER BY name", (name,))
    return [
        Schedule(
            name=row["name"],
            timing=Timing(
                row["cron"], row["every_seconds"], row["timezone"], row["jitter_seconds"]
            ),
            words=tuple(json.loads(row["words"])),
            created=datetime.fromtimestamp(row["created"], UTC),
            paused=bool(row["paused"]),
            seen=datetime.fromtimestamp(row["seen"], UTC),
        )
        for row in rows
    ]


def _known(file: sqlite3.Connection | None, name: str) -> Schedule:
    known = {} if file is None else {schedule.name: schedule for schedule in _schedules(file)}
    if name in known:
        return known[name]
    listed = ", ".join(list(known)[:10]) or "there is none yet"
    raise ConfigError(
        f"There is no schedule {name[:80]!r}",
        expected=f"one of this work directory: {listed}",
        hint=f"{suggest_spelling(name, tuple(known))} `alexnet schedules` shows them".strip(),
    )


def _slots(
    file: sqlite3.Connection, condition: str, values: tuple[Any, ...], order: str = ""
) -> list[Slot]:
    rows = file.execute(f"SELECT * FROM slots WHERE {condition} {order}", values)  # noqa: S608 - conditions are those of this file
    return [
        Slot(
            schedule=row["schedule"],
            due=datetime.fromtimestamp(row["due"], UTC),
            kind=row["kind"],
            state=row["state"],
            why=row["why"],
            **{name: row[name] for name in _OUTCOME_FIELDS},
            attempts=row["attempts"],
            started=_moment(row["started"]),
            ended=_moment(row["ended"]),
            owner=row["owner"],
            hook=row["hook"],
        )
        for row in rows
    ]


def _change_own(file: sqlite3.Connection, slot: Slot, change: str, values: tuple[Any, ...]) -> bool:
    """Change a slot that its owner holds, and return whether it does."""
    sentence = f"UPDATE slots SET {change} WHERE schedule = ? AND due = ? AND state = 'claimed' AND owner = ?"  # noqa: S608 - ours
    return (
        file.execute(sentence, (*values, slot.schedule, _seconds(slot.due), slot.owner)).rowcount
        == 1
    )


def _end_waiting(
    file: sqlite3.Connection,
    name: str,
    why: str,
    now: datetime,
    *,
    begun: bool = False,
    manual: bool = False,
) -> None:
    """Skip what waits of a schedule.

    Scheduled slots, and on wish those whose work has begun, and manual ones.
    """
    file.execute(
        "UPDATE slots SET state = 'skipped', why = ?, ended = ? WHERE schedule = ? AND state ="
        " 'due' AND (kind = 'scheduled' OR ?) AND (started IS NULL OR ?)",
        (why, now.timestamp(), name, manual, begun),
    )


def _coalesce(file: sqlite3.Connection, name: str, now: datetime) -> None:
    """Let the last of the slots that wait stand for the earlier ones.

    What has begun, and what somebody asked for, stays itself.
    """
    waiting = "schedule = ? AND state = 'due' AND kind = 'scheduled' AND started IS NULL"
    last = file.execute(f"SELECT max(due) FROM slots WHERE {waiting}", (name,)).fetchone()[0]  # noqa: S608 - ours
    if last is None:
        return
    why = f"{key_of(name, datetime.fromtimestamp(last, UTC))} stands for it"
    file.execute(
        f"UPDATE slots SET state = 'coalesced', why = ?, ended = ? WHERE {waiting} AND due < ?",  # noqa: S608 - ours
        (why, now.timestamp(), name, last),
    )


def _first_to_start(file: sqlite3.Connection, now: datetime) -> Slot | None:
    """Return the oldest slot that may start now."""
    schedules = {schedule.name: schedule for schedule in _schedules(file)}
    for slot in _slots(
        file,
        "state = 'due' AND (due <= ? OR kind = 'manual')",
        (_seconds(now),),
        "ORDER BY due, schedule",
    ):
        schedule = schedules.get(slot.schedule)
        if slot.kind == "manual":
            return slot
        if schedule is None or schedule.paused:
            continue
        if slot.started is not None or start_of(schedule.timing, slot.schedule, slot.due) <= now:
            return slot
    return None
