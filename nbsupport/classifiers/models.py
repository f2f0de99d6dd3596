"""The classifiers under attack: images in [0, 1] to logits, normalisation inside."""

import contextlib
import copy
from collections.abc import Iterator
from itertools import chain, pairwise
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from jaxtyping import Bool
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models import vgg
from torchvision.models.resnet import BasicBlock

from ..data.images import Images, Labels, Logits, check_images

Channels = tuple[float, ...]
HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Classifier(nn.Module):
    """A network for images in [0, 1], with its normalisation per channel inside."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Channels = HALF, std: Channels = HALF) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def unchecked(self, images: Tensor) -> Tensor:
        """`forward` without its checks, for loops that have checked once."""
        return self.network((images - self.mean) / self.std)

    def forward(self, images: Images) -> Logits:
        """Compute logits. Raises `ValueError` for other than RGB images in [0, 1] or logits."""
        check_images(images, caller="classifier")
        check_logits(logits := self.unchecked(images))
        return logits


def are_probabilities(values: Logits) -> bool:
    """Whether every row is a probability distribution over more than one class."""
    sums = values.sum(dim=1)
    add_up = torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
    return values.shape[1] > 1 and bool((values >= 0).all()) and add_up


def check_mode(module: nn.Module, caller: str = "classifier") -> None:
    """Refuse training mode, where an image's logits depend on its batch or on chance."""
    # a script that torch.jit.freeze made has no mode
    if any(getattr(part, "training", False) for part in module.modules()):
        raise ValueError(f"{caller}: it is in training mode; call .eval() on it first")


def check_logits(logits: Tensor) -> None:
    """Raise `ValueError` for anything but finite logits of shape (b, classes).

    That includes probabilities, whose softmax hides the gradient from an attack.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"classifier: expected a tensor of shape (b, classes), got {got}")
    if not torch.isfinite(logits).all():
        raise ValueError("classifier: expected finite logits, got NaN or infinity; check weights")
    if are_probabilities(logits.detach()):
        raise ValueError("classifier: expected logits, got probabilities; remove its last softmax")


def is_saturated(logits: Logits, labels: Labels) -> Bool[Tensor, "b"]:
    """Whether the cross-entropy rounds to 0, so that it has no gradient by the true class."""
    return F.cross_entropy(logits.detach(), labels, reduction="none") == 0


@torch.no_grad()
def predicted_classes(classifier: nn.Module, images: Images, classes: tuple[str, ...]) -> list[str]:
    """Name each image's predicted class; by its number where the data have no name for it."""
    numbers = classifier(images).argmax(dim=1).tolist()
    return [classes[number] if number < len(classes) else str(number) for number in numbers]


# -- copies, and precisions ---------------------------------------------------------------------


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Within it layers compute in float32, whatever the caller's autocast and TF32 settings.

    TF32's ten bits would swallow the perturbations of 1e-4 that attacks and results compare.
    """
    backends: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


class Apart(nn.Module):
    """A network that gets its own copy of the images, in its precision and memory layout.

    So it may change its input in place. Half-precision logits are returned in float32.
    """

    def __init__(
        self,
        network: nn.Module,
        dtype: torch.dtype,
        layout: torch.memory_format = torch.preserve_format,
    ) -> None:
        super().__init__()
        self.network, self.dtype, self.layout, self.training = network, dtype, layout, False
        self.prepared = False  # for attacks

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images.to(self.dtype, memory_format=self.layout, copy=True))
        half = isinstance(logits, Tensor) and logits.dtype in (torch.float16, torch.bfloat16)
        return logits.float() if half else logits


def precisions(network: nn.Module) -> list[torch.dtype]:
    """The floating-point types of a network's parameters and buffers, each once, in their order."""
    tensors = chain(network.parameters(), network.buffers())
    return list(dict.fromkeys(each.dtype for each in tensors if each.is_floating_point()))


class _Detach(TorchFunctionMode):
    """Copies tensors with a gradient's history without it, which `copy.deepcopy` refuses to do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))


def copy_network(network: nn.Module, caller: str) -> nn.Module:
    """Return a frozen copy of a network, not compiled; raise `ValueError` if there is none."""
    try:
        with _Detach():
            copied = copy.deepcopy(network)
    except Exception as error:  # whatever a part of it raises
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        hint = "keep files, locks and generators out of it, or give it a __deepcopy__"
        name = type(network).__name__
        raise ValueError(f"{caller}: {name} cannot be copied ({why}); {hint}") from error
    copied = getattr(copied, "_orig_mod", copied)
    for name, part in list(copied.named_modules()):
        if hasattr(part, "_orig_mod"):
            copied.set_submodule(name, part._orig_mod)
    for parameter in copied.parameters():  # scripts have no requires_grad_
        parameter.requires_grad_(False)
    return copied


# -- architectures -------------------------------------------------------------------------------


class SmallResNet(nn.Module):
    """The CIFAR ResNet: stages of `width`, 2 and 4 times as many channels, of `blocks` each."""

    def __init__(self, classes: int, width: int = 16, blocks: int = 1) -> None:
        super().__init__()
        first = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.stem = nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU())
        self.stages = nn.Sequential()
        for before, channels in pairwise((width, width, 2 * width, 4 * width)):
            shortcut = None
            if channels > before:
                smaller = nn.Conv2d(before, channels, 1, 2, bias=False)
                shortcut = nn.Sequential(smaller, nn.BatchNorm2d(channels))
            stage = [BasicBlock(before, channels, channels // before, shortcut)]
            stage += [BasicBlock(channels, channels) for _ in range(blocks - 1)]
            self.stages.append(nn.Sequential(*stage))
        pool, linear = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, classes)
        self.head = nn.Sequential(pool, nn.Flatten(), linear)

    def forward(self, images: Images) -> Logits:
        return self.head(self.stages(self.stem(images)))


def half_vgg16(classes: int) -> nn.Module:
    """VGG-16 with batch norm, half as many channels and one linear layer, for any size."""
    plan: Any = [each if each == "M" else each // 2 for each in vgg.cfgs["D"]]
    features = vgg.make_layers(plan, batch_norm=True)
    for layer in features:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True  # so a single pixel stays one
    return nn.Sequential(
        features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(plan[-2], classes)
    )


SMALL_RESNETS = {"small_resnet": 1, "resnet20": 3}  # blocks per stage
HALF_VGG = "half_vgg16"


def build(name: str, classes: int, image_size: int) -> Classifier:
    """Build an untrained classifier: of `SMALL_RESNETS`, `HALF_VGG`, or `torchvision.models`' name.

    Below 64 × 64, ResNets and VGGs get the stem and the head for CIFAR. Raises `ValueError` if the
    name is unknown.
    """
    if name in SMALL_RESNETS:
        return Classifier(SmallResNet(classes, blocks=SMALL_RESNETS[name]))
    if name == HALF_VGG:
        return Classifier(half_vgg16(classes), IMAGENET_MEAN, IMAGENET_STD)
    if name not in torchvision.models.list_models(torchvision.models):
        known = f"{', '.join((*SMALL_RESNETS, HALF_VGG))} or one of torchvision.models"
        raise ValueError(f"no classifier named {name!r}; choose {known}")
    network = torchvision.models.get_model(name, weights=None, num_classes=classes)
    if image_size < 64 and isinstance(network, torchvision.models.ResNet):
        network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    if image_size < 64 and isinstance(network, torchvision.models.VGG):
        network.avgpool = nn.AdaptiveAvgPool2d(1)
        network.classifier[0] = nn.Linear(512, 4096)
    return Classifier(network, IMAGENET_MEAN, IMAGENET_STD)
