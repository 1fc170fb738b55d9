"""The page of the claims, from numbers that were made up."""

from __future__ import annotations

import base64
import html
import io
import re

from PIL import Image

from pipeline.reports import claims as claims_page
from pipeline.reproduce.verdict import judge_effects

MACHINE = "a made-up machine"


def read_text(page):
    """The text of a page as a browser shows it."""
    body = page.split("</style>", 1)[1]
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", body)))


def test_the_page_holds_every_verdict_number_and_figure(claims, tmp_path):
    path = tmp_path / "page.html"
    claims_page.write_claims_page(claims, {item.name: tmp_path for item in claims}, path, MACHINE)
    page = path.read_text(encoding="utf-8")
    text = read_text(page)
    counts = "1 reproduced, 1 not reproduced, 1 not decidable at this size and 1 not measured"
    assert (
        f"4 claims of the paper of 2012 were measured again: {counts}. Profile quick; digits: 3"
        f" images; 3 seeds per arm; on {MACHINE}." in text
    )
    for item in claims:
        assert item.title in text
        assert f"Verdict: {item.main_finding.verdict} ." in text
        assert item.command in text
        assert all(finding.why in text for finding in item.findings)
    assert re.search(
        r"The claim of relu \s*6 times \s*0\.997 times \s*0\.7\S+ to 1\.2\S+ times \s*3 \s*not"
        r" reproduced",
        text,
    )
    assert "15.00 % (10.00, 20.00, 15.00)" in text
    assert "4 (3, 4, 5)" in text
    assert "Only <three> seeds." in text

    images = [
        base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    ]
    assert [Image.open(io.BytesIO(data)).size for data in images[1:]] == [
        (4, 3)
    ] * 3  # after the one of all effects
    assert images[0] == (tmp_path / claims_page.EFFECTS_FILE).read_bytes()
    assert re.findall(r"Figure (\d+)\.", text) == ["1", "2", "3", "4"]
    assert re.findall(r"Table (\d+)\.", text) == ["1", "2", "3", "4"]
    assert [
        word for word in re.findall(r'href="#([^"]+)"', page) if f'id="{word}"' not in page
    ] == []


def test_the_page_escapes_names_and_needs_no_other_file(claims, tmp_path):
    path = tmp_path / "page.html"
    claims_page.write_claims_page(
        claims, {item.name: tmp_path for item in claims}, path, "<img src=x>"
    )
    page = path.read_text(encoding="utf-8")
    for raw in (
        "<b>helps",
        "<2012>",
        "<first>",
        "<three>",
        "<img src=x>",
        "<script",
        "<link",
        "http:",
        "https:",
        "url(",
    ):
        assert raw not in page, raw
    assert set(re.findall(r'(?:src|href)="([^:"]{1,5})', page)) == {"data", "#clai"}


def test_a_page_without_published_numbers_has_no_image_of_all_effects(
    tmp_path, make_claim, make_question
):
    alone = make_claim("one", judge_effects(make_question(published=None), (1.0,)))
    claims_page.write_claims_page([alone], {}, tmp_path / "page.html", MACHINE)
    text = read_text((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "1 claim of the paper of 2012 was measured again: 1 not decidable at this size." in text
    assert "Figure 1" not in text
    assert not (tmp_path / claims_page.EFFECTS_FILE).exists()
    assert "no number +1.00 points – 1 not decidable" in text
