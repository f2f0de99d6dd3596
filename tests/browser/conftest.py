"""One JupyterLab and one Chromium for all tests; a notebook is opened and run once for all tests of it."""

import os
import shutil

import pytest
from lab import NOTEBOOKS, SCREENSHOTS, Lab, Opened
from playwright.sync_api import sync_playwright

CHROMIUM = os.environ.get("CHROMIUM", "chromium")


def pytest_configure() -> None:
    if not shutil.which(CHROMIUM):
        raise pytest.UsageError(
            f"expected a browser, found no {CHROMIUM!r}; install Chromium, or set CHROMIUM to its path"
        )


def pytest_report_header() -> str:
    return f"Chromium: {shutil.which(CHROMIUM)}; screenshots: {SCREENSHOTS}"


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    server = Lab(tmp_path_factory.mktemp("lab"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def browser():
    shutil.rmtree(SCREENSHOTS, ignore_errors=True)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which(CHROMIUM))
        yield chromium.new_context(viewport={"width": 1280, "height": 800})
        chromium.close()


@pytest.fixture(scope="session", params=NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def notebook(request, lab, browser):
    opened = Opened(lab, browser.new_page(), request.param)
    try:
        opened.run()
        yield opened
    finally:
        opened.close()
