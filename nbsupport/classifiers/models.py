"""The classifiers under attack: images in [0, 1] to logits, normalisation inside."""

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from ..data.images import Images, Logits, check_images

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Classifier(nn.Module):
    """A network with its normalisation (per channel, of [0, 1]) inside; refuses bad images, logits."""

    def __init__(
        self,
        network: nn.Module,
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        std: tuple[float, ...] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        self.network = network
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def unchecked(self, images: Tensor) -> Tensor:
        """`forward` without its checks, for loops that have checked once."""
        return self.network((images - self.mean) / self.std)

    def forward(self, images: Images) -> Logits:
        """Compute logits. Raises `ValueError` for other than RGB images in [0, 1] or logits."""
        check_images(images, caller="classifier")
        logits = self.unchecked(images)
        check_logits(logits)
        return logits


def are_probabilities(values: Logits) -> bool:
    """Whether every row is a probability distribution over more than one class."""
    sums = values.sum(dim=1)
    add_up = torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
    return values.shape[1] > 1 and bool((values >= 0).all()) and add_up


def check_mode(module: nn.Module, caller: str = "classifier") -> None:
    """Refuse training mode, where an image's logits depend on its batch or on chance."""
    if any(part.training for part in module.modules()):
        raise ValueError(f"{caller}: it is in training mode; call .eval() on it first")


def check_logits(logits: Tensor) -> None:
    """Raise `ValueError` for anything but finite logits of shape (b, classes).

    That includes probabilities, whose softmax hides the gradient from an attack.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"classifier: expected a tensor of shape (b, classes), got {got}")
    values = logits.detach()
    if not torch.isfinite(values).all():
        raise ValueError("classifier: expected finite logits, got NaN or infinity; check weights")
    if are_probabilities(values):
        hint = "remove its last softmax or argmax"
        raise ValueError(f"classifier: expected logits, got probabilities (sums of 1); {hint}")


@torch.no_grad()
def predicted_classes(classifier: nn.Module, images: Images, classes: tuple[str, ...]) -> list[str]:
    """The name of each image's predicted class; its number where the data have no name for it."""
    numbers = classifier(images).argmax(dim=1).tolist()
    return [classes[number] if number < len(classes) else str(number) for number in numbers]


class SmallResNet(nn.Module):
    """The CIFAR ResNet: stages of `width`, 2 and 4 times as many channels; ResNet-20 has 3 blocks."""

    def __init__(self, classes: int, width: int = 16, blocks: int = 1) -> None:
        super().__init__()
        first = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.stem = nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU())
        self.stages = nn.Sequential()
        before = width
        for channels in (width, 2 * width, 4 * width):
            stride, shortcut = channels // before, None
            if stride > 1:
                smaller = nn.Conv2d(before, channels, 1, stride, bias=False)
                shortcut = nn.Sequential(smaller, nn.BatchNorm2d(channels))
            stage = [BasicBlock(before, channels, stride, shortcut)]
            stage += [BasicBlock(channels, channels) for _ in range(blocks - 1)]
            self.stages.append(nn.Sequential(*stage))
            before = channels
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))

    def forward(self, images: Images) -> Logits:
        return self.head(self.stages(self.stem(images)))


SMALL_RESNETS = {"small_resnet": 1, "resnet20": 3}
"""`SmallResNet` by name: its blocks per stage."""


def build(name: str, classes: int, image_size: int) -> Classifier:
    """Build an untrained classifier of `SMALL_RESNETS` or `torchvision.models` by its name.

    Below 64 × 64, ResNets and VGGs get the stem and the head for CIFAR. Raises `ValueError` if the
    name is unknown.
    """
    if name in SMALL_RESNETS:
        return Classifier(SmallResNet(classes, blocks=SMALL_RESNETS[name]))
    if name not in torchvision.models.list_models(torchvision.models):
        small = ", ".join(SMALL_RESNETS)
        raise ValueError(
            f"no classifier named {name!r}; choose {small} or one of torchvision.models"
        )
    network = torchvision.models.get_model(name, weights=None, num_classes=classes)
    if image_size < 64 and isinstance(network, torchvision.models.ResNet):
        network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    if image_size < 64 and isinstance(network, torchvision.models.VGG):
        network.avgpool = nn.AdaptiveAvgPool2d(1)
        network.classifier[0] = nn.Linear(512, 4096)
    return Classifier(network, IMAGENET_MEAN, IMAGENET_STD)
