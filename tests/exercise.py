"""Move every slider and explorer of a session; the notebooks' tests run it in the kernel."""

import ipywidgets

from nbsupport.interactive.explorer import Explorer
from nbsupport.interactive.widgets import Browser


def exercise() -> int:
    """Move every slider and every explorer's choice to its ends and back; return their number.

    Raises `RuntimeError` if a callback failed, or a picture does not change or come back.
    """
    widgets = list(ipywidgets.widgets.widget._instances.values())
    browsers = [widget for widget in widgets if isinstance(widget, Browser)]
    explorers = [widget for widget in widgets if isinstance(widget, Explorer)]
    for browser in browsers:
        for slider in browser.sliders:
            _move(browser, slider)
    for widget in widgets:
        for output in widget.outputs if isinstance(widget, ipywidgets.Output) else ():
            if output["output_type"] == "error":
                raise RuntimeError(f"error in a widget: {output['ename']}: {output['evalue']}")
    for explorer in explorers:
        _walk(explorer)
    return sum(len(browser.sliders) for browser in browsers) + len(explorers)


def _move(browser: Browser, slider: ipywidgets.SelectionSlider) -> None:
    start, first, what = slider.index, browser.picture.value, f"slider {slider.description!r}"
    seen = set()
    for place in (len(slider.options) - 1, 0, start):
        slider.index = place
        seen.add(browser.picture.value)
        if browser.message.value:
            raise RuntimeError(f"{what}: {browser.message.value}")
    if browser.picture.value != first:
        raise RuntimeError(f"{what}: the picture does not come back")
    if len(seen) < 2 and len(slider.options) > 1:
        raise RuntimeError(f"{what}: the picture does not change")


def _walk(explorer: Explorer) -> None:
    first, methods = explorer.shown, list(explorer.fixed["colours"])
    ends = {"image": len(explorer.fixed["labels"]) - 1, "strength": 0, "method": methods[0]}
    ends["row"] = 0
    start = {name: getattr(explorer, name) for name in ends}
    for name, end in ends.items():
        setattr(explorer, name, end)
        if explorer.message:
            raise RuntimeError(f"explorer: {explorer.message}")
    if explorer.shown == first:
        raise RuntimeError("explorer: the screen does not change")
    for name, value in start.items():
        setattr(explorer, name, value)
    if explorer.shown != first:
        raise RuntimeError("explorer: the screen does not come back")
