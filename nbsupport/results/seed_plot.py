"""The picture of what another seed changes."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .plots import canvas, eps_axis
from .seeds import MEAN
from .style import COLOURS, MARKERS


def draw_differences(rows: pd.DataFrame) -> Figure:
    """Differences of accuracy over ε, a panel per comparison: the mean, its 95 % band, and each training's as a line.

    Parameters
    ----------
    rows
        From `nbsupport.results.seeds.compare`.
    """
    single = rows[rows["eps"] != MEAN]
    pairs = list(dict.fromkeys(zip(single["method"], single["other"], strict=True)))
    with canvas(1, len(pairs), (2.4 * len(pairs) + 0.4, 3.0), sharey=True) as (figure, axes):
        for axis, (method, other) in zip(axes[0], pairs, strict=True):
            part = single[(single["method"] == method) & (single["other"] == other)]
            eps, colour = part["eps"].to_numpy(float), COLOURS[method]
            axis.fill_between(
                eps,
                part["low"].to_numpy(float),
                part["high"].to_numpy(float),
                color=colour,
                alpha=0.2,
            )
            axis.plot(
                eps,
                np.array([text.split() for text in part["per_seed"]], dtype=float),
                color=colour,
                lw=0.6,
            )
            axis.plot(
                eps, part["value"].to_numpy(float), color=colour, marker=MARKERS[method], lw=1.8
            )
            axis.axhline(0, color="#444444", lw=0.8)
            axis.set_title(f"{method}\nminus {other}")
            eps_axis(axis)
            axis.set_xlabel("ε")
            axis.tick_params(axis="x", labelsize=7)
        axes[0, 0].set_ylabel("difference of accuracy")
        seeds, number = ", ".join(single["seeds"].iloc[0].split()), single["n"].iloc[0]
        figure.suptitle(
            f"denoisers from the seeds {seeds}; 95 % intervals over trainings and {number} test images"
        )
    return figure
