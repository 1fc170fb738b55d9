"""A schedule in the words of engines that people already run.

They are the clock then, and start one slot each time it is due.

    systemd      a service and its timer
    crontab      a line, for cronie (Fedora, RHEL, Arch) and for Debian's cron
    kubernetes   a CronJob and the claim of its volume, for Kubernetes 1.29 or newer
    airflow      a DAG, for Airflow 3
    prefect      a flow that serves itself, for Prefect 3

All of them call `schedule --name NAME --once --workdir W ...`, which takes the slot through the
ledger. How it ends:

    0     done, which may be that nothing was to be done
    3     the gate refused the new model: a decision, so that no engine tries again or calls it a
    failure
    75    another command holds the work directory: tried again later, where the engine can
    else  a failure. The command has tried again by itself what a second try may mend

Text only: nothing of an engine is imported, and equal words make equal text.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.recipes import suggest_spelling
from pipeline.errors import BusyError, ConfigError, GateError
from pipeline.schedule.timing import Cron, Timing, describe, parse_cron

_REFUSED, _BUSY, _SIGTERM = GateError.exit_code, BusyError.exit_code, 143
_BUSY_MINUTES = 10  # between two tries, where another command holds the work directory
# A retraining that drains, and its last checkpoint: the default of 30 to 90 seconds is short for
# slow storage
_STOP_SECONDS = 180
_DAY_SECONDS, _WEEK_SECONDS = 86_400, 604_800
_CRON_BYTES = 998  # Debian's cron takes no longer command
_WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", re.ASCII)
_KUBERNETES_NAME = re.compile(
    r"[a-z0-9]([a-z0-9-]{0,42}[a-z0-9])?", re.ASCII
)  # 52 signs with `alexnet-`, so that a Job's still fits


@dataclass(frozen=True)
class _Job:
    """What is to be started, and when.

    Attributes:
        name: of the schedule.
        timing: of the schedule.
        program: with which the command begins on this machine.
        words: the rest of the command.
        folder: where it runs.
    """

    name: str
    timing: Timing
    program: tuple[str, ...]
    words: tuple[str, ...]
    folder: str

    @property
    def command(self) -> tuple[str, ...]:
        return (*self.program, *self.words)


def emit(
    kind: str, schedule_name: str, timing: Timing, words: Sequence[str], workdir: Path, python: Path
) -> dict[str, str]:
    """Return a schedule's files for an engine, by their names.

    The command runs in the folder that holds the work directory. Relative paths among the words are
    taken from there.

    Args:
        kind: one of `KINDS`.
        schedule_name: of the schedule.
        timing: when it is due.
        words: the options of a retraining, such as `--dataset /data/photos`.
        workdir: the work directory, as the engine will see it.
        python: the Python that has this package; Kubernetes takes the one of its image.

    Raises:
        ConfigError: the engine is unknown, or cannot say this name, timing or command.
    """
    if kind not in _EMITTERS:
        raise ConfigError(
            f"Unknown engine {kind[:80]!r}",
            expected=f"one of {', '.join(KINDS)}",
            hint=f"{suggest_spelling(kind, KINDS)} Check --emit".strip(),
        )
    place = workdir.absolute()
    job = _Job(
        schedule_name,
        timing,
        (str(python.absolute()), "-P", "-m", "pipeline"),
        ("schedule", "--name", schedule_name, "--once", "--workdir", str(place), *words),
        str(place.parent),
    )
    if not _NAME.fullmatch(schedule_name):
        raise ConfigError(
            f"An engine's files cannot be called {schedule_name[:80]!r}. Expected letters, digits"
            " and . _ -, a letter or digit first, 100 at most. Name the schedule otherwise with"
            " --name."
        )
    for word in job.command:
        if not word.isprintable():
            raise ConfigError(
                f"The word {word[:80]!r} cannot be written into an engine's files. Expected no line"
                " breaks and no other signs that cannot be shown. Rename the path, or leave the"
                " word out."
            )
    return _EMITTERS[kind](job)


# -- systemd ---------------------------------------------------------------------------------------


def _systemd(job: _Job) -> dict[str, str]:
    unit = f"alexnet-{job.name}"
    cron = _cron_of(job.timing)
    # systemd starts no program with such a sign in its name. `:` leaves $ alone.
    words = ("/usr/bin/env", *job.command) if set("'\"\\") & set(job.command[0]) else job.command
    command = ":" + " ".join(map(_in_quotes, words))
    service = f"""\
# Retraining, schedule {job.name}: one slot. {unit}.timer starts it.
[Unit]
Description=Retraining, schedule {job.name}

[Service]
# Not `oneshot`, for which systemd starts nothing again because of an exit code.
Type=exec
WorkingDirectory={job.folder.replace("%", "%%")}
ExecStart={command}
# {_REFUSED}: the gate refused the new model, and the champion stays: a decision. {_SIGTERM}: told to stop, it goes on another time.
SuccessExitStatus={_REFUSED} {_SIGTERM}
# {_BUSY}: another command holds the work directory.
RestartForceExitStatus={_BUSY}
RestartSec={_BUSY_MINUTES}min
# SIGTERM to the command alone, which ends what it has started.
KillMode=mixed
TimeoutStopSec={_STOP_SECONDS}
"""
    if cron is None:
        when = f"""\
# No calendar has every {job.timing.every_seconds} seconds: they are counted from the last start, and the first comes with the timer.
OnActiveSec=1min
OnUnitActiveSec={job.timing.every_seconds}
"""
    else:
        calendar = "".join(f"OnCalendar={line}\n" for line in _calendars(cron, _zone(job.timing)))
        when = (
            f"{calendar}# A time that came while the machine was off is made up for,"
            " once.\nPersistent=true\n"
        )
    jitter = (
        f"RandomizedDelaySec={job.timing.jitter_seconds}\n" if job.timing.jitter_seconds else ""
    )
    timer = f"""\
# Retraining, schedule {job.name}: {describe(job.timing)}. With root's rights, and User= in {unit}.service:
#   cp {unit}.service {unit}.timer /etc/systemd/system/ && systemctl daemon-reload && systemctl enable --now {unit}.timer
# For one user: ~/.config/systemd/user/ and `systemctl --user`, and once `loginctl enable-linger`, so that it runs without a login.
# A time that clocks skip in spring does not come that day, and of an hour that comes twice the second does not count.
[Unit]
Description=Retraining, schedule {job.name}: {describe(job.timing).replace("%", "%%")}

[Timer]
{when}AccuracySec=1s
{jitter}
[Install]
WantedBy=timers.target
"""
    return {f"{unit}.service": service, f"{unit}.timer": timer}


def _in_quotes(word: str) -> str:
    """Return a word for systemd, where % begins a specifier."""
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def _calendars(cron: Cron, zone: str) -> list[str]:
    """Return a cron expression as systemd's calendar events, of which any is enough."""
    clock = f"{_list(cron.hours, 0, 23, '..')}:{_list(cron.minutes, 0, 59, '..')}:00 {zone}"
    months, days = _list(cron.months, 1, 12, ".."), _list(cron.days, 1, 31, "..")
    weekdays = (
        ""
        if len(cron.weekdays) == 7
        else ",".join(_WEEKDAYS[number] for number in sorted(cron.weekdays)) + " "
    )
    if cron.either and weekdays and days != "*":
        return [f"*-{months}-{days} {clock}", f"{weekdays}*-{months}-* {clock}"]
    return [f"*-{months}-* {clock}" if cron.either else f"{weekdays}*-{months}-{days} {clock}"]


# -- cron expressions ------------------------------------------------------------------------------


def _cron_of(timing: Timing) -> Cron | None:
    """Return the cron expression that means a timing, in the time zone `_zone`.

    None where none does.
    """
    if timing.cron:
        return parse_cron(timing.cron)
    minutes, rest = divmod(timing.every_seconds, 60)
    if rest == 0 and 60 % minutes == 0:
        return parse_cron(f"*/{minutes} * * * *" if minutes < 60 else "0 * * * *")
    hours, rest = divmod(minutes, 60)
    if rest == 0 and hours and 24 % hours == 0:
        return parse_cron(f"0 */{hours} * * *" if hours < 24 else "0 0 * * *")
    return (
        parse_cron("0 0 * * 4") if timing.every_seconds == _WEEK_SECONDS else None
    )  # 1970 began on a Thursday


def _zone(timing: Timing) -> str:
    """Return whose clock it is: an interval is counted in UTC."""
    return timing.timezone if timing.cron else "UTC"


def _require_cron(job: _Job, engine: str) -> Cron:
    cron = _cron_of(job.timing)
    if cron is None:
        raise ConfigError(
            f"{engine} cannot say {describe(job.timing)}. Expected a part of an hour or of a day,"
            " such as 15m, 1h, 6h or 1d, or 1w. Type --cron with times of a day, or --emit"
            " systemd, airflow or prefect."
        )
    return cron


def _both(cron: Cron) -> bool:
    """Return whether a date must fit both a restricted day of the month and a restricted weekday, as in `0 3 */2 * 1`."""
    return not cron.either and len(cron.days) < 31 and len(cron.weekdays) < 7


def _fields(cron: Cron) -> str:
    """Return five fields that all engines read alike.

    Numbers, 0 for Sunday, and `*` only for everything.
    """
    days, weekdays = _list(cron.days, 1, 31), _list(cron.weekdays, 0, 6)
    if cron.either and "*" in (days, weekdays):
        days = weekdays = "*"
    return " ".join(
        (
            _list(cron.minutes, 0, 59),
            _list(cron.hours, 0, 23),
            days,
            _list(cron.months, 1, 12),
            weekdays,
        )
    )


def _require_fields(job: _Job, engine: str) -> str:
    cron = _require_cron(job, engine)
    if _both(cron):
        raise ConfigError(
            f"{engine} takes a day of the month or a weekday, where {job.timing.cron!r} means both."
            " Expected one of the two to be *. Type another --cron, or --emit systemd, crontab or"
            " prefect."
        )
    return _fields(cron)


def _list(numbers: Iterable[int], least: int, most: int, to: str = "-") -> str:
    """Return numbers as `*`, or as a list in which three or more in a row are a range."""
    rest = sorted(numbers)
    if len(rest) == most - least + 1:
        return "*"
    parts = []
    while rest:
        length = next(
            (size for size in range(len(rest), 2, -1) if rest[size - 1] - rest[0] == size - 1), 1
        )
        parts.append(f"{rest[0]}{to}{rest[length - 1]}" if length > 1 else str(rest[0]))
        rest = rest[length:]
    return ",".join(parts)


# -- crontab ---------------------------------------------------------------------------------------


def _crontab(job: _Job) -> dict[str, str]:
    cron, zone = _require_cron(job, "A crontab"), _zone(job.timing)
    fields = _fields(cron)
    if _both(cron):  # cron itself reads it so, for the * with which one of them begins
        written, parts = job.timing.cron.split(), fields.split()
        fields = " ".join(
            written[place] if place in {2, 4} and written[place].startswith("*") else parts[place]
            for place in range(5)
        )
    command = f"{_sleep(job)}cd {shlex.quote(job.folder)} && exec {shlex.join(job.command)}"
    line = f"{_guard(cron, zone)}{command}".replace("%", "\\%")  # a bare % would end the line
    if len(line.encode()) > _CRON_BYTES:
        raise ConfigError(
            f"The command is too long for a crontab. Expected {_CRON_BYTES} bytes at most. Received"
            f" {len(line.encode())}. Put the settings into a recipe and name it with --recipe, or"
            " type --emit systemd."
        )
    text = f"""\
# Retraining, schedule {job.name}: {describe(job.timing)}.
# Put it into `crontab -e`, at its end: CRON_TZ holds for all lines below it.
# cronie (Fedora, RHEL, Arch) heeds CRON_TZ. Debian's and Ubuntu's cron does not, and takes the machine's time zone: there this line
# is right only where that is {zone}, and elsewhere says so, by mail, and starts nothing. --emit systemd has the zone everywhere.
# cron looks at no exit code: after {_BUSY} (another command holds the work directory) the next slot is the next try.
# What a line prints cron sends by mail; the ledger keeps it, too.
CRON_TZ={zone}
SHELL=/bin/sh
{fields} {line}
"""
    return {f"alexnet-{job.name}.crontab": text}


def _sleep(job: _Job, then: str = " && ") -> str:
    """Return the words that wait up to the jitter, for engines that have none."""
    return (
        f'sleep "$(shuf -i 0-{job.timing.jitter_seconds} -n 1)"{then}'
        if job.timing.jitter_seconds
        else ""
    )


def _guard(cron: Cron, zone: str) -> str:
    """Return the words that end a line where cron has taken the machine's hour for that of the zone."""
    if len(cron.hours) == 24:
        return ""
    hours = shlex.quote(" ".join(f"{hour:02d}" for hour in cron.hours))
    problem = (
        f"This cron does not heed CRON_TZ={zone}, and nothing was started. Expected the time zone"
        f" {zone} of the machine, or cronie."
    )
    there, here = f'*"$(TZ={shlex.quote(zone)} date +%H)"*', '*"$(date +%H)"*'
    return f"case {hours} in {there}) ;; {here}) echo {shlex.quote(problem)} >&2; exit 78;; esac; "


# -- Kubernetes ------------------------------------------------------------------------------------

_TRAP = """trap 'kill -TERM "$child"' TERM\n"""
_SHELL = f"""\
alexnet "$@" &
child=$!
code=0
wait "$child" || code=$?
# A signal ends `wait` before the program has ended.
while kill -0 "$child" 2>/dev/null; do code=0; wait "$child" || code=$?; done
# The gate refused the new model: a decision, and no failure of the Job.
if [ "$code" -eq {_REFUSED} ]; then exit 0; fi
exit "$code"
"""


def _kubernetes(job: _Job) -> dict[str, str]:
    if not _KUBERNETES_NAME.fullmatch(job.name):
        raise ConfigError(
            f"Kubernetes cannot call anything {job.name!r}. Expected at most 44 small letters,"
            " digits and -, a letter or digit at both ends. Name the schedule otherwise with"
            " --name."
        )
    name, cron = f"alexnet-{job.name}", _require_cron(job, "Kubernetes")
    fields = _require_fields(job, "Kubernetes")
    # Of more than a hundred missed times Kubernetes makes up for none: an hour has sixty at most.
    deadline = _DAY_SECONDS if len(cron.minutes) * len(cron.hours) < 100 else 3600
    wait = _sleep(job, f' &\nchild=$!\nwait "$child" || exit {_SIGTERM}\n')
    shell = "".join(f"                  {line}\n" for line in (_TRAP + wait + _SHELL).splitlines())
    words = "".join(
        f"                - {_in_yaml(word.replace('$', '$$'))}\n" for word in job.words
    )
    text = f"""\
# Retraining, schedule {job.name}: {describe(job.timing)}. Replace the image, and look at the claim and the resources.
# For Kubernetes 1.29 or newer.
#
#   kubectl apply -f {name}.yaml
#   kubectl create job --from=cronjob/{name} {name}-now      # one slot now
#   kubectl delete cronjob {name}                            # ends the schedule; the claim, and every result, stays
#
# `kubectl delete -f {name}.yaml` would remove the claim, too.
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {name}
spec:
  accessModes: [ReadWriteOnce] # one pod at a time writes
  resources:
    requests:
      storage: 100Gi
---
apiVersion: batch/v1
kind: CronJob
metadata:
  name: {name}
spec:
  schedule: {_in_yaml(fields)}
  timeZone: {_in_yaml(_zone(job.timing))}
  # No overlap: a time that comes while a slot is worked on is left out, and the ledger has the next.
  concurrencyPolicy: Forbid
  # How much later a missed time is made up for.
  startingDeadlineSeconds: {deadline}
  jobTemplate:
    spec:
      # Tries after a lost pod, or while another command holds the work directory; pauses grow from 10 seconds to 6 minutes.
      backoffLimit: 8
      podReplacementPolicy: Failed # two pods would be two writers
      podFailurePolicy:
        rules:
          # A drained or pre-empted machine is nobody's fault: the next pod goes on from the last checkpoint.
          - action: Ignore
            onPodConditions:
              - type: DisruptionTarget
                status: "True"
          # {_BUSY}: busy. 137, {_SIGTERM}: killed, or out of memory. Anything else the command has tried again by itself.
          - action: FailJob
            onExitCodes:
              containerName: alexnet
              operator: NotIn
              values: [{_BUSY}, 137, {_SIGTERM}]
      template:
        metadata:
          labels:
            app.kubernetes.io/name: {name}
        spec:
          restartPolicy: Never # podFailurePolicy asks for it
          # Time to save after SIGTERM. The default of 30 seconds is short for a large network and slow storage.
          terminationGracePeriodSeconds: {_STOP_SECONDS}
          automountServiceAccountToken: false # it asks nothing of Kubernetes
          containers:
            - name: alexnet
              # REPLACE: an image with this package installed. Upper case is no valid name, so that nothing is fetched by mistake.
              image: REPLACE-WITH-YOUR-IMAGE
              workingDir: {_in_yaml(job.folder)}
              command:
                - sh
                - -c
                - |
{shell}                - alexnet # the shell's $0
              args:
{words}              resources:
                requests:
                  cpu: "4"
                  memory: 8Gi
                # One GPU, with NVIDIA's device plugin and an image that has "alexnet-pipeline[gpu]":
                # limits:
                #   nvidia.com/gpu: 1
              volumeMounts:
                - name: work
                  mountPath: {_in_yaml(job.folder)} # the work directory, and data beside it
          volumes:
            - name: work
              persistentVolumeClaim:
                claimName: {name}
"""
    return {f"{name}.yaml": text}


def _in_yaml(word: str) -> str:
    """Return a word as a YAML scalar; JSON's strings are such."""
    return json.dumps(word, ensure_ascii=False)


# -- Airflow ---------------------------------------------------------------------------------------


def _airflow(job: _Job) -> dict[str, str]:
    cron = _cron_of(job.timing)
    if cron is None:
        imports, schedule = (
            "",
            f"timedelta(seconds={job.timing.every_seconds}),  # from when Airflow first sees it",
        )
    else:
        imports = "\nfrom airflow.timetables.trigger import CronTriggerTimetable"
        schedule = (
            f"CronTriggerTimetable({_require_fields(job, 'Airflow')!r},"
            f" timezone={_zone(job.timing)!r}),"
        )
    command = f"{_sleep(job)}cd {shlex.quote(job.folder)} && exec {shlex.join(job.command)}"
    # Jinja's openings are kept apart; what ends with .sh would be taken for the name of a file.
    command = re.sub(r"\{(?=[{%#])", "{''", command) + " "
    text = f'''\
"""Retraining, schedule {job.name}: {describe(job.timing)}. For Airflow 3: put this file into its folder of DAGs.

The machine that runs the task has the work directory and the Python named below, in which Airflow itself need not be.
"""

from datetime import datetime, timedelta, timezone

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG{imports}

with DAG(
    dag_id={f"alexnet_{job.name}"!r},
    schedule={schedule}
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,  # after an outage one run, and not one for each time that was missed
    max_active_runs=1,
    tags=["alexnet"],
):
    BashOperator(
        task_id="retrain",
        bash_command={command!r},
        # The gate refused the new model, and the champion goes on: a decision, shown as skipped.
        skip_on_exit_code={_REFUSED},
        # {_BUSY}: another command holds the work directory. Airflow tries other failures again, too; they go on where they ended.
        retries=3,
        retry_delay=timedelta(minutes={_BUSY_MINUTES}),
    )
'''
    return {f"alexnet_{job.name}_dag.py": text}


# -- Prefect ---------------------------------------------------------------------------------------


def _prefect(job: _Job) -> dict[str, str]:
    cron, zone, jitter = _cron_of(job.timing), _zone(job.timing), job.timing.jitter_seconds
    if cron is None:
        dates, kind = "from datetime import datetime, timedelta, timezone\n", "Interval"
        anchor = "anchor_date=datetime(1970, 1, 1, tzinfo=timezone.utc)"
        schedule = (
            f"Interval(timedelta(seconds={job.timing.every_seconds}), {anchor}, timezone={zone!r})"
        )
    else:
        dates, kind = "", "Cron"
        schedule = (
            f"Cron({_fields(cron)!r}, timezone={zone!r}{', day_or=False' if _both(cron) else ''})"
        )
    chance, pause = (
        ("import random\n", f"    time.sleep(random.uniform(0, {jitter}))\n")
        if jitter
        else ("", "")
    )
    command = "".join(f"    {word!r},\n" for word in job.command)
    text = f'''\
"""Retraining, schedule {job.name}: {describe(job.timing)}. For Prefect 3, with PREFECT_API_URL naming its server:

    python alexnet_{job.name}_flow.py     # keeps the schedule, and works on it, for as long as it runs

This machine has the work directory and the Python named below, in which Prefect itself need not be.
"""

{chance}import subprocess
import time
{dates}
from prefect import flow
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.schedules import {kind}
from prefect.states import Completed

COMMAND = [
{command}]


def ended():
    """Return the command's exit code; whatever ends this process ends the command, too."""
    with subprocess.Popen(COMMAND, cwd={job.folder!r}) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()  # and `with` waits for its end
            raise


@flow(name={f"alexnet {job.name}"!r})
def retrain():
    """Work on one slot."""
{pause}    for _ in range(3):
        code = ended()
        if code != {_BUSY}:  # another command holds the work directory
            break
        time.sleep({60 * _BUSY_MINUTES})
    if code == {_REFUSED}:  # a decision, and no failure: the champion goes on
        return Completed(name="Refused", message="The gate refused the new model.")
    if code:
        raise RuntimeError(f"The retraining ended with exit code {{code}}.")
    return Completed(message="Done.")


if __name__ == "__main__":
    retrain.serve(
        name={job.name!r},
        schedule={schedule},
        # No overlap, and after an outage one run: the others are canceled.
        global_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
    )
'''
    return {f"alexnet_{job.name}_flow.py": text}


_EMITTERS: dict[str, Callable[[_Job], dict[str, str]]] = {
    "systemd": _systemd,
    "crontab": _crontab,
    "kubernetes": _kubernetes,
    "airflow": _airflow,
    "prefect": _prefect,
}
KINDS = tuple(_EMITTERS)
