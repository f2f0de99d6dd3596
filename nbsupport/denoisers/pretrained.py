"""Small trained networks that come with the package, and the images to try them on before anything is trained."""

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import foolbox
import torch
from torch import Tensor, nn

from ..attacks.pgd import pgd
from ..classifiers.models import Classifier, build
from ..data import published
from ..data.benchmarks import Split
from . import weight_files
from .defended import load_denoiser
from .models import Denoiser

FOLDER = Path(str(files(__package__))) / "weights"
CLASSIFIER = "cifar10-classifier"
SAMPLE_STRENGTHS = (0.0, 3e-3, 1e-2, 3e-2, 0.1)
SAMPLES = 20  # as many as come with Foolbox


def names() -> list[str]:
    """What `load_pretrained` knows."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def load_pretrained(name: str) -> Classifier | Denoiser:
    """A trained network that comes with the package, in evaluation mode, frozen, on the CPU.

    Parameters
    ----------
    name
        One of `names`: ``"cifar10-classifier"``, or a denoiser trained for it, such as
        ``"cifar10-Filt(L_img)"``. What it was made from, how accurate it is and how to train it
        again says `about`.

    Raises
    ------
    ValueError
        If there is none of this name, or its file was altered.
    """
    if _kind(name) == "denoiser":
        return load_denoiser(_file(name))
    record, weights = weight_files.read(_file(name), "classifier")
    classifier = build(**record["arguments"])
    classifier.load_state_dict(weights)
    return classifier.eval().requires_grad_(False)


def about(name: str) -> dict[str, Any]:
    """What is known of a network of `load_pretrained`.

    Its ``specification``; ``accuracy`` by ε, on ``samples`` and on the study's ``test`` images, which PGD
    attacked through the classifier; ``again``, the command that trains it.
    """
    return weight_files.read(_file(name), _kind(name))[0]["about"]


def samples() -> Split:
    """The 20 images of CIFAR-10 that come with Foolbox, in [0, 1]."""
    whole = foolbox.PyTorchModel(nn.Identity().eval(), bounds=(0, 1), device="cpu")
    images, labels = foolbox.samples(whole, dataset="cifar10", batchsize=SAMPLES)
    origin = {"data": "cifar10", "source": "foolbox.samples", "images": SAMPLES}
    return Split(images, labels, published.CLASSES["cifar10"], origin)


@cache
def attacked_samples(classifier: nn.Module) -> Tensor:
    """`samples` under PGD(40, ε), for every strength of `SAMPLE_STRENGTHS`: (strengths, 20, 3, 32, 32)."""
    part = samples()
    return torch.stack([pgd(classifier, part.images, part.labels, eps) for eps in SAMPLE_STRENGTHS])


@torch.no_grad()
def right_on_samples(classifier: Classifier, denoiser: nn.Module) -> list[int]:
    """How many of the 20 `samples` are named correctly, for every strength of `SAMPLE_STRENGTHS`."""
    labels = samples().labels
    return [
        int((classifier(denoiser(hat)).argmax(dim=1) == labels).sum())
        for hat in attacked_samples(classifier)
    ]


def _kind(name: str) -> str:
    return "classifier" if name.endswith("classifier") else "denoiser"


def _file(name: str) -> Path:
    if name not in names():
        raise ValueError(f"load_pretrained: there is no {name!r}; there are: {', '.join(names())}")
    return FOLDER / f"{name}.safetensors"
