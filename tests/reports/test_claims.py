"""The claim_figures, the page and the Markdown of the claims, from numbers that were made up."""

import base64
import html
import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ConfigError
from pipeline.reports import claim_figures
from pipeline.reports import claims as pages
from pipeline.reproduce.records import Claim, Figure, Row
from pipeline.reproduce.verdict import Question, find, not_measured

BITING = "Dropout <b>helps</b> | a $lot$ & `more`_ *now* [x](y)"
MACHINE = "a made-up machine"


def question(unit="points", published=1.4, least=0.0):
    return Question(
        what=f"the effect in {unit}",
        unit=unit,
        published=published,
        source="paper, section 9",
        least=least,
    )


def claim(name, *findings, **others):
    fields = {
        "title": f"The claim of {name}",
        "text": "What the paper says.",
        "seeds": 3,
        "profile": "quick",
        "dataset": "digits: 3 images",
    }
    fields |= {
        "command": f"alexnet reproduce --only {name}",
        "seconds": 65.0,
        "measured": "0123456789abcdef",
    }
    return Claim(name=name, findings=findings, **(fields | others))


@pytest.fixture
def claims(tmp_path):
    """One claim of each verdict, with names that bite and images of their own."""
    for name, color in (("first.png", "red"), ("second.png", "blue")):
        Image.new("RGB", (4, 3), color).save(tmp_path / name)
    rows = (
        Row(
            arm="as in <2012>",
            setting="rate 0.01",
            values={"test_top1_error": (0.1, 0.2, 0.15), "epochs": (3.0, 4.0, 5.0)},
        ),
        Row(arm="without", values={"test_top1_error": (0.25,)}),
    )
    shown = (
        Figure(file="first.png", caption="The <first>."),
        Figure(file="second.png", caption="The second."),
    )
    also = (
        find(question(published=None), (-1.0, -1.1, -1.2)),
        not_measured(question("times", 2.0, 1.0), "There was no time."),
    )
    return [
        claim(
            "dropout",
            find(question(), (2.0, 2.1, 1.9)),
            *also,
            title=BITING,
            rows=rows,
            figures=shown,
            notes=("Only <three> seeds.",),
        ),
        claim("relu", find(question("times", 6.0, 1.0), (0.9, 1.0, 1.1)), figures=shown[:1]),
        claim("pooling", find(question(), (0.5, -9.0, 9.0)), rows=rows[1:]),
        claim("towers", not_measured(question(), "It needs two towers.")),
    ]


def shown_words(page):
    """The text of a page as a browser shows it."""
    body = page.split("</style>", 1)[1]
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", body)))


def test_the_page_holds_every_verdict_number_and_figure(claims, tmp_path):
    path = tmp_path / "page.html"
    pages.write_page(claims, {item.name: tmp_path for item in claims}, path, MACHINE)
    page = path.read_text(encoding="utf-8")
    words = shown_words(page)
    counts = "1 reproduced, 1 not reproduced, 1 not decidable at this size and 1 not measured"
    assert (
        f"4 claims of the paper of 2012 were measured again: {counts}. Profile quick; digits: 3"
        f" images; 3 seeds an arm; on {MACHINE}." in words
    )
    for item in claims:
        assert item.title in words
        assert f"Verdict: {item.main.verdict} ." in words
        assert item.command in words
        assert all(finding.why in words for finding in item.findings)
    assert re.search(
        r"The claim of relu \s*6 times \s*0\.997 times \s*0\.7\S+ to 1\.2\S+ times \s*3 \s*not"
        r" reproduced",
        words,
    )
    assert "15.00 % (10.00, 20.00, 15.00)" in words
    assert "4 (3, 4, 5)" in words
    assert "Only <three> seeds." in words

    images = [
        base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    ]
    assert [Image.open(io.BytesIO(data)).size for data in images[1:]] == [
        (4, 3)
    ] * 3  # after the one of all effects
    assert images[0] == (tmp_path / pages.EFFECTS_FILE).read_bytes()
    assert re.findall(r"Figure (\d+)\.", words) == ["1", "2", "3", "4"]
    assert re.findall(r"Table (\d+)\.", words) == ["1", "2", "3", "4"]
    assert [
        word for word in re.findall(r'href="#([^"]+)"', page) if f'id="{word}"' not in page
    ] == []


def test_the_page_escapes_names_and_needs_no_other_file(claims, tmp_path):
    path = tmp_path / "page.html"
    pages.write_page(claims, {item.name: tmp_path for item in claims}, path, "<img src=x>")
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


def test_a_page_without_published_numbers_has_no_image_of_all_effects(tmp_path):
    alone = claim("one", find(question(published=None), (1.0,)))
    pages.write_page([alone], {}, tmp_path / "page.html", MACHINE)
    words = shown_words((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "1 claim of the paper of 2012 was measured again: 1 not decidable at this size." in words
    assert "Figure 1" not in words
    assert not (tmp_path / pages.EFFECTS_FILE).exists()
    assert "no number +1.00 points – 1 not decidable" in words


def test_the_markdown_has_the_same_and_no_html(claims):
    text = pages.results_markdown(claims, "images/", MACHINE)
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
        .render(pages.results_markdown(claims, "images", MACHINE))
    )
    assert f"<h3>{html.escape(BITING, quote=False)}</h3>" in page.replace("&quot;", '"')
    assert f"<td>{html.escape(BITING, quote=False)}</td>" in page
    assert page.count("<h3>") == len(claims) + 1
    assert page.count("<table>") == 2 + sum(bool(item.rows) for item in claims)


@pytest.mark.parametrize(
    "start",
    ["- no list", "1. no list", "# no heading", "+ no list", "10) no list", "=== no heading"],
)
def test_no_line_of_a_text_becomes_a_list_or_a_heading(start):
    markdown_it = pytest.importorskip("markdown_it")
    words = " ".join(f"{'w' * 149} {start} {'v' * 140}" for _ in range(2))  # broken before `start`
    text = pages.results_markdown(
        [claim("one", not_measured(question(), "."), text=f"{start} {words}")], "images", MACHINE
    )
    page = markdown_it.MarkdownIt().render(text)
    assert f"<p>{start} {words}</p>" in page.replace("\n", " ")


def test_the_marked_block_is_replaced_and_the_rest_is_kept():
    before, after = "# Results\n\ntext  \n\n", "\n\n## More\n\tend"
    first = pages.put_into(f"{before}{pages.BEGIN}\nold\n{pages.END}{after}", "new\n")
    assert first == f"{before}{pages.BEGIN}\n\nnew\n\n{pages.END}{after}"
    assert pages.put_into(first, "new\n") == first
    assert pages.put_into(first, "newer") == first.replace("new", "newer")


@pytest.mark.parametrize("document", ["", "# Results\n", "# Results\n\ntext\n\n\n"])
def test_a_document_without_marks_gets_them_at_its_end_once(document):
    first = pages.put_into(document, r"a \1 block")
    assert first == f"{document.rstrip()}\n\n{pages.BEGIN}\n\na \\1 block\n\n{pages.END}\n".lstrip()
    assert pages.put_into(first, r"a \1 block") == first


@pytest.mark.parametrize(
    "document",
    [
        pages.BEGIN,
        f"text {pages.END}",
        f"{pages.END}\n{pages.BEGIN}",
        f"{pages.BEGIN}{pages.BEGIN}{pages.END}",
        f"{pages.BEGIN}{pages.END}" * 2,
    ],
)
def test_marks_that_are_no_pair_are_refused(document):
    with pytest.raises(ConfigError, match="not one pair"):
        pages.put_into(document, "block")


def test_no_text_of_a_claim_can_close_the_block():
    text = pages.results_markdown(
        [claim("one", not_measured(question(), "."), text=f"{pages.END} {pages.BEGIN}")],
        "images",
        MACHINE,
    )
    first = pages.put_into("", text)
    assert pages.put_into(first, text) == first


def test_the_headline_adds_up():
    """ILSVRC-2012 in table 2 of the paper; the networks' numbers are also in the diaries of the
    program of 2012."""
    table = pages.headline()
    errors = {row[0]: float(row[2].removesuffix(" %")) for row in table.rows}
    assert list(errors.values()) == [26.2, 18.2, 16.4, 16.6, 15.3]
    assert [row[4] for row in table.rows] == ["none", "1", "5", "1", "7"]
    assert [row[5] for row in table.rows[:3]] == ["none known", "none", "none"]
    assert all("2011" in row[5] for row in table.rows[3:])
    second, one, five, winning = (
        errors[name]
        for name in ("second-best entry", "1 CNN", "5 CNNs", "7 CNNs*, the winning entry")
    )
    assert (round(second - winning), round(second - one)) == (11, 8)
    assert round(one - five) == 2
    assert round(five - winning, 1) == 1.1
    for number in (second, one, five, winning):
        assert f"{number} " in pages.HEADLINE_TEXT


def test_the_machine_is_named():
    assert re.fullmatch(r"\S.* \(\d+ cores?\)", pages.this_machine())


def looked_at(path, least=(900, 150), most=(1000, 900)):
    """An image of a sane size, with something on it and white around."""
    assert path.stat().st_size < 60_000
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert least <= (pixels.shape[1], pixels.shape[0]) <= most
    assert (pixels[[0, -1], [0, -1]] == 255).all()
    assert 0.002 < (pixels < 250).any(axis=2).mean() < 0.4
    return pixels


def falling(epochs, rate=0.1):
    return [float(0.9 * np.exp(-rate * epoch)) for epoch in range(1, epochs + 1)]


def entries(errors):
    return [
        {"epoch": epoch, "train_top1_error": error, "validation_top1_error": error / 2 + 0.1}
        for epoch, error in enumerate(errors, 1)
    ]


GAMMA = np.random.default_rng(0).gamma(2, 0.1, 48)
DRAWINGS = {
    "race": lambda path: claim_figures.draw_race(
        {"ReLU $x$": [falling(4, 0.4), falling(5, 0.3)], "tanh": [falling(30, 0.02)] * 3},
        0.25,
        path,
    ),
    "race of one": lambda path: claim_figures.draw_race(
        {"שלום": [[0.2]], "empty": [[]], "none": []}, 0.25, path
    ),
    "curves": lambda path: claim_figures.draw_curves(
        {"a": [entries(falling(9)), entries(falling(4))], "b" * 99: [entries(falling(1))]}, path
    ),
    "no validation": lambda path: claim_figures.draw_curves(
        {"a": [[{"epoch": 1, "train_top1_error": 0.5}]], "b": []}, path
    ),
    "depths": lambda path: claim_figures.draw_depths(
        {"ReLU": {2: [1, 1], 4: [1, 0.9, 0.8, 0.9]}, "tanh": {4: [0.0, 0.0, 1e-30, 1]}},
        {"ReLU": {2: [0.1, 0.2], 4: [0.3]}},
        0.9,
        path,
    ),
    "no gradients": lambda path: claim_figures.draw_depths(
        {"tanh": {3: [0.0, 0.0, 0.0]}, "none": {}}, {"tanh": {3: []}}, 0.9, path
    ),
    "sizes": lambda path: claim_figures.draw_sizes(
        {50_000: [0.1, 0.2, 0.1], 1000: [0.5], 10_000: [0.3, 0.31]}, path
    ),
    "one size": lambda path: claim_figures.draw_sizes({100: [0.5]}, path),
    "probes": lambda path: claim_figures.draw_probes(
        {"trained": {"conv1": [0.5, 0.4], "a" * 80: [0.2]}, "fresh": {"conv1": [0.6]}}, path
    ),
    "towers": lambda path: claim_figures.draw_towers([(GAMMA, 3 * GAMMA), ([0.1], [])], path),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_drawing_has_a_sane_size_and_is_the_same_again(name, tmp_path):
    DRAWINGS[name](tmp_path / "a.png")
    DRAWINGS[name](tmp_path / "b.png")
    looked_at(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("arms", [1, 3, 9])
@pytest.mark.parametrize("measure", ["test_top1_error", "epochs", "absent"])
def test_arms_are_drawn_with_one_seed_or_several(arms, measure, tmp_path):
    rows = [
        Row(
            arm="$x$ " * (1 + 9 * index),
            values={"test_top1_error": (0.1,) * (index + 1), "epochs": (1.0, 2e4)},
        )
        for index in range(arms)
    ]
    claim_figures.draw_arms(rows, measure, tmp_path / "arms.png")
    looked_at(tmp_path / "arms.png")


def test_the_effects_are_drawn_by_verdict_and_without_what_has_no_place(claims, tmp_path):
    claim_figures.draw_effects(claims, tmp_path / "all.png")
    pixels = looked_at(tmp_path / "all.png").astype(int)
    for color in ((0x24, 0x60, 0xC8), (0xD9, 0x77, 0x2B), (0x69, 0x70, 0x7D)):
        assert (abs(pixels - color).max(axis=2) < 12).sum() > 50, color
    unpublished = claim("none", find(question(published=None), (1.0, 2.0)))
    claim_figures.draw_effects([*claims, unpublished], tmp_path / "more.png")
    assert (tmp_path / "all.png").read_bytes() == (tmp_path / "more.png").read_bytes()
    claim_figures.draw_effects([unpublished], tmp_path / "none.png")
    looked_at(tmp_path / "none.png")


def test_effects_lie_between_none_and_the_published_one():
    points = find(question("points", 2.0, 0.0), (0.9, 1.1))
    times = find(question("times", 9.0, 1.0), (3.0, 3.0))
    assert claim_figures._on_scale(points, points.ours) == pytest.approx(0.5)
    assert claim_figures._on_scale(times, times.ours) == pytest.approx(0.5)
    assert [claim_figures._on_scale(times, effect) for effect in (1.0, 9.0)] == pytest.approx(
        [0, 1]
    )


def test_the_median_of_a_race_ends_at_the_goal():
    seeds = [[0.5, 0.2], [0.6, 0.4, 0.3, 0.24], [0.7, 0.5, 0.26]]
    assert claim_figures._median(seeds, 0.25) == pytest.approx([0.6, 0.4, 0.26, 0.24])
    assert claim_figures._told(seeds, 0.25) == "25 % after 2 to 4 epochs, 1 of 3 seeds never"
    assert claim_figures._told([[0.2]], 0.25) == "25 % after 1 epoch"
    assert claim_figures._told([[0.5, 0.4]], 0.25) == "not at 25 % after 2 epochs"


def test_a_claim_at_its_bound_is_drawn_open():
    closed = find(question("times", 6.0, 1.0), (2.0, 2.1, 2.2))
    drawn = []
    axes = SimpleNamespace(
        plot=lambda *values, **_: drawn.append(values),
        annotate=lambda *words, **_: drawn.append(words),
    )
    for bound in (False, True):
        claim_figures._draw_effect(axes, 0, closed.model_copy(update={"at_least": bound}))
    assert [values[0] for values in drawn if str(values[-1]) == ">"] == [4.0]
    assert [words[0] for words in drawn if isinstance(words[0], str)] == [
        "2.1 times",
        "≥ 2.1 times",
    ]
