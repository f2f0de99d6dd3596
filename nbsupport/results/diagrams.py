"""Fig. 1, the paper's three architectures, drawn with what really flows through them."""

from typing import Any

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from torch import Tensor

from ..denoisers.models import Additive, Filtering, PAFilter
from .plots import canvas, show_image

ARROW: Any = {"arrowstyle": "-|>", "color": "#555555", "lw": 1.1, "shrinkA": 0, "shrinkB": 0}


def kernel_mosaic(
    kernels: Float[Tensor, "taps h w"], pixels: int = 4
) -> Float[Tensor, "height width"]:
    """The green kernels of `pixels` × `pixels` evenly spaced pixels, side by side."""
    size = round((kernels.shape[0] / 3) ** 0.5)
    rows, columns = (torch.linspace(0, side - 1, pixels).long() for side in kernels.shape[-2:])
    taps = kernels.view(3, size, size, *kernels.shape[-2:])[1][:, :, rows][..., columns]
    framed = torch.nn.functional.pad(taps.permute(2, 3, 0, 1), (0, 1, 0, 1), value=float("nan"))
    return framed.permute(0, 2, 1, 3).reshape(pixels * (size + 1), -1)[:-1, :-1]


def _box(axes: Axes, text: str) -> None:
    axes.axis("off")
    axes.text(
        0.5, 0.5, text, ha="center", va="center", fontsize=10, transform=axes.transAxes,
        bbox={"boxstyle": "round,pad=0.5", "fc": "#e8eef7", "ec": "#5577aa"},
    )  # fmt: skip


def _arrow(figure: Figure, start: Axes, end: Axes, label: str = "") -> None:
    # a box is narrower than its axes, an image fills them
    near, far = (1.02 if start.images else 0.68), (-0.02 if end.images else 0.32)
    ends: Any = {
        "xyA": (near, 0.5),
        "xyB": (far, 0.5),
        "coordsA": "axes fraction",
        "coordsB": "axes fraction",
    }
    figure.add_artist(ConnectionPatch(axesA=start, axesB=end, **ends, **ARROW))
    if label:
        place: Any = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "center"}
        end.annotate(label, (0, 0.5), (-15, 6), fontsize=11, **place)


@torch.no_grad()
def draw_architectures(
    image: Float[Tensor, "3 h w"], additive: Additive, filtering: Filtering, pa_filter: PAFilter
) -> Figure:
    """Fig. 1: (a) additive, (b) filtering, (c) predictive perturbation-aware filtering of one attacked image.

    Parameters
    ----------
    image
        The attacked image Î.
    additive, filtering, pa_filter
        Trained denoisers.
    """
    batch = image[None]
    residual = (additive(batch) - batch)[0].mean(dim=0)
    kernels, parts = filtering.kernels(batch)[0], pa_filter.parts(batch)
    limit = max(float(residual.abs().max()), 1e-6)
    signed = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    taps = {"cmap": "RdBu_r", "vmin": -1.2, "vmax": 1.2}
    with canvas(4, 7, (11, 6.4)) as (figure, axes):
        layout: Any = figure.get_layout_engine()
        layout.set(wspace=0.08)  # room for the arrows
        for axis in axes.flat:
            axis.axis("off")

        def put(row: int, column: int, picture: Tensor, title: str, **options: Any) -> Axes:
            axes[row, column].axis("on")
            show_image(axes[row, column], picture, title, **options)
            return axes[row, column]

        for row, name, title, middle, options, output in (
            (0, "φ", f"φ(Î), up to ±{limit:.1g}", residual, signed, additive(batch)[0]),
            (1, "φ", "φ(Î): kernels", kernel_mosaic(kernels), taps, filtering(batch)[0]),
        ):
            start = put(row, 0, image, f"({'ab'[row]}) attacked Î")
            _box(axes[row, 1], name)
            predicted, end = (
                put(row, 2, middle, title, **options),
                put(row, 3, output, "denoised Ĩ"),
            )
            _arrow(figure, start, axes[row, 1])
            _arrow(figure, axes[row, 1], predicted)
            _arrow(figure, predicted, end, "+ Î" if row == 0 else "⊗ Î")

        start = put(2, 0, image, "(c) attacked Î")
        weight = put(2, 5, parts.weight[0, 0], "W", cmap="cividis", vmin=0, vmax=1)
        fused = put(2, 6, pa_filter(batch)[0], "denoised Ĩ")
        limits = (float(min(u.min() for u in parts[4:6])), float(max(u.max() for u in parts[4:6])))
        for row, name in ((2, "sl"), (3, "m")):
            own = getattr(parts, f"kernels_{name}")[0], getattr(parts, f"uncertainty_{name}")[0, 0]
            _box(axes[row, 1], f"φ_{name}")
            predicted = put(row, 2, kernel_mosaic(own[0]), f"φ_{name}(Î)", **taps)
            filtered = put(row, 3, getattr(parts, name)[0], f"Ĩ_{name}")
            uncertainty = put(
                row, 4, own[1], f"U_{name}", cmap="viridis", vmin=limits[0], vmax=limits[1]
            )
            _arrow(figure, start, axes[row, 1])
            _arrow(figure, axes[row, 1], predicted)
            _arrow(figure, predicted, filtered, "⊗ Î")
            _arrow(figure, uncertainty, weight, "C" if row == 2 else "")
        _arrow(figure, weight, fused)
        axes[3, 6].text(
            0.5, 0.9, "Ĩ = W ⊙ Ĩ_sl\n+ (1 − W) ⊙ Ĩ_m", ha="center", va="top", fontsize=9
        )
    return figure
