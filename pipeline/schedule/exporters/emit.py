"""Write the files by which another engine, as the clock, starts one scheduled run at each run time.

    systemd      a service and its timer
    crontab      a line, for cronie (Fedora, RHEL, Arch) and for Debian's cron
    kubernetes   a CronJob and the claim of its volume, for Kubernetes 1.29 or newer
    airflow      a DAG, for Airflow 3
    prefect      a flow that serves itself, for Prefect 3

All of them call `schedule serve NAME --once --workdir W ...`, which takes the scheduled run through
the ledger. Its exit codes:

    0     done; possibly there was nothing to do
    3     the gate refused the new model: a decision, so no engine tries again or reports a failure
    75    another command holds the work directory: tried again later, where the engine can
    else  a failure; the command itself has already repeated what a second try may repair

Text only: no engine is imported, and equal arguments make equal text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.config.recipes import suggest_spelling
from pipeline.errors import ConfigError
from pipeline.schedule.exporters.airflow import write_airflow_dag
from pipeline.schedule.exporters.crontab import write_crontab
from pipeline.schedule.exporters.job import ExportJob
from pipeline.schedule.exporters.kubernetes import write_kubernetes_manifest
from pipeline.schedule.exporters.prefect import write_prefect_flow
from pipeline.schedule.exporters.systemd import write_systemd_units
from pipeline.schedule.timing import Timing

_EXPORTERS: dict[str, Callable[[ExportJob], dict[str, str]]] = {
    "systemd": write_systemd_units,
    "crontab": write_crontab,
    "kubernetes": write_kubernetes_manifest,
    "airflow": write_airflow_dag,
    "prefect": write_prefect_flow,
}
ENGINES = tuple(_EXPORTERS)
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", re.ASCII)


def emit_schedule_files(
    engine: str,
    schedule_name: str,
    timing: Timing,
    arguments: Sequence[str],
    workdir: Path,
    python: Path,
) -> dict[str, str]:
    """Return the files, by name, that let an engine run a schedule.

    The command runs in the folder that holds the work directory; relative paths among the arguments
    are taken from there.

    Args:
        engine: one of `ENGINES`.
        schedule_name: of the schedule.
        timing: its run times.
        arguments: the options of a retraining, such as `--dataset /data/photos`.
        workdir: the work directory, as the engine will see it.
        python: the Python that has this package; Kubernetes takes the one of its image.

    Raises:
        ConfigError: the engine is unknown, or cannot express this name, timing or command.
    """
    if engine not in _EXPORTERS:
        raise ConfigError(
            f"Unknown engine {engine[:80]!r}",
            expected=f"one of {', '.join(ENGINES)}",
            hint=suggest_spelling(engine, ENGINES),
        )
    workdir = workdir.absolute()
    job = ExportJob(
        schedule_name,
        timing,
        (str(python.absolute()), "-P", "-m", "pipeline"),
        (
            *("schedule", "serve", schedule_name, "--once", "--workdir", str(workdir)),
            *arguments,
        ),
        str(workdir.parent),
    )
    if not _FILE_NAME.fullmatch(schedule_name):
        raise ConfigError(
            f"The files of an engine cannot be named {schedule_name[:80]!r}",
            expected="letters, digits and . _ -, a letter or digit first, 100 at most",
            hint="Give the schedule another name",
        )
    for argument in job.command:
        if not argument.isprintable():
            raise ConfigError(
                f"The argument {argument[:80]!r} cannot be written into the files of an engine",
                expected="printable characters, without line breaks",
                hint="Rename the path, or leave the argument out",
            )
    return _EXPORTERS[engine](job)
