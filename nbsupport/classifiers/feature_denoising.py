"""FD, feature denoising (Xie et al. 2019): blocks x + BN(conv1×1(nonlocal(x))) between those of a residual network.

Also reads the weights which the authors published for tensorpack: R152-Denoise and X101-DenoiseAll.
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.resnet import Bottleneck

from ..denoisers.weight_files import copy_weights
from . import models as classifiers
from .models import Classifier, SmallResNet

Features = Float[Tensor, "b c h w"]

PUBLISHED = {"resnet152_fd": ("stages", True), "resnext101_32x8d_fd": ("blocks", False)}
"""The authors' two networks: where the blocks stand, and whether they embed."""


def dot_product(x: Features) -> Features:
    """The sum over all positions j of (x_i · x_j) x_j, divided by h·w."""
    flat = x.flatten(2)
    channels, positions = flat.shape[1:]
    # Of the two orders the cheaper one, so a large map never needs positions² numbers.
    mixed = flat @ (flat.mT @ flat) if channels > positions else (flat @ flat.mT) @ flat
    return (mixed / positions).unflatten(2, x.shape[2:])


def embedded_gaussian(
    theta: Float[Tensor, "b d h w"], phi: Float[Tensor, "b d h w"], x: Features
) -> Features:
    """The mean over all positions j of x_j, weighted by the softmax over j of θ_i · φ_j / √d."""
    scores = theta.flatten(2).mT @ phi.flatten(2) / theta.shape[1] ** 0.5
    return (x.flatten(2) @ scores.softmax(dim=2).mT).unflatten(2, x.shape[2:])


class DenoisingBlock(nn.Module):
    """x + BN(conv1×1(nonlocal(x))), which starts as the identity: the batch norm's scale starts at 0.

    Parameters
    ----------
    channels
        Of x.
    embedded
        Whether with the embedded Gaussian, whose θ and φ have half as many channels, or the dot product.
    """

    def __init__(self, channels: int, *, embedded: bool) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict()
        for name in ("theta", "phi") if embedded else ():
            embedding = nn.Conv2d(channels, channels // 2, 1, bias=False)
            nn.init.normal_(embedding.weight, std=0.01)
            self.embeddings[name] = embedding
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Features) -> Features:
        if self.embeddings:
            mean = embedded_gaussian(self.embeddings["theta"](x), self.embeddings["phi"](x), x)
        else:
            mean = dot_product(x)
        return x + self.norm(self.conv(mean))


def stages(network: nn.Module) -> list[nn.Sequential]:
    """The stages of residual blocks, in order.

    Raises
    ------
    TypeError
        If the network is neither a ResNet of torchvision (ResNeXt included) nor a `SmallResNet`.
    """
    if isinstance(network, SmallResNet):
        return list(network.stages)  # type: ignore[arg-type]
    if isinstance(network, ResNet):
        return [network.layer1, network.layer2, network.layer3, network.layer4]
    raise TypeError(
        f"stages: expected a ResNet of torchvision or a SmallResNet, got {type(network).__name__}"
    )


def insert(network: nn.Module, *, after: str, embedded: bool) -> None:
    """Insert denoising blocks into a network, in place; what it computes stays the same until they learn.

    Weights under the network's own names must be loaded before: the positions in its stages shift.

    Parameters
    ----------
    network
        See `stages`.
    after
        ``"stages"``: after the last block of each stage; ``"blocks"``: after every residual block.
    embedded
        See `DenoisingBlock`.

    Raises
    ------
    ValueError, TypeError
        If `after` is something else, or `stages` refuses the network.
    """
    if after not in ("stages", "blocks"):
        raise ValueError(f"insert: expected after='stages' or after='blocks', got {after!r}")
    for stage in stages(network):
        for position in range(len(stage), 0, -1) if after == "blocks" else (len(stage),):
            stage.insert(position, DenoisingBlock(_channels(stage), embedded=embedded))


def _channels(part: nn.Module) -> int:
    """How many channels come out of a stem or a stage."""
    return [layer.out_channels for layer in part.modules() if isinstance(layer, nn.Conv2d)][-1]


def residual(name: str, ending: str, classes: int, image_size: int) -> Classifier:
    """As `nbsupport.classifiers.models.build`, for a name with the ending of what is done to stages of residual blocks.

    Raises
    ------
    ValueError
        If the name has another ending, is unknown without it, or not that of a residual network.
    """
    plain = name.removesuffix(ending)
    classifier = classifiers.build(plain, classes, image_size) if plain != name else None
    if classifier is None or not isinstance(classifier.network, (SmallResNet, ResNet)):
        raise ValueError(
            f"classifier: {ending[1:].upper()} changes the stages of a residual network, and {plain!r} is none; choose "
            f"{', '.join(classifiers.SMALL_RESNETS)} or a ResNet of torchvision.models, or leave out its table"
        )
    return classifier


def build(name: str, classes: int, image_size: int) -> Classifier:
    """An untrained classifier with feature denoising.

    Parameters
    ----------
    name
        Of a residual network (`residual`) with the ending ``_fd``: with dot products after each
        stage, and after the stem of small ones. Those of `PUBLISHED` are the authors' instead, and pad like
        TensorFlow, so that the published weights fit.
    classes
        Number of logits.
    image_size
        Height and width of the images; see `nbsupport.classifiers.models.build`.

    Raises
    ------
    ValueError
        If the name is unknown, or not that of a residual network.
    """
    classifier = residual(name, "_fd", classes, image_size)
    network = classifier.network
    if name in PUBLISHED:
        after, embedded = PUBLISHED[name]
        insert(network, after=after, embedded=embedded)
        pad_like_tensorflow(network)
        return Classifier(network)  # its mean and std of 0.5 are the published x/127.5 − 1
    if isinstance(network, SmallResNet):
        network.stem.append(DenoisingBlock(_channels(network.stem), embedded=False))
    insert(network, after="stages", embedded=False)
    return classifier


def pad_like_tensorflow(network: nn.Module) -> None:
    """Let all layers of stride 2 pad as TensorFlow's ``SAME``: what is odd goes below and to the right."""
    for layer in network.modules():
        if isinstance(layer, nn.MaxPool2d) or (
            isinstance(layer, nn.Conv2d) and layer.stride != (1, 1)
        ):
            layer.padding = 0 if isinstance(layer, nn.MaxPool2d) else (0, 0)
            layer.register_forward_pre_hook(_pad)


def _pad(layer: nn.Conv2d | nn.MaxPool2d, inputs: tuple[Tensor]) -> Tensor:
    kernel, stride = (
        side if isinstance(side, int) else side[0] for side in (layer.kernel_size, layer.stride)
    )
    missing = [
        max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in inputs[0].shape[:1:-1]
    ]
    amounts = [amount for total in missing for amount in (total // 2, total - total // 2)]
    return F.pad(inputs[0], amounts, value=0.0 if isinstance(layer, nn.Conv2d) else -torch.inf)


def load_published(classifier: Classifier, path: Path) -> None:
    """Load weights which tensorpack wrote (``.npz``) into one of the networks of `PUBLISHED`, in place.

    Their colours come as BGR; the first convolution is turned round instead, so images stay RGB.

    Raises
    ------
    ValueError
        If the file is not an ``.npz`` of arrays, or its names or shapes are not those of the
        classifier, which is then left as it was.
    """
    try:
        # opened here, because NumPy leaves a damaged file open
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            found = {name.removesuffix(":0"): torch.from_numpy(file[name]) for name in file.files}
    except (ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: expected an .npz of arrays, as tensorpack writes it: {error}"
        ) from error
    if "conv0/W" in found:
        found["conv0/W"] = found["conv0/W"].flip(2)
    layers = _tensorpack_layers(classifier.network)
    copy_weights(
        found, dict(item for layer in layers for item in _tensorpack_tensors(*layer)), path
    )


def _tensorpack_layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers with weights and what tensorpack calls them."""
    if not isinstance(network, ResNet):
        raise ValueError(
            f"load_published: expected one of {', '.join(PUBLISHED)}, got {type(network).__name__}"
        )
    yield from {"conv0": network.conv1, "conv0/bn": network.bn1, "linear": network.fc}.items()
    for group, stage in enumerate(stages(network)):
        block = -1
        for module in stage:
            if isinstance(module, DenoisingBlock):
                # The authors embed in the network that denoises after stages, and only there.
                name = (
                    f"group{group}_denoise"
                    if module.embeddings
                    else f"group{group}/block{block}/non_local"
                )
                yield from (
                    (f"{name}/embedding_{part}", layer) for part, layer in module.embeddings.items()
                )
                yield from {f"{name}/conv": module.conv, f"{name}/conv/bn": module.norm}.items()
            elif isinstance(module, Bottleneck):
                block += 1
                name = f"group{group}/block{block}"
                for number in (1, 2, 3):
                    yield f"{name}/conv{number}", module.get_submodule(f"conv{number}")
                    yield f"{name}/conv{number}/bn", module.get_submodule(f"bn{number}")
                if module.downsample is not None:
                    conv, norm = module.downsample.children()
                    yield from {
                        f"{name}/convshortcut": conv,
                        f"{name}/convshortcut/bn": norm,
                    }.items()


def _tensorpack_tensors(name: str, layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A layer's weights as tensorpack lays them out (height, width, in, out), sharing their memory."""
    if isinstance(layer, nn.Conv2d):
        yield f"{name}/W", layer.weight.permute(2, 3, 1, 0)
    elif isinstance(layer, nn.Linear):
        yield from {f"{name}/W": layer.weight.T, f"{name}/b": layer.bias}.items()
    elif (
        isinstance(layer, nn.BatchNorm2d)
        and layer.running_mean is not None
        and layer.running_var is not None
    ):
        yield from {f"{name}/gamma": layer.weight, f"{name}/beta": layer.bias}.items()
        yield from {
            f"{name}/mean/EMA": layer.running_mean,
            f"{name}/variance/EMA": layer.running_var,
        }.items()
