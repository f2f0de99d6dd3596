"""Draw figures from arrays and tidy rows; `paper_figures` takes them from a study."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..experiments.methods import (
    BOTH_LOSSES,
    CLEAN_PSNR,
    COLOURS,
    DASHES,
    GAIN,
    MARKERS,
    METRICS,
    WORST,
)
from ..study import EPS, short
from .tables import SHOWN

Image = Float[Tensor, "3 h w"]
Map = Float[Tensor, "h w"]
PerImage = Float[np.ndarray, "strengths n"]
# panels of one figure may have different sizes, so their axes have no names
Panel = tuple[Float[Tensor, "3 _ _"] | Float[Tensor, "_ _"], str, dict[str, Any]] | str
"""A picture, its title, and options of `Axes.imshow`; or a text, narrower, such as an arrow."""

SIGNED: Any = {"cmap": "RdBu_r", "vmin": -1.2, "vmax": 1.2}  # of kernels' weights
SHARES: Any = {"cmap": "cividis", "vmin": 0, "vmax": 1}  # of W

CHARACTERS = 120  # of one point that fit into an inch

UNCHANGED = 50  # dB of clean PSNR, above which a denoiser leaves clean images alone
SWEEPS = {"Gaussian blur": ("σ in pixels", "Gaussian blur", 16)}
SWEEPS |= {"JPEG": ("quality", "JPEG 40", 25), BOTH_LOSSES: ("λ", BOTH_LOSSES, 0)}
"""What a sweep goes over, the method that it looks like, and how far below it its values stand."""

sheet: Any = partial(plt.style.context, "nbsupport.results.style", after_reset=True)
"""The project's style whatever the user's settings are: a context manager and a decorator."""
plt.draw_if_interactive()  # loads the backend, whose settings a style context would undo at its end


def new_figure(
    rows: int, columns: int, size: tuple[float, float], **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure with a grid of axes, `size` in inches; closed, so that nothing shows it twice."""
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **options)
    plt.close(figure)
    return figure, axes


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


@sheet()
def draw_curves(rows: pd.DataFrame, *, attack: str = "pgd", metrics: Sequence[str] = ()) -> Figure:
    """A panel per metric (default: all) with a curve over ε per method, under one attack.

    `rows` are tidy; the attack ``pgd-envelope`` is the worst case over ε' ≤ ε.
    """
    chosen = list(metrics or (name for name in METRICS if name in set(rows["metric"])))
    figure, axes = new_figure(1, len(chosen), (max(6.6, 5.2 * len(chosen)), 3.8))
    for axis, metric in zip(axes[0], chosen, strict=True):
        part = rows[(rows["metric"] == metric) & (rows["attack"] == attack)]
        dashes = {method: DASHES.get(method, "") for method in part["method"].unique()}
        sns.lineplot(
            part, x="eps", y="value", hue="method", style="method", palette=COLOURS,
            dashes=dashes, markers=MARKERS, markersize=5.5, markeredgewidth=0, errorbar=None,
            ax=axis,
        )  # fmt: skip
        axis.get_legend().remove()
        eps_axis(axis)
        axis.set_ylabel(METRICS[metric])
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, [SHOWN.get(name, name) for name in names], loc="outside right upper")
    return figure


@sheet()
def draw_bands(eps: Sequence[float], curves: Mapping[str, PerImage], label: str) -> Figure:
    """Per-image values over ε: the median and the middle 95 % of the images, for each method."""
    figure, axes = new_figure(1, 1, (6.2, 3.2))
    add_bands(axes[0, 0], eps, curves, label)
    figure.legend(loc="outside right upper")
    return figure


def add_bands(axes: Axes, eps: Sequence[float], curves: Mapping[str, PerImage], label: str) -> None:
    """Draw what `draw_bands` shows into one panel of a larger figure."""
    for name, values in curves.items():
        low, middle, high = np.quantile(values, (0.025, 0.5, 0.975), axis=1)
        axes.fill_between(eps, low, high, color=COLOURS[name], alpha=0.2, lw=0)
        axes.plot(eps, middle, label=name, **_look(name))
    eps_axis(axes, eps)
    axes.set_ylabel(label)


def _look(method: str) -> Any:
    """A line's look; a baseline of another strength, as `JPEG 20`, has the baselines' colour."""
    return {"color": COLOURS.get(method, COLOURS["JPEG 40"]), "marker": MARKERS.get(method, ".")}


def _stroke(method: str) -> Any:
    """A line's look without marks: simple filters share a colour and differ in their dashes."""
    return {"color": _look(method)["color"], "dashes": DASHES.get(method, (None, None))}


@sheet()
def draw_defences(rows: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """A panel per defence: its accuracy over ε under both attackers, and that without a filter.

    `rows` are those of the adaptive evaluation. Without a filter, they may lack the gray-box curve.
    """
    found = rows[rows["metric"] == "accuracy"].set_index(["method", "attack", "eps"])["value"]
    curves: dict[Any, Any] = {
        key: part.droplevel([0, 1]) for key, part in found.groupby(level=[0, 1])
    }
    strengths = list(curves["attacked", WORST].index)
    columns = min(4, len(methods))
    lines = -(-len(methods) // columns)
    size = 2.9 * columns, 2.3 * lines + 0.4
    figure, axes = new_figure(lines, columns, size, sharex=True, sharey=True)
    for axis, method in zip_longest(axes.flat, methods):
        if method is None:
            axis.remove()
            continue
        for attack, style, label in (("envelope", "--", "gray-box"), (WORST, "-", "adaptive")):
            if ("attacked", attack) in curves:
                bare, name = curves["attacked", attack], f"no filter, {label}"
                axis.plot(bare.index, bare, style, color="#999999", lw=1, label=name)
            curve = curves[method, attack]
            axis.plot(curve.index, curve, style, label=label, color=_look(method)["color"])
        eps_axis(axis, strengths)
        axis.set(title=method, xlabel="", ylim=(-0.03, 1.03))
        axis.tick_params(labelbottom=methods.index(method) + columns >= len(methods))
    figure.supxlabel("attack strength ε (images in [0, 1])")
    figure.supylabel("accuracy")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


@sheet()
def draw_gains(rows: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """What defences gain on their bare classifier over ε, with intervals, see `draw_defences`."""
    figure, axes = new_figure(1, 1, (7.2, 4.2))
    axis = axes[0, 0]
    for method in methods:
        part = rows[(rows["method"] == method) & (rows["attack"] == WORST)]
        found = part.pivot(index="eps", columns="metric", values="value")
        look = _look(method) | _stroke(method)
        axis.fill_between(found.index, found[GAIN[1]], found[GAIN[2]], color=look["color"],
                          alpha=0.15, lw=0)  # fmt: skip
        axis.plot(found.index, found[GAIN[0]], label=method, **look)
    axis.axhline(0, color="black", lw=1)
    eps_axis(axis, sorted(rows["eps"].dropna().unique()))
    axis.set_ylabel("gain in accuracy")
    figure.legend(loc="outside right upper")
    return figure


@sheet()
def draw_operating_points(rows: pd.DataFrame) -> Figure:
    """A panel per ε of `operating_points.curve`: plain accuracy over the clean PSNR.

    A series over a parameter is a line with its values, artefacts crossed out; a method is a point.
    What the paper published is hollow where its clean PSNR is, too, otherwise a dotted line.
    All above `UNCHANGED` dB stand at the right edge.
    """
    rows = rows[rows["attack"] == "pgd"]
    rows = rows.assign(x=rows[CLEAN_PSNR].clip(upper=UNCHANGED))
    figure, axes = new_figure(1, rows["eps"].nunique(), (12.4, 5.4))
    eps: Any
    row: Any
    for axis, (eps, part) in zip(axes[0], rows.groupby("eps"), strict=True):
        swept = part["parameter"].notna()
        for name, line in part[swept].groupby("series", sort=False):
            _add_sweep(axis, str(name), line.sort_values("parameter"))
        for row in part[~swept].itertuples():
            look: Any = _look(row.method)
            group = f"published: {row.classifier} on {row.study}"
            if row.method == "attacked" and row.series == "methods":
                axis.axhline(row.accuracy, color="black", lw=1, label="no filter")
            elif np.isnan(row.x):
                axis.axhline(row.accuracy, color=look["color"], lw=1, ls=":", label=group)
            elif row.series == "methods":
                axis.plot(row.x, row.accuracy, ls="", ms=7, label=row.method, **look)
            else:
                axis.plot(row.x, row.accuracy, ls="", ms=7, mfc="none", label=group, **look)
        marks = range(10, UNCHANGED + 1, 10)
        axis.set_xticks(marks, [*map(str, marks[:-1]), f"≥ {UNCHANGED}"])
        axis.set_xlim(part["x"].min() - 1, UNCHANGED + 1.5)
        axis.set(title=f"ε = {short(eps)}", xlabel="clean PSNR (dB)")
    axes[0, 0].set_ylabel("accuracy under the gray-box attack")
    entries = dict(zip(*axes[0, 0].get_legend_handles_labels()[::-1], strict=True))
    figure.legend(entries.values(), entries, loc="outside right upper")
    return figure


def _add_sweep(axes: Axes, name: str, line: pd.DataFrame) -> None:
    what, method, below = SWEEPS.get(name, ("steps", "Filt(L_img)@32dB", 0))
    look = _stroke(method)
    kept, lost = line[~line["artefact"]], line[line["artefact"]]
    axes.plot(kept["x"], kept["accuracy"], marker=".", label=f"{name}, over its {what}", **look)
    axes.plot(lost["x"], lost["accuracy"], "x", color=look["color"], ms=5)
    row: Any
    for row in line[:: 3 if len(line) > 5 else 1].itertuples():
        _note(axes, f"{row.parameter:g}", row.x, row.accuracy, below, color=look["color"])


def _note(axes: Axes, text: str, x: float, y: float, below: int, **options: Any) -> None:
    place: Any = {"xytext": (0, 5 - below), "textcoords": "offset points", "ha": "center"}
    axes.annotate(text, (x, y), fontsize=7, **place, **options)


@sheet()
def draw_differences(rows: pd.DataFrame) -> Figure:
    """A panel per comparison of `seeds.compare`: mean over ε, 95 % interval, a line per seed."""
    single = rows[pd.to_numeric(rows["eps"], errors="coerce").notna()]  # not their mean
    pairs: Any = single.groupby(["method", "other"], sort=False)
    size = 2.4 * len(pairs) + 0.4, 3.0
    figure, axes = new_figure(1, len(pairs), size, sharey=True)
    for axis, ((method, other), part) in zip(axes[0], pairs, strict=True):
        seeds = ", ".join(part["seeds"].iloc[0].split())
        eps, low, high, mean = part[["eps", "low", "high", "value"]].to_numpy(float).T
        each = np.array([text.split() for text in part["per_seed"]], dtype=float)
        axis.fill_between(eps, low, high, color=COLOURS[method], alpha=0.2)
        axis.plot(eps, each, color=COLOURS[method], lw=0.6)
        axis.plot(eps, mean, lw=1.8, **_look(method))
        axis.axhline(0, color="#444444", lw=0.8)
        eps_axis(axis)
        axis.set(xlabel="ε", title=f"{method}\nminus {other}\nseeds {seeds}")
        axis.tick_params(axis="x", labelsize=7)
    axes[0, 0].set_ylabel("difference in accuracy")
    figure.suptitle("Mean and 95 % interval; thin: each training")
    return figure


# -- images, maps and kernels --------------------------------------------------------------------


@sheet()
def draw_panels(
    rows: Sequence[Sequence[Panel]], labels: Sequence[str] = (),
    size: tuple[float, float] = (1.55, 2.05), bar: str | None = None, **options: Any,
) -> Figure:  # fmt: skip
    """Pictures in rows, each row with its label at the side; a picture takes `size` in inches.

    With a `bar`, the last column's maps get a colour bar of that label; `options` go to `subplots`.
    """
    widths = [0.4 if isinstance(panel, str) else 1.0 for panel in max(rows, key=len)]
    whole = size[0] * sum(widths), size[1] * len(rows)
    figure, axes = new_figure(len(rows), len(widths), whole, width_ratios=widths, **options)
    axis: Any
    for line, row in zip(axes, rows, strict=True):
        for axis, panel in zip_longest(line, row, fillvalue=""):
            if isinstance(panel, str):
                axis.axis("off")
                axis.text(0.5, 0.5, panel, fontsize=11, ha="center", va="center")
            else:
                image, title, look = panel
                pixels = image.detach().cpu().numpy()
                pixels = pixels.transpose(1, 2, 0).clip(0, 1) if pixels.ndim == 3 else pixels
                axis.imshow(pixels, **look)
                axis.set(xticks=[], yticks=[])
                longest = max(map(len, title.splitlines()), default=1)
                axis.set_title(title, fontsize=min(9, CHARACTERS * size[0] / longest))
                axis.grid(False)
                axis.spines[:].set_visible(False)
    for line, label in zip(axes, labels, strict=False):
        line[0].set_ylabel(label)
    if bar is not None:
        figure.colorbar(axes[0, -1].images[0], ax=axes[:, -1], label=bar, shrink=0.9, extend="both")
    return figure


def draw_strip(images: Sequence[Image], titles: Sequence[str]) -> Figure:
    """Images side by side."""
    panels: list[Panel] = [(image, text, {}) for image, text in zip(images, titles, strict=True)]
    return draw_panels([panels], size=(1.35, 1.9))
