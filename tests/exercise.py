"""Look at all that every slider and explorer of a session shows; the notebooks' tests run it in the kernel."""

import math

import ipywidgets
import torch

from nbsupport.interactive.explorer import ATTACKED, Explorer
from nbsupport.interactive.widgets import Browser


def exercise() -> int:
    """Return the number of sliders and explorers.

    Raises `RuntimeError` if one lacks a picture or always shows the same, or a widget hides an error.
    """
    widgets = list(ipywidgets.widgets.widget._instances.values())
    browsers = [widget for widget in widgets if isinstance(widget, Browser)]
    explorers = [widget for widget in widgets if isinstance(widget, Explorer)]
    for browser in browsers:
        _leaf(browser)
    for widget in widgets:
        for output in widget.outputs if isinstance(widget, ipywidgets.Output) else ():
            if output["output_type"] == "error":
                raise RuntimeError(f"error in a widget: {output['ename']}: {output['evalue']}")
    for explorer in explorers:
        _walk(explorer)
    return sum(len(browser.sliders) for browser in browsers) + len(explorers)


def _leaf(browser: Browser) -> None:
    numbers = [len(labels) for _, labels in browser.sliders]
    if len(browser.frames) != math.prod(numbers):
        raise RuntimeError(f"sliders: {len(browser.frames)} pictures for {numbers} places")
    for place, (name, labels) in enumerate(browser.sliders):
        step = math.prod(numbers[place + 1 :])
        seen = {browser.frames[number * step] for number in range(len(labels))}
        if len(seen) < 2 and len(labels) > 1:
            raise RuntimeError(f"slider {name!r}: the picture does not change")


def _walk(explorer: Explorer) -> None:
    state, exploration = explorer.page_state(), explorer.exploration
    if error := state["progress"]["error"]:
        raise RuntimeError(f"explorer: {error}")
    wanted = {
        (image, name)
        for image in range(len(exploration.images))
        for name in state["fixed"]["methods"]
    }
    if missing := wanted - set(explorer.pieces):
        raise RuntimeError(f"explorer: {len(missing)} pieces are missing")
    for image in range(len(exploration.images)):
        ends = (exploration.frames[image, at, ATTACKED] for at in (0, len(exploration.eps) - 1))
        first, last = (frame.pictures["denoised"] for frame in ends)
        if torch.equal(first, last):
            raise RuntimeError(f"explorer: image {image} is not attacked")
