"""The picture of the attacker who knows: what each defence keeps, and what it seemed to keep."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from .plots import COLOURS, canvas
from .tables import short


def draw_defences(
    eps: Sequence[float],
    oblivious: Mapping[str, Float[np.ndarray, "strengths"]],
    worst: Mapping[str, Float[np.ndarray, "strengths"]],
    number: int,
) -> Figure:
    """Accuracy over ε under the attacker who does not know the denoiser (dashed) and the one who does (solid).

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
            axis.plot(range(len(eps)), oblivious[name], "--", marker="o", ms=4, color=COLOURS[name], alpha=0.6)
            axis.plot(range(len(eps)), curve, "-", marker="o", ms=4, color=COLOURS[name], label=name)
        axis.errorbar(len(eps) - 0.7, 0.5, 1 / number**0.5, color="#888888", capsize=3)
        axis.set_xticks(range(len(eps)), [short(strength) for strength in eps])
        axis.set(xlabel="attack strength ε (images in [0, 1])", ylabel="accuracy", ylim=(-0.03, 1.03))
        figure.legend(
            title="dashed: does not know it\nsolid: worst of all attacks", loc="outside right upper", fontsize=8
        )
    return figure
