"""Sliders: all pictures are drawn first; moving a slider only looks one up and shows it."""

import io
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Any

import ipywidgets
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from ..results.style import sheet
from ..study import eps_label
from .explorer import Explorer, explore

__all__ = ["Browser", "eps_choices", "exercise", "explore", "png"]

DPI = 100  # of figures in a notebook, so that a picture is as large and as sharp as one without sliders
# A readout as wide as its text would make the slider's track shorter, and the handle jump, as it moves.
STYLE = "<style>.nbs-sliders .widget-readout { flex: 0 0 10em; margin-left: 14px; text-align: left; }</style>"


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    with sheet():
        figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def eps_choices(eps: Iterable[float]) -> dict[str, float]:
    """Strengths under the labels of a slider: as in the paper and as k/255."""
    return {eps_label(strength): strength for strength in eps}


class Browser(ipywidgets.VBox):
    """One picture and a slider for each thing that it depends on.

    Parameters
    ----------
    draw
        From one keyword argument per slider to a Figure. It is called for every combination now,
        with a progress bar, and never again.
    choices
        For each argument its values under the labels that the slider shows.
    """

    def __init__(self, draw: Callable[..., Figure], **choices: Mapping[str, Any]) -> None:
        for name, values in choices.items():
            if not values:
                raise ValueError(f"Browser: the slider {name!r} has nothing to choose from")
        positions = list(product(*(range(len(values)) for values in choices.values())))
        columns = [list(values.values()) for values in choices.values()]

        def frame(position: tuple[int, ...]) -> bytes:
            arguments = {
                name: column[i] for name, column, i in zip(choices, columns, position, strict=True)
            }
            return png(draw(**arguments))

        bar = tqdm(positions, desc="drawing", unit="frame", leave=False)
        self.frames = {position: frame(position) for position in bar}
        self.sliders = [
            ipywidgets.SelectionSlider(
                options=[(label, number) for number, label in enumerate(mapping)],
                value=0,
                description="ε" if name == "eps" else name,
                continuous_update=True,
                layout=ipywidgets.Layout(width="480px"),
            )
            for name, mapping in choices.items()
        ]
        natural = ipywidgets.Layout(
            align_self="flex-start"
        )  # not stretched to the page, which would blur it
        self.picture = ipywidgets.Image(
            format="png", value=self.frames[positions[0]], layout=natural
        )
        self.message = ipywidgets.HTML()
        for slider in self.sliders:
            slider.observe(self._show, "value")
        super().__init__([*self.sliders, self.picture, self.message, ipywidgets.HTML(STYLE)])
        self.add_class("nbs-sliders")

    def _show(self, change: Any) -> None:
        # An exception in a callback is visible nowhere in JupyterLab, so it is shown where the person looks.
        try:
            self.picture.value = self.frames[tuple(slider.value for slider in self.sliders)]
            self.message.value = ""
        except Exception as error:
            self.message.value = f"<b role='alert'>{type(error).__name__}: {error}</b>"


def exercise() -> int:
    """Move every slider of this session to its ends and back, and every explorer's choices.

    Returns
    -------
    How many sliders there are; an explorer counts as one.

    Raises
    ------
    RuntimeError
        If a callback failed, or a picture does not change with its slider or does not come back.
    """
    browsers = [widget for widget in _all_widgets() if isinstance(widget, Browser)]
    for browser in browsers:
        for slider in browser.sliders:
            start, first = slider.value, browser.picture.value
            seen = set()
            for position in (len(slider.options) - 1, 0, start):
                slider.value = position
                seen.add(browser.picture.value)
                if browser.message.value:
                    raise RuntimeError(f"slider {slider.description!r}: {browser.message.value}")
            if browser.picture.value != first:
                raise RuntimeError(f"slider {slider.description!r}: the picture does not come back")
            if len(seen) < 2 and len(slider.options) > 1:
                raise RuntimeError(f"slider {slider.description!r}: the picture does not change")
    for widget in _all_widgets():
        if isinstance(widget, ipywidgets.Output):
            for output in widget.outputs:
                if output["output_type"] == "error":
                    raise RuntimeError(
                        f"an error inside of a widget: {output['ename']}: {output['evalue']}"
                    )
    explorers = [widget for widget in _all_widgets() if isinstance(widget, Explorer)]
    for explorer in explorers:
        _walk(explorer)
    return sum(len(browser.sliders) for browser in browsers) + len(explorers)


def _walk(explorer: Explorer) -> None:
    fixed, first = explorer.fixed, explorer.shown
    start = {name: getattr(explorer, name) for name in ("image", "strength", "method", "row")}
    ends = {
        "image": len(fixed["names"]) - 1,
        "strength": 0,
        "method": fixed["methods"][0],
        "row": 0,
    }
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


def _all_widgets() -> list[ipywidgets.Widget]:
    return list(ipywidgets.widgets.widget._instances.values())
