"""Sliders over pictures that are all drawn first."""

import io
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Any

import traitlets
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from ..study import eps_label
from .screen import Screen


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
