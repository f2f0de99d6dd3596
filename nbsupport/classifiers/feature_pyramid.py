"""FPD, the feature pyramid decoder (Li et al. 2020): one backbone restores images and classifies.

It follows the authors' code for SVHN, so their weights fit. That code differs from the picture in
their paper: the denoising has no weights, the first pass denoises too, and the dot-product mean of
the attacked image is added to the restored one.
"""

import pickle
from collections.abc import Sequence
from copy import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet

from ..data.images import Images, Logits, check_images
from .feature_denoising import Names, build_residual, channels, copy_weights, dot_product, stages
from .models import Classifier, SmallResNet

AUTHORS_NAMES: Names = {
    r"^(mean|std)$": "",
    r"^network\.stem\.0\.": "group1.conv1.",
    r"^network\.stem\.1\.": "group1.bn1.",
    r"^network\.stages\.(layer\d\.\d+)\.(conv|bn)": r"\1.group1.\2",
    r"^network\.stages\.": "",
    r"^head\.3\.": "group2.fc.",
    r"^decoder\.lateral\.3\.": "toplayer.",
    r"^decoder\.lateral\.(\d)\.": lambda match: f"latlayer{3 - int(match[1])}.",
    r"^decoder\.smooth\.": "smooth3.",
    r"^decoder\.enlarge\.": "trans_conv.",
}
"""Patterns that turn our names of weights into the authors', one after the other."""


class Backbone(nn.Module):
    """Stem and stages of a residual network, with x + nonlocal(x) before the first two stages.

    It computes features only: batch norms can be folded into a network that runs each once.
    """

    def __init__(self, stem: nn.Module, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleDict({f"layer{i}": stage for i, stage in enumerate(stages, 1)})

    def forward(self, images: Images) -> list[Tensor]:
        """The output of each stage, before the denoising."""
        x, outputs = self.stem(images), list[Tensor]()
        for stage in self.stages.values():
            x = stage(x + dot_product(x) if len(outputs) < 2 else x)
            outputs.append(x)
        return outputs


class PyramidDecoder(nn.Module):
    """Feature pyramid of `width` channels and transposed convolutions, from the stages to an image.

    `halved`: whether the stem halves the image twice, as that for large images does, or not at all.
    """

    def __init__(self, channels: Sequence[int], width: int, *, halved: bool) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(before, width, 1) for before in channels)
        self.smooth = nn.Conv2d(width, width, 3, padding=1)
        size = (2, 2, 0) if halved else (3, 1, 1)  # kernel, stride, padding
        self.enlarge = nn.Sequential(
            nn.ConvTranspose2d(width, width // 2, *size),
            nn.ConvTranspose2d(width // 2, width // 8, *size),
            nn.ConvTranspose2d(width // 8, 3, 1),
        )

    def forward(self, outputs: list[Tensor]) -> Tensor:
        x = self.lateral[-1](outputs[-1])
        for lateral, output in zip(self.lateral[-2::-1], outputs[-2::-1], strict=True):
            x = F.interpolate(x, output.shape[-2:], mode="bilinear") + lateral(output)
        return self.enlarge(self.smooth(x))


class FeaturePyramidDecoder(Classifier):
    """A classifier that restores its images first. A tanh bounds its Lipschitz constant.

    It takes over the modules of `network`, with ELUs for ReLUs. Both passes share the batch norms'
    running statistics, so it classifies worse in evaluation than in training mode until restored
    images look like given ones. The authors train the restoration alone, from noisy images; then
    all weights; then from restored and attacked images.
    """

    def __init__(
        self, network: SmallResNet | ResNet, *, width: int = 128, dropout: float = 0.5
    ) -> None:
        blocks = stages(network)
        if isinstance(network, ResNet):
            stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
            *pool, linear = network.avgpool, nn.Flatten(), network.fc
            halved = network.conv1.stride == (2, 2)
        else:
            stem, (*pool, linear), halved = network.stem, network.head, False
        super().__init__(Backbone(stem, blocks), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        self.squashed = True
        self.head = nn.Sequential(*pool, nn.Dropout(dropout), linear)
        for name, module in list(self.network.named_modules()):
            if isinstance(module, nn.ReLU):
                self.network.set_submodule(name, nn.ELU(inplace=module.inplace))
        self.decoder = PyramidDecoder([channels(block) for block in blocks], width, halved=halved)

    def restoration(self, images: Tensor) -> Tensor:
        """The restored images, neither checked nor clamped, for the restoration loss."""
        # strides round sizes up, so the last few rows and columns may be too many
        return self.decoder(self.network(images))[..., : images.shape[-2], : images.shape[-1]]

    def outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`restoration`, and the logits before the tanh; the images are not checked."""
        restored = self.restoration(images)
        return restored, self.head(self.network(restored + dot_product(images))[-1])

    def unchecked(self, images: Tensor) -> Tensor:
        logits = self.outputs(images)[1]
        return logits.tanh() if self.squashed else logits

    def forward(self, images: Images) -> Logits:
        """As `Classifier.forward`, but NaN where a strong attack lets the features overflow.

        Non-local means are cubic in their input, and both passes together compute five.
        """
        check_images(images, caller="classifier")
        return self.unchecked(images)


def attack_target(classifier: nn.Module) -> nn.Module:
    """Return the network to attack: `classifier`, or with its weights an FPD without the tanh.

    The tanh has hardly any gradient where the logits are large.
    """
    if isinstance(classifier, FeaturePyramidDecoder):
        classifier = copy(classifier)
        classifier.squashed = False
    return classifier


def build(name: str, classes: int, image_size: int) -> FeaturePyramidDecoder:
    """Build an untrained feature pyramid decoder: a residual network's name and ``_fpd``.

    ``resnet50_fpd`` is the authors' for SVHN, enlarged to 64 × 64; their weights do not fit the
    stem for smaller images. Raises `ValueError` for other networks.
    """
    network = build_residual(name, "_fpd", classes, image_size).network
    width, dropout = (64, 0.0) if isinstance(network, SmallResNet) else (128, 0.5)
    return FeaturePyramidDecoder(network, width=width, dropout=dropout)


def load_authors_network(path: Path) -> FeaturePyramidDecoder:
    """Load the authors' network for SVHN at 64 × 64; raises as `load_authors_weights`."""
    decoder = build("resnet50_fpd", 10, 64)
    load_authors_weights(decoder, path)
    return decoder.eval()


def load_authors_weights(classifier: FeaturePyramidDecoder, path: Path) -> None:
    """Load the authors' weights, ``{'state_dict': …}``, in place. No code in the file is run.

    Raises `ValueError` if the file has another form or does not fit; the classifier is unchanged
    then.
    """
    try:
        file = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: expected torch.save's weights, without code: {error}") from error
    weights = file.get("state_dict") if isinstance(file, dict) else None
    if not (isinstance(weights, dict) and all(isinstance(x, Tensor) for x in weights.values())):
        raise ValueError(f"{path}: expected {{'state_dict': …}} with a tensor for every name")
    found = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    copy_weights(found, classifier, AUTHORS_NAMES, path)
