"""The command line: `alexnet [OPTIONS] STAGE...`, and the commands around the stages."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence

import click

from pipeline.cli.command import SECTIONS, Invocation, OptionsAnywhere
from pipeline.cli.inspect import INSPECT_COMMANDS
from pipeline.cli.models import MODEL_COMMANDS
from pipeline.cli.reproduce import reproduce_command
from pipeline.cli.schedule import SCHEDULE_COMMANDS
from pipeline.cli.serving import SERVING_COMMANDS
from pipeline.cli.stages import SUMMARIES, stages_command
from pipeline.errors import PipelineError, Terminated, describe_os_error


class Alexnet(OptionsAnywhere):
    """The root: stage words lead to one command, every other word to its own."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the stages command with all words, or the command of the first word."""
        if args and args[0] in SUMMARIES:
            return args[0], stages_command, args
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of a word, such as completion asks for."""
        return stages_command if cmd_name in SUMMARIES else super().get_command(ctx, cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all words, the stages first."""
        return [*SUMMARIES, *super().list_commands(ctx)]

    def walk_commands(self) -> Iterator[click.Command]:
        """Yield every command below, and that of the stages."""
        yield stages_command
        yield from super().walk_commands()

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the words in sections, each with its summary."""
        rows: dict[str, list[tuple[str, str]]] = {section: [] for section in SECTIONS}
        rows["Pipeline"] += SUMMARIES.items()
        for name, command in self.commands.items():
            section = getattr(command, "section", SECTIONS[-1])
            rows[section].append((name, command.get_short_help_str(limit=80)))
        width = max(len(name) for section in rows.values() for name, _ in section)
        for section, commands in rows.items():
            with formatter.section(section):
                formatter.write_dl([(name.ljust(width), text) for name, text in commands])


@click.group(
    cls=Alexnet,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="alexnet-pipeline", prog_name="alexnet")
def cli() -> None:
    """Train, judge, release and serve an image classifier, starting from AlexNet.

    \b
    alexnet run                           the built-in digits, every stage
    alexnet run --dataset photos          a folder with one folder of images per class
    alexnet ingest build train evaluate   the same, stage by stage; also one at a time
    alexnet run promote                   and released if it is as good as the champion
    alexnet status                        what exists, what is stale and why

    A stage whose input, settings and code did not change is skipped. Options may stand before,
    between or after the words. `alexnet WORD --help` says more, with examples and exit codes.
    """  # noqa: D301 - \b is Click's sign for lines to be left as they are


for _command in (
    *MODEL_COMMANDS,
    *SERVING_COMMANDS,
    *SCHEDULE_COMMANDS,
    *INSPECT_COMMANDS,
    reproduce_command,
):
    cli.add_command(_command)


@contextlib.contextmanager
def map_errors_to_exit_codes(invocation: Invocation) -> Iterator[None]:
    """Turn what a person can act on into one sentence and an exit code; bugs show tracebacks."""
    from pipeline.cli.shutdown import leave_process

    try:
        yield
    except click.exceptions.Exit as request:
        sys.exit(request.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        terminated = isinstance(error, Terminated) or isinstance(error.__cause__, Terminated)
        word = "Terminated" if terminated else "Interrupted"
        click.echo(f"{word}. The same command goes on from here.", err=True)
        leave_process(143 if terminated else 130)
    except PipelineError as error:
        invocation.show_error(error)
        click.echo(f"Error: {error}", err=True)
        leave_process(error.exit_code)
    except OSError as error:
        invocation.show_error(error)
        click.echo(f"Error: {describe_os_error(error)}", err=True)
        leave_process(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and leave with its exit code."""
    from pipeline.cli.shutdown import ShutdownRequest

    shutdown = ShutdownRequest()
    typed = list(sys.argv[1:] if arguments is None else arguments)
    invocation = Invocation(shutdown=shutdown, arguments=typed)
    with map_errors_to_exit_codes(invocation):
        shutdown.install()
        cli.main(args=typed, prog_name="alexnet", standalone_mode=False, obj=invocation)
