"""The page of the claims: one self-contained HTML file, in the manner of a paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from pipeline.files import write_text
from pipeline.reports.claim_records import Claim
from pipeline.reports.claim_tables import (
    HEADLINE_TEXT,
    HEADLINE_TITLE,
    RULE,
    describe_claim_setup,
    tabulate_arms,
    tabulate_claims,
    tabulate_ilsvrc_entries,
    write_abstract,
)
from pipeline.reports.html import PageImage, Table

TITLE = "The claims of 2012, measured again"
EFFECTS_FILE = "effects.png"  # beside the page
PAPER = (
    "Krizhevsky, Sutskever and Hinton, ImageNet Classification with Deep Convolutional Neural"
    " Networks, NIPS 2012"
)
_EFFECTS_CAPTION = (
    "Every claim with a published number on one scale: 0 is the null effect, 1 the published one;"
    " ratios on a logarithmic scale. The mark is our mean, the line its 95 %"
    " interval, and an arrow goes on beyond the edge."
)
_ARMS_CAPTION = "The arms: the mean of each measure and, in brackets, each seed."


def write_claims_page(
    claims: Sequence[Claim],
    folders: Mapping[str, Path],
    path: Path,
    machine: str,
    command: str = "alexnet reproduce",
) -> None:
    """Write one HTML page with every claim, and beside it the figure of all effects.

    The page holds all figures.

    Args:
        claims: in reading order.
        folders: of each claim's figures, by its name.
        path: the HTML file to write.
        machine: that measured.
        command: that makes the page.
    """
    from pipeline.reports.claim_effects import draw_effects, has_scale

    first = None
    if any(has_scale(claim.main_finding) for claim in claims):
        draw_effects(claims, path.with_name(EFFECTS_FILE))
        first = PageImage(path.with_name(EFFECTS_FILE), _EFFECTS_CAPTION)
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    page = environment.from_string(_CLAIMS_TEMPLATE).render(
        title=TITLE,
        paper=PAPER,
        abstract=write_abstract(claims, machine),
        rule=RULE,
        summary=tabulate_claims(claims),
        anchors=[claim.name for claim in claims],
        effects=first,
        parts=list(_list_claim_parts(claims, folders, first_figure=2 if first else 1)),
        headline={
            "title": HEADLINE_TITLE,
            "text": HEADLINE_TEXT,
            "table": tabulate_ilsvrc_entries(),
            "number": 2 + sum(bool(claim.rows) for claim in claims),
        },
        arms_caption=_ARMS_CAPTION,
        command=command,
    )
    write_text(path, page)


@dataclass(frozen=True)
class ClaimPart:
    """The part of the page about one claim.

    Attributes:
        claim: the claim.
        setup: how it was measured.
        number: of its table; 0 if it has none.
        table: of its arms.
        images: its figures with their numbers.
    """

    claim: Claim
    setup: str
    number: int
    table: Table
    images: Sequence[tuple[int, PageImage]]


def _list_claim_parts(
    claims: Sequence[Claim], folders: Mapping[str, Path], first_figure: int
) -> Iterator[ClaimPart]:
    """Yield the part of each claim, its table and figures numbered through the page."""
    table, figure = 1, first_figure
    for claim in claims:
        table += bool(claim.rows)
        images = [
            (figure + index, PageImage(folders[claim.name] / item.file, item.caption))
            for index, item in enumerate(claim.figures)
        ]
        figure += len(images)
        number = table if claim.rows else 0
        yield ClaimPart(claim, describe_claim_setup(claim), number, tabulate_arms(claim), images)


_CLAIMS_TEMPLATE = """{% macro grid(table, number, caption, anchors=[]) -%}
<p class="caption"><b>Table {{ number }}.</b> {{ caption }}</p>
<div class="table"><table{% if anchors %} class="short"{% endif %}>
<thead><tr>{% for text in table.headings %}<th>{{ text }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in table.rows %}{% set line = loop.index0 %}<tr>{% for text in row -%}
<td>{% if anchors and loop.first %}<a href="#claim-{{ anchors[line] }}">{{ text }}</a>
{%- elif anchors and loop.last %}{{ mark(text) }}{% else %}{{ text }}{% endif %}</td>
{%- endfor %}</tr>
{% endfor %}</tbody></table></div>
{%- endmacro -%}
{% macro mark(verdict) -%}
<span class="{{ verdict|replace(" ", "-") }}">{{ verdict }}</span>
{%- endmacro -%}
{% macro image_tag(image, number, command) -%}
<figure><img src="data:image/png;base64,{{ image.data }}" alt="{{ image.caption }}">
<figcaption><b>Figure {{ number }}.</b> {{ image.caption }}</figcaption>
<pre>{{ command }}</pre></figure>
{%- endmacro -%}
<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --ink: #16191f; --ground: #fffefb; --faint: #5c6370; --line:
  #b9bdc5; --soft: #f3f2ee;
  --yes: #1d4fae; --no: #a8510f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e2dc; --ground: #17191d; --faint: #9aa1ad;
  --line: #4b515c; --soft: #22252b;
  --yes: #8fb4ff; --no: #f2a566; } }
body { font: 17px/1.55 Charter, "Bitstream Charter", "Iowan Old Style", "DejaVu Serif", Georgia,
  serif; color: var(--ink);
  background: var(--ground); max-width: 46rem; margin: 0 auto; padding: 2.5rem 1.2rem 4rem;
  overflow-wrap: break-word; }
h1 { font-size: 1.8rem; line-height: 1.2; text-align: center; font-weight: 600; margin: 0 0 .4rem; }
.paper { text-align: center; color: var(--faint); font-size: .9rem; margin: 0 auto 2rem;
  max-width: 36rem; }
.abstract { margin: 0 auto 1.5rem; max-width: 40rem; font-size: .95rem; }
h2 { font-size: 1.25rem; line-height: 1.3; font-weight: 600; margin: 2.6rem 0 .5rem; }
.abstract h2 { font-size: 1rem; text-align: center; margin: 0 0 .2rem; }
p { margin: .6rem 0; hyphens: auto; } ul { padding-left: 1.2rem; } li { margin: .25rem 0; }
.reproduced, .not-reproduced, .not-decidable, .not-measured { font-weight: 600; }
.reproduced { color: var(--yes); } .not-reproduced { color: var(--no); } .not-decidable,
  .not-measured { color: var(--faint); }
.table { overflow-x: auto; margin: 0 0 1.2rem; }
table { border-collapse: collapse; width: 100%; font-size: .84rem; line-height: 1.35;
  font-variant-numeric: tabular-nums lining-nums;
  border-bottom: 1.5px solid var(--ink); }
.caption { margin: 1.4rem 0 .45rem; font-size: .9rem; hyphens: none; } .short td + td {
  white-space: nowrap; }
th, td { text-align: left; vertical-align: top; padding: .3rem .7rem .3rem 0; }
th { font-weight: 600; vertical-align: bottom; border-top: 1.5px solid var(--ink); border-bottom:
  .75px solid var(--ink); }
tbody tr + tr td { border-top: .5px solid var(--line); } td:first-child { min-width: 8rem; }
a { color: inherit; text-decoration-color: var(--line); text-underline-offset: .15em; }
figure { margin: 1.6rem 0; } img { display: block; max-width: 100%; height: auto; margin: 0 auto;
  background: #fff; }
figcaption { font-size: .9rem; line-height: 1.45; margin-top: .5rem; }
pre { font: .78rem/1.5 "DejaVu Sans Mono", ui-monospace, monospace; background: var(--soft);
  padding: .4rem .7rem; margin: .5rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.facts, .rule { color: var(--faint); font-size: .85rem; }
@page { margin: 2cm; }
@media print {
  :root { color-scheme: light; --ink: #000; --ground: #fff; --faint: #444; --line: #999; --soft:
  #f3f2ee; --yes: #1d4fae; --no: #a8510f; }
  html { font-size: 10.5pt; } body { font-size: 1rem; max-width: none; padding: 0; } .short td +
  td { white-space: normal; }
  .table { overflow: visible; } img { max-height: 70vh; }
  figure, tr, li { break-inside: avoid; } h2, .caption, thead { break-after: avoid; } a {
  text-decoration: none; }
}
</style></head><body>
<h1>{{ title }}</h1>
<p class="paper">{{ paper }}</p>
<section class="abstract"><h2>Abstract</h2><p>{{ abstract }}</p>
<p class="rule">{{ rule }}</p></section>
{{ grid(summary, 1, "The claims. A negative effect, or a ratio below 1, points the other way.",
  anchors) }}
{% if effects %}{{ image_tag(effects, 1, command) }}{% endif %}
{% for part in parts %}{% set main = part.claim.main_finding %}
<section id="claim-{{ part.claim.name }}">
<h2>{{ loop.index }}&ensp;{{ part.claim.title }}</h2>
<p>{{ part.claim.text }}</p>
<p><b>Verdict:</b> {{ mark(main.verdict) }}.
{{ main.quantity[:1]|upper }}{{ main.quantity[1:] }}: {{ main.why }}
Source: {{ main.source }}.</p>
{% if part.claim.findings|length > 1 %}<p>Also measured:</p><ul>
{%- for other in part.claim.findings[1:] -%}
<li>{{ other.quantity[:1]|upper }}{{ other.quantity[1:] }}: {{ mark(other.verdict) }}:
{{ other.why }}</li>{% endfor %}</ul>{% endif %}
{% if part.number %}{{ grid(part.table, part.number, arms_caption) }}{% endif %}
{% for number, image in part.images %}{{ image_tag(image, number, part.claim.command) }}{% endfor %}
{% if part.claim.notes -%}
<ul>{% for note in part.claim.notes %}<li>{{ note }}</li>{% endfor %}</ul>
{%- endif %}
{% if not part.images %}<pre>{{ part.claim.command }}</pre>{% endif %}
<p class="facts">{{ part.setup }}</p></section>
{% endfor %}
<section id="headline"><h2>{{ parts|length + 1 }}&ensp;{{ headline.title }}</h2>
<p>{{ headline.text }}</p>
{{ grid(headline.table, headline.number, "Entries of ILSVRC-2012, from table 2 of the paper.")
  }}</section>
</body></html>
"""
