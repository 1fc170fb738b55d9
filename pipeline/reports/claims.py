"""The claims as a paper would tell them.

One self-contained HTML page, and the same as Markdown for docs/results.md.
"""

from __future__ import annotations

import os
import platform
import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, StrictUndefined

from pipeline.errors import ConfigError
from pipeline.files import write_text
from pipeline.reports.html import PageImage, Table
from pipeline.reproduce.records import Claim, Figure
from pipeline.reproduce.verdict import Finding, Verdict, amount

TITLE = "The claims of 2012, measured again"
EFFECTS_FILE = "effects.png"  # beside the page
_LINE = 150  # characters of docs/results.md
_BLOCK_START = re.compile(r"^(#{1,6}|[-+=]+|\d+[.)])(?=\s|$)")  # at the start of a line
BEGIN, END = "<!-- alexnet reproduce: begin -->", "<!-- alexnet reproduce: end -->"
PAPER = (
    "Krizhevsky, Sutskever and Hinton, ImageNet Classification with Deep Convolutional Neural"
    " Networks, NIPS 2012"
)
RULE = (
    "One rule decides all verdicts. A claim is reproduced when even the low end of the 95 %"
    " interval of our effect is more than no effect. It is not reproduced when even the high end is"
    " less than what was published or, where no number was, than no effect. In between it is not"
    " decidable at this size. The intervals are Student's t over the seeds, of differences the"
    " chance of the test images on top."
)
HEADLINE_TITLE = "From 26 % to 15 %"
HEADLINE_TEXT = (
    "The top-5 error of ILSVRC-2012 is often said to have fallen from 26 % to 15 %. The 26.2 % are"
    " the second-best entry: SIFT and Fisher vectors. The 15.3 % are the average of seven networks,"
    " two of which were first trained on other data, ImageNet's release of fall 2011; the one of"
    " that kind whose error was published alone has a sixth convolutional layer. Like for like, one"
    " network and no other data, it was 26.2 to 18.2 %, eight points of the eleven. The average of"
    " five networks gave about two more (16.4 %), the extra data and a sixth layer the last (15.3"
    " %). The 18.2 % are of the validation images, averaged over ten crops of each: the paper has"
    " no test error of one network. Where it has both they differ by 0.1 points at most."
)
_EFFECTS_CAPTION = (
    "Every claim with a published number on one scale: 0 is what counts as no effect, 1 the"
    " published one; ratios on a logarithmic scale. The mark is our mean, the line its 95 %"
    " interval, and an arrow goes on beyond the edge."
)
_ARMS_CAPTION = "What was trained or looked at: the mean and, in brackets, each seed."
_SUMMARY = ("claim", "published", "ours", "95 % interval", "seeds", "verdict")


def write_page(
    claims: Sequence[Claim],
    folders: Mapping[str, Path],
    path: Path,
    machine: str | None = None,
    command: str = "alexnet reproduce",
) -> None:
    """Write one HTML page with every claim, and beside it the image of all effects, which the page holds, too.

    Args:
        claims: in reading order.
        folders: by a claim's name, where its images lie.
        path: the HTML file to write.
        machine: what measured; by default this one.
        command: what makes the page.
    """
    from pipeline.reports.claim_figures import draw_effects, has_scale

    first = None
    if any(has_scale(claim.main) for claim in claims):
        draw_effects(claims, path.with_name(EFFECTS_FILE))
        first = PageImage(path.with_name(EFFECTS_FILE), _EFFECTS_CAPTION)
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    page = environment.from_string(_TEMPLATE).render(
        title=TITLE,
        paper=PAPER,
        abstract=_abstract(claims, machine or this_machine()),
        rule=RULE,
        summary=summary(claims),
        anchors=[claim.name for claim in claims],
        effects=first,
        parts=list(_parts(claims, folders, first_figure=2 if first else 1)),
        headline={
            "title": HEADLINE_TITLE,
            "text": HEADLINE_TEXT,
            "table": headline(),
            "number": 2 + sum(bool(claim.rows) for claim in claims),
        },
        arms_caption=_ARMS_CAPTION,
        command=command,
    )
    write_text(path, page)


def results_markdown(claims: Sequence[Claim], images: str, machine: str | None = None) -> str:
    """Return the claims as Markdown without raw HTML, to be put into docs/results.md.

    Args:
        claims: in reading order.
        images: the folder of the images, as seen from the document; each is there as
            `<claim>-<file>`.
        machine: what measured; by default this one.
    """
    blocks = [
        "## The claims of 2012",
        _wrapped(_escaped(_abstract(claims, machine or this_machine()))),
    ]
    blocks += [_wrapped(_escaped(RULE)), _markdown_table(summary(claims))]
    for claim in claims:
        blocks += _claim_blocks(claim, images)
    blocks += [
        f"### {_escaped(HEADLINE_TITLE)}",
        _wrapped(_escaped(HEADLINE_TEXT)),
        _markdown_table(headline()),
    ]
    return "\n\n".join(blocks) + "\n"


def put_into(markdown: str, block: str) -> str:
    """Return a document with the block between the marks of `alexnet reproduce`, which are put at its end if they are not there.

    Raises:
        ConfigError: one mark is missing, or there twice, or they are in the wrong order.
    """
    marked = f"{BEGIN}\n\n{block.strip()}\n\n{END}"
    found = (markdown.count(BEGIN), markdown.count(END))
    if found == (0, 0):
        return f"{markdown.rstrip()}\n\n{marked}\n".lstrip()
    if found != (1, 1) or markdown.index(BEGIN) > markdown.index(END):
        raise ConfigError(
            f"The document's marks are not one pair. Expected `{BEGIN}` once and after it `{END}`"
            f" once, or neither. Received {found[0]} of the first and {found[1]} of the"
            f" second{', in the wrong order' if found == (1, 1) else ''}. Remove them, and the"
            " block is put at the end."
        )
    before, _, rest = markdown.partition(BEGIN)
    return before + marked + rest.partition(END)[2]


def headline() -> Table:
    """Return what is behind `26 % to 15 %`.

    The entries of ILSVRC-2012 (the paper's table 2), with what each of them had.
    """
    rows = (
        ("second-best entry", "SIFT and Fisher vectors", "26.2 %", "test", "none", "none known"),
        ("1 CNN", "the paper's network", "18.2 %", "validation", "1", "none"),
        ("5 CNNs", "average of five like it", "16.4 %", "validation and test", "5", "none"),
        (
            "1 CNN*",
            "a sixth convolutional layer, pre-trained",
            "16.6 %",
            "validation",
            "1",
            "ImageNet fall 2011",
        ),
        (
            "7 CNNs*, the winning entry",
            "average of the five and of two that were pre-trained",
            "15.3 %",
            "test",
            "7",
            "ImageNet fall 2011, for two",
        ),
    )
    return Table(("entry", "what it is", "top-5 error", "on", "networks", "extra data"), rows)


def summary(claims: Sequence[Claim]) -> Table:
    """Return table 1: a line a claim, by the finding that decides."""
    return Table(
        _SUMMARY,
        [
            (claim.title, *_numbers(claim.main), str(claim.main.seeds), claim.main.verdict)
            for claim in claims
        ],
    )


def arms(claim: Claim) -> Table:
    """Return the table of a claim's arms: of each measure the mean and every seed."""
    measures = list(dict.fromkeys(measure for row in claim.rows for measure in row.values))
    settings = ("setting",) if any(row.setting for row in claim.rows) else ()
    headings = (
        "arm",
        *settings,
        *(measure.replace("_", " ").replace("top1", "top-1") for measure in measures),
    )
    rows = [
        (
            row.arm,
            *((row.setting,) if settings else ()),
            *(_cell(row.values.get(name, ()), name) for name in measures),
        )
        for row in claim.rows
    ]
    return Table(headings, rows)


def this_machine() -> str:
    """Return this machine's accelerators and processor in a few words, without asking TensorFlow."""
    models = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        models += re.findall(
            r"^Model:\s*(.+?)\s*$", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
        )
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    accelerators = [
        f"{count} x {model}" if count > 1 else model for model, count in Counter(models).items()
    ]
    return ", ".join([*accelerators, f"{_processor()} ({cores} core{'s' if cores > 1 else ''})"])


@dataclass(frozen=True)
class _Part:
    """What the page says of a claim, with the numbers of its table (0 where there is none) and of its images."""

    claim: Claim
    facts: str
    number: int
    table: Table
    images: Sequence[tuple[int, PageImage]]


def _parts(
    claims: Sequence[Claim], folders: Mapping[str, Path], first_figure: int
) -> Iterator[_Part]:
    table, figure = 1, first_figure
    for claim in claims:
        table += bool(claim.rows)
        images = [
            (figure + place, PageImage(folders[claim.name] / item.file, item.caption))
            for place, item in enumerate(claim.figures)
        ]
        figure += len(images)
        yield _Part(claim, _facts(claim), table if claim.rows else 0, arms(claim), images)


def _abstract(claims: Sequence[Claim], machine: str) -> str:
    """Say how many verdicts of each kind there are, and on what they were measured."""
    if not claims:
        return "Nothing was measured."
    counts = Counter(claim.main.verdict for claim in claims)
    verdicts: tuple[Verdict, ...] = get_args(Verdict)
    told = [
        f"{counts[verdict]} {verdict}{' at this size' if verdict == 'not decidable' else ''}"
        for verdict in verdicts
        if counts[verdict]
    ]
    profiles, datasets = (
        _joined(list(dict.fromkeys(values)))
        for values in zip(*((claim.profile, claim.dataset) for claim in claims), strict=True)
    )
    seeds = _joined(sorted({str(claim.seeds) for claim in claims}, key=int))
    several = len(claims) > 1
    return (
        f"{len(claims)} claim{'s' if several else ''} of the paper of 2012"
        f" {'were' if several else 'was'} measured again: {_joined(told)}. Profile {profiles};"
        f" {datasets}; {seeds} seed{'' if seeds == '1' else 's'} an arm; on {machine}."
    )


def _facts(claim: Claim) -> str:
    size = f"{claim.size}; " if claim.size else ""
    return (
        f"Profile {claim.profile}; {claim.dataset}; {size}{claim.seeds}"
        f" seed{'' if claim.seeds == 1 else 's'} an arm; {_duration(claim.seconds)} for its"
        f" experiments, with those that other claims share; measurements {claim.measured[:12]}."
    )


def _numbers(finding: Finding) -> tuple[str, str, str]:
    """Return the published effect, ours and its interval, as words."""
    published = (
        "no number" if finding.published is None else amount(finding.published, finding.unit)
    )
    if finding.ours is None:
        return published, "–", "–"
    bound = "at least " if finding.at_least else "at most " if finding.at_most else ""
    ours = f"{bound}{amount(finding.ours, finding.unit)}"
    if finding.interval is None:
        return published, ours, "–"
    unit = {"times": " times", "points": " points", "share": ""}[finding.unit]
    low, high = (amount(end, finding.unit).removesuffix(unit) for end in finding.interval)
    return published, ours, f"{low} to {high}{unit}"


def _cell(values: Sequence[float], measure: str) -> str:
    """Return a mean and every seed's value."""
    if not values:
        return ""
    share = measure.endswith("error")
    written = [
        f"{100 * value:.2f}" if share else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        for value in (float(np.mean(values)), *values)
    ]
    mean = written[0] + (" %" if share else "")
    return mean if len(values) == 1 else f"{mean} ({', '.join(written[1:])})"


def _claim_blocks(claim: Claim, images: str) -> list[str]:
    """Return the Markdown of one claim, a block a paragraph."""
    main = claim.main
    told = [f"{_sentence(finding.what)}: {finding.why}" for finding in claim.findings]
    told[0] += f" Source: {main.source}."
    verdicts = [
        f"**{finding.verdict.capitalize()}.** {_escaped(text)}"
        for finding, text in zip(claim.findings, told, strict=True)
    ]
    blocks = [f"### {_escaped(claim.title)}", _wrapped(_escaped(claim.text)), _wrapped(verdicts[0])]
    blocks += ["Also measured:", _bullets(verdicts[1:])] if verdicts[1:] else []
    blocks += [_markdown_table(arms(claim))] if claim.rows else []
    for figure in claim.figures:
        blocks += [
            f"![{_escaped(figure.caption)}]({_address(claim, figure, images)})",
            _wrapped(_escaped(figure.caption)),
        ]
    blocks += [_bullets([_escaped(note) for note in claim.notes])] if claim.notes else []
    return [
        *blocks,
        _wrapped(_escaped(_facts(claim))),
        f"```\n{' '.join(claim.command.split())}\n```",
    ]


def _address(claim: Claim, figure: Figure, images: str) -> str:
    return quote(f"{images.rstrip('/')}/{claim.name}-{figure.file}")


def _markdown_table(table: Table) -> str:
    lines = [f"| {' | '.join(map(_escaped, cells))} |" for cells in (table.headings, *table.rows)]
    return "\n".join([lines[0], "|---" * len(table.headings) + "|", *lines[1:]])


def _bullets(items: Sequence[str]) -> str:
    return "\n".join(f"- {_wrapped(item, indent='  ')}" for item in items)


def _wrapped(text: str, indent: str = "") -> str:
    """Return Markdown of one line in lines as long as the document's, none of which is taken for a heading or a list."""
    lines = textwrap.wrap(text, _LINE, break_long_words=False, break_on_hyphens=False)
    return f"\n{indent}".join(
        _BLOCK_START.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", line) for line in lines
    )


def _escaped(text: str) -> str:
    """Return a text on one line, with a backslash before all that Markdown would not show as it is."""
    return re.sub(
        r"([\\`*<>\[\]|~$])|(?<!\w)_|_(?!\w)|&(?=#?\w+;)", r"\\\g<0>", " ".join(text.split())
    )


def _sentence(text: str) -> str:
    """Return a text with its first letter large."""
    return text[:1].upper() + text[1:]


def _joined(words: Sequence[str]) -> str:
    """Return `a`, `a and b` or `a, b and c`."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _processor() -> str:
    """Return the processor's name, or its architecture where the kernel does not tell, as on ARM."""
    path = Path("/proc/cpuinfo")
    found = (
        re.search(
            r"^model name\s*:\s*(.+?)\s*$",
            path.read_text(encoding="utf-8", errors="replace"),
            re.MULTILINE,
        )
        if path.exists()
        else None
    )
    return found[1] if found else platform.machine()


_TEMPLATE = """{% macro grid(table, number, caption, anchors=[]) -%}
<p class="caption"><b>Table {{ number }}.</b> {{ caption }}</p><div class="table"><table{% if anchors %} class="short"{% endif %}>
<thead><tr>{% for word in table.headings %}<th>{{ word }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in table.rows %}{% set line = loop.index0 %}<tr>{% for word in row -%}
<td>{% if anchors and loop.first %}<a href="#claim-{{ anchors[line] }}">{{ word }}</a>
{%- elif anchors and loop.last %}{{ mark(word) }}{% else %}{{ word }}{% endif %}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{%- endmacro -%}
{% macro mark(verdict) %}<span class="{{ verdict|replace(" ", "-") }}">{{ verdict }}</span>{% endmacro -%}
{% macro image_tag(image, number, command) -%}
<figure><img src="data:image/png;base64,{{ image.data }}" alt="{{ image.caption }}">
<figcaption><b>Figure {{ number }}.</b> {{ image.caption }}</figcaption><pre>{{ command }}</pre></figure>
{%- endmacro -%}
<!doctype html>
<html lang="en-GB"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --ink: #16191f; --ground: #fffefb; --faint: #5c6370; --line: #b9bdc5; --soft: #f3f2ee;
  --yes: #1d4fae; --no: #a8510f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e2dc; --ground: #17191d; --faint: #9aa1ad; --line: #4b515c; --soft: #22252b;
  --yes: #8fb4ff; --no: #f2a566; } }
body { font: 17px/1.55 Charter, "Bitstream Charter", "Iowan Old Style", "DejaVu Serif", Georgia, serif; color: var(--ink);
  background: var(--ground); max-width: 46rem; margin: 0 auto; padding: 2.5rem 1.2rem 4rem; overflow-wrap: break-word; }
h1 { font-size: 1.8rem; line-height: 1.2; text-align: center; font-weight: 600; margin: 0 0 .4rem; }
.paper { text-align: center; color: var(--faint); font-size: .9rem; margin: 0 auto 2rem; max-width: 36rem; }
.abstract { margin: 0 auto 1.5rem; max-width: 40rem; font-size: .95rem; }
h2 { font-size: 1.25rem; line-height: 1.3; font-weight: 600; margin: 2.6rem 0 .5rem; }
.abstract h2 { font-size: 1rem; text-align: center; margin: 0 0 .2rem; }
p { margin: .6rem 0; hyphens: auto; } ul { padding-left: 1.2rem; } li { margin: .25rem 0; }
.reproduced, .not-reproduced, .not-decidable, .not-measured { font-weight: 600; }
.reproduced { color: var(--yes); } .not-reproduced { color: var(--no); } .not-decidable, .not-measured { color: var(--faint); }
.table { overflow-x: auto; margin: 0 0 1.2rem; }
table { border-collapse: collapse; width: 100%; font-size: .84rem; line-height: 1.35; font-variant-numeric: tabular-nums lining-nums;
  border-bottom: 1.5px solid var(--ink); }
.caption { margin: 1.4rem 0 .45rem; font-size: .9rem; hyphens: none; } .short td + td { white-space: nowrap; }
th, td { text-align: left; vertical-align: top; padding: .3rem .7rem .3rem 0; }
th { font-weight: 600; vertical-align: bottom; border-top: 1.5px solid var(--ink); border-bottom: .75px solid var(--ink); }
tbody tr + tr td { border-top: .5px solid var(--line); } td:first-child { min-width: 8rem; }
a { color: inherit; text-decoration-color: var(--line); text-underline-offset: .15em; }
figure { margin: 1.6rem 0; } img { display: block; max-width: 100%; height: auto; margin: 0 auto; background: #fff; }
figcaption { font-size: .9rem; line-height: 1.45; margin-top: .5rem; }
pre { font: .78rem/1.5 "DejaVu Sans Mono", ui-monospace, monospace; background: var(--soft); padding: .4rem .7rem; margin: .5rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.facts, .rule { color: var(--faint); font-size: .85rem; }
@page { margin: 2cm; }
@media print {
  :root { color-scheme: light; --ink: #000; --ground: #fff; --faint: #444; --line: #999; --soft: #f3f2ee; --yes: #1d4fae; --no: #a8510f; }
  html { font-size: 10.5pt; } body { font-size: 1rem; max-width: none; padding: 0; } .short td + td { white-space: normal; }
  .table { overflow: visible; } img { max-height: 70vh; }
  figure, tr, li { break-inside: avoid; } h2, .caption, thead { break-after: avoid; } a { text-decoration: none; }
}
</style></head><body>
<h1>{{ title }}</h1>
<p class="paper">{{ paper }}</p>
<section class="abstract"><h2>Abstract</h2><p>{{ abstract }}</p><p class="rule">{{ rule }}</p></section>
{{ grid(summary, 1, "The claims. A negative effect, or a ratio below 1, points the other way.", anchors) }}
{% if effects %}{{ image_tag(effects, 1, command) }}{% endif %}
{% for part in parts %}{% set main = part.claim.main %}<section id="claim-{{ part.claim.name }}">
<h2>{{ loop.index }}&ensp;{{ part.claim.title }}</h2>
<p>{{ part.claim.text }}</p>
<p><b>Verdict:</b> {{ mark(main.verdict) }}. {{ main.what[:1]|upper }}{{ main.what[1:] }}: {{ main.why }}
Source: {{ main.source }}.</p>
{% if part.claim.findings|length > 1 %}<p>Also measured:</p><ul>{% for other in part.claim.findings[1:] -%}
<li>{{ other.what[:1]|upper }}{{ other.what[1:] }}: {{ mark(other.verdict) }}: {{ other.why }}</li>{% endfor %}</ul>{% endif %}
{% if part.number %}{{ grid(part.table, part.number, arms_caption) }}{% endif %}
{% for number, image in part.images %}{{ image_tag(image, number, part.claim.command) }}{% endfor %}
{% if part.claim.notes %}<ul>{% for note in part.claim.notes %}<li>{{ note }}</li>{% endfor %}</ul>{% endif %}
{% if not part.images %}<pre>{{ part.claim.command }}</pre>{% endif %}
<p class="facts">{{ part.facts }}</p></section>
{% endfor %}
<section id="headline"><h2>{{ parts|length + 1 }}&ensp;{{ headline.title }}</h2><p>{{ headline.text }}</p>
{{ grid(headline.table, headline.number, "Entries of ILSVRC-2012, from table 2 of the paper.") }}</section>
</body></html>
"""
