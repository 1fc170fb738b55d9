"""The Markdown of the claims, from numbers that were made up."""

from __future__ import annotations

import html
import re

import pytest

from pipeline.errors import ConfigError
from pipeline.reports import claims_markdown
from pipeline.reproduce.verdict import make_unmeasured_finding

BITING = "Dropout <b>helps</b> | a $lot$ & `more`_ *now* [x](y)"
MACHINE = "a made-up machine"
BEGIN, END = claims_markdown.RESULTS_MARKS


def test_the_markdown_has_the_same_and_no_html(claims):
    text = claims_markdown.render_results_markdown(claims, "images/", MACHINE)
    assert text.startswith("## The claims of 2012\n")
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert len(headings) == 1 + len(claims) + 1
    assert all(line.startswith("### ") for line in headings[1:])
    assert re.search(r"(?<!\\)<", text) is None
    assert "| The claim of relu | 6 times | 0.997 times | 0." in text
    assert "| not measured |" in text
    assert "| as in \\<2012\\> | rate 0.01 | 15.00 % (10.00, 20.00, 15.00) | 4 (3, 4, 5) |" in text
    assert "| without |  | 25.00 % |  |" in text
    assert re.findall(r"!\[[^\n]*\]\((.*)\)", text) == [
        "images/dropout-first.png",
        "images/dropout-second.png",
        "images/relu-first.png",
    ]
    assert text.count("```") == 2 * len(claims)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_markdown_shows_names_as_they_are(claims):
    markdown_it = pytest.importorskip("markdown_it")
    page = (
        markdown_it.MarkdownIt("commonmark")
        .enable("table")
        .render(claims_markdown.render_results_markdown(claims, "images", MACHINE))
    )
    assert f"<h3>{html.escape(BITING, quote=False)}</h3>" in page.replace("&quot;", '"')
    assert f"<td>{html.escape(BITING, quote=False)}</td>" in page
    assert page.count("<h3>") == len(claims) + 1
    assert page.count("<table>") == 2 + sum(bool(item.rows) for item in claims)


@pytest.mark.parametrize(
    "start",
    ["- no list", "1. no list", "# no heading", "+ no list", "10) no list", "=== no heading"],
)
def test_no_line_of_a_text_becomes_a_list_or_a_heading(start, make_claim, make_question):
    markdown_it = pytest.importorskip("markdown_it")
    sentences = " ".join(
        f"{'w' * 99} {start} {'v' * 90}" for _ in range(2)
    )  # broken before `start`
    text = claims_markdown.render_results_markdown(
        [
            make_claim(
                "one", make_unmeasured_finding(make_question(), "."), text=f"{start} {sentences}"
            )
        ],
        "images",
        MACHINE,
    )
    page = markdown_it.MarkdownIt().render(text)
    assert f"<p>{start} {sentences}</p>" in page.replace("\n", " ")


def test_the_marked_block_is_replaced_and_the_rest_is_kept():
    before, after = "# Results\n\ntext  \n\n", "\n\n## More\n\tend"
    first = claims_markdown.replace_block(f"{before}{BEGIN}\nold\n{END}{after}", "new\n")
    assert first == f"{before}{BEGIN}\n\nnew\n\n{END}{after}"
    assert claims_markdown.replace_block(first, "new\n") == first
    assert claims_markdown.replace_block(first, "newer") == first.replace("new", "newer")


@pytest.mark.parametrize("document", ["", "# Results\n", "# Results\n\ntext\n\n\n"])
def test_a_document_without_marks_gets_them_at_its_end_once(document):
    first = claims_markdown.replace_block(document, r"a \1 block")
    assert first == f"{document.rstrip()}\n\n{BEGIN}\n\na \\1 block\n\n{END}\n".lstrip()
    assert claims_markdown.replace_block(first, r"a \1 block") == first


@pytest.mark.parametrize(
    "document",
    [
        BEGIN,
        f"text {END}",
        f"{END}\n{BEGIN}",
        f"{BEGIN}{BEGIN}{END}",
        f"{BEGIN}{END}" * 2,
    ],
)
def test_marks_that_are_no_pair_are_refused(document):
    with pytest.raises(ConfigError, match="not one pair"):
        claims_markdown.replace_block(document, "block")


def test_no_text_of_a_claim_can_close_the_block(make_claim, make_question):
    text = claims_markdown.render_results_markdown(
        [make_claim("one", make_unmeasured_finding(make_question(), "."), text=f"{END} {BEGIN}")],
        "images",
        MACHINE,
    )
    first = claims_markdown.replace_block("", text)
    assert claims_markdown.replace_block(first, text) == first
