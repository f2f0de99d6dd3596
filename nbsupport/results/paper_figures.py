"""Which images, maps and kernels of a study go into which figure; `nbsupport.results.plots` draws them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from torch import Tensor

from ..attacks.adaptive import chain
from ..attacks.pgd import pgd
from ..classifiers.models import predicted_classes
from ..denoisers.filtering import uncertainty_map
from ..denoisers.models import KernelDenoiser, PAFilter
from ..experiments.artifacts import Experiment
from ..experiments.evaluation import measure
from ..study import short
from . import plots
from .plots import SHARES, SIGNED, Image, Map, Panel, canvas, show_image

FUSED = "PA-Filt(L_img)"
BOX: Any = {"boxstyle": "round,pad=0.5", "fc": "#e8eef7", "ec": "#5577aa"}


def find_fooled(experiment: Experiment, eps: float, number: int) -> list[int]:
    """The first test images that are classified correctly when clean, and wrongly when attacked with `eps`.

    Where there are fewer than `number`, other images follow. No denoiser influences the choice.
    """
    correct = measure(experiment, "attacked").correct()
    fooled = correct[0] & ~correct[experiment.study.eps.index(eps)]
    return sorted(range(len(fooled)), key=lambda image: not fooled[image])[:number]


def label_images(experiment: Experiment, images: Sequence[int]) -> dict[str, int]:
    """Test images under the labels of a slider: number and true class."""
    test = experiment.images("test")
    return {f"no. {image}, “{test.classes[test.labels[image]]}”": image for image in images}


def _attacked(experiment: Experiment, image: int, eps: float) -> Float[Tensor, "1 3 h w"]:
    return experiment.attacked("test").at(eps)[image : image + 1].to(experiment.device)


def _with_predictions(experiment: Experiment, images: Mapping[str, Tensor]) -> list[Panel]:
    pictures = torch.cat([*images.values()])
    classes = experiment.images("test").classes
    words = predicted_classes(experiment.classifier(), pictures, classes)
    titles = [f"{name}\n“{word}”" for name, word in zip(images, words, strict=True)]
    return [(picture, title, {}) for picture, title in zip(pictures, titles, strict=True)]


@torch.no_grad()
def show_before_after(experiment: Experiment, method: str, image: int, eps: float) -> Figure:
    """One test image clean, attacked and denoised with the predictions, and its perturbation from −ε to ε."""
    hat = _attacked(experiment, image, eps)
    clean = experiment.images("test").images[image : image + 1].to(hat)
    denoised = experiment.denoiser(method)(hat)
    images = {"clean": clean, f"attacked, ε = {short(eps)}": hat, method: denoised}
    panels = _with_predictions(experiment, images)
    limits = SIGNED | {"vmin": -max(eps, 1e-6), "vmax": max(eps, 1e-6)}
    panels.insert(2, ((hat - clean)[0].mean(dim=0), "perturbation\n−ε … ε", limits))
    return plots.draw_panels([panels], size=(2.1, 2.5))


@torch.no_grad()
def show_both_attackers(experiment: Experiment, method: str, image: int, eps: float) -> Figure:
    """One test image under the gray-box and the white-box attacker, before and after the denoiser."""
    study, test, where = experiment.study, experiment.images("test"), slice(image, image + 1)
    classifier, denoiser = experiment.classifier(), experiment.denoiser(method)
    clean, label = (each[where].to(experiment.device) for each in (test.images, test.labels))
    images = {"clean": clean}
    for name, network in (("gray-box", classifier), ("white-box", chain(denoiser, classifier))):
        images[name] = pgd(network, clean, label, eps, steps=study.steps, seed=study.seed)
        images[f"{name}, denoised"] = denoiser(images[name])
    return plots.draw_panels([_with_predictions(experiment, images)], [f"ε = {short(eps)}"])


@torch.no_grad()
def show_uncertainty(experiment: Experiment, image: int) -> Figure:
    """Fig. 2: one test image over ε above its uncertainty maps under Filt(L_img), and all images' means."""
    eps, filtering = experiment.study.eps, experiment.denoiser("Filt(L_img)")
    assert isinstance(filtering, KernelDenoiser)
    images = torch.cat([_attacked(experiment, image, strength) for strength in eps])
    maps = uncertainty_map(filtering.kernels(images))[:, 0].cpu()
    means = measure(experiment, "Filt(L_img)").extra["uncertainty"].numpy()
    return plots.draw_uncertainty(list(images.cpu()), list(maps), eps, means)


@torch.no_grad()
def show_kernels(
    experiment: Experiment, method: str, image: int, strengths: Sequence[float],
    pixels: Mapping[str, tuple[int, int]],
) -> Figure:  # fmt: skip
    """Fig. 4: the kernels of a filtering method at some pixels of one test image, under each strength.

    Raises `ValueError` if the method does not filter; `pixels` are those of `plots.draw_kernels`.
    """
    denoiser = experiment.denoiser(method)
    if not isinstance(denoiser, KernelDenoiser):
        raise ValueError(f"kernels: expected a method that filters, got {method!r}")
    views = {}
    for eps in strengths:
        hat = _attacked(experiment, image, eps)
        views[f"ε = {short(eps)}"] = hat[0].cpu(), denoiser.kernels(hat)[0].cpu()
    return plots.draw_kernels(views, pixels)


# -- Fig. 3, and its frames for a slider ---------------------------------------------------------


class Picture(NamedTuple):
    """A named image with its prediction, or a named map, and a number as text."""

    name: str
    pixels: Image | Map
    word: str | None
    note: str


@torch.no_grad()
def compute_pictures(experiment: Experiment, image: int, eps: float) -> list[Picture]:
    """Clean, attacked, Ĩ_sl, Ĩ_m, W and Ĩ of one test image under one strength.

    The note of an image is its PSNR against the clean one, that of W its mean.
    """
    test, hat = experiment.images("test"), _attacked(experiment, image, eps)
    pa_filter, clean = experiment.denoiser(FUSED), test.images[image].to(hat)
    assert isinstance(pa_filter, PAFilter)
    parts = pa_filter.parts(hat)
    images = torch.cat([clean[None], hat, parts.sl, parts.m, pa_filter(hat)])
    words = predicted_classes(experiment.classifier(), images, test.classes)
    errors = (images - clean).square().mean(dim=(1, 2, 3))
    notes = [f"{-10 * float(error.log10()):.1f} dB" if error > 0 else "" for error in errors]
    names = ("clean I", "attacked Î", "Ĩ_sl", "Ĩ_m", "Ĩ")
    pictures = [Picture(*each) for each in zip(names, images.cpu(), words, notes, strict=True)]
    mean = f"mean {float(parts.weight.mean()):.2f}"
    pictures.insert(4, Picture("W", parts.weight[0, 0].cpu(), None, mean))
    return pictures


def show_parts(experiment: Experiment, image: int, strengths: Sequence[float]) -> Figure:
    """Fig. 3: PA-Filt's parts for one test image, a row per strength."""
    rows: list[list[Panel]] = []
    for eps in strengths:
        row = []
        for name, pixels, word, note in compute_pictures(experiment, image, eps):
            text = ", ".join(filter(None, (word and f"“{word}”", note)))
            row.append((pixels, f"{name}\n{text}", SHARES if word is None else {}))
        rows.append(row)
    return plots.draw_panels(rows, [f"ε = {short(eps)}" for eps in strengths])


@dataclass(frozen=True)
class Frames:
    """Fig. 3 of one test image under every strength, for a slider in a page that computes nothing.

    `pixels` is a sheet of squares of `size` × `size` pixels: a row per strength, a column per name. `words`
    and `notes` have the prediction (None for a map) and the number of each square.
    """

    pixels: UInt8[np.ndarray, "height width 3"]
    size: int
    image: int
    truth: str
    eps: tuple[float, ...]
    names: tuple[str, ...]
    words: tuple[tuple[str | None, ...], ...]
    notes: tuple[tuple[str, ...], ...]

    def index(self) -> dict[str, Any]:
        """Everything but the pixels, for the record beside the sheet."""
        return {name: value for name, value in vars(self).items() if name != "pixels"}


def render_frames(experiment: Experiment, image: int) -> Frames:
    """Render `compute_pictures` of one test image under every strength of the study."""
    test, eps = experiment.images("test"), experiment.study.eps
    rows = [compute_pictures(experiment, image, strength) for strength in eps]
    return Frames(
        pixels=np.block([[[to_8_bit(picture.pixels)] for picture in row] for row in rows]),
        size=experiment.study.image_size,
        image=image,
        truth=str(test.classes[test.labels[image]]),
        eps=eps,
        names=tuple(picture.name for picture in rows[0]),
        words=tuple(tuple(picture.word for picture in row) for row in rows),
        notes=tuple(tuple(picture.note for picture in row) for row in rows),
    )


def to_8_bit(picture: Image | Map) -> UInt8[np.ndarray, "h w 3"]:
    """Convert an image in [0, 1], or a map of W in the figures' colours, to 8 bits."""
    values = picture.cpu().numpy()
    if values.ndim == 2:
        return matplotlib.colormaps[SHARES["cmap"]](values, bytes=True)[..., :3]
    return (255 * values.transpose(1, 2, 0).clip(0, 1)).round().astype(np.uint8)


# -- Fig. 1 --------------------------------------------------------------------------------------


@torch.no_grad()
def show_architectures(experiment: Experiment, image: int, eps: float) -> Figure:
    """Fig. 1: (a) additive, (b) filtering, (c) perturbation-aware filtering of one attacked test image.

    Everything drawn is what the trained networks predict for this image.
    """
    hat = _attacked(experiment, image, eps)
    adding, filtering, pa_filter = (
        cast(Any, experiment.denoiser(name)) for name in ("Add(L_img)", "Filt(L_img)", FUSED)
    )
    summed, parts = adding(hat)[0], pa_filter.parts(hat)
    residual = (summed - hat[0]).mean(dim=0)
    largest = max(float(residual.abs().max()), 1e-6)
    signed = SIGNED | {"vmin": -largest, "vmax": largest}
    maps = torch.cat([parts.uncertainty_sl, parts.uncertainty_m])[:, 0]
    limits = {"cmap": "viridis", "vmin": float(maps.min()), "vmax": float(maps.max())}
    kernels = (filtering.kernels(hat), parts.kernels_sl, parts.kernels_m)
    taps = [lay_out_kernels(each[0]) for each in kernels]
    paths = (
        ("φ", residual, f"φ(Î), up to ±{largest:.1g}", signed, "+ Î", summed, "denoised Ĩ"),
        ("φ", taps[0], "φ(Î): kernels", SIGNED, "⊗ Î", filtering(hat)[0], "denoised Ĩ"),
        ("φ_sl", taps[1], "φ_sl(Î)", SIGNED, "⊗ Î", parts.sl[0], "Ĩ_sl"),
        ("φ_m", taps[2], "φ_m(Î)", SIGNED, "⊗ Î", parts.m[0], "Ĩ_m"),
    )  # fmt: skip
    with canvas(4, 7, (11, 6.4)) as (figure, axes):
        layout: Any = figure.get_layout_engine()
        layout.set(wspace=0.08)  # room for the arrows
        for axis in axes.flat:
            axis.axis("off")

        def put(row: int, column: int, picture: Tensor, title: str, **options: Any) -> Axes:
            axes[row, column].axis("on")
            show_image(axes[row, column], picture, title, **options)
            return axes[row, column]

        starts = [put(row, 0, hat[0], f"({'abc'[row]}) attacked Î") for row in range(3)]
        for row, (name, middle, title, look, sign, output, result) in enumerate(paths):
            box = axes[row, 1]
            box.text(0.5, 0.5, name, fontsize=10, ha="center", va="center", bbox=BOX)
            predicted, end = put(row, 2, middle, title, **look), put(row, 3, output, result)
            _arrow(starts[min(row, 2)], box)
            _arrow(box, predicted)
            _arrow(predicted, end, sign)
        weight = put(2, 5, parts.weight[0, 0], "W", **SHARES)
        for row, name in ((2, "sl"), (3, "m")):
            _arrow(put(row, 4, maps[row - 2], f"U_{name}", **limits), weight, "C" * (row == 2))
        _arrow(weight, put(2, 6, pa_filter(hat)[0], "denoised Ĩ"))
        fusion = "Ĩ = W ⊙ Ĩ_sl\n+ (1 − W) ⊙ Ĩ_m"
        axes[3, 6].text(0.5, 0.9, fusion, ha="center", va="top", fontsize=9)
    return figure


def lay_out_kernels(
    kernels: Float[Tensor, "taps h w"], pixels: int = 4
) -> Float[Tensor, "height width"]:
    """Lay out the green kernels of `pixels` × `pixels` evenly spaced pixels side by side."""
    size = round((kernels.shape[0] / 3) ** 0.5)
    rows, columns = (torch.linspace(0, side - 1, pixels).long() for side in kernels.shape[-2:])
    taps = kernels.view(3, size, size, *kernels.shape[-2:])[1][:, :, rows][..., columns]
    framed = torch.nn.functional.pad(taps.permute(2, 3, 0, 1), (0, 1, 0, 1), value=float("nan"))
    return framed.permute(0, 2, 1, 3).reshape(pixels * (size + 1), -1)[:-1, :-1]


def _arrow(start: Axes, end: Axes, label: str = "") -> None:
    # a box is narrower than its axes, an image fills them
    near, far = (1.02 if start.images else 0.68), (-0.02 if end.images else 0.32)
    end.figure.add_artist(
        ConnectionPatch(
            (near, 0.5), (far, 0.5), "axes fraction", "axes fraction", axesA=start, axesB=end,
            arrowstyle="-|>", color="#555555", lw=1.1, shrinkA=0, shrinkB=0,
        )
    )  # fmt: skip
    place: Any = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "center"}
    end.annotate(label, (0, 0.5), (-15, 6), fontsize=11, **place)
