"""What the browser tests share: Chromium, a page that tolerates no trouble, a page for the views.

    def test_something(views_page, shots):
        views_page.evaluate("async () => { const {Run} = await import('/charts/run.js'); … }")
        views_page.screenshot(path=shots / "something.png")

Chromium is $CHROMIUM, or one that is installed, or Playwright's own. Without it these tests are
skipped; with MINILLM_NEED_BROWSER=1, as in `.ci/run`, they fail.
"""

from __future__ import annotations

import mimetypes
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from .server import Server

HERE = Path(__file__).resolve().parent
CHARTS = HERE.parent.parent / "minillm" / "charts"
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
# The sandbox is refused to root, as in a container; the rest keeps Chromium from calling home.
CHROMIUM_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
VIEWPORT = {"width": 1300, "height": 900}
BLANK = """<!doctype html><html lang="en"><meta charset="utf-8"><title>views</title>
<link rel="icon" href="data:,"><link rel="stylesheet" href="/charts/view.css">
<body data-jp-theme-light="true" style="margin: 0"><div id="view" class="minillm"></div></body>
</html>"""


def find_chromium(playwright) -> str | None:
    """The browser's program: $CHROMIUM, or one on the PATH, or Playwright's own; None if none."""
    if named := os.environ.get("CHROMIUM"):
        return shutil.which(named)
    places = [*map(shutil.which, CHROMIUMS), playwright.chromium.executable_path]
    return next((place for place in places if place and Path(place).exists()), None)


def absent(what: str, how: str) -> None:
    """Skip the browser tests, or fail them where a browser is a must."""
    message = f"browser tests need {what}: {how}"
    if os.environ.get("MINILLM_NEED_BROWSER") == "1":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@pytest.fixture(scope="package")
def browser() -> Iterator:
    """Headless Chromium, one for all browser tests.

    It ends with this folder's tests: Playwright keeps an event loop running in the main thread.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        absent("Playwright", "python -m pip install -r requirements.txt")
    with sync_playwright() as playwright:
        program = find_chromium(playwright)
        if program is None:
            absent("Chromium", "sudo apt install chromium, or python -m playwright install "
                   "chromium, or set CHROMIUM to the program of a Chrome or Chromium")  # fmt: skip
        chromium = playwright.chromium.launch(executable_path=program, args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


def is_outside(url: str) -> bool:
    """Whether a request leaves this machine."""
    parts = urlsplit(url)
    near = parts.hostname in {"localhost", "127.0.0.1"}
    return parts.scheme not in {"data", "blob", "file"} and not near


def troubles(context) -> list[str]:
    """A list that fills with what the context's pages must not do, from now on."""
    found: list[str] = []
    context.on("request", lambda request: is_outside(request.url) and found.append(
        f"a request that leaves this machine: {request.url}"))  # fmt: skip
    context.on("weberror", lambda error: found.append(f"uncaught in the page: {error.error}"))
    context.on("console", lambda message: message.type == "error" and found.append(
        f"console error: {message.text} ({message.location.get('url')})"))  # fmt: skip
    return found


@pytest.fixture
def page(browser) -> Iterator:
    """A new page, with a profile of its own. Fails on console errors and on outside requests."""
    context = browser.new_context(viewport=VIEWPORT)
    found = troubles(context)
    yield context.new_page()
    context.close()
    assert not found, "\n".join(found)


@pytest.fixture(scope="package")
def server(browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """JupyterLab, one for all notebooks. It needs the browser first: without one, no server."""
    with Server(tmp_path_factory.mktemp("lab")) as server:
        yield server


@pytest.fixture
def views_page(page):
    """A blank page with `<div id="view" class="minillm">`, view.css, and /charts/NAME.js.

    The files are minillm/charts/ as they lie there, so `await import("/charts/run.js")` gives the
    module. Dark: `document.body.dataset.jpThemeLight = "false"`, as JupyterLab does it.
    """

    def serve(route) -> None:
        path = urlsplit(route.request.url).path
        file = CHARTS / path.removeprefix("/charts/")
        if path == "/":
            route.fulfill(body=BLANK, content_type="text/html")
        elif file.is_file():
            kind = mimetypes.guess_type(file.name)[0] or "text/plain"
            kind = "text/javascript" if file.suffix == ".js" else kind
            route.fulfill(body=file.read_bytes(), content_type=kind)
        else:
            route.fulfill(status=404, body=f"minillm/charts has no {file.name}")

    page.route("http://localhost/**", serve)
    page.goto("http://localhost/")
    return page


@pytest.fixture(scope="session")
def shots() -> Path:
    """The folder for screenshots, which git ignores: look at them after a change."""
    folder = HERE / "shots"
    folder.mkdir(exist_ok=True)
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests last. And Playwright keeps an event loop in the main thread, which may disturb."""
    items.sort(key=lambda item: HERE in item.path.parents)
