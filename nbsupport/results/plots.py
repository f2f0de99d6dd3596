"""Pictures: every `draw_…` takes data and returns a Figure, and knows nothing of studies or stores."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..study import EPS
from .style import COLOURS, DASHES, MARKERS, sheet
from .tables import short

Image = Float[Tensor, "3 h w"]
Map = Float[Tensor, "h w"]


@contextmanager
def canvas(
    rows: int, columns: int, size: tuple[float, float], **options: Any
) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure that no global list of figures knows, so that nothing is shown twice or kept."""
    with sheet():
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **options)
        try:
            yield figure, axes
        finally:
            plt.close(figure)


def show_image(axes: Axes, image: Image | Map, title: str = "", /, **options: Any) -> Any:
    """One image or map without ticks; grey maps may bring `cmap`, `vmin` and `vmax`."""
    pixels = image.detach().cpu().numpy()
    shown = axes.imshow(
        pixels.transpose(1, 2, 0).clip(0, 1) if pixels.ndim == 3 else pixels, **options
    )
    axes.set_title(title)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return shown


def eps_axis(axes: Axes, strengths: Sequence[float] = EPS) -> None:
    """ε on a symmetric-logarithmic axis that shows 0, labelled as in the paper; its linear part ends at the first ε."""
    first, last = strengths[1], strengths[-1]
    axes.set_xscale("symlog", linthresh=first, linscale=0.6)
    few = len(strengths) <= 6
    marks = [eps for eps in strengths if eps == 0 or few or short(eps).startswith("1")]
    axes.set_xticks(marks, [short(eps) for eps in marks])
    axes.set_xticks([eps for eps in strengths if eps not in marks], minor=True)
    axes.xaxis.set_minor_formatter("")
    axes.set_xlim(-0.2 * first, 1.4 * last)
    axes.set_xlabel("attack strength ε (images in [0, 1])")


def draw_curves(
    rows: pd.DataFrame,
    *,
    attack: str = "pgd",
    metrics: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """A panel per metric with one curve over ε per method; the simple baselines are grey and dashed.

    Parameters
    ----------
    rows
        Tidy rows, see `nbsupport.experiments.evaluation.COLUMNS`.
    attack
        Which of them: ``pgd`` or ``pgd-envelope``.
    metrics
        Which of them; all where None.
    title
        Above the figure.
    """
    names = {"accuracy": "accuracy", "psnr": "PSNR (dB)", "ssim": "SSIM"}
    chosen = list(metrics or dict.fromkeys(rows["metric"]))
    with canvas(1, len(chosen), (6.6 if len(chosen) == 1 else 5.2 * len(chosen), 3.8)) as (
        figure,
        axes,
    ):
        for axis, metric in zip(axes[0], chosen, strict=True):
            part = rows[(rows["metric"] == metric) & (rows["attack"] == attack)]
            methods = list(dict.fromkeys(part["method"]))
            dashes = {method: DASHES.get(method, "") for method in methods}
            sns.lineplot(
                part, x="eps", y="value", hue="method", style="method", palette=COLOURS, dashes=dashes,
                markers=MARKERS, markersize=5.5, markeredgewidth=0, errorbar=None, ax=axis,
            )  # fmt: skip
            axis.get_legend().remove()
            eps_axis(axis)
            axis.set_ylabel(names[metric])
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper")
        figure.suptitle(title)
    return figure


def draw_strip(images: Sequence[Image], titles: Sequence[str], title: str = "") -> Figure:
    """Images side by side."""
    with canvas(1, len(images), (1.35 * len(images), 1.9)) as (figure, axes):
        for axis, image, text in zip(axes[0], images, titles, strict=True):
            show_image(axis, image, text)
        figure.suptitle(title)
    return figure


def draw_before_after(
    clean: Image,
    attacked: Image,
    denoised: Image,
    predictions: Sequence[str],
    eps: float,
    name: str,
) -> Figure:
    """Clean, attacked, perturbation and denoised image, with what the classifier sees in each.

    Parameters
    ----------
    clean, attacked, denoised
        Images in [0, 1].
    predictions
        The classifier's word for each of the three.
    eps
        The attack strength; the perturbation is drawn from −ε (blue) to ε (red).
    name
        Of the denoiser.
    """
    with canvas(1, 4, (8.4, 2.5)) as (figure, axes):
        show_image(axes[0, 0], clean, f"clean\n“{predictions[0]}”")
        show_image(axes[0, 1], attacked, f"attacked, ε = {short(eps)}\n“{predictions[1]}”")
        delta, limit = (attacked - clean).mean(dim=0), max(eps, 1e-6)
        show_image(
            axes[0, 2], delta, "perturbation\n−ε … ε", cmap="RdBu_r", vmin=-limit, vmax=limit
        )
        show_image(axes[0, 3], denoised, f"{name}\n“{predictions[2]}”")
    return figure


def draw_uncertainty(
    images: Sequence[Image],
    maps: Sequence[Map],
    eps: Sequence[float],
    means: Float[np.ndarray, "strengths n"],
) -> Figure:
    """Fig. 2: one image over ε above its uncertainty maps, and mean uncertainty over the test set.

    Parameters
    ----------
    images, maps
        The attacked image and its map (eq. 9) for each of `eps`.
    eps
        The strengths.
    means
        Per strength and test image the mean of its map.
    """
    limits: Any = {
        "vmin": min(float(m.min()) for m in maps),
        "vmax": max(float(m.max()) for m in maps),
    }
    columns = len(images)
    mosaic: Any = [
        [f"image {column}" for column in range(columns)],
        [f"map {column}" for column in range(columns)],
    ]
    with sheet():
        figure, axes = plt.subplot_mosaic(
            [*mosaic, ["means"] * columns],
            figsize=(0.95 * columns + 0.6, 4.6),
            height_ratios=(1, 1, 1.9),
        )
        plt.close(figure)
        for column, (image, uncertainty, strength) in enumerate(
            zip(images, maps, eps, strict=True)
        ):
            show_image(axes[f"image {column}"], image, short(strength))
            shown = show_image(axes[f"map {column}"], uncertainty, cmap="viridis", **limits)
        maps_axes = [axes[f"map {column}"] for column in range(columns)]
        figure.colorbar(shown, ax=maps_axes, shrink=0.9, label="uncertainty")
        _bands(axes["means"], eps, {"Filt(L_img)": means}, "mean uncertainty of an image")
        axes["means"].legend(loc="best")
    return figure


def draw_parts(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Fig. 3: clean, attacked, Ĩ_sl, Ĩ_m, W and Ĩ, one row per attack strength.

    Parameters
    ----------
    rows
        For each row the ``label`` at its side and under ``panels`` a list of (image or map, title).
    """
    columns = len(rows[0]["panels"])
    with canvas(len(rows), columns, (1.55 * columns, 2.05 * len(rows))) as (figure, axes):
        for line, row in zip(axes, rows, strict=True):
            for axis, (image, text) in zip(line, row["panels"], strict=True):
                options = {"cmap": "cividis", "vmin": 0, "vmax": 1} if image.ndim == 2 else {}
                show_image(axis, image, text, **options)
            line[0].set_ylabel(row["label"])
    return figure


def draw_maps(image: Image, maps: Mapping[str, Map], limits: tuple[float, float]) -> Figure:
    """An image and maps of it, all on one colour scale from ``limits[0]`` to ``limits[1]``."""
    with canvas(1, 1 + len(maps), (2.3 * (1 + len(maps)) + 0.6, 2.5)) as (figure, axes):
        show_image(axes[0, 0], image, "image")
        for axis, (name, values) in zip(axes[0, 1:], maps.items(), strict=True):
            shown = show_image(axis, values, name, cmap="viridis", vmin=limits[0], vmax=limits[1])
        figure.colorbar(shown, ax=axes[0, 1:], shrink=0.9, extend="both")
    return figure


def draw_kernels(
    views: Mapping[str, tuple[Image, Float[Tensor, "taps h w"]]],
    pixels: Mapping[str, tuple[int, int]],
) -> Figure:
    """Fig. 4: images with marked pixels, and beside each mark the three kernels of that pixel.

    Parameters
    ----------
    views
        A title to an attacked image and its kernels, 3·K·K taps per pixel.
    pixels
        The colour of a mark to its (row, column).

    Raises
    ------
    IndexError
        If a pixel lies outside of the image.
    """
    lines = [(title, view, mark) for title, view in views.items() for mark in pixels.items()]
    with canvas(len(lines), 4, (7.2, 1.95 * len(lines))) as (figure, axes):
        for line, (title, (image, kernels), (colour, (row, column))) in zip(
            axes, lines, strict=True
        ):
            height, width = image.shape[-2:]
            if not (0 <= row < height and 0 <= column < width):
                raise IndexError(
                    f"pixel ({row}, {column}) is outside of the {height} × {width} image"
                )
            show_image(line[0], image, f"{title}\npixel ({row}, {column})")
            line[0].plot(column, row, "s", ms=7, mfc="none", mec=colour, mew=2)
            size = round((kernels.shape[0] / 3) ** 0.5)
            for channel, axis in enumerate(line[1:]):
                kernel = kernels.view(3, size, size, height, width)[channel, :, :, row, column]
                shown = show_image(
                    axis,
                    kernel,
                    ["red", "green", "blue"][channel],
                    cmap="RdBu_r",
                    vmin=-1.2,
                    vmax=1.2,
                )
        figure.colorbar(shown, ax=axes[:, -1], shrink=0.9, label="weight of a tap", extend="both")
    return figure


def draw_bands(
    eps: Sequence[float], curves: Mapping[str, Float[np.ndarray, "strengths n"]], label: str
) -> Figure:
    """Per-image values over ε: the median and the middle 95 % of the images, for each method."""
    with canvas(1, 1, (6.2, 3.2)) as (figure, axes):
        _bands(axes[0, 0], eps, curves, label)
        figure.legend(loc="outside right upper")
    return figure


def _bands(axes: Axes, eps: Sequence[float], curves: Mapping[str, np.ndarray], label: str) -> None:
    for name, values in curves.items():
        low, middle, high = np.quantile(values, (0.025, 0.5, 0.975), axis=1)
        axes.fill_between(eps, low, high, color=COLOURS[name], alpha=0.2, lw=0)
        axes.plot(eps, middle, color=COLOURS[name], marker=MARKERS[name], label=name)
    eps_axis(axes, eps)
    axes.set_ylabel(label)
