"""Attacks, denoised images and kernels on one screen, computed while one looks at it.

Run as a module, it writes the explorer of the pretrained networks as a page.
"""

import atexit
import io
import math
import sys
import threading
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from queue import Queue
from typing import Any, NamedTuple

import ipywidgets
import matplotlib
import numpy as np
import torch
import traitlets
from matplotlib.markers import MarkerStyle
from PIL import Image, ImageOps
from torch import Tensor, nn

from ..attacks.pgd import pgd
from ..classifiers.custom import wrap
from ..classifiers.models import Classifier, check_mode
from ..data.images import AnyLabels, Images, Labels, check_images, check_labels
from ..denoisers.baselines import BASELINES, Baseline
from ..denoisers.filtering import filter_pixels, uncertainty_map
from ..denoisers.models import KernelDenoiser, PAFilter, View
from ..denoisers.pretrained import load_pretrained, samples
from ..experiments.evaluation import quality
from ..experiments.methods import COLOURS, DASHES, MARKERS
from ..study import EPS, eps_label
from .widgets import Screen, embed

ATTACKED = "attacked"  # the method without a denoiser
FIRST = 3  # denoisers that are computed first
STRENGTHS = tuple(sorted({*EPS, 8 / 255}))
MOST_GIB = 4.0  # of frames in memory
MOST_BYTES = 2**24  # of pieces that are sent unasked, and in a page
Piece = tuple[dict[str, Any], bytes]
Task = tuple[int, Any]  # an image, and a method to compute or a strength to attack at again
TOP = 5  # classes
LIMITS = {"W": (0.0, 1.0), "perturbation": (-128 / 127, 1.0)}  # where 0 is a byte
GRID = 8  # pixels in each direction, whose kernels are sent with the pictures


class Frame(NamedTuple):
    """One image under one attack behind one denoiser, on the CPU."""

    pictures: dict[str, Tensor]  # Ĩ, and the maps that the denoiser has
    kernels: dict[str, Tensor]  # (3·K·K, h, w) for each filter, in half precision
    probabilities: Tensor
    psnr: float
    ssim: float


@dataclass
class Exploration:
    """A `Frame` of every image at every strength behind every denoiser, made piece by piece."""

    classifier: Classifier
    denoisers: dict[str, nn.Module]
    images: Images
    labels: Labels
    eps: tuple[float, ...]
    seed: int = 0
    frames: dict[tuple[int, int, str], Frame] = field(default_factory=dict)  # image, ε, method

    def __post_init__(self) -> None:
        example = self._put(self.images[:1])
        with torch.no_grad():
            views = {name: _denoise(each, example) for name, each in self.denoisers.items()}
        parts = [part for view in views.values() for part in view]
        one = sum(tensor.nbytes for part in parts for tensor in part.values())
        if (gib := one * len(self.eps) * len(self.images) / 2**30) > MOST_GIB:
            limit = f"expected frames of at most {MOST_GIB:g} GiB, got {gib:.1f}"
            raise ValueError(f"explore: {limit}; pass fewer or smaller images")
        self.maps = {name: [*pictures][1:] for name, (pictures, _) in views.items()}
        self.filters = {name: [*kernels] for name, (_, kernels) in views.items()}
        self.step = math.ceil(max(self.images.shape[-2:]) / GRID)  # between the grid's pixels

    def compute(self, image: int, method: str) -> None:
        """Attack an image, and denoise it at all strengths, unless that is done."""
        strengths = list(range(len(self.eps)))
        if (image, 0, ATTACKED) not in self.frames:
            self._attack(image, strengths, [ATTACKED])
        if (image, 0, method) not in self.frames:
            frames = [self.frames[image, strength, ATTACKED] for strength in strengths]
            hats = torch.stack([frame.pictures["denoised"] for frame in frames])
            self._add(image, strengths, method, self._put(hats))

    def attack_again(self, image: int, strength: int) -> list[str]:
        """Attack an image at one strength from another random start; return the methods there."""
        methods = [name for name in self.denoisers if (image, strength, name) in self.frames]
        self.seed += 1
        self._attack(image, [strength], methods)
        return methods

    @torch.no_grad()
    def add(self, picture: Image.Image) -> int:
        """Append an own picture, cut and resized, under the class that it is given now."""
        height, width = self.images.shape[-2:]
        array = np.asarray(ImageOps.fit(picture.convert("RGB"), (width, height)))
        image = torch.tensor(array).permute(2, 0, 1)[None] / 255
        label = self.classifier(self._put(image)).argmax(dim=1).cpu()
        self.images, self.labels = torch.cat([self.images, image]), torch.cat([self.labels, label])
        return len(self.images) - 1

    @torch.no_grad()
    def order(self, strength: int, method: str) -> list[int]:
        """All images, first the first that is fooled and repaired, then the first that is not."""
        clean, eps = self._put(self.images), self.eps[strength]
        hats = pgd(self.classifier, clean, self.labels.to(clean.device), eps, seed=self.seed)
        batches = clean, hats, self.denoisers[method](hats)
        classes = torch.stack([self.classifier(batch).argmax(dim=1).cpu() for batch in batches])
        before, attacked, after = classes == self.labels
        fooled = before & ~attacked
        groups = fooled & after, fooled & ~after
        first = [image for group in groups for image in group.nonzero().flatten().tolist()[:1]]
        return [*first, *(image for image in range(len(clean)) if image not in first)]

    def pack(self, image: int, method: str) -> Piece:
        """The frames of an image behind a denoiser: what is read, and what is drawn, compressed.

        Drawn are images, less the attacked ones (those less the clean one), maps and the grid's
        kernels, less those at the ε before.
        """
        frames = [self.frames[image, strength, method] for strength in range(len(self.eps))]
        views = {k: torch.stack([each.pictures[k] for each in frames]) for k in frames[0].pictures}
        pictures, clean, limits, scales = views.pop("denoised"), self.images[image], [], []
        hats = [self.frames[image, s, ATTACKED].pictures["denoised"] for s in range(len(self.eps))]
        before = torch.stack(hats)
        if method == ATTACKED:
            eps = torch.tensor(self.eps).clamp(min=1e-12).view(-1, 1, 1, 1)
            views["perturbation"] = ((pictures - clean) / eps).mean(dim=1, keepdim=True)
            before = clean.expand_as(pictures)
        parts = [_to_bytes(pictures) - _to_bytes(before)]
        for name, map in views.items():
            limits.append(LIMITS.get(name) or (float(map.min()), float(map.max())))
            parts.append(_differ(_to_bytes(map, *limits[-1])))
        for name in frames[0].kernels:
            taps = torch.stack([frame.kernels[name] for frame in frames]).float()
            taps = taps[..., :: self.step, :: self.step].permute(0, 2, 3, 1)
            scales.append(float(taps.abs().max()))
            roots = taps.sign() * (taps.abs() / max(scales[-1], 1e-12)).sqrt()
            parts.append(_differ((127 * roots).round().to(torch.int8).numpy().view(np.uint8)))
        label, top = int(self.labels[image]), []
        for frame in frames:
            best = frame.probabilities.topk(min(TOP, len(frame.probabilities))).indices.tolist()
            best = best if label in best else [*best[:-1], label]
            top.append([(each, round(float(frame.probabilities[each]), 4)) for each in best])
        psnr = [None if frame.psnr == math.inf else round(frame.psnr, 2) for frame in frames]
        ssim = [round(frame.ssim, 4) for frame in frames]
        read = {"key": [image, method], "top": top, "psnr": psnr, "ssim": ssim}
        data = zlib.compress(b"".join(part.tobytes() for part in parts), level=9)
        return read | {"limits": limits, "scales": scales}, data

    def _put(self, images: Tensor) -> Tensor:
        return images.to(self.classifier.mean)

    def _attack(self, image: int, strengths: list[int], methods: list[str]) -> None:
        clean = self._put(self.images[image]).expand(len(strengths), -1, -1, -1)
        labels = self.labels[image].to(clean.device).expand(len(strengths))
        eps = torch.tensor(self.eps)[strengths].to(clean)
        hats = pgd(self.classifier, clean, labels, eps, seed=self.seed)
        for method in methods:
            self._add(image, strengths, method, hats)

    @torch.no_grad()
    def _add(self, image: int, strengths: list[int], method: str, hats: Images) -> None:
        pictures, kernels = batches = _denoise(self.denoisers[method], hats)
        probabilities = self.classifier(pictures["denoised"]).softmax(dim=1)
        clean = self._put(self.images[image]).expand_as(hats)
        numbers = torch.stack(quality(pictures["denoised"], clean), dim=1).tolist()
        for i, strength in enumerate(strengths):
            views, taps = ({k: each[i].cpu() for k, each in part.items()} for part in batches)
            frame = Frame(views, taps, probabilities[i].cpu(), *numbers[i])
            self.frames[image, strength, method] = frame


def _denoise(denoiser: nn.Module, hats: Images) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Ĩ with the maps that the denoiser has, and its kernels."""
    kernels: dict[str, Tensor] = {}
    if isinstance(denoiser, PAFilter):
        parts = denoiser.parts(hats)
        pictures = {"denoised": denoiser.fuse(parts).clamp(0, 1), "W": parts.weight}
        kernels = {"sl": parts.kernels_sl, "m": parts.kernels_m}
    elif isinstance(denoiser, KernelDenoiser):
        kernels = {"": denoiser.kernels(hats)}
        pictures = {"denoised": filter_pixels(hats, kernels[""]).clamp(0, 1)}
    else:
        pictures = {"denoised": denoiser(hats)}
    for name, taps in kernels.items():
        pictures[f"U, {name}" if name else "U"] = uncertainty_map(taps)
    return pictures, {name: taps.half() for name, taps in kernels.items()}


def _to_bytes(values: Tensor, low: float = 0, high: float = 1) -> np.ndarray:
    """Pixels, with their channels last where there are three, from 0 at `low` to 255 at `high`."""
    scaled = (values - low) / max(high - low, 1e-12)
    scaled = scaled.movedim(-3, -1) if values.shape[-3] == 3 else scaled
    return (255 * scaled.clamp(0, 1)).round().byte().numpy()


def _differ(frames: np.ndarray) -> np.ndarray:
    return np.diff(frames, axis=0, prepend=0 * frames[:1])


def _look(method: str) -> dict[str, Any]:
    """How figures draw a method: colour, dashes, and its marker's corners within ±1."""
    marker = MarkerStyle(MARKERS.get(method, "o"))
    corners: Any
    (corners,) = marker.get_path().transformed(marker.get_transform()).to_polygons()
    points = " ".join(f"{2 * x:.2f},{-2 * y:.2f}" for x, y in corners)
    dashes = " ".join(str(2 * length) for length in DASHES.get(method, ()))
    return {"colour": COLOURS.get(method, "#888888"), "dashes": dashes, "marker": points}


class Explorer(Screen):
    """The screen of an `Exploration`, which a thread computes piece by piece.

    A piece is one image behind one denoiser at all strengths. `screen.js` gets it as `pack` makes
    it, and asks only for what nothing holds yet: other pixels, another attack, an own image.
    """

    image = traitlets.Int(0).tag(sync=True)  # the choice, down to the pixel's column
    strength = traitlets.Int(0).tag(sync=True)
    method = traitlets.Unicode(ATTACKED).tag(sync=True)
    row = traitlets.Int(0).tag(sync=True)
    column = traitlets.Int(0).tag(sync=True)
    fixed = traitlets.Dict().tag(sync=True)  # names, looks and sizes
    images: Any = traitlets.List().tag(sync=True)  # labels and pixels, as the thumbnails stand
    progress = traitlets.Dict().tag(sync=True)  # of the thread, and the last error
    upload = traitlets.Instance(ipywidgets.FileUpload).tag(
        sync=True, **ipywidgets.widget_serialization
    )

    def __init__(self, exploration: Exploration, classes: Sequence[str] = ()) -> None:
        self.exploration, methods = exploration, list(exploration.denoisers)
        self.pieces: dict[tuple[int, str], Piece] = {}
        self._waiting, self._paused = deque[Task](), list[Task]()
        self._tokens, self._lock = Queue[None](), threading.RLock()  # a token per task
        strength, method = len(exploration.eps) // 3 + 1, methods[:2][-1]
        order = exploration.order(strength, method)
        row, column = (side // 2 for side in exploration.images.shape[-2:])
        upload = ipywidgets.FileUpload(accept="image/*", description="own image")
        choice = {"image": order[0], "strength": strength, "method": method, "upload": upload}
        fixed = {
            "size": list(exploration.images.shape[-2:]), "step": exploration.step,
            "classes": list(classes), "eps": [eps_label(eps) for eps in exploration.eps],
            "methods": {name: {**_look(name), "maps": exploration.maps[name],
                               "filters": exploration.filters[name]} for name in methods},
            "colours": {name: matplotlib.colormaps[name](range(256), bytes=True)[:, :3].tobytes()
                        for name in ("viridis", "cividis", "RdBu_r")},
        }  # fmt: skip
        images = [self._describe(number) for number in order]
        super().__init__(row=row, column=column, fixed=fixed, images=images, **choice)
        self.upload.observe(self._load, "value")
        self.on_msg(self._answer)
        self._ended, self._thread = False, threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        atexit.register(self._end)
        for part in (methods[: 1 + FIRST], methods[1 + FIRST :]):
            self._start(*product(order, part))

    def page_state(self) -> dict[str, Any]:
        self._tokens.join()
        names = ("strength", "method", "row", "column", "fixed", "progress")
        state, kept = {name: getattr(self, name) for name in names}, list[Piece]()
        for image in [each["number"] for each in self.images]:  # as many as fit
            pieces = [piece for (number, _), piece in self.pieces.items() if number == image]
            if not kept or sum(len(data) for _, data in kept + pieces) <= MOST_BYTES:
                kept += pieces
        if not kept:
            raise RuntimeError(f"explore: nothing was computed; {self.progress['error']}")
        there = {read["key"][0] for read, _ in kept}
        images = [each for each in self.images if each["number"] in there]
        return state | {"image": images[0]["number"], "images": images, "pieces": kept}

    def _describe(self, number: int, own: bool = False) -> dict[str, Any]:
        pixels = _to_bytes(self.exploration.images[number]).tobytes()
        label = int(self.exploration.labels[number])
        return {"number": number, "label": label, "pixels": pixels, "own": own}

    # -- in the thread -----------------------------------------------------------------------------

    def _start(self, *tasks: Task, now: bool = False) -> None:
        (self._waiting.extendleft if now else self._waiting.extend)(tasks[:: -1 if now else 1])
        for _ in tasks:
            self._tokens.put(None)
        self._report()

    def _end(self) -> None:
        """Let the thread finish its piece: PyTorch aborts a process that ends in the middle."""
        self._ended = True
        self._tokens.put(None)
        self._thread.join(timeout=30)

    def _work(self) -> None:
        while True:
            self._tokens.get()
            if self._ended:
                return
            with self._lock:
                tasks = [self._waiting.popleft()] if self._waiting else []
            try:
                for task in tasks:
                    self._do(*task)
                    self._report()
            except Exception as error:
                with self._lock:
                    self._paused += tasks
                    self._pause(f"{type(error).__name__}: {error}")
            self._tokens.task_done()

    def _do(self, image: int, what: Any) -> None:
        again = isinstance(what, int)
        methods = self.exploration.attack_again(image, what) if again else [what]
        if again:
            self.send({"changed": image})
        for method in methods:
            self.exploration.compute(image, method)
            self.pieces[image, method] = self.exploration.pack(image, method)
            self._ship(image, method)
        if again:
            self.send({"attacked": image})

    def _pause(self, error: str = "") -> None:
        self._paused += self._waiting
        self._waiting.clear()
        self._report(error)

    def _report(self, error: str = "") -> None:
        first = list(self.exploration.denoisers)[: 1 + FIRST]
        ready = sum((each["number"], name) in self.pieces for each in self.images for name in first)
        self.progress = {
            "done": len(self.pieces), "waiting": len(self._waiting), "paused": len(self._paused),
            "images": ready // len(first), "error": error,
        }  # fmt: skip

    # -- the browser -------------------------------------------------------------------------------

    def _ship(self, image: int, method: str, asked: bool = False) -> None:
        read, data = self.pieces[image, method]
        whole = asked or sum(len(data) for _, data in self.pieces.values()) <= MOST_BYTES
        self.send({"piece": read}, [data] if whole else None)

    def _answer(self, _: Any, asked: dict[str, Any], buffers: Any = ()) -> None:
        """Do what `screen.js` asks for, and say so; JupyterLab shows no exception of a callback."""
        image, method, failure = asked.get("image", 0), asked.get("method", ATTACKED), ""
        try:
            with self._lock:
                match asked["ask"]:
                    case "hello":
                        for key in list(self.pieces):
                            self._ship(*key)
                    case "piece" if (image, method) in self.pieces:
                        self._ship(image, method, asked=True)
                    case "piece" if (image, method) in self._waiting:
                        self._waiting.remove((image, method))
                        self._waiting.appendleft((image, method))
                    case "kernels":
                        frame = self.exploration.frames[image, asked["strength"], method]
                        taps = [x[:, asked["row"], asked["column"]] for x in frame.kernels.values()]
                        self.send({"kernels": asked}, [x.float().numpy().tobytes() for x in taps])
                    case "attack":
                        self._start((image, asked["strength"]), now=True)
                    case "stop":
                        self._pause()
                    case "go on":
                        tasks, self._paused = self._paused, []
                        self._start(*tasks)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        self.send({"heard": asked["count"], "error": failure})

    def _load(self, change: Any) -> None:
        for file in self.upload.value:
            try:
                number = self.exploration.add(Image.open(io.BytesIO(file["content"])))
            except Exception as error:
                reason = f"expected a picture such as PNG or JPEG, got {file['name']} ({error})"
                return self._report(f"own image: {reason}")
            self.images = [*self.images, self._describe(number, own=True)]
            self._start(*product([number], self.exploration.denoisers), now=True)
            self.image = number


def explore(
    classifier: nn.Module | None = None, denoisers: Mapping[str, nn.Module] | None = None,
    images: Images | None = None, labels: AnyLabels | None = None, classes: Sequence[str] = (),
    *, eps: Sequence[float] = STRENGTHS,
) -> Explorer:  # fmt: skip
    """Show images, attacks, denoised images and kernels on one screen, computed as one looks at it.

    Images are RGB in [0, 1], denoisers in evaluation mode; `classifier` returns logits. Without
    arguments: the pretrained networks on eight CIFAR-10 images. The screen opens a third of the way
    up the strengths, on the first image that the attack fools and the first denoiser repairs;
    beside it stands the first that it does not. The first three denoisers come first. Raises
    `ValueError` or `TypeError` if images, labels or classifier are refused, the strengths do not
    rise from 0, or the frames exceed 4 GiB.
    """
    if classifier is None and denoisers is None and images is None and labels is None:
        return explore(*_pretrained(), eps=eps)
    if classifier is None or images is None or labels is None:
        raise ValueError("explore: expected classifier, images and labels, or no arguments at all")
    check_images(images, caller="explore")
    labels = check_labels(labels, images=images, classes=None, caller="explore")
    if not (len(eps) > 1 and eps[0] == 0 and list(eps) == sorted(set(eps)) and eps[-1] <= 1):
        raise ValueError(f"explore: expected at least two strengths from 0 up to 1, got {eps}")
    if not isinstance(classifier, Classifier):
        classifier = wrap(classifier, images, labels)
    for name, denoiser in (denoisers or {}).items():
        check_mode(denoiser, f"explore, {name}")
    methods = {ATTACKED: nn.Identity(), **(denoisers or {})}
    return Explorer(Exploration(classifier, methods, images, labels, tuple(eps)), classes)


def _pretrained() -> tuple[Any, ...]:
    names = ("PA-Filt(L_img)", "HGD", "Filt(L_img)", "Add(L_img)")
    denoisers: Any = {name: load_pretrained(f"cifar10-{name}") for name in names}
    for part in ("sl", "m"):
        denoisers[f"{names[0]}_{part}"] = View(denoisers[names[0]].ynet, part).eval()
    denoisers |= {name: Baseline(name).eval() for name in BASELINES}
    split = samples()
    some = split.images[:8], split.labels[:8]
    return load_pretrained("cifar10-classifier"), denoisers, *some, split.classes


# -- as a page ------------------------------------------------------------------------------------

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>AdvFilter: an explorer</title>
<meta name="viewport" content="width=device-width">
<style>:root { color-scheme: light dark; font-family: system-ui, sans-serif; }
body { max-width: 1000px; margin: 12px auto; padding: 0 12px; } h1 { font-size: 20px; }</style>
</head><body><h1>An attack, and a filter before the classifier</h1>
<p>Eight CIFAR-10 images under PGD attacks of rising strength ε on a ResNet-20, cleaned by trained
denoisers and by simple filters. The attacker is gray-box: it knows the classifier alone. An
adaptive attacker, who also knows the denoiser, undoes most of what they gain.</p>
"""


def write_page(path: Path) -> None:
    """Write the explorer of the pretrained networks as a page that needs no network or kernel."""
    text = f"{_PAGE}{embed(explore())}</body></html>\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_page(Path(sys.argv[1]))
