"""The command line: `alexnet [OPTIONS] STAGE...`, `alexnet run`, and the commands around them."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from pipeline.errors import (
    DatasetError,
    GateError,
    Interrupted,
    LostWorkerError,
    PipelineError,
    Terminated,
)
from pipeline.model.networks import network_names

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.cli.console import ConsoleObserver
    from pipeline.schedule.records import ScheduledRun

# Known here too, so that `--help` and completion need not import the stages; a test compares them.
STAGE_NAMES = ("ingest", "build", "train", "evaluate")
ALL_STAGE_NAMES = (*STAGE_NAMES, "promote")
# A worker that is asked to end waits so long for the chief, whose signal comes at the same time, to
# save and to go.
_LINGER_SECONDS = 8.0
_SYSTEM_REFUSALS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
}


@dataclass
class Invocation:
    """What the words of one command line add up to."""

    recipe: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    workdir: Path = Path("mlruns")
    json: bool = False
    quiet: bool = False
    explain: bool = False
    wait: bool = False
    rerun: list[str] = field(default_factory=list)
    workers: int = 1
    words: Sequence[str] = ()
    commands: list[str] = field(default_factory=list)
    asked: _Asked | None = None

    def take(self, words: dict[str, Any]) -> None:
        """Add the shared options of one command; a later one wins."""
        from pipeline.config.resolution import parse_assignments

        self.settings |= parse_assignments(words.pop("assignments"))
        self.rerun += words.pop("rerun")
        for name, value in words.items():
            if value not in (None, False):
                setattr(self, name, value)

    def join(self, command: str) -> None:
        """Add a command: stages make a chain, which runs at its end, and every other command stands alone."""
        if command == "cli":  # the group itself
            return
        stages = {*ALL_STAGE_NAMES, "run"}
        if self.commands and not {command, *self.commands} <= stages:
            alone = next(name for name in (command, *self.commands) if name not in stages)
            raise click.UsageError(
                f"`{alone}` stands alone. Expected stages in a chain"
                f" ({', '.join(ALL_STAGE_NAMES)}), or one other command. Received"
                f" {' '.join((*self.commands, command))}. Type them one after the other."
            )
        self.commands.append(command)

    @property
    def is_worker(self) -> bool:
        """Whether this process is one of the workers that the same command line started."""
        from pipeline.train.cluster import read_cluster

        return read_cluster().workers == self.workers

    def output(self) -> Console:
        """Return the console that results go to."""
        from rich.console import Console

        width = None if sys.stdout.isatty() else 140  # a pipe or a file has no width of its own
        return Console(width=width, highlight=False)


def _complete_recipe(_context: click.Context, _parameter: click.Parameter, start: str) -> list[str]:
    from pipeline.config.recipes import recipe_names

    return [name for name in recipe_names() if name.startswith(start)]


def _complete_setting(
    _context: click.Context, _parameter: click.Parameter, start: str
) -> list[str]:
    from pipeline.config.resolution import field_names

    return [f"{name}=" for name in field_names() if name.startswith(start)]


def _complete_schedule(
    context: click.Context, _parameter: click.Parameter, start: str
) -> list[str]:
    """Complete the names of the schedules in the work directory that the words before name."""
    from pipeline.schedule.ledger import Ledger

    workdir = context.params.get("workdir") or Path("mlruns")
    return [
        found.name
        for found in Ledger(workdir / "schedule.db").list_schedules()
        if found.name.startswith(start)
    ]


def _complete_network(
    _context: click.Context, _parameter: click.Parameter, start: str
) -> list[str]:
    return [name for name in network_names() if name.startswith(start)]


def _complete_value(key: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Complete the words that a setting may be."""

    def complete(_context: click.Context, _parameter: click.Parameter, start: str) -> list[str]:
        from pipeline.config.resolution import words_of

        return [word for word in words_of(key) if word.startswith(start)]

    return complete


SHARED_OPTIONS = (
    click.option(
        "--recipe",
        metavar="NAME|FILE",
        shell_complete=_complete_recipe,
        help="Packaged recipe or YAML file. [default: fits --dataset]",
    ),
    click.option(
        "--set",
        "assignments",
        metavar="KEY=VALUE",
        multiple=True,
        shell_complete=_complete_setting,
        help="Any setting, as section.field=value.",
    ),
    click.option(
        "--workdir",
        type=click.Path(path_type=Path),
        help="Folder that everything is written under.  [default: mlruns]",
    ),
    click.option("--json", is_flag=True, help="One JSON object a line instead of text."),
    click.option("--quiet", "-q", is_flag=True, help="Print only the result."),
    click.option(
        "--wait", is_flag=True, help="Wait while another process holds the work directory."
    ),
)
RUN_OPTIONS = (
    click.option("--explain", is_flag=True, help="Say in full why each stage runs."),
    click.option(
        "--rerun",
        type=click.Choice(ALL_STAGE_NAMES),
        multiple=True,
        help="Run this stage again although nothing changed.",
    ),
)
STAGE_OPTIONS = {
    "dataset": click.option(
        "--dataset",
        metavar="NAME|PATH",
        help="`digits`, a TFDS name, a folder of class folders, or a manifest (.csv, ...).",
    ),
    "network": click.option(
        "--network",
        metavar="NAME",
        shell_complete=_complete_network,
        help=f"Which network: {', '.join(network_names())}.",
    ),
    "image_size": click.option(
        "--image-size", metavar="PIXELS", help="Height and width of the network's input."
    ),
    "classes": click.option(
        "--classes", metavar="N", help="Look at a network for N classes, without a dataset."
    ),
    "weights": click.option(
        "--weights",
        metavar="FILE",
        help="Start from a .keras, torchvision's .pth or .safetensors, or Caffe's .npy or .npz.",
    ),
    "freeze": click.option(
        "--freeze",
        metavar="LAYER",
        shell_complete=_complete_value("train.freeze"),
        help="Keep the weights up to and including this layer, such as conv5.",
    ),
    "epochs": click.option("--epochs", metavar="N", help="Passes over the training images."),
    "max_minutes": click.option(
        "--max-minutes",
        metavar="M",
        help="End training, after a whole epoch, before it takes longer.",
    ),
    "devices": click.option(
        "--devices", metavar="WHICH", help="auto, cpu, cpu:2, gpu, or gpu:0,1."
    ),
    "auto_batch": click.option(
        "--auto-batch",
        flag_value="auto",
        help="Take a batch that does not fit into memory in parts that do.",
    ),
    "profile": click.option(
        "--profile",
        metavar="STEPS",
        help="With --rerun train: write a trace of so many steps for TensorBoard.",
    ),
    "seed": click.option(
        "--seed", metavar="N", help="Seed of the weights, of the order and of dropout."
    ),
    "split": click.option(
        "--split",
        metavar="NAME",
        shell_complete=_complete_value("evaluate.split"),
        help="Which images to score: test or validation.",
    ),
    "view": click.option(
        "--view",
        metavar="NAME",
        shell_complete=_complete_value("evaluate.view"),
        help="How images are cut: center, or ten as in 2012.",
    ),
    "policy": click.option(
        "--policy",
        metavar="NAME",
        shell_complete=_complete_value("release.policy"),
        help="non_inferior: as good as the champion will do; superior: it must be better.",
    ),
    "margin": click.option(
        "--margin",
        metavar="SHARE",
        help="How much higher than the champion's the top-1 error may be, such as 0.01.",
    ),
    "dry_run": click.option(
        "--dry-run", flag_value="yes", help="Judge, but register nothing and move no alias."
    ),
    "approve": click.option(
        "--approve",
        flag_value="yes",
        help="Release what waits for a person's word, if it still passes.",
    ),
    "model": click.option(
        "--model",
        metavar="FILE|models:/...|RUN",
        help="Judge this model: a .keras file, a name in MLflow's registry, or a run's id.",
    ),
}
# Which settings a stage's own options mean; `run` has them all.
MEANINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "ingest": {"dataset": ("data.dataset",)},
    "build": {
        "network": ("model.network",),
        "image_size": ("model.image_size",),
        "classes": ("model.classes",),
        "weights": ("model.weights",),
        "seed": ("model.seed",),
    },
    "train": {
        "freeze": ("train.freeze",),
        "epochs": ("train.epochs",),
        "max_minutes": ("train.max_minutes",),
        "devices": ("train.devices",),
        "auto_batch": ("train.gradient_accumulation_steps",),
        "profile": ("train.profile_steps",),
        "seed": ("train.seed",),
    },
    "evaluate": {
        "split": ("evaluate.split",),
        "view": ("evaluate.view",),
        "model": ("evaluate.model",),
        "dataset": ("data.dataset",),
    },
    "promote": {
        "policy": ("release.policy",),
        "margin": ("release.margin",),
        "dry_run": ("release.dry_run",),
        "approve": ("release.approve",),
    },
    "run": {
        "dataset": ("data.dataset",),
        "network": ("model.network",),
        "image_size": ("model.image_size",),
        "weights": ("model.weights",),
        "freeze": ("train.freeze",),
        "epochs": ("train.epochs",),
        "max_minutes": ("train.max_minutes",),
        "devices": ("train.devices",),
        "auto_batch": ("train.gradient_accumulation_steps",),
        "profile": ("train.profile_steps",),
        "seed": ("model.seed", "train.seed"),
        "split": ("evaluate.split",),
        "view": ("evaluate.view",),
    },
}


class _Last(click.Command):
    """A command with arguments: what follows is its own, so that options may stand behind them."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        return super().make_context(
            info_name, args, parent, **{**extra, "allow_interspersed_args": True}
        )


MODEL_OPTION = click.option(
    "--model",
    default="",
    metavar="models:/...|FILE|FOLDER|RUN",
    help=(
        "A name in MLflow's registry, a .keras file, a release's folder, or a run's id.  [default:"
        " models:/alexnet@champion]"
    ),
)
WORKERS_OPTION = click.option(
    "--workers",
    type=click.IntRange(1, 64),
    help="Train in N processes of this machine, to try what several machines do.",
)


def _with(
    options: Sequence[Callable[..., Any]],
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return lambda function: functools.reduce(
        lambda wrapped, option: option(wrapped), reversed(options), function
    )


def _shared(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the shared options; it receives the invocation that they add up to."""

    @_with(SHARED_OPTIONS)
    @click.pass_context
    @functools.wraps(function)
    def wrapped(context: click.Context, /, **words: Any) -> Any:
        shared = {
            name: words.pop(name)
            for name in ("recipe", "assignments", "workdir", "json", "quiet", "wait")
        }
        shared |= {
            name: words.pop(name, default) for name, default in (("explain", False), ("rerun", ()))
        }
        context.ensure_object(Invocation).take(shared)
        context.obj.join(context.command.name or "")
        return function(context.obj, **words)

    return wrapped


@click.group(
    chain=True,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="alexnet-pipeline", prog_name="alexnet")
@_shared
def cli(_invocation: Invocation) -> None:
    """Train, judge and track an image classifier, starting from AlexNet.

    \b
    alexnet run                                   the built-in digits, every stage
    alexnet run --dataset photos                  a folder with one folder of images a class
    alexnet ingest build train evaluate           the same, stage by stage; also one at a time
    alexnet run promote                           the same, and released if it is as good as the champion
    alexnet status                                what is there, what is stale and why

    A stage whose input, settings and code did not change is skipped. Options may stand before or after a command.
    """  # noqa: D301 - \b is Click's sign for lines to be left as they are


def _stage_command(name: str, stages: tuple[str, ...], text: str) -> None:
    """Add the command of a stage, or of all."""
    meanings = MEANINGS[name]

    @cli.command(name, help=text)
    @_with([STAGE_OPTIONS[option] for option in meanings])
    @_with(RUN_OPTIONS)
    @_with([WORKERS_OPTION] if "train" in stages else [])
    @_shared
    def command(
        invocation: Invocation, workers: int | None = None, **values: str | None
    ) -> tuple[str, ...]:
        invocation.workers = workers or invocation.workers
        for option, value in values.items():
            if value is not None:
                invocation.settings |= dict.fromkeys(meanings[option], value)
        return stages


_stage_command("run", STAGE_NAMES, "Run every stage: ingest, build, train, evaluate.")
_stage_command("ingest", ("ingest",), "Prepare the images: read, check, split and store them.")
_stage_command(
    "build", ("build",), "Build the network for the dataset, with fresh weights or those of a file."
)
_stage_command(
    "train",
    ("train",),
    "Train the network on one device or on many, and keep the weights of its best epoch.",
)
_stage_command(
    "evaluate",
    ("evaluate",),
    "Score the saved model, or the one that --model names, on images it has never seen.",
)
_stage_command(
    "promote",
    ("promote",),
    "Judge the trained model against the champion, and let it take the champion's place if it"
    " passes.",
)


@cli.result_callback()
@click.pass_obj
def _run_chain(invocation: Invocation, /, results: list[tuple[str, ...] | None], **_: Any) -> None:
    """Run the stages that the words named, together, once they are all known."""
    named = {stage for result in results if result for stage in result}
    if named:
        _run_stages(invocation, [name for name in ALL_STAGE_NAMES if name in named])


def _run_stages(invocation: Invocation, stages: Sequence[str]) -> None:
    from pipeline import api
    from pipeline.cli.console import print_json, show_result

    if invocation.workers > 1 and not invocation.is_worker:
        api.launch_workers(
            invocation.words, invocation.workers, functools.partial(click.echo, err=True)
        )
        return
    output = invocation.output()
    observer = _observer(invocation, output)
    if invocation.asked is not None:
        invocation.asked.lingers = "train" in stages and not api.is_chief()
    try:
        result = api.run(
            stages,
            recipe=invocation.recipe,
            settings=invocation.settings,
            workdir=invocation.workdir,
            rerun=invocation.rerun,
            wait=invocation.wait,
            observer=_Heeding(observer, invocation.asked),
        )
    except BaseException as error:
        observer.close()
        if invocation.asked is not None and isinstance(error, LostWorkerError):
            raise invocation.asked.instead_of(error) from error
        if invocation.json:
            known = {key: ids["run_id"] for key, ids in api.known_runs(invocation.workdir).items()}
            stages_told = [api.stage_dict(outcome, known) for outcome in observer.outcomes]
            told = {"type": type(error).__name__, "message": str(error)}
            print_json(
                output,
                {
                    "stages": stages_told,
                    "test": None,
                    "model": None,
                    "run_url": None,
                    "error": told,
                },
            )
        raise
    observer.close()
    if not result.outcomes:  # a worker beside the chief, who shows what was made
        return
    if invocation.json:
        print_json(output, result.as_dict())
    else:
        show_result(output, result)
    if result.not_recorded:
        _say_not_recorded(result.not_recorded)
    if result.decision is not None and result.decision.outcome == "refused":
        stays = (
            "and the champion stays" if result.decision.champion else "and there is no champion yet"
        )
        raise GateError(f"The candidate was refused {stays}: {result.decision.reason}")


def _say_not_recorded(why: str) -> None:
    click.echo(
        f"Not everything was recorded in MLflow ({why}). Type `alexnet sync` when the store"
        " answers.",
        err=True,
    )


def _observer(invocation: Invocation, output: Console) -> ConsoleObserver:
    from pipeline.cli import console

    if invocation.json:
        return console.JsonObserver(output)
    if invocation.quiet:
        return console.QuietObserver(output)
    return console.ConsoleObserver(output, explain=invocation.explain)


@cli.command()
@_shared
def status(invocation: Invocation) -> None:
    """Show each stage: done, stale, missing or interrupted; its age, size and run."""
    from pipeline import api
    from pipeline.cli.console import print_json, show_status, status_dict

    resolved, findings, pages = api.status(
        invocation.recipe, invocation.settings, invocation.workdir
    )
    if invocation.json:
        print_json(
            invocation.output(),
            {
                "recipe": resolved.recipe,
                "stages": [status_dict(finding, pages) for finding in findings],
            },
        )
    else:
        show_status(invocation.output(), resolved, findings, pages)


@cli.command()
@_shared
def models(invocation: Invocation) -> None:
    """Show the versions of the model in the registry.

    Aliases, what the gate said, error and age.
    """
    from pipeline import api
    from pipeline.cli.console import print_json, show_versions, version_dict

    versions = api.models(
        recipe=invocation.recipe, settings=invocation.settings, workdir=invocation.workdir
    )
    if invocation.json:
        print_json(
            invocation.output(), {"versions": [version_dict(version) for version in versions]}
        )
    else:
        show_versions(invocation.output(), versions)


@cli.command()
@click.option(
    "--to",
    type=click.IntRange(1),
    metavar="VERSION",
    help="Which version becomes the champion again.  [default: the one before]",
)
@_shared
def rollback(invocation: Invocation, to: int | None) -> None:
    """Make the version before the champion, or another one that was released, the champion again."""
    from pipeline import api
    from pipeline.cli.console import print_json, version_dict

    before, after = api.rollback(
        str(to) if to else None,
        recipe=invocation.recipe,
        settings=invocation.settings,
        workdir=invocation.workdir,
    )
    if invocation.json:
        print_json(
            invocation.output(),
            {"from": before, "to": after.number, "version": version_dict(after)},
        )
    else:
        click.echo(
            f"Version {after.number} of {after.name} is the champion again, in place of {before}; a"
            " running service follows."
        )


@cli.command(cls=_Last)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@MODEL_OPTION
@click.option(
    "--top", type=click.IntRange(1), default=5, show_default=True, help="Guesses for each image."
)
@click.option(
    "--format",
    "kind",
    metavar="NAME",
    help="table, csv, jsonl or parquet.  [default: what the suffix of --output says]",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="File to write, complete or not at all.  [default: standard output]",
)
@click.option("--logits", is_flag=True, help="Every logit too, in jsonl and parquet.")
@click.option("--strict", is_flag=True, help="End at the first file that cannot be classified.")
@_shared
def predict(
    invocation: Invocation,
    paths: tuple[str, ...],
    model: str,
    top: int,
    kind: str | None,
    output: Path | None,
    **how: bool,
) -> None:
    """Classify images: files, folders, and patterns in quotes.

    Files that cannot be classified are named, all others are answered, and the exit code is 1 then.
    """
    from rich.console import Console

    from pipeline import api
    from pipeline.errors import DatasetError
    from pipeline.release.predict import chosen_format, expanded, write
    from pipeline.release.predict import predict as classify

    chosen = chosen_format(
        kind or ("jsonl" if invocation.json else ""), output, with_logits=how["logits"]
    )
    files = list(expanded(paths))
    shown = Console(stderr=True, highlight=False)
    observer = _observer(
        replace(
            invocation, json=False, quiet=invocation.quiet or not (output or shown.is_terminal)
        ),
        shown,
    )
    classifier = api.open_classifier(
        model, recipe=invocation.recipe, settings=invocation.settings, workdir=invocation.workdir
    )
    observer.started("predict", [f"{len(files):,} files, by {classifier.release.title}"])

    def progress(done: int, total: int | None, unusable: int) -> None:
        observer.progressed(
            done, total or done, "images", f"{unusable:,} unusable" if unusable else ""
        )

    try:
        found = classify(classifier, files, top=top, strict=how["strict"], progress=progress)
        guesses = min(top, len(classifier.release.class_names))
        summary = write(
            found, chosen, output, sys.stdout, guesses=guesses, with_logits=how["logits"]
        )
    finally:
        observer.close()
    if summary.unusable:
        raise DatasetError(summary.complaint)


@cli.command()
@click.option(
    "--to", required=True, type=click.Choice(("savedmodel", "onnx", "litert")), help="Format."
)
@MODEL_OPTION
@click.option("--int8", is_flag=True, help="LiteRT in 8-bit integers; what that costs is measured.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder to make.  [default: exports/... in the work directory]",
)
@_shared
def export(invocation: Invocation, to: str, model: str, int8: bool, output: Path | None) -> None:
    """Write the champion for another runtime, and prove on real images that it answers there as it does here."""
    from pipeline import api
    from pipeline.cli.console import print_json, show_export

    say = (
        (lambda _text: None)
        if invocation.quiet or invocation.json
        else functools.partial(click.echo, err=True)
    )
    exported = api.export(
        to,
        model,
        int8=int8,
        output=output,
        recipe=invocation.recipe,
        settings=invocation.settings,
        workdir=invocation.workdir,
        progress=say,
    )
    if invocation.json:
        print_json(invocation.output(), exported.as_dict())
    else:
        show_export(invocation.output(), exported)


@cli.command()
@MODEL_OPTION
@click.option(
    "--host",
    metavar="ADDRESS",
    help="Where to listen.  [default: 127.0.0.1, which only this machine reaches]",
)
@click.option("--port", metavar="PORT", help="Port to listen at.  [default: 8080]")
@_shared
def serve(invocation: Invocation, model: str, host: str | None, port: str | None) -> None:
    """Answer over HTTP by the champion, with a page to drop an image on, until Ctrl-C or SIGTERM."""
    from pipeline import api

    given = {"serve.host": host, "serve.port": port}
    invocation.settings |= {name: value for name, value in given.items() if value is not None}
    say = functools.partial(click.echo, err=True)
    api.serve(
        model,
        recipe=invocation.recipe,
        settings=invocation.settings,
        workdir=invocation.workdir,
        say=say,
    )


NAME_OPTION = click.option(
    "--name",
    default="main",
    show_default=True,
    metavar="NAME",
    shell_complete=_complete_schedule,
    help="Which schedule.",
)
NAME_ARGUMENT = click.argument("name", default="main", shell_complete=_complete_schedule)
RETRAIN_OPTIONS = (
    click.option(
        "--dataset",
        metavar="NAME|PATH",
        help="As for `ingest`.  [default: the last command's, with its settings]",
    ),
    click.option(
        "--trigger",
        "triggers",
        metavar="NAME,...",
        help="What to retrain for: always, new_data, drift, degraded_champion, age.",
    ),
)
TIMING_OPTIONS = (
    click.option(
        "--cron",
        default="",
        metavar="EXPRESSION",
        help="When, as cron says it: '0 3 * * 1' is Mondays at 3; or @daily, ...",
    ),
    click.option("--every", default="", metavar="TIME", help="Or every so often: 6h, 90m, 1d."),
    click.option(
        "--timezone",
        default="",
        metavar="ZONE",
        help="Whose clock --cron means, such as Europe/Madrid.  [default: UTC]",
    ),
    click.option(
        "--jitter",
        default="",
        metavar="TIME",
        help="Start up to so much later, always the same for one run time: 10m.",
    ),
)


@cli.command()
@NAME_OPTION
@_with(TIMING_OPTIONS)
@_with(RETRAIN_OPTIONS)
@click.option(
    "--once",
    is_flag=True,
    help="Run the scheduled run that is due, if one is, and end: for cron and other engines.",
)
@click.option("--dry-run", is_flag=True, help="Only show the next ten run times.")
@click.option(
    "--emit",
    type=click.Choice(("systemd", "crontab", "kubernetes", "airflow", "prefect")),
    help="Write what that engine needs.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="With --emit: folder to write to.  [default: standard output]",
)
@click.option("--remove", is_flag=True, help="Remove this schedule; its history stays.")
@_shared
def schedule(
    invocation: Invocation,
    name: str,
    dataset: str | None,
    triggers: str | None,
    emit: str | None,
    output: Path | None,
    **words: Any,
) -> None:
    """Retrain on a schedule: look at each run time for a reason to, then train, judge and promote.

    \b
    alexnet schedule --cron '0 3 * * 1' --timezone Europe/Madrid --dataset photos
    alexnet schedule --every 6h             the dataset and the settings of the last command
    alexnet schedule                        all schedules of the work directory, until Ctrl-C or SIGTERM

    A timing is kept in the work directory with the settings, and everything that is due there is run, one after the other. Run times that
    were missed are made up for by one retraining.
    """  # noqa: D301 - \b is Click's sign for lines to be left as they are
    from pipeline import api

    given = {"data.dataset": dataset, "retrain.triggers": triggers}
    invocation.settings |= {key: value for key, value in given.items() if value is not None}
    once, dry_run, remove = (words.pop(key) for key in ("once", "dry_run", "remove"))
    if sum(map(bool, (once, dry_run, remove, emit))) > 1:
        raise click.UsageError(
            "Expected one of --once, --dry-run, --emit and --remove, or none. Leave the others out."
        )
    timed, with_settings = (
        any(words[key] for key in ("cron", "every")),
        bool(invocation.settings or invocation.recipe),
    )
    _require_sense(
        words,
        output,
        timed=timed,
        with_settings=with_settings,
        remove=remove,
        emit=emit,
        dry_run=dry_run,
        once=once,
    )
    words["timezone"] = words["timezone"] or "UTC"
    if remove:
        api.unschedule(name, invocation.workdir)
        _say_done(
            invocation,
            name,
            "removed",
            f"The schedule {name} is removed; `alexnet history` still shows what it did.",
        )
    elif dry_run:
        _show_due(invocation, name, timed, words)
    elif emit:
        _emit(invocation, name, emit, output, words)
    else:
        _run_schedules(invocation, name, timed=timed, once=once, timing=words)


def _require_sense(
    words: dict[str, str], output: Path | None, *, timed: bool, with_settings: bool, **ways: Any
) -> None:
    """Refuse options of `schedule` that would change nothing."""
    useless = [f"--{key}" for key in ("timezone", "jitter") if words[key] and not timed]
    useless += ["--output"] if output is not None and not ways["emit"] else []
    useless += ["a timing or settings"] if ways["remove"] and (timed or with_settings) else []
    useless += (
        ["settings"] if with_settings and not timed and (ways["dry_run"] or ways["emit"]) else []
    )
    if useless:
        raise click.UsageError(
            f"{' and '.join(useless)} would change nothing here. Expected --cron or --every with a"
            " timing's options and with settings, and --output with --emit. Leave out what is not"
            " meant."
        )
    if with_settings and not timed and not any(ways.values()):
        raise click.UsageError(
            "Settings come with a timing. Expected --cron or --every too, such as --every 6h, or"
            " --once."
        )


def _say_done(invocation: Invocation, name: str, became: str, text: str) -> None:
    from pipeline.cli.console import print_json

    if invocation.json:
        print_json(invocation.output(), {"schedule": name, "state": became})
    else:
        click.echo(text)


def _show_due(invocation: Invocation, name: str, timed: bool, words: dict[str, str]) -> None:
    from pipeline import api
    from pipeline.cli.console import print_json, show_due_times
    from pipeline.schedule.timing import describe_timing, parse_timing

    timing = parse_timing(**words) if timed else api.find_schedule(name, invocation.workdir).timing
    times = api.due_times(timing)
    if invocation.json:
        due = [
            {"local": local.isoformat(), "utc": utc.isoformat().replace("+00:00", "Z")}
            for local, utc in times
        ]
        print_json(
            invocation.output(),
            {
                "schedule": name,
                "timing": describe_timing(timing),
                "timezone": timing.timezone,
                "run_times": due,
            },
        )
    else:
        show_due_times(invocation.output(), timing, times)


def _emit(
    invocation: Invocation, name: str, kind: str, output: Path | None, words: dict[str, str]
) -> None:
    from pipeline import api

    files = api.emit(
        kind,
        name,
        **words,
        recipe=invocation.recipe,
        settings=invocation.settings,
        workdir=invocation.workdir,
    )
    if output is None:
        for file, text in files.items():
            click.echo(f"# --- {file}\n{text}" if len(files) > 1 else text, nl=False)
        return
    if output.exists() and not output.is_dir():
        raise click.UsageError(
            f"--output names a file, {output}. Expected a folder, which is made if it is not there."
            " Name another."
        )
    output.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (output / file).write_text(text, encoding="utf-8")
        _say_done(invocation, name, str(output / file), str(output / file))


def _run_schedules(
    invocation: Invocation, name: str, *, timed: bool, once: bool, timing: dict[str, str]
) -> None:
    from pipeline import api
    from pipeline.cli.console import print_json
    from pipeline.schedule.timing import describe_timing

    say = _says(invocation)
    asked_for_settings = bool(invocation.settings or invocation.recipe)
    known = {found.name for found in api.schedules(invocation.workdir)}
    if once and not (timed or asked_for_settings or name in known):
        raise click.UsageError(
            f"There is no schedule {name} yet. Expected its settings, such as --dataset photos, and"
            " --cron or --every unless another engine is the clock."
        )
    if timed or asked_for_settings:
        # What calls at a run time is seconds late.
        since = datetime.now(UTC) - timedelta(minutes=2) if once else None
        try:
            found = api.schedule(
                name,
                **timing,
                recipe=invocation.recipe,
                settings=invocation.settings,
                workdir=invocation.workdir,
                since=since,
            )
            say(
                f"schedule {found.name}: {describe_timing(found.timing)}; {' '.join(found.arguments)}"
            )
        except DatasetError:
            # What the scheduled run says of it is in the history, and the hook is told.
            if not (once and name in known):
                raise
    if once:
        stop = _Stop()
        scheduled_run = api.retrain_once(
            name, invocation.workdir, stop=stop, wait=invocation.wait, say=say
        )
        if scheduled_run is None:
            say("Nothing is due.")
            if invocation.json:
                print_json(invocation.output(), {"scheduled_run": None})
        else:
            _show_scheduled_run(invocation, scheduled_run, stop)
        return
    if not api.schedules(invocation.workdir):
        raise click.UsageError(
            "There is no schedule yet. Expected --cron or --every, such as --cron '0 3 * * 1'"
            " --timezone Europe/Madrid."
        )
    api.run_schedules(invocation.workdir, stop=_Stop(), wait=invocation.wait, say=say)


def _says(invocation: Invocation) -> Callable[[str], None]:
    """Return what tells a person what happens, on standard error."""

    def say(text: str) -> None:
        if not invocation.quiet:
            click.echo(text, err=True)

    return say


class _Stop(threading.Event):
    """What SIGINT and SIGTERM set from now on, instead of ending the process at once."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._take)

    def _take(self, number: int, _frame: object) -> None:
        self.number = number
        # In a thread: this one may stand in the middle of `wait`, which holds what `set` wants.
        threading.Thread(target=self.set, daemon=True).start()


def _show_scheduled_run(invocation: Invocation, scheduled_run: ScheduledRun, stop: _Stop) -> None:
    """Show what became of a scheduled run, and leave with an exit code that says it."""
    from pipeline.cli.console import print_json, scheduled_run_dict, show_scheduled_runs

    if not scheduled_run.final and stop.is_set():
        raise Terminated if stop.number == signal.SIGTERM else Interrupted

    if invocation.json:
        print_json(invocation.output(), scheduled_run_dict(scheduled_run))
    else:
        show_scheduled_runs(invocation.output(), [scheduled_run])
    if scheduled_run.state == "failed":
        raise PipelineError(f"The retraining {scheduled_run.key} failed: {scheduled_run.why}")
    if scheduled_run.outcome == "refused":
        raise GateError(scheduled_run.why)


@cli.command(cls=_Last)
@NAME_ARGUMENT
@_shared
def now(invocation: Invocation, name: str) -> None:
    """Have the retraining of a schedule done now, by the running scheduler or here, and wait for it."""
    from pipeline import api

    stop = _Stop()
    _show_scheduled_run(
        invocation,
        api.retrain_now(name, invocation.workdir, stop=stop, say=_says(invocation)),
        stop,
    )


@cli.command()
@_shared
def schedules(invocation: Invocation) -> None:
    """Show the schedules of the work directory: timing, next run time, last result."""
    from pipeline import api
    from pipeline.cli.console import print_json, schedule_dict, show_schedules

    rows = [
        schedule_dict(
            found, api.due_times(found.timing, 1), api.history(found.name, 1, invocation.workdir)
        )
        for found in api.schedules(invocation.workdir)
    ]
    if invocation.json:
        print_json(invocation.output(), {"schedules": rows})
    else:
        show_schedules(invocation.output(), rows)


@cli.command(cls=_Last)
@NAME_ARGUMENT
@_shared
def pause(invocation: Invocation, name: str) -> None:
    """Skip the run times of a schedule until `alexnet resume`."""
    from pipeline import api

    api.pause(name, invocation.workdir)
    _say_done(
        invocation,
        name,
        "paused",
        f"The schedule {name} is paused: its run times are skipped. `alexnet resume {name}` lets it"
        " go on.",
    )


@cli.command(cls=_Last)
@NAME_ARGUMENT
@_shared
def resume(invocation: Invocation, name: str) -> None:
    """Let a paused schedule go on with its next run time."""
    from pipeline import api

    api.resume(name, invocation.workdir)
    _say_done(invocation, name, "on", f"The schedule {name} goes on with its next run time.")


@cli.command(cls=_Last)
@click.argument("name", default="", shell_complete=_complete_schedule)
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000_000),
    default=50,
    show_default=True,
    help="How many scheduled runs, the newest first.",
)
@_shared
def history(invocation: Invocation, name: str, limit: int) -> None:
    """Show what became of each run time of a schedule, or of all."""
    from pipeline import api
    from pipeline.cli.console import print_json, scheduled_run_dict, show_scheduled_runs

    scheduled_runs = api.history(name, limit, invocation.workdir)
    if invocation.json:
        print_json(
            invocation.output(),
            {
                "scheduled_runs": [
                    scheduled_run_dict(scheduled_run) for scheduled_run in scheduled_runs
                ]
            },
        )
    else:
        show_scheduled_runs(invocation.output(), scheduled_runs)


@cli.command()
@click.option(
    "--keep",
    type=click.IntRange(1),
    metavar="N",
    help="Retrainings to keep besides the champion, the one before and the best.",
)
@click.option(
    "--dry-run", is_flag=True, help="Only show what would be removed, and what stays and why."
)
@_shared
def clean(invocation: Invocation, keep: int | None, dry_run: bool) -> None:
    """Remove what nobody needs any more.

    Old results, versions, and MLflow runs of old retrainings.
    """
    from pipeline import api
    from pipeline.cli.console import plan_dict, print_json, show_plan

    plan = api.clean(
        keep=keep,
        dry_run=dry_run,
        recipe=invocation.recipe,
        settings=invocation.settings,
        workdir=invocation.workdir,
        wait=invocation.wait,
    )
    if invocation.json:
        print_json(invocation.output(), plan_dict(plan, dry_run=dry_run))
    else:
        show_plan(invocation.output(), plan, dry_run=dry_run)


@cli.command()
@_with(RETRAIN_OPTIONS)
@click.option(
    "--scheduled-run", hidden=True, default="", help="The scheduled run of a schedule that this is."
)
@_shared
def retrain(
    invocation: Invocation, dataset: str | None, triggers: str | None, scheduled_run: str
) -> None:
    """Look whether there is a reason to train again, and if so train, evaluate and promote.

    What `alexnet schedule` does at each run time. Without --recipe and --dataset it takes those,
    and the settings, of the last command in the work directory.
    """
    from pipeline import api
    from pipeline.cli.console import print_json, show_retraining
    from pipeline.schedule.process import die_with_parent

    die_with_parent()
    given = {"data.dataset": dataset, "retrain.triggers": triggers}
    invocation.settings |= {name: value for name, value in given.items() if value is not None}
    output = invocation.output()
    observer = _observer(invocation, output)
    try:
        result = api.retrain(
            recipe=invocation.recipe,
            settings=invocation.settings,
            workdir=invocation.workdir,
            scheduled_run=scheduled_run,
            wait=invocation.wait,
            observer=_Heeding(observer, invocation.asked),
        )
    except PipelineError as error:
        if invocation.json:
            print_json(output, {"error": {"type": type(error).__name__, "message": str(error)}})
        raise
    finally:
        observer.close()
    if invocation.json:
        print_json(output, result.as_dict())
    else:
        show_retraining(output, result)
    if result.not_recorded:
        _say_not_recorded(result.not_recorded)
    if result.outcome == "refused":
        raise GateError(result.why)


def _complete_claim(_context: click.Context, _parameter: click.Parameter, start: str) -> list[str]:
    from pipeline.reproduce.catalog import ALL, NAMES

    return [name for name in (ALL, *NAMES) if name.startswith(start)]


@cli.command(cls=_Last)
@click.argument(
    "claims", metavar="CLAIM...|all", nargs=-1, required=True, shell_complete=_complete_claim
)
@click.option(
    "--profile",
    type=click.Choice(["quick", "paper"]),
    default="quick",
    show_default=True,
    help="Small images, or ImageNet as in 2012.",
)
@click.option("--data", metavar="NAME|FOLDER", help="Other images than the profile's.")
@click.option("--seeds", type=click.IntRange(1, 100), help="Trainings of each arm.  [default: 3]")
@click.option(
    "--budget",
    type=click.FloatRange(0, min_open=True),
    metavar="MINUTES",
    help="Begin no training later; the next command goes on.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be trained, and train nothing.")
@click.option(
    "--results",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.md",
    help="Also put the results into a document.",
)
@_shared
def reproduce(
    invocation: Invocation,
    claims: tuple[str, ...],
    profile: str,
    data: str | None,
    dry_run: bool,
    results: Path | None,
    **sizes: float | None,
) -> None:
    """Measure the claims of the paper again, with seeds, controls and verdicts.

    Claims: relu, gradients, dropout, lrn, pooling, crops, color, tencrop, towers, replicas, depth,
    size, features, gpu; or all.

    Each is a run in MLflow with a child for each arm and seed, and a page of figures. A command
    that was interrupted is typed again and goes on. With --json the last lines are one object a
    claim.
    """
    from pipeline import api
    from pipeline.cli.console import print_json, show_claims, show_plan_of_claims

    names = {"seeds": "reproduce.seeds", "budget": "reproduce.budget_minutes"}
    invocation.settings |= {
        names[name]: value for name, value in sizes.items() if value is not None
    }
    invocation.settings |= {"data.dataset": data} if data else {}
    output, recipe, settings = invocation.output(), invocation.recipe, invocation.settings
    if dry_run:
        plan = api.reproduction_plan(claims, profile=profile, recipe=recipe, settings=settings)
        if invocation.json:
            for row in plan:
                print_json(output, row)
        else:
            show_plan_of_claims(output, plan)
        return
    if results is not None:
        api.require_document(results)
    observer = _observer(invocation, output)
    try:
        found = api.reproduce(
            claims,
            profile=profile,
            recipe=recipe,
            settings=settings,
            workdir=invocation.workdir,
            wait=invocation.wait,
            observer=observer,
        )
    finally:
        observer.close()
    if invocation.json:
        for told in found.as_dicts():
            print_json(output, told)
    else:
        show_claims(output, found)
    if results is not None and found.claims:
        api.put_results(found, results)
    if found.not_recorded:
        _say_not_recorded(found.not_recorded)
    if found.failed:
        raise PipelineError(
            "; ".join(f"The claim {name} failed: {why}" for name, why in found.failed.items())
        )


@cli.command(cls=_Last)
@click.argument("first", metavar="RUN")
@click.argument("second", metavar="RUN")
@_shared
def compare(invocation: Invocation, first: str, second: str) -> None:
    """Put two evaluations of the same images side by side, with paired tests and a page.

    RUN is the id, or its first letters, of an evaluation's MLflow run or of the pipeline run around
    it; or the folder of an evaluation.
    """
    from pipeline import api
    from pipeline.cli.console import print_json, show_comparison

    comparison = api.compare(first, second, invocation.workdir)
    if invocation.json:
        print_json(invocation.output(), comparison.as_dict())
    else:
        show_comparison(invocation.output(), comparison)


@cli.command()
@click.option("--schema", is_flag=True, help="Print the JSON schema of the settings instead.")
@_shared
def config(invocation: Invocation, schema: bool) -> None:
    """Show the settings in force, and where each came from."""
    from pipeline import api
    from pipeline.cli.console import print_json, show_settings

    if schema:
        click.echo(api.schema())
        return
    resolved = api.settings(invocation.recipe, invocation.settings)
    if invocation.json:
        values = {
            key: {"value": value, "from": resolved.origins[key]}
            for key, value in resolved.flat().items()
        }
        print_json(invocation.output(), {"recipe": resolved.recipe, "settings": values})
    else:
        show_settings(invocation.output(), resolved)


@cli.command()
@_shared
def sync(invocation: Invocation) -> None:
    """Send to MLflow what earlier runs could not."""
    from pipeline import api
    from pipeline.cli.console import print_json
    from pipeline.errors import TrackingError

    sent, problems = api.sync(invocation.workdir, invocation.wait)
    if invocation.json:
        print_json(invocation.output(), {"sent": sent, "not_sent": problems})
    else:
        click.echo(f"{sent} run{'' if sent == 1 else 's'} sent, {len(problems)} not.")
    if problems:
        name, why = next(iter(problems.items()))
        raise TrackingError(
            f"The tracking store did not take {len(problems)} of the runs, such as {name}: {why}."
            " Try again when it answers."
        )


@cli.command()
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="Port on this machine.  [default: 5000, or the next free one]",
)
@_shared
def ui(invocation: Invocation, port: int | None) -> None:
    """Start MLflow's pages for this work directory, reachable from this machine only, until Ctrl-C."""
    from pipeline import api

    tracking = api.settings(invocation.recipe, invocation.settings).config.tracking
    port = _free_port(port, port) if port else _free_port(5000, 5099)
    command, environment, page = api.ui_server(tracking, invocation.workdir, port)
    # A session of its own: the server has children, and all of them must end with this command.
    with subprocess.Popen(command, env=environment, start_new_session=True) as server:
        try:
            click.echo(f"\n  {page}\n\nCtrl-C ends it.\n")
            code = server.wait()
        except KeyboardInterrupt:  # the way to end it
            code = 0
        finally:
            _end_session(server)
    if code:
        raise PipelineError(
            f"The MLflow server ended with {code}. Expected a free port. Name another one with"
            " --port."
        )


def _end_session(leader: subprocess.Popen[bytes]) -> None:
    """End a process and its children, by force if they do not go within seconds."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            leader.wait(timeout=10)


def _free_port(first: int, last: int) -> int:
    """Return the first free port of this machine from `first` to `last`."""
    import socket

    for port in range(first, last + 1):
        with socket.socket() as candidate, contextlib.suppress(OSError):
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            candidate.bind(("127.0.0.1", port))
            return port
    raise PipelineError(
        f"No port from {first} to {last} is free. Expected one for the MLflow server. Name another"
        " with --port."
    )


class _Asked:
    """The end that SIGINT or SIGTERM asks for.

    Raised at once, and again where a library swallowed it, as imports of C code do.

    A worker beside the chief `lingers`: it goes on while the chief needs it to save what both have
    done, then ends.
    """

    def __init__(self) -> None:
        self.lingers = False
        self._end: KeyboardInterrupt | None = None

    def __call__(self, number: int, _frame: object) -> None:
        self._end = Terminated() if number == signal.SIGTERM else Interrupted()
        if not self.lingers:
            raise self._end
        last = threading.Timer(
            _LINGER_SECONDS, os._exit, (143 if number == signal.SIGTERM else 130,)
        )
        last.daemon = True
        last.start()

    def heed(self) -> None:
        if self._end is not None and not self.lingers:
            raise self._end

    def instead_of(self, error: LostWorkerError) -> BaseException:
        """Return why a worker ended whose chief is gone.

        Because both were asked to, where it was.
        """
        return self._end or error


class _Heeding:
    """An observer that ends the run where that was asked for."""

    def __init__(self, observer: ConsoleObserver, asked: _Asked | None):
        self._observer, self._heed = observer, asked.heed if asked else lambda: None
        self.said, self.finished, self.waiting = observer.said, observer.finished, observer.waiting

    def started(self, stage: str, why: Sequence[str]) -> None:
        self._heed()
        self._observer.started(stage, why)

    def progressed(self, done: int, total: int, unit: str, detail: str) -> None:
        self._heed()
        self._observer.progressed(done, total, unit, detail)


@contextlib.contextmanager
def _exit_codes() -> Iterator[None]:
    """Turn what a person can act on into one sentence and an exit code.

    Let bugs show their traceback.
    """
    try:
        yield
    except click.exceptions.Exit as request:
        sys.exit(request.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        terminated = isinstance(error, Terminated) or isinstance(error.__cause__, Terminated)
        click.echo(
            f"{'Terminated' if terminated else 'Interrupted'}. The same command goes on from here.",
            err=True,
        )
        _leave(143 if terminated else 130)
    except PipelineError as error:
        click.echo(f"Error: {error}", err=True)
        _leave(error.exit_code)
    except OSError as error:
        if error.errno not in _SYSTEM_REFUSALS:
            raise
        click.echo(
            f"Error: {error.strerror}: {error.filename or 'the work directory'}. Nothing that was"
            " finished is lost: mend that and type the command again.",
            err=True,
        )
        sys.exit(1)


def _leave(code: int) -> NoReturn:
    """End the process, at once where a call of TensorFlow hangs.

    The end of an interpreter would wait for it.
    """
    from pipeline.train.watchdog import has_hanging_call

    if has_hanging_call():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and leave with its exit code."""
    with _exit_codes():
        asked = _Asked()
        for number in (signal.SIGINT, signal.SIGTERM):
            if (
                signal.getsignal(number) is not signal.SIG_IGN
            ):  # what a shell sets for a command in the background
                signal.signal(number, asked)
        words = list(sys.argv[1:] if arguments is None else arguments)
        cli.main(
            args=words,
            prog_name="alexnet",
            standalone_mode=False,
            obj=Invocation(asked=asked, words=words),
        )
