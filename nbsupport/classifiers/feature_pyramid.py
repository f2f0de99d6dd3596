"""FPD, the feature pyramid decoder (Li et al. 2020): one backbone restores the image, then classifies it.

It follows the code which the authors published for SVHN, so their weights fit; where that differs from their
paper's picture: the denoising has no weights, the first pass denoises too, and the dot-product mean of the
attacked image is added to the restored one.
"""

import pickle
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import ResNet

from ..data.benchmarks import check_images
from ..denoisers.weight_files import copy_weights
from .feature_denoising import dot_product, residual, stages
from .models import Classifier, SmallResNet

Images = Float[Tensor, "b c h w"]
Values = Float[Tensor, "b classes"]

PUBLISHED_NAMES = (
    (r"^network\.stem\.0\.", "group1.conv1."),
    (r"^network\.stem\.1\.", "group1.bn1."),
    (r"^network\.stages\.(layer\d\.\d+)\.(conv|bn)", r"\1.group1.\2"),
    (r"^network\.stages\.", ""),
    (r"^head\.3\.", "group2.fc."),
    (r"^decoder\.lateral\.3\.", "toplayer."),
    (r"^decoder\.lateral\.2\.", "latlayer1."),
    (r"^decoder\.lateral\.1\.", "latlayer2."),
    (r"^decoder\.lateral\.0\.", "latlayer3."),
    (r"^decoder\.smooth\.", "smooth3."),
    (r"^decoder\.enlarge\.", "trans_conv."),
)
"""From the names of the weights here to those in the published files."""


class Backbone(nn.Module):
    """Stem and stages of a residual network, with dot-product denoising x + nonlocal(x) after the first two of them.

    It computes features only, since batch norms can be folded into a network where each is met once.
    """

    def __init__(self, stem: nn.Module, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleDict(
            {f"layer{number}": stage for number, stage in enumerate(stages, start=1)}
        )

    def forward(self, images: Images) -> list[Tensor]:
        """What each stage says, before the denoising."""
        x = self.stem(images)
        outputs: list[Tensor] = []
        for stage in self.stages.values():
            x = stage(x + dot_product(x) if len(outputs) < 2 else x)
            outputs.append(x)
        return outputs


class PyramidDecoder(nn.Module):
    """Feature pyramid and transposed convolutions: from what the stages say to an image.

    Parameters
    ----------
    channels
        Of the stages.
    width
        Channels of the pyramid.
    halved
        Whether the stem halves the image twice, as that for large images does, or not at all.
    """

    def __init__(self, channels: Sequence[int], width: int, *, halved: bool) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(before, width, 1) for before in channels)
        self.smooth = nn.Conv2d(width, width, 3, padding=1)
        kernel, stride, padding = (2, 2, 0) if halved else (3, 1, 1)
        widths = (width, width // 2, width // 8)
        self.enlarge = nn.Sequential(
            *(
                nn.ConvTranspose2d(before, after, kernel, stride, padding)
                for before, after in pairwise(widths)
            ),
            nn.ConvTranspose2d(widths[-1], 3, 1),
        )

    def forward(self, outputs: list[Tensor]) -> Tensor:
        x = self.lateral[-1](outputs[-1])
        for lateral, output in zip(self.lateral[-2::-1], outputs[-2::-1], strict=True):
            x = F.interpolate(x, output.shape[-2:], mode="bilinear") + lateral(output)
        return self.enlarge(self.smooth(x))


class FeaturePyramidDecoder(Classifier):
    """A classifier that restores its images first; its logits go through a tanh, which bounds its Lipschitz constant.

    The authors train it with Adam on images with uniform noise of ±0.01, in this order: the mean
    squared error of `outputs`' restored image against the clean one, for `restoration_parameters`;
    that plus the cross-entropy, for all; both again with the restored image in the place of the
    noisy one; then PGD adversarial training (40 steps of 2/255 within 8/255) with the same sum.

    Both passes share the running statistics of the batch norms, so until the restored images look
    like the given ones it classifies much worse in evaluation than in training mode.

    Parameters
    ----------
    network
        A ResNet of torchvision or a `SmallResNet`; its parts are taken over and its ReLUs become ELUs.
    width
        Channels of the pyramid.
    dropout
        Before the last layer.

    Raises
    ------
    TypeError
        If the network is another one.
    """

    def __init__(self, network: nn.Module, *, width: int = 128, dropout: float = 0.5) -> None:
        blocks = stages(network)
        if isinstance(network, ResNet):
            stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
            *pool, linear = network.avgpool, nn.Flatten(), network.fc
            halved = network.conv1.stride == (2, 2)
        else:
            assert isinstance(network, SmallResNet)
            stem, (*pool, linear), halved = network.stem, network.head, False
        super().__init__(Backbone(stem, blocks), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        self.head = nn.Sequential(*pool, nn.Dropout(dropout), linear)
        for module in list(self.network.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.ReLU):
                    setattr(module, name, nn.ELU(inplace=child.inplace))
        channels = [
            [layer for layer in stage.modules() if isinstance(layer, nn.Conv2d)][-1]
            for stage in blocks
        ]
        self.decoder = PyramidDecoder(
            [layer.out_channels for layer in channels], width, halved=halved
        )

    def restoration(self, images: Tensor) -> Tensor:
        """The restored images, unchecked and not yet clamped: what the restoration loss is made of."""
        # Strides round sizes up, so there are at most a few rows and columns too many at the end.
        return self.decoder(self.network(images))[..., : images.shape[-2], : images.shape[-1]]

    def outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`restoration`, and the logits before the tanh, unchecked."""
        restored = self.restoration(images)
        return restored, self.head(self._deepest(images, restored))

    def _deepest(self, images: Tensor, restored: Tensor) -> Tensor:
        return self.network(restored + dot_product(images))[-1]

    def unchecked(self, images: Tensor) -> Tensor:
        return self.outputs(images)[1].tanh()

    def unsquashed(self, images: Images) -> Values:
        """The logits before the tanh, which has hardly any gradient where it is confident: attack these.

        Raises
        ------
        ValueError
            If the images are not in [0, 1] or not RGB.
        """
        check_images(images, caller="unsquashed")
        return self.outputs(images)[1]

    def restore(self, images: Images) -> Images:
        """The restored images, in [0, 1].

        Raises
        ------
        ValueError
            If the images are not in [0, 1] or not RGB.
        """
        check_images(images, caller="restore")
        return self.restoration(images).clamp(0, 1)

    def features(self, images: Images) -> Float[Tensor, "b features"]:
        check_images(images, caller="features")
        return self.head[:-1](self._deepest(images, self.restoration(images)))

    def restoration_parameters(self) -> list[nn.Parameter]:
        """What the first phase trains: all but the head."""
        return [*self.network.parameters(), *self.decoder.parameters()]


def build(name: str, classes: int, image_size: int) -> FeaturePyramidDecoder:
    """An untrained feature pyramid decoder.

    Parameters
    ----------
    name
        Of a residual network (`feature_denoising.residual`) with the ending ``_fpd``; ``resnet50_fpd`` is the
        authors' network for SVHN.
    classes
        Number of logits.
    image_size
        Height and width of the images. The authors enlarged SVHN to 64 × 64; below that, the stem
        is another one (see `nbsupport.classifiers.models.build`) and the published weights do not fit.

    Raises
    ------
    ValueError
        If the name is unknown, or not that of a residual network.
    """
    network = residual(name, "_fpd", classes, image_size).network
    if isinstance(network, SmallResNet):
        return FeaturePyramidDecoder(network, width=64, dropout=0.0)
    return FeaturePyramidDecoder(network)


def load_published(classifier: FeaturePyramidDecoder, path: Path) -> None:
    """Load the weights of a published file, ``{'state_dict': …}``, in place. No code in it is run.

    Raises
    ------
    ValueError
        If the file has another form, or its names or shapes are not those of the classifier, which
        is then left as it was.
    """
    try:
        file = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path}: expected weights which torch.save wrote, without code: {error}"
        ) from error
    weights = file.get("state_dict") if isinstance(file, dict) else None
    if not isinstance(weights, dict) or not all(
        isinstance(tensor, Tensor) for tensor in weights.values()
    ):
        raise ValueError(f"{path}: expected {{'state_dict': …}} with a tensor for every name")
    wanted = {}
    for name, tensor in classifier.state_dict().items():
        for ours, published in PUBLISHED_NAMES:
            name = re.sub(ours, published, name)
        wanted[name] = tensor
    for own in ("mean", "std"):  # of the normalisation, which the authors do without
        del wanted[own]
    copy_weights(
        {name.removeprefix("module."): tensor for name, tensor in weights.items()}, wanted, path
    )
