"""One JupyterLab and one Chromium for all tests; a notebook is opened and run once for all tests of it."""

import os
import shutil
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from homes import small
from lab import NOTEBOOKS, SCREENSHOTS, Lab, Opened
from playwright.sync_api import sync_playwright

CHROMIUM = os.environ.get("CHROMIUM", "chromium")


def pytest_configure(config) -> None:
    if not shutil.which(CHROMIUM):
        raise pytest.UsageError(f"no browser {CHROMIUM!r}: install Chromium, or set CHROMIUM to it")


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    with closing(Lab(tmp_path_factory.mktemp("lab"))) as server:
        yield server


@pytest.fixture(scope="session")
def browser():
    shutil.rmtree(SCREENSHOTS, ignore_errors=True)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which(CHROMIUM))
        yield chromium.new_context(viewport={"width": 1280, "height": 800})
        chromium.close()


@pytest.fixture
def open_offline(browser):
    """Opens a file without a network; whatever it asks for beside files, and reports, is an error."""
    errors, local = [], ("file:", "data:", "blob:")
    with ExitStack() as contexts:

        def open_file(path, **options):
            context = contexts.enter_context(
                closing(browser.browser.new_context(offline=True, **options))
            )
            page = context.new_page()
            page.add_init_script(path=Path(__file__).with_name("probes.js"))
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on(
                "console", lambda message: message.type == "error" and errors.append(message.text)
            )
            page.on(
                "request", lambda asked: asked.url.startswith(local) or errors.append(asked.url)
            )
            page.goto(path.as_uri())
            return page

        yield open_file
    assert errors == []


@pytest.fixture(scope="session", params=NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def notebook(request, lab, browser):
    with closing(Opened(lab, browser.new_page(), request.param)) as opened:
        opened.run()
        yield opened


@pytest.fixture(scope="session")
def explorer():
    """The small explorer in this process: what every home must show."""
    explorer = small()
    explorer.page_state()
    return explorer
