"""The claims as Markdown without raw HTML, for docs/results.md."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from urllib.parse import quote

from pipeline.errors import ConfigError
from pipeline.reports.claim_records import Claim, ClaimFigure
from pipeline.reports.claim_tables import (
    HEADLINE_TEXT,
    HEADLINE_TITLE,
    RULE,
    capitalize_sentence,
    describe_claim_setup,
    tabulate_arms,
    tabulate_claims,
    tabulate_ilsvrc_entries,
    write_abstract,
)
from pipeline.reports.html import Table

# Characters of a line of docs/results.md.
_LINE = 100
_BLOCK_START = re.compile(r"^(#{1,6}|[-+=]+|\d+[.)])(?=\s|$)")  # at the start of a line
RESULTS_MARKS = ("<!-- alexnet reproduce: begin -->", "<!-- alexnet reproduce: end -->")


def render_results_markdown(claims: Sequence[Claim], images: str, machine: str) -> str:
    """Return the claims as Markdown without raw HTML.

    Args:
        claims: in reading order.
        images: path of the folder of the figures from the document; each is there as
            `<claim>-<file>`.
        machine: that measured.
    """
    blocks = [
        "## The claims of 2012",
        _wrap(_escape(write_abstract(claims, machine))),
    ]
    blocks += [_wrap(_escape(RULE)), render_table(tabulate_claims(claims))]
    for claim in claims:
        blocks += _render_claim(claim, images)
    blocks += [
        f"### {_escape(HEADLINE_TITLE)}",
        _wrap(_escape(HEADLINE_TEXT)),
        render_table(tabulate_ilsvrc_entries()),
    ]
    return "\n\n".join(blocks) + "\n"


def replace_block(markdown: str, block: str, marks: tuple[str, str] = RESULTS_MARKS) -> str:
    """Return a document with a block between two marks, which are appended if they are missing.

    Args:
        markdown: the document.
        block: Markdown to put there.
        marks: lines before and after the block.

    Raises:
        ConfigError: one mark is missing or repeated, or they are in the wrong order.
    """
    begin, end = marks
    marked = f"{begin}\n\n{block.strip()}\n\n{end}"
    counts = (markdown.count(begin), markdown.count(end))
    if counts == (0, 0):
        return f"{markdown.rstrip()}\n\n{marked}\n".lstrip()
    if counts != (1, 1) or markdown.index(begin) > markdown.index(end):
        raise ConfigError(
            "The document's marks are not one pair",
            expected=f"`{begin}` once and after it `{end}` once, or neither",
            received=f"{counts[0]} of the first and {counts[1]} of the"
            f" second{', in the wrong order' if counts == (1, 1) else ''}",
            hint="Remove them, and the block is put at the end",
        )
    before, _, rest = markdown.partition(begin)
    return before + marked + rest.partition(end)[2]


def _render_claim(claim: Claim, images: str) -> list[str]:
    """Return the Markdown of one claim, one block per paragraph, table or list."""
    main = claim.main_finding
    texts = [
        f"{capitalize_sentence(finding.quantity)}: {finding.why}" for finding in claim.findings
    ]
    texts[0] += f" Source: {main.source}."
    verdicts = [
        f"**{finding.verdict.capitalize()}.** {_escape(text)}"
        for finding, text in zip(claim.findings, texts, strict=True)
    ]
    blocks = [f"### {_escape(claim.title)}", _wrap(_escape(claim.text)), _wrap(verdicts[0])]
    blocks += ["Also measured:", _render_list(verdicts[1:])] if verdicts[1:] else []
    blocks += [render_table(tabulate_arms(claim))] if claim.rows else []
    for figure in claim.figures:
        blocks += [
            f"![{_escape(figure.caption)}]({_locate_figure(claim, figure, images)})",
            _wrap(_escape(figure.caption)),
        ]
    blocks += [_render_list([_escape(note) for note in claim.notes])] if claim.notes else []
    return [
        *blocks,
        _wrap(_escape(describe_claim_setup(claim))),
        f"```\n{' '.join(claim.command.split())}\n```",
    ]


def _locate_figure(claim: Claim, figure: ClaimFigure, images: str) -> str:
    """Return the address of a figure as the document links it."""
    return quote(f"{images.rstrip('/')}/{claim.name}-{figure.file}")


def render_table(table: Table) -> str:
    """Return a table as Markdown."""
    lines = [f"| {' | '.join(map(_escape, cells))} |" for cells in (table.headings, *table.rows)]
    return "\n".join([lines[0], "|---" * len(table.headings) + "|", *lines[1:]])


def _render_list(items: Sequence[str]) -> str:
    """Return a bulleted list as Markdown."""
    return "\n".join(f"- {_wrap(item, indent='  ')}" for item in items)


def _wrap(text: str, indent: str = "") -> str:
    """Return wrapped Markdown, none of whose lines is taken for a heading or a list."""
    lines = textwrap.wrap(text, _LINE, break_long_words=False, break_on_hyphens=False)
    return f"\n{indent}".join(
        _BLOCK_START.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", line) for line in lines
    )


def _escape(text: str) -> str:
    """Return a text on one line with every character of Markdown's syntax escaped."""
    return re.sub(
        r"([\\`*<>\[\]|~$])|(?<!\w)_|_(?!\w)|&(?=#?\w+;)", r"\\\g<0>", " ".join(text.split())
    )
