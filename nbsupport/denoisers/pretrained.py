"""Small trained networks that come with the package, and images to try them on."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import foolbox
from safetensors.torch import load_model
from torch import nn

from ..classifiers.models import Classifier, build
from ..data.benchmarks import CLASSES
from ..data.images import Split
from . import models
from .models import CONFIG, WEIGHTS, Denoiser, read_config

FOLDER = Path(str(files(__package__))) / "weights"
DENOISERS = ("HGD", "Additive", "Filtering", "MultiHead", "YNet", "PAFilter")


def names() -> list[str]:
    """List the networks that come with the package."""
    return sorted(path.name for path in FOLDER.iterdir())


def load_pretrained(name: str | Path) -> Classifier | Denoiser:
    """Load a trained network in evaluation mode, frozen, on the CPU.

    `name` is one of `names`: ``"cifar10-classifier"`` or a denoiser trained for it, such as
    ``"cifar10-Filt(L_img)"``; or the folder of a denoiser of your own, see `Denoiser`. Raises
    `ValueError` if there is no such network or it was altered.
    """
    folder = _folder(name)
    config = read_config(folder)
    if config["class"] in DENOISERS:
        return getattr(models, config["class"]).from_pretrained(folder)
    if config["class"] != "Classifier":
        raise ValueError(f"{folder}: load it with {config['class']}.from_pretrained")
    classifier = build(config["name"], config["classes"], config["image_size"])
    load_model(classifier, folder / WEIGHTS)
    return classifier.eval().requires_grad_(False)


def about(name: str | Path) -> dict[str, Any]:
    """Return what is recorded about a network of `load_pretrained`.

    For those of `names`: ``study`` and ``specification`` define the training, ``again`` repeats it,
    ``accuracy`` is that under gray-box PGD by ε, on ``samples`` and the study's ``test`` images.
    """
    record: dict[str, Any] = read_config(_folder(name))["about"]
    return record


def _folder(name: str | Path) -> Path:
    folder = FOLDER / name if name in names() else Path(name)
    if not (folder / CONFIG).is_file():
        raise ValueError(f"no pretrained network {str(name)!r}; choose from {', '.join(names())}")
    return folder


def samples() -> Split:
    """Return the 20 CIFAR-10 images that come with Foolbox, in [0, 1]."""
    model = foolbox.PyTorchModel(nn.Identity().eval(), bounds=(0, 1), device="cpu")
    images, labels = foolbox.samples(model, dataset="cifar10", batchsize=20)
    origin = {"data": "cifar10", "source": "foolbox.samples", "images": len(images)}
    return Split(images, labels, CLASSES["cifar10"], origin)
