"""The page in a browser."""

import contextlib
import shutil

import pytest

from tests.serve.client import BASE64, IMAGE, JPEG, PNG, ask, encoded, refused, running, until

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


with_browser = pytest.mark.skipif(
    CHROMIUM is None,
    reason="the page was not tested in a browser: install Debian's package `chromium`",
)


BITING = "<img src=x onerror=document.title='bad'>.png"


@contextlib.contextmanager
def opened(port, **look):
    """Open the page in a browser; nothing may go wrong in it, and it may ask nobody but the
    service."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )  # no sandbox: CI is root in a container
        page = browser.new_page(**look)
        asked, wrong = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "console",
            lambda line: wrong.append(line.text) if line.type in ("error", "warning") else None,
        )
        page.goto(f"http://127.0.0.1:{port}/")
        yield page, wrong
        assert [
            url
            for url in asked
            if not url.startswith((f"http://127.0.0.1:{port}/", "blob:", "data:"))
        ] == []
        browser.close()


def photo():
    """Return a photograph as a JPEG file."""
    from sklearn.datasets import load_sample_image

    return encoded(load_sample_image("flower.jpg"), "JPEG")


@with_browser
@pytest.mark.parametrize(
    ("scheme", "width"), [("light", 1000), pytest.param("dark", 390, marks=pytest.mark.slow)]
)
def test_the_page_shows_what_an_image_is_taken_for(served, tmp_path, scheme, width):
    file = photo()
    _, told, _ = ask(served.port, "POST", "/predict", file, JPEG)
    expected = [
        (guess["class"], f"{100 * guess['probability']:.1f} %")
        for guess in told["predictions"][0]["top"]
    ]
    with opened(served.port, color_scheme=scheme, viewport={"width": width, "height": 900}) as (
        page,
        wrong,
    ):
        page.set_input_files("#file", {"name": BITING, "mimeType": JPEG, "buffer": file})
        page.locator("li").nth(4).wait_for()
        rows = page.locator(".line").evaluate_all(
            "lines => lines.map(line => [...line.children].map(part => part.textContent))"
        )
        assert [tuple(row) for row in rows] == [
            (name, share.replace("0.0 %", "< 0.1 %")) for name, share in expected
        ]
        assert page.locator("h2").text_content() == BITING
        assert page.title() == "tiny 1"
        assert "tiny 1" in page.locator("#model").text_content()
        assert page.evaluate("document.querySelector('article img').naturalWidth") == 640
        widths = page.locator(".bar i").evaluate_all(
            "bars => bars.map(bar => bar.getBoundingClientRect().width)"
        )
        assert widths == sorted(widths, reverse=True)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(
            "document.querySelector('li').getBoundingClientRect().width > innerWidth / 2"
        )
        page.screenshot(path=tmp_path / f"{scheme}.png", full_page=True)
        assert wrong == []


@pytest.mark.slow
@with_browser
def test_the_page_says_what_is_wrong(releases, tmp_path):
    with (
        running(lambda: releases[0].release, max_megabytes=0.2) as service,
        opened(service.port) as (page, _),
    ):
        page.locator("#model:not(:empty)", has_text="tiny 1").wait_for()
        page.set_input_files("#file", {"name": "notes.png", "mimeType": PNG, "buffer": b"hello"})
        page.locator(".wrong", has_text="text, not an image").wait_for()
        assert page.locator("img").count() == 0
        assert page.evaluate("document.querySelector('.wrong').getBoundingClientRect().width") > 400
        page.set_input_files(
            "#file", {"name": "large.png", "mimeType": PNG, "buffer": b"x" * 300_000}
        )
        page.locator(".wrong", has_text="0.3 MB, at most 0.2 MB allowed").wait_for()
        page.evaluate(
            """base64 => {
                  const data = new DataTransfer();
                  const bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
                  data.items.add(new File([bytes], "pasted.png", { type: "image/png" }));
                  document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
                }""",
            BASE64,
        )
        page.locator("article", has_text="pasted.png").locator("li").nth(4).wait_for()
        service.service.stop()
        until(lambda: refused(service.port))
        page.set_input_files("#file", {"name": "late.png", "mimeType": PNG, "buffer": IMAGE})
        page.locator(".wrong", has_text="The service does not respond").wait_for()
        page.screenshot(path=tmp_path / "wrong.png", full_page=True)
