"""One denoiser before one classifier on attacked images: what is measured of every image."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from ..attacks.pgd import AttackedSet
from ..classifiers.models import Classifier
from ..denoisers.filtering import distance_from_identity, uncertainty_map
from ..denoisers.models import KernelDenoiser, PAFilter
from ..training.devices import halving

AT_ONCE = (
    50  # images; many at once leave the processor's caches, and SSIM alone takes eight times longer
)
EQUAL = 140.0  # dB: no more than float32 rounds, as between the two usual ways to bring bytes into [0, 1]
Images = Float[Tensor, "b c h w"]


@dataclass(frozen=True)
class Measurement:
    """One method on all attacked test images; axis 0 is ε, axis 1 the image.

    Attributes
    ----------
    predictions
        The classifier's class for the denoised image.
    labels
        The true classes.
    psnr, ssim
        Of the denoised image against the clean one, data range 1; infinite and 1 where they are equal.
    change
        Mean distance of the denoised from the attacked image.
    extra
        Per-image means of what else the method has: ``uncertainty`` (eq. 9) and ``kernel_distance``
        for filtering, ``weight`` for PA-Filt.
    """

    predictions: Int[Tensor, "strengths n"]
    labels: Int[Tensor, "n"]
    psnr: Float[Tensor, "strengths n"]
    ssim: Float[Tensor, "strengths n"]
    change: Float[Tensor, "strengths n"]
    extra: dict[str, Float[Tensor, "strengths n"]]

    def correct(self) -> Bool[np.ndarray, "strengths n"]:
        """Which images are classified correctly."""
        return (self.predictions == self.labels).numpy()


@torch.no_grad()
def measure(
    classifier: Classifier, denoiser: nn.Module, attacked: AttackedSet
) -> dict[str, Tensor]:
    """Everything that `Measurement` holds but the labels, for one denoiser before one classifier."""

    def run(number: int) -> dict[str, Tensor]:
        columns = []
        for eps in attacked.eps:
            pairs = zip(attacked.at(eps).split(number), attacked.images.split(number), strict=True)
            found = [_measured(classifier, denoiser, images, clean) for images, clean in pairs]
            columns.append(
                {name: torch.cat([part[name].cpu() for part in found]) for name in found[0]}
            )
        return {name: torch.stack([column[name] for column in columns]) for name in columns[0]}

    return halving(run, AT_ONCE)


def _measured(
    classifier: Classifier, denoiser: nn.Module, images: Tensor, clean: Tensor
) -> dict[str, Tensor]:
    images, clean = images.to(classifier.mean.device), clean.to(classifier.mean.device)
    denoised = denoiser(images)
    psnr, ssim = quality(denoised, clean)
    said, change = classifier(denoised).argmax(dim=1), (denoised - images).abs().mean(dim=(1, 2, 3))
    return {"predictions": said, "psnr": psnr, "ssim": ssim, "change": change} | _extra(
        denoiser, images
    )


def quality(images: Images, clean: Images) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
    """PSNR in dB (∞ for images equal up to rounding) and SSIM of images in [0, 1] against the clean, each alone."""
    against: Any = {"preds": images, "target": clean, "data_range": 1.0, "reduction": "none"}
    ssim: Any = structural_similarity_index_measure(**against)
    psnr = peak_signal_noise_ratio(**against, dim=(1, 2, 3))
    return psnr.masked_fill(psnr > EQUAL, float("inf")), ssim.view(len(images))


def _extra(denoiser: nn.Module, images: Tensor) -> dict[str, Tensor]:
    if isinstance(denoiser, PAFilter):
        return {"weight": denoiser.parts(images).weight.mean(dim=(1, 2, 3))}
    if isinstance(denoiser, KernelDenoiser):
        kernels = denoiser.kernels(images)
        return {
            "uncertainty": uncertainty_map(kernels).mean(dim=(1, 2, 3)),
            "kernel_distance": distance_from_identity(kernels).mean(dim=(1, 2, 3)),
        }
    return {}
