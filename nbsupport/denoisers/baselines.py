"""The simple defences that every table is compared with: no training, no attack in mind."""

import io
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from skimage.restoration import denoise_tv_chambolle
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from .models import Denoiser

Images = Float[Tensor, "b 3 h w"]
JPEG_QUALITY = 75
BLUR_SIGMA = 0.6
TV_WEIGHT = 0.1


def _bytes(images: Images) -> Tensor:
    return (images * 255).round().to(torch.uint8)


def round_to_8_bit(images: Images) -> Images:
    """The nearest of 256 values: erases every perturbation below 1/510."""
    return _bytes(images).to(images.dtype) / 255


def jpeg(images: Images) -> Images:
    """Through a JPEG file of quality 75."""
    decoded = []
    for pixels in _bytes(images).permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="JPEG", quality=JPEG_QUALITY)
        decoded.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).to(images) / 255


def median(images: Images) -> Images:
    """The median of every 3×3 window, borders repeated."""
    b, c, h, w = images.shape
    windows = F.unfold(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3)
    return windows.view(b, c, 9, h, w).median(dim=2).values


def blur(images: Images) -> Images:
    """A 3×3 Gaussian of σ = 0.6 pixels."""
    return gaussian_blur(F.pad(images, (1, 1, 1, 1), mode="replicate"), [3, 3], [BLUR_SIGMA] * 2)[
        ..., 1:-1, 1:-1
    ]


def total_variation(images: Images) -> Images:
    """Chambolle's total-variation denoising of weight 0.1, over all channels at once."""
    denoised = [
        denoise_tv_chambolle(i, weight=TV_WEIGHT, channel_axis=0)
        for i in images.detach().cpu().numpy()
    ]
    return torch.from_numpy(np.stack(denoised)).to(images)


class Baseline(Denoiser):
    """A simple defence as a denoiser.

    Attributes
    ----------
    differentiable
        Whether its gradient tells an attacker anything.

    Raises
    ------
    ValueError
        If `name` is not one of `BASELINES`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        if name not in BASELINES:
            raise ValueError(f"no baseline named {name!r}; there are: {', '.join(BASELINES)}")
        self.function = BASELINES[name]
        self.differentiable = self.function in (median, blur)

    def denoise(self, images: Images) -> Images:
        return self.function(images)


BASELINES: dict[str, Callable[[Tensor], Tensor]] = {
    "8-bit": round_to_8_bit,
    "JPEG 75": jpeg,
    "median 3x3": median,
    "Gaussian blur": blur,
    "total variation": total_variation,
}
