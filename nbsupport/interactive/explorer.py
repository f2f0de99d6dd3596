"""The explorer: one screen for one image, one strength, one method, and one pixel; `explorer.js` draws it.

Everything is computed before (`nbsupport.interactive.exploration`); a callback only looks up and colours.
"""

import threading
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import anywidget
import matplotlib
import numpy as np
import traitlets
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..results.style import COLOURS
from ..study import EPS, eps_label
from .exploration import ATTACKED, Exploration


def _picture(image: Float[Tensor, "3 h w"]) -> dict[str, Any]:
    """Pixels as a browser draws them: RGBA, row by row."""
    values = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    opaque = np.full((*values.shape[:2], 1), 255, np.uint8)
    return _sized(np.concatenate([values, opaque], axis=2))


def _map(values: Float[Tensor, "h w"], low: float, high: float, colours: str) -> dict[str, Any]:
    scaled = (values.numpy() - low) / max(high - low, 1e-12)
    return _sized(matplotlib.colormaps[colours](scaled, bytes=True))


def _sized(pixels: np.ndarray) -> dict[str, Any]:
    return {
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "rgba": np.ascontiguousarray(pixels).tobytes(),
    }


class Explorer(anywidget.AnyWidget):
    """See `nbsupport.interactive.widgets.explore`.

    Attributes
    ----------
    image, strength, method, row, column
        What is chosen: numbers of the image and of the strength, the method, the pixel.
    again
        Counted up in the browser to have the image attacked from another random start.
    busy, message
        Whether that goes on; what went wrong.
    answers
        Counted up with every choice that was seen to; until then the browser says that it waits.
    shown
        The screen for what is chosen.
    curves
        Accuracy on the images over ε, for each method.
    fixed
        What does not change: labels, thumbnails, the curves' colours.
    """

    _esm = files(__package__).joinpath("explorer.js").read_text(encoding="utf-8")
    _css = files(__package__).joinpath("explorer.css").read_text(encoding="utf-8")

    image = traitlets.Int(0).tag(sync=True)
    strength = traitlets.Int(0).tag(sync=True)
    method = traitlets.Unicode(ATTACKED).tag(sync=True)
    row = traitlets.Int(0).tag(sync=True)
    column = traitlets.Int(0).tag(sync=True)
    again = traitlets.Int(0).tag(sync=True)
    busy = traitlets.Bool(False).tag(sync=True)
    message = traitlets.Unicode("").tag(sync=True)
    answers = traitlets.Int(0).tag(sync=True)
    shown = traitlets.Dict().tag(sync=True)
    curves = traitlets.Dict().tag(sync=True)
    fixed = traitlets.Dict().tag(sync=True)

    def __init__(self, exploration: Exploration) -> None:
        self.exploration = exploration
        methods = list(exploration.denoisers)
        self._limits = {method: exploration.limits(method) for method in methods}
        super().__init__(strength=(len(exploration.eps) + 1) // 2, method=methods[-1])
        height, width = exploration.attacked.images.shape[-2:]
        self.row, self.column = height // 2, width // 2
        self.fixed, self.curves = self._fixed(), exploration.accuracy()
        self.observe(self._show, ["image", "strength", "method", "row", "column"])
        self.observe(self._attack_again, ["again"])
        self._show()

    def _fixed(self) -> dict[str, Any]:
        part, eps = self.exploration.attacked, self.exploration.eps
        return {
            "thumbnails": [_picture(image) for image in part.images],
            "names": [self.exploration.word(int(label)) for label in part.labels],
            "eps": [eps_label(strength) for strength in eps],
            "methods": list(self.exploration.denoisers),
            "colours": {
                method: COLOURS.get(method, "#888888") for method in self.exploration.denoisers
            },
        }

    def _show(self, change: Any = None) -> None:
        # An exception in a callback is visible nowhere in JupyterLab, so it is shown where the person looks.
        try:
            self.shown = self._screen()
            self.message = ""
        except Exception as error:
            self.message = f"{type(error).__name__}: {error}"
        self.answers += 1

    def _screen(self) -> dict[str, Any]:
        found, at, eps = self.exploration, self.strength, self.exploration.eps[self.strength]
        clean, frame = found.attacked.images[self.image], found.frames[self.image, at, self.method]
        before = found.frames[self.image, at, ATTACKED]
        truth = found.word(int(found.attacked.labels[self.image]))
        change = (before.denoised - clean) / (2 * eps) + 0.5 if eps else clean * 0 + 0.5
        pictures = {
            "clean": _picture(clean),
            "attacked": _picture(before.denoised),
            "perturbation": _picture(change),
            "denoised": _picture(frame.denoised),
        }
        for name in frame.maps:
            low, high = (0.0, 1.0) if name == "W" else self._limits[self.method]
            pictures[name] = _map(
                frame.maps[name], low, high, "cividis" if name == "W" else "viridis"
            )
        return {
            "pictures": pictures,
            "truth": truth,
            "before": found.top(self.image, at, ATTACKED),
            "after": found.top(self.image, at, self.method),
            "quality": [
                [name, *_quality(part)]
                for name, part in {"attacked": before, "denoised": frame}.items()
            ],
            "kernels": [self._kernels(name) for name in frame.kernels],
        }

    def _kernels(self, name: str) -> dict[str, Any]:
        taps = self.exploration.frames[self.image, self.strength, self.method].kernels[name]
        at = taps[:, self.row, self.column].float()
        size = round((len(at) / 3) ** 0.5)
        values = [_map(kernel, -1.2, 1.2, "RdBu_r") for kernel in at.view(3, size, size)]
        return {
            "name": name,
            "sums": [f"{float(kernel.sum()):.2f}" for kernel in at.view(3, -1)],
            "kernels": values,
        }

    def _attack_again(self, change: Any) -> None:
        # In a thread, so that the kernel goes on answering the browser.
        self.answers += 1
        if not self.busy:
            self.busy = True
            threading.Thread(
                target=self._attack, args=(self.image, self.strength), daemon=True
            ).start()

    def _attack(self, image: int, strength: int) -> None:
        try:
            self.exploration.attack_again(image, strength)
            self.curves = self.exploration.accuracy()
            self._show()
        except Exception as error:
            self.message = f"{type(error).__name__}: {error}"
        finally:
            self.busy = False


def _quality(frame: Any) -> list[str]:
    return ["∞ dB" if frame.psnr == float("inf") else f"{frame.psnr:.1f} dB", f"{frame.ssim:.3f}"]


def explore(
    classifier: nn.Module,
    denoisers: Mapping[str, nn.Module],
    images: Float[Tensor, "n 3 h w"],
    labels: Int[Tensor, "n"],
    classes: Sequence[str] = (),
    *,
    eps: Sequence[float] = EPS,
) -> Explorer:
    """Images, attacks and denoisers on one screen.

    Choose an image, a strength and a method; see the image clean, attacked and denoised, the perturbation, the
    weight W and the uncertainty maps, what the classifier thinks, and by a click the kernels of a pixel. Everything
    is computed now, with a progress bar; interrupted, it shows the images that are done.

    Parameters and refusals are those of `nbsupport.interactive.exploration.Exploration`.
    """
    return Explorer(Exploration(classifier, denoisers, images, labels, classes, eps=eps))
