"""The command that measures the claims of 2012 again."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.command import Command, Invocation, SettingOption, pass_invocation
from pipeline.errors import PipelineError


def _complete_claim(_context: click.Context, _parameter: click.Parameter, start: str) -> list[str]:
    from pipeline.reproduce.catalog import ALL, list_claim_names

    return [name for name in (ALL, *list_claim_names()) if name.startswith(start)]


class _ClaimsCommand(Command):
    """A command whose help lists the claims there are."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the description, then the claims of the catalog."""
        from pipeline.reproduce.catalog import list_experiments

        super().format_help_text(ctx, formatter)
        formatter.write_paragraph()
        with formatter.section("Claims"):
            formatter.write_dl([(item.name, item.title) for item in list_experiments()])


@click.command(
    "reproduce",
    cls=_ClaimsCommand,
    section="Look",
    exit_codes=(75,),
    params=[
        SettingOption("--dataset", "data.dataset", metavar="NAME|FOLDER", path=True),
        SettingOption("--seeds", "reproduce.seeds", metavar="N"),
        SettingOption("--max-minutes", "reproduce.max_minutes", metavar="M"),
    ],
    examples={
        "alexnet reproduce relu": "ReLU against tanh and the sigmoid, in minutes",
        "alexnet reproduce all --dataset cifar10 --dry-run": "what would be trained",
        "alexnet reproduce all --max-minutes 60": "as far as an hour reaches; go on another day",
    },
)
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
@click.option("--dry-run", is_flag=True, help="Show what would be trained, and train nothing.")
@click.option(
    "--results",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.md",
    help="Also put the results into a document.",
)
@pass_invocation
def reproduce_command(
    invocation: Invocation,
    claims: tuple[str, ...],
    profile: str,
    dry_run: bool,
    results: Path | None,
) -> None:
    """Measure the claims of 2012 again, with verdicts.

    Each is a run in MLflow with a child for each arm and seed, and a page of figures. A command
    that was interrupted is typed again and goes on. With --json the last lines are one object per
    claim.
    """
    from pipeline import api
    from pipeline.cli.progress import print_json
    from pipeline.cli.stages import warn_not_recorded
    from pipeline.cli.tables.claims import show_claims, show_claims_plan

    output = invocation.open_output()
    if dry_run:
        plan = api.plan_reproduction(claims, profile=profile, workspace=invocation.open_workspace())
        if invocation.json:
            for row in plan:
                print_json(output, row)
        else:
            show_claims_plan(output, plan)
        return
    if results is not None:
        api.publish_claims(None, results)
    observer = invocation.open_observer(output)
    try:
        workspace = invocation.open_workspace(observer)
        found = api.reproduce(claims, profile=profile, workspace=workspace)
    finally:
        observer.close()
    if invocation.json:
        for value in found.as_dicts():
            print_json(output, value)
    else:
        show_claims(output, found)
    if results is not None and found.claims:
        api.publish_claims(found, results)
    if found.not_recorded:
        warn_not_recorded(found.not_recorded)
    if found.failed:
        raise PipelineError(
            "; ".join(f"The claim {name} failed: {why}" for name, why in found.failed.items())
        )
