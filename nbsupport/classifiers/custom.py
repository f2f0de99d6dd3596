"""Classifiers from elsewhere: a custom network, loaded and tried, or torchvision's with weights."""

import contextlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torchvision
from scipy.stats import binomtest
from torch import Tensor, nn
from torchvision.transforms.v2.functional import normalize

from ..data.images import AnyLabels, Images, Labels, check_images, check_labels
from . import feature_denoising, feature_pyramid
from .models import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Apart,
    Classifier,
    check_logits,
    check_mode,
    copy_network,
    full_precision,
    is_saturated,
    precisions,
)

PROBES = 64  # images that a classifier is tried on
NORMALISATIONS = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "ImageNet's": (IMAGENET_MEAN, IMAGENET_STD),
    "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "[-1, 1]": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "0 to 255": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}
"""Usual normalisations of images in [0, 1]: mean and standard deviation."""
ZOO = {"cifar10": "cifar10", "neurips2017dev": "imagenet"}  # RobustBench's names for our studies
ZOO_INSTALL = "pip install git+https://github.com/RobustBench/robustbench.git"
AUTHORS: dict[str, tuple[ModuleType, int, int, str]] = {
    "fd": (feature_denoising, 1000, 224, "facebookresearch/ImageNet-Adversarial-Training"),
    "fpd": (feature_pyramid, 10, 64, "GuanlinLee/FPD-for-Adversarial-Robustness"),
}
"""The modules of FD and FPD; the authors' classes, image size, and repository with weights."""
SUMS = 4  # of logits, in a fingerprint
SATURATED = 0.1  # share of images without cross-entropy that is worth a word
SIGNIFICANT, BETTER = 0.01, 0.1  # p-value and gain in accuracy that give a normalisation away


def is_reference(name: str) -> bool:
    """Whether a study's classifier is one that `load` loads, and not an architecture."""
    return ":" in name or name.endswith(".py")


def load(reference: str, study: str = "", image_size: int = 0) -> nn.Module:
    """Load a trained network for a study's images of some size.

    ``path/to/file.py:factory`` calls a function without arguments; its file may import neighbours
    and read files beside it, as a script does. ``robustbench:NAME`` is of RobustBench's zoo, robust
    in L∞. ``fd:FILE`` (ImageNet) and ``fpd:FILE`` (SVHN) are the authors' weights. Raises
    `FileNotFoundError` if there is no such file; `ValueError` if the reference has another form,
    the network is not for these images, it cannot be loaded or is no `nn.Module`.
    """
    kind, _, name = reference.partition(":")
    if kind == "robustbench":
        return _load_from_zoo(name, study)
    if kind not in AUTHORS:
        return _call_factory(reference)
    module, classes, size, repository = AUTHORS[kind]
    if image_size != size:
        expected = f"images of {classes} classes, {size} × {size}, got {image_size} × {image_size}"
        raise ValueError(f"classifier: {kind} is for {expected}; add --image-size {size}")
    if not Path(name).is_file():
        raise FileNotFoundError(f"classifier: no file {name!r}; see github.com/{repository}")
    return module.load_authors_network(Path(name))


def _load_from_zoo(name: str, study: str) -> nn.Module:
    if study not in ZOO:
        raise ValueError(f"classifier: RobustBench is for {' and '.join(ZOO)}, got {study!r}")
    try:
        from robustbench.utils import load_model
    except ImportError as error:
        raise ValueError(f"classifier: RobustBench is missing ({error}): {ZOO_INSTALL}") from error
    place = str(Path(torch.hub.get_dir(), "robustbench"))
    with _explained(f"robustbench.utils.load_model({name!r})"):
        return load_model(name, model_dir=place, dataset=ZOO[study], threat_model="Linf").eval()


def _call_factory(reference: str) -> nn.Module:
    path, _, factory = reference.rpartition(":")
    if not path.endswith(".py") or not factory.isidentifier():
        forms = "path/to/file.py:factory, robustbench:NAME, fd:FILE or fpd:FILE"
        raise ValueError(f"classifier: expected {forms}, got {reference!r}")
    file = Path(path).expanduser().absolute()
    if not file.is_file():
        raise FileNotFoundError(f"classifier: there is no file {file}; correct {reference!r}")
    arguments, sys.argv = sys.argv, [str(file)]  # a file that parses arguments gets none of ours
    try:
        with _explained(file.name):
            source = _import(file)
        if not callable(make := getattr(source, factory, None)):
            functions = (name for name, value in vars(source).items() if inspect.isfunction(value))
            there = ", ".join(functions)
            raise ValueError(f"classifier: no function {factory!r} in {file.name}; it has {there}")
        with _explained(f"{file.name}:{factory}()"):
            module = make()
    finally:
        sys.argv = arguments
    if not isinstance(module, nn.Module):
        got = type(module).__name__
        raise ValueError(f"classifier: expected an nn.Module from {reference}, got {got}")
    return module


@contextlib.contextmanager
def _explained(what: str, hint: str = "") -> Iterator[None]:
    try:
        yield
    except SystemExit as error:
        hint = 'keep what only a script does below if __name__ == "__main__"'
        raise ValueError(f"classifier: {what} exits with {error.code}; {hint}") from error
    except Exception as error:  # whatever the user's code raises
        message = " ".join(str(error).split())
        if "type" in message:
            hint = "; give the network one precision, for example with .float()" if hint else hint
        why = f"{type(error).__name__}: {message}{hint}"
        raise ValueError(f"classifier: {what} failed with {why}") from error


def _import(file: Path) -> ModuleType:
    """Import a file, which finds its neighbours now and later, before others of the same name."""
    neighbours = {found.name for found in pkgutil.iter_modules([str(file.parent)])}
    neighbours -= {"nbsupport", *sys.stdlib_module_names}
    for name, module in [*sys.modules.items()]:
        place = getattr(module, "__file__", None) or str(file)
        if name.partition(".")[0] in neighbours and not Path(place).is_relative_to(file.parent):
            del sys.modules[name]
    sys.path[:] = [str(file.parent), *(place for place in sys.path if place != str(file.parent))]
    # under a name that no other module has, yet in sys.modules, where dataclasses and pickle look
    name = f"custom_{sha256(str(file).encode()).hexdigest()[:8]}"
    specification = importlib.util.spec_from_file_location(name, file)
    assert specification and specification.loader
    module = sys.modules[name] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class Custom(Classifier):
    """A network from elsewhere, in its own precision: under autocast it might overflow."""

    def unchecked(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return super().unchecked(images.to(self.mean.dtype))


def class_name(module: nn.Module) -> str:
    """The name of a custom classifier in tables: its class, or that of the network in it."""
    return type(getattr(module, "network", module)).__name__


def wrap(
    module: nn.Module,
    images: Images | None = None,
    labels: AnyLabels | None = None,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    classes: int | None = None,
) -> Classifier:
    """Make a frozen `Classifier` of a copy of any network from RGB images in [0, 1] to logits.

    `mean` and `std` normalise, per channel of images in [0, 1]. A few `images` of the right size
    are used to try logits and gradients (`check`); with their `labels`, from 0, also whether the
    network expects normalised images (`check_normalisation`), unless you give the normalisation.
    `classes` is the number of logits. Raises `ValueError` if the network is in training mode or
    cannot be copied, `mean` and `std` make no sense, or a check fails.
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
    classifier = copy_network(module, "wrap")
    if not isinstance(classifier, Classifier):
        first = next(chain(classifier.parameters(), classifier.buffers()), torch.empty(0))
        dtype = next(iter(precisions(classifier)), torch.float32)
        network = classifier if dtype == torch.float32 else Apart(classifier, dtype)
        classifier = Custom(network, mean, std)
        classifier.mean = classifier.mean.to(first.device)
        classifier.std = classifier.std.to(first.device)
        classifier.training = False
    if images is not None:
        images, numbers = check(classifier, images, labels, classes)
        if numbers is not None and not (given or isinstance(module, Classifier)):
            check_normalisation(classifier.unchecked, images, numbers)
    return classifier


def check(
    classifier: Classifier,
    images: Images,
    labels: AnyLabels | None = None,
    classes: int | None = None,
) -> tuple[Images, Labels | None]:
    """Try a frozen classifier on images in [0, 1] of the right size.

    Returns the images and labels that it was tried on, cast and moved to where it computes. Says
    whether its logits are saturated. Raises `ValueError` if its forward pass fails, if an image's
    logits are not `classes` finite numbers or depend on other images or on chance, or if no
    gradient reaches the images.
    """
    check_images(images, caller="classifier")
    images = images.detach().to(classifier.mean)
    probes = images[:PROBES].clone().requires_grad_()
    hint = "; images are RGB; give another size with --image-size or Study.named(…, image_size=…)"
    with _explained(f"its forward pass on images {tuple(probes.shape)}", hint), torch.enable_grad():
        network: Any = feature_pyramid.attack_target(classifier)  # a tanh may hide the gradient
        logits, alone = network.unchecked(probes), network.unchecked(probes[:1])
    check_logits(logits)
    rows, columns = logits.shape
    if rows != len(probes):
        raise ValueError(f"classifier: expected {len(probes)} rows of logits, got {rows}")
    if logits.min() >= 0 and logits.max() <= 1:
        hint = "return the input of its sigmoid, softmax or argmax instead"
        raise ValueError(f"classifier: expected logits, got values from 0 to 1; {hint}")
    if classes is not None and columns != classes:
        hint = "change its last layer or the data"
        raise ValueError(f"classifier: expected {classes} logits, got {columns}; {hint}")
    if labels is not None:
        labels = check_labels(labels, images=images, classes=columns, caller="classifier")[:PROBES]
    tolerance = 1e-2 * float(logits.detach().abs().max())
    if not torch.allclose(alone[0], logits[0], rtol=1e-2, atol=tolerance):
        hint = "switch off dropout, noise and statistics of batches"
        raise ValueError(f"classifier: its logits change with the batch or by chance; {hint}")
    if logits.requires_grad:
        # of random sums of logits, not of a loss: the gradient of a saturated loss is zero too
        noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)
        (logits * noise).sum().backward()  # autograd.grad fails in reentrant checkpoints
    if probes.grad is None or not (probes.grad.any() and torch.isfinite(probes.grad).all()):
        hint = "look for argmax, rounding, detach(), no_grad() or NumPy in its forward pass"
        raise ValueError(f"classifier: not differentiable, its gradient is zero or NaN; {hint}")
    number = int(is_saturated(logits, logits.argmax(dim=1)).sum())
    if number > SATURATED * rows:
        what = "pgd scales them down there; elsewhere use a loss that is invariant to their scale"
        print(f"classifier: logits of {number} of {rows} images leave no cross-entropy; {what}")
    return probes.detach(), labels


@torch.no_grad()
def check_normalisation(
    compute_logits: Callable[[Tensor], Tensor], images: Images, labels: Labels
) -> None:
    """Refuse a network that expects normalised images, and labels counted from 1.

    A reading that the network itself refuses is none. Raises `ValueError` if one of
    `NORMALISATIONS`, or lower labels, give an accuracy that is higher by a tenth at least and above
    chance, and significantly more images a right prediction or a higher probability of their true
    class (one-sided sign tests).
    """
    images, labels = images[:PROBES], labels[:PROBES]
    right, likely = {}, {}
    for reading, (mean, std) in {**NORMALISATIONS, "labels - 1": NORMALISATIONS["none"]}.items():
        try:
            logits = compute_logits(normalize(images, list(mean), list(std)))
        except Exception:  # whatever the network raises
            continue
        target = labels - 1 if reading == "labels - 1" else labels
        right[reading] = logits.argmax(dim=1) == target
        likely[reading] = logits.log_softmax(dim=1).gather(1, target.clamp(min=0)[:, None])
    if len(right) < 2 or "none" not in right:
        return
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


@torch.no_grad()
def check_order(
    compute_logits: Callable[[Tensor], Tensor], images: Images, labels: Labels, others: Labels
) -> None:
    """Refuse a network that numbers the classes in another order: `others` instead of `labels`.

    Raises `ValueError` if its accuracy is then significantly higher, by a tenth at least.
    """
    found = compute_logits(images).argmax(dim=1)
    given, other = found == labels, found == others
    before, after = (float(correct.float().mean()) for correct in (given, other))
    if after - before >= BETTER and _sign_test(other & ~given, given & ~other) < SIGNIFICANT:
        raise ValueError(
            f"classifier: its accuracy on {len(labels)} images is {before:.0%}, but {after:.0%} if "
            "the class folders are taken in their other order (as text: 0, 1, 10, 2; as numbers: "
            "0, 1, 2, 10); name each folder by the number of its logit"
        )


def _sign_test(better: Tensor, worse: Tensor, chance: float = 0.5) -> float:
    """The p-value of so many better among the better and worse."""
    wins, number = int(better.sum()), int(better.sum() + worse.sum())
    return binomtest(wins, number, chance, alternative="greater").pvalue if number else 1.0


@torch.no_grad()
def fingerprint(classifier: nn.Module, images: Images) -> dict[str, Any]:
    """Describe what a classifier answers on a few images, for a key: classes and coarse numbers.

    The numbers are the logits' root mean square and random signed sums of them, in steps of about
    a twentieth; a class is None where two logits are nearly equal. Rounding errors of 1e-5 of the
    largest logit change the whole with a chance below 1 %, another network hardly ever fails to.
    """
    with full_precision(images.device):
        logits = classifier(images[:PROBES]).double().cpu()
    size = logits.square().mean().sqrt().clamp(min=1e-30)
    signs = torch.randint(2, (SUMS, *logits.shape), generator=torch.Generator().manual_seed(0))
    sums = ((2 * signs - 1) * logits).sum(dim=(1, 2)) / logits.numel() ** 0.5
    step = 2 ** size.log2().round() / 20
    best = logits.topk(min(2, logits.shape[1])).values
    clear = (best[:, 0] - best[:, -1] > 1e-3 * size).tolist()
    classes = [
        y if sure else None for y, sure in zip(logits.argmax(1).tolist(), clear, strict=True)
    ]
    return {
        "classes": classes,
        "logits": (torch.stack([size, *sums]) / step).round().int().tolist(),
    }


def load_public(name: str) -> Classifier:
    """Load a frozen classifier of `torchvision.models` with its first public ImageNet weights.

    They are downloaded on first use, and come with their normalisation. Raises `FileNotFoundError`
    if they cannot be downloaded or read, `ValueError` if torchvision has none.
    """
    try:
        available = torchvision.models.get_model_weights(name)
    except ValueError as error:
        raise ValueError(f"torchvision has no classifier named {name!r} with weights") from error
    weights = getattr(available, "IMAGENET1K_V1", available.DEFAULT)
    try:
        network = torchvision.models.get_model(name, weights=weights)
    except (OSError, RuntimeError, EOFError) as error:
        file = Path(torch.hub.get_dir(), "checkpoints", weights.url.split("/")[-1])
        hint = f"remove {file} if it is there and try again, or put {weights.url} there"
        raise FileNotFoundError(f"{name}: cannot read public weights ({error}); {hint}") from error
    transforms = weights.transforms()
    classifier = Classifier(network, tuple(transforms.mean), tuple(transforms.std))
    return classifier.eval().requires_grad_(False)
