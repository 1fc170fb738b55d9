"""The tables and sentences of the claims, which the page and the document share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import get_args

import numpy as np

from pipeline.reports.claim_records import (
    Claim,
    ClaimFinding,
    ClaimVerdict,
    format_effect,
)
from pipeline.reports.html import Table

RULE = (
    "One rule decides all verdicts. A claim is reproduced if the low end of the 95 % interval of"
    " our effect is above the null effect. It is not reproduced if the high end is below the"
    " published effect or, where no number was published, below the null effect. In between it is"
    " not decidable at this size. The intervals are Student's t over the seeds; for differences of"
    " errors the variance from the choice of test images is added."
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
_SUMMARY = ("claim", "published", "ours", "95 % interval", "seeds", "verdict")


def tabulate_claims(claims: Sequence[Claim]) -> Table:
    """Return the summary: one row per claim, by the finding that decides."""
    return Table(
        _SUMMARY,
        [
            (claim.title, *_format_finding(main), str(main.seeds), main.verdict)
            for claim, main in ((claim, claim.main_finding) for claim in claims)
        ],
    )


def tabulate_arms(claim: Claim) -> Table:
    """Return the table of a claim's arms: the mean of each measure and the value of each seed."""
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
            *(_format_cell(row.values.get(name, ()), name) for name in measures),
        )
        for row in claim.rows
    ]
    return Table(headings, rows)


def tabulate_ilsvrc_entries() -> Table:
    """Return the entries of ILSVRC-2012 behind `26 % to 15 %` (the paper's table 2)."""
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


def write_abstract(claims: Sequence[Claim], machine: str) -> str:
    """Return the number of verdicts of each kind, and how they were measured, as text."""
    if not claims:
        return "Nothing was measured."
    counts = Counter(claim.main_finding.verdict for claim in claims)
    verdicts: tuple[ClaimVerdict, ...] = get_args(ClaimVerdict)
    listed = [
        f"{counts[verdict]} {verdict}{' at this size' if verdict == 'not decidable' else ''}"
        for verdict in verdicts
        if counts[verdict]
    ]
    profiles, datasets = (
        join_texts(list(dict.fromkeys(values)))
        for values in zip(*((claim.profile, claim.dataset) for claim in claims), strict=True)
    )
    seeds = join_texts(sorted({str(claim.seeds) for claim in claims}, key=int))
    several = len(claims) > 1
    return (
        f"{len(claims)} claim{'s' if several else ''} of the paper of 2012"
        f" {'were' if several else 'was'} measured again: {join_texts(listed)}. Profile {profiles};"
        f" {datasets}; {seeds} seed{'' if seeds == '1' else 's'} per arm; on {machine}."
    )


def describe_claim_setup(claim: Claim) -> str:
    """Return how a claim was measured and how long that took, as text."""
    size = f"{claim.size}; " if claim.size else ""
    return (
        f"Profile {claim.profile}; {claim.dataset}; {size}{claim.seeds}"
        f" seed{'' if claim.seeds == 1 else 's'} per arm; {_format_duration(claim.seconds)} for its"
        f" experiments, including those shared with other claims; digest {claim.digest[:12]}."
    )


def capitalize_sentence(text: str) -> str:
    """Return a text with a capital first letter."""
    return text[:1].upper() + text[1:]


def join_texts(texts: Sequence[str]) -> str:
    """Return `a`, `a and b` or `a, b and c`."""
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))


def _format_finding(finding: ClaimFinding) -> tuple[str, str, str]:
    """Return the published effect, ours and its interval, as text."""
    published = (
        "no number" if finding.published is None else format_effect(finding.published, finding.unit)
    )
    if finding.ours is None:
        return published, "–", "–"
    bound = "at least " if finding.is_lower_bound else "at most " if finding.is_upper_bound else ""
    ours = f"{bound}{format_effect(finding.ours, finding.unit)}"
    if finding.interval is None:
        return published, ours, "–"
    unit = {"times": " times", "points": " points", "fraction": ""}[finding.unit]
    low, high = (format_effect(end, finding.unit).removesuffix(unit) for end in finding.interval)
    return published, ours, f"{low} to {high}{unit}"


def _format_cell(values: Sequence[float], measure: str) -> str:
    """Return the mean of a measure and, in brackets, the value of each seed."""
    if not values:
        return ""
    is_error = measure.endswith("error")
    written = [
        f"{100 * value:.2f}"
        if is_error
        else f"{value:,.0f}"
        if abs(value) >= 1000
        else f"{value:.4g}"
        for value in (float(np.mean(values)), *values)
    ]
    mean = written[0] + (" %" if is_error else "")
    return mean if len(values) == 1 else f"{mean} ({', '.join(written[1:])})"


def _format_duration(seconds: float) -> str:
    """Return `65 s`, `12 min` or `1 h 05 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
