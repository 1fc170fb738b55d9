"""A service and its timer for systemd."""

from __future__ import annotations

from pipeline.schedule.exporters.job import (
    BUSY_CODE,
    BUSY_PAUSE_MINUTES,
    REFUSED_CODE,
    STOP_SECONDS,
    TERMINATED_CODE,
    ExportJob,
    convert_to_cron,
    format_numbers,
    get_time_zone,
)
from pipeline.schedule.timing import CronExpression, describe_timing

_WEEKDAY_NAMES = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


def write_systemd_units(job: ExportJob) -> dict[str, str]:
    """Return the service and the timer, by their names."""
    unit = f"alexnet-{job.name}"
    cron = convert_to_cron(job.timing)
    # systemd starts no program with such a sign in its name. `:` leaves $ alone.
    arguments = (
        ("/usr/bin/env", *job.command) if set("'\"\\") & set(job.command[0]) else job.command
    )
    command = ":" + " ".join(map(_quote_systemd, arguments))
    service = f"""\
# Retraining, schedule {job.name}: one scheduled run. {unit}.timer starts it.
[Unit]
Description=Retraining, schedule {job.name}

[Service]
# Not `oneshot`, for which systemd starts nothing again because of an exit code.
Type=exec
WorkingDirectory={job.folder.replace("%", "%%")}
ExecStart={command}
# {REFUSED_CODE}: the gate refused the new model, and the champion stays: a decision.
# {TERMINATED_CODE}: told to stop, it goes on another time.
SuccessExitStatus={REFUSED_CODE} {TERMINATED_CODE}
# {BUSY_CODE}: another command holds the work directory.
RestartForceExitStatus={BUSY_CODE}
RestartSec={BUSY_PAUSE_MINUTES}min
# SIGTERM to the command alone, which ends what it has started.
KillMode=mixed
TimeoutStopSec={STOP_SECONDS}
"""
    if cron is None:
        when = f"""\
# No calendar has every {job.timing.every_seconds} seconds: they are counted from the last start,
# and the first comes with the timer.
OnActiveSec=1min
OnUnitActiveSec={job.timing.every_seconds}
"""
    else:
        calendar = "".join(
            f"OnCalendar={line}\n" for line in _format_calendars(cron, get_time_zone(job.timing))
        )
        when = (
            f"{calendar}# A time that came while the machine was off is made up for,"
            " once.\nPersistent=true\n"
        )
    jitter = (
        f"RandomizedDelaySec={job.timing.jitter_seconds}\n" if job.timing.jitter_seconds else ""
    )
    timer = f"""\
# Retraining, schedule {job.name}: {describe_timing(job.timing)}. With root's rights, and User= in
# {unit}.service:
#   cp {unit}.service {unit}.timer /etc/systemd/system/ && systemctl daemon-reload && systemctl
# enable --now {unit}.timer
# For one user: ~/.config/systemd/user/ and `systemctl --user`, and once `loginctl enable-linger`,
# so that it runs without a login.
# A time that clocks skip in spring does not come that day, and of an hour that comes twice the
# second does not count.
[Unit]
Description=Retraining, schedule {job.name}: {describe_timing(job.timing).replace("%", "%%")}

[Timer]
{when}AccuracySec=1s
{jitter}
[Install]
WantedBy=timers.target
"""
    return {f"{unit}.service": service, f"{unit}.timer": timer}


def _quote_systemd(word: str) -> str:
    """Return a word for systemd, where % begins a specifier."""
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def _format_calendars(cron: CronExpression, zone: str) -> list[str]:
    """Return a cron expression as systemd's calendar events, of which any is enough."""
    hours, minutes = (
        format_numbers(cron.hours, 0, 23, ".."),
        format_numbers(cron.minutes, 0, 59, ".."),
    )
    clock = f"{hours}:{minutes}:00 {zone}"
    months, days = format_numbers(cron.months, 1, 12, ".."), format_numbers(cron.days, 1, 31, "..")
    weekdays = (
        ""
        if len(cron.weekdays) == 7
        else ",".join(_WEEKDAY_NAMES[number] for number in sorted(cron.weekdays)) + " "
    )
    if cron.matches_either_day and weekdays and days != "*":
        return [f"*-{months}-{days} {clock}", f"{weekdays}*-{months}-* {clock}"]
    return [
        f"*-{months}-* {clock}"
        if cron.matches_either_day
        else f"{weekdays}*-{months}-{days} {clock}"
    ]
