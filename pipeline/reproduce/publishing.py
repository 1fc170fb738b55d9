"""The results of a reproduction in a Markdown document, figures and records beside it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.files import write_text
from pipeline.reports.claims_markdown import render_results_markdown, replace_block
from pipeline.reproduce.machine import describe_machine
from pipeline.reproduce.reproduction import read_claims

RECORDS_FILE = "claims.json"


def read_results_document(document: Path) -> str:
    """Return the text of a Markdown document that results can be put into; empty if there is none.

    Raises:
        ConfigError: it cannot be read or written, or its marks are not a pair.
    """
    folder = document.resolve().parent
    try:
        text = document.read_text(encoding="utf-8") if document.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The document {document} cannot be read ({error})",
            expected="Markdown in UTF-8",
            hint="Name another: --results",
        ) from error
    if document.suffix != ".md" or not os.access(
        document if document.exists() else folder, os.W_OK
    ):
        raise ConfigError(
            f"The results cannot be put into {document}",
            expected="a writable .md file in an existing folder",
            hint="Name another: --results",
        )
    replace_block(text, "")
    return text


def publish_results(folder: Path, document: Path) -> None:
    """Put the claims of a folder into a Markdown document.

    Their figures and records are put into a folder of the document's name beside it.

    Raises:
        ConfigError: nothing was concluded, or results cannot be put into the document.
    """
    claims, beside, machine = read_claims(folder), document.with_suffix(""), describe_machine()
    text = read_results_document(document)
    if not claims:
        raise ConfigError(
            f"There is nothing to put into {document}: no claim was concluded",
            hint="Type the same command again to go on",
        )
    beside.mkdir(parents=True, exist_ok=True)
    for claim in claims:
        for figure in claim.figures:
            shutil.copyfile(
                folder / claim.name / figure.file, beside / f"{claim.name}-{figure.file}"
            )
    records = {"machine": machine, "claims": [claim.model_dump(mode="json") for claim in claims]}
    write_text(beside / RECORDS_FILE, json.dumps(records, indent=1) + "\n")
    write_text(document, replace_block(text, render_results_markdown(claims, beside.name, machine)))
