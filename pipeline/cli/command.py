"""What every command of `alexnet` has: shared options anywhere, examples, exit codes, sections.

Options may stand before, between or after the command words. Each is another spelling of something
that an `Invocation` gathers, so the functions of commands take typed parameters of their own alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.cli.progress import ConsoleObserver
    from pipeline.cli.shutdown import ShutdownRequest
    from pipeline.engine.stage import Observer
    from pipeline.errors import PipelineError
    from pipeline.workspace.workspace import Workspace

EXIT_CODES = {
    0: "done, or nothing to do",
    1: "an error that the message explains",
    2: "an option or a setting is wrong",
    3: "the model is not good enough, or not proved to be",
    75: "another process works in this work directory",
    76: "another worker of the training is gone",
    130: "Ctrl-C; the same command goes on from there",
    143: "SIGTERM; likewise",
}
# The sections of `alexnet --help`, in this order.
SECTIONS = ("Pipeline", "Models", "Serving", "Schedule", "Look")
DEFAULT_WORKDIR = Path("mlruns")
_NETWORK = "model.network"  # its values are the rows of a registry, not those of a type
_PIPE_WIDTH = 140  # columns; a pipe or a file has no width of its own


@dataclass
class Invocation:
    """What the arguments of one command line add up to."""

    recipe: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    workdir: Path = DEFAULT_WORKDIR
    json: bool = False
    quiet: bool = False
    wait: bool = False
    arguments: Sequence[str] = ()
    shutdown: ShutdownRequest | None = None
    error_shown: bool = False  # with --json, as an object on standard output

    def open_workspace(self, observer: Observer | None = None) -> Workspace:
        """Return the work directory with the recipe and settings of this command line."""
        from pipeline.workspace.workspace import Workspace

        return Workspace(
            self.workdir,
            recipe=self.recipe,
            settings=self.settings,
            wait=self.wait,
            observer=observer,
        )

    def open_output(self) -> Console:
        """Return the console that results go to."""
        from rich.console import Console

        return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)

    def open_observer(self, output: Console, *, explain: bool = False) -> ConsoleObserver:
        """Return what shows progress: lines and bars, JSON objects, or nothing."""
        from pipeline.cli.progress import ConsoleObserver, JsonObserver, QuietObserver

        if self.json:
            return JsonObserver(output)
        return QuietObserver(output) if self.quiet else ConsoleObserver(output, explain=explain)

    def present(
        self,
        value: Mapping[str, Any],
        show: Callable[[Console], None],
        error: PipelineError | None = None,
    ) -> None:
        """Print a result: one JSON object with --json, else whatever `show` prints.

        Args:
            value: the object.
            show: prints the same for people.
            error: what the command ends with although there is a result, such as a refusal; the
                object holds it, too. The caller raises it.
        """
        from pipeline.cli.progress import print_json

        if not self.json:
            show(self.open_output())
        elif error is not None:
            self.show_error(error, value)
        else:
            print_json(self.open_output(), value)

    def notify(self, text: str) -> None:
        """Print a line on standard error, unless --quiet asks for silence."""
        if not self.quiet:
            click.echo(text, err=True)

    def show_error(self, error: BaseException, done: Mapping[str, Any] | None = None) -> None:
        """Print an error as a JSON object, once, where --json asks for it.

        Args:
            error: the error.
            done: what was done until then.
        """
        from pipeline.cli.progress import print_json
        from pipeline.errors import error_as_dict

        if self.json and not self.error_shown:
            self.error_shown = True
            print_json(self.open_output(), {**(done or {}), "error": error_as_dict(error)})

    @property
    def has_settings(self) -> bool:
        """Whether the command line names a recipe or a setting."""
        return bool(self.recipe or self.settings)


pass_invocation = click.make_pass_decorator(Invocation, ensure=True)


class StoredOption(click.Option):
    """An option whose value goes into the invocation and not to the command's function.

    Args:
        flags: such as `--workdir`.
        store: puts a value that was given into the invocation.
    """

    def __init__(self, *flags: str, store: Callable[[Invocation, Any], None], **more: Any):
        def keep(context: click.Context, _parameter: click.Parameter, value: Any) -> None:
            if value not in (None, False, ()):
                store(context.ensure_object(Invocation), value)

        # A name that no argument of a command has: values of equal names overwrite each other.
        name = f"stored_{flags[0].lstrip('-').replace('-', '_')}"
        super().__init__([*flags, name], expose_value=False, callback=keep, **more)


class SettingOption(StoredOption):
    """An option that is another spelling of settings; its help is the description of the first.

    Args:
        flag: such as `--epochs`.
        settings: the full names of the settings that it gives a value to.
        metavar: what stands for the value in the help; none for a flag.
        flag_value: the value that a flag stands for.
        path: whether the value may be a path, for completion.
    """

    def __init__(
        self,
        flag: str,
        *settings: str,
        metavar: str | None = None,
        flag_value: str | None = None,
        path: bool = False,
    ):
        self.settings = settings
        more: dict[str, Any] = {"metavar": metavar} if metavar else {"flag_value": flag_value}
        # Any text: the setting's own type refuses what is wrong.
        super().__init__(flag, store=self._keep, type=_PathText() if path else None, **more)

    def _keep(self, invocation: Invocation, value: str) -> None:
        invocation.settings |= dict.fromkeys(self.settings, value)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the option and the description of its setting, read when help is asked for."""
        from pipeline.config.description import describe_setting

        self.help = " ".join(dict.fromkeys(map(describe_setting, self.settings)))
        if _NETWORK in self.settings:
            self.help += " AlexNet's are small, paper, owt, ...; with pretrained weights, such as"
            self.help += " efficientnet_lite0 and keras/ResNet50V2."
        return super().get_help_record(ctx)

    def shell_complete(
        self, ctx: click.Context, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """Complete the values that the setting may have, and paths where it may be one."""
        found = [
            click.shell_completion.CompletionItem(value)
            for value in _list_values(self.settings[0])
            if value.startswith(incomplete)
        ]
        return found or super().shell_complete(ctx, incomplete)


def _list_values(key: str) -> tuple[str, ...]:
    """Return the words that a setting may be; networks are those of the registry."""
    from pipeline.config.description import list_choices
    from pipeline.model.networks import network_names

    return network_names() if key == _NETWORK else list_choices(key)


class _PathText(click.ParamType[str]):
    """Any text; completed as a path."""

    name = "path"

    def shell_complete(
        self, _ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        return [click.shell_completion.CompletionItem(incomplete, type="file")]


def _complete_recipe(_ctx: click.Context, _parameter: click.Parameter, start: str) -> list[str]:
    from pipeline.config.recipes import recipe_names

    return [name for name in recipe_names() if name.startswith(start)]


def _complete_assignment(_ctx: click.Context, _parameter: click.Parameter, start: str) -> list[str]:
    from pipeline.config.resolution import field_names

    return [f"{name}=" for name in field_names() if name.startswith(start)]


def _store_assignments(invocation: Invocation, assignments: tuple[str, ...]) -> None:
    from pipeline.config.resolution import parse_assignments

    invocation.settings |= parse_assignments(assignments)


def _store_field(name: str) -> Callable[[Invocation, Any], None]:
    return lambda invocation, value: setattr(invocation, name, value)


def make_shared_options(*, settings: bool = True) -> list[click.Parameter]:
    """Return new objects of the options that every command has, or all but those of settings."""
    return [*(_make_setting_options() if settings else ()), *_make_plain_options()]


def _make_setting_options() -> list[click.Parameter]:
    return [
        StoredOption(
            "--recipe",
            store=_store_field("recipe"),
            metavar="NAME|FILE",
            shell_complete=_complete_recipe,
            help="Packaged recipe or YAML file.  [default: the one that fits --dataset]",
        ),
        StoredOption(
            "--set",
            store=_store_assignments,
            metavar="KEY=VALUE",
            multiple=True,
            shell_complete=_complete_assignment,
            help="Any setting, as section.field=value.",
        ),
    ]


def _make_plain_options() -> list[click.Parameter]:
    return [
        StoredOption(
            "--workdir",
            store=_store_field("workdir"),
            type=click.Path(path_type=Path),
            help="Folder that everything is written under.  [default: mlruns]",
        ),
        StoredOption(
            "--json",
            store=_store_field("json"),
            is_flag=True,
            help="One JSON object per line instead of text.",
        ),
        StoredOption(
            "--quiet", "-q", store=_store_field("quiet"), is_flag=True, help="Print results alone."
        ),
        StoredOption(
            "--wait",
            store=_store_field("wait"),
            is_flag=True,
            help="Wait while another process holds the work directory.",
        ),
    ]


class Command(click.Command):
    """A command with the shared options, examples and exit codes.

    Args:
        section: where `alexnet --help` shows it; one of SECTIONS.
        examples: command lines, each with what it does.
        exit_codes: those that it can end with besides 0, 1, 2, 130 and 143.
        takes_settings: it has `--recipe` and `--set`.
    """

    def __init__(
        self,
        *arguments: Any,
        section: str = "",
        examples: Mapping[str, str] | None = None,
        exit_codes: Sequence[int] = (),
        takes_settings: bool = True,
        **more: Any,
    ):
        super().__init__(*arguments, **more)
        self.section, self.examples = section, dict(examples or {})
        self.exit_codes = sorted({0, 1, 2, *exit_codes, 130, 143})
        self.params = [*self.params, *make_shared_options(settings=takes_settings)]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples and the exit codes."""
        if self.examples:
            with formatter.section("Examples"):
                formatter.write_dl(list(self.examples.items()), col_max=62)
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), EXIT_CODES[code]) for code in self.exit_codes])
        super().format_epilog(ctx, formatter)


class OptionsAnywhere(click.Group):
    """A group whose commands' options may stand before the command word, too.

    Args:
        section: where `alexnet --help` shows it; one of SECTIONS.
    """

    command_class = Command

    def __init__(self, *arguments: Any, section: str = "", **more: Any):
        super().__init__(*arguments, **more)
        self.section = section

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Move options that stand before the command word behind it, then parse."""
        return super().parse_args(ctx, self._word_first(ctx, list(args)))

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the group's own options and, for completion, those of its commands."""
        own = super().get_params(ctx)
        if not ctx.resilient_parsing:
            return own
        below: dict[str, click.Parameter] = {}
        for command in self.walk_commands():
            for parameter in command.params:
                if isinstance(parameter, click.Option):
                    below.setdefault(parameter.opts[0], parameter)
        return [*own, *below.values()]

    def _word_first(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Return arguments with the command word before the options that stood before it."""
        own = {flag for parameter in super().get_params(ctx) for flag in parameter.opts}
        index = 0
        while index < len(args) and args[index].startswith("-"):
            if args[index] in own or args[index] == "--":
                return args
            flag, _, value = args[index].partition("=")
            index += 1 if value or not self._takes_value(flag) else 2
        if index == 0 or ctx.resilient_parsing:
            return args if index >= len(args) else [args[index], *args[:index], *args[index + 1 :]]
        if index >= len(args):
            raise click.UsageError(
                f"No command is named after {' '.join(args)}. Expected a word, such as `run`."
            )
        return [args[index], *args[:index], *args[index + 1 :]]

    def _takes_value(self, flag: str) -> bool:
        """Return whether an option of one of the commands below is followed by a value."""
        for command in self.walk_commands():
            for parameter in command.params:
                if isinstance(parameter, click.Option) and flag in parameter.opts:
                    return not (parameter.is_flag or parameter.count)
        raise click.NoSuchOption(flag, ctx=click.Context(self, info_name="alexnet"))

    def walk_commands(self) -> Iterator[click.Command]:
        """Yield every command below, those of groups too."""
        for command in self.commands.values():
            if isinstance(command, OptionsAnywhere):
                yield from command.walk_commands()
            else:
                yield command
