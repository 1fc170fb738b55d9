"""Commands of the schedule: `alexnet schedule add|list|show|history|now|...`, and `retrain`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.command import (
    Command,
    Invocation,
    OptionsAnywhere,
    SettingOption,
    pass_invocation,
)
from pipeline.cli.models import make_name_option
from pipeline.errors import GateError, PipelineError

if TYPE_CHECKING:
    from pipeline.cli.shutdown import StopEvent
    from pipeline.schedule.records import ScheduledRun

ENGINES = ("systemd", "crontab", "kubernetes", "airflow", "prefect")


def _complete_schedule(
    context: click.Context, _parameter: click.Parameter, start: str
) -> list[str]:
    """Complete the names of the schedules in the work directory."""
    from pipeline import api

    workspace = context.ensure_object(Invocation).open_workspace()
    return [found.name for found in api.list_schedules(workspace) if found.name.startswith(start)]


NAME_ARGUMENT = click.argument("name", default="main", shell_complete=_complete_schedule)


def _retrain_options() -> list[click.Parameter]:
    return [
        SettingOption("--dataset", "data.dataset", metavar="NAME|PATH", path=True),
        SettingOption("--trigger", "retrain.triggers", metavar="NAME,..."),
        make_name_option(),
    ]


@click.group("schedule", cls=OptionsAnywhere, section="Schedule")
def schedule_group() -> None:
    """Retrain on a schedule, when there is a reason.

    Reasons are new images, drift, a degraded champion, age. What is trained is evaluated and
    promoted if it is as good as the champion. `alexnet schedule serve` runs the schedules.
    """


@schedule_group.command(
    "add",
    params=_retrain_options(),
    examples={
        "alexnet schedule add --every 6h": "with the settings of the last command",
        "alexnet schedule add weekly --cron '0 3 * * 1' --timezone Europe/Madrid": "Mondays at 3",
    },
)
@NAME_ARGUMENT
@click.option(
    "--cron", default="", metavar="EXPRESSION", help="As cron: '0 3 * * 1' is Mondays at 3; @daily."
)
@click.option("--every", default="", metavar="TIME", help="Or every so often: 6h, 90m, 1d.")
@click.option(
    "--timezone",
    default="",
    metavar="ZONE",
    help="Whose clock --cron means, such as Europe/Madrid.  [default: UTC]",
)
@click.option(
    "--jitter",
    default="",
    metavar="TIME",
    help="Start up to so much later, always the same for one run time: 10m.",
)
@click.option("--dry-run", is_flag=True, help="Only show the next run times.")
@pass_invocation
def add_schedule(
    invocation: Invocation,
    name: str,
    cron: str,
    every: str,
    timezone: str,
    jitter: str,
    dry_run: bool,
) -> None:
    """Add a schedule, or change its timing or settings.

    Its settings are kept, so that later commands do not change what is retrained. A schedule
    without a timing runs only when it is asked to.
    """
    from pipeline import api
    from pipeline.retrain.scheduled_run_key import check_schedule_name
    from pipeline.workspace.schedules import pin_settings

    workspace = invocation.open_workspace()
    if dry_run:
        check_schedule_name(name)
        if invocation.has_settings:
            pin_settings(workspace)
        _show_timing(invocation, cron, every, timezone, jitter)
        return
    api.add_schedule(
        name, cron=cron, every=every, timezone=timezone, jitter=jitter, workspace=workspace
    )
    show_one(invocation, name)


@schedule_group.command(
    "list",
    takes_settings=False,
    examples={"alexnet schedule list": "timing, next run time, last result"},
)
@pass_invocation
def list_schedules(invocation: Invocation) -> None:
    """List the schedules of the work directory."""
    from pipeline import api
    from pipeline.cli.tables.schedule import schedule_as_dict, show_schedules

    workspace = invocation.open_workspace()
    rows = [
        schedule_as_dict(
            found,
            api.list_run_times(found.timing, 1),
            api.list_scheduled_runs(found.name, 1, workspace=workspace),
        )
        for found in api.list_schedules(workspace)
    ]
    invocation.present({"schedules": rows}, lambda output: show_schedules(output, rows))


@schedule_group.command(
    "show",
    takes_settings=False,
    examples={"alexnet schedule show": "the next ten run times, and the settings"},
)
@NAME_ARGUMENT
@pass_invocation
def show_schedule(invocation: Invocation, name: str) -> None:
    """Show a schedule: its next run times and its settings."""
    show_one(invocation, name)


def _show_timing(invocation: Invocation, cron: str, every: str, timezone: str, jitter: str) -> None:
    """Print the next run times of a timing that no schedule has yet."""
    from pipeline import api
    from pipeline.cli.tables.schedule import run_times_as_list, show_timing
    from pipeline.schedule.timing import describe_timing
    from pipeline.workspace.schedules import make_timing

    timing = make_timing(cron, every, timezone, jitter)
    if timing is None:
        raise click.UsageError("--dry-run shows a timing. Expected --cron or --every too.")
    times = api.list_run_times(timing)
    value = {"timing": describe_timing(timing), "run_times": run_times_as_list(times)}
    invocation.present(value, lambda output: show_timing(output, timing, times))


def show_one(invocation: Invocation, name: str) -> None:
    """Print a schedule with its next run times."""
    from pipeline import api
    from pipeline.cli.tables.schedule import run_times_as_list, schedule_as_dict, show_run_times

    workspace = invocation.open_workspace()
    found = api.find_schedule(name, workspace=workspace)
    times = api.list_run_times(found.timing)
    last = workspace.ledger().list_latest_scheduled_runs(name, 1)
    value = schedule_as_dict(found, times[:1], last) | {"run_times": run_times_as_list(times)}
    invocation.present(value, lambda output: show_run_times(output, found, times))


@schedule_group.command(
    "history",
    takes_settings=False,
    examples={"alexnet schedule history main --limit 5": "the last five runs"},
)
@click.argument("name", default="", shell_complete=_complete_schedule)
@click.option(
    "--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True, help="How many."
)
@pass_invocation
def show_history(invocation: Invocation, name: str, limit: int) -> None:
    """Show what became of each scheduled run, the newest first."""
    from pipeline import api
    from pipeline.cli.tables.schedule import scheduled_run_as_dict, show_scheduled_runs

    found = api.list_scheduled_runs(name, limit, workspace=invocation.open_workspace())
    value = {"scheduled_runs": [scheduled_run_as_dict(item) for item in found]}
    invocation.present(value, lambda output: show_scheduled_runs(output, found))


@schedule_group.command(
    "now",
    takes_settings=False,
    exit_codes=(3, 75),
    examples={"alexnet schedule now": "retrain, and wait for it"},
)
@NAME_ARGUMENT
@pass_invocation
def retrain_now(invocation: Invocation, name: str) -> None:
    """Retrain now, by the running scheduler or here, and wait."""
    from pipeline import api
    from pipeline.cli.progress import NoticeObserver
    from pipeline.cli.shutdown import StopEvent

    stop = StopEvent()
    workspace = invocation.open_workspace(NoticeObserver(silent=invocation.quiet))
    _conclude(invocation, api.retrain_now(name, workspace=workspace, stop=stop), stop)


@schedule_group.command(
    "pause",
    takes_settings=False,
    examples={"alexnet schedule pause": "until `alexnet schedule resume`"},
)
@NAME_ARGUMENT
@pass_invocation
def pause_schedule(invocation: Invocation, name: str) -> None:
    """Skip the run times of a schedule until it is resumed."""
    from pipeline import api

    api.pause_schedule(name, workspace=invocation.open_workspace())
    text = f"The schedule {name} is paused. `alexnet schedule resume {name}` lets it go on."
    _confirm(invocation, name, "paused", text)


@schedule_group.command(
    "resume", takes_settings=False, examples={"alexnet schedule resume": "with its next run time"}
)
@NAME_ARGUMENT
@pass_invocation
def resume_schedule(invocation: Invocation, name: str) -> None:
    """Let a paused schedule go on with its next run time."""
    from pipeline import api

    api.resume_schedule(name, workspace=invocation.open_workspace())
    _confirm(invocation, name, "on", f"The schedule {name} goes on with its next run time.")


@schedule_group.command(
    "remove", takes_settings=False, examples={"alexnet schedule remove weekly": "its history stays"}
)
@NAME_ARGUMENT
@pass_invocation
def remove_schedule(invocation: Invocation, name: str) -> None:
    """Remove a schedule; its history stays."""
    from pipeline import api

    api.remove_schedule(name, workspace=invocation.open_workspace())
    text = f"The schedule {name} is removed; `alexnet schedule history` still shows what it did."
    _confirm(invocation, name, "removed", text)


def _confirm(invocation: Invocation, name: str, state: str, text: str) -> None:
    value = {"schedule": name, "state": state}
    invocation.present(value, lambda _output: click.echo(text))


@schedule_group.command(
    "emit",
    examples={
        "alexnet schedule emit kubernetes": "a CronJob, on standard output",
        "alexnet schedule emit systemd --output units": "two files into a folder",
    },
)
@click.argument("engine", type=click.Choice(ENGINES))
@NAME_ARGUMENT
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to write to.  [default: standard output]",
)
@pass_invocation
def emit_schedule(invocation: Invocation, engine: str, name: str, output: Path | None) -> None:
    """Write what another engine needs to run a schedule.

    systemd, crontab, kubernetes, airflow or prefect; each calls `alexnet schedule serve --once`.
    """
    from pipeline import api

    files = api.emit_schedule(engine, name, workspace=invocation.open_workspace())
    if output is None and invocation.json:
        invocation.present({"schedule": name, "files": files}, lambda _output: None)
        return
    if output is None:
        for file, text in files.items():
            click.echo(f"# --- {file}\n{text}" if len(files) > 1 else text, nl=False)
        return
    output.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (output / file).write_text(text, encoding="utf-8")
        _confirm(invocation, name, str(output / file), str(output / file))


@schedule_group.command(
    "serve",
    exit_codes=(3, 75),
    params=_retrain_options(),
    examples={
        "alexnet schedule serve": "run all schedules of the work directory, until Ctrl-C",
        "alexnet schedule serve --once": "run what is due, if anything, and end",
        "alexnet schedule serve --once --dataset photos": "the same, added if it is not there",
    },
)
@click.argument("name", default="main", shell_complete=_complete_schedule)
@click.option(
    "--once", is_flag=True, help="Run the one scheduled run of NAME that is due, and end: for cron."
)
@pass_invocation
def serve_schedules(invocation: Invocation, name: str, once: bool) -> None:
    """Run the schedules until Ctrl-C, or what is due with --once.

    Run times that were missed are made up for by one retraining.
    """
    from pipeline import api
    from pipeline.cli.progress import NoticeObserver
    from pipeline.cli.shutdown import StopEvent

    workspace = invocation.open_workspace(NoticeObserver(silent=invocation.quiet))
    stop = StopEvent()
    if not once:
        if invocation.has_settings:
            raise click.UsageError(
                "Settings belong to a schedule. Give them to `alexnet schedule add`, or to"
                " `alexnet schedule serve --once`."
            )
        if not api.list_schedules(workspace):
            raise click.UsageError(
                "There is no schedule yet. Type `alexnet schedule add --every 6h`, or --cron with"
                " an expression."
            )
        api.serve_schedules(workspace=workspace, stop=stop)
        return
    found = api.run_due_schedule(name, workspace=workspace, stop=stop)
    if found is not None:
        _conclude(invocation, found, stop)
        return
    invocation.notify("Nothing is due.")
    if invocation.json:
        invocation.present({"scheduled_run": None}, lambda _output: None)


def _conclude(invocation: Invocation, found: ScheduledRun, stop: StopEvent) -> None:
    """Show what became of a scheduled run, and leave with an exit code that says it."""
    from pipeline.cli.tables.schedule import scheduled_run_as_dict, show_scheduled_runs

    if not found.final:
        stop.raise_if_set()
    value, error = scheduled_run_as_dict(found), None
    if found.state == "failed":
        error = PipelineError(f"The retraining {found.key} failed: {found.why}")
    elif found.outcome == "refused":
        error = GateError(found.why)
    invocation.present(value, lambda output: show_scheduled_runs(output, [found]), error)
    if error is not None:
        raise error


@click.command(
    "retrain",
    cls=Command,
    section="Schedule",
    exit_codes=(3, 75),
    params=_retrain_options(),
    examples={
        "alexnet retrain": "with the dataset and settings of the last command",
        "alexnet retrain --trigger always": "without looking for a reason",
    },
)
@click.option("--scheduled-run", hidden=True, default="", help="The scheduled run that this is.")
@pass_invocation
def retrain_command(invocation: Invocation, scheduled_run: str) -> None:
    """Retrain once, if there is a reason.

    What `alexnet schedule` does at each run time. Without --recipe and --dataset it takes those,
    and the settings, of the last command in the work directory.
    """
    from pipeline import api
    from pipeline.cli.shutdown import InterruptibleObserver
    from pipeline.cli.stages import warn_not_recorded
    from pipeline.cli.tables.schedule import show_retraining
    from pipeline.schedule.process import die_with_parent

    die_with_parent()
    output = invocation.open_output()
    observer = invocation.open_observer(output)
    workspace = invocation.open_workspace(InterruptibleObserver(observer, invocation.shutdown))
    try:
        result = api.retrain(scheduled_run, workspace=workspace)
    finally:
        observer.close()
    refusal = GateError(result.why) if result.outcome == "refused" else None
    invocation.present(result.as_dict(), lambda output: show_retraining(output, result), refusal)
    if result.not_recorded:
        warn_not_recorded(result.not_recorded)
    if refusal is not None:
        raise refusal


SCHEDULE_COMMANDS: tuple[click.Command, ...] = (schedule_group, retrain_command)
