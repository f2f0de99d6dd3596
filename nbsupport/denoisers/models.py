"""The denoisers of the paper: from attacked images in [0, 1] to images in [0, 1] of the same size.

One network φ, the U-Net of kernel prediction (section 3.2), drives them all:

`Additive`   Ĩ = Î + φ(Î)                                   eq. 6
`Filtering`  Ĩ = Î ⊗ φ(Î)                                   eq. 7
`MultiHead`  four output layers, one per band of strengths    section 3.4
`YNet`       one encoder, two decoders: Ĩ_sl and Ĩ_m         section 4.1
`PAFilter`   Ĩ = W ⊙ Ĩ_sl + (1 − W) ⊙ Ĩ_m                   eqs. 9–11

``literal=True`` takes the paper at its word where that trains badly: PyTorch's own initialisation,
which 24 layers of ReLU shrink to nothing, also in the last layer, and for `Additive` a last block of
three rectified channels. The default starts every denoiser at the identity.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..data.benchmarks import check_images
from .filtering import filter_pixels, uncertainty_map
from .unet import Decoder, Encoder, OutputLayer, initialise, resize

HEADS = 4
FUSION_WIDTH = 32
Images = Float[Tensor, "b 3 h w"]
Kernels = Float[Tensor, "b taps h w"]
Map = Float[Tensor, "b 1 h w"]


def _kernel_layer(size: int, literal: bool) -> OutputLayer:
    """The 1×1 layer that says kernels: at the start the identity's, unless `literal`."""
    identity = torch.eye(size**2)[size**2 // 2].repeat(3)
    return OutputLayer(3 * size**2, 3 * size**2, None if literal else identity)


class Denoiser(nn.Module):
    """What all denoisers share: the check at the edge and the clipping to [0, 1].

    Raises
    ------
    TypeError, ValueError
        When called with anything but RGB images in [0, 1], see `nbsupport.data.benchmarks.check_images`.
    """

    def forward(self, images: Images) -> Images:
        check_images(images, caller=type(self).__name__)
        return self.denoise(images).clamp(0, 1)

    def denoise(self, images: Images) -> Images:
        raise NotImplementedError


class KernelDenoiser(Denoiser):
    """A denoiser that predicts `kernels` and filters with them (eq. 7)."""

    def kernels(self, images: Images) -> Kernels:
        """φ(Î): taps row by row, see `nbsupport.denoisers.filtering.filter_pixels`."""
        raise NotImplementedError

    def denoise(self, images: Images) -> Images:
        return filter_pixels(images, self.kernels(images))


class Additive(Denoiser):
    """Ĩ = Î + φ(Î) (eq. 6).

    Parameters
    ----------
    width
        Channels of the first block of φ; 64 in the paper.
    kernel_size
        Of the filtering denoiser it is compared with, whose last block it shares the width of.
    literal
        The last block has three rectified channels, so φ is often dead.
    """

    def __init__(self, width: int = 64, kernel_size: int = 5, *, literal: bool = False) -> None:
        super().__init__()
        channels = 3 if literal else 3 * kernel_size**2
        self.encoder, self.decoder = (
            Encoder(width, literal=literal),
            Decoder(width, channels, literal=literal),
        )
        self.output = OutputLayer(channels, 3, None if literal else torch.zeros(3))

    def denoise(self, images: Images) -> Images:
        return images + resize(self.output(self.decoder(self.encoder(images))), images)


class Filtering(KernelDenoiser):
    """Ĩ = Î ⊗ φ(Î) (eq. 7): one K×K kernel for every pixel and colour channel.

    Parameters
    ----------
    width, kernel_size, literal
        Channels of the first block of φ, 64 in the paper; K, odd; no initialisation at the identity.
    """

    def __init__(self, width: int = 64, kernel_size: int = 5, *, literal: bool = False) -> None:
        super().__init__()
        taps = 3 * kernel_size**2
        self.encoder, self.decoder = (
            Encoder(width, literal=literal),
            Decoder(width, taps, literal=literal),
        )
        self.output = _kernel_layer(kernel_size, literal)

    def kernels(self, images: Images) -> Kernels:
        return resize(self.output(self.decoder(self.encoder(images))), images)


class View(KernelDenoiser):
    """One output of a denoiser that has several, as a denoiser of its own.

    Parameters
    ----------
    whole
        The denoiser; its weights are shared, not copied.
    output
        Which one: a head, 1 to 4, of `MultiHead`, or ``"sl"`` or ``"m"`` of `YNet`.
    """

    def __init__(self, whole: "MultiHead | YNet", output: int | str) -> None:
        super().__init__()
        self.whole, self.output = whole, output

    def kernels(self, images: Images) -> Kernels:
        return self.whole.kernels(images, self.output)


class MultiHead(KernelDenoiser):
    """One φ with four output layers; head i learns from the strengths {1, 3, 5}·10^(i−5) (section 3.4).

    Called as it is, it answers with its last head; ``View(heads, 3)`` is the third. Parameters as for `Filtering`.
    """

    def __init__(self, width: int = 64, kernel_size: int = 5, *, literal: bool = False) -> None:
        super().__init__()
        taps = 3 * kernel_size**2
        self.encoder, self.decoder = (
            Encoder(width, literal=literal),
            Decoder(width, taps, literal=literal),
        )
        self.outputs = nn.ModuleList(_kernel_layer(kernel_size, literal) for _ in range(HEADS))

    def kernels(self, images: Images, head: int | str = HEADS) -> Kernels:
        """The kernels of one head, 1 to 4; ValueError for others."""
        if head not in range(1, HEADS + 1):
            raise ValueError(f"MultiHead: expected a head from 1 to {HEADS}, got {head!r}")
        return resize(self.outputs[int(head) - 1](self.decoder(self.encoder(images))), images)

    @staticmethod
    def band(eps: float) -> int:
        """The head that learns from `eps`: 1 for 1e-4 … 5e-4, 4 for 1e-1 … 5e-1; ValueError for others."""
        head = int(f"{eps:e}".split("e")[1]) + HEADS + 1
        if not (eps and 1 <= head <= HEADS):
            raise ValueError(f"MultiHead: expected a strength from 1e-4 to below 1, got {eps}")
        return head


class YNet(KernelDenoiser):
    """One encoder and two decoders: φ_sl for small and large, φ_m for middle strengths (section 4.1).

    Called as it is, it answers with Ĩ_sl; ``View(ynet, "m")`` is the other. Parameters as for `Filtering`.
    """

    def __init__(self, width: int = 64, kernel_size: int = 5, *, literal: bool = False) -> None:
        super().__init__()
        taps = 3 * kernel_size**2
        self.encoder = Encoder(width, literal=literal)
        self.decoders = nn.ModuleDict(
            {name: Decoder(width, taps, literal=literal) for name in ("sl", "m")}
        )
        self.outputs = nn.ModuleDict(
            {name: _kernel_layer(kernel_size, literal) for name in ("sl", "m")}
        )

    def kernels(self, images: Images, branch: int | str = "sl") -> Kernels:
        """φ_sl(Î) or φ_m(Î).

        Raises
        ------
        ValueError
            If `branch` is neither ``"sl"`` nor ``"m"``.
        """
        if branch not in ("sl", "m"):
            raise ValueError(f"YNet: expected the branch 'sl' or 'm', got {branch!r}")
        return self._decode(self.encoder(images), str(branch), images)

    def both_kernels(self, images: Images) -> tuple[Kernels, Kernels]:
        """φ_sl(Î) and φ_m(Î) from one pass through the encoder."""
        outputs = self.encoder(images)
        return self._decode(outputs, "sl", images), self._decode(outputs, "m", images)

    def _decode(self, outputs: list[Tensor], branch: str, images: Tensor) -> Tensor:
        return resize(self.outputs[branch](self.decoders[branch](outputs)), images)


class Parts(NamedTuple):
    """Everything between Î and Ĩ in `PAFilter`; the two images are clipped to [0, 1]."""

    sl: Images
    m: Images
    kernels_sl: Kernels
    kernels_m: Kernels
    uncertainty_sl: Map
    uncertainty_m: Map
    weight: Map


class PAFilter(Denoiser):
    """Predictive perturbation-aware filtering: Ĩ = W ⊙ Ĩ_sl + (1 − W) ⊙ Ĩ_m (eqs. 9–11).

    W, in [0, 1], comes from the two uncertainty maps through six 3×3 convolutions and a sigmoid.

    Parameters
    ----------
    ynet
        Makes Ĩ_sl and Ĩ_m; None for a new one.
    width, kernel_size
        Of the new one, as for `Filtering`.
    literal
        The maps enter as they are, and nothing is initialised. Otherwise they enter as differences
        from the identity's 1, and W starts at ½.
    """

    def __init__(
        self,
        ynet: YNet | None = None,
        width: int = 64,
        kernel_size: int = 5,
        *,
        literal: bool = False,
    ) -> None:
        super().__init__()
        self.ynet = ynet if ynet is not None else YNet(width, kernel_size, literal=literal)
        self.literal = literal
        layers: list[nn.Module] = [nn.Conv2d(2, FUSION_WIDTH, 3, padding=1), nn.ReLU()]
        for _ in range(4):
            layers += [nn.Conv2d(FUSION_WIDTH, FUSION_WIDTH, 3, padding=1), nn.ReLU()]
        last = nn.Conv2d(FUSION_WIDTH, 1, 3, padding=1)
        self.fusion = nn.Sequential(*layers, last, nn.Sigmoid())
        if not literal:
            initialise(self.fusion)
            nn.init.zeros_(last.weight)

    def parts(self, images: Images) -> Parts:
        """Ĩ_sl, Ĩ_m, both kernels, both uncertainty maps (eq. 9) and W (eq. 10).

        Refuses what calling the denoiser refuses.
        """
        check_images(images, caller=type(self).__name__)
        kernels_sl, kernels_m = self.ynet.both_kernels(images)
        sl, m = (filter_pixels(images, kernels).clamp(0, 1) for kernels in (kernels_sl, kernels_m))
        uncertainty_sl, uncertainty_m = uncertainty_map(kernels_sl), uncertainty_map(kernels_m)
        maps = torch.cat([uncertainty_sl, uncertainty_m], dim=1)
        weight = self.fusion(maps if self.literal else maps - 1)
        return Parts(sl, m, kernels_sl, kernels_m, uncertainty_sl, uncertainty_m, weight)

    def denoise(self, images: Images) -> Images:
        parts = self.parts(images)
        return parts.weight * parts.sl + (1 - parts.weight) * parts.m
