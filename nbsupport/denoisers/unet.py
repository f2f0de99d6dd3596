"""φ, the network that predicts kernels or perturbations: the paper's U-Net (section 3.2).

The paper gives its blocks and no code. What it leaves open follows the kernel prediction network of
EfficientDerain, with which it shares an author. `width` scales all of it; 64 is the paper's.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def _block(before: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(3):
        layers += [
            nn.Conv2d(before if number == 0 else channels, channels, 3, padding=1),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


def initialise(module: nn.Module) -> None:
    """Keep the size of the signal through the layers (He et al. 2015)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class Encoder(nn.Module):
    """Five blocks of `width` · (1, 2, 4, 8, 8) channels, average pooling by 2 between them."""

    def __init__(self, width: int, *, literal: bool = False) -> None:
        super().__init__()
        channels = [3, *(width * factor for factor in (1, 2, 4, 8, 8))]
        self.blocks = nn.ModuleList(_block(a, b) for a, b in pairwise(channels))
        if not literal:
            initialise(self)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        outputs = [self.blocks[0](images)]
        for block in self.blocks[1:]:
            # Rounding sizes up is what lets images of any size through without padding them.
            outputs.append(block(F.avg_pool2d(outputs[-1], 2, ceil_mode=True)))
        return outputs


class Decoder(nn.Module):
    """Three blocks of `width` · 8, `width` · 4 and `channels` channels with skips from encoder blocks 4, 3, 2."""

    def __init__(self, width: int, channels: int, *, literal: bool = False) -> None:
        super().__init__()
        before = (16 * width, 12 * width, 6 * width)
        self.blocks = nn.ModuleList(
            _block(a, b) for a, b in zip(before, (8 * width, 4 * width, channels), strict=True)
        )
        if not literal:
            initialise(self)

    def forward(self, outputs: list[Tensor]) -> Float[Tensor, "b channels h w"]:
        x = outputs[4]
        for block, skip in zip(self.blocks, (outputs[3], outputs[2], outputs[1]), strict=True):
            x = block(torch.cat([resize(x, skip), skip], dim=1))
        return x


def resize(x: Tensor, like: Tensor) -> Tensor:
    """`x` enlarged, bilinearly, to the height and width of `like`."""
    return F.interpolate(x, like.shape[-2:], mode="bilinear")


class OutputLayer(nn.Conv2d):
    """The 1×1 layer after the last block.

    The paper enlarges first; a 1×1 convolution and a bilinear enlargement commute, and this order
    costs a quarter. At the start it says `constant` everywhere, unless that is None.
    """

    def __init__(self, before: int, channels: int, constant: Tensor | None) -> None:
        super().__init__(before, channels, 1)
        if constant is not None and self.bias is not None:
            nn.init.zeros_(self.weight)
            self.bias.data.copy_(constant)
