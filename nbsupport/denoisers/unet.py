"""φ, the U-Net that predicts kernels or perturbations (section 3.2).

The paper describes its blocks without code; the rest follows the kernel prediction network of
EfficientDerain, which shares an author. `width` scales all channels; the paper's is 64.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..data.images import Images

LEAK = 0.1  # of the decoder: with ReLU its last features die while L1 votes for "no change"


def convolutions(*channels: int, leak: float = 0.0, border: Any = "zeros") -> nn.Sequential:
    """Build rectified 3×3 convolutions from each number of channels to the next.

    Negative values are multiplied by `leak`; `border` is the padding mode of `nn.Conv2d`.
    """
    layers: list[nn.Module] = []
    for a, b in pairwise(channels):
        convolution = nn.Conv2d(a, b, 3, padding=1, padding_mode=border)
        layers += [convolution, nn.LeakyReLU(leak) if leak else nn.ReLU()]
    return nn.Sequential(*layers)


def initialise(network: nn.Module) -> None:
    """Initialise convolutions so that they preserve the signal's scale (He et al. 2015)."""
    for weights in network.parameters():
        if weights.ndim > 1:
            nn.init.kaiming_normal_(weights, nonlinearity="relu")
        else:
            nn.init.zeros_(weights)


class Encoder(nn.Module):
    """Five blocks of `width` · (1, 2, 4, 8, 8) channels with 2×2 average pooling in between."""

    def __init__(self, width: int, as_published: bool) -> None:
        super().__init__()
        channels = [3, *(width * factor for factor in (1, 2, 4, 8, 8))]
        self.blocks = nn.ModuleList(convolutions(a, b, b, b) for a, b in pairwise(channels))
        if not as_published:
            initialise(self)

    def forward(self, images: Images) -> list[Tensor]:
        outputs = [self.blocks[0](images)]
        for block in self.blocks[1:]:
            # Rounding sizes up admits images of any size without padding.
            outputs.append(block(F.avg_pool2d(outputs[-1], 2, ceil_mode=True)))
        return outputs


class Decoder(nn.Module):
    """Blocks of `width` · 8, `width` · 4 and `channels` channels; skips from blocks 4, 3, 2."""

    def __init__(self, width: int, channels: int, as_published: bool) -> None:
        super().__init__()
        sizes = (16 * width, 8 * width), (12 * width, 4 * width), (6 * width, channels)
        leak = 0.0 if as_published else LEAK
        self.blocks = nn.ModuleList(convolutions(a, b, b, b, leak=leak) for a, b in sizes)
        if not as_published:
            initialise(self)

    def forward(self, outputs: list[Tensor]) -> Float[Tensor, "b channels h w"]:
        x = outputs[4]
        for block, skip in zip(self.blocks, outputs[3:0:-1], strict=True):
            x = block(torch.cat([resize(x, skip), skip], dim=1))
        return x


def resize(x: Tensor, like: Tensor) -> Tensor:
    """Resize `x` bilinearly to the height and width of `like`."""
    return F.interpolate(x, like.shape[-2:], mode="bilinear")


class OutputLayer(nn.Conv2d):
    """The 1×1 layer after the last block; its output is `start` before training.

    The paper resizes first. The two commute, and convolving first costs a quarter.
    """

    def __init__(self, before: int, start: Float[Tensor, "c"], as_published: bool) -> None:
        super().__init__(before, len(start), 1)
        if not as_published:
            nn.init.zeros_(self.weight)
            self.bias = nn.Parameter(start.clone())
