"""Sliders: drawn once, then only looked up; and an error in a callback is neither silent nor the end."""

from itertools import product

import ipywidgets
import pytest
from matplotlib.figure import Figure

from nbsupport.interactive.widgets import Browser, eps_choices, exercise, png
from nbsupport.results.tables import short
from nbsupport.study import EPS, eps_label

LETTERS, NUMBERS = {"first": "a", "second": "b", "third": "c"}, {"one": 1, "two": 2}


@pytest.fixture(autouse=True)
def _no_widgets_left():
    """`exercise` moves all sliders there are, so none may stay from one test to the next."""
    yield
    ipywidgets.Widget.close_all()


def picture(**arguments):
    """A picture that differs for different arguments."""
    figure = Figure(figsize=(1, 1))
    figure.text(0, 0.5, " ".join(map(str, arguments.values())))
    return figure


@pytest.fixture
def drawn():
    return []


@pytest.fixture
def browser(drawn):
    def draw(letter, number):
        drawn.append((letter, number))
        return picture(letter=letter, number=number)

    return Browser(draw, letter=LETTERS, number=NUMBERS)


def move(browser, *position):
    for slider, value in zip(browser.sliders, position, strict=True):
        slider.value = value


# -- drawing and looking up ----------------------------------------------------------------------


def test_every_combination_is_drawn_once(browser, drawn):
    assert sorted(drawn) == list(product("abc", [1, 2]))


def test_moving_a_slider_draws_nothing(browser, drawn):
    for position in product(range(3), range(2)):
        move(browser, *position)
    assert len(drawn) == 6


def test_every_position_shows_its_own_picture(browser):
    for position in product(range(3), range(2)):
        move(browser, *position)
        assert browser.picture.value == png(
            picture(letter="abc"[position[0]], number=position[1] + 1)
        )


def test_it_starts_at_the_first_of_everything(browser):
    assert browser.picture.value == png(picture(letter="a", number=1))


def test_there_is_a_slider_for_each_argument(browser):
    assert [slider.description for slider in browser.sliders] == ["letter", "number"]
    assert [[label for label, _ in slider.options] for slider in browser.sliders] == [
        list(LETTERS),
        list(NUMBERS),
    ]


def test_eps_is_written_as_a_letter():
    (slider,) = Browser(picture, eps=eps_choices([0.0, 0.1])).sliders
    assert slider.description == "ε"


def test_the_page_holds_sliders_picture_and_message(browser):
    *shown, style = browser.children
    assert shown == [*browser.sliders, browser.picture, browser.message]
    assert style.value.startswith("<style>")


def test_pictures_are_png(browser):
    assert browser.picture.format == "png"
    assert all(frame.startswith(b"\x89PNG\r\n") for frame in browser.frames.values())


@pytest.mark.parametrize("empty", ["letter", "number"])
def test_a_slider_without_choices_is_refused(empty, drawn):
    with pytest.raises(ValueError, match=f"the slider '{empty}' has nothing to choose from"):
        Browser(drawn.append, **({"letter": LETTERS, "number": NUMBERS} | {empty: {}}))
    assert drawn == []


def test_an_error_while_drawing_is_raised_at_once():
    with pytest.raises(ZeroDivisionError):
        Browser(lambda number: picture(number=1 / number), number={"one": 1, "zero": 0})


def test_choices_of_eps_are_labelled_as_in_the_paper_and_in_grey_levels():
    choices = eps_choices(EPS)
    assert choices == {eps_label(eps): eps for eps in EPS}
    assert next(iter(choices)) == "0 (clean)"
    assert all(
        label.startswith(f"{short(eps)} (") and label.endswith("/255)")
        for label, eps in [*choices.items()][1:]
    )


def test_they_keep_their_order():
    assert list(eps_choices(EPS).values()) == list(EPS)


# -- a callback that fails -----------------------------------------------------------------------


def test_an_error_in_a_callback_is_shown_in_the_page(browser):
    browser.frames.pop((2, 0))
    move(browser, 2, 0)
    assert "KeyError: (2, 0)" in browser.message.value
    assert "role='alert'" in browser.message.value


def test_the_page_stays_usable_afterwards(browser):
    browser.frames.pop((2, 0))
    move(browser, 2, 0)
    move(browser, 1, 1)
    assert browser.message.value == ""
    assert browser.picture.value == browser.frames[1, 1]


# -- exercised by a machine ----------------------------------------------------------------------


def test_a_good_browser_passes(browser):
    assert exercise() == 2


def test_without_any_there_is_nothing_to_do():
    assert exercise() == 0


def test_all_browsers_of_the_session_are_moved(browser):
    broken = Browser(picture, number=NUMBERS)
    broken.frames.clear()
    with pytest.raises(RuntimeError, match=r"slider 'number': .*KeyError"):
        exercise()


def test_sliders_are_where_they_were_afterwards(browser):
    move(browser, 1, 1)
    before = browser.picture.value
    exercise()
    assert [slider.value for slider in browser.sliders] == [1, 1]
    assert browser.picture.value == before


@pytest.mark.parametrize("position", [(2, 0), (0, 1)])
def test_a_broken_frame_is_found(browser, position):
    browser.frames.pop(position)
    with pytest.raises(RuntimeError, match="KeyError"):
        exercise()


def test_a_picture_that_does_not_change_is_found():
    Browser(lambda letter, number: picture(letter=letter), letter=LETTERS, number=NUMBERS)
    with pytest.raises(RuntimeError, match="slider 'number': the picture does not change"):
        exercise()


def test_a_slider_with_one_position_cannot_change_it():
    Browser(picture, letter=LETTERS, number={"one": 1})
    assert exercise() == 2


def test_a_picture_that_does_not_come_back_is_found(browser):
    class Drifting(dict):
        """Another picture at each look."""

        count = 0

        def __getitem__(self, position):
            self.count += 1
            return super().__getitem__(position) + bytes(self.count)

    browser.frames = Drifting(browser.frames)
    with pytest.raises(RuntimeError, match="slider 'letter': the picture does not come back"):
        exercise()


def test_an_error_in_an_output_is_found():
    error = {
        "output_type": "error",
        "ename": "ZeroDivisionError",
        "evalue": "division by zero",
        "traceback": [],
    }
    ipywidgets.Output(outputs=(error,))
    with pytest.raises(
        RuntimeError, match="an error inside of a widget: ZeroDivisionError: division by zero"
    ):
        exercise()


def test_any_other_output_is_none():
    ipywidgets.Output(outputs=({"output_type": "stream", "name": "stdout", "text": "error"},))
    assert exercise() == 0


def test_a_closed_browser_is_left_alone(browser):
    browser.frames.clear()
    browser.close()
    assert exercise() == 0
