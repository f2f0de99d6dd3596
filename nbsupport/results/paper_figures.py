"""Show a study's images, maps and kernels as the paper's figures; `plots` draws them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from ..attacks.adaptive import chain
from ..attacks.pgd import pgd
from ..classifiers.models import predicted_classes
from ..denoisers.filtering import uncertainty_map
from ..denoisers.models import KernelDenoiser
from ..experiments.artifacts import Experiment
from ..experiments.evaluation import measure, quality
from ..study import short
from .plots import SHARES, SIGNED, Image, Map, Panel, add_bands, draw_panels, sheet

FUSED = "PA-Filt(L_img)"


def find_fooled(experiment: Experiment, eps: float, number: int) -> list[int]:
    """The first test images that are classified correctly when clean, and wrongly under `eps`.

    Where there are fewer than `number`, other images follow. No denoiser influences the choice.
    """
    correct = measure(experiment, "attacked")["accuracy"]
    fooled = correct[0] & ~correct[experiment.study.evaluated_eps.index(eps)]
    return sorted(range(len(fooled)), key=lambda image: not fooled[image])[:number]


def label_images(experiment: Experiment, images: Sequence[int]) -> dict[str, int]:
    """Test images under the labels of a slider: number and true class."""
    test = experiment.images("test")
    return {f"no. {image}, “{test.classes[test.labels[image]]}”": image for image in images}


# -- one test image, clean, attacked and denoised --------------------------------------------------


class Picture(NamedTuple):
    """A named image with its prediction, or a named map of W, and a number as text."""

    name: str
    pixels: Image | Map
    word: str | None
    note: str

    @property
    def panel(self) -> Panel:
        text = ", ".join(filter(None, (self.word and f"“{self.word}”", self.note)))
        return self.pixels, f"{self.name}\n{text}", SHARES if self.word is None else {}


def _attacked(experiment: Experiment, image: int, eps: float) -> Float[Tensor, "1 3 h w"]:
    return experiment.attacked("test").at(eps)[image : image + 1].to(experiment.device)


def _predict(experiment: Experiment, images: Mapping[str, Tensor]) -> list[Picture]:
    """Images with their predictions and PSNR against the first, the clean one."""
    batch = torch.cat([*images.values()])
    words = predicted_classes(experiment.classifier(), batch, experiment.images("test").classes)
    psnr, _ = quality(batch, batch[:1].expand_as(batch))
    notes = [f"{value:.1f} dB" if value < torch.inf else "" for value in psnr.tolist()]
    return [Picture(*each) for each in zip(images, batch.cpu(), words, notes, strict=True)]


@torch.no_grad()
def show_before_after(experiment: Experiment, method: str, image: int, eps: float) -> Figure:
    """One test image clean, attacked and denoised, and its perturbation from −ε to ε."""
    clean, hat = _attacked(experiment, image, 0.0), _attacked(experiment, image, eps)
    images = {"clean": clean, f"attacked, ε = {short(eps)}": hat}
    images[method] = experiment.denoiser(method)(hat)
    panels = [picture.panel for picture in _predict(experiment, images)]
    limits = SIGNED | {"vmin": -max(eps, 1e-6), "vmax": max(eps, 1e-6)}
    panels.insert(2, ((hat - clean)[0].mean(dim=0), "perturbation\n−ε … ε", limits))
    return draw_panels([panels], size=(2.1, 2.5))


@torch.no_grad()
def show_both_attackers(experiment: Experiment, method: str, image: int, eps: float) -> Figure:
    """One test image under gray-box and white-box attack, before and after the denoiser."""
    study, classifier = experiment.study, experiment.classifier()
    denoiser, clean = experiment.denoiser(method), _attacked(experiment, image, 0.0)
    label = experiment.images("test").labels[image : image + 1].to(clean.device)
    images = {"clean": clean}
    for name, network in (("gray-box", classifier), ("white-box", chain(denoiser, classifier))):
        images[name] = pgd(network, clean, label, eps, steps=study.steps, seed=study.seed)
        images[f"{name}, denoised"] = denoiser(images[name])
    panels = [picture.panel for picture in _predict(experiment, images)]
    return draw_panels([panels], [f"ε = {short(eps)}"], size=(1.95, 2.35))


@torch.no_grad()
def compute_pictures(experiment: Experiment, image: int, eps: float) -> list[Picture]:
    """Fig. 3: clean, attacked, Ĩ_sl, Ĩ_m, W and Ĩ of one test image; W's number is its mean."""
    clean, hat = _attacked(experiment, image, 0.0), _attacked(experiment, image, eps)
    pa_filter: Any = experiment.denoiser(FUSED)
    parts = pa_filter.parts(hat)
    images = {"clean I": clean, "attacked Î": hat, "Ĩ_sl": parts.sl, "Ĩ_m": parts.m}
    pictures = _predict(experiment, images | {"Ĩ": pa_filter(hat)})
    mean = f"mean {float(parts.weight.mean()):.2f}"
    pictures.insert(4, Picture("W", parts.weight[0, 0].cpu(), None, mean))
    return pictures


def render_frames(
    experiment: Experiment, image: int
) -> tuple[UInt8[np.ndarray, "height width 3"], dict[str, Any]]:
    """A row of Fig. 3 per strength, for a slider in a page that computes nothing.

    Returns a sheet of square pictures, a row per strength of the study and a column per name, and
    its index: their `size` in pixels, `names`, `words` (None for a map) and `notes`.
    """
    study, test = experiment.study, experiment.images("test")
    rows = [compute_pictures(experiment, image, eps) for eps in study.evaluated_eps]
    names, _, words, notes = zip(*(zip(*row, strict=True) for row in rows), strict=True)
    truth = str(test.classes[test.labels[image]])
    index = {"size": study.image_size, "image": image, "truth": truth, "eps": study.evaluated_eps}
    index |= {"names": names[0], "words": words, "notes": notes}
    return np.block([[[to_8_bit(picture.pixels)] for picture in row] for row in rows]), index


def to_8_bit(picture: Image | Map) -> UInt8[np.ndarray, "h w 3"]:
    """Convert an image in [0, 1], or a map of W in the figures' colours, to 8 bits."""
    values = picture.numpy()
    if values.ndim == 2:
        return matplotlib.colormaps[SHARES["cmap"]](values, bytes=True)[..., :3]
    return (255 * values.transpose(1, 2, 0).clip(0, 1)).round().astype(np.uint8)


# -- what the networks predict: Fig. 1, 2 and 4 ----------------------------------------------------


@torch.no_grad()
def show_architectures(experiment: Experiment, image: int, eps: float) -> Figure:
    """Fig. 1: (a) additive, (b) filtering, (c) perturbation-aware filtering of one attacked image.

    Everything drawn is what the trained networks predict for this image.
    """
    hat = _attacked(experiment, image, eps)
    denoisers: Any = map(experiment.denoiser, ("Add(L_img)", "Filt(L_img)", FUSED))
    adding, filtering, pa_filter = denoisers
    summed, parts = adding(hat), pa_filter.parts(hat)
    residual = (summed - hat)[0].mean(dim=0)
    largest = max(float(residual.abs().max()), 1e-6)
    signed = SIGNED | {"vmin": -largest, "vmax": largest}
    taps = map(lay_out_kernels, (filtering.kernels(hat), parts.kernels_sl, parts.kernels_m))
    paths = (
        ("(a)", "φ", residual, signed, f"φ(Î), up to ±{largest:.1g}", "+ Î", summed, "denoised Ĩ"),
        ("(b)", "φ", next(taps), SIGNED, "φ(Î): kernels", "⊗ Î", filtering(hat), "denoised Ĩ"),
        ("(c)", "φ_sl", next(taps), SIGNED, "φ_sl(Î)", "⊗ Î", parts.sl, "Ĩ_sl"),
        ("(c)", "φ_m", next(taps), SIGNED, "φ_m(Î)", "⊗ Î", parts.m, "Ĩ_m"),
    )
    rows: list[list[Panel]] = []
    for letter, network, predicted, look, title, sign, output, name in paths:
        start: Panel = hat[0], f"{letter} attacked Î", {}
        end: Panel = output[0], name, {}
        rows.append([start, f"{network}\n⟶", (predicted, title, look), f"{sign}\n⟶", end])
    maps = torch.cat([parts.uncertainty_sl, parts.uncertainty_m])[:, 0]
    u_sl, u_m = zip(maps, ("U_sl", "U_m"), [_one_scale(maps)] * 2, strict=True)
    weight = parts.weight[0, 0], "W", SHARES
    rows[2] += ["", u_sl, "C\n⟶", weight, "⟶", (pa_filter(hat)[0], "denoised Ĩ", {})]
    rows[3] += ["", u_m, "C\n↗", "", "", "Ĩ =\nW ⊙ Ĩ_sl\n+ (1 − W) ⊙ Ĩ_m"]
    return draw_panels(rows, size=(1.4, 1.6))


def lay_out_kernels(
    kernels: Float[Tensor, "1 taps h w"], pixels: int = 4
) -> Float[Tensor, "height width"]:
    """Lay out the green kernels of `pixels` × `pixels` evenly spaced pixels side by side."""
    size, (height, width) = math.isqrt(kernels.shape[1] // 3), kernels.shape[-2:]
    rows, columns = (torch.linspace(0, side - 1, pixels).long() for side in (height, width))
    taps = kernels.view(3, size, size, height, width)[1][:, :, rows][..., columns]
    framed = torch.nn.functional.pad(taps.permute(2, 3, 0, 1), (0, 1, 0, 1), value=float("nan"))
    return framed.permute(0, 2, 1, 3).reshape(pixels * (size + 1), -1)[:-1, :-1]


def _one_scale(maps: Float[Tensor, "n h w"]) -> dict[str, Any]:
    low, high = maps.aminmax()
    return {"cmap": "viridis", "vmin": float(low), "vmax": float(high)}


@sheet()
@torch.no_grad()
def show_uncertainty(experiment: Experiment, image: int) -> Figure:
    """Fig. 2: a test image over ε, its uncertainty maps (eq. 9), and all images' means."""
    eps, filtering = experiment.study.evaluated_eps, experiment.denoiser("Filt(L_img)")
    assert isinstance(filtering, KernelDenoiser)
    images = torch.cat([_attacked(experiment, image, strength) for strength in eps])
    maps = uncertainty_map(filtering.kernels(images))[:, 0]
    rows: list[list[Panel]] = [
        [(hat, short(strength), {}) for hat, strength in zip(images, eps, strict=True)],
        [(each, "", _one_scale(maps)) for each in maps],
        [],
    ]
    figure = draw_panels(rows, size=(1.0, 1.53), height_ratios=(1, 1, 1.9))
    last = figure.axes[2 * len(eps) - 1]
    figure.colorbar(last.images[0], ax=last, fraction=0.1, aspect=9, label="uncertainty")
    below: Any = figure.add_subplot(last.get_gridspec()[2, :])
    means = measure(experiment, "Filt(L_img)")["uncertainty"]
    add_bands(below, eps, {"Filt(L_img)": means}, "mean uncertainty of an image")
    below.legend(loc="best")
    return figure


@torch.no_grad()
def show_kernels(
    experiment: Experiment, method: str, image: int, strengths: Sequence[float],
    pixels: Mapping[str, tuple[int, int]],
) -> Figure:  # fmt: skip
    """Fig. 4: a test image under each ε, and a filtering method's three kernels at some pixels.

    `pixels` maps a mark's colour to (row, column). Raises `IndexError` if that is outside of the
    image, and `ValueError` if the method does not filter.
    """
    denoiser, side = experiment.denoiser(method), experiment.study.image_size
    if not isinstance(denoiser, KernelDenoiser):
        raise ValueError(f"kernels: expected a method that filters, got {method!r}")
    rows: list[list[Panel]] = []
    for eps in strengths:
        hat = _attacked(experiment, image, eps)
        kernels = denoiser.kernels(hat)[0]
        size = math.isqrt(len(kernels) // 3)
        rows.append([(hat[0], f"ε = {short(eps)}", {})])
        for row, column in pixels.values():
            if not (0 <= row < side and 0 <= column < side):
                raise IndexError(f"pixel {row, column} is outside of the {side} × {side} image")
            taps = kernels[:, row, column].view(3, size, size)
            names = (f"{row, column}\n{channel}" for channel in ("red", "green", "blue"))
            rows[-1] += zip(taps, names, [SIGNED] * 3, strict=True)
    figure = draw_panels(rows, size=(1.55, 1.85), bar="weight of a tap")
    for axis in figure.axes[: -1 : len(rows[0])]:
        for colour, (row, column) in pixels.items():
            axis.plot(column, row, "s", ms=7, mfc="none", mec=colour, mew=2)
    return figure
