"""Every notebook as a person meets it: opened in JupyterLab, run, and its sliders moved with the keyboard."""


def test_it_runs_and_its_sliders_move(notebook):
    assert notebook.reported() == []
    kinds = {output["output_type"] for output in notebook.outputs()}
    assert not kinds & {"error", "not executed"}
    notebook.show(0)
    notebook.shoot("top")
    for number, source in enumerate(notebook.sources):
        if "widgets.Browser(" in source:
            every_slider(notebook, number)
    assert notebook.reported() == []


def every_slider(notebook, number):
    """From end to end, and back to the first picture; the track and the picture stay where they are."""
    cell = notebook.show(number)
    browser, picture = cell.locator(".nbs-sliders"), cell.locator("img.widget-image")
    picture.scroll_into_view_if_needed()
    rendered = "a.querySelectorAll('.widget-hslider').length === a.children.length - 3"  # picture, message, style
    notebook.until(rendered, f"all sliders of cell {number}", browser.element_handle())
    for place in range(browser.get_by_role("slider").count()):
        slider, what = browser.get_by_role("slider").nth(place), f"slider {place} of cell {number}"
        track = browser.locator(".noUi-target").nth(place)
        boxes = track.bounding_box(), picture.bounding_box()
        first = notebook.press("End", slider, picture, what)
        assert (track.bounding_box(), picture.bounding_box()) == boxes
        notebook.shoot(f"cell{number}-slider{place}")
        notebook.press("Home", slider, picture, what, back_to=first)
    assert browser.get_by_role("alert").count() == 0
