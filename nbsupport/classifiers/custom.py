"""Classifiers from elsewhere: a custom network, loaded and tried, or torchvision's with weights."""

import copy
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torchvision
from scipy.stats import binomtest
from torch import Tensor, nn
from torchvision.transforms.v2.functional import normalize

from ..data.images import Images, Labels, check_images, check_labels
from .models import IMAGENET_MEAN, IMAGENET_STD, Classifier, check_logits, check_mode

PROBES = 64  # images that a classifier is tried on
NORMALISATIONS = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "ImageNet's": (IMAGENET_MEAN, IMAGENET_STD),
    "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "[-1, 1]": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "0 to 255": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}
"""Usual normalisations of images in [0, 1]: mean and standard deviation."""
SIGNIFICANT, BETTER = 0.01, 0.1  # p-value and gain in accuracy that give a normalisation away
LEAST = 0.5  # accuracy of public weights; below it, labels or preprocessing must be wrong


def is_reference(name: str) -> bool:
    """Whether a study's classifier is a ``path/to/file.py:factory`` and not an architecture."""
    return ":" in name or name.endswith(".py")


def load(reference: str) -> nn.Module:
    """Call the factory of ``path/to/file.py:factory`` without arguments, and return its network.

    The file may import its neighbours and read files beside it, as a script does. Raises
    `FileNotFoundError` if there is no such file; `ValueError` if the reference has another form,
    the file or the factory fails, or the factory returns no `nn.Module`.
    """
    path, _, factory = reference.rpartition(":")
    if not path.endswith(".py") or not factory.isidentifier():
        raise ValueError(f"classifier: expected path/to/file.py:factory, got {reference!r}")
    file = Path(path).expanduser().absolute()
    if not file.is_file():
        raise FileNotFoundError(f"classifier: there is no file {file}; correct {reference!r}")
    with _explained(file.name):
        source = _import(file)
    if not callable(make := getattr(source, factory, None)):
        there = ", ".join(name for name, value in vars(source).items() if inspect.isfunction(value))
        raise ValueError(f"classifier: no function {factory!r} in {file.name}; it has {there}")
    with _explained(f"{file.name}:{factory}()"):
        module = make()
    if not isinstance(module, nn.Module):
        got = type(module).__name__
        raise ValueError(f"classifier: expected an nn.Module from {reference}, got {got}")
    return module


@contextmanager
def _explained(what: str, hint: str = "") -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever the user's code raises
        why = f"{type(error).__name__}: {error}{hint}"
        raise ValueError(f"classifier: {what} failed with {why}") from error


def _import(file: Path) -> ModuleType:
    # under a name that no other module has, yet in sys.modules, where dataclasses and pickle look
    name = f"custom_{sha256(str(file).encode()).hexdigest()[:8]}"
    specification = importlib.util.spec_from_file_location(name, file)
    assert specification and specification.loader
    module = sys.modules[name] = importlib.util.module_from_spec(specification)
    sys.path.insert(0, str(file.parent))
    try:
        specification.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return module


def class_name(module: nn.Module) -> str:
    """The name of a custom classifier in tables: its class, or that of the network in it."""
    return type(getattr(module, "network", module)).__name__


def wrap(
    module: nn.Module,
    images: Images | None = None,
    labels: Labels | None = None,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    classes: int | None = None,
) -> Classifier:
    """Make a frozen `Classifier` of a copy of any network from RGB images in [0, 1] to logits.

    `mean` and `std` normalise, per channel of images in [0, 1]. A few `images` of the right size
    are used to try logits and gradients (`check`); with their `labels`, from 0, also whether the
    network expects normalised images (`check_normalisation`), unless you give the normalisation.
    `classes` is the number of logits. Raises `ValueError` if the network is in training mode, `mean`
    and `std` make no sense, or a check fails.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"wrap: expected an nn.Module, got {type(module).__name__}; pass a network")
    check_mode(module, "wrap")
    given = mean is not None or std is not None
    if given and isinstance(module, Classifier):
        raise ValueError("wrap: this Classifier has its normalisation inside; omit mean and std")
    mean, std = mean or (0.0, 0.0, 0.0), std or (1.0, 1.0, 1.0)
    if not (len(mean) == len(std) == 3 and max(map(abs, mean)) <= 1 and min(std) > 0):
        hint = "divide those for images from 0 to 255 by 255"
        expected = "mean and std (positive) for 3 channels of images in [0, 1]"
        raise ValueError(f"wrap: expected {expected}, got mean={mean}, std={std}; {hint}")
    classifier = copy.deepcopy(module)
    if not isinstance(classifier, Classifier):
        tensors = [*classifier.parameters(), *classifier.buffers()]
        classifier = Classifier(classifier, mean, std).eval()
        classifier.to(tensors[0].device if tensors else "cpu")
    if images is not None:
        check(classifier, images, labels, classes)
        if labels is not None and not (given or isinstance(module, Classifier)):
            check_normalisation(classifier.unchecked, images, labels)
    return classifier.requires_grad_(False)


def check(
    classifier: Classifier, images: Images, labels: Labels | None = None, classes: int | None = None
) -> None:
    """Try a classifier on images in [0, 1] of the right size.

    Raises `ValueError` if its forward pass fails, if an image's logits are not `classes` finite
    numbers or depend on other images or on chance, or if no gradient reaches the images.
    """
    check_images(images, caller="classifier")
    images = images[:PROBES].detach().clone().requires_grad_()
    hint = "; images are RGB; give another size with --image-size or Study.named(…, image_size=…)"
    with _explained(f"its forward pass on images {tuple(images.shape)}", hint), torch.enable_grad():
        logits = classifier.unchecked(images)
        alone = classifier.unchecked(images[:1].detach())
    check_logits(logits)
    rows, columns = logits.shape
    if rows != len(images):
        raise ValueError(f"classifier: expected {len(images)} rows of logits, got {rows}")
    if logits.min() >= 0 and logits.max() <= 1:
        hint = "return the input of its sigmoid, softmax or argmax instead"
        raise ValueError(f"classifier: expected logits, got values from 0 to 1; {hint}")
    if classes is not None and columns != classes:
        hint = "change its last layer or the data"
        raise ValueError(f"classifier: expected {classes} logits, got {columns}; {hint}")
    if labels is not None:
        check_labels(labels[:PROBES], images=images, classes=columns, caller="classifier")
    tolerance = 1e-2 * float(logits.detach().abs().max())
    if not torch.allclose(alone[0], logits[0], rtol=1e-2, atol=tolerance):
        hint = "switch off dropout, noise and statistics of batches"
        raise ValueError(f"classifier: its logits change with the batch or by chance; {hint}")
    gradient = None
    if logits.requires_grad:
        # of random sums of logits, not of a loss: the gradient of a saturated loss is zero too
        noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)
        (gradient,) = torch.autograd.grad((logits * noise).sum(), images, allow_unused=True)
    if gradient is None or not (gradient.any() and torch.isfinite(gradient).all()):
        hint = "look for argmax, rounding, detach(), no_grad() or NumPy in its forward pass"
        raise ValueError(f"classifier: not differentiable, its gradient is zero or NaN; {hint}")


@torch.no_grad()
def check_normalisation(
    compute_logits: Callable[[Tensor], Tensor], images: Images, labels: Labels
) -> None:
    """Refuse a network that expects normalised images, and labels counted from 1.

    Raises `ValueError` if one of `NORMALISATIONS`, or lower labels, give an accuracy that is higher
    by a tenth at least and above chance, and significantly more images a right prediction or a
    higher probability of their true class (one-sided sign tests).
    """
    images, labels = images[:PROBES], labels[:PROBES]
    right, likely = {}, {}
    for reading, (mean, std) in {**NORMALISATIONS, "labels - 1": NORMALISATIONS["none"]}.items():
        logits = compute_logits(normalize(images, list(mean), list(std)))
        target = labels - 1 if reading == "labels - 1" else labels
        right[reading] = logits.argmax(dim=1) == target
        likely[reading] = logits.log_softmax(dim=1).gather(1, target.clamp(min=0)[:, None])
    given = right.pop("none")
    reading, best = max(right.items(), key=lambda item: int(item[1].sum()))
    more = likely[reading] > likely["none"]
    # probabilities say nothing where they are all 0 or 1, predictions where few of them differ
    p_better = min(_sign_test(best > given, best < given), _sign_test(more, ~more))
    p_chance = _sign_test(best, ~best, 1 / logits.shape[1])
    before, after = (float(correct.float().mean()) for correct in (given, best))
    if after - before < BETTER or max(p_better, p_chance) >= SIGNIFICANT:
        return
    found = f"classifier: its accuracy on {len(labels)} images is {before:.0%}, but {after:.0%}"
    if reading == "labels - 1":
        raise ValueError(f"{found} with labels lowered by 1; let labels (class folders) start at 0")
    mean, std = NORMALISATIONS[reading]
    call = f"nbsupport.wrap(module, …, mean={mean}, std={tuple(float(f'{x:.6g}') for x in std)})"
    raise ValueError(f"{found} after {reading} normalisation; put it inside: {call}")


def _sign_test(better: Tensor, worse: Tensor, chance: float = 0.5) -> float:
    """The p-value of so many better among the better and worse."""
    wins, number = int(better.sum()), int(better.sum() + worse.sum())
    return binomtest(wins, number, chance, alternative="greater").pvalue if number else 1.0


def _find_weights(name: str) -> tuple[Any, Path]:
    """The first public ImageNet weights of an architecture, and the file they are downloaded to."""
    try:
        available = torchvision.models.get_model_weights(name)
    except ValueError as error:
        raise ValueError(f"torchvision has no classifier named {name!r} with weights") from error
    weights = getattr(available, "IMAGENET1K_V1", available.DEFAULT)
    return weights, Path(torch.hub.get_dir(), "checkpoints", weights.url.split("/")[-1])


def is_downloaded(name: str) -> bool:
    """Whether the public weights are on this machine."""
    return _find_weights(name)[1].exists()


def describe_public(name: str) -> dict[str, Any]:
    """The specification of a public classifier; the name of its file ends in a hash of it."""
    weights, file = _find_weights(name)
    return {"kind": "classifier", "name": name, "weights": str(weights), "file": file.name}


@torch.no_grad()
def load_public(name: str, images: Images, labels: Labels) -> Classifier:
    """Load a classifier of `torchvision.models` with its public weights and their normalisation.

    They are downloaded on first use, and the accuracy on clean images is printed. Raises
    `FileNotFoundError` if they cannot be downloaded or read; `ValueError` if there are none,
    `check_normalisation` fails, or the accuracy is below `LEAST`.
    """
    weights, file = _find_weights(name)
    try:
        network = torchvision.models.get_model(name, weights=weights)
    except (OSError, RuntimeError, EOFError) as error:
        hint = f"remove {file} if it is there and try again, or put {weights.url} there"
        raise FileNotFoundError(f"{name}: cannot read public weights ({error}); {hint}") from error
    transforms = weights.transforms()
    classifier = Classifier(network, tuple(transforms.mean), tuple(transforms.std))
    classifier.eval().requires_grad_(False).to(images.device)
    check_normalisation(classifier.unchecked, images, labels)
    accuracy = float((classifier(images).argmax(dim=1) == labels).float().mean())
    print(f"{name}: accuracy {accuracy:.1%} on {len(labels)} clean images")
    if accuracy < LEAST:
        hint = "check the labels (from 0) and images (resized to 256, cut to 224)"
        raise ValueError(f"{name}: expected an accuracy of {LEAST:.0%}, got {accuracy:.1%}; {hint}")
    return classifier
