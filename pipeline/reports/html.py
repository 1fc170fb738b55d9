"""Pages: self-contained HTML of text, tables and images.

They are readable on a phone and on paper, and use neither scripts nor other files.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined

# A number, or several of them: `28 x 28 x 3`, `1 %, 2 %`.
_AMOUNT = r"[-+]?\d[-+\d.,:%x e]{0,30}"
# The same with its unit, or a range.
_NUMBER = re.compile(rf"{_AMOUNT}( to {_AMOUNT})?( ?([A-Za-z]{{1,5}}|points|images/s))?")


@dataclass(frozen=True)
class Table:
    """A table of formatted cells under headings."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def text_columns(self) -> frozenset[int]:
        """The columns that are set as text, counted from 0.

        These are the first one and each that has a cell other than a number.
        """
        return frozenset(
            {0}.union(
                index
                for row in self.rows
                for index, cell in enumerate(row)
                if cell and not _NUMBER.fullmatch(cell)
            )
        )


@dataclass(frozen=True)
class PageImage:
    """A PNG file with a caption."""

    path: Path
    caption: str

    @property
    def data(self) -> str:
        """The file as base64 text."""
        return base64.b64encode(self.path.read_bytes()).decode("ascii")


@dataclass(frozen=True)
class PageSection:
    """A part of a page: a heading, then a paragraph, tables and images."""

    heading: str
    text: str = ""
    tables: Sequence[Table] = ()
    images: Sequence[PageImage] = ()


_TEMPLATE = """{% macro cells(tag, texts, text_columns) -%}
{% for text in texts -%}
<{{ tag }}{% if loop.index0 in text_columns %} class="text"{% endif %}>{{ text }}</{{ tag }}>
{%- endfor %}
{%- endmacro -%}
<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #2f6fde; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto;
  padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
.verdict { border-left: .3rem solid var(--accent); background: var(--soft); padding: .8rem 1rem;
  font-size: 1.1rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: right; vertical-align: top; padding: .25rem .7rem;
  border-bottom: 1px solid var(--line); overflow-wrap: break-word; }
td { white-space: nowrap; } thead th { vertical-align: bottom; border-bottom-width: 2px; }
th, .text { white-space: normal; max-width: min(22rem, 45vw); } .text { text-align: left; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; background: #fff; }
figcaption { font-size: .9rem; opacity: .8; }
footer { margin-top: 3rem; font-size: .85rem; opacity: .7; }
@media print, (max-width: 40rem) { th, td { padding: .25rem .4rem; } }
@page { margin: 1.5cm; }
@media print {
  :root { color-scheme: light; } body { max-width: none; padding: 0; font-size: 11pt; }
  .table { overflow: visible; }
  td.text { overflow-wrap: anywhere; min-width: 6rem; } img { max-height: 80vh; }
  figure, tr, p { break-inside: avoid; } h2, h2 + p, thead { break-after: avoid; }
}
</style></head><body>
<h1>{{ title }}</h1>
<p class="verdict">{{ verdict }}</p>
{% for section in sections %}<section><h2>{{ section.heading }}</h2>
{% if section.text %}<p>{{ section.text }}</p>{% endif %}
{% for table in section.tables %}{% set columns = table.text_columns %}<div class="table"><table>
<thead><tr>{{ cells("th", table.headings, columns) }}</tr></thead>
<tbody>{% for row in table.rows %}<tr>{{ cells("td", row, columns) }}</tr>
{% endfor %}</tbody></table></div>{% endfor %}
{% for image in section.images %}<figure>
<img src="data:image/png;base64,{{ image.data }}" alt="{{ image.caption }}">
<figcaption>{{ image.caption }}</figcaption></figure>{% endfor %}
</section>{% endfor %}
<footer>{{ footer }}</footer>
</body></html>
"""


def render_page(title: str, verdict: str, sections: Sequence[PageSection], footer: str = "") -> str:
    """Return the page as HTML, every text escaped.

    Args:
        title: the page's heading.
        verdict: the sentence to read first.
        sections: in reading order.
        footer: small print, such as digests.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(_TEMPLATE).render(
        title=title, verdict=verdict, sections=sections, footer=footer
    )
