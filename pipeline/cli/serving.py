"""The command that answers over HTTP."""

from __future__ import annotations

import click

from pipeline.cli.command import Command, Invocation, SettingOption, pass_invocation
from pipeline.cli.models import MODEL_OPTION, make_name_option


@click.command(
    "serve",
    cls=Command,
    section="Serving",
    params=[
        make_name_option(),
        SettingOption("--host", "serve.host", metavar="ADDRESS"),
        SettingOption("--port", "serve.port", metavar="PORT"),
    ],
    examples={
        "alexnet serve": "the champion, at 127.0.0.1:8080; it follows a new champion",
        "alexnet serve --model photos.keras --port 9000": "any model",
    },
)
@MODEL_OPTION
@pass_invocation
def serve_command(invocation: Invocation, model: str) -> None:
    """Answer over HTTP, with a page to drop an image on.

    Until Ctrl-C or SIGTERM; then the requests that are there are finished.
    """
    from pipeline import api
    from pipeline.cli.progress import NoticeObserver

    api.serve(model, workspace=invocation.open_workspace(NoticeObserver()))


SERVING_COMMANDS: tuple[click.Command, ...] = (serve_command,)
