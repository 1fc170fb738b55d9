"""Commands that look: status, settings, pages, MLflow, the machine; and those that tidy up."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Sequence

import click

from pipeline.cli.command import Command, Invocation, SettingOption, pass_invocation
from pipeline.cli.stages import RUN_STAGES
from pipeline.errors import PipelineError, TrackingError

_FIRST_PORT, _LAST_PORT = 5000, 5099  # 5000 is MLflow's own


@click.command(
    "status",
    cls=Command,
    section="Look",
    examples={
        "alexnet status": "what the last command selected",
        "alexnet status --set train.epochs=60": "what a run with this setting would find",
    },
)
@pass_invocation
def status_command(invocation: Invocation) -> None:
    """Show what exists, what is stale and why."""
    from pipeline import api
    from pipeline.cli.tables.stages import show_status, stage_status_as_dict

    found = api.status(invocation.open_workspace())
    value = {
        "recipe": found.resolved.recipe,
        "stages": [stage_status_as_dict(item, found.run_urls) for item in found.stages],
    }
    invocation.present(value, lambda output: show_status(output, found))


@click.command(
    "config",
    cls=Command,
    section="Look",
    params=[SettingOption("--dataset", "data.dataset", metavar="NAME|PATH", path=True)],
    examples={
        "alexnet config": "every setting of the recipe `digits`",
        "alexnet config --dataset photos": "those that a folder of photographs gets",
        "alexnet config --schema": "the JSON schema, for editors",
    },
)
@click.option("--schema", is_flag=True, help="Print the JSON schema of the settings instead.")
@pass_invocation
def config_command(invocation: Invocation, schema: bool) -> None:
    """Show the settings in force, and where each came from."""
    from pipeline import api
    from pipeline.cli.tables.stages import show_settings

    if schema:
        click.echo(api.settings_schema())
        return
    resolved = api.resolve_settings(invocation.open_workspace())
    values = {
        key: {"value": value, "from": resolved.origins[key]}
        for key, value in resolved.flat().items()
    }
    value = {"recipe": resolved.recipe, "settings": values}
    invocation.present(value, lambda output: show_settings(output, resolved))


@click.command(
    "report",
    cls=Command,
    section="Look",
    exit_codes=(75,),
    examples={
        "alexnet report": "every page again, with this version's words and colors",
        "alexnet report evaluate": "one stage's",
        "alexnet report 3f2a9c1b": "those of an MLflow run",
    },
)
@click.argument("names", nargs=-1, metavar="[STAGE|RUN]...")
@pass_invocation
def report_command(invocation: Invocation, names: tuple[str, ...]) -> None:
    """Draw pages again from what is stored."""
    from pipeline import api

    drawn = api.report(names, workspace=invocation.open_workspace())
    rows = [(stage, str(folder.resolve())) for stage, folder in drawn]
    value = {"pages": [{"stage": stage, "folder": folder} for stage, folder in rows]}
    lines = [f"{stage:<9} {folder}" for stage, folder in rows] or ["No stage is done yet."]
    invocation.present(value, lambda _output: click.echo("\n".join(lines)))


@click.command(
    "accept",
    cls=Command,
    section="Pipeline",
    exit_codes=(75,),
    examples={
        "alexnet accept": "every result of which code alone changed",
        "alexnet accept train": "that of one stage; `alexnet status` shows which are stale and why",
    },
)
@click.argument("stages", nargs=-1, type=click.Choice(RUN_STAGES))
@pass_invocation
def accept_command(invocation: Invocation, stages: tuple[str, ...]) -> None:
    """Keep results although code changed; record which code.

    Names a result of which nothing but code changed as that of the code of now. `run.json` in its
    folder keeps what was accepted, and when.
    """
    from pipeline import api
    from pipeline.cli.progress import NoticeObserver

    observer = NoticeObserver(silent=invocation.quiet or invocation.json)
    workspace = invocation.open_workspace(observer)
    accepted = api.accept(stages, workspace=workspace)
    value = {
        "accepted": [{"stage": stage, "changes": list(changes)} for stage, changes in accepted]
    }
    names = ", ".join(stage for stage, _ in accepted)
    text = f"Accepted: {names}." if accepted else "Nothing to accept: no code changed."
    invocation.present(value, lambda _output: click.echo(text))


@click.command(
    "sync",
    cls=Command,
    section="Look",
    exit_codes=(75,),
    examples={"alexnet sync": "when the store answers again"},
)
@pass_invocation
def sync_command(invocation: Invocation) -> None:
    """Send to MLflow what earlier runs could not."""
    from pipeline import api

    sent, problems = api.sync(invocation.open_workspace())
    text = f"{sent} run{'' if sent == 1 else 's'} sent, {len(problems)} not."
    value = {"sent": sent, "not_sent": problems}
    invocation.present(value, lambda _output: click.echo(text))
    if problems:
        name, why = next(iter(problems.items()))
        raise TrackingError(
            f"The tracking store did not take {len(problems)} of the runs, such as {name}: {why}",
            hint="Try again when it answers",
        )


@click.command(
    "ui",
    cls=Command,
    section="Look",
    examples={"alexnet ui": "MLflow's pages of this work directory, until Ctrl-C"},
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help=f"Port on this machine.  [default: {_FIRST_PORT}, or the next free one]",
)
@pass_invocation
def ui_command(invocation: Invocation, port: int | None) -> None:
    """Show MLflow's pages on this machine, until Ctrl-C."""
    from pipeline import api
    from pipeline.cli.shutdown import end_session

    port = find_free_port(port, port) if port else find_free_port(_FIRST_PORT, _LAST_PORT)
    ui = api.prepare_ui(port, workspace=invocation.open_workspace())
    # A session of its own: the server has children, and all of them must end with this command.
    with subprocess.Popen(ui.command, env=ui.environment, start_new_session=True) as server:
        try:
            click.echo(f"\n  {ui.page}\n\nCtrl-C ends it.\n")
            code = server.wait()
        except KeyboardInterrupt:  # the way to end it
            code = 0
        finally:
            end_session(server)
    if code:
        raise PipelineError(
            f"The MLflow server ended with {code}",
            expected="a free port",
            hint="Name another one with --port",
        )


def find_free_port(first: int, last: int) -> int:
    """Return the first free port of this machine from `first` to `last`."""
    for port in range(first, last + 1):
        with socket.socket() as candidate, contextlib.suppress(OSError):
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            candidate.bind(("127.0.0.1", port))
            return port
    raise PipelineError(
        f"No port from {first} to {last} is free",
        expected="one for the MLflow server",
        hint="Name another with --port",
    )


@click.command(
    "clean",
    cls=Command,
    section="Look",
    exit_codes=(75,),
    examples={
        "alexnet clean --dry-run": "what would be deleted, and what stays and why",
        "alexnet clean --keep 3": "keep three retrainings besides the champion",
    },
)
@click.option(
    "--keep",
    type=click.IntRange(1),
    metavar="N",
    help="Retrainings to keep besides the champion, the one before and the best.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would be deleted, and what stays.")
@pass_invocation
def clean_command(invocation: Invocation, keep: int | None, dry_run: bool) -> None:
    """Delete results that nothing refers to.

    Old results, versions, and MLflow runs of old retrainings.
    """
    from pipeline import api
    from pipeline.cli.tables.schedule import plan_as_dict, show_plan

    plan = api.clean(keep=keep, dry_run=dry_run, workspace=invocation.open_workspace())
    value = plan_as_dict(plan, dry_run=dry_run)
    invocation.present(value, lambda output: show_plan(output, plan, dry_run=dry_run))


@click.command(
    "doctor",
    cls=Command,
    section="Look",
    examples={"alexnet doctor": "machine, versions, devices, store, disk, permissions"},
)
@pass_invocation
def doctor_command(invocation: Invocation) -> None:
    """Check the machine, versions, devices, store and disk.

    The exit code is 1 where something is found that keeps the program from working.
    """
    from pipeline import api
    from pipeline.cli.tables.stages import show_diagnoses

    found = api.doctor(invocation.open_workspace())
    value = {"checks": [item.as_dict() for item in found]}
    invocation.present(value, lambda output: show_diagnoses(output, found))
    problems: Sequence[str] = [item.subject for item in found if item.state == "problem"]
    if problems:
        raise PipelineError(f"Problems were found: {', '.join(problems)}")


INSPECT_COMMANDS: tuple[click.Command, ...] = (
    accept_command,
    status_command,
    config_command,
    report_command,
    ui_command,
    sync_command,
    clean_command,
    doctor_command,
)
