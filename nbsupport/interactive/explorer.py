"""Attacks, denoised images and kernels, computed first and then explored on one screen."""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, NamedTuple

import anywidget
import matplotlib
import numpy as np
import pandas as pd
import torch
import traitlets
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..attacks.pgd import pgd
from ..classifiers.custom import wrap
from ..classifiers.models import Classifier
from ..data.images import AnyLabels, Images, Labels, check_images, check_labels
from ..denoisers.filtering import uncertainty_map
from ..denoisers.models import KernelDenoiser, PAFilter
from ..experiments.evaluation import quality
from ..experiments.methods import COLOURS
from ..study import EPS, eps_label

ATTACKED = "attacked"  # the method without a denoiser
MOST_GIB = 4.0


class Frame(NamedTuple):
    """One image under one attack behind one denoiser, on the CPU."""

    pictures: dict[str, Tensor]  # Ĩ, and the maps that the denoiser has
    kernels: dict[str, Tensor]  # (3·K·K, h, w) for each filter, in half precision
    probabilities: Tensor
    correct: float
    psnr: float
    ssim: float


@dataclass
class Exploration:
    """A `Frame` of every image at every strength behind every denoiser, computed at the start."""

    classifier: Classifier
    denoisers: dict[str, nn.Module]
    images: Images
    labels: Labels
    eps: tuple[float, ...]
    seed: int = 0
    frames: dict[tuple[int, int, str], Frame] = field(default_factory=dict)  # image, ε, method

    def __post_init__(self) -> None:
        self._check_memory()
        try:
            for number in tqdm(range(len(self.images)), "attacking", leave=False, unit="image"):
                self._attack(number, list(range(len(self.eps))))
        except KeyboardInterrupt:  # keeps the images that are done
            if not self.frames:
                raise
        done = len(self.frames) // (len(self.eps) * len(self.denoisers))
        self.images, self.labels = self.images[:done], self.labels[:done]

    def attack_again(self, image: int, strength: int) -> None:
        """Attack and denoise one image at one strength from another random start."""
        self.seed += 1
        self._attack(image, [strength])

    def accuracy(self) -> dict[str, list[float]]:
        """The accuracy of each method on these images at every strength."""
        correct: Any = pd.Series({key: frame.correct for key, frame in self.frames.items()})
        return correct.groupby(level=[1, 2]).mean().unstack().to_dict("list")

    def limits(self, method: str) -> tuple[float, float]:
        """The range of a method's uncertainty maps, so that all share one scale."""
        views = [frame.pictures for key, frame in self.frames.items() if key[2] == method]
        maps = [map for view in views for name, map in view.items() if name[0] == "u"]
        low, high = torch.stack(maps or [torch.tensor([0.0, 1.0])]).aminmax()
        return float(low), float(high)

    @torch.no_grad()
    def _attack(self, number: int, strengths: list[int]) -> None:
        clean = self.images[number].to(self.classifier.mean).expand(len(strengths), -1, -1, -1)
        labels = self.labels[number].to(clean.device).expand(len(strengths))
        eps = torch.tensor(self.eps)[strengths].to(clean)
        hats = pgd(self.classifier, clean, labels, eps, seed=self.seed)
        frames = {}
        for name, denoiser in self.denoisers.items():
            pictures, kernels = batches = _denoise(denoiser, hats)
            probabilities = self.classifier(pictures["denoised"]).softmax(dim=1)
            correct = (probabilities.argmax(dim=1) == labels).float()
            numbers = torch.stack([correct, *quality(pictures["denoised"], clean)], dim=1).tolist()
            for i, strength in enumerate(strengths):
                views, taps = ({k: each[i].cpu() for k, each in part.items()} for part in batches)
                frame = Frame(views, taps, probabilities[i].cpu(), *numbers[i])
                frames[number, strength, name] = frame
        self.frames |= frames

    @torch.no_grad()
    def _check_memory(self) -> None:
        example = self.images[:1].to(self.classifier.mean)
        views = [view for each in self.denoisers.values() for view in _denoise(each, example)]
        one = sum(tensor.nbytes for view in views for tensor in view.values())
        if (gib := one * len(self.eps) * len(self.images) / 2**30) > MOST_GIB:
            limit = f"expected frames of at most {MOST_GIB:g} GiB, got {gib:.1f}"
            raise ValueError(f"explore: {limit}; pass fewer or smaller images")


def _denoise(denoiser: nn.Module, hats: Images) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Ĩ with the maps that the denoiser has, and its kernels."""
    pictures, kernels = {"denoised": denoiser(hats)}, {}
    if isinstance(denoiser, PAFilter):
        parts = denoiser.parts(hats)
        pictures["W"] = parts.weight
        kernels = {"sl": parts.kernels_sl, "m": parts.kernels_m}
    elif isinstance(denoiser, KernelDenoiser):
        kernels = {"": denoiser.kernels(hats)}
    for name, taps in kernels.items():
        pictures[f"uncertainty, {name}" if name else "uncertainty"] = uncertainty_map(taps)
    return pictures, {name: taps.half() for name, taps in kernels.items()}


def _encode(values: Tensor, low: float = 0, high: float = 1, colours: str = "") -> dict[str, Any]:
    """An RGB image, or a map in colours, as a browser draws it: RGBA, row by row."""
    scaled = (values.permute(1, 2, 0).numpy() - low) / max(high - low, 1e-12)
    if colours:
        pixels = matplotlib.colormaps[colours](scaled[..., 0], bytes=True)
    else:
        rgb = (255 * scaled.clip(0, 1)).round().astype(np.uint8)
        pixels = np.pad(rgb, ((0, 0), (0, 0), (0, 1)), constant_values=255)
    return {"height": len(pixels), "width": len(pixels[0]), "rgba": pixels.tobytes()}


class Explorer(anywidget.AnyWidget):
    """The screen of an `Exploration`: looks up and colours a choice, which `explorer.js` draws."""

    _esm = files(__package__).joinpath("explorer.js").read_text(encoding="utf-8")
    _css = files(__package__).joinpath("explorer.css").read_text(encoding="utf-8")

    image = traitlets.Int(0).tag(sync=True)  # the choice, down to the pixel's column
    strength = traitlets.Int(0).tag(sync=True)
    method = traitlets.Unicode(ATTACKED).tag(sync=True)
    row = traitlets.Int(0).tag(sync=True)
    column = traitlets.Int(0).tag(sync=True)
    again = traitlets.Int(0).tag(sync=True)  # the browser counts up to ask for another attack
    busy = traitlets.Bool(False).tag(sync=True)  # while that attack runs
    message = traitlets.Unicode("").tag(sync=True)  # the last error
    answers = traitlets.Int(0).tag(sync=True)  # counts answered choices; the browser waits for it
    shown = traitlets.Dict().tag(sync=True)  # the screen for the choice
    curves = traitlets.Dict().tag(sync=True)  # each method's accuracy over ε
    fixed = traitlets.Dict().tag(sync=True)  # thumbnails, names and colours

    def __init__(self, exploration: Exploration, classes: Sequence[str] = ()) -> None:
        self.exploration, methods = exploration, list(exploration.denoisers)
        self._limits = {method: exploration.limits(method) for method in methods}
        super().__init__(strength=(len(exploration.eps) + 1) // 2, method=methods[-1])
        self.row, self.column = (side // 2 for side in exploration.images.shape[-2:])
        self.curves = exploration.accuracy()
        self.fixed = {
            "thumbnails": [_encode(image) for image in exploration.images],
            "labels": exploration.labels.tolist(),
            "classes": list(classes),
            "eps": [eps_label(strength) for strength in exploration.eps],
            "colours": {method: COLOURS.get(method, "#888888") for method in methods},
        }
        self.observe(self._show, ["image", "strength", "method", "row", "column"])
        self.observe(self._start_attack, ["again"])
        self._show()

    def _show(self, change: Any = None) -> None:
        # JupyterLab does not show an exception of a callback, so the screen does.
        try:
            self.shown, self.message = self._look_up(), ""
        except Exception as error:
            self.message = f"{type(error).__name__}: {error}"
        self.answers += 1

    def _look_up(self) -> dict[str, Any]:
        source, chosen = self.exploration, (self.image, self.strength)
        attacked, frame = source.frames[*chosen, ATTACKED], source.frames[*chosen, self.method]
        clean, hat = source.images[self.image], attacked.pictures["denoised"]
        change = (hat - clean) / (source.eps[self.strength] or 1)
        pictures = {"clean": _encode(clean), "attacked": _encode(hat)}
        pictures["perturbation"] = _encode(change, -1, 1)
        scales: dict[str, Any] = {"denoised": (), "W": (0, 1, "cividis")}
        for name, values in frame.pictures.items():
            scale = scales.get(name, (*self._limits[self.method], "viridis"))
            pictures[name] = _encode(values, *scale)
        return {
            "pictures": pictures,
            "label": int(source.labels[self.image]),
            "probabilities": [each.probabilities.tolist() for each in (attacked, frame)],
            "quality": [f"{each.psnr:.1f} dB, SSIM {each.ssim:.3f}" for each in (attacked, frame)],
            "kernels": [self._kernels(*filter) for filter in frame.kernels.items()],
        }

    def _kernels(self, name: str, taps: Tensor) -> dict[str, Any]:
        size = math.isqrt(len(taps) // 3)
        kernels = taps[:, self.row, self.column].float().view(3, 1, size, size)
        return {
            "name": name,
            "sums": [f"{float(kernel.sum()):.2f}" for kernel in kernels],
            "kernels": [_encode(kernel, -1.2, 1.2, "RdBu_r") for kernel in kernels],
        }

    def _start_attack(self, change: Any) -> None:
        self.answers += 1
        if not self.busy:
            self.busy, choice = True, (self.image, self.strength)
            # in a thread, so that the kernel keeps answering the browser
            threading.Thread(target=self._attack, args=choice, daemon=True).start()

    def _attack(self, image: int, strength: int) -> None:
        try:
            self.exploration.attack_again(image, strength)
            self.curves = self.exploration.accuracy()
            self._show()
        except Exception as error:
            self.message = f"{type(error).__name__}: {error}"
        finally:
            self.busy = False


def explore(
    classifier: nn.Module, denoisers: Mapping[str, nn.Module], images: Images, labels: AnyLabels,
    classes: Sequence[str] = (), *, eps: Sequence[float] = EPS,
) -> Explorer:  # fmt: skip
    """Show images, attacks, denoised images and kernels on one screen, all computed now.

    Images are RGB in [0, 1], denoisers in evaluation mode; `classifier` returns logits. An
    interruption keeps the images that are done. Raises `ValueError` or `TypeError` if images,
    labels or classifier are refused, the strengths do not rise from 0, or the frames exceed 4 GiB.
    """
    check_images(images, caller="explore")
    labels = check_labels(labels, images=images, classes=None, caller="explore")
    if not (len(eps) > 1 and eps[0] == 0 and list(eps) == sorted(set(eps)) and eps[-1] <= 1):
        raise ValueError(f"explore: expected at least two strengths from 0 up to 1, got {eps}")
    if not isinstance(classifier, Classifier):
        classifier = wrap(classifier, images, labels)
    methods = {ATTACKED: nn.Identity(), **denoisers}
    return Explorer(Exploration(classifier, methods, images, labels, tuple(eps)), classes)
