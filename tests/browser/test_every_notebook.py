"""Every notebook as a person meets it: opened in JupyterLab, run, and its sliders moved with the keyboard."""

VISIBLE = (
    "((e) => e.getBoundingClientRect().top > 0 && e.getBoundingClientRect().bottom < innerHeight)"
)


def test_it_runs_and_its_sliders_move(notebook):
    assert notebook.reported() == []
    kinds = {output["output_type"] for output in notebook.outputs()}
    assert not kinds & {"error", "not executed"}
    if notebook.name.startswith("00"):  # the reader is back at the explorer
        verdict = notebook.page.locator(".nbs-verdict").first.element_handle()
        notebook.until(f"{VISIBLE}(a)", "the explorer", verdict)
    notebook.show(0)
    notebook.shoot("top")
    for number, source in enumerate(notebook.sources):
        if "widgets.Browser(" in source:
            every_slider(notebook, number)
    assert notebook.reported() == []


def every_slider(notebook, number):
    """From end to end, and back to the first picture; sliders and picture stay where they are."""
    browser = notebook.show(number).locator(".nbs-sliders")
    picture, sliders = browser.locator("img"), browser.get_by_role("slider")
    picture.scroll_into_view_if_needed()
    for place in range(sliders.count()):
        slider, what = sliders.nth(place), f"slider {place} of cell {number}"
        boxes = slider.bounding_box(), picture.bounding_box()
        first = notebook.press("End", slider, picture, what)
        assert (slider.bounding_box(), picture.bounding_box()) == boxes
        assert picture.get_attribute("alt").count(slider.get_attribute("aria-valuetext")) == 1
        notebook.shoot(f"cell{number}-slider{place}")
        notebook.press("Home", slider, picture, what, back_to=first)
