"""Sliders over pictures that are all drawn first."""

import io
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Any

import ipywidgets
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from ..study import eps_label

# A readout as wide as its text would change the track's length, and the handle would jump.
READOUT = "flex: 0 0 10em; margin-left: 14px; text-align: left;"
STYLE = f"<style>.nbs-sliders .widget-readout {{ {READOUT} }}</style>"


def eps_choices(eps: Iterable[float]) -> dict[str, float]:
    """Return strengths under their labels for a slider, such as 0.1 (25.5/255)."""
    return {eps_label(strength): strength for strength in eps}


class Browser(ipywidgets.VBox):
    """One picture, and a slider for each argument of `draw`; every combination is drawn at first.

    `choices` maps each argument's labels to its values. Raises `ValueError` if a slider has none.
    """

    def __init__(self, draw: Callable[..., Figure], **choices: Mapping[str, Any]) -> None:
        if empty := [name for name, values in choices.items() if not values]:
            raise ValueError(f"Browser: expected choices for the slider {empty[0]!r}, got none")
        self.frames: dict[tuple[str, ...], bytes] = {}
        for labels in tqdm([*product(*choices.values())], "drawing", unit="frame", leave=False):
            chosen = zip(choices.items(), labels, strict=True)
            figure = draw(**{name: values[label] for (name, values), label in chosen})
            figure.savefig(buffer := io.BytesIO(), format="png", dpi=100)
            self.frames[labels] = buffer.getvalue()
        self.sliders = []
        for name, values in choices.items():
            look = {"description": "ε" if name == "eps" else name, "layout": {"width": "480px"}}
            self.sliders.append(ipywidgets.SelectionSlider(options=list(values), **look))
            self.sliders[-1].observe(self._show, "value")
        # stretching would blur it
        self.picture = ipywidgets.Image(layout={"align_self": "flex-start"})
        self.message = ipywidgets.HTML()
        super().__init__([*self.sliders, self.picture, self.message, ipywidgets.HTML(STYLE)])
        self.add_class("nbs-sliders")
        self._show()

    def _show(self, change: Any = None) -> None:
        # JupyterLab does not show an exception of a callback, so the page does.
        try:
            self.picture.value = self.frames[tuple(slider.value for slider in self.sliders)]
            self.message.value = ""
        except Exception as error:
            self.message.value = f"<b role='alert'>{type(error).__name__}: {error}</b>"
