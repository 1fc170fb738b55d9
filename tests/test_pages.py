"""Our pages in a real browser, and MLflow's page of one of our runs: what a person sees, from names
that bite."""

import contextlib
import csv
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from pipeline import api
from pipeline.api import Workspace
from pipeline.config.tracking import TrackingConfig
from pipeline.reports.html import PageImage, PageSection, Table, render_page
from pipeline.tracking.known_runs import read_known_runs
from pipeline.tracking.store import DEFAULT_UI, get_run_url

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason=(
        "our pages and MLflow's were not tested in a browser: install Debian's package `chromium`"
    ),
)

NAMES = (
    "<script>document.title='bad'</script>",
    "<img src=x onerror=document.title='bad'>",
    "two\nlines",
    "both \"quotes' and &amp; <b>&lt;",
    "שלום/مرحبا (1)",
    "x" * 200,
    "a long name " * 16 + "its end",
)
PAGES = {"ingest": "dataset_card.html", "build": "network.html", "evaluate": "report.html"}
WIDTHS = {"phone": 390, "window": 1280}
TEXTS = ("h1", ".verdict", "h2", "section p", "th", "td", "figcaption", "footer")


def as_shown(name):
    """A browser makes one space of a line break and of several spaces."""
    return " ".join(name.split())


def write_dataset(folder):
    """Write 30 images per class under difficult names, and return the manifest."""
    rng = np.random.default_rng(0)
    rows = []
    for label, name in enumerate(NAMES):
        for number in range(30):
            path = folder / f"<b onclick='x'>&amp;\n\"שלום {'y' * 150} {label}-{number}.png"
            Image.fromarray(
                rng.normal(30 * label + 20, 30, (40, 40, 3)).clip(0, 255).astype(np.uint8)
            ).save(path)
            rows.append((path.name, name))
    with (folder / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return folder / "list.csv"


def alexnet(*arguments):
    """Run a command to its end and return what its last line says."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("ALEXNET_")
    }
    command = [sys.executable, "-m", "pipeline", *arguments]
    done = subprocess.run(
        command, check=False, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A work directory in which a pipeline has run: its folder, the result and the page of each
    stage."""
    workdir = tmp_path_factory.mktemp("work")
    arguments = [
        "--workdir",
        workdir,
        "--json",
        "run",
        "--dataset",
        write_dataset(tmp_path_factory.mktemp("images")),
        "--epochs",
        "1",
    ]
    arguments += [
        "--image-size",
        "32",
        "--set",
        "data.short_side=36",
        "--network",
        "small",
        "--set",
        "model.alexnet.width_multiplier=0.2",
    ]
    result = alexnet(*arguments, "--set", "evaluate.report=short")
    pages = {
        stage["name"]: Path(stage["directory"]) / "report" / PAGES.get(stage["name"], "")
        for stage in result["stages"]
    }
    return SimpleNamespace(workdir=workdir, result=result, pages=pages)


@pytest.fixture(scope="module")
def server(finished):
    """MLflow's server of that work directory; it comes up while our own pages are looked at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ui = api.prepare_ui(port, workspace=Workspace(finished.workdir))
    log = finished.workdir.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen(
            ui.command, env=ui.environment, stdout=output, stderr=output, start_new_session=True
        )
    yield SimpleNamespace(process=process, port=port, address=f"http://127.0.0.1:{port}", log=log)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(
            process.pid, signal.SIGKILL
        )  # a polite end takes it seconds, and nothing of it is kept
    process.wait(timeout=30)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )  # no sandbox: CI is root in a container


@contextlib.contextmanager
def watched(browser, **look):
    """Open an empty page, and collect what it asks for and what goes wrong in it."""
    page = browser.new_page(**look)
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: wrong.append((request.url, request.failure)))
    page.on("pageerror", lambda error: wrong.append((page.url, str(error))))
    page.on(
        "console",
        lambda line: (
            wrong.append((line.location["url"], line.text))
            if line.type in ("error", "warning")
            else None
        ),
    )
    try:
        yield page, asked, wrong
    finally:
        page.close()


@contextlib.contextmanager
def our_page(browser, file, **look):
    """Open a page of ours: nothing may go wrong in it, and it may ask for no file but itself."""
    with watched(browser, **look) as (page, asked, wrong):
        page.goto(file.as_uri())
        yield page
        assert wrong == []
        assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]


def viewport(name):
    return {"viewport": {"width": WIDTHS[name], "height": 844}}


def require_whole_words(page):
    """Every image is there, and no number and no short word is broken."""
    assert page.evaluate("[...document.images].filter(image => !image.naturalWidth).length") == 0
    lines = (
        "(e => { const range = document.createRange(); range.selectNodeContents(e); return"
        " range.getClientRects().length })"
    )
    cells = (
        "[...document.querySelectorAll('td')].filter(e => !e.className ||"
        " /^\\S{1,11}$/.test(e.innerText))"
    )
    assert page.evaluate(f"{cells}.filter(e => {lines}(e) > 1).map(e => e.innerText)") == []


def beyond_the_edge(page, but):
    """Return the elements past the right edge, except those in elements that match a selector."""
    beyond = (
        f"[...document.querySelectorAll('body *')].filter(e => !e.closest('{but}') &&"
        " e.getBoundingClientRect().right > innerWidth + 1)"
    )
    return page.evaluate(f"{beyond}.map(e => e.outerHTML.slice(0, 200))")


def require_layout(page):
    """Nothing but a wide table, in its own frame, goes past the right edge."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert beyond_the_edge(page, "table") == []
    require_whole_words(page)


def table(page, *headings):
    """Return the rows of the first table that begins with these headings, as texts."""
    found = page.evaluate(
        "[...document.querySelectorAll('table')].map(t => [...t.rows].map(row =>"
        " [...row.cells].map(cell => cell.innerText)))"
    )
    return next(rows[1:] for rows in found if tuple(rows[0][: len(headings)]) == headings)


def luminance(pixels):
    """Return the relative luminance in [0, 1] of uint8 [height, width, 3] sRGB pixels in [0, 255],
    as the WCAG defines it."""
    fraction = pixels / 255
    return np.where(fraction <= 0.04045, fraction / 12.92, ((fraction + 0.055) / 1.055) ** 2.4) @ (
        0.2126,
        0.7152,
        0.0722,
    )


def contrasts(page, file):
    """Take a screenshot, and return the background's luminance in [0, 1] and the WCAG contrast
    ratio that each kind of text reaches."""
    pixels = np.asarray(
        Image.open(io.BytesIO(page.screenshot(path=file, full_page=True))).convert("RGB")
    )
    # 8 pixels are left out at the left: the verdict has a colored edge there.
    box = "(b => [b.left + 8, b.top + scrollY, b.right, b.bottom].map(Math.round))"
    boxes = page.evaluate(
        f"kinds => kinds.map(kind => {box}(document.querySelector(kind).getBoundingClientRect()))",
        list(TEXTS),
    )
    ratios = {}
    for kind, (left, top, right, bottom) in zip(TEXTS, boxes, strict=True):
        values, counts = np.unique(luminance(pixels[top:bottom, left:right]), return_counts=True)
        ground = values[counts.argmax()]
        ratios[kind] = max(
            (np.maximum(values, ground) + 0.05) / (np.minimum(values, ground) + 0.05)
        )
    return luminance(pixels[-1, 0]), ratios


@pytest.mark.slow
@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("stage", PAGES)
def test_a_page_of_a_run_is_whole_and_fits(browser, finished, tmp_path, stage, width):
    with our_page(browser, finished.pages[stage], **viewport(width)) as page:
        page.screenshot(path=tmp_path / f"{stage}-{width}.png", full_page=True)
        require_layout(page)
        assert page.evaluate("document.images.length") >= 2
        assert page.title() == page.locator("h1").inner_text()


@pytest.mark.slow
def test_the_report_says_what_was_counted_under_whole_names(browser, finished):
    """No name ran as a script, which would have changed the title."""
    test = finished.result["test"]
    with our_page(browser, finished.pages["evaluate"]) as page:
        verdict = page.locator(".verdict").inner_text()
        assert f"{100 * test['top1_error']:.1f} %" in verdict
        assert f"{test['images']} test images" in verdict
        measures = {row[0]: row[1] for row in table(page, "measure", "value")}
        assert (measures["images"], measures["classes"]) == (str(test["images"]), str(len(NAMES)))
        assert sorted(row[0] for row in table(page, "class")) == sorted(map(as_shown, NAMES))
        assert page.title() == "Evaluation on the test split"
        assert page.locator("script").count() == 0


def write_biting_page(folder):
    """Write a page that shows the difficult names wherever a name can stand: its file, the names in
    one text, and the rows of its second table."""
    Image.new("RGB", (64, 64), "red").save(folder / "red.png")
    every = " | ".join(NAMES)
    rows = [(name, name, f"{number}.5 %", name) for number, name in enumerate(NAMES)]
    section = PageSection(
        every,
        every,
        [Table(NAMES, [NAMES]), Table(("a", "b", "c", every), rows)],
        [PageImage(folder / "red.png", every)],
    )
    file = folder / "<b> #1 100%.html"
    file.write_text(render_page(every, every, [section], every), encoding="utf-8")
    return file, every, rows


def test_names_that_bite_are_shown_whole_wherever_they_stand(browser, tmp_path):
    file, every, rows = write_biting_page(tmp_path)
    for width in WIDTHS:
        with our_page(browser, file, **viewport(width)) as page:
            page.screenshot(path=tmp_path / f"names-{width}.png", full_page=True)
            require_layout(page)
            for place in (
                "h1",
                ".verdict",
                "h2",
                "section p",
                "th:last-child >> nth=1",
                "figcaption",
                "footer",
            ):
                assert page.locator(place).inner_text() == as_shown(every), place
            assert table(page, *map(as_shown, NAMES)) == [[as_shown(name) for name in NAMES]]
            assert table(page, "a", "b", "c") == [[as_shown(word) for word in row] for row in rows]
            assert page.locator("img").get_attribute("alt") == every
            assert page.title() == as_shown(every)
            assert page.locator("script").count() == 0


def require_contrast(browser, file, scheme, folder):
    """Every kind of text stands out from a page's ground."""
    with our_page(browser, file, color_scheme=scheme, **viewport("phone")) as page:
        ground, ratios = contrasts(page, folder / f"{scheme}.png")
    assert ground == 1 if scheme == "light" else ground < 0.05
    assert min(ratios.values()) >= 4.5, ratios


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_by_day_and_by_night(browser, tmp_path, scheme):
    require_contrast(browser, write_biting_page(tmp_path)[0], scheme, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_of_a_report_stands_out_by_day_and_by_night(browser, finished, tmp_path, scheme):
    require_contrast(browser, finished.pages["evaluate"], scheme, tmp_path)


def require_paper(browser, file, folder):
    """Printed from a machine set to dark, whose text would be white, a page is white and nothing is
    cut off."""
    paper = {"width": 794 - 113, "height": 1123}  # A4 at 96 pixels an inch without the margins
    with our_page(browser, file, viewport=paper, color_scheme="dark") as page:
        page.emulate_media(media="print")
        ground, ratios = contrasts(page, folder / "print.png")
        pdf = page.pdf(path=folder / "page.pdf", format="A4")
        assert beyond_the_edge(page, "nothing") == []
        require_whole_words(page)
    assert ground == 1
    assert min(ratios.values()) >= 4.5, ratios
    assert pdf.startswith(b"%PDF-")
    assert pdf.count(b"/Type /Page\n") >= 2


def test_a_page_can_be_printed(browser, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    rows = [(name, f"{number}.5 %") for number, name in enumerate(NAMES * 8)]
    section = PageSection(
        "Classes",
        " | ".join(NAMES),
        [Table(("class", "error"), rows)],
        [PageImage(tmp_path / "red.png", NAMES[0])],
    )
    file = tmp_path / "classes.html"
    file.write_text(render_page("A page", "Wrong", [section], "The end"), encoding="utf-8")
    require_paper(browser, file, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("stage", PAGES)
def test_a_page_of_a_run_can_be_printed(browser, finished, tmp_path, stage):
    require_paper(browser, finished.pages[stage], tmp_path)


@pytest.mark.slow
def test_the_full_report_is_whole_and_fits(browser, finished, tmp_path):
    again = alexnet(
        "--workdir", finished.workdir, "--json", "evaluate", "--set", "evaluate.report=full"
    )
    assert [stage["state"] for stage in again["stages"]] == ["ran"]
    for width in WIDTHS:
        with our_page(browser, Path(again["test"]["report"]), **viewport(width)) as page:
            page.screenshot(path=tmp_path / f"full-{width}.png", full_page=True)
            require_layout(page)
    require_paper(browser, Path(again["test"]["report"]), tmp_path)


def wait_until_up(server, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.process.poll() is None:
        asking = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        with contextlib.suppress(OSError), contextlib.closing(asking):
            asking.request("GET", "/health")
            return asking.getresponse().read()
        time.sleep(0.1)
    raise AssertionError(f"MLflow's server does not answer: {server.log.read_text()[-2000:]}")


def is_mlflows_own(server, url, text):
    """What is not ours to mend: its scripts' remarks on themselves, requests given up, and
    accounts, which a server for one has not."""
    scripts, accounts = (
        f"{server.address}/static-files/",
        f"{server.address}/ajax-api/2.0/mlflow/users/current",
    )
    return (
        url.startswith(scripts) or text == "net::ERR_ABORTED" or (url == accounts and "404" in text)
    )


@pytest.mark.slow
def test_mlflow_shows_the_run_and_the_report_in_it(browser, finished, server, tmp_path):
    run_id = finished.result["stages"][-1]["run_id"]
    known = read_known_runs(finished.workdir)
    (ids,) = [ids for ids in known.values() if ids["run_id"] == run_id]
    address = get_run_url(TrackingConfig(), **ids).replace(DEFAULT_UI, server.address)
    wait_until_up(server)
    with watched(browser, **viewport("window")) as (page, asked, wrong):
        page.set_default_timeout(60_000)  # megabytes of script, on a machine that may be busy
        page.goto(address)
        page.get_by_role("heading", name="evaluate").wait_for()
        page.get_by_text("test_top1_error", exact=True).wait_for()
        page.screenshot(path=tmp_path / "run.png")
        page.get_by_role("tab", name="Artifacts").click()
        page.get_by_text("report", exact=True).click()
        page.get_by_text("report.html", exact=True).click()
        expect(page.frame_locator("iframe").locator(".verdict")).to_contain_text(
            "Wrong on", timeout=60_000
        )
        assert page.title() == f"Run {run_id} - MLflow"
        page.screenshot(path=tmp_path / "artifacts.png")
    assert [seen for seen in wrong if not is_mlflows_own(server, *seen)] == []
    local = (server.address, f"blob:{server.address}", "data:")
    assert [url for url in asked if not url.startswith(local)] == []
