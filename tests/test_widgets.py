"""Sliders: every combination is drawn once and stands at its place, in JupyterLab and in a page."""

import base64
import io
import json
from itertools import product
from unittest.mock import Mock

import numpy as np
import pytest
from bs4 import BeautifulSoup
from matplotlib.figure import Figure
from PIL import Image

from nbsupport.interactive.widgets import EXPORT, Browser, embed

LETTERS, NUMBERS = {"first": "a", "second": "b", "third": "c"}, {"one": 1, "two": 2}


def picture(**arguments):
    figure = Figure(figsize=(1, 1))
    figure.add_axes((0, 0, 1, 0.5), title=" ".join(map(str, arguments.values())))
    return figure


@pytest.fixture
def browser():
    return Browser(picture, letter=LETTERS, number=NUMBERS)


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def test_every_combination_is_drawn_once_and_stands_at_its_place():
    draw = Mock(side_effect=picture)
    browser = Browser(draw, letter=LETTERS, number=NUMBERS)
    assert browser.sliders == [["letter", [*LETTERS]], ["number", [*NUMBERS]]]
    for place, (letter, number) in enumerate(product(LETTERS.values(), NUMBERS.values())):
        picture(letter=letter, number=number).savefig(buffer := io.BytesIO(), format="png")
        assert np.array_equal(pixels(browser.frames[place]), pixels(buffer.getvalue()))
        assert browser.texts[place] == f"{letter} {number}"
    assert draw.call_count == len(browser.frames) == 6


def test_a_slider_without_choices_is_refused():
    with pytest.raises(ValueError, match="slider 'number'"):
        Browser(lambda **_: pytest.fail("drawn"), letter=LETTERS, number={})


def test_a_page_holds_all_that_it_shows_whatever_the_labels_are():
    labels = {"</script><b>": 1, "<!--<script>": 2}
    browser = Browser(picture, number=labels)
    page = BeautifulSoup(embed(browser), "html.parser")
    (script,) = page.find_all("script", type="application/json")
    state = json.loads(script.string)
    assert state["sliders"] == [["number", [*labels]]]
    assert [base64.b64decode(frame) for frame in state["frames"]] == browser.frames
    assert not page.find(src=True) and not page.find(href=True)


@pytest.mark.parametrize("export", [True, False])
def test_what_is_displayed_where(browser, export, monkeypatch):
    shown = []
    monkeypatch.setattr(
        "nbsupport.interactive.widgets.display", lambda data, **_: shown.append(data)
    )
    if export:
        monkeypatch.setenv(EXPORT, "1")
    browser._ipython_display_()
    page = "text/html" in shown[0] and "openPage" in shown[0]["text/html"]
    assert page == export
    if not export:
        view = "application/vnd.jupyter.widget-view+json"
        assert shown[0][view]["model_id"] == browser.model_id
        assert "Run this cell" in shown[1]["text/html"]
