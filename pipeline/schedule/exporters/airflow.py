"""A DAG for Airflow 3."""

from __future__ import annotations

import re
import shlex

from pipeline.schedule.exporters.job import (
    BUSY_CODE,
    BUSY_PAUSE_MINUTES,
    REFUSED_CODE,
    ExportJob,
    convert_to_cron,
    format_jitter_sleep,
    get_time_zone,
    require_cron_fields,
)
from pipeline.schedule.timing import describe_timing


def write_airflow_dag(job: ExportJob) -> dict[str, str]:
    """Return the file of a DAG, by its name."""
    cron = convert_to_cron(job.timing)
    if cron is None:
        imports, schedule = (
            "",
            f"timedelta(seconds={job.timing.every_seconds}),  # from when Airflow first sees it",
        )
    else:
        imports = "\nfrom airflow.timetables.trigger import CronTriggerTimetable"
        schedule = (
            f"CronTriggerTimetable(\n        {require_cron_fields(job, 'Airflow')!r},"
            f"\n        timezone={get_time_zone(job.timing)!r},\n    ),"
        )
    command = (
        f"{format_jitter_sleep(job)}cd {shlex.quote(job.folder)} && exec {shlex.join(job.command)}"
    )
    # Jinja's openings are kept apart; what ends with .sh would be taken for the name of a file.
    command = re.sub(r"\{(?=[{%#])", "{''", command) + " "
    text = f'''\
"""Retraining, schedule {job.name}: {describe_timing(job.timing)}.

For Airflow 3: put this file into its folder of DAGs. The machine that runs the task has the work
directory and the Python named below, in which Airflow itself need not be.
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
        skip_on_exit_code={REFUSED_CODE},
        # {BUSY_CODE}: another command holds the work directory. Airflow tries other failures again,
        # too; they go on where they ended.
        retries=3,
        retry_delay=timedelta(minutes={BUSY_PAUSE_MINUTES}),
    )
'''
    return {f"alexnet_{job.name}_dag.py": text}
