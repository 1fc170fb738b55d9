"""A crontab line, for cronie (Fedora, RHEL, Arch) and for Debian's cron."""

from __future__ import annotations

import shlex

from pipeline.errors import ConfigError
from pipeline.schedule.exporters.job import (
    BUSY_CODE,
    ExportJob,
    format_cron_fields,
    format_jitter_sleep,
    get_time_zone,
    needs_both_days,
    require_cron,
)
from pipeline.schedule.timing import CronExpression, describe_timing

_CRON_BYTES = 998  # the longest command of Debian's cron


def write_crontab(job: ExportJob) -> dict[str, str]:
    """Return the file of a crontab line, by its name."""
    cron, zone = require_cron(job, "A crontab"), get_time_zone(job.timing)
    fields = format_cron_fields(cron)
    if needs_both_days(cron):  # cron itself reads it so, for the * with which one of them begins
        written, parts = job.timing.cron.split(), fields.split()
        fields = " ".join(
            written[place] if place in {2, 4} and written[place].startswith("*") else parts[place]
            for place in range(5)
        )
    command = (
        f"{format_jitter_sleep(job)}cd {shlex.quote(job.folder)} && exec {shlex.join(job.command)}"
    )
    line = f"{_format_zone_guard(cron, zone)}{command}".replace(
        "%", "\\%"
    )  # a bare % would end the line
    if len(line.encode()) > _CRON_BYTES:
        raise ConfigError(
            "The command is too long for a crontab",
            expected=f"{_CRON_BYTES} bytes at most",
            received=f"{len(line.encode())}",
            hint="Put the settings into a recipe and name it with --recipe, or type `alexnet"
            " schedule emit systemd`",
        )
    text = f"""\
# Retraining, schedule {job.name}: {describe_timing(job.timing)}.
# Put it into `crontab -e`, at its end: CRON_TZ holds for all lines below it.
# cronie (Fedora, RHEL, Arch) heeds CRON_TZ. Debian's and Ubuntu's cron does not, and takes the
# machine's time zone: there this line
# is right only where that is {zone}, and elsewhere says so, by mail, and starts nothing.
# `alexnet schedule emit systemd` has the zone everywhere.
# cron looks at no exit code: after {BUSY_CODE} (another command holds the work directory) the next
# scheduled run is the next try.
# What a line prints cron sends by mail; the ledger keeps it, too.
CRON_TZ={zone}
SHELL=/bin/sh
{fields} {line}
"""
    return {f"alexnet-{job.name}.crontab": text}


def _format_zone_guard(cron: CronExpression, zone: str) -> str:
    """Return the shell check that ends a line where cron ignored CRON_TZ."""
    if len(cron.hours) == 24:
        return ""
    hours = shlex.quote(" ".join(f"{hour:02d}" for hour in cron.hours))
    problem = (
        f"This cron does not heed CRON_TZ={zone}, and nothing was started. Expected the time zone"
        f" {zone} of the machine, or cronie."
    )
    there, here = f'*"$(TZ={shlex.quote(zone)} date +%H)"*', '*"$(date +%H)"*'
    return f"case {hours} in {there}) ;; {here}) echo {shlex.quote(problem)} >&2; exit 78;; esac; "
