"""Draw figures from arrays and tidy rows; `nbsupport.results.paper_figures` takes them from a study."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..experiments.methods import COLOURS, DASHES, MARKERS, METRICS
from ..study import EPS, short

Image = Float[Tensor, "3 h w"]
Map = Float[Tensor, "h w"]
Curve = Float[np.ndarray, "strengths"]
PerImage = Float[np.ndarray, "strengths n"]
Panel = tuple[Image | Map, str, dict[str, Any]]
"""A picture, its title, and options of `show_image`."""

SIGNED: Any = {"cmap": "RdBu_r", "vmin": -1.2, "vmax": 1.2}  # of kernels' weights
SHARES: Any = {"cmap": "cividis", "vmin": 0, "vmax": 1}  # of W


def sheet() -> AbstractContextManager[None]:
    """Draw and save in the project's style within it, whatever the user's settings are."""
    return plt.style.context("nbsupport.results.style", after_reset=True)


@contextmanager
def canvas(
    rows: int, columns: int, size: tuple[float, float], **options: Any
) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure with a grid of axes in the project's style, closed at the end: nothing shows it twice."""
    with sheet():
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **options)
        try:
            yield figure, axes
        finally:
            plt.close(figure)


def show_image(axes: Axes, image: Image | Map, title: str = "", /, **options: Any) -> Any:
    """Show one image or map without ticks; `options` are those of `Axes.imshow`."""
    pixels = image.detach().cpu().numpy()
    pixels = pixels.transpose(1, 2, 0).clip(0, 1) if pixels.ndim == 3 else pixels
    shown = axes.imshow(pixels, **options)
    axes.set(xticks=[], yticks=[], title=title)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return shown


def eps_axis(axes: Axes, strengths: Sequence[float] = EPS) -> None:
    """Put ε on a symmetric-logarithmic axis that shows 0; its linear part ends at the first ε."""
    axes.set_xscale("symlog", linthresh=strengths[1], linscale=0.6)
    few = len(strengths) <= 6
    marks = [eps for eps in strengths if eps == 0 or few or short(eps).startswith("1")]
    axes.set_xticks(marks, [short(eps) for eps in marks])
    axes.set_xticks([eps for eps in strengths if eps not in marks], minor=True)
    axes.xaxis.set_minor_formatter("")
    axes.set_xlim(-0.2 * strengths[1], 1.4 * strengths[-1])
    axes.set_xlabel("attack strength ε (images in [0, 1])")


# -- curves over ε -------------------------------------------------------------------------------


def draw_curves(rows: pd.DataFrame, *, attack: str = "pgd", metrics: Sequence[str] = ()) -> Figure:
    """A panel per metric (all where none is named) with a curve over ε per method, under one attack.

    `rows` are tidy; the attack ``pgd-envelope`` is the worst case over ε' ≤ ε.
    """
    chosen = list(metrics or dict.fromkeys(rows["metric"]))
    size = (6.6 if len(chosen) == 1 else 5.2 * len(chosen), 3.8)
    with canvas(1, len(chosen), size) as (figure, axes):
        for axis, metric in zip(axes[0], chosen, strict=True):
            part = rows[(rows["metric"] == metric) & (rows["attack"] == attack)]
            dashes = {method: DASHES.get(method, "") for method in part["method"].unique()}
            sns.lineplot(
                part, x="eps", y="value", hue="method", style="method", palette=COLOURS, dashes=dashes,
                markers=MARKERS, markersize=5.5, markeredgewidth=0, errorbar=None, ax=axis,
            )  # fmt: skip
            axis.get_legend().remove()
            eps_axis(axis)
            axis.set_ylabel(METRICS[metric])
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper")
    return figure


def draw_bands(eps: Sequence[float], curves: Mapping[str, PerImage], label: str) -> Figure:
    """Per-image values over ε: the median and the middle 95 % of the images, for each method."""
    with canvas(1, 1, (6.2, 3.2)) as (figure, axes):
        _bands(axes[0, 0], eps, curves, label)
        figure.legend(loc="outside right upper")
    return figure


def _bands(axes: Axes, eps: Sequence[float], curves: Mapping[str, PerImage], label: str) -> None:
    for name, values in curves.items():
        low, middle, high = np.quantile(values, (0.025, 0.5, 0.975), axis=1)
        axes.fill_between(eps, low, high, color=COLOURS[name], alpha=0.2, lw=0)
        axes.plot(eps, middle, color=COLOURS[name], marker=MARKERS[name], label=name)
    eps_axis(axes, eps)
    axes.set_ylabel(label)


def draw_defences(
    eps: Sequence[float], gray_box: Mapping[str, Curve], worst: Mapping[str, Curve], number: int
) -> Figure:
    """Accuracy over ε of each defence under the gray-box attacker (dashed), and under all attacks.

    The bar shows two standard errors of an accuracy of one half on `number` images.
    """
    with canvas(1, 1, (7.2, 4.2)) as (figure, axes):
        axis = axes[0, 0]
        for name, curve in worst.items():
            look = {"color": COLOURS[name], "marker": MARKERS[name]}
            axis.plot(eps, gray_box[name], "--", markerfacecolor="white", **look)
            axis.plot(eps, curve, "-", label=name, **look)
        eps_axis(axis, eps)
        axis.errorbar(1.7 * eps[-1], 0.5, 1 / number**0.5, color="#6b6b6b", capsize=3)
        axis.set_xlim(right=2 * eps[-1])
        axis.set(ylabel="accuracy", ylim=(-0.03, 1.03))
        title = "dashed: gray-box attack\nsolid: worst of all attacks\nbar: two standard errors"
        figure.legend(title=title, loc="outside right upper")
    return figure


def draw_differences(rows: pd.DataFrame) -> Figure:
    """Rows of `seeds.compare`, a panel per comparison: mean over ε, 95 % interval, and a line per seed."""
    single = rows[pd.to_numeric(rows["eps"], errors="coerce").notna()]  # not their mean
    pairs: Any = single.groupby(["method", "other"], sort=False)
    with canvas(1, len(pairs), (2.4 * len(pairs) + 0.4, 3.0), sharey=True) as (figure, axes):
        for axis, ((method, other), part) in zip(axes[0], pairs, strict=True):
            seeds = ", ".join(part["seeds"].iloc[0].split())
            eps, low, high, mean = part[["eps", "low", "high", "value"]].to_numpy(float).T
            each = np.array([text.split() for text in part["per_seed"]], dtype=float)
            axis.fill_between(eps, low, high, color=COLOURS[method], alpha=0.2)
            axis.plot(eps, each, color=COLOURS[method], lw=0.6)
            axis.plot(eps, mean, color=COLOURS[method], marker=MARKERS[method], lw=1.8)
            axis.axhline(0, color="#444444", lw=0.8)
            eps_axis(axis)
            axis.set(xlabel="ε", title=f"{method}\nminus {other}\nseeds {seeds}")
            axis.tick_params(axis="x", labelsize=7)
        axes[0, 0].set_ylabel("difference of accuracy")
        figure.suptitle(f"95 % intervals over trainings and {rows['n'].iloc[0]} test images")
    return figure


# -- images, maps and kernels --------------------------------------------------------------------


def draw_panels(
    rows: Sequence[Sequence[Panel]],
    labels: Sequence[str] = (),
    size: tuple[float, float] = (1.55, 2.05),
) -> Figure:
    """Pictures in rows of equal length, each row with its label at the side; `size` is a panel's."""
    columns = len(rows[0])
    with canvas(len(rows), columns, (size[0] * columns, size[1] * len(rows))) as (figure, axes):
        for line, row in zip(axes, rows, strict=True):
            for axis, (image, title, options) in zip(line, row, strict=True):
                show_image(axis, image, title, **options)
        for line, label in zip(axes, labels, strict=False):
            line[0].set_ylabel(label)
    return figure


def draw_strip(images: Sequence[Image], titles: Sequence[str]) -> Figure:
    """Images side by side."""
    panels: list[Panel] = [(image, text, {}) for image, text in zip(images, titles, strict=True)]
    return draw_panels([panels], size=(1.35, 1.9))


def draw_maps(image: Image, maps: Mapping[str, Map], limits: tuple[float, float]) -> Figure:
    """An image and maps of it, all on one colour scale from ``limits[0]`` to ``limits[1]``."""
    with canvas(1, 1 + len(maps), (2.3 * (1 + len(maps)) + 0.6, 2.5)) as (figure, axes):
        show_image(axes[0, 0], image, "image")
        for axis, (name, values) in zip(axes[0, 1:], maps.items(), strict=True):
            shown = show_image(axis, values, name, cmap="viridis", vmin=limits[0], vmax=limits[1])
        figure.colorbar(shown, ax=axes[0, 1:], shrink=0.9, extend="both")
    return figure


def draw_uncertainty(
    images: Sequence[Image], maps: Sequence[Map], eps: Sequence[float], means: PerImage
) -> Figure:
    """Fig. 2: one attacked image over ε above its uncertainty maps (eq. 9), and the test images' means."""
    low, high = min(float(m.min()) for m in maps), max(float(m.max()) for m in maps)
    size = 0.95 * len(images) + 0.6, 4.6
    with canvas(3, len(images), size, height_ratios=(1, 1, 1.9)) as (figure, axes):
        for axis, image, strength in zip(axes[0], images, eps, strict=True):
            show_image(axis, image, short(strength))
        for axis, uncertainty in zip(axes[1], maps, strict=True):
            shown = show_image(axis, uncertainty, cmap="viridis", vmin=low, vmax=high)
        figure.colorbar(shown, ax=axes[1, -1], fraction=0.1, aspect=9, label="uncertainty")
        below = figure.add_subplot(axes[2, 0].get_gridspec()[2, :])
        for axis in axes[2]:
            axis.remove()
        _bands(below, eps, {"Filt(L_img)": means}, "mean uncertainty of an image")
        below.legend(loc="best")
    return figure


def draw_kernels(
    views: Mapping[str, tuple[Image, Float[Tensor, "taps h w"]]],
    pixels: Mapping[str, tuple[int, int]],
) -> Figure:
    """Fig. 4: images by title with marked pixels, and beside each mark the three kernels of that pixel.

    `pixels` maps a mark's colour to (row, column). Raises `IndexError` if that is outside of the image.
    """
    lines = [(title, view, mark) for title, view in views.items() for mark in pixels.items()]
    with canvas(len(lines), 4, (7.2, 1.95 * len(lines))) as (figure, axes):
        for line, (title, (image, kernels), (colour, pixel)) in zip(axes, lines, strict=True):
            (height, width), (row, column) = image.shape[-2:], pixel
            if not (0 <= row < height and 0 <= column < width):
                raise IndexError(f"pixel {pixel} is outside of the {height} × {width} image")
            show_image(line[0], image, f"{title}\npixel {pixel}")
            line[0].plot(column, row, "s", ms=7, mfc="none", mec=colour, mew=2)
            size = round((kernels.shape[0] / 3) ** 0.5)
            kernel = kernels[:, row, column].view(3, size, size)
            for taps, name, axis in zip(kernel, ("red", "green", "blue"), line[1:], strict=True):
                shown = show_image(axis, taps, name, **SIGNED)
        figure.colorbar(shown, ax=axes[:, -1], shrink=0.9, label="weight of a tap", extend="both")
    return figure
