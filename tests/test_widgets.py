"""Sliders: drawn once, then only looked up; an error in a callback is shown."""

import io
from itertools import product
from unittest.mock import Mock

import ipywidgets
import pytest
from exercise import exercise
from matplotlib.figure import Figure

from nbsupport.interactive.widgets import Browser, eps_choices
from nbsupport.study import eps_label

LETTERS, NUMBERS = {"first": "a", "second": "b", "third": "c"}, {"one": 1, "two": 2}


@pytest.fixture(autouse=True)
def _no_widgets_left():
    yield  # `exercise` moves all sliders there are, so none may stay from one test to the next
    ipywidgets.Widget.close_all()


def picture(**arguments):
    figure = Figure(figsize=(1, 1))
    figure.text(0, 0.5, " ".join(map(str, arguments.values())))
    return figure


@pytest.fixture
def browser():
    return Browser(picture, letter=LETTERS, number=NUMBERS)


def move(browser, *labels):
    for slider, label in zip(browser.sliders, labels, strict=True):
        slider.value = label


def test_every_combination_is_drawn_once_and_shown_at_its_place():
    draw = Mock(side_effect=picture)
    browser = Browser(draw, letter=LETTERS, number=NUMBERS)
    for letter, number in product(LETTERS, NUMBERS):
        move(browser, letter, number)
        figure = picture(letter=LETTERS[letter], number=NUMBERS[number])
        figure.savefig(buffer := io.BytesIO(), format="png", dpi=100)
        assert browser.picture.value == buffer.getvalue()
    assert draw.call_count == 6


def test_there_is_a_slider_for_each_argument(browser):
    assert [slider.description for slider in browser.sliders] == ["letter", "number"]
    assert [slider.options for slider in browser.sliders] == [tuple(LETTERS), tuple(NUMBERS)]
    (slider,) = Browser(picture, eps=eps_choices([0.0, 0.1])).sliders
    assert (slider.description, slider.options) == ("ε", (eps_label(0.0), eps_label(0.1)))


def test_a_slider_without_choices_is_refused():
    with pytest.raises(ValueError, match="slider 'number'"):
        Browser(lambda **_: pytest.fail("drawn"), letter=LETTERS, number={})


def test_an_error_in_a_callback_is_shown_and_the_page_stays_usable(browser):
    browser.frames.pop(("third", "one"))
    move(browser, "third", "one")
    assert "KeyError" in browser.message.value
    move(browser, "second", "two")
    assert browser.message.value == ""
    assert browser.picture.value == browser.frames["second", "two"]


# -- the tests' own harness ----------------------------------------------------------------------


def test_exercise_moves_all_sliders_and_brings_them_back(browser):
    Browser(picture, letter=LETTERS, number={"one": 1})
    move(browser, "second", "two")
    before = browser.picture.value
    assert exercise() == 4
    assert [slider.value for slider in browser.sliders] == ["second", "two"]
    assert browser.picture.value == before


def test_exercise_finds_a_still_picture_a_broken_frame_and_an_error_in_an_output(browser):
    browser.frames["first", "two"] = browser.frames["first", "one"]
    with pytest.raises(RuntimeError, match="does not change"):
        exercise()
    browser.frames.pop(("first", "two"))
    with pytest.raises(RuntimeError, match="KeyError"):
        exercise()
    ipywidgets.Widget.close_all()
    error = {"output_type": "error", "ename": "ValueError", "evalue": "x", "traceback": []}
    ipywidgets.Output(outputs=(error,))
    with pytest.raises(RuntimeError, match="ValueError"):
        exercise()
