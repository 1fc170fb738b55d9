"""Commands of models: the registry, answers for files, exports, comparisons."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pipeline.cli.command import (
    Command,
    Invocation,
    OptionsAnywhere,
    SettingOption,
    pass_invocation,
)
from pipeline.errors import DatasetError

CHAMPION_EXAMPLE = "models:/alexnet@champion"


def make_name_option() -> SettingOption:
    """Return the option that says which model of the registry is meant."""
    return SettingOption("--name", "release.name", metavar="NAME")


MODEL_OPTION = click.option(
    "--model",
    default="",
    metavar="models:/...|FILE|FOLDER|RUN",
    help="A name in MLflow's registry, a .keras file, a release's folder, or a run's id.  [default:"
    f" {CHAMPION_EXAMPLE}]",
)


@click.group("model", cls=OptionsAnywhere, section="Models")
def model_group() -> None:
    """List, show and roll back released versions."""


@model_group.command(
    "list",
    params=[make_name_option()],
    examples={"alexnet model list": "versions with aliases, gate, error and age"},
)
@pass_invocation
def list_models(invocation: Invocation) -> None:
    """List the versions in the registry."""
    from pipeline import api
    from pipeline.cli.tables.models import show_versions, version_as_dict

    versions = api.list_models(invocation.open_workspace())
    value = {"versions": [version_as_dict(version) for version in versions]}
    invocation.present(value, lambda output: show_versions(output, versions))


@model_group.command(
    "show",
    params=[make_name_option()],
    examples={"alexnet model show": "the champion", "alexnet model show 3": "version 3"},
)
@click.argument("version", default="champion")
@pass_invocation
def show_model(invocation: Invocation, version: str) -> None:
    """Show one version, by number or alias."""
    from pipeline import api
    from pipeline.cli.tables.models import show_version, version_as_dict

    found = api.find_model(version, workspace=invocation.open_workspace())
    invocation.present(version_as_dict(found), lambda output: show_version(output, found))


@model_group.command(
    "rollback",
    params=[make_name_option()],
    exit_codes=(3, 75),
    examples={
        "alexnet model rollback": "to the version before the champion",
        "alexnet model rollback 3": "to version 3",
    },
)
@click.argument("version", required=False, type=click.IntRange(1))
@pass_invocation
def rollback_model(invocation: Invocation, version: int | None) -> None:
    """Make an earlier released version the champion again."""
    from pipeline import api
    from pipeline.cli.tables.models import version_as_dict

    workspace = invocation.open_workspace()
    before, after = api.rollback(str(version) if version else None, workspace=workspace)
    value = {"from": before, "to": after.number, "version": version_as_dict(after)}
    text = (
        f"Version {after.number} of {after.name} is the champion again, in place of {before}; a"
        " running service follows."
    )
    invocation.present(value, lambda _output: click.echo(text))


@click.command(
    "predict",
    cls=Command,
    section="Models",
    params=[
        make_name_option(),
        SettingOption("--network", "model.network", metavar="NAME"),
        SettingOption("--weights", "model.weights", metavar="imagenet|FILE", path=True),
    ],
    examples={
        "alexnet predict photos/new": "a folder, by the champion",
        "alexnet predict '*.jpg' --top 3 --output guesses.csv": "a pattern, into a file",
        "alexnet predict cat.jpg --model photos.keras": "by any model",
        "alexnet predict cat.jpg --network efficientnet_lite0 --weights imagenet": (
            "by a network with ImageNet's classes; nothing is trained"
        ),
    },
)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path())
@MODEL_OPTION
@click.option(
    "--top", type=click.IntRange(1), default=5, show_default=True, help="Guesses per image."
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
@pass_invocation
def predict_command(
    invocation: Invocation,
    paths: tuple[str, ...],
    model: str,
    top: int,
    kind: str | None,
    output: Path | None,
    logits: bool,
    strict: bool,
) -> None:
    """Classify images: files, folders, quoted patterns.

    Files that cannot be classified are named, all others are answered, and the exit code is 1 then.
    """
    from rich.console import Console

    from pipeline import api
    from pipeline.cli.progress import ConsoleObserver, QuietObserver
    from pipeline.release.prediction_output import choose_format, write_prediction_output

    if invocation.json and (kind or "jsonl") != "jsonl":
        raise click.UsageError(f"--json means --format jsonl. Leave out one; received {kind}.")
    chosen = choose_format(kind or ("jsonl" if invocation.json else ""), output, with_logits=logits)
    shown = Console(stderr=True, highlight=False)
    quiet = invocation.quiet or not (output or shown.is_terminal)
    observer = QuietObserver(shown) if quiet else ConsoleObserver(shown)

    def progress(done: int, total: int | None, unusable: int) -> None:
        detail = f"{unusable:,} unusable" if unusable else ""
        observer.progressed(done, total or done, "images", detail)

    try:
        found = api.predict(
            paths,
            model=model,
            top=top,
            strict=strict,
            workspace=invocation.open_workspace(),
            progress=progress,
        )
        observer.started("predict", [f"{found.files:,} files, by {found.release.title}"])
        guesses = min(top, len(found.release.class_names))
        summary = write_prediction_output(
            found, chosen, output, sys.stdout, guesses=guesses, with_logits=logits
        )
    finally:
        observer.close()
    if summary.unusable:
        raise DatasetError(summary.warning)


@click.command(
    "export",
    cls=Command,
    section="Models",
    params=[make_name_option()],
    exit_codes=(3,),
    examples={
        "alexnet export onnx": "the champion for ONNX Runtime",
        "alexnet export litert --int8": "for phones; what integers cost is measured",
    },
)
@click.argument("target", type=click.Choice(("savedmodel", "onnx", "litert")))
@MODEL_OPTION
@click.option("--int8", is_flag=True, help="LiteRT in 8-bit integers; what that costs is measured.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder to make.  [default: exports/... in the work directory]",
)
@pass_invocation
def export_command(
    invocation: Invocation, target: str, model: str, int8: bool, output: Path | None
) -> None:
    """Write a model for another runtime, proved on real images.

    The export is read back by that runtime and kept only if it answers there as it does here.
    """
    from pipeline import api
    from pipeline.cli.progress import NoticeObserver
    from pipeline.cli.tables.models import show_export

    silent = invocation.quiet or invocation.json
    workspace = invocation.open_workspace(NoticeObserver(silent=silent))
    exported = api.export(target, model, int8=int8, output=output, workspace=workspace)
    invocation.present(exported.as_dict(), lambda output: show_export(output, exported))


@click.command(
    "compare",
    cls=Command,
    section="Models",
    examples={"alexnet compare 3f2a9c1b 77d0e4aa": "two MLflow runs, by their first letters"},
)
@click.argument("first", metavar="RUN")
@click.argument("second", metavar="RUN")
@pass_invocation
def compare_command(invocation: Invocation, first: str, second: str) -> None:
    """Compare two evaluations of the same images.

    RUN is the id, or its first letters, of an evaluation's MLflow run or of the pipeline run around
    it; or the folder of an evaluation.
    """
    from pipeline import api
    from pipeline.cli.tables.models import show_comparison

    comparison = api.compare(first, second, workspace=invocation.open_workspace())
    invocation.present(comparison.as_dict(), lambda output: show_comparison(output, comparison))


@click.command(
    "networks",
    cls=Command,
    section="Models",
    examples={
        "alexnet networks": "all of them",
        "alexnet networks small keras/MobileNet --measure": "two, and how fast they are here",
    },
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--measure",
    is_flag=True,
    help="Build each with 1,000 classes and time it on this machine: seconds to minutes each.",
)
@pass_invocation
def networks_command(invocation: Invocation, names: tuple[str, ...], measure: bool) -> None:
    """List the networks that `--network` knows.

    Parameters and MACs are those for 1,000 classes at the natural size; the error is the published
    top-1 error on ImageNet of the weights that `--weights imagenet` takes. Besides these, any
    `.keras` file, `package.module:function` of your own, and hub/PRESET of KerasHub.
    """
    from pipeline import api
    from pipeline.cli.progress import NoticeObserver
    from pipeline.cli.tables.models import show_networks

    observer = NoticeObserver(silent=invocation.quiet or invocation.json)
    found = api.networks(names, measure=measure, workspace=invocation.open_workspace(observer))
    value = {"networks": [network.as_dict() for network in found]}
    invocation.present(value, lambda output: show_networks(output, found))


MODEL_COMMANDS: tuple[click.Command, ...] = (
    networks_command,
    model_group,
    predict_command,
    export_command,
    compare_command,
)
