"""The classifiers under attack: images in [0, 1] to logits, normalisation inside."""

import copy
from itertools import chain

import torch
import torchvision
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from ..data.benchmarks import check_images
from . import trial

IMAGENET_MEAN, IMAGENET_STD = trial.NORMALISATIONS["ImageNet's"]
SMALL_IMAGE = 64  # below this side length, ResNets and VGGs get the stem and the pooling for CIFAR


class Classifier(nn.Module):
    """A network with its normalisation inside, which refuses what it cannot mean.

    Parameters
    ----------
    network
        From normalised images (b, 3, h, w) to logits (b, classes).
    mean, std
        Of the normalisation, per channel, in the unit of images in [0, 1].
    """

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

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """The logits of images in [0, 1].

        Raises
        ------
        ValueError
            If the images are not in [0, 1] or not RGB, or the network returns probabilities.
        """
        check_images(images, caller="classifier")
        logits = self.unchecked(images)
        check_logits(logits)
        return logits

    def features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b features"]:
        """What enters the last linear layer: the last features before the logits.

        Raises
        ------
        ValueError
            If the images are refused, or the network has no linear layer.
        """
        linear = [module for module in self.network.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise ValueError(
                "features: expected a network with a linear layer at its end, found none"
            )
        found: list[Tensor] = []
        hook = linear[-1].register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
        try:
            self(images)
        finally:
            hook.remove()
        if not found:
            raise ValueError(
                "features: the network's last linear layer takes no part in its forward pass"
            )
        return found[0]


def are_probabilities(values: Float[Tensor, "b classes"]) -> bool:
    """Whether every row is a probability distribution over more than one class."""
    sums = values.sum(dim=1)
    whole = torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
    return values.shape[1] > 1 and bool((values >= 0).all()) and whole


def check_logits(logits: Tensor) -> None:
    """Refuse probabilities: a softmax before the loss hides the gradient from the attack.

    Raises
    ------
    ValueError
        If it is no tensor of shape (b, classes), a value is not finite, or every row is a probability
        distribution.
    """
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"classifier: expected a tensor of logits, got {type(logits).__name__}; return the logits alone"
        )
    if logits.ndim != 2:
        raise ValueError(
            f"classifier: expected logits of shape (b, classes), got {tuple(logits.shape)}"
        )
    values = logits.detach()
    if not torch.isfinite(values).all():
        raise ValueError("classifier: its logits are not finite (NaN or infinity)")
    if are_probabilities(values):
        raise ValueError(
            "classifier: it returns probabilities (rows are positive and sum to 1), but logits are expected; "
            "remove its last softmax or argmax"
        )


def wrap(
    module: nn.Module,
    images: Float[Tensor, "n 3 h w"] | None = None,
    labels: Int[Tensor, "n"] | None = None,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    classes: int | None = None,
) -> Classifier:
    """Any network of one's own as the classifier under attack.

    Parameters
    ----------
    module
        From RGB images in [0, 1] to logits, in evaluation mode; it is copied, and left as it is. A
        `Classifier` keeps the normalisation that it has.
    images, labels
        Some images in [0, 1] of the size it is meant for, and their classes from 0. With the images its
        logits and gradients are tried, with the labels also whether the images have to be normalised before.
    mean, std
        What `module` expects images to be normalised with, per channel; none where both are None. Where
        they are given they are taken as right.
    classes
        The number of its logits; None for any.

    Raises
    ------
    ValueError
        If it is in training mode, `mean` and `std` make no sense, or the trial fails, see
        `nbsupport.classifiers.trial.check` and `nbsupport.classifiers.trial.check_meaning`.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"wrap: expected an nn.Module, got {type(module).__name__}")
    trial.check_mode(module, "wrap")
    known = isinstance(module, Classifier) or mean is not None or std is not None
    if isinstance(module, Classifier):
        if mean is not None or std is not None:
            raise ValueError(
                "wrap: this classifier has its normalisation inside; give neither mean nor std"
            )
        wrapped = copy.deepcopy(module)
    else:
        mean, std = mean or (0.0, 0.0, 0.0), std or (1.0, 1.0, 1.0)
        if not (len(mean) == len(std) == 3 and max(map(abs, mean)) <= 1 and min(std) > 0):
            raise ValueError(
                f"wrap: expected a mean and a positive standard deviation for each of 3 channels of images in [0, 1], "
                f"got mean={mean}, std={std}; values for images from 0 to 255 must be divided by 255"
            )
        wrapped = Classifier(copy.deepcopy(module), mean, std).eval()
        if (first := next(chain(module.parameters(), module.buffers()), None)) is not None:
            wrapped.to(first.device)
    if images is not None:
        trial.check(wrapped, images, labels, classes)
        if labels is not None and not known:
            trial.check_meaning(wrapped.unchecked, images, labels)
    return wrapped.requires_grad_(False)


@torch.no_grad()
def predicted_classes(
    classifier: nn.Module, images: Float[Tensor, "b c h w"], classes: tuple[str, ...]
) -> list[str]:
    """What the classifier sees in each image, in words; a number where it knows more classes than the data."""
    numbers = classifier(images).argmax(dim=1).tolist()
    return [classes[number] if number < len(classes) else str(number) for number in numbers]


class SmallResNet(nn.Module):
    """Three stages of basic residual blocks for small images: the CIFAR ResNet, of any width and depth.

    Parameters
    ----------
    classes
        Number of logits.
    width
        Channels of the first stage; the later ones have 2 and 4 times as many.
    blocks
        Blocks per stage: 3 and a width of 16 are ResNet-20.
    """

    def __init__(self, classes: int, width: int = 16, blocks: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.stages = nn.Sequential(*(self._stage(width, 2**number, blocks) for number in range(3)))
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes)
        )

    @staticmethod
    def _stage(width: int, factor: int, blocks: int) -> nn.Sequential:
        channels, before = width * factor, max(width * factor // 2, width)
        stride = 1 if factor == 1 else 2
        down = None
        if stride > 1:
            down = nn.Sequential(
                nn.Conv2d(before, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        first = BasicBlock(before, channels, stride, down)
        return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(blocks - 1)))

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        return self.head(self.stages(self.stem(images)))


SMALL_RESNETS = {"small_resnet": 1, "resnet20": 3}
"""`SmallResNet` by name: its blocks per stage."""


def build(name: str, classes: int, image_size: int) -> Classifier:
    """An untrained classifier.

    Parameters
    ----------
    name
        One of `SMALL_RESNETS`, or a name known to `torchvision.models.get_model`. ResNets and VGGs for
        images below 64 × 64 get a 3×3 stem of stride 1 without pooling and a head for 1×1 features.
    classes
        Number of logits.
    image_size
        Height and width of the images.

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    if name in SMALL_RESNETS:
        return Classifier(SmallResNet(classes, blocks=SMALL_RESNETS[name]))
    if name not in torchvision.models.list_models(torchvision.models):
        known = ", ".join(SMALL_RESNETS)
        raise ValueError(
            f"no classifier named {name!r}; there are {known} and the names of torchvision.models"
        )
    network = torchvision.models.get_model(name, weights=None, num_classes=classes)
    if image_size < SMALL_IMAGE and isinstance(network, torchvision.models.ResNet):
        network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    if image_size < SMALL_IMAGE and isinstance(network, torchvision.models.VGG):
        network.avgpool = nn.AdaptiveAvgPool2d(1)
        network.classifier[0] = nn.Linear(512, 4096)
    return Classifier(network, IMAGENET_MEAN, IMAGENET_STD)
