"""A flow that serves itself, for Prefect 3."""

from __future__ import annotations

from pipeline.schedule.exporters.job import (
    BUSY_CODE,
    BUSY_PAUSE_MINUTES,
    REFUSED_CODE,
    ExportJob,
    convert_to_cron,
    format_cron_fields,
    get_time_zone,
    needs_both_days,
)
from pipeline.schedule.timing import describe_timing


def write_prefect_flow(job: ExportJob) -> dict[str, str]:
    """Return the file of a flow, by its name."""
    cron, zone, jitter = (
        convert_to_cron(job.timing),
        get_time_zone(job.timing),
        job.timing.jitter_seconds,
    )
    if cron is None:
        dates, kind = "from datetime import datetime, timedelta, timezone\n", "Interval"
        anchor = "anchor_date=datetime(1970, 1, 1, tzinfo=timezone.utc)"
        arguments = [f"timedelta(seconds={job.timing.every_seconds})", anchor, f"timezone={zone!r}"]
    else:
        dates, kind = "", "Cron"
        arguments = [f"{format_cron_fields(cron)!r}", f"timezone={zone!r}"]
        if needs_both_days(cron):
            arguments.append("day_or=False")
    schedule = f"{kind}(\n" + "".join(f"            {text},\n" for text in arguments) + "        )"
    chance, pause = (
        ("import random\n", f"    time.sleep(random.uniform(0, {jitter}))\n")
        if jitter
        else ("", "")
    )
    command = "".join(f"    {word!r},\n" for word in job.command)
    text = f'''\
"""Retraining, schedule {job.name}: {describe_timing(job.timing)}.

For Prefect 3, with PREFECT_API_URL naming its server:

    python alexnet_{job.name}_flow.py  # keeps the schedule, and works on it, as long as it runs

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
    """Work on one scheduled run."""
{pause}    for _ in range(3):
        code = ended()
        if code != {BUSY_CODE}:  # another command holds the work directory
            break
        time.sleep({60 * BUSY_PAUSE_MINUTES})
    if code == {REFUSED_CODE}:  # a decision, and no failure: the champion goes on
        return Completed(name="Refused", message="The gate refused the new model.")
    if code:
        raise RuntimeError(f"The retraining ended with exit code {{code}}.")
    return Completed(message="Done.")


if __name__ == "__main__":
    retrain.serve(
        name={job.name!r},
        schedule={schedule},
        # No overlap, and after an outage one run: the others are canceled.
        global_limit=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
        ),
    )
'''
    return {f"alexnet_{job.name}_flow.py": text}
