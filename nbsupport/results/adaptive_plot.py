"""The picture of the attacker who knows: what each defence keeps, and what it seemed to keep."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from .plots import canvas, eps_axis
from .style import COLOURS, MARKERS


def draw_defences(
    eps: Sequence[float],
    oblivious: Mapping[str, Float[np.ndarray, "strengths"]],
    worst: Mapping[str, Float[np.ndarray, "strengths"]],
    number: int,
) -> Figure:
    """Accuracy over ε under the attacker who does not know the denoiser (dashed, hollow) and the one who does.

    Parameters
    ----------
    eps
        The strengths, from 0.
    oblivious, worst
        For each defence its two curves.
    number
        Of images; the bar at the side is two standard errors at an accuracy of one half.
    """
    with canvas(1, 1, (7.2, 4.2)) as (figure, axes):
        axis = axes[0, 0]
        for name, curve in worst.items():
            look = {"color": COLOURS[name], "marker": MARKERS[name]}
            axis.plot(eps, oblivious[name], "--", markerfacecolor="white", **look)
            axis.plot(eps, curve, "-", label=name, **look)
        eps_axis(axis, eps)
        axis.errorbar(1.7 * eps[-1], 0.5, 1 / number**0.5, color="#6b6b6b", capsize=3)
        axis.set_xlim(right=2 * eps[-1])
        axis.set(ylabel="accuracy", ylim=(-0.03, 1.03))
        title = (
            "dashed: does not know it\nsolid: worst of all attacks\ngrey bar: two standard errors"
        )
        figure.legend(title=title, loc="outside right upper")
    return figure
