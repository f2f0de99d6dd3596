"""Simple defences to compare with: they need no training and assume no particular attack."""

import io
import math
import re
from collections.abc import Callable
from functools import partial

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


def jpeg(images: Images, quality: int) -> Images:
    """Compress as JPEG of a quality from 1 to 95."""
    decoded = []
    for pixels in (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="JPEG", quality=quality)
        decoded.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).to(images) / 255


def approximate_jpeg(images: Images, quality: int) -> Images:
    """Approximate `jpeg` with useful gradients (Reich et al. 2024)."""
    from kornia.enhance import jpeg_codec_differentiable  # needed for attacks alone

    return jpeg_codec_differentiable(images, torch.tensor([float(quality)]).to(images))


def median(images: Images) -> Images:
    """Take the median of each 3×3 window, with replicated borders."""
    windows = F.unfold(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3)
    return windows.unflatten(1, (-1, 9)).median(dim=2).values.view_as(images)


def blur(images: Images, sigma: float, reach: int) -> Images:
    """Blur with a Gaussian of σ pixels, cut off after `reach` pixels, with replicated borders."""
    padded = F.pad(images, [reach] * 4, mode="replicate")
    blurred = gaussian_blur(padded, [2 * reach + 1] * 2, [sigma] * 2)
    return blurred[..., reach:-reach, reach:-reach]


def total_variation(images: Images) -> Images:
    """Apply Chambolle's total-variation denoising of weight 0.1 to all channels at once."""
    arrays = images.detach().cpu().numpy()
    denoised = [denoise_tv_chambolle(image, weight=0.1, channel_axis=0) for image in arrays]
    return torch.from_numpy(np.stack(denoised)).to(images)


BASELINES: dict[str, Callable[[Tensor], Tensor]] = {
    "8-bit": round_to_8_bit,
    "JPEG 40": partial(jpeg, quality=40),
    "median 3x3": median,
    "Gaussian blur": partial(blur, sigma=0.6, reach=1),
    "total variation": total_variation,
}
SWEPT = ("JPEG q (1 to 95)", "Gaussian blur σ (pixels, below 10)")


def find_baseline(name: str) -> Callable[[Tensor], Tensor] | None:
    """The function of one of `BASELINES`, or of one of `SWEPT` with a number; None if neither."""
    if name in BASELINES:
        return BASELINES[name]
    kind, _, text = name.rpartition(" ")
    number = float(text) if re.fullmatch(r"[1-9]?\d(\.\d+)?", text) else 0.0
    if kind == "JPEG" and text.isdecimal() and 1 <= number <= 95:
        return partial(jpeg, quality=int(number))
    if kind == "Gaussian blur" and 0 < number < 10:
        return partial(blur, sigma=number, reach=math.ceil(4 * number))
    return None


class FunctionDenoiser(Denoiser):
    """A function of images as a denoiser."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def denoise(self, images: Images) -> Images:
        return self.function(images)


class Baseline(FunctionDenoiser):
    """A simple defence as a denoiser; `differentiable` is False where its gradient is useless.

    Then it may have an `approximation` whose gradient is not. Raises `ValueError` if
    `find_baseline` knows no such name.
    """

    def __init__(self, name: str) -> None:
        function = find_baseline(name)
        if function is None:
            known = ", ".join((*BASELINES, *SWEPT))
            raise ValueError(f"no baseline named {name!r}; choose from {known}")
        super().__init__(function)
        self.approximation = None
        self.differentiable = name.startswith(("median", "Gaussian"))
        if isinstance(function, partial) and function.func is jpeg:
            approximate = partial(approximate_jpeg, **function.keywords)
            self.approximation = FunctionDenoiser(approximate)
