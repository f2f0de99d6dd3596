"""A study of a linear classifier and 24 tiny images, whose results have closed forms; and small networks."""

import itertools

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from nbsupport.classifiers.models import Classifier
from nbsupport.data.images import Split
from nbsupport.experiments.adaptive_evaluation import Minimal
from nbsupport.experiments.artifacts import Experiment
from nbsupport.experiments.audit import Audit
from nbsupport.experiments.evaluation import COLUMNS
from nbsupport.experiments.store import Store
from nbsupport.study import EPS as PAPER_EPS
from nbsupport.study import Study

CLASSES, SIDE, NUMBER = 4, 8, 24


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def weights(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


def disturbed(kind, by=0.1, **options):
    """A frozen denoiser away from the identity."""
    torch.manual_seed(0)
    denoiser = kind(width=2, kernel_size=3, **options).eval().requires_grad_(False)
    for parameter in denoiser.parameters():
        parameter += by * torch.randn_like(parameter)
    return denoiser


def linear(seed=0, classes=CLASSES, side=SIDE, scale=10.0):
    """A linear classifier: every image's distance to every class has a closed form."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(3 * side**2, classes)
    layer.weight.data = scale * torch.randn(layer.weight.shape, generator=generator) / side
    layer.bias.data.zero_()
    return Classifier(nn.Sequential(nn.Flatten(), layer)).eval().requires_grad_(False)


def gaps(classifier, images, labels):
    """Per image and other class: by how much it is behind, and its weights minus those of the true class."""
    layer, flat = classifier.network[1], ((images - 0.5) / 0.5).flatten(1).double()
    logits = flat @ layer.weight.T.double() + layer.bias.double()
    weights = 2 * layer.weight.double()  # of images in [0, 1]
    others = [[k for k in range(len(weights)) if k != y] for y in labels.tolist()]
    pairs = list(zip(range(len(flat)), labels.tolist(), others, strict=True))
    behind = torch.stack([logits[i, y] - logits[i, rest] for i, y, rest in pairs])
    return behind, torch.stack([weights[rest] - weights[y] for _, y, rest in pairs])


def radii(classifier, images, labels, norm):
    """Per image the norm of the smallest perturbation that succeeds, far from the borders of [0, 1]; ``norm`` is dual."""
    behind, steps = gaps(classifier, images, labels)
    return (behind / steps.norm(p=norm, dim=2)).amin(dim=1).clamp(min=0)


def pictures(number=NUMBER, seed=1):
    """Grayish, away from the borders of [0, 1]; each leans towards one class of `linear`, more or less so."""
    generator = torch.Generator().manual_seed(seed)
    signs = linear().network[1].weight.sign().view(CLASSES, 3, SIDE, SIDE)
    patterns = signs[torch.arange(number) % CLASSES]
    lean = 0.02 + 0.1 * torch.rand(number, 1, 1, 1, generator=generator)
    return 0.5 + lean * patterns * torch.rand(patterns.shape, generator=generator)


STUDY = Study.named(
    "photographs", "smoke", test_images=NUMBER, adaptive_images=12, image_size=SIDE, eps=(0.0, 0.02, 0.1, 0.5), steps=5,
    adaptive_steps=30, adaptive_iterations=10, adaptive_queries=50,
    audit_images=12, audit_eps=(0.02, 0.1, 0.5), audit_steps=100, audit_iterations=10, audit_queries=50,
)  # fmt: skip


class SmallExperiment(Experiment):
    """Experiment in which only the denoisers given at the start exist, and nothing is trained."""

    def __init__(self, home, study=STUDY, classifier=None, **denoisers):
        super().__init__(study, Store(home))
        self.device, self.victim = torch.device("cpu"), classifier or linear()
        self.denoisers = {"attacked": nn.Identity(), **denoisers}
        images = pictures(study.test_images)
        labels = self.victim.unchecked(images).argmax(dim=1)
        labels[0] = (labels[0] + 1) % CLASSES  # one is wrong from the beginning
        self.split = Split(images, labels, tuple("abcd"), {"data": "gray"})

    def images(self, split):
        number = getattr(self.study, f"{split}_images") if split in ("adaptive", "audit") else None
        images, labels = (x[:number] for x in (self.split.images, self.split.labels))
        return Split(images, labels, self.split.classes, self.split.specification)

    def classifier_specification(self, name="standard"):
        return {"kind": "classifier", "name": name}

    def classifier(self, name="standard"):
        return linear(1) if name == "second" else self.victim

    def specification(self, method):
        return {"name": method}

    def denoiser(self, method):
        return self.denoisers[method]


EPS, IMAGES = (0.0, 0.03, 0.1, 0.5), 100


def rows(*counts, of=IMAGES):
    """One row per count: the first so many images are correct."""
    return np.array([np.arange(of) < count for count in counts])


def minimal(**changes):
    """An adaptive evaluation that passes every sanity check: what `audit` leaves correct, at all its ε."""
    smallest = np.repeat([0.0, 0.02, 0.05, 0.3, np.inf], [10, 30, 31, 24, 5])[::-1]
    given = dict(
        method="Filt(L_img*)", eps=EPS, smallest=smallest, first=smallest, gray_box=rows(90, 85, 60, 40),
        gradients=300.0, forwards=100.0, seconds=0.5, zero_gradients=0.0, saturated=0.0,
        deterministic=True, logits=True, classes=10,
    )  # fmt: skip
    return Minimal(**given | changes)


def audited(**changes):
    """An audit that passes every sanity check, with `changes`; ``robust`` is merged."""
    robust = {
        "PGD": rows(90, 60, 30, 5), "AutoAttack": rows(90, 62, 29, 5), "Square": rows(90, 80, 50, 20),
        "oblivious": rows(90, 85, 60, 40), "transfer": rows(90, 88, 80, 60), "FGSM": rows(90, 86, 70, 50),
        "Gaussian noise": rows(90, 90, 80, 70), "uniform noise": rows(90, 90, 81, 71),
    }  # fmt: skip
    margins = np.linspace(-3, -1, IMAGES) + np.array([0.0, 2.0, 3.0, 3.1])[:, None]
    given = dict(
        method="Filt(L_img*)", eps=EPS, robust=robust | changes.pop("robust", {}),
        envelope=rows(90, 84, 60, 40),
        norms={"L2-PGD": np.full(IMAGES, np.inf), "DeepFool": np.linspace(0, 2, IMAGES), "C&W": np.ones(IMAGES)},
        steps=(0, 10, 40, 400), trace=rows(90, 50, 40, 39), margins=margins, trace_eps=0.1,
    )  # fmt: skip
    return Audit(**given | changes)


SWEPT, SWEEP = (0.3, 0.05), (10, 30, 50, 70, 90)


def tidy(*methods, table=1, metrics=("accuracy",), eps=PAPER_EPS, seed=0):
    """Random rows in the form of `evaluation.table`; accuracies are shares of 24 images."""
    rng = np.random.default_rng(seed)
    same = {
        "table": table,
        "study": "photographs",
        "classifier": "small_resnet",
        "n": 24,
        "seed": 7,
    }
    over_eps = itertools.product(methods, metrics, ("", "-envelope", "-on-itself"), eps, (40,))
    over_n = itertools.product(methods * (table == 5), ("accuracy",), ("",), SWEPT, SWEEP)
    places = [
        {"method": method, "metric": metric, "attack": f"pgd{attack}", "eps": strength, "steps": n}
        for method, metric, attack, strength, n in (*over_eps, *over_n)
        if attack != "-on-itself" or method == "Adv"
    ]
    values = [same | place | {"value": rng.integers(25) / 24} for place in places]
    return pd.DataFrame(values, columns=COLUMNS)


MODEL = """
import torch
from torch import nn

class Colours(nn.Module):
    def forward(self, images):
        return 10 * images.mean(dim=(2, 3))

def factory():
    return Colours().eval()

def training():
    return Colours()
"""
"""A user's file with a classifier in evaluation mode, and one in training mode."""


def write_yours(root):
    """A user's folder: `MODEL` in a file, and four images in each of three classes."""
    (root / "model.py").write_text(MODEL)
    for label, word in enumerate(("red", "green", "blue")):
        (root / "photos" / word).mkdir(parents=True)
        for number in range(4):
            colour = [40, 40, 40]
            colour[label] = 150 + 20 * number
            image = Image.new("RGB", (13, 12), tuple(colour))
            image.save(root / "photos" / word / f"{number}.png")
    return root
