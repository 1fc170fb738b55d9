"""One self-contained HTML page: text, tables and pictures, readable on a phone and on paper, with no script and no outside file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined


@dataclass(frozen=True)
class Table:
    """Rows under headings; numbers come already formatted."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A PNG file with what it shows."""

    path: Path
    caption: str

    @property
    def data(self) -> str:
        """The file as base64 text."""
        return base64.b64encode(self.path.read_bytes()).decode("ascii")


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, then tables, then pictures."""

    heading: str
    text: str = ""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #2f6fde; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
.verdict { border-left: .3rem solid var(--accent); background: var(--soft); padding: .8rem 1rem; font-size: 1.1rem; }
.table { overflow-x: auto; } table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .7rem; border-bottom: 1px solid var(--line); }
th { overflow-wrap: normal; } th:first-child, td:first-child { text-align: left; } thead th { border-bottom-width: 2px; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; background: #fff; } figcaption { font-size: .9rem; opacity: .8; }
footer { margin-top: 3rem; font-size: .85rem; opacity: .7; }
@media print { body { max-width: none; font-size: 11pt; } figure, table { break-inside: avoid; } }
</style></head><body>
<h1>{{ title }}</h1>
<p class="verdict">{{ verdict }}</p>
{% for section in sections %}<section><h2>{{ section.heading }}</h2>
{% if section.text %}<p>{{ section.text }}</p>{% endif %}
{% for table in section.tables %}<div class="table"><table>
<thead><tr>{% for word in table.headings %}<th>{{ word }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in table.rows %}<tr>{% for word in row %}<td>{{ word }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% endfor %}
{% for picture in section.pictures %}<figure><img src="data:image/png;base64,{{ picture.data }}" alt="{{ picture.caption }}">
<figcaption>{{ picture.caption }}</figcaption></figure>{% endfor %}
</section>{% endfor %}
<footer>{{ footer }}</footer>
</body></html>
"""


def render(title: str, verdict: str, sections: Sequence[Section], footer: str = "") -> str:
    """Return the page as HTML; every word is escaped.

    Args:
        title: the page's heading.
        verdict: the sentence to read first.
        sections: in reading order.
        footer: small print, such as digests.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(_TEMPLATE).render(title=title, verdict=verdict, sections=sections, footer=footer)
