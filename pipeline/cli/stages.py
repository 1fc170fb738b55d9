"""The stage words: `alexnet ingest build train evaluate`, `alexnet run promote`, in any order.

One Click command takes them all, so that every option of every stage is accepted before, between
and after them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.command import Command, Invocation, SettingOption, pass_invocation
from pipeline.errors import GateError, LostWorkerError

if TYPE_CHECKING:
    from pipeline.workspace.chain import PipelineResult

# Known here too, so that `--help` and completion need not import the stages; a test compares them
# with the first lines of the stages' docstrings.
SUMMARIES: Mapping[str, str] = {
    "run": "Run ingest, build, train and evaluate.",
    "ingest": "Prepare the images: read, check, split and store them.",
    "build": "Build the network, with fresh weights or those of a file.",
    "train": "Train the network and keep the weights of its best epoch.",
    "evaluate": "Score a saved model on images that it has never seen.",
    "promote": "Release the model if it is as good as the champion.",
}
RUN_STAGES = ("ingest", "build", "train", "evaluate")
ALL_STAGES = (*RUN_STAGES, "promote")
EXAMPLES: Mapping[str, Mapping[str, str]] = {
    "run": {
        "alexnet run": "the built-in digits, every stage",
        "alexnet run --dataset photos": "a folder with one folder of images per class",
        "alexnet run --dataset photos --compare-with small": "and AlexNet on the same images",
        "alexnet run promote --dataset photos": "the same, and released if it is good enough",
    },
    "ingest": {
        "alexnet ingest --dataset photos": "a folder with one folder of images per class",
        "alexnet ingest --dataset images.csv": "a manifest with columns path and label",
    },
    "build": {
        "alexnet build --network owt": "for the dataset that was prepared last",
        "alexnet build --network paper --classes 1000 --image-size 224": "without a dataset",
    },
    "train": {
        "alexnet train --epochs 60 --learning-rate 0.02": "with other settings",
        "alexnet train evaluate --devices gpu:0,1": "on two GPUs, then score it",
    },
    "evaluate": {
        "alexnet evaluate": "the network that was trained last",
        "alexnet evaluate --model photos.keras --view ten": "any model, by ten crops",
    },
    "promote": {
        "alexnet promote": "judge the evaluated model against the champion",
        "alexnet promote --policy superior --dry-run": "only show what would happen",
    },
}


@dataclass(frozen=True)
class StageOption:
    """An option of some stages: another spelling of a setting of each of them.

    `settings` maps a stage to the setting that the option means there.
    """

    flag: str
    settings: Mapping[str, str]
    metavar: str | None = None
    flag_value: str | None = None
    path: bool = False


STAGE_OPTIONS = (
    StageOption(
        "--dataset", {"ingest": "data.dataset", "evaluate": "data.dataset"}, "NAME|PATH", path=True
    ),
    StageOption("--network", {"build": "model.network"}, "NAME"),
    StageOption("--image-size", {"build": "model.image_size"}, "PIXELS"),
    StageOption("--classes", {"build": "model.classes"}, "N"),
    StageOption("--weights", {"build": "model.weights"}, "imagenet|FILE", path=True),
    StageOption("--epochs", {"train": "train.epochs"}, "N"),
    StageOption("--max-minutes", {"train": "train.max_minutes"}, "M"),
    StageOption("--learning-rate", {"train": "train.learning_rate"}, "RATE"),
    StageOption("--batch-size", {"train": "train.global_batch_size"}, "N"),
    StageOption("--precision", {"train": "train.precision"}, "NAME"),
    StageOption("--freeze", {"train": "train.freeze"}, "LAYER"),
    StageOption("--devices", {"train": "train.devices"}, "WHICH"),
    StageOption("--auto-batch", {"train": "train.gradient_accumulation_steps"}, flag_value="auto"),
    StageOption("--profile", {"train": "train.profile_steps"}, "STEPS"),
    StageOption("--seed", {"build": "model.seed", "train": "train.seed"}, "N"),
    StageOption("--split", {"evaluate": "evaluate.split"}, "NAME"),
    StageOption("--view", {"evaluate": "evaluate.view"}, "NAME"),
    StageOption("--model", {"evaluate": "evaluate.model"}, "FILE|models:/...|RUN", path=True),
    StageOption("--name", {"promote": "release.name"}, "NAME"),
    StageOption("--policy", {"promote": "release.policy"}, "NAME"),
    StageOption("--margin", {"promote": "release.margin"}, "FRACTION"),
    StageOption("--dry-run", {"promote": "release.dry_run"}, flag_value="yes"),
    StageOption("--approve", {"promote": "release.approve"}, flag_value="yes"),
)


class StageSettingOption(SettingOption):
    """A stage option; one that means several settings means those of the stages that are named."""

    def __init__(self, option: StageOption):
        super().__init__(
            option.flag,
            *option.settings.values(),
            metavar=option.metavar,
            flag_value=option.flag_value,
            path=option.path,
        )
        self.by_stage = option.settings

    def _keep(self, invocation: Invocation, value: str) -> None:
        context = click.get_current_context()
        named = expand_stages(context.meta.get(_STAGES_KEY, ()))
        meant = [name for stage, name in self.by_stage.items() if stage in named]
        invocation.settings |= dict.fromkeys(meant or self.settings, value)


_STAGES_KEY = "pipeline.stages"


def expand_stages(stages: Sequence[str]) -> tuple[str, ...]:
    """Return the stages that words name, in the order in which they run."""
    named = {stage for word in stages for stage in (RUN_STAGES if word == "run" else (word,))}
    return tuple(stage for stage in ALL_STAGES if stage in named)


class StagesCommand(Command):
    """The command of all stage words; its help is about those that are named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note which stages are named, for options and help, then parse."""
        ctx.meta[_STAGES_KEY] = self._find_words(ctx, args)
        return super().parse_args(ctx, args)

    def _find_words(self, ctx: click.Context, args: Sequence[str]) -> list[str]:
        """Return the stage words among arguments; what follows an option is its value."""
        valued = {
            flag
            for parameter in self.get_params(ctx)
            if isinstance(parameter, click.Option) and not parameter.is_flag
            for flag in parameter.opts
        }
        before = ("", *args)
        return [
            word
            for word, previous in zip(args, before, strict=False)
            if word in SUMMARIES and previous not in valued
        ]

    def collect_usage_pieces(self, _ctx: click.Context) -> list[str]:
        """Return the words of the usage line."""
        return ["[OPTIONS]", "[STAGE]..."]

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what each named stage does."""
        formatter.write_paragraph()
        with formatter.indentation():
            for word in dict.fromkeys(ctx.meta.get(_STAGES_KEY, ())):
                formatter.write_text(f"{word}: {SUMMARIES[word]}")
            formatter.write_paragraph()
            formatter.write_text(
                "A stage whose input, settings and code did not change is skipped. Stages may be"
                f" named together, in any order: {', '.join(SUMMARIES)}."
            )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of the named stages, then those that every stage has."""
        named = expand_stages(ctx.meta.get(_STAGES_KEY, ()))
        own: list[tuple[str, str]] = []
        shared: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            if isinstance(parameter, StageSettingOption) and not set(parameter.by_stage) & set(
                named
            ):
                continue
            is_argument = isinstance(parameter, click.Argument)
            record = None if is_argument else parameter.get_help_record(ctx)
            if record:
                (own if isinstance(parameter, StageSettingOption) else shared).append(record)
        for heading, rows in (("Options", own), ("Options of every stage", shared)):
            with formatter.section(heading):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples of the named stages, and the exit codes."""
        named = ctx.meta.get(_STAGES_KEY, ())
        self.examples = {
            line: text for word in dict.fromkeys(named) for line, text in EXAMPLES[word].items()
        }
        super().format_epilog(ctx, formatter)


@click.command(
    "stages",
    cls=StagesCommand,
    section="Pipeline",
    exit_codes=(3, 75, 76),
    params=[StageSettingOption(option) for option in STAGE_OPTIONS],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.argument("stages", nargs=-1, required=True, type=click.Choice(tuple(SUMMARIES)))
@click.option("--explain", is_flag=True, help="Say in full why each stage runs.")
@click.option(
    "--rerun",
    type=click.Choice(ALL_STAGES),
    multiple=True,
    help="Run this stage again although nothing changed.",
)
@click.option(
    "--accept-code",
    is_flag=True,
    help="Keep results of which code alone changed; `alexnet accept` says more.",
)
@click.option(
    "--compare-with",
    metavar="NETWORK",
    default="",
    help="Train and evaluate this network, too, and compare both on the same images.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    metavar="N",
    help="Train in N processes of this machine, to try what several machines do.",
)
@pass_invocation
def stages_command(
    invocation: Invocation,
    stages: tuple[str, ...],
    explain: bool,
    rerun: tuple[str, ...],
    accept_code: bool,
    compare_with: str,
    workers: int,
) -> None:
    """Run the named stages, in the order in which they depend on each other."""
    from pipeline.workspace.chain import is_worker, launch_workers

    named = expand_stages(stages)
    if workers > 1 and not is_worker(workers):
        notify = functools.partial(click.echo, err=True)
        launch_workers(invocation.arguments, workers, notify)
        return
    result = _run_stages(invocation, named, explain, rerun, accept_code, compare_with)
    if not result.outcomes:  # a worker beside the chief, who shows what was made
        return
    from pipeline.cli.tables.stages import show_result

    refusal, decision = None, result.decision
    if decision is not None and decision.outcome == "refused":
        stays = "the champion stays" if decision.champion else "there is no champion yet"
        refusal = GateError(f"The candidate was refused and {stays}: {decision.reason}")
    invocation.present(result.as_dict(), lambda output: show_result(output, result), refusal)
    if result.not_recorded:
        warn_not_recorded(result.not_recorded)
    if refusal is not None:
        raise refusal


def _run_stages(
    invocation: Invocation,
    named: Sequence[str],
    explain: bool,
    rerun: Sequence[str],
    accept_code: bool,
    compare_with: str,
) -> PipelineResult:
    """Run stages, showing progress; a failure with --json prints what was done until then."""
    from pipeline import api
    from pipeline.cli.shutdown import InterruptibleObserver
    from pipeline.workspace.chain import is_chief

    output, shutdown = invocation.open_output(), invocation.shutdown
    observer = invocation.open_observer(output, explain=explain)
    if shutdown is not None:
        shutdown.lingers = "train" in named and not is_chief()
    workspace = invocation.open_workspace(InterruptibleObserver(observer, shutdown))
    try:
        return api.run(
            named,
            workspace=workspace,
            rerun=rerun,
            accept_code=accept_code,
            compare_with=compare_with,
        )
    except BaseException as error:
        observer.close()
        if shutdown is not None and isinstance(error, LostWorkerError):
            raise shutdown.reason_instead_of(error) from error
        if invocation.json:
            run_ids = workspace.run_ids()
            done: dict[str, Any] = {
                "stages": [outcome.as_dict(run_ids) for outcome in observer.outcomes]
            }
            nothing = dict.fromkeys(("test", "model", "run_url"))
            invocation.show_error(error, done | nothing)
        raise
    finally:
        observer.close()


def warn_not_recorded(why: str) -> None:
    """Print that MLflow misses something, and what to type."""
    click.echo(
        f"Not everything was recorded in MLflow ({why}). Type `alexnet sync` when the store"
        " answers.",
        err=True,
    )
