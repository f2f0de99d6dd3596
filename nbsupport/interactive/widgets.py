"""Sliders over pictures that are all drawn first, and what they share with the explorer.

One JavaScript module draws a `Screen`: in JupyterLab, and in pages that have no kernel.
"""

import io
import json
import os
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from importlib.resources import files
from itertools import product
from typing import Any

import anywidget
import traitlets
from IPython.display import display
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from ..study import eps_label

EXPORT = "NBSUPPORT_EXPORT"
"""Set where notebooks become pages: there a screen is shown as `embed` makes it."""
# Beside the widget; JupyterLab says "model not found" where the kernel no longer knows it.
_AGAIN = """<style>
.nbs-again, .jp-OutputArea-child:not(:has(.nbs)):has(+ .jp-OutputArea-child .nbs-again),
.jp-OutputArea:has(.nbs-again) [data-mime-type*="widget-view"]:not(:has(*)) { display: none; }
.jp-OutputArea-child:not(:has(.nbs)) + .jp-OutputArea-child .nbs-again { display: block; }
</style><p class="nbs-again"><b>Run this cell:</b> its kernel has ended, and this picture with it.
</p>"""


class Screen(anywidget.AnyWidget):
    """Its state is all that `screen.js` needs, so that a page can hold it."""

    _esm = files(__package__).joinpath("screen.js").read_text(encoding="utf-8")
    _css = files(__package__).joinpath("screen.css").read_text(encoding="utf-8")

    def page_state(self) -> dict[str, Any]:
        """The state of a page without a kernel; bytes become base64."""
        raise NotImplementedError

    def _ipython_display_(self) -> None:
        if os.environ.get(EXPORT):
            display({"text/html": embed(self)}, raw=True)
        else:
            view, about = self._repr_mimebundle_() or ({}, {})
            display(view, metadata=about, raw=True)
            display({"text/html": _AGAIN, "text/plain": "run this cell"}, raw=True)


def embed(screen: Screen) -> str:
    """HTML that shows a screen in any page, also from a file: no network, no kernel.

    Waits for what is still being computed.
    """
    text = json.dumps(
        screen.page_state(), separators=(",", ":"), default=lambda data: b64encode(data).decode()
    )
    name, state = f"nbs-{uuid.uuid4().hex}", text.replace("<", "\\u003c")
    return (
        f'<div id="{name}"></div>\n<style>{screen._css}</style>\n'
        f'<script type="application/json" id="{name}-state">{state}</script>\n'
        f'<script type="module">{screen._esm}\nopenPage("{name}");</script>\n'
    )


# -- sliders -------------------------------------------------------------------------------------


def eps_choices(eps: Iterable[float]) -> dict[str, float]:
    """Return strengths under their labels for a slider, such as 0.1 (25.5/255)."""
    return {eps_label(strength): strength for strength in eps}


class Browser(Screen):
    """One picture, and a slider for each argument of `draw`; every combination is drawn at first.

    `choices` maps each argument's labels to its values. Raises `ValueError` if a slider has none.
    """

    sliders: Any = traitlets.List().tag(sync=True)  # each one's name and labels
    places: Any = traitlets.List().tag(sync=True)  # where each stands
    frames: Any = traitlets.List().tag(sync=True)  # PNG, the last slider moving first
    texts: Any = traitlets.List().tag(sync=True)  # the titles in each

    def __init__(self, draw: Callable[..., Figure], **choices: Mapping[str, Any]) -> None:
        if empty := [name for name, values in choices.items() if not values]:
            raise ValueError(f"Browser: expected choices for the slider {empty[0]!r}, got none")
        frames, texts = [], []
        combinations = [*product(*(values.values() for values in choices.values()))]
        for chosen in tqdm(combinations, "drawing", unit="frame", leave=False):
            figure = draw(**dict(zip(choices, chosen, strict=True)))
            figure.savefig(buffer := io.BytesIO(), format="png", dpi=100)
            frames.append(buffer.getvalue())
            titles = (figure.get_suptitle(), *(axes.get_title() for axes in figure.axes))
            texts.append("; ".join(" ".join(title.split()) for title in titles if title))
        names = ("ε" if name == "eps" else name for name in choices)
        sliders = [
            [name, [*map(str, each)]] for name, each in zip(names, choices.values(), strict=True)
        ]
        super().__init__(sliders=sliders, places=[0] * len(sliders), frames=frames, texts=texts)

    def page_state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("sliders", "places", "frames", "texts")}
