"""FD, feature denoising (Xie et al. 2019): blocks x + BN(conv1×1(nonlocal(x))) in a ResNet.

Also reads the authors' weights, R152-Denoise and X101-DenoiseAll, which tensorpack wrote.
"""

import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import ResNet

from . import models
from .models import Classifier, SmallResNet

Features = Float[Tensor, "b _ h w"]
Names = Mapping[str, str | Callable[[re.Match[str]], str]]

AUTHORS_NETWORKS = {"resnet152_fd": ("stages", True), "resnext101_32x8d_fd": ("blocks", False)}
"""Where the denoising blocks of the authors' two networks are, and whether they embed."""
AUTHORS_NAMES = {
    r"^(mean|std)$|.*num_batches_tracked$": "",
    r"^network\.conv1\.": "conv0/",
    r"^network\.bn1\.": "conv0/bn/",
    r"^network\.fc\.": "linear/",
    r"/downsample\.0\.": "/convshortcut/",
    r"/downsample\.1\.": "/convshortcut/bn/",
    r"/bn(\d)\.": r"/conv\1/bn/",
    r"/norm\.": "/conv/bn/",
    r"/conv(\d?)\.": r"/conv\1/",
    r"/embeddings\.(\w+)\.": r"/embedding_\1/",
    r"/bn/weight$": "/bn/gamma",
    r"/bn/bias$": "/bn/beta",
    r"/running_mean$": "/mean/EMA",
    r"/running_var$": "/variance/EMA",
    r"/weight$": "/W",
    r"/bias$": "/b",
}
"""Patterns that turn our names of weights into the authors', one after the other."""


def dot_product(x: Features) -> Features:
    """The sum over all positions j of (x_i · x_j) x_j, divided by h·w."""
    flat = x.flatten(2)
    channels, positions = flat.shape[1:]
    # the cheaper of the two orders, so that a large map never needs positions² numbers
    mixed = flat @ (flat.mT @ flat) if channels > positions else (flat @ flat.mT) @ flat
    return (mixed / positions).unflatten(2, x.shape[2:])


def embedded_gaussian(x: Features, theta: Features, phi: Features) -> Features:
    """The mean of x_j, weighted by the softmax over all positions j of θ_i · φ_j / √d."""
    scores = theta.flatten(2).mT @ phi.flatten(2) / theta.shape[1] ** 0.5
    return (x.flatten(2) @ scores.softmax(dim=2).mT).unflatten(2, x.shape[2:])


class DenoisingBlock(nn.Module):
    """x + BN(conv1×1(nonlocal(x))), at first the identity: the batch norm's scale starts at 0.

    `embedded`: an embedded Gaussian, θ and φ with half as many channels, instead of dot products.
    """

    def __init__(self, channels: int, *, embedded: bool) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict()
        for name in ("theta", "phi") if embedded else ():
            self.embeddings[name] = embedding = nn.Conv2d(channels, channels // 2, 1, bias=False)
            nn.init.normal_(embedding.weight, std=0.01)
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Features) -> Features:
        embedded = (embedding(x) for embedding in self.embeddings.values())
        mean = embedded_gaussian(x, *embedded) if self.embeddings else dot_product(x)
        return x + self.norm(self.conv(mean))


def stages(network: SmallResNet | ResNet) -> list[nn.Sequential]:
    """The stages of a residual network."""
    if isinstance(network, SmallResNet):
        return list(network.stages)  # type: ignore[arg-type]
    return [network.layer1, network.layer2, network.layer3, network.layer4]


def channels(part: nn.Module) -> int:
    """How many channels come out of a stem or a stage."""
    return [layer.out_channels for layer in part.modules() if isinstance(layer, nn.Conv2d)][-1]


def insert(network: SmallResNet | ResNet, *, after: str, embedded: bool) -> None:
    """Insert denoising blocks after all ``"stages"`` or all ``"blocks"`` of a network, in place."""
    for stage in stages(network):
        for position in range(len(stage), 0, -1) if after == "blocks" else (len(stage),):
            stage.insert(position, DenoisingBlock(channels(stage), embedded=embedded))


def build_residual(name: str, ending: str, classes: int, image_size: int) -> Classifier:
    """Build `name` without its ending; raise `ValueError` if that is no residual network."""
    plain = name.removesuffix(ending)
    classifier = models.build(plain, classes, image_size)
    if plain == name or not isinstance(classifier.network, SmallResNet | ResNet):
        hint = "choose a small_resnet or a ResNet of torchvision.models, or leave out its table"
        kind = ending[1:].upper()
        raise ValueError(f"classifier: {kind} needs a residual network, got {plain!r}; {hint}")
    return classifier


def build(name: str, classes: int, image_size: int) -> Classifier:
    """Build an untrained classifier with feature denoising: a residual network's name and ``_fd``.

    Dot products follow each stage, and the stem of small networks. `AUTHORS_NETWORKS`, which pad
    like TensorFlow, fit the authors' weights. Raises `ValueError` for other networks.
    """
    classifier = build_residual(name, "_fd", classes, image_size)
    network: Any = classifier.network
    if isinstance(network, SmallResNet):
        network.stem.append(DenoisingBlock(channels(network.stem), embedded=False))
    after, embedded = AUTHORS_NETWORKS.get(name, ("stages", False))
    insert(network, after=after, embedded=embedded)
    if name not in AUTHORS_NETWORKS:
        return classifier
    pad_like_tensorflow(network)
    return Classifier(network)  # its mean and std of 0.5 are the authors' x/127.5 − 1


def pad_like_tensorflow(network: nn.Module) -> None:
    """Pad in layers of stride 2 as TensorFlow's ``SAME``: the odd pixel goes below and right."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d) and layer.stride not in (1, (1, 1)):
            layer.padding = 0 if isinstance(layer, nn.MaxPool2d) else (0, 0)
            layer.register_forward_pre_hook(_pad)


def _pad(layer: nn.Conv2d | nn.MaxPool2d, inputs: tuple[Tensor]) -> Tensor:
    kernel, stride = (int(np.max(side)) for side in (layer.kernel_size, layer.stride))
    missing = [max(kernel - (size % stride or stride), 0) for size in inputs[0].shape[:1:-1]]
    amounts = [amount for total in missing for amount in (total // 2, total - total // 2)]
    return F.pad(inputs[0], amounts, value=0.0 if isinstance(layer, nn.Conv2d) else -torch.inf)


def load_authors_network(path: Path) -> Classifier:
    """Load the one of `AUTHORS_NETWORKS` whose weights are in a file, as `load_authors_weights`."""
    embeds = b"embedding_theta" in path.read_bytes()  # archives have their names uncompressed
    name = next(name for name, (_, embedded) in AUTHORS_NETWORKS.items() if embedded == embeds)
    classifier = build(name, 1000, 224)
    load_authors_weights(classifier, path)
    return classifier.eval()


def load_authors_weights(classifier: Classifier, path: Path) -> None:
    """Load the authors' weights (``.npz``) into one of `AUTHORS_NETWORKS`, in place.

    They expect BGR; the first convolution is reversed instead, so images stay RGB. Raises
    `ValueError` if the file has another form or does not fit; the classifier is unchanged then.
    """
    found = {}
    try:
        # opened here, because NumPy leaves a damaged file open
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            for name, x in file.items():  # TensorFlow's axes are height, width, in, out
                x = x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T
                found[name.removesuffix(":0")] = torch.from_numpy(x)
    except (ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: expected an .npz from tensorpack, got {error}") from error
    found |= {name: x.flip(1) for name, x in found.items() if name == "conv0/W"}
    embedded = any(".theta." in name for name in classifier.state_dict())

    def position(match: re.Match[str]) -> str:
        group, block, denoising = int(match[1]) - 1, int(match[2]), bool(match[3])
        if embedded:  # in the network with blocks after its stages, and only there
            return f"group{group}_denoise/" if denoising else f"group{group}/block{block}/"
        return f"group{group}/block{block // 2}/" + ("non_local/" if denoising else "")

    positions: Names = {r"^network\.layer(\d)\.(\d+)\.(?=(conv\.|norm|embed)?)": position}
    copy_weights(found, classifier, {**positions, **AUTHORS_NAMES}, path)


def copy_weights(
    found: Mapping[str, Tensor], classifier: Classifier, names: Names, path: Path
) -> None:
    """Copy a file's weights into a classifier, or raise `ValueError` if they do not fit.

    `names` turns our names into the file's (into "" if it has none), pattern by pattern.
    """
    wanted = {}
    for name, tensor in classifier.state_dict().items():
        for ours, theirs in names.items():
            name = re.sub(ours, theirs, name)
        if name:
            wanted[name] = tensor
    shapes = [{(name, x.shape) for name, x in weights.items()} for weights in (wanted, found)]
    if unfit := sorted({name for name, _ in shapes[0] ^ shapes[1]}):
        got = f"{len(unfit)} missing, unknown or of another shape: {', '.join(unfit[:3])}"
        raise ValueError(f"{path}: expected the weights of this network, got {got}")
    for name, tensor in wanted.items():
        tensor.copy_(found[name])
