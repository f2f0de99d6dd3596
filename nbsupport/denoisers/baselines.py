"""Simple defences to compare with: they need no training and assume no particular attack."""

import io
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.restoration import denoise_tv_chambolle
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from ..data.images import Images
from .models import Denoiser


def round_to_8_bit(images: Images) -> Images:
    """Round to the nearest of 256 values, which erases every perturbation below 1/510."""
    return (images * 255).round() / 255


def jpeg(images: Images) -> Images:
    """Compress as JPEG of quality 75."""
    decoded = []
    for pixels in (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="JPEG", quality=75)
        decoded.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).to(images) / 255


def median(images: Images) -> Images:
    """Take the median of each 3×3 window, with replicated borders."""
    windows = F.unfold(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3)
    return windows.unflatten(1, (-1, 9)).median(dim=2).values.view_as(images)


def blur(images: Images) -> Images:
    """Blur with a 3×3 Gaussian of σ = 0.6 pixels, with replicated borders."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    return gaussian_blur(padded, [3, 3], [0.6, 0.6])[..., 1:-1, 1:-1]


def total_variation(images: Images) -> Images:
    """Apply Chambolle's total-variation denoising of weight 0.1 to all channels at once."""
    arrays = images.detach().cpu().numpy()
    denoised = [denoise_tv_chambolle(image, weight=0.1, channel_axis=0) for image in arrays]
    return torch.from_numpy(np.stack(denoised)).to(images)


BASELINES: dict[str, Callable[[Tensor], Tensor]] = {
    "8-bit": round_to_8_bit,
    "JPEG 75": jpeg,
    "median 3x3": median,
    "Gaussian blur": blur,
    "total variation": total_variation,
}


class Baseline(Denoiser):
    """A simple defence as a denoiser; `differentiable` is False where its gradient is useless.

    Raises `ValueError` if `name` is not one of `BASELINES`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        if name not in BASELINES:
            raise ValueError(f"no baseline named {name!r}; choose from {', '.join(BASELINES)}")
        self.function = BASELINES[name]
        self.differentiable = self.function in (median, blur)

    def denoise(self, images: Images) -> Images:
        return self.function(images)
